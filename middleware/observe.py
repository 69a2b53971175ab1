"""What is known of a call when it has ended, told once: as one log line, in its trace, and in metrics that add up.

Whatever ends a call, it has exactly one outcome. At any time the calls that were started are those with an outcome and
those in flight, and there are as many outcomes as lines and as traces. None holds anything of what was said.

The status that is told is the one that the client has: a stream that breaks behind its first byte is a 200 that failed.

Times are on the monotonic clock, as the client has them: TTFT from the last byte of the request to the first token
handed on. TTFT, TPOT, gaps, stalls and objectives are those of streams, since who wants the answer whole waits for its
end. No objective judges a call that its client left, or that was refused.

Tokens are counted attempt by attempt, out of the ledger, and so is the waste: what a lost race, a failed attempt or a
client that left had generated, and what was generated twice around a seam.

Of the attempts that a call took the line says how many there were, and where: ``targets`` is the way it went,
``target`` gave the first token, as the client was told, and ``last_target`` the rest where that was another. What each
of them cost has a line of its own, in the ledger's log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog
from msgspec import structs

from gateway.core.call import Call, Flow, Target
from gateway.core.errors import (
    ClientError,
    ClientGone,
    Forbidden,
    GatewayError,
    GatewayStopping,
    InternalError,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    StreamInterrupted,
    Unauthorized,
    UnknownModel,
    UpstreamError,
)
from gateway.core.events import Event
from gateway.core.ledger import Settlement
from gateway.core.meters import Histogram, upstream_label
from gateway.core.progress import Objective, Phase, Progress
from gateway.pipeline import DRAINED, HEDGE_LOST, Next, Send, Telemetry

log = structlog.get_logger()

MAX_SHOWN_CHARACTERS = 200
"""Of a target: any client may name a model, of any length."""

_QUIET = frozenset({"completed", "client_aborted", "rejected"})
"""Outcomes that are worth no warning."""

_UNJUDGED = frozenset({"client_aborted", "rejected"})
"""Outcomes that say nothing about how good the gateway and its providers are."""


@dataclass(frozen=True, slots=True)
class Observe:
    """Logs and counts how every call ends."""

    _telemetry: Telemetry = field(default=Telemetry(), repr=False, compare=False)
    _clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    def instrumented(self, telemetry: Telemetry) -> Observe:
        """Return one that counts in ``telemetry``."""
        return replace(self, _telemetry=telemetry)

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Hand the call on and watch what comes back."""
        clock = self._clock
        observed = _Observed(call, self._telemetry, clock)
        add = observed.progress.add

        def watch(events: Sequence[Event]) -> None:
            send(events)
            add(events, clock())

        try:
            await call_next(observed.watched(call), watch)
        except BaseException as error:
            observed.end(error)
            raise
        observed.end(None)


class _Observed:
    """One call: the ledger of its attempts, what the table of live streams shows, and what is told of it at its end."""

    def __init__(self, call: Call, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        self._request_id = call.request_id
        self._endpoint = call.endpoint
        self._route = call.route
        self._model = call.route.name
        self._is_stream = call.stream
        self._ledger = call.ledger
        self._meters = telemetry.meters
        self._live = telemetry.live
        self._trace = call.trace
        self._exemplar = call.trace.exemplar_trace_id
        self._flow = call.flow
        self._clock = clock
        self._started_at_s: float | None = None
        self._spoke_at_s: float | None = None
        self._settled_count = 0
        self._delivered_tokens: list[int] = []
        self._wasted_tokens = 0
        self._heard_count = 0
        self._outcome = ""
        self._ended_at_s: float | None = None
        self.progress = Progress(
            call.received_at_s or clock(),
            telemetry.slo,
            choice_count=call.choice_count,
            note_phase=self._move,
            note=call.trace.note,
        )
        self._meters.counter("millrace_requests_started_total", self._endpoint, self._model).inc()
        self._count_active(self.progress.phase, 1)
        self._live.begin(self)

    def watched(self, call: Call) -> Call:
        """Return the call whose attempts, and whose pauses, are told here."""
        if not call.stream:
            return structs.replace(call, ledger=self)
        backpressure = self._meters.histogram("millrace_client_backpressure_seconds")
        flow = _WatchedFlow(call.flow, self.progress, backpressure, self._clock)
        return structs.replace(call, ledger=self, flow=flow)

    # --- for the table of live streams

    def shown(self) -> Mapping[str, object]:
        """Return how the call goes now, or how it ended."""
        progress = self.progress
        has_ended = self._ended_at_s is not None
        now_s = self._clock() if self._ended_at_s is None else self._ended_at_s
        return {
            "id": self._request_id,
            "endpoint": self._endpoint,
            "model": self._model,
            "target": progress.last_target[:MAX_SHOWN_CHARACTERS] or None,
            "stream": self._is_stream,
            "phase": progress.phase,
            "tokens": progress.token_count,
            "tokens_per_s": _rounded(progress.tokens_per_s, 3),
            "ttft_s": _rounded(progress.ttft_s),
            "idle_s": None if has_ended else _rounded(now_s - max(progress.last_at_s, progress.asked_at_s)),
            "age_s": _rounded(now_s - progress.asked_at_s),
            "attempts": self._settled_count if has_ended else progress.attempt_count,
            "outcome": self._outcome or None,
        }

    def drain(self) -> None:
        """The gateway is stopping, and waits for the call."""
        self.progress.drain()

    def _move(self, before: Phase, phase: Phase) -> None:
        self._count_active(before, -1)
        self._count_active(phase, 1)

    def _count_active(self, phase: Phase, amount: int) -> None:
        self._meters.gauge("millrace_streams_active", self._model, phase).inc(amount)

    # --- the ledger of the call's attempts

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Pass it on: what the client waits for is seen where it is handed on."""
        self._ledger.note_first_token(target, attempt, ttft_s)

    def settle(self, settlement: Settlement) -> None:
        """Count the attempt and its tokens, and pass it on."""
        self._settled_count += 1
        self._time(settlement)
        if settlement.result == "failed":
            self.progress.note_failed_attempt(settlement.started_at_s)
        upstream = upstream_label(self._route, settlement.target)
        error_type = settlement.error_type or ("_OTHER" if settlement.result == "failed" else "")
        self._meters.counter(
            "millrace_upstream_attempts_total", upstream, self._model, settlement.result, error_type
        ).inc()
        self._count_usage(settlement, upstream)
        self._trace.attempt(settlement)
        self._ledger.settle(settlement)

    def _time(self, settlement: Settlement) -> None:
        """Note when the first attempt was begun, and when the one that the client heard first had its first token."""
        if self._started_at_s is None or settlement.started_at_s < self._started_at_s:
            self._started_at_s = settlement.started_at_s
        if self._spoke_at_s is None and settlement.is_delivered:
            self._spoke_at_s = settlement.first_token_at_s

    def _count_usage(self, settlement: Settlement, upstream: str) -> None:
        """Count what an attempt used; one that brought nothing has nothing to account for."""
        usage, meters, model = settlement.usage, self._meters, self._model
        if usage is None:
            if settlement.first_token_at_s is not None or settlement.result == "completed":
                meters.counter("millrace_usage_total", upstream, "missing").inc()
            return
        meters.counter("millrace_usage_total", upstream, "counted" if usage.is_estimated else "reported").inc()
        for name, count in (
            ("millrace_input_tokens_total", usage.input_tokens),
            ("millrace_output_tokens_total", usage.output_tokens),
            ("millrace_cache_read_input_tokens_total", usage.cached_input_tokens),
            ("millrace_cache_write_input_tokens_total", usage.cache_write_input_tokens),
            ("millrace_reasoning_output_tokens_total", usage.reasoning_tokens),
        ):
            if count:
                meters.counter(name, model, upstream).inc(count)
        if reason := self._waste_of(settlement):
            self._waste(usage.output_tokens, upstream, reason)
        elif settlement.is_delivered:
            self._delivered_tokens.append(usage.output_tokens)

    def _waste_of(self, settlement: Settlement) -> str:
        """Return why nobody has what an attempt generated; empty where somebody has, if only a part of it.

        What a stream's attempt has sent may have been cut at a seam, all of it: then nothing new was handed on. Of an
        answer that is wanted whole nothing is, until it ends.
        """
        if settlement.reason == HEDGE_LOST:
            return "hedge_loser"
        if settlement.reason == "client_gone":
            return "client_abort"
        before, self._heard_count = self._heard_count, self.progress.delta_count
        is_heard = settlement.is_delivered and (self._heard_count > before or not self._is_stream)
        return "" if is_heard or settlement.result != "failed" else "failed_attempt"

    def _waste(self, tokens: int, upstream: str, reason: str) -> None:
        if tokens > 0:
            self._wasted_tokens += tokens
            self._meters.counter("millrace_tokens_wasted_total", self._model, upstream, reason).inc(tokens)

    # --- its end

    def end(self, error: BaseException | None) -> None:
        """Tell what the call has come to: this is called once."""
        progress, outcome = self.progress, outcome_of(error)
        self._ended_at_s = now_s = self._clock()
        self._outcome = outcome
        is_complete = error is None
        if isinstance(error, UpstreamError):
            progress.pass_by(str(error.target or ""))
        progress.end(
            now_s,
            is_complete=is_complete,
            has_client=outcome != "client_aborted",
            last_attempt=error.attempt if isinstance(error, UpstreamError) else 0 if outcome == "rejected" else None,
        )
        if is_complete:
            self._count_overlap()
        met = progress.judge(now_s, is_complete=is_complete) if self._is_stream and outcome not in _UNJUDGED else {}
        self._count_active(progress.phase, -1)
        self._count_end(error, now_s)
        if self._is_stream:
            self._count_stream(met)
        self._live.end(self, is_kept=outcome != "rejected")
        self._tell(error, met, now_s)

    def _count_overlap(self) -> None:
        """Count as wasted what several attempts generated of an answer, and what is not in it."""
        usage = self.progress.usage
        if usage is not None and len(self._delivered_tokens) > 1:
            upstream = upstream_label(self._route, self.progress.last_target)
            self._waste(sum(self._delivered_tokens) - usage.output_tokens, upstream, "resume_overlap")

    def _count_end(self, error: BaseException | None, now_s: float) -> None:
        meters, model, endpoint, progress = self._meters, self._model, self._endpoint, self.progress
        outcome, stream = self._outcome, "true" if self._is_stream else "false"
        meters.counter("millrace_requests_total", endpoint, model, stream, outcome).inc()
        duration = meters.histogram("millrace_request_duration_seconds", endpoint, model, stream)
        duration.observe(now_s - progress.asked_at_s, self._exemplar)
        if isinstance(error, ClientError):
            meters.counter("millrace_rejected_total", _reason_of(error)).inc()
        if outcome == "client_aborted":
            meters.counter("millrace_client_aborts_total", endpoint, progress.phase).inc()
        for finish_reason in progress.finish_reasons.values():
            meters.counter("millrace_finish_reasons_total", model, finish_reason).inc()
        result = _result_of(outcome)
        for failed in progress.failovers.values():
            upstream = upstream_label(self._route, failed.target)
            phase = "mid_stream" if failed.has_delivered else "pre_first_token"
            meters.counter("millrace_failovers_total", model, upstream, phase, result).inc()
        for seam in progress.seams:
            upstream = upstream_label(self._route, seam.from_target)
            meters.counter("millrace_stream_resumes_total", model, upstream, result).inc()

    def _count_stream(self, met: Mapping[Objective, bool]) -> None:
        """Count how fast and how evenly a stream came; its target is the one that gave the first token."""
        meters, model, progress = self._meters, self._model, self.progress
        upstream = upstream_label(self._route, progress.target)
        if (ttft_s := progress.ttft_s) is not None:
            meters.histogram("millrace_ttft_seconds", model, upstream).observe(ttft_s, self._exemplar)
        if (ttfc_s := progress.ttfc_s) is not None:
            meters.histogram("millrace_time_to_first_content_seconds", model).observe(ttfc_s)
        if tpot_s := progress.tpot_s:
            meters.histogram("millrace_tpot_seconds", model, upstream).observe(tpot_s)
            meters.histogram("millrace_stream_tokens_per_second", model, upstream).observe(1 / tpot_s)
        if progress.max_gap_s:
            meters.histogram("millrace_stream_max_gap_seconds", model, upstream).observe(
                progress.max_gap_s, self._exemplar
            )
        for stall in progress.stalls:
            slow = upstream_label(self._route, stall.target)
            meters.counter("millrace_stalls_total", model, slow, stall.phase, stall.resolution).inc()
            meters.counter("millrace_stall_seconds_total", model, slow).inc(stall.length_s)
        for loss in progress.losses:
            meters.histogram("millrace_failover_lost_seconds", model, loss.phase).observe(loss.length_s)
        for objective, is_met in met.items():
            meters.counter("millrace_slo_streams_total", model, objective, "true" if is_met else "false").inc()

    def _tell(self, error: BaseException | None, met: Mapping[Objective, bool], now_s: float) -> None:
        """End the trace, and write the line."""
        progress, told = self.progress, _told(error)
        has_error = told is not None and self._outcome != "client_aborted"
        error_type, code = (_error_type_of(told), told.code) if told is not None and has_error else (None, None)
        http_status = None if self._outcome == "client_aborted" else 200 if told is None else told.status_code
        if self._flow.is_committed:
            http_status = 200
        started, finish_reasons = progress.started, list(progress.finish_reasons.values())
        self._trace.end(
            self._outcome,
            usage=progress.usage,
            finish_reasons=finish_reasons,
            response_id=started.id if started else None,
            response_model=started.model if started else None,
            ttft_s=progress.ttft_s,
            http_status=http_status,
            error_type=error_type,
        )
        ended = {"http_status": http_status, "error_type": error_type, "code": code}
        write = log.info if self._outcome in _QUIET else log.warning
        with suppress(OSError):  # that nobody can read the log is no reason for an answer to fail
            write("stream.finished", **self._line(met, now_s), **{key: value for key, value in ended.items() if value})

    def _line(self, met: Mapping[Objective, bool], now_s: float) -> Mapping[str, object]:
        """Return what the log is told, but for how the call ended."""
        progress, usage = self.progress, self.progress.usage
        fields: dict[str, object] = {
            "request_id": self._request_id,
            **self._trace.log_fields,
            "endpoint": self._endpoint,
            "model": self._model,
            "target": progress.target or None,
            "targets": progress.targets,
            "attempts": self._settled_count,
            "resumed": len(progress.seams),
            "stream": self._is_stream,
            "outcome": self._outcome,
            "finish_reason": next(iter(progress.finish_reasons.values()), None),
            "duration_s": _rounded(now_s - progress.asked_at_s),
            "ttft_s": _rounded(progress.ttft_s),
            "overhead_s": _rounded(self._overhead_s),
            "delta_count": progress.delta_count,
            "input_tokens": usage.input_tokens if usage else None,
            "output_tokens": usage.output_tokens if usage else None,
            "usage_source": None if usage is None else "estimated" if usage.is_estimated else "reported",
        }
        if progress.last_target != progress.target:
            fields["last_target"] = progress.last_target
        if self._is_stream:
            tpot_s = progress.tpot_s
            fields |= {
                "ttfc_s": _rounded(progress.ttfc_s),
                "tpot_s": _rounded(tpot_s),
                "tokens_per_s": _rounded(1 / tpot_s, 3) if tpot_s else None,
                "max_gap_s": _rounded(progress.max_gap_s or None),
            }
        if met:
            fields["slo"] = dict(met)
        fields |= {name: value for name, value in self._rarities().items() if value}
        if self._outcome == "client_aborted":
            fields["client_abort_phase"] = progress.phase
        return fields

    @property
    def _overhead_s(self) -> float | None:
        """How much of the time to the first token was the gateway's own.

        That is from the request to the first attempt, and from the provider's first token to its delivery.
        """
        progress = self.progress
        if self._started_at_s is None or self._spoke_at_s is None or progress.first_at_s is None:
            return None
        return self._started_at_s - progress.asked_at_s + max(0.0, progress.first_at_s - self._spoke_at_s)

    def _rarities(self) -> Mapping[str, float | None]:
        """Return what is only in the line of a call in which there was any of it."""
        progress, usage = self.progress, self.progress.usage
        return {
            "reasoning_tokens": usage.reasoning_tokens if usage else None,
            "cache_read_input_tokens": usage.cached_input_tokens if usage else None,
            "cache_write_input_tokens": usage.cache_write_input_tokens if usage else None,
            "wasted_tokens": self._wasted_tokens,
            "stalls": len(progress.stalls) if self._is_stream else 0,
            "stall_s": _rounded(progress.stall_s) if self._is_stream else 0.0,
            "failover_lost_s": _rounded(progress.lost_s) if self._is_stream else 0.0,
            "backpressure_s": _rounded(progress.paused_s),
        }


class _WatchedFlow:
    """The flow of a call, with a note of how long its client did not read."""

    __slots__ = ("_backpressure", "_clock", "_flow", "_progress")

    def __init__(self, flow: Flow, progress: Progress, backpressure: Histogram, clock: Callable[[], float]) -> None:
        self._flow = flow
        self._progress = progress
        self._backpressure = backpressure
        self._clock = clock

    @property
    def is_committed(self) -> bool:
        """Whether the answer has begun."""
        return self._flow.is_committed

    @property
    def is_paused(self) -> bool:
        """Whether reading from the provider should pause."""
        return self._flow.is_paused

    async def wait(self) -> None:
        """Return when the client takes more; raises ``ClientGone`` when it never will."""
        if not self._flow.is_paused:
            return await self._flow.wait()
        began_at_s = self._clock()
        try:
            await self._flow.wait()
        finally:
            pause_s = self._clock() - began_at_s
            self._progress.note_pause(pause_s)
            self._backpressure.observe(pause_s)


def outcome_of(error: BaseException | None) -> str:
    """Return the outcome that ``error`` amounts to; one of a closed set."""
    match error:
        case None:
            return "completed"
        case asyncio.CancelledError(args=(word,)) if word == DRAINED:
            return "drained"
        case ClientGone() | asyncio.CancelledError():
            return "client_aborted"
        case ClientError():
            return "rejected"
        case UpstreamError(code="stall_timeout" | "ttft_timeout"):
            return "stalled"
        case UpstreamError(code="total_timeout"):
            return "deadline"
        case StreamInterrupted(code="stream_truncated"):
            return "truncated"
        case UpstreamError():
            return "upstream_error"
        case _:
            return "gateway_error"


def _told(error: BaseException | None) -> GatewayError | type[GatewayError] | None:
    """Return what the client is told of an error, if only as one of its kind."""
    match error:
        case None | GatewayError():
            return error
        case asyncio.CancelledError(args=(word,)) if word == DRAINED:
            return GatewayStopping
        case asyncio.CancelledError():
            return ClientGone
        case _:
            return InternalError


def _error_type_of(told: GatewayError | type[GatewayError]) -> str:
    """Return the kind of an error; what the gateway itself did has the code for a name."""
    return told.code if told.error_type == "_OTHER" else told.error_type


def _result_of(outcome: str) -> str:
    """Return what came of failing over; whether a client that left would have got its answer, nobody knows."""
    if outcome == "completed":
        return outcome
    return "cancelled" if outcome in ("client_aborted", "drained") else "failed"


def _reason_of(error: ClientError) -> str:
    """Return why a call was refused; one of a closed set."""
    match error:
        case Unauthorized():
            return "unauthorized"
        case Forbidden():
            return "forbidden"
        case UnknownModel():
            return "unknown_model"
        case RequestTooLarge():
            return "request_too_large"
        case RequestTimeout():
            return "request_timeout"
        case RateLimited():
            return "rate_limited"
        case _:
            return "invalid_request"


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)
