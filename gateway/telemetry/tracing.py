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

While a call lives only notes are taken (``gateway.telemetry.spans``); a thread of its own makes spans of them and sends
them (``gateway.telemetry.export``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from gateway.core.call import Call
from gateway.core.trace import SAMPLED, Trace, read_traceparent
from gateway.schema import Secret
from gateway.telemetry.export import Exporter, Pace
from gateway.telemetry.ids import new_id
from gateway.telemetry.spans import Peer, RecordedTrace

TRACES_PATH = "/v1/traces"


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
        pace: Pace = Pace(),  # noqa: B008, it does not change
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
            if exporter is not None and caller.flags & SAMPLED:
                return RecordedTrace(call, caller.trace_id, caller, exporter, propagates=propagates)
            return Trace(*caller, call.headers.get("tracestate"), propagates)
        ids = new_id(24)
        trace_id, span_id = ids[:32], ids[32:]
        if exporter is not None and int(trace_id[16:], 16) < self._bound:
            return RecordedTrace(call, trace_id, None, exporter, propagates=propagates)
        return Trace(trace_id, span_id, None if exporter is None else 0, None, propagates)
