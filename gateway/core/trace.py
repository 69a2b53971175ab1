"""The trace of a call, as whoever handles the call sees it. What becomes of it is known to who made it.

A trace travels down the chain in ``Call.trace``. Whoever learns something worth an event notes it, whoever settles
tells of each attempt, and whoever sees the end tells how the call ended. All of this returns at once, never raises, and
is never done per token.

A trace of which nothing is recorded is only its ids, for logs and for exemplars; ``NO_TRACE`` has not even these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, TypedDict, Unpack

if TYPE_CHECKING:
    from gateway.core.call import Call
    from gateway.core.events import Usage
    from gateway.core.ledger import Settlement

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value | None]
"""What is known of something; ``None`` is not."""

HEADERS: Final = ("traceparent", "tracestate")
"""The headers of W3C's Trace Context."""

SAMPLED: Final = 1
"""The flag of a trace that is kept."""

_RANDOM: Final = 2
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


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
    return Caller(trace_id, span_id, int(flags, 16) & (SAMPLED | _RANDOM))


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
        self,
        trace_id: str,
        span_id: str,
        flags: int | None,
        tracestate: str | None,
        propagates: bool,  # noqa: FBT001, a keyword would cost as much as all the rest
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.tracestate = tracestate
        self.propagates = propagates

    @property
    def is_sampled(self) -> bool:
        """Whether the trace is to be found where traces are kept: as ours, or as the caller's."""
        return bool(self.flags and self.flags & SAMPLED)

    @property
    def exemplar_trace_id(self) -> str | None:
        """The trace's id, where it can be found by it."""
        return self.trace_id if self.flags and self.flags & SAMPLED else None

    @property
    def traceparent(self) -> str | None:
        """The trace as whoever is called next would be told of it, if there is anything to tell."""
        return self.told_client

    @property
    def told_client(self) -> str | None:
        """The trace as the client is told of it: with the span of its request."""
        return None if self.flags is None else f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def log_fields(self) -> Mapping[str, str]:
        """What is on every line that is logged of the call."""
        return {"trace_id": self.trace_id, "span_id": self.span_id} if self.trace_id else {}

    def headers_for(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that may go on to a provider: with the call's own trace context, or with none.

        The caller's is not among them while the call has a span: what the provider does belongs below that. Where
        there is nothing to change it is the same mapping.
        """
        if not headers and not self.propagates:  # as of nearly all calls
            return headers
        told = (self.traceparent, self.tracestate) if self.propagates else (None, None)
        if told == (headers.get("traceparent"), headers.get("tracestate")):
            return headers
        kept = {name: value for name, value in headers.items() if name not in HEADERS}
        return kept | {name: value for name, value in zip(HEADERS, told, strict=True) if value}

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Something happened to the call: ``first_token``, ``stall``, ``seam`` or ``failover``."""

    def attempt(self, settlement: Settlement) -> None:
        """An attempt has ended."""

    def end(self, outcome: str, **facts: Unpack[Facts]) -> None:
        """The call has ended, with one of the outcomes that metrics know."""


NO_TRACE: Final = Trace("", "", None, None, propagates=False)
"""The trace of a call that nobody traces."""


class Tracer(Protocol):
    """Who begins traces."""

    def begin(self, call: Call) -> Trace:
        """Return the trace of a call that has just begun; it keeps nothing of what was said."""


class NoTracer:
    """Traces nothing."""

    __slots__ = ()

    def begin(self, call: Call) -> Trace:  # noqa: ARG002, as of any tracer
        """Return the trace that is none."""
        return NO_TRACE


NO_TRACER: Final = NoTracer()
