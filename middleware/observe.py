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

What is counted of a model and its targets is bound once and kept, and the fields of a line are collected only where the
log's level wants it: a short answer cost the whole chain twice the CPU when each count was asked for by its labels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final

import structlog
from msgspec import Struct, structs

from gateway.core.call import Call, Flow, Route, Target
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
from gateway.core.kept import Kept
from gateway.core.ledger import Settlement
from gateway.core.meters import OTHER, Counter, Gauge, Histogram, Meters, upstream_label
from gateway.core.progress import OBJECTIVES, Phase, Progress, Verdict
from gateway.core.trace import Trace
from gateway.pipeline import DRAINED, HEDGE_LOST, Next, Send, Telemetry

log = structlog.get_logger()

MAX_SHOWN_CHARACTERS = 200
"""Of a target: any client may name a model, of any length."""

_QUIET = frozenset({"completed", "client_aborted", "rejected"})
"""Outcomes that are worth no warning."""

_UNJUDGED = frozenset({"client_aborted", "rejected"})
"""Outcomes that say nothing about how good the gateway and its providers are."""


_COMPLETED: Final = ("completed", "")


@dataclass(frozen=True, slots=True)
class Observe:
    """Logs and counts how every call ends."""

    _telemetry: Telemetry = field(default=Telemetry(), repr=False, compare=False)
    _clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    _models: dict[str, _Model] = field(default_factory=dict, init=False, repr=False, compare=False)

    def instrumented(self, telemetry: Telemetry) -> Observe:
        """Return one that counts in ``telemetry``."""
        return replace(self, _telemetry=telemetry)

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Hand the call on and watch what comes back."""
        observed = _Observed(call, self._telemetry, self._model(call.route), self._clock)
        try:
            await call_next(observed.watched(call), observed.progress.watching(send, self._clock))
        except BaseException as error:
            observed.end(error)
            raise
        observed.end(None)

    def _model(self, route: Route) -> _Model:
        """Return what is counted of a model; there are as many as the configuration names, and one for all others."""
        model = self._models.get(route.name)
        if model is None or (model.targets != route.targets and route.name != OTHER):
            model = self._models[route.name] = _Model(self._telemetry.meters, route)
        return model


class _Upstream:
    """What is counted of one model at one upstream, which is called by its label."""

    __slots__ = ("attempts", "counters", "histograms", "label", "usage")

    def __init__(self, meters: Meters, model: str, label: str) -> None:
        self.label = label
        self.attempts: Kept[tuple[str, str], Counter] = Kept(
            lambda ended: meters.counter("millrace_upstream_attempts_total", label, model, *ended)
        )
        self.usage: Kept[str, Counter] = Kept(lambda source: meters.counter("millrace_usage_total", label, source))
        self.counters: Kept[str, Counter] = Kept(lambda name: meters.counter(name, model, label))
        self.histograms: Kept[str, Histogram] = Kept(lambda name: meters.histogram(name, model, label))


class _Calls:
    """What is counted of one model's calls at one endpoint, of those that stream or of those that do not."""

    __slots__ = ("backpressure", "ends", "started")

    def __init__(self, meters: Meters, model: str, endpoint: str, *, is_stream: bool) -> None:
        stream = "true" if is_stream else "false"
        self.started = meters.counter("millrace_requests_started_total", endpoint, model)
        self.backpressure = meters.histogram("millrace_client_backpressure_seconds") if is_stream else None
        self.ends: Kept[str, tuple[Counter, Histogram]] = Kept(
            lambda outcome: (
                meters.counter("millrace_requests_total", endpoint, model, stream, outcome),
                meters.histogram("millrace_request_duration_seconds", endpoint, model, stream),
            )
        )


class _Model:
    """What is counted of one model. Its upstreams are as many as labels can name."""

    __slots__ = ("_known", "_upstreams", "active", "calls", "finishes", "histograms", "name", "targets", "verdicts")

    def __init__(self, meters: Meters, route: Route) -> None:
        name = self.name = route.name
        self.targets = route.targets
        self.calls: Kept[tuple[str, bool], _Calls] = Kept(lambda kind: _Calls(meters, name, kind[0], is_stream=kind[1]))
        self.active: Kept[Phase, Gauge] = Kept(lambda phase: meters.gauge("millrace_streams_active", name, phase))
        self.finishes: Kept[str, Counter] = Kept(
            lambda reason: meters.counter("millrace_finish_reasons_total", name, reason)
        )
        self.histograms: Kept[str, Histogram] = Kept(lambda family: meters.histogram(family, name))
        self.verdicts: Kept[Verdict, Sequence[Counter]] = Kept(
            lambda met: [
                meters.counter("millrace_slo_streams_total", name, objective, "true" if is_met else "false")
                for objective, is_met in zip(OBJECTIVES, met, strict=True)
            ]
        )
        self._upstreams: Kept[str, _Upstream] = Kept(lambda label: _Upstream(meters, name, label))
        self._known: dict[Target | str, _Upstream] = {}
        if name != OTHER:
            for target in route.targets:
                self._known[target] = self._known[str(target)] = self._upstreams[str(target)]

    def upstream(self, route: Route, target: Target | str) -> _Upstream:
        """Return what is counted at a target, or at the ``provider/model`` that an event names."""
        return self._known.get(target) or self._upstreams[upstream_label(route, target)]


class _Look(Struct, frozen=True):
    """How a call goes, or ended. What that amounts to is worked out when somebody looks: few are ever looked at.

    It keeps the call's progress, which lets go of the answer, see ``Progress.let_go``.
    """

    request_id: str
    endpoint: str
    model: str
    target: str
    is_stream: bool
    outcome: str
    progress: Progress
    at_s: float
    attempt_count: int

    def shown(self) -> Mapping[str, object]:
        """Return what is shown."""
        progress, at_s = self.progress, self.at_s
        return {
            "id": self.request_id,
            "endpoint": self.endpoint,
            "model": self.model,
            "target": self.target or None,
            "stream": self.is_stream,
            "phase": progress.phase,
            "tokens": progress.token_count,
            "tokens_per_s": _rounded(progress.tokens_per_s, 3),
            "ttft_s": _rounded(progress.ttft_s),
            "idle_s": None if self.outcome else _rounded(at_s - max(progress.last_at_s, progress.asked_at_s)),
            "age_s": _rounded(at_s - progress.asked_at_s),
            "attempts": self.attempt_count,
            "outcome": self.outcome or None,
        }


class _Observed:
    """One call: the ledger of its attempts, what the table of live streams shows, and what is told of it at its end."""

    __slots__ = (
        "_call", "_calls", "_clock", "_delivered_tokens", "_heard_count", "_is_stream", "_model", "_outcome",
        "_settled_count", "_spoke_at_s", "_started_at_s", "_telemetry", "_wasted_tokens", "progress",
    )  # fmt: skip

    def __init__(self, call: Call, telemetry: Telemetry, model: _Model, clock: Callable[[], float]) -> None:
        trace = call.trace
        self._call = call
        self._is_stream = call.stream
        self._model = model
        self._telemetry = telemetry
        self._clock = clock
        self._calls = calls = model.calls[call.endpoint, call.stream]
        self._started_at_s: float | None = None
        self._spoke_at_s: float | None = None
        self._settled_count = 0
        self._delivered_tokens: Sequence[int] = ()
        self._wasted_tokens = 0
        self._heard_count = 0
        self._outcome = ""
        asked_at_s, choice_count = call.received_at_s or clock(), call.choice_count
        if type(trace) is Trace:  # of it nothing is recorded
            self.progress = Progress(asked_at_s, telemetry.slo, choice_count, self._move)
        else:
            self.progress = Progress(asked_at_s, telemetry.slo, choice_count, self._move, trace.note)
        calls.started.inc()
        model.active["prefill"].inc()
        telemetry.live.begin(self)

    def watched(self, call: Call) -> Call:
        """Return the call whose attempts, and whose pauses, are told here."""
        backpressure = self._calls.backpressure
        if backpressure is None:
            return structs.replace(call, ledger=self)
        flow = _WatchedFlow(call.flow, self.progress, backpressure, self._clock)
        return structs.replace(call, ledger=self, flow=flow)

    # --- for the table of live streams

    def shown(self) -> Mapping[str, object]:
        """Return how the call goes now."""
        return self._look(self._clock(), self.progress.attempt_count).shown()

    def _look(self, at_s: float, attempt_count: int) -> _Look:
        call, progress = self._call, self.progress
        target = progress.last_target[:MAX_SHOWN_CHARACTERS]
        return _Look(
            call.request_id, call.endpoint, self._model.name, target, call.stream,
            self._outcome, progress, at_s, attempt_count,
        )  # fmt: skip

    def drain(self) -> None:
        """The gateway is stopping, and waits for the call."""
        self.progress.drain()

    def _move(self, before: Phase, phase: Phase) -> None:
        active = self._model.active
        active[before].inc(-1)
        active[phase].inc()

    # --- the ledger of the call's attempts

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Pass it on: what the client waits for is seen where it is handed on."""
        self._call.ledger.note_first_token(target, attempt, ttft_s)

    def settle(self, settlement: Settlement) -> None:
        """Count the attempt and its tokens, and pass it on.

        Note when the first attempt was begun, and when the one that the client heard first had its first token.
        """
        call, ended = self._call, _COMPLETED
        self._settled_count += 1
        if self._started_at_s is None or settlement.started_at_s < self._started_at_s:
            self._started_at_s = settlement.started_at_s
        if self._spoke_at_s is None and settlement.is_delivered:
            self._spoke_at_s = settlement.first_token_at_s
        if settlement.result != "completed":
            ended = self._ended(settlement)
        upstream = self._model.upstream(call.route, settlement.target)
        upstream.attempts[ended].inc()
        self._count_usage(settlement, upstream)
        call.trace.attempt(settlement)
        call.ledger.settle(settlement)

    def _ended(self, settlement: Settlement) -> tuple[str, str]:
        """Return what an attempt is counted as that did not end whole, and take note of it if it has failed."""
        error_type: str = settlement.error_type or ""
        if settlement.result == "failed":
            error_type = error_type or "_OTHER"
            self.progress.note_failed_attempt(settlement.started_at_s)
        return settlement.result, error_type

    def _count_usage(self, settlement: Settlement, upstream: _Upstream) -> None:
        """Count what an attempt used; one that brought nothing has nothing to account for."""
        usage = settlement.usage
        if usage is None:
            if settlement.first_token_at_s is not None or settlement.result == "completed":
                upstream.usage["missing"].inc()
            return
        upstream.usage["counted" if usage.is_estimated else "reported"].inc()
        counters, output_tokens = upstream.counters, usage.output_tokens
        if usage.input_tokens:
            counters["millrace_input_tokens_total"].inc(usage.input_tokens)
        if output_tokens:
            counters["millrace_output_tokens_total"].inc(output_tokens)
        if usage.cached_input_tokens:
            counters["millrace_cache_read_input_tokens_total"].inc(usage.cached_input_tokens)
        if usage.cache_write_input_tokens:
            counters["millrace_cache_write_input_tokens_total"].inc(usage.cache_write_input_tokens)
        if usage.reasoning_tokens:
            counters["millrace_reasoning_output_tokens_total"].inc(usage.reasoning_tokens)
        if reason := self._waste_of(settlement):
            self._waste(output_tokens, upstream, reason)
        elif settlement.is_delivered:
            self._delivered_tokens = (*self._delivered_tokens, output_tokens)

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

    def _waste(self, tokens: int, upstream: _Upstream, reason: str) -> None:
        if tokens > 0:
            self._wasted_tokens += tokens
            meters = self._telemetry.meters
            meters.counter("millrace_tokens_wasted_total", self._model.name, upstream.label, reason).inc(tokens)

    # --- its end

    def end(self, error: BaseException | None) -> None:
        """Tell what the call has come to: this is called once."""
        progress, outcome = self.progress, "completed" if error is None else outcome_of(error)
        now_s = self._clock()
        self._outcome = outcome
        if error is None:
            progress.end(now_s, is_complete=True, has_client=True, last_attempt=None)
            if len(self._delivered_tokens) > 1:
                self._count_overlap()
        else:
            self._end_progress(error, now_s)
        met = tpot_s = None
        if self._is_stream:
            tpot_s = progress.tpot_s
            if outcome not in _UNJUDGED:
                met = progress.judge(now_s, tpot_s, is_complete=error is None)
        self._model.active[progress.phase].inc(-1)
        self._count_end(now_s)
        if error is not None:
            self._count_error(error)
        if progress.failovers or progress.seams:
            self._count_failovers()
        if self._is_stream:
            self._count_stream(met, tpot_s)
        self._telemetry.live.end(self, None if outcome == "rejected" else self._look(now_s, self._settled_count))
        self._tell(error, met, tpot_s, now_s)
        progress.let_go()

    def _end_progress(self, error: BaseException, now_s: float) -> None:
        """End the progress of a call that did not end whole."""
        progress, outcome = self.progress, self._outcome
        last_attempt = 0 if outcome == "rejected" else None
        if isinstance(error, UpstreamError):
            progress.pass_by(str(error.target or ""))
            last_attempt = error.attempt
        progress.end(now_s, is_complete=False, has_client=outcome != "client_aborted", last_attempt=last_attempt)

    def _count_overlap(self) -> None:
        """Count as wasted what several attempts generated of an answer, and what is not in it."""
        usage = self.progress.usage
        if usage is not None:
            upstream = self._model.upstream(self._call.route, self.progress.last_target)
            self._waste(sum(self._delivered_tokens) - usage.output_tokens, upstream, "resume_overlap")

    def _count_end(self, now_s: float) -> None:
        progress = self.progress
        ended, duration = self._calls.ends[self._outcome]
        ended.inc()
        duration.observe(now_s - progress.asked_at_s, self._call.trace.exemplar_trace_id)
        for finish_reason in progress.finish_reasons.values():
            self._model.finishes[finish_reason].inc()

    def _count_error(self, error: BaseException) -> None:
        meters = self._telemetry.meters
        if isinstance(error, ClientError):
            meters.counter("millrace_rejected_total", _reason_of(error)).inc()
        if self._outcome == "client_aborted":
            meters.counter("millrace_client_aborts_total", self._call.endpoint, self.progress.phase).inc()

    def _count_failovers(self) -> None:
        meters, model, route = self._telemetry.meters, self._model, self._call.route
        progress, result = self.progress, _result_of(self._outcome)
        for failed in progress.failovers.values():
            upstream = model.upstream(route, failed.target).label
            phase = "mid_stream" if failed.has_delivered else "pre_first_token"
            meters.counter("millrace_failovers_total", model.name, upstream, phase, result).inc()
        for seam in progress.seams:
            upstream = model.upstream(route, seam.from_target).label
            meters.counter("millrace_stream_resumes_total", model.name, upstream, result).inc()

    def _count_stream(self, met: Verdict | None, tpot_s: float | None) -> None:
        """Count how fast and how evenly a stream came; its target is the one that gave the first token."""
        call, meters, model, progress = self._call, self._telemetry.meters, self._model, self.progress
        histograms, exemplar = model.upstream(call.route, progress.target).histograms, call.trace.exemplar_trace_id
        if (ttft_s := progress.ttft_s) is not None:
            histograms["millrace_ttft_seconds"].observe(ttft_s, exemplar)
        if (ttfc_s := progress.ttfc_s) is not None:
            model.histograms["millrace_time_to_first_content_seconds"].observe(ttfc_s)
        if tpot_s:
            histograms["millrace_tpot_seconds"].observe(tpot_s)
            histograms["millrace_stream_tokens_per_second"].observe(1 / tpot_s)
        if progress.max_gap_s:
            histograms["millrace_stream_max_gap_seconds"].observe(progress.max_gap_s, exemplar)
        for stall in progress.stalls:
            slow = model.upstream(call.route, stall.target).label
            meters.counter("millrace_stalls_total", model.name, slow, stall.phase, stall.resolution).inc()
            meters.counter("millrace_stall_seconds_total", model.name, slow).inc(stall.length_s)
        for loss in progress.losses:
            meters.histogram("millrace_failover_lost_seconds", model.name, loss.phase).observe(loss.length_s)
        if met is not None:
            for verdict in model.verdicts[met]:
                verdict.inc()

    def _tell(self, error: BaseException | None, met: Verdict | None, tpot_s: float | None, now_s: float) -> None:
        """End the trace, and write the line, if anybody wants it."""
        progress, outcome, trace = self.progress, self._outcome, self._call.trace
        logger = log.bind()  # structlog's own, and not one that looks for it with every name
        level = logging.INFO if outcome in _QUIET else logging.WARNING
        is_logged = logger.is_enabled_for(level)
        if type(trace) is Trace and not is_logged:
            return
        error_type = code = None
        http_status: int | None = 200
        if error is not None:
            told = _told(error)
            if outcome == "client_aborted" or told is None:
                http_status = None
            else:
                error_type, code, http_status = _error_type_of(told), told.code, told.status_code
            if self._call.flow.is_committed:
                http_status = 200
        started = progress.started
        trace.end(
            outcome,
            usage=progress.usage,
            finish_reasons=list(progress.finish_reasons.values()),
            response_id=started.id if started else None,
            response_model=started.model if started else None,
            ttft_s=progress.ttft_s,
            http_status=http_status,
            error_type=error_type,
        )
        if not is_logged:
            return
        fields = self._line(met, tpot_s, now_s)
        if http_status:
            fields["http_status"] = http_status
        if error_type:
            fields["error_type"] = error_type
        if code:
            fields["code"] = code
        write = logger.info if level == logging.INFO else logger.warning
        with suppress(OSError):  # that nobody can read the log is no reason for an answer to fail
            write("stream.finished", **fields)

    def _line(self, met: Verdict | None, tpot_s: float | None, now_s: float) -> dict[str, object]:
        """Return what the log is told, but for how the call ended."""
        progress, usage = self.progress, self.progress.usage
        fields: dict[str, object] = {
            "request_id": self._call.request_id,
            **self._call.trace.log_fields,
            "endpoint": self._call.endpoint,
            "model": self._model.name,
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
            fields["ttfc_s"] = _rounded(progress.ttfc_s)
            fields["tpot_s"] = _rounded(tpot_s)
            fields["tokens_per_s"] = _rounded(1 / tpot_s, 3) if tpot_s else None
            fields["max_gap_s"] = _rounded(progress.max_gap_s or None)
        if met is not None:
            fields["slo"] = dict(zip(OBJECTIVES, met, strict=True))
        self._add_rarities(fields)
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

    def _add_rarities(self, fields: dict[str, object]) -> None:
        """Add what is only in the line of a call in which there was any of it."""
        progress, usage = self.progress, self.progress.usage
        if usage is not None:
            counts = (
                ("reasoning_tokens", usage.reasoning_tokens),
                ("cache_read_input_tokens", usage.cached_input_tokens),
                ("cache_write_input_tokens", usage.cache_write_input_tokens),
            )
            fields |= {name: count for name, count in counts if count}
        if self._wasted_tokens:
            fields["wasted_tokens"] = self._wasted_tokens
        if self._is_stream:
            if progress.stalls:
                fields["stalls"] = len(progress.stalls)
            if progress.stalls and (stall_s := round(progress.stall_s, 6)):
                fields["stall_s"] = stall_s
            if progress.losses and (lost_s := round(progress.lost_s, 6)):
                fields["failover_lost_s"] = lost_s
        if paused_s := round(progress.paused_s, 6):
            fields["backpressure_s"] = paused_s


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

    is_paused = property(attrgetter("_flow.is_paused"), doc="Whether reading from the provider should pause.")
    """Asked for every token: this is no function of Python's."""

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
