"""The error tree: whose fault it is, and whether another attempt may help.

::

    GatewayError            status_code, code, retryable, message safe to show a client
      ClientError           the caller's fault, never retried
        InvalidRequest  Unauthorized  Forbidden  UnknownModel  RequestTooLarge  RequestTimeout
        RateLimited(retry_after_s)
      UpstreamError         the provider's fault; carries target and attempt
        UpstreamRefused     it answered: this request will not do (4xx)
        UpstreamBusy        it answered: not now (429, 503, 529), retry_after_s
        UpstreamFailed      it answered: it broke (5xx, an error inside a 200)
        UpstreamUnreachable no connection, or one that died before an answer
        UpstreamTimeout     connect, first token, token to token or total
        StreamInterrupted   cut or malformed after it began
      ClientGone            nobody is listening any more; nothing can be told
      GatewayStopping       the gateway ends before the stream does
      InternalError         ours; logged with a traceback, shown without details
    ConfigError             start only; names the file, the key and what was expected

The class says whose fault it is and ``retryable`` says whether another attempt may help; retry and fallback look at
nothing else. ``error_type`` is the closed set that metrics and logs use as a label. A message never holds a secret,
a prompt or an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from gateway.core.call import Target
    from gateway.core.transcript import Transcript

ErrorType = Literal[
    "rate_limited",
    "overloaded",
    "auth",
    "bad_request",
    "context_length",
    "content_filter",
    "connect",
    "tls",
    "dns",
    "read_timeout",
    "reset",
    "protocol",
    "server_error",
    "_OTHER",
]

E = TypeVar("E", bound=BaseException)


class GatewayError(Exception):
    """Whatever may go wrong with a call, with all that a client may be told about it.

    ``message`` is one line; ``code`` is stable and meant for programs; ``param`` names the field of the request.
    """

    status_code = 500
    code = "internal_error"
    type = "server_error"
    retryable = False
    error_type: ErrorType = "_OTHER"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code
        if status_code is not None:
            self.status_code = status_code


class ClientError(GatewayError):
    """The caller's fault: the same request will fail again."""

    status_code = 400
    code = "invalid_request"
    type = "invalid_request_error"
    error_type: ErrorType = "bad_request"


class InvalidRequest(ClientError):
    """The request is malformed, or asks for what no target of its model can do."""


class Unauthorized(ClientError):
    """No client key, or not one that is configured."""

    status_code = 401
    code = "invalid_api_key"
    type = "authentication_error"
    error_type: ErrorType = "auth"


class Forbidden(ClientError):
    """A foreign ``Origin`` or ``Host`` at a gateway that serves only its own machine."""

    status_code = 403
    code = "forbidden"
    type = "permission_error"
    error_type: ErrorType = "auth"


class UnknownModel(ClientError):
    """The model is neither configured nor ``provider/model`` of a configured provider."""

    status_code = 404
    code = "model_not_found"


def unknown_model(name: str) -> UnknownModel:
    """Return the error for a model that nobody has; of a long name only its beginning is told."""
    return UnknownModel(f"the model {name[:200]!r} does not exist", param="model")


class RequestTooLarge(ClientError):
    """The body is over ``server.max_body_bytes``."""

    status_code = 413
    code = "request_too_large"


class RequestTimeout(ClientError):
    """The request did not arrive in time."""

    status_code = 408
    code = "request_timeout"


class RateLimited(ClientError):
    """The caller asks for more than its share."""

    status_code = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"
    error_type: ErrorType = "rate_limited"


class UpstreamError(GatewayError):
    """The provider's fault.

    Filled in where the attempt is made: ``target``, ``attempt``, and ``was_sent``, whether any of its answer was passed
    on. Once it was, nothing may begin again that could be seen twice: whoever keeps a transcript of what the client has
    leaves it in ``delivered``, for another attempt to go on from.

    ``refused`` says what exactly the provider will not do: answer this request, answer it as a stream, or go on with a
    partial answer. In another form the same request may well be answered.
    """

    status_code = 502
    code = "upstream_error"
    type = "upstream_error"
    error_type: ErrorType = "server_error"
    target: Target | None = None
    attempt: int = 0
    was_sent: bool = False
    delivered: Transcript | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status_code: int | None = None,
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        error_type: ErrorType | None = None,
        upstream_status: int | None = None,
        refused: Literal["request", "stream", "continuation"] = "request",
    ) -> None:
        super().__init__(message, code=code, param=param, status_code=status_code, retry_after_s=retry_after_s)
        self.upstream_status = upstream_status
        self.refused = refused
        if retryable is not None:
            self.retryable = retryable
        if error_type is not None:
            self.error_type = error_type


class UpstreamRefused(UpstreamError):
    """The provider answered that this request will not do; another provider may see that differently."""

    code = "upstream_refused"
    error_type: ErrorType = "bad_request"


class UpstreamBusy(UpstreamError):
    """The provider answered that it cannot now; ``retry_after_s`` when it said for how long."""

    status_code = 503
    code = "upstream_busy"
    retryable = True
    error_type: ErrorType = "overloaded"


class UpstreamFailed(UpstreamError):
    """The provider answered that it broke."""

    code = "upstream_failed"
    retryable = True


class UpstreamUnreachable(UpstreamError):
    """No connection could be made, or it died before an answer."""

    code = "upstream_unreachable"
    retryable = True
    error_type: ErrorType = "connect"


class UpstreamTimeout(UpstreamError):
    """The provider was too slow; ``code`` names which of its limits ran out."""

    status_code = 504
    code = "upstream_timeout"
    retryable = True
    error_type: ErrorType = "read_timeout"


class StreamInterrupted(UpstreamError):
    """The stream was cut, stalled, broken or ended by an error after it had begun."""

    code = "stream_interrupted"
    retryable = True
    error_type: ErrorType = "reset"


class ClientGone(GatewayError):
    """The client has left; whatever still runs for it is to be stopped."""

    status_code = 499
    code = "client_gone"


class GatewayStopping(GatewayError):
    """The gateway is stopping, and has waited for the stream as long as it was told to."""

    status_code = 503
    code = "gateway_stopping"


class InternalError(GatewayError):
    """Ours. The details are in the log, under the request id."""


class ConfigError(Exception):
    """The configuration cannot be used; ``faults`` has one line for each thing that is wrong.

    Each line names the file, the line, the key path and what was expected.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def without_frames(error: E) -> E:
    """Return ``error``, that no longer keeps alive what it and its causes went through: the call and all of its answer.

    Whoever keeps an error is mostly in one of these frames, and then only the garbage collector can part them.
    """
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        one.__traceback__ = None
        chain.append(one)
        one = one.__cause__ or one.__context__
    return error
