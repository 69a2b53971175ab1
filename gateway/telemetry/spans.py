"""What is noted of a call while it lives, and the spans that are made of the notes when it has ended.

A note costs the loop less than a span of the SDK's would, and nothing for a token. The spans are made later, by the
thread that exports them. What they look like is told in ``gateway.telemetry.tracing``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self, Unpack
from urllib.parse import urlsplit

from gateway.core.call import Call, Target
from gateway.core.events import Usage
from gateway.core.ledger import Settlement
from gateway.core.trace import SAMPLED, Attributes, Caller, Facts, Trace
from gateway.telemetry import conventions as names
from gateway.telemetry.ids import new_id

MAX_NOTES = 64
"""Of one call: more stalls and seams than that say nothing new."""

_PATHS = {"chat_completions": "/v1/chat/completions", "chat_stream": "/api/chat/stream"}
_OUTPUT_TYPES = {"text": "text", "json_object": "json", "json_schema": "json"}
_REASONING_LEVELS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
_UNFAILED = frozenset({"completed", "client_aborted", "rejected"})


@dataclass(frozen=True, slots=True)
class Peer:
    """A configured provider as traces name it; without an address where none is known."""

    name: str
    address: str | None = None
    port: int | None = None

    @classmethod
    def of(cls, *, kind: str, host: str | None = None, base_url: str | None = None) -> Self:
        """Return the provider of this kind, at this known host or address."""
        parts = urlsplit(base_url or "")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return cls(names.provider_name(kind, host, parts.hostname or ""), parts.hostname, port)


_UNKNOWN = Peer("unknown")


class Sink(Protocol):
    """Where notes go. ``peers`` are the providers by name, ``clock`` is the one that all times are on."""

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The configured providers."""

    @property
    def clock(self) -> Callable[[], float]:
        """The monotonic clock."""

    def put(self, noted: Noted) -> None:
        """Take what has ended; there may be no room."""


class RecordedTrace(Trace):
    """The trace of a call of which spans are exported. Times are on the monotonic clock until then.

    It keeps nothing of the call itself, which may be large, and holds what was said.
    """

    __slots__ = (
        "_attempt_count",
        "_call_span_id",
        "_caller",
        "_choice_count",
        "_clock",
        "_has_ended",
        "_notes",
        "_path",
        "_request",
        "_request_id",
        "_sink",
        "_started_at_s",
        "_target",
        "_unix_s",
    )

    def __init__(self, call: Call, trace_id: str, caller: Caller | None, sink: Sink, *, propagates: bool) -> None:
        ids = new_id(16)
        flags, tracestate = (caller.flags, call.headers.get("tracestate")) if caller else (SAMPLED, None)
        super().__init__(trace_id, ids[:16], flags, tracestate, propagates=propagates)
        self._call_span_id = ids[16:]
        self._caller = caller
        self._sink = sink
        self._clock = sink.clock
        now_s = self._clock()
        self._unix_s = time.time() - now_s  # once, so that all times of a trace agree
        self._started_at_s = call.received_at_s or now_s
        self._request_id = call.request_id
        self._path = _PATHS.get(call.endpoint)
        self._target = call.route.targets[0] if call.route.targets else None
        self._request = _request_attributes(call)
        self._choice_count = call.choice_count
        self._notes: list[tuple[str, float, Attributes]] = []
        self._attempt_count = 0
        self._has_ended = False

    @property
    def traceparent(self) -> str:
        """The trace as whoever is called next would be told of it: that it is called by the call."""
        return f"00-{self.trace_id}-{self._call_span_id}-{self.flags:02x}"

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Note what happened, and when."""
        if len(self._notes) < MAX_NOTES:
            self._notes.append((name, self._clock(), attributes or {}))

    def attempt(self, settlement: Settlement) -> None:
        """Hand the attempt over for export; the last one that brought anything names the call's provider."""
        self._attempt_count += 1
        if settlement.is_delivered or self._attempt_count == 1:
            self._target = settlement.target
        self._sink.put(Noted(self, settlement))

    def end(self, outcome: str, **facts: Unpack[Facts]) -> None:
        """Hand the call over for export, once."""
        if not self._has_ended:
            self._has_ended = True
            self._sink.put(Noted(self, Ending(self._clock(), outcome, facts)))

    # --- the spans, made in the thread that exports

    def spans(self, what: Settlement | Ending) -> Iterator[Span]:
        """Yield the span of an attempt, or those of the call itself."""
        if isinstance(what, Settlement):
            yield self._attempt_span(what)
            return
        if self.has_call(what):
            yield self._call_span(what)
        yield self._server_span(what)

    def has_call(self, ending: Ending) -> bool:
        """Whether a model was to be called at all: a request that was refused at the door never came so far."""
        return self._attempt_count > 0 or ending.outcome != "rejected"

    def _server_span(self, ending: Ending) -> Span:
        attributes: Attributes = {
            names.HTTP_REQUEST_METHOD: "POST",
            names.HTTP_ROUTE: self._path,
            names.URL_PATH: self._path,
            names.URL_SCHEME: "http",
            names.HTTP_RESPONSE_STATUS_CODE: ending.facts.get("http_status"),
            names.ERROR_TYPE: ending.error if ending.is_server_error else None,
            names.REQUEST_ID: self._request_id,
            names.OUTCOME: ending.outcome,
        }
        name = f"POST {self._path}" if self._path else "POST"
        parent_id = self._caller.span_id if self._caller else None
        times_s = self._started_at_s, ending.at_s
        return Span("SERVER", name, self.span_id, parent_id, times_s, attributes, is_error=ending.is_server_error)

    def _call_span(self, ending: Ending) -> Span:
        facts, model = ending.facts, self._request[names.REQUEST_MODEL]
        is_stream = self._request[names.REQUEST_STREAM]
        attributes: Attributes = {
            **self._request,
            **self._peer_attributes(self._target),
            names.RESPONSE_ID: facts.get("response_id") or None,
            names.RESPONSE_MODEL: facts.get("response_model") or None,
            names.RESPONSE_FINISH_REASONS: self._finish_reasons(ending),
            names.RESPONSE_TIME_TO_FIRST_CHUNK: facts.get("ttft_s") if is_stream else None,
            **_usage_attributes(facts.get("usage"), names.USAGE_OF_CALL),
            names.ERROR_TYPE: ending.error if ending.has_failed else None,
            names.OUTCOME: ending.outcome,
            names.ATTEMPT_COUNT: self._attempt_count,
        }
        name = f"{names.CHAT} {model}" if model else names.CHAT
        times_s = self._started_at_s, ending.at_s
        span = Span("CLIENT", name, self._call_span_id, self.span_id, times_s, attributes, is_error=ending.has_failed)
        span.events = self._notes
        return span

    def _attempt_span(self, settled: Settlement) -> Span:
        has_failed, first_at_s = settled.result == "failed", settled.first_token_at_s
        is_stream = self._request[names.REQUEST_STREAM]
        attributes: Attributes = {
            names.OPERATION_NAME: names.CHAT,
            names.REQUEST_MODEL: settled.target.model,
            names.REQUEST_STREAM: is_stream,
            **self._peer_attributes(settled.target),
            names.RESPONSE_TIME_TO_FIRST_CHUNK: first_at_s - settled.started_at_s if first_at_s and is_stream else None,
            names.HTTP_RESPONSE_STATUS_CODE: settled.http_status,
            **_usage_attributes(settled.usage, names.USAGE_OF_ATTEMPT),
            names.ERROR_TYPE: settled.error_type or names.OTHER_ERROR if has_failed else None,
            names.ATTEMPT: settled.attempt,
            names.WAY: settled.way,
            names.RESULT: settled.result,
            names.REASON: settled.reason or None,
            names.CODE: settled.code,
            names.IS_DELIVERED: settled.is_delivered,
        }
        name, span_id = f"{names.CHAT} {settled.target.model}", new_id(8)
        times_s = settled.started_at_s, settled.ended_at_s
        return Span("CLIENT", name, span_id, self._call_span_id, times_s, attributes, is_error=has_failed)

    def _finish_reasons(self, ending: Ending) -> Sequence[str] | None:
        """Return a reason for each choice; ``error`` for one that did not come to its end."""
        reasons = list(ending.facts.get("finish_reasons", ()))
        if ending.outcome not in ("completed", "rejected"):
            reasons += [names.UNFINISHED] * (self._choice_count - len(reasons))
        return reasons or None

    def _peer_attributes(self, target: Target | None) -> Attributes:
        if target is None:
            return {}
        peer = self._sink.peers.get(target.provider, _UNKNOWN)
        return {
            names.PROVIDER_NAME: peer.name,
            names.SERVER_ADDRESS: peer.address,
            names.SERVER_PORT: peer.port,
            names.TARGET: str(target),
        }

    def unix_ns(self, at_s: float) -> int:
        """Return an instant of the monotonic clock as the time of day."""
        return int((at_s + self._unix_s) * 1e9)


class Ending(NamedTuple):
    """How a call ended, and when."""

    at_s: float
    outcome: str
    facts: Facts

    @property
    def has_failed(self) -> bool:
        """Whether the call did not end whole, through no doing of its client."""
        return self.outcome not in _UNFAILED

    @property
    def is_server_error(self) -> bool:
        """Whether the request has failed, as HTTP sees it: a 5xx, or a stream that broke behind its 200."""
        status = self.facts.get("http_status") or 200
        return status >= 500 or (status < 400 and self.has_failed)

    @property
    def error(self) -> str:
        """What kind of error it was; one of a closed set."""
        return self.facts.get("error_type") or self.outcome


class Noted(NamedTuple):
    """What waits for export: an attempt of a call, or its end."""

    trace: RecordedTrace
    what: Settlement | Ending

    @property
    def span_count(self) -> int:
        """How many spans will be made of it."""
        return 1 if isinstance(self.what, Settlement) else 1 + self.trace.has_call(self.what)

    def spans(self) -> Iterator[Span]:
        """Make them."""
        return self.trace.spans(self.what)


@dataclass(slots=True)
class Span:
    """A finished span, before the SDK knows it. Times are on the monotonic clock."""

    kind: Literal["SERVER", "CLIENT"]
    name: str
    span_id: str
    parent_id: str | None
    times_s: tuple[float, float]
    attributes: Attributes
    events: Sequence[tuple[str, float, Attributes]] = ()
    is_error: bool = False


def _model_name(call: Call) -> str | None:
    """Return what the client asked for, if anybody has it: any other name is just text that somebody sent."""
    route = call.route
    return (route.name if route.name != "other" else call.model) if route.targets else None


def _request_attributes(call: Call) -> Attributes:
    """Return what was asked for, but for what is to be talked about."""
    sampling, effort, wanted = call.sampling, call.reasoning_effort, call.response_format
    return {
        names.OPERATION_NAME: names.CHAT,
        names.REQUEST_MODEL: _model_name(call),
        names.OUTPUT_TYPE: _OUTPUT_TYPES.get(wanted.kind) if wanted else None,
        names.REQUEST_STREAM: call.stream or None,
        names.REQUEST_CHOICE_COUNT: call.choice_count if call.choice_count != 1 else None,
        names.REQUEST_MAX_TOKENS: call.max_output_tokens,
        names.REQUEST_TEMPERATURE: sampling.temperature,
        names.REQUEST_TOP_P: sampling.top_p,
        names.REQUEST_TOP_K: sampling.top_k,
        names.REQUEST_SEED: sampling.seed,
        names.REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
        names.REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
        names.REQUEST_REASONING_LEVEL: effort if effort in _REASONING_LEVELS else None,
    }


def _usage_attributes(usage: Usage | None, keys: Sequence[str]) -> Attributes:
    """Return the usage under these names; of caches and reasoning only where there was any."""
    if usage is None:
        return {}
    details = (usage.cached_input_tokens, usage.cache_write_input_tokens, usage.reasoning_tokens)
    counts = (usage.input_tokens, usage.output_tokens, *(count or None for count in details))
    return {**dict(zip(keys, counts, strict=True)), names.USAGE_IS_ESTIMATED: usage.is_estimated or None}
