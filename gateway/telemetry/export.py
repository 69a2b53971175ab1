"""Spans on their way to the collector: a bounded queue, one thread, and the SDK that encodes and sends.

The thread makes the spans, a few at a time with a breath between, so that it holds the interpreter's lock for half a
millisecond and not for the 6 that encoding 64 spans takes. It looks itself whether there is work, the loop never
signals. What finds no room or cannot be sent is dropped and counted.

The SDK is imported only where traces are exported: it takes 0.3 s and 12 MB. Beside the configuration it heeds
OpenTelemetry's own variables for certificates, compression, headers and resource attributes. It knows nothing of
proxies and ``.netrc``, and follows no redirect.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import structlog

from gateway import __version__
from gateway.core.trace import Attributes, Value
from gateway.logs import clean
from gateway.schema import Secret
from gateway.telemetry import conventions as names
from gateway.telemetry.spans import Noted, Peer, RecordedTrace, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from requests import Response

log = structlog.get_logger()

MAX_CHARACTERS = 256
"""Of a name that a client or a provider chose."""

QUIET_S = 60.0
"""How long nothing more is logged of spans that were dropped."""


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
            name=clean(span.name)[:MAX_CHARACTERS],
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
    """Return what there is to say: of a text its beginning, and nothing that looks like a key."""
    return {
        name: clean(value)[:MAX_CHARACTERS] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }


def _named(attributes: Attributes) -> Attributes:
    """Give ours their names: who notes an event says ``attempt``, the event has ``millrace.attempt``."""
    return {name if "." in name else names.OURS + name: value for name, value in attributes.items()}
