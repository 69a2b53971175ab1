"""Series that are there from the start, at zero, so that the first time counts as well.

Prometheus sees that a counter grew, and not that it appeared: of a series that begins at 1 it takes that 1 for granted,
and the first stream that broke after a start would be on no board and in no alert. A panel that has nothing to read
looks the same whether all is well or nobody counts.

Only what the configuration names can be known before it happens, and not all of that fits: with many models and
targets the room for series is needed for those that are really used. So they come in the order in which one would miss
them, up to a limit. What a seed means is never more than "none yet", but for breakers, which begin closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, get_args

from gateway.core.health import State
from gateway.core.meters import OTHER, Meters
from gateway.core.progress import FailurePhase, Objective, Phase, Resolution

MAX_COUNTERS: Final = 300
MAX_UPSTREAMS: Final = 50
"""Most of these are used sooner or later. Ten models over five targets each leave 200 series for those that are not."""

ROUTE: Final = "chat_completions"
BAD_OUTCOMES: Final = (
    "gateway_error", "upstream_error", "truncated", "stalled", "deadline", "drained", "client_aborted", "rejected",
)  # fmt: skip
REFUSALS: Final = (
    "invalid_request", "unknown_model", "unauthorized", "forbidden", "rate_limited", "request_too_large",
    "request_timeout",
)  # fmt: skip
RESULTS: Final = ("failed", "completed", "cancelled")
WASTE: Final = ("client_abort", "failed_attempt", "hedge_loser", "resume_overlap")

_STALLED: Final = ("decode", "reasoning")
_Series = tuple[str, ...]
"""A family and the values of its labels."""


def seed(meters: Meters, pairs: Iterable[tuple[str, str]], *, worker: str = "0") -> None:
    """Make the series of one worker's slot; ``pairs`` are the configured models, each with each of its targets."""
    known = list(dict.fromkeys(pairs))
    models, upstreams = (list(dict.fromkeys(names)) for names in zip(*known, strict=True)) if known else ([], [])
    for name in ("millrace_chunk_transit_seconds", "millrace_client_backpressure_seconds"):
        meters.histogram(name)
    for stage in ("request", "first_token"):
        meters.histogram("millrace_overhead_seconds", stage)
    meters.counter("millrace_worker_restarts_total", worker)
    for upstream in upstreams[:MAX_UPSTREAMS]:
        for state in get_args(State):
            meters.gauge("millrace_upstream_state", upstream, state).set(float(state == "closed"))
    for family, *labels in islice(_counters(models, known), MAX_COUNTERS):
        meters.counter(family, *labels)


def _counters(models: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Iterator[_Series]:
    """Yield the counters, those first whose absence would hide most."""
    yield from _gateway()
    yield from _objectives(models, "false")
    yield from (("millrace_requests_total", ROUTE, model, "true", end) for end in BAD_OUTCOMES for model in models)
    yield from _objectives(models, "true")
    yield from (("millrace_requests_total", ROUTE, model, "true", "completed") for model in models)
    yield from _pairs(pairs)
    yield from (("millrace_requests_total", ROUTE, model, "false", end) for end in BAD_OUTCOMES for model in models)


def _gateway() -> Iterator[_Series]:
    yield ("millrace_requests_total", ROUTE, OTHER, "true", "rejected")
    yield from (("millrace_rejected_total", reason) for reason in REFUSALS)
    yield from (("millrace_client_aborts_total", ROUTE, phase) for phase in get_args(Phase))


def _objectives(models: Sequence[str], met: str) -> Iterator[_Series]:
    for objective in get_args(Objective):
        yield from (("millrace_slo_streams_total", model, objective, met) for model in models)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Iterator[_Series]:
    """Yield what tells of one model at one target, all pairs before the next family."""
    for phase in get_args(FailurePhase):
        for result in RESULTS:
            yield from (("millrace_failovers_total", model, upstream, phase, result) for model, upstream in pairs)
    for result in RESULTS:
        yield from (("millrace_stream_resumes_total", model, upstream, result) for model, upstream in pairs)
    for reason in WASTE:
        yield from (("millrace_tokens_wasted_total", model, upstream, reason) for model, upstream in pairs)
    yield from (("millrace_stall_seconds_total", model, upstream) for model, upstream in pairs)
    for phase in _STALLED:
        for resolution in get_args(Resolution):
            yield from (("millrace_stalls_total", model, upstream, phase, resolution) for model, upstream in pairs)
