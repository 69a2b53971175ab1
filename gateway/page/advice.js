// What went wrong, and what a person can do about it. The gateway's own message and code are always shown beside it.

const BUSY = "Wait a moment and ask again, or choose another model.";
const CUT = "Ask again; what came stays above. A model with several targets can be finished by another of them.";
const ADVICE = {
  missing_api_key: ["The gateway wants a key", "Enter one of its client keys under Options, then ask again."],
  invalid_api_key: ["The gateway does not know this key", "Correct the client key under Options, then ask again."],
  forbidden: ["The gateway refuses this page", "Open it as http://127.0.0.1 or localhost, or give the gateway client keys."],
  model_not_found: ["There is no such model", "Choose another one below, or add it to the gateway's configuration."],
  request_too_large: ["The conversation is too long for the gateway", "Begin a new one, or raise server.max_body_bytes."],
  rate_limit_exceeded: ["Too many requests", BUSY],
  upstream_busy: ["The provider is overloaded or limits its requests", BUSY],
  concurrency_limit: ["As many requests are under way as the provider is allowed", BUSY],
  insufficient_quota: ["The provider's quota is used up", "Add credit at the provider, or choose another model."],
  upstream_auth: ["The provider refuses the gateway's key", "Check api_key of this provider in the gateway's configuration."],
  upstream_refused: ["The provider refuses this request", "Its message says why; change the request, or choose another model."],
  upstream_unreachable: ["The provider cannot be reached", "Check base_url and the network of the gateway, or choose another model."],
  connect_timeout: ["The provider cannot be reached", "Check base_url and the network of the gateway, or choose another model."],
  upstream_timeout: ["The provider was too slow", BUSY],
  ttft_timeout: ["No first token came in time", BUSY],
  stall_timeout: ["The answer stalled, and nobody could go on with it", CUT],
  total_timeout: ["The answer took longer than it may", "Ask for less, or raise total_timeout_s of the provider."],
  stream_truncated: ["The answer broke off, and nobody could go on with it", CUT],
  stream_interrupted: ["The answer broke off, and nobody could go on with it", CUT],
  upstream_failed: ["The provider failed", BUSY],
  upstream_error: ["The provider failed", BUSY],
  gateway_stopping: ["The gateway is stopping", "Ask again in a moment: another one may have taken over."],
  internal_error: ["The gateway failed", "Its log has the details under the request id."],
  unreachable: ["The gateway does not answer", "Check that it runs and that this address is still right, then ask again."],
  connection_lost: ["The connection broke off before the answer's end", "Check the network, then ask again; what came stays above."],
};
const BY_STATUS = {
  400: ["The request was refused", "The message says which part of it; change that and ask again."],
  401: ADVICE.invalid_api_key,
  403: ADVICE.forbidden,
  404: ADVICE.model_not_found,
  429: ADVICE.rate_limit_exceeded,
};

/** Returns {title, advice} for a problem. */
export function advise({ code, status }) {
  const [title, advice] = ADVICE[code] ?? BY_STATUS[status] ?? (status >= 500 ? ADVICE.upstream_failed : BY_STATUS[400]);
  return { title, advice };
}
