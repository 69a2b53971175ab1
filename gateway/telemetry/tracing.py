"""One trace for each call: what was asked of whom, what happened on the way and how it ended. Never what was said.

::

    SERVER  POST /v1/chat/completions     the request, as HTTP
    └─ CLIENT  chat <model>               the call over all its attempts; what happened is told in its events
       ├─ CLIENT  chat <target's model>   one attempt
       └─ CLIENT  chat <target's model>   the next

What the conventions call usage stands on the call alone, with what its client was told: whoever adds up
``gen_ai.usage.*`` counts every call once. What each attempt used is in its own ``millrace.usage.*``.

A span is an error when what it stands for has failed. The request: its status is 5xx, or the stream behind a 200 broke.
The call: it did not end whole, for whatever reason but its client's. The attempt: its provider failed it. A client that
leaves, or is refused with a 4xx, has failed nobody; nor has an attempt that was given up.

While a call lives only notes are taken, which costs the loop less than one span of the SDK's would, and nothing for a
token. The spans are made of them by the one thread that exports, a few at a time with a breath between, so that it
holds the interpreter's lock for half a millisecond and not for the 6 that encoding 64 spans takes. It looks itself
whether there is work, the loop never signals. What finds no room or cannot be sent is dropped and counted.

The SDK is imported only where traces are exported: it takes 0.3 s and 12 MB. Beside the configuration it heeds
OpenTelemetry's own variables for certificates, compression, headers and resource attributes. It knows nothing of
proxies and ``.netrc``, and follows no redirect.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias, TypedDict, Unpack, cast
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from gateway import __version__
from gateway.core.call import Call, Target
from gateway.core.events import Usage
from gateway.core.ledger import Settlement
from gateway.schema import Secret
from gateway.telemetry import conventions as names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from requests import Response

log = structlog.get_logger()

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value | None]
"""What is known of something; ``None`` is not."""

MAX_NOTES = 64
"""Of one call: more stalls and seams than that say nothing new."""

MAX_CHARACTERS = 256
"""Of a name that a client or a provider chose."""

QUIET_S = 60.0
"""How long nothing more is logged of spans that were dropped."""

TRACES_PATH = "/v1/traces"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED, _RANDOM = 1, 2
_HEADERS = ("traceparent", "tracestate")

_PATHS = {"chat_completions": "/v1/chat/completions", "chat_stream": "/api/chat/stream"}
_OUTPUT_TYPES = {"text": "text", "json_object": "json", "json_schema": "json"}
_REASONING_LEVELS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
_UNFAILED = frozenset({"completed", "client_aborted", "rejected"})


# --- who calls, and who is called -------------------------------------------------------------------------------------


class Caller(NamedTuple):
    """The span that a request comes from: the header ``traceparent``, read."""

    trace_id: str
    span_id: str
    flags: int


def read_traceparent(header: str) -> Caller | None:
    """Return who calls; ``None`` for what is not the header of W3C's Trace Context. Later versions may be longer."""
    found = _TRACEPARENT.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Caller(trace_id, span_id, int(flags, 16) & (_SAMPLED | _RANDOM))


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


# --- the notes that are taken of a call -------------------------------------------------------------------------------


class Facts(TypedDict, total=False):
    """What may be known of a call when it has ended; ``http_status`` and ``usage`` are what its client was told."""

    usage: Usage | None
    finish_reasons: Sequence[str]
    response_id: str | None
    response_model: str | None
    ttft_s: float | None
    http_status: int | None
    error_type: str | None


class Trace:
    """The trace of a call of which nothing is recorded: only its ids, for logs and exemplars.

    They are the caller's where it sent any. ``flags`` are those of its ``traceparent``; without a caller, and without a
    collector, nobody has decided on any. ``propagates`` says whether a provider may be told.
    """

    __slots__ = ("flags", "propagates", "span_id", "trace_id", "tracestate")

    def __init__(
        self, trace_id: str, span_id: str, flags: int | None, tracestate: str | None, *, propagates: bool
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.tracestate = tracestate
        self.propagates = propagates

    @property
    def is_sampled(self) -> bool:
        """Whether the trace is to be found where traces are kept: as ours, or as the caller's."""
        return bool(self.flags and self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str | None:
        """The trace as whoever is called next would be told of it, if there is anything to tell."""
        return None if self.flags is None else f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def headers_for(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that may go on to a provider: with the call's own trace context, or with none.

        The caller's is not among them while the call has a span: what the provider does belongs below that. Where
        there is nothing to change it is the same mapping.
        """
        told = (self.traceparent, self.tracestate) if self.propagates else (None, None)
        if told == (headers.get("traceparent"), headers.get("tracestate")):
            return headers
        kept = {name: value for name, value in headers.items() if name not in _HEADERS}
        return kept | {name: value for name, value in zip(_HEADERS, told, strict=True) if value}

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Something happened to the call: ``first_token``, ``stall``, ``seam`` or ``failover``."""

    def attempt(self, settlement: Settlement) -> None:
        """An attempt has ended."""

    def end(self, outcome: str, **facts: Unpack[Facts]) -> None:
        """The call has ended, with one of the outcomes that metrics know."""


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
        "_exporter",
        "_has_ended",
        "_notes",
        "_path",
        "_request",
        "_request_id",
        "_started_at_s",
        "_target",
        "_unix_s",
    )

    def __init__(
        self, call: Call, trace_id: str, caller: Caller | None, exporter: Exporter, *, propagates: bool
    ) -> None:
        ids = os.urandom(16).hex()
        flags, tracestate = (caller.flags, call.headers.get("tracestate")) if caller else (_SAMPLED, None)
        super().__init__(trace_id, ids[:16], flags, tracestate, propagates=propagates)
        self._call_span_id = ids[16:]
        self._caller = caller
        self._exporter = exporter
        self._clock = exporter.clock
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
        self._exporter.put(Noted(self, settlement))

    def end(self, outcome: str, **facts: Unpack[Facts]) -> None:
        """Hand the call over for export, once."""
        if not self._has_ended:
            self._has_ended = True
            self._exporter.put(Noted(self, Ending(self._clock(), outcome, facts)))

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
        name, span_id = f"{names.CHAT} {settled.target.model}", os.urandom(8).hex()
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
        peer = self._exporter.peers.get(target.provider, _UNKNOWN)
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


# --- the tracer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How spans are exported.

    Up to ``queue_size`` notes wait, of about half as many calls; each call takes 2 kB. Every ``interval_s`` they are
    sent, ``batch_size`` spans at a time, with ``pause_s`` between two batches, and ``breath_s`` to think of others
    whenever ``spans_per_breath`` are encoded. A batch is tried for ``timeout_s``; each that fails doubles the time
    until the next, up to ``max_wait_s``.
    """

    queue_size: int = 4096
    batch_size: int = 64
    interval_s: float = 0.5
    pause_s: float = 0.01
    spans_per_breath: int = 4
    breath_s: float = 0.0001
    timeout_s: float = 5.0
    max_wait_s: float = 30.0


class Tracer:
    """Begins traces. Without an ``endpoint`` nothing is recorded: there is no thread then, and no SDK.

    ``endpoint`` is where the collector takes OTLP over HTTP, with or without the path; ``headers`` is what it wants to
    be sent. Of the calls whose caller does not say whether they are sampled, ``sample_ratio`` are; which ones follows
    from the trace's id alone. ``peers`` are the configured providers by name; they are told of the trace only if
    ``propagates``.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        headers: Mapping[str, Secret] | None = None,
        sample_ratio: float = 1.0,
        propagates: bool = False,
        peers: Mapping[str, Peer] | None = None,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bound = round(sample_ratio * (1 << 64))
        self._propagates = propagates
        self._exporter: Exporter | None = None
        if endpoint is not None:
            url = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
            self._exporter = Exporter(url, headers or {}, peers or {}, pace, clock)

    def start(self) -> None:
        """Begin to export: in the process that serves, after any fork."""
        if self._exporter is not None:
            self._exporter.start()

    def shutdown(self, timeout_s: float = 2.0) -> None:
        """Export what is left, for so long at most; blocks meanwhile. What ends later is dropped."""
        if self._exporter is not None:
            self._exporter.stop(timeout_s)

    @property
    def dropped_count(self) -> int:
        """How many spans were not exported, though they should have been."""
        return self._exporter.dropped_count if self._exporter is not None else 0

    def begin(self, call: Call) -> Trace:
        """Return the trace of a call that has just begun: its caller's, if that has one."""
        header = call.headers.get("traceparent")
        caller = read_traceparent(header) if header else None
        exporter, propagates = self._exporter, self._propagates
        if caller is not None:
            if exporter is not None and caller.flags & _SAMPLED:
                return RecordedTrace(call, caller.trace_id, caller, exporter, propagates=propagates)
            return Trace(*caller, call.headers.get("tracestate"), propagates=propagates)
        ids = os.urandom(24).hex()
        trace_id, span_id = ids[:32], ids[32:]
        if exporter is not None and int(trace_id[16:], 16) < self._bound:
            return RecordedTrace(call, trace_id, None, exporter, propagates=propagates)
        return Trace(trace_id, span_id, None if exporter is None else 0, None, propagates=propagates)


# --- export -----------------------------------------------------------------------------------------------------------


class Exporter:
    """A bounded queue, and the thread that empties it. Each of the two sides counts for itself what it drops."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, Secret],
        peers: Mapping[str, Peer],
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self.peers = peers
        self.clock = clock
        self._url = url
        self._headers = headers
        self._pace = pace
        self._queue: deque[Noted] = deque()
        self._thread: Thread | None = None
        self._stopping = Event()
        self._collector: Collector | None = None
        self._is_closed = False
        self._sending_count = 0
        self._refused_count = 0
        self._failed_count = 0
        self._told_count = 0
        self._told_at_s = -QUIET_S

    @property
    def dropped_count(self) -> int:
        """How many spans found no room, could not be sent, or came too late."""
        return self._refused_count + self._failed_count

    def put(self, noted: Noted) -> None:
        """Take what has ended; there may be no room."""
        if self._is_closed or len(self._queue) >= self._pace.queue_size:
            self._refused_count += noted.span_count
        else:
            self._queue.append(noted)

    def start(self) -> None:
        """Start the thread, if it does not run in this process."""
        if self._thread is None or not self._thread.is_alive():
            self._collector = Collector(self._url, self._headers, self._pace)
            self._thread = Thread(target=self._run, args=(self._collector,), name="millrace-traces", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Have the thread send what waits, and end; what is not sent in time is dropped."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if not self._is_closed:
            self._is_closed = True
            self._refused_count += self._sending_count + _span_count(list(self._queue))
        if self._collector is not None:
            self._collector.close()

    # --- in the thread

    def _run(self, collector: Collector) -> None:
        pace, failure_count = self._pace, 0
        while not self._stopping.wait(min(pace.interval_s * 2**failure_count, pace.max_wait_s)):
            failure_count = 0 if self._empty(collector) else failure_count + 1
            self._tell(collector)
        self._empty(collector)

    def _empty(self, collector: Collector) -> bool:
        """Send what waits, until a batch fails; returns whether none did."""
        while batch := self._next_batch():
            if not self._send(batch, collector):
                return False
            self._stopping.wait(self._pace.pause_s)
        return True

    def _send(self, batch: Sequence[Noted], collector: Collector) -> bool:
        self._sending_count = _span_count(batch)
        is_sent = collector.send(batch)
        if self._is_closed:  # whoever closed it did not wait for this, and has counted it
            return False
        self._failed_count += 0 if is_sent else self._sending_count
        self._sending_count = 0
        return is_sent

    def _next_batch(self) -> list[Noted]:
        """Take as much as makes a batch of spans, or as much as there is."""
        batch: list[Noted] = []
        count = 0
        while self._queue and not self._is_closed:
            count += self._queue[0].span_count
            if batch and count > self._pace.batch_size:
                break
            batch.append(self._queue.popleft())
        return batch

    def _tell(self, collector: Collector) -> None:
        """Log that spans were dropped, and the last reason, but not all the time."""
        now_s, dropped_count = time.monotonic(), self.dropped_count
        if dropped_count > self._told_count and now_s - self._told_at_s >= QUIET_S:
            self._told_at_s, self._told_count = now_s, dropped_count
            with suppress(OSError):
                log.warning("traces.dropped", dropped_count=dropped_count, reason=collector.failure or "queue_full")


def _span_count(batch: Iterable[Noted]) -> int:
    return sum(noted.span_count for noted in batch)


class Collector:
    """The collector, and the SDK that speaks to it. Once it is made, only the thread that exports is in here.

    ``failure`` is one word for how the last batch was lost. What the SDK has to say of it is not heard: it says it
    every time, and in words that nobody has vetted.
    """

    def __init__(self, url: str, headers: Mapping[str, Secret], pace: Pace) -> None:
        import requests  # noqa: PLC0415, only who exports needs all this
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
        from opentelemetry.trace import TraceState  # noqa: PLC0415

        for module in (OTLPSpanExporter.__module__, TraceState.__module__):
            logging.getLogger(module).addFilter(_is_heard)
        session = requests.Session()
        session.trust_env = False  # neither proxies nor .netrc
        session.hooks["response"].append(self._look_at)
        revealed = {name: value.reveal() for name, value in headers.items()}
        self.failure = ""
        self._pace = pace
        self._exporter = OTLPSpanExporter(url, headers=revealed, timeout=pace.timeout_s, session=session)
        self._scope = InstrumentationScope("millrace", __version__)
        self._resource = Resource.create(
            {
                names.SERVICE_NAME: "millrace",
                names.SERVICE_VERSION: __version__,
                names.SERVICE_INSTANCE_ID: str(uuid4()),
                names.PROCESS_ID: os.getpid(),
            }
        )

    def send(self, batch: Sequence[Noted]) -> bool:
        """Send the spans, trying again for a while where that may help; returns whether they were taken."""
        self.failure = "not_encoded"
        spans = cast("Sequence[ReadableSpan]", _Unhurried(batch, self))
        is_sent = self._exporter.export(spans).name == "SUCCESS"
        if is_sent:
            self.failure = ""
        return is_sent

    def close(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def encodable(self, batch: Sequence[Noted]) -> Iterator[ReadableSpan]:
        """Yield the spans as the SDK knows them, with a breath after some."""
        spans = (self._readable(span, noted.trace) for noted in batch for span in noted.spans())
        for count, span in enumerate(spans, start=1):
            yield span
            if count % self._pace.spans_per_breath == 0:
                time.sleep(self._pace.breath_s)
        self.failure = "no_answer"

    def _readable(self, span: Span, trace: RecordedTrace) -> ReadableSpan:
        from opentelemetry.sdk import trace as sdk  # noqa: PLC0415, as above
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState  # noqa: PLC0415

        number, flags = int(trace.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
        state = TraceState.from_header([trace.tracestate]) if trace.tracestate else None
        parent_id, is_remote = span.parent_id, span.kind == "SERVER"
        return sdk.ReadableSpan(
            name=span.name[:MAX_CHARACTERS],
            context=SpanContext(number, int(span.span_id, 16), is_remote=False, trace_flags=flags, trace_state=state),
            parent=SpanContext(number, int(parent_id, 16), is_remote=is_remote, trace_flags=flags)
            if parent_id
            else None,
            kind=SpanKind[span.kind],
            resource=self._resource,
            instrumentation_scope=self._scope,
            start_time=trace.unix_ns(span.times_s[0]),
            end_time=trace.unix_ns(span.times_s[1]),
            attributes=_known(span.attributes),
            events=[sdk.Event(name, _known(_named(said)), trace.unix_ns(at_s)) for name, at_s, said in span.events],
            status=Status(StatusCode.ERROR if span.is_error else StatusCode.UNSET),
        )

    def _look_at(self, response: Response, *_: object, **__: object) -> None:
        """Note how the collector answered; the SDK would take a redirect for success."""
        self.failure = f"http_{response.status_code}"
        if 300 <= response.status_code < 400:
            response.status_code = 421


class _Unhurried:
    """As much of a sequence as the SDK needs: its spans are made when they are asked for, one by one."""

    def __init__(self, batch: Sequence[Noted], collector: Collector) -> None:
        self._batch = batch
        self._collector = collector

    def __len__(self) -> int:
        return _span_count(self._batch)

    def __iter__(self) -> Iterator[ReadableSpan]:
        return self._collector.encodable(self._batch)


def _is_heard(record: logging.LogRecord) -> bool:  # noqa: ARG001, the signature of a filter
    return False


def _known(attributes: Attributes) -> dict[str, Value]:
    """Return what there is to say, and no more of a text than its beginning."""
    return {
        name: value[:MAX_CHARACTERS] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }


def _named(attributes: Attributes) -> Attributes:
    """Give ours their names: who notes an event says ``attempt``, the event has ``millrace.attempt``."""
    return {name if "." in name else names.OURS + name: value for name, value in attributes.items()}
