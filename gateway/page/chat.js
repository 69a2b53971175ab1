// One chat completion over fetch: the stream is read with the browser's own reader, and its events are parsed here, since
// an EventSource can neither post nor see comments. A seam of a continued answer is a comment.
import { EventParser } from "./sse.js";

/** What went wrong, in the gateway's words where it had some. */
export class Problem extends Error {
  constructor({ message, code = "", status = 0, requestId = "", retryAfterS = null }) {
    super(message);
    Object.assign(this, { code, status, requestId, retryAfterS });
  }
}

/** Everything that came of one answer, and when. */
export class Answer {
  text = "";
  reasoning = "";
  refusal = "";
  calls = [];
  seams = [];
  finishReason = "";
  usage = null;
  target = "";
  requestId = "";
  deltaCount = 0;
  firstAtMs = null;
  textAtMs = null;
  lastAtMs = null;
  endedAtMs = null;
  isStopped = false;
  problem = null;

  constructor(nowMs = performance.now()) {
    this.askedAtMs = nowMs;
  }

  /** Take what one read brought. */
  take(events, nowMs = performance.now()) {
    for (const { chunk, comment } of events) {
      if (comment !== undefined) this.#takeComment(comment);
      else this.#takeChunk(chunk, nowMs);
    }
  }

  get isOver() {
    return this.endedAtMs !== null;
  }

  /** Whether there is anything in it that a conversation can go on from. */
  get hasContent() {
    return this.text !== "" || this.refusal !== "" || this.wholeCalls.length > 0;
  }

  /** The tool calls whose arguments are all there. */
  get wholeCalls() {
    return this.finishReason === "tool_calls" ? this.calls : [];
  }

  /** Tokens behind the first by the time they took; an estimate until the provider has counted. */
  get tokensPerS() {
    const seconds = (this.lastAtMs - this.firstAtMs) / 1000;
    return this.deltaCount > 1 && seconds > 0.05 ? (this.tokenCount - 1) / seconds : null;
  }

  get tokenCount() {
    return this.usage?.completion_tokens ?? this.deltaCount;
  }

  #takeComment(comment) {
    const found = /^millrace continued (.+) from (.+), (\w+), attempt (\d+), after \d+ characters$/.exec(comment);
    if (!found) return;
    const [, target, from, way, attempt] = found;
    this.seams.push({ at: this.text.length, target, from, way, attempt: Number(attempt) });
  }

  #takeChunk({ choices = [], usage }, nowMs) {
    if (usage) this.usage = usage;
    for (const { delta = {}, finish_reason } of choices) {
      const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
      const isToken = Boolean(delta.content || reasoning || delta.refusal || delta.tool_calls?.length);
      this.text += delta.content ?? "";
      this.reasoning += reasoning;
      this.refusal += delta.refusal ?? "";
      for (const piece of delta.tool_calls ?? []) this.#takeCall(piece);
      if (finish_reason) this.finishReason = finish_reason;
      if (!isToken) continue;
      this.deltaCount += 1;
      this.firstAtMs ??= nowMs;
      if (!reasoning) this.textAtMs ??= nowMs;
      this.lastAtMs = nowMs;
    }
  }

  #takeCall({ index = 0, id, function: called = {} }) {
    const call = (this.calls[index] ??= { id: "", name: "", arguments: "", result: null });
    call.id ||= id ?? "";
    call.name += called.name ?? "";
    call.arguments += called.arguments ?? "";
  }
}

/** Returns the headers that show a client key, if there is one. */
export function keyHeaders(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Asks, and fills in an answer while it comes; `changed` is called after every read. Throws a Problem, or AbortError. */
export async function complete(body, { answer, key, signal, changed }) {
  const response = await reach("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...keyHeaders(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  answer.requestId = response.headers.get("x-request-id") ?? "";
  answer.target = response.headers.get("x-millrace-target") ?? "";
  if (!response.ok) throw await problemOf(response);
  let isWhole = false;
  const parser = new EventParser();
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = [];
      let told = null;
      for (const { data, comment } of parser.feed(decoder.decode(value, { stream: true }))) {
        if (comment !== undefined) events.push({ comment });
        else if (data === "[DONE]") isWhole = true;
        else {
          const chunk = JSON.parse(data);
          if (chunk.error) told = new Problem({ ...chunk.error, requestId: answer.requestId });
          else events.push({ chunk });
        }
      }
      answer.take(events);
      changed();
      if (told) throw told;
    }
  } catch (error) {
    if (error instanceof Problem || signal.aborted) throw error;
    throw broken(answer.requestId);
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isWhole) throw broken(answer.requestId);
}

/** Returns the names that may be asked for; throws a Problem. */
export async function listModels(key) {
  const response = await reach("/v1/models", { headers: keyHeaders(key) });
  if (!response.ok) throw await problemOf(response);
  return (await response.json()).data.map(({ id }) => id);
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem({ code: "unreachable", message: "no answer came from the gateway" });
  }
}

async function problemOf(response) {
  const told = await response.json().then(
    (body) => body.error ?? {},
    () => ({}),
  );
  const after = Number.parseFloat(response.headers.get("retry-after"));
  return new Problem({
    message: told.message ?? `the gateway answered with status ${response.status}`,
    code: told.code ?? "",
    status: response.status,
    requestId: response.headers.get("x-request-id") ?? "",
    retryAfterS: Number.isFinite(after) ? after : null,
  });
}

function broken(requestId) {
  return new Problem({ code: "connection_lost", message: "the connection to the gateway was lost", requestId });
}
