from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Mapping
from typing import Any, Unpack

import pytest
import structlog
from msgspec import structs
from structlog.testing import capture_logs

from gateway.core.call import Call, Message, OpenFlow, Route, Target, TextPart
from gateway.core.errors import (
    ClientError,
    ClientGone,
    Forbidden,
    InternalError,
    InvalidRequest,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    StreamInterrupted,
    Unauthorized,
    UnknownModel,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.core.events import (
    AttemptFailed,
    ChoiceFinished,
    Event,
    ReasoningDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.ledger import Settlement
from gateway.core.progress import Slo
from gateway.core.trace import Attributes, Facts, Trace
from gateway.pipeline import DRAINED, HEDGE_LOST, Send, Telemetry
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.live import LiveTable
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from middleware.observe import MAX_SHOWN_CHARACTERS, Observe, outcome_of
from tests.exposition import OPENMETRICS, Exposition
from tests.middleware.scripted_endpoint import ANSWER, HANG, START, Recorder, ScriptedEndpoint, Step, ignore


def make_call() -> Call:
    """Return a call that has just been received, and holds what nobody may write down."""
    return Call(
        request_id="r1",
        endpoint="chat_completions",
        model="secret-model",
        route=Route(name="chat"),
        credential="secret-key",
        received_at_s=time.monotonic(),
        stream=True,
        messages=(Message(role="user", parts=(TextPart("secret-prompt"),)),),
    )


class Noting(Trace):
    """A trace that keeps what it is told."""

    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"

    def __init__(self) -> None:
        super().__init__(self.trace_id, "00f067aa0ba902b7", 1, None, propagates=False)
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.ends: list[tuple[str, Facts]] = []

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Keep it."""
        self.notes.append((name, dict(attributes or {})))

    def end(self, outcome: str, **facts: Unpack[Facts]) -> None:
        """Keep it."""
        self.ends.append((outcome, facts))


async def observe(*steps: list[Any] | BaseException | str) -> dict[str, Any]:
    """Return the one line that a call is logged as, however it ends."""
    script: Step = steps or ANSWER
    with capture_logs() as logs:
        try:
            await Observe()(make_call(), ignore, ScriptedEndpoint(script))
        except BaseException as error:  # noqa: BLE001, whatever ends a call is what is tested
            assert error is script[-1]  # noqa: PT017, same
    [line] = logs
    return dict(line)


async def test_a_call_that_is_complete_is_one_line() -> None:
    """What was asked, who answered, what it took."""
    line = await observe()
    assert 0 <= line["ttft_s"] == line.pop("ttfc_s") <= line.pop("duration_s") < 10
    assert 0 < line.pop("tpot_s") == line.pop("max_gap_s") < 1 < line.pop("tokens_per_s")
    assert line.pop("ttft_s") < 1
    assert line.pop("overhead_s") is None  # no attempt was settled
    assert line == {
        "event": "stream.finished",
        "log_level": "info",
        "request_id": "r1",
        "endpoint": "chat_completions",
        "model": "chat",
        "target": "openai/gpt",
        "targets": ["openai/gpt"],
        "attempts": 0,
        "resumed": 0,
        "stream": True,
        "outcome": "completed",
        "finish_reason": "stop",
        "slo": {"ttft": True, "tpot": True, "smooth": True, "complete": True, "all": True},
        "delta_count": 2,
        "input_tokens": 3,
        "output_tokens": 2,
        "usage_source": "reported",
        "http_status": 200,
    }


async def test_a_call_that_failed_says_how() -> None:
    """What is worth a look is a warning."""
    line = await observe([START], UpstreamBusy("busy", code="overloaded"))
    assert {key: line[key] for key in ("log_level", "outcome", "error_type", "code", "http_status")} == {
        "log_level": "warning",
        "outcome": "upstream_error",
        "error_type": "overloaded",
        "code": "overloaded",
        "http_status": 503,
    }


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UpstreamBusy("busy"), (503, "overloaded")),
        (Unauthorized("no"), (401, "auth")),
        (ClientGone("left"), (None, None)),
        (asyncio.CancelledError(), (None, None)),
        (asyncio.CancelledError(DRAINED), (503, "gateway_stopping")),
        (ZeroDivisionError("ours"), (500, "internal_error")),
    ],
)
@pytest.mark.parametrize("is_committed", [False, True])
async def test_the_status_is_the_one_that_the_client_has(
    error: BaseException, told: tuple[int | None, str | None], *, is_committed: bool
) -> None:
    """Whatever breaks behind the first byte, or the first sign of life, was a 200; the log, and the trace, say so."""
    trace = Noting()
    flow = OpenFlow()
    flow.is_committed = is_committed
    with capture_logs() as logs, pytest.raises(type(error)):
        await Observe()(
            structs.replace(make_call(), trace=trace, flow=flow), ignore, ScriptedEndpoint([[START], error])
        )
    http_status, error_type = (200 if is_committed else told[0]), told[1]
    assert (logs[0].get("http_status"), logs[0].get("error_type")) == (http_status, error_type)
    [(outcome, facts)] = trace.ends
    assert outcome == logs[0]["outcome"]
    assert (facts["http_status"], facts["error_type"]) == (http_status, error_type)


async def test_the_trace_is_told_what_happened_and_how_it_ended() -> None:
    """Each thing once, when it happens; the ids are on the line."""
    trace = Noting()
    failed = AttemptFailed("openai/gpt", 1, "reset", "stream_broken", has_delivered=True)
    seam = StreamContinued("claude/haiku", "openai/gpt", "exact", 2, 5)
    script: Step = [[START], [TextDelta("Hello")], [failed, seam], [TextDelta(" you")], [ChoiceFinished("stop")]]
    with capture_logs() as logs:
        await Observe()(structs.replace(make_call(), trace=trace), ignore, ScriptedEndpoint(script))
    assert trace.notes == [
        ("first_token", {"target": "openai/gpt"}),
        (
            "failover",
            {
                "target": "openai/gpt",
                "attempt": 1,
                "error_type": "reset",
                "code": "stream_broken",
                "has_delivered": True,
            },
        ),
        (
            "seam",
            {
                "target": "claude/haiku",
                "from_target": "openai/gpt",
                "way": "exact",
                "attempt": 2,
                "character_count": 5,
            },
        ),
    ]
    [(outcome, facts)] = trace.ends
    assert outcome == "completed"
    assert facts["finish_reasons"] == ["stop"]
    assert (facts["response_id"], facts["response_model"]) == (START.id, START.model)
    assert facts["ttft_s"] == pytest.approx(logs[0]["ttft_s"], abs=1e-6)
    assert (logs[0]["trace_id"], logs[0]["span_id"]) == (trace.trace_id, trace.span_id)


async def test_a_stall_is_an_event_of_the_trace() -> None:
    """With the target that was waited for, and for how long."""
    observing = Observing()
    trace = Noting()
    script = [[START], [TextDelta("a")], 9.0, [TextDelta("b")], [ChoiceFinished("stop")]]
    await observing.run(*script, call=structs.replace(observing.call(), trace=trace))
    stalls = [said for name, said in trace.notes if name == "stall"]
    assert [(one["target"], one["resolution"], one["phase"]) for one in stalls] == [
        ("openai/gpt", "recovered", "decode")
    ]
    assert stalls[0]["length_s"] == pytest.approx(9.0)


async def test_a_trace_that_is_kept_is_an_example_of_its_buckets() -> None:
    """And one that is not can be looked up nowhere."""
    for flags, expected in ((1, {Noting.trace_id}), (0, set())):
        slab, trace = Slab.create(), Noting()
        trace.flags = flags
        observe = Observe().instrumented(Telemetry(meters=Meters(slab)))
        await observe(structs.replace(make_call(), trace=trace), ignore, ScriptedEndpoint(ANSWER))
        shown = Exposition.read(*SlabCollector([slab]).render(OPENMETRICS))
        examples = {
            sample.exemplar.labels["trace_id"]
            for sample in shown.of_name("millrace_ttft_seconds_bucket")
            if sample.exemplar is not None
        }
        assert examples == expected


async def test_what_did_not_happen_is_null() -> None:
    """A refused call has no target, no first token and no usage."""
    line = await observe(Unauthorized("no"))
    names = ("target", "finish_reason", "input_tokens", "output_tokens", "usage_source")
    times = ("ttft_s", "ttfc_s", "tpot_s", "tokens_per_s", "max_gap_s")
    assert {line[name] for name in (*names, *times)} == {None}
    assert "slo" not in line
    assert (line["delta_count"], line["log_level"]) == (0, "info")
    assert (line["targets"], line["attempts"], line["resumed"]) == ([], 0, 0)


def failed(target: str, attempt: int, **more: Any) -> AttemptFailed:
    """Return the note of an attempt behind which there is another."""
    return AttemptFailed(target, attempt, "reset", "stream_truncated", **more)


def continued(target: str, from_target: str, attempt: int) -> StreamContinued:
    """Return the note of a seam."""
    return StreamContinued(target, from_target, "exact", attempt, 5)


async def test_the_targets_of_attempts_that_failed_are_named() -> None:
    """The way a call went, in which one target asked twice running is one stop."""
    notes = [failed("a/x", 1), failed("a/x", 2), failed("b/y", 3), failed("a/x", 4)]
    line = await observe(notes, *ANSWER)
    assert line["resumed"] == 0
    assert line["targets"] == ["a/x", "b/y", "a/x", "openai/gpt"]
    assert line["target"] == "openai/gpt"
    assert "last_target" not in line


async def test_a_stream_that_was_continued_says_by_whom() -> None:
    """The target is still the one of the first token, which the client was told; a seam is no attempt of its own."""
    broken = [failed("openai/gpt", 1, has_delivered=True)]
    seam = [continued("b/y", "openai/gpt", 2), TextDelta("lo")]
    again = [failed("b/y", 2, has_delivered=True), continued("c/z", "b/y", 3), *ANSWER[1]]
    line = await observe(ANSWER[0], broken, seam, again)
    assert (line["outcome"], line["log_level"]) == ("completed", "info")
    assert (line["resumed"], line["delta_count"]) == (2, 3)
    assert line["targets"] == ["openai/gpt", "b/y", "c/z"]
    assert (line["target"], line["last_target"]) == ("openai/gpt", "c/z")


async def test_a_stream_that_its_own_target_continued_has_no_other_last_one() -> None:
    """There is one stop on its way."""
    seam = [failed("openai/gpt", 1, has_delivered=True), continued("openai/gpt", "openai/gpt", 2)]
    line = await observe(ANSWER[0], seam, *ANSWER[1:])
    assert (line["resumed"], line["targets"]) == (1, ["openai/gpt"])
    assert "last_target" not in line


async def test_the_target_whose_error_is_the_last_is_on_the_way_too() -> None:
    """It never gave a token: the error knows it."""
    error = UpstreamFailed("broken")
    error.target, error.attempt = Target("b", "y"), 2

    async def fail(call: Call, send: Any) -> None:  # noqa: ARG001, the signature of an endpoint
        send([failed("a/x", 1)])
        raise error

    with capture_logs() as logs, pytest.raises(UpstreamFailed):
        await Observe()(make_call(), ignore, fail)
    [line] = logs
    assert (line["target"], line["targets"]) == (None, ["a/x", "b/y"])


async def test_a_target_that_could_not_be_asked_is_on_the_way() -> None:
    """Its wire has no words for the request."""
    line = await observe([failed("a/x", 0)], *ANSWER)
    assert (line["targets"], line["attempts"]) == (["a/x", "openai/gpt"], 0)


async def test_as_many_attempts_were_made_as_were_settled() -> None:
    """That of a target which lost a race too; not one that a client did not wait for, nor one that nobody made."""
    observing = Observing()
    await observing.run(BEGIN, settled(101), settled(1, "cancelled", reason=HEDGE_LOST), END)
    await observing.run([failed("openai/gpt", 1)], settled(1, "failed"), ClientGone("left"))
    busy = UpstreamBusy("no room", code="concurrency_limit")
    busy.attempt = 1
    await observing.run(busy)
    assert [line["attempts"] for line in observing.lines] == [2, 1, 0]
    shown = observing.live.shown()["recent"]
    assert [one["attempts"] for one in shown] == [0, 1, 2]


async def test_nothing_that_was_said_is_written_down() -> None:
    """Nor the key, nor a model's name that only the client knows, nor a provider's words."""
    words = [TextDelta("secret-answer"), ReasoningDelta("secret-thought"), ToolCallStarted(0, "a", "secret-tool")]
    for end in (UpstreamFailed("secret-words"), RuntimeError("secret-fault"), InvalidRequest("secret-fault")):
        assert "secret" not in str(await observe([START, *words], end))


async def test_every_token_event_is_a_delta() -> None:
    """A role, usage and the finish are none."""
    tokens = [TextDelta("a"), ReasoningDelta("b"), ToolCallStarted(0, "a", "f"), ToolCallDelta(0, "{}")]
    assert (await observe([START, *tokens], *ANSWER[1:]))["delta_count"] == 5


async def test_an_estimate_is_called_one_and_the_last_report_counts() -> None:
    """Money is counted by it."""
    line = await observe([START, UsageReported(Usage(1, 1))], [UsageReported(Usage(5, 4, is_estimated=True))])
    assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (5, 4, "estimated")


async def test_the_first_token_is_timed_once_when_it_is_handed_on() -> None:
    """Not when the stream starts, and not when it ends."""

    async def slow(call: Call, send: Any) -> None:
        for batch in ([START], [TextDelta("a")], [TextDelta("b")]):
            await asyncio.sleep(0.02)
            send(batch)
        assert call.request_id == "r1"

    with capture_logs() as logs:
        await Observe()(make_call(), ignore, slow)
    [line] = logs
    assert 0.03 < line["ttft_s"] < line["duration_s"] - 0.01


async def test_a_batch_that_nobody_took_is_not_counted() -> None:
    """The client left before it."""

    def gone(events: object) -> None:
        raise ClientGone(f"left before {len(str(events))} bytes")

    with capture_logs() as logs, pytest.raises(ClientGone):
        await Observe()(make_call(), gone, ScriptedEndpoint())
    assert (logs[0]["delta_count"], logs[0]["outcome"]) == (0, "client_aborted")


async def test_a_call_that_is_cancelled_is_logged_before_it_is_gone() -> None:
    """With what it had come to."""
    endpoint = ScriptedEndpoint([ANSWER[0], HANG])
    with capture_logs() as logs:
        work = asyncio.ensure_future(Observe()(make_call(), ignore, endpoint))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert [(line["outcome"], line["delta_count"]) for line in logs] == [("client_aborted", 1)]
    assert endpoint.cancelled_count == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "completed"),
        (ClientGone("left"), "client_aborted"),
        (asyncio.CancelledError(), "client_aborted"),
        (asyncio.CancelledError("drained"), "drained"),
        (Unauthorized("no"), "rejected"),
        (InvalidRequest("no"), "rejected"),
        (UpstreamTimeout("slow", code="ttft_timeout"), "stalled"),
        (StreamInterrupted("slow", code="stall_timeout"), "stalled"),
        (UpstreamTimeout("slow", code="total_timeout"), "deadline"),
        (StreamInterrupted("slow", code="total_timeout"), "deadline"),
        (StreamInterrupted("cut", code="stream_truncated"), "truncated"),
        (StreamInterrupted("busy", code="overloaded"), "upstream_error"),
        (UpstreamTimeout("slow", code="connect_timeout"), "upstream_error"),
        (UpstreamFailed("broken"), "upstream_error"),
        (InternalError("ours"), "gateway_error"),
        (RuntimeError("ours"), "gateway_error"),
    ],
)
def test_every_end_has_an_outcome(error: BaseException | None, outcome: str) -> None:
    """One of a closed set."""
    assert outcome_of(error) == outcome


# --- what is counted


CHAT = Route(name="chat", targets=(Target("openai", "gpt"), Target("b", "y")))
PAIR = {"model": "chat", "upstream": "openai/gpt"}


class Observing:
    """An ``Observe`` with a clock that only a script moves on, and all that it tells: counts, lines, live streams."""

    def __init__(self) -> None:
        self.slab = Slab.create()
        self.live = LiveTable()
        self.now_s = 1000.0
        self.lines: list[dict[str, Any]] = []
        self.settled = Recorder()
        telemetry = Telemetry(meters=Meters(self.slab), slo=Slo(ttft_s=1.0, tpot_s=0.1, max_gap_s=2.0), live=self.live)
        self.observe = Observe(_clock=lambda: self.now_s).instrumented(telemetry)

    def call(self, **fields: Any) -> Call:
        """Return a call that comes now."""
        return structs.replace(make_call(), route=CHAT, received_at_s=self.now_s, ledger=self.settled, **fields)

    async def run(self, *steps: Any, call: Call | None = None) -> Exposition:
        """Play a script to its end, and return what was counted by then."""
        await self.play(*steps, call=call)
        return self.counted

    async def play(self, *steps: Any, call: Call | None = None) -> None:
        """Play a script: numbers are seconds that pass, settlements are settled, lists sent, an exception is raised.

        A function is called with the call as it reached the end of the chain.
        """

        async def endpoint(call: Call, send: Send) -> None:
            for step in steps:
                if isinstance(step, int | float):
                    self.now_s += step
                elif isinstance(step, Settlement):
                    call.ledger.settle(step)
                elif isinstance(step, BaseException):
                    raise step
                elif callable(step):
                    await step(call)
                else:
                    send(step)

        with capture_logs() as logs:
            try:
                await self.observe(call or self.call(), ignore, endpoint)
            except BaseException as error:  # noqa: BLE001, whatever ends a call is what is tested
                assert error is steps[-1]  # noqa: PT017, same
        self.lines += [dict(line) for line in logs]

    @property
    def counted(self) -> Exposition:
        """What was counted so far."""
        return Exposition.of(self.slab)


def settled(attempt: int = 1, result: Any = "completed", target: str = "openai/gpt", **more: Any) -> Settlement:
    """Return what an attempt came to; one that delivered something, unless it failed."""
    provider, _, model = target.partition("/")
    known: dict[str, Any] = {"started_at_s": 1000.0, "ended_at_s": 1001.0, "is_delivered": result != "failed"}
    return Settlement(
        request_id="r1",
        attempt=attempt,
        target=Target(provider, model),
        model="chat",
        result=result,
        **{**known, **more},
    )


BEGIN: list[Event] = [START, TextDelta("Hel")]
END: list[Event] = [TextDelta("lo"), ChoiceFinished("stop"), UsageReported(Usage(3, 2))]


async def test_a_stream_is_counted_once_in_every_family_that_it_is_one_of() -> None:
    """With the times that its client had."""
    observing = Observing()
    found = await observing.run(0.5, BEGIN, 0.25, END, settled(usage=Usage(3, 2)), 0.25)
    assert found.by("outcome", "millrace_requests_total", route="chat_completions", stream="true") == {"completed": 1}
    assert found.total("millrace_requests_started_total", route="chat_completions", model="chat") == 1
    assert found.mean("millrace_request_duration_seconds", model="chat", stream="true") == 1.0
    assert found.mean("millrace_ttft_seconds", **PAIR) == 0.5
    assert found.mean("millrace_time_to_first_content_seconds", model="chat") == 0.5
    assert found.mean("millrace_tpot_seconds", **PAIR) == 0.25
    assert found.mean("millrace_stream_tokens_per_second", **PAIR) == 4.0
    assert found.mean("millrace_stream_max_gap_seconds", **PAIR) == 0.25
    assert found.by("finish_reason", "millrace_finish_reasons_total", model="chat") == {"stop": 1}
    assert found.by("objective", "millrace_slo_streams_total", met="true") == {"complete": 1, "smooth": 1, "ttft": 1}
    assert found.by("objective", "millrace_slo_streams_total", met="false") == {"tpot": 1, "all": 1}
    assert {sample.value for sample in found.samples if sample.name.endswith("_count")} <= {0, 1}
    (line,) = observing.lines
    assert (line["ttft_s"], line["tpot_s"], line["tokens_per_s"], line["max_gap_s"]) == (0.5, 0.25, 4.0, 0.25)
    assert line["slo"] == {"ttft": True, "tpot": False, "smooth": True, "complete": True, "all": False}


async def test_an_answer_that_is_wanted_whole_has_no_speed_and_no_objective() -> None:
    """Its first token comes with its last: that would be the TTFT of all others, twenty times."""
    observing = Observing()
    found = await observing.run(5.0, [*BEGIN, *END], call=observing.call(stream=False))
    assert found.by("stream", "millrace_requests_total") == {"false": 1}
    assert found.mean("millrace_request_duration_seconds", stream="false") == 5.0
    assert found.total("millrace_finish_reasons_total") == 1
    names = {sample.name for sample in found.samples}
    assert not names & {"millrace_ttft_seconds_count", "millrace_tpot_seconds_count", "millrace_slo_streams_total"}
    assert not {"slo", "tpot_s", "max_gap_s"} & observing.lines[0].keys()


async def test_hidden_reasoning_does_not_make_a_model_look_fast() -> None:
    """A hundred tokens that nobody saw were made before the first that somebody did."""
    usage = UsageReported(Usage(3, 102, reasoning_tokens=100))
    found = await Observing().run(5.0, BEGIN, 0.5, [TextDelta("lo"), ChoiceFinished("stop"), usage])
    assert found.mean("millrace_tpot_seconds") == 0.5


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (ClientGone("left"), "client_aborted"),
        (asyncio.CancelledError(DRAINED), "drained"),
        (UpstreamTimeout("slow", code="ttft_timeout"), "stalled"),
        (UpstreamTimeout("slow", code="total_timeout"), "deadline"),
        (StreamInterrupted("cut", code="stream_truncated"), "truncated"),
        (UpstreamFailed("broken"), "upstream_error"),
        (RuntimeError("ours"), "gateway_error"),
        (Unauthorized("no"), "rejected"),
    ],
)
async def test_whatever_ends_a_call_it_is_counted_once(end: BaseException, outcome: str) -> None:
    """Started is ended and active, and the lines are as many as the outcomes."""
    observing = Observing()
    found = await observing.run(BEGIN, end)
    assert found.by("outcome", "millrace_requests_total") == {outcome: 1}
    assert found.total("millrace_requests_started_total") == 1
    assert found.by("phase", "millrace_streams_active") == {}
    assert found.total("millrace_ttft_seconds_count") == 1
    assert [line["outcome"] for line in observing.lines] == [outcome]
    judged = found.total("millrace_slo_streams_total", objective="all")
    assert judged == (0 if outcome in ("client_aborted", "rejected") else 1)
    assert found.by("objective", "millrace_slo_streams_total", met="true").get("complete") is None


async def test_active_streams_are_in_the_phase_that_they_are_in() -> None:
    """Each in one, from its start to its end."""
    observing = Observing()
    seen: list[Mapping[str, float]] = []

    async def look(_: Call) -> None:
        seen.append(observing.counted.by("phase", "millrace_streams_active", model="chat"))

    async def drain(_: Call) -> None:
        observing.live.drain()

    await observing.run(
        look, [START], look, [ReasoningDelta("hm")], look, [TextDelta("a")], look, drain, look, END, look
    )
    phases = ["prefill", "prefill", "reasoning", "decode", "draining", "draining"]
    assert seen == [{phase: 1} for phase in phases]
    assert observing.counted.by("phase", "millrace_streams_active") == {}


@pytest.mark.parametrize(
    ("steps", "phase"),
    [((), "prefill"), (([START, ReasoningDelta("a")],), "reasoning"), ((BEGIN,), "decode")],
)
async def test_a_client_that_leaves_is_counted_by_how_far_its_answer_was(steps: Any, phase: str) -> None:
    """Who leaves before the first token found it too slow; nobody judges a stream by it."""
    observing = Observing()
    found = await observing.run(*steps, ClientGone("left"))
    assert found.by("phase", "millrace_client_aborts_total", route="chat_completions") == {phase: 1}
    assert found.total("millrace_slo_streams_total") == 0
    assert observing.lines[0]["client_abort_phase"] == phase


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unauthorized("no"), "unauthorized"),
        (Forbidden("no"), "forbidden"),
        (UnknownModel("no"), "unknown_model"),
        (RequestTooLarge("no"), "request_too_large"),
        (RequestTimeout("no"), "request_timeout"),
        (RateLimited("no"), "rate_limited"),
        (InvalidRequest("no", code="made_up"), "invalid_request"),
        (ClientError("no", status_code=505), "invalid_request"),
    ],
)
async def test_a_refused_call_is_counted_by_why(error: ClientError, reason: str) -> None:
    """One of a closed set; and it is none of the last streams."""
    observing = Observing()
    found = await observing.run(error, call=observing.call(stream=False))
    assert found.by("reason", "millrace_rejected_total") == {reason: 1}
    assert observing.live.shown() == {"in_flight": [], "recent": []}


# --- stalls, and clients that do not read


async def test_stalls_are_counted_by_target_phase_and_end() -> None:
    """And so is the time that was stared at them."""
    observing = Observing()
    found = await observing.run(BEGIN, 3.0, [TextDelta("a")], 1.0, [TextDelta("b")], 4.0, UpstreamFailed("gone"))
    name = "millrace_stalls_total"
    assert found.by("resolution", name, phase="decode", **PAIR) == {"recovered": 1, "gave_up": 1}
    assert found.total("millrace_stall_seconds_total", **PAIR) == 7.0
    assert found.mean("millrace_stream_max_gap_seconds") == 4.0
    (line,) = observing.lines
    assert (line["stalls"], line["stall_s"], line["slo"]["smooth"]) == (2, 7.0, False)


class SlowReader:
    """A client that does not read for so long."""

    def __init__(self, observing: Observing, pause_s: float, error: Exception | None = None) -> None:
        self._observing = observing
        self._pause_s = pause_s
        self._error = error
        self.is_committed = True
        self.is_paused = True

    async def wait(self) -> None:
        """Return when it reads again, or raise."""
        if self.is_paused:
            self._observing.now_s += self._pause_s
            self.is_paused = False
            if self._error is not None:
                raise self._error


async def test_a_client_that_does_not_read_makes_no_stall() -> None:
    """Its pause has a histogram of its own, and is in the line."""
    observing = Observing()
    flow = SlowReader(observing, 30.0)

    async def wait(call: Call) -> None:
        assert call.flow.is_paused
        await call.flow.wait()
        await call.flow.wait()

    found = await observing.run(BEGIN, wait, 0.5, END, call=observing.call(flow=flow))
    assert found.mean("millrace_client_backpressure_seconds") == 30.0
    assert found.total("millrace_client_backpressure_seconds_count") == 1
    assert found.total("millrace_stalls_total") == 0
    assert found.mean("millrace_tpot_seconds") == pytest.approx(0.5)
    assert observing.lines[0]["backpressure_s"] == 30.0


async def test_a_client_that_never_reads_again_is_counted_too() -> None:
    """The pause ended with it."""
    observing = Observing()
    left = ClientGone("left")

    async def wait(call: Call) -> None:
        await call.flow.wait()

    call = observing.call(flow=SlowReader(observing, 30.0, left))
    found = await observing.run(BEGIN, wait, left, call=call)
    assert found.mean("millrace_client_backpressure_seconds") == 30.0
    assert found.total("millrace_stalls_total") == 0


# --- failovers and seams


@pytest.mark.parametrize(
    ("end", "result"),
    [(None, "completed"), (UpstreamFailed("gone"), "failed"), (ClientGone("left"), "cancelled")],
)
async def test_failovers_are_counted_when_it_is_known_whether_they_helped(
    end: BaseException | None, result: str
) -> None:
    """By the target that failed, and by whether the client had seen anything."""
    other = StreamStarted("c1", "m", target="b/y")
    steps = [
        settled(1, "failed", error_type="reset"),
        [failed("openai/gpt", 1)],
        0.5,
        [other, TextDelta("a")],
        settled(2, "failed", "b/y", error_type="reset", is_delivered=True),
        0.5,
        [failed("b/y", 2, has_delivered=True)],
        [continued("openai/gpt", "b/y", 3), TextDelta("b")],
        [failed("b/y", 0)],
    ]
    found = await Observing().run(*steps, *([end] if end else []))
    name = "millrace_failovers_total"
    assert found.by("from_upstream", name, model="chat", phase="pre_first_token") == {"openai/gpt": 1}
    assert found.by("from_upstream", name, model="chat", phase="mid_stream") == {"b/y": 1}
    assert found.by("result", name) == {result: 2}
    assert found.by("from_upstream", "millrace_stream_resumes_total", result=result) == {"b/y": 1}
    assert found.mean("millrace_failover_lost_seconds", phase="pre_first_token") == 0.5
    assert found.mean("millrace_failover_lost_seconds", phase="mid_stream") == 0.5


async def test_a_stream_belongs_to_the_target_that_gave_its_first_token() -> None:
    """As the client was told; what it waited is all it waited."""
    observing = Observing()
    other = StreamStarted("c1", "m", target="b/y")
    found = await observing.run(0.5, [failed("openai/gpt", 1)], 0.25, [other, TextDelta("a")], 0.25, END)
    assert found.by("upstream", "millrace_ttft_seconds_count") == {"b/y": 1}
    assert found.mean("millrace_ttft_seconds") == 0.75
    assert found.by("upstream", "millrace_tpot_seconds_count") == {"b/y": 1}
    assert observing.lines[0]["failover_lost_s"] == 0.75


# --- attempts and tokens


async def test_attempts_are_counted_by_result_and_the_outer_ledger_is_told() -> None:
    """By the error, where there was one, in the words of a closed set."""
    observing = Observing()
    found = await observing.run(
        settled(1, "failed", error_type="rate_limited"),
        settled(2, "failed"),
        settled(3, "cancelled", "b/y", reason="enough"),
        settled(4, usage=Usage(3, 2)),
    )
    name = "millrace_upstream_attempts_total"
    assert found.by("error_type", name, result="failed", **PAIR) == {"rate_limited": 1, "_OTHER": 1}
    assert found.by("error_type", name, result="cancelled", upstream="b/y") == {"": 1}
    assert found.by("error_type", name, result="completed", **PAIR) == {"": 1}
    assert [one.attempt for one in observing.settled.settlements] == [1, 2, 3, 4]


async def test_a_first_token_is_told_to_the_outer_ledger() -> None:
    """Breakers and races live by it."""
    observing = Observing()

    async def note(call: Call) -> None:
        call.ledger.note_first_token(Target("openai", "gpt"), 1, 0.5)

    await observing.run(note)
    assert observing.settled.first_tokens == [("openai/gpt", 1)]


async def test_the_tokens_of_all_attempts_are_counted() -> None:
    """Each where it was used; what is a part of others has a family of its own."""
    observing = Observing()
    found = await observing.run(
        settled(1, "failed", "b/y", usage=Usage(7, 5, is_estimated=True), is_delivered=True),
        settled(2, usage=Usage(10, 20, 4, 3, 8)),
        settled(3, first_token_at_s=1000.5),
        settled(4, "failed"),
        settled(5, "cancelled", reason="client_gone"),
        BEGIN,
    )
    assert found.by("upstream", "millrace_input_tokens_total", model="chat") == {"b/y": 7, "openai/gpt": 10}
    assert found.by("upstream", "millrace_output_tokens_total", model="chat") == {"b/y": 5, "openai/gpt": 20}
    assert found.total("millrace_cache_read_input_tokens_total", **PAIR) == 4
    assert found.total("millrace_cache_write_input_tokens_total", **PAIR) == 3
    assert found.total("millrace_reasoning_output_tokens_total", **PAIR) == 8
    assert found.by("source", "millrace_usage_total") == {"counted": 1, "reported": 1, "missing": 1}


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (settled(2, "cancelled", usage=Usage(3, 9), reason=HEDGE_LOST), "hedge_loser"),
        (settled(1, "failed", usage=Usage(3, 9)), "failed_attempt"),
        (settled(1, "failed", usage=Usage(3, 9), is_delivered=True), "failed_attempt"),
        (settled(1, "cancelled", usage=Usage(3, 9), reason="client_gone"), "client_abort"),
        (settled(1, "cancelled", usage=Usage(3, 9), reason=DRAINED), None),
        (settled(1, "cancelled", usage=Usage(3, 9), reason="enough"), None),
        (settled(1, usage=Usage(3, 9)), None),
        (settled(1, "failed", usage=Usage(3, 0)), None),
    ],
)
async def test_tokens_are_wasted_that_nobody_got(attempt: Settlement, reason: str | None) -> None:
    """Of a failed attempt all, if nothing of it was handed on; of one that its client left all as well."""
    observing = Observing()
    found = await observing.run(attempt)
    assert found.by("reason", "millrace_tokens_wasted_total", **PAIR) == ({reason: 9} if reason else {})
    assert observing.lines[0].get("wasted_tokens") == (9 if reason else None)


async def test_what_a_client_has_got_of_a_failed_attempt_is_not_wasted() -> None:
    """What another one of it has repeated is: it failed before anything new came."""
    found = await Observing().run(
        BEGIN,
        settled(1, "failed", usage=Usage(3, 9), is_delivered=True),
        [failed("openai/gpt", 1, has_delivered=True)],
        settled(2, "failed", "b/y", usage=Usage(3, 4), is_delivered=True),
        UpstreamFailed("gone"),
    )
    assert found.by("upstream", "millrace_tokens_wasted_total", reason="failed_attempt") == {"b/y": 4}
    assert found.total("millrace_tokens_wasted_total") == 4


async def test_a_lost_race_does_not_hide_what_was_heard() -> None:
    """It is settled when the winner has had its first token."""
    found = await Observing().run(
        BEGIN,
        settled(1, "cancelled", "b/y", usage=Usage(3, 1), reason=HEDGE_LOST, is_delivered=False),
        settled(101, "failed", usage=Usage(3, 9), is_delivered=True),
        UpstreamFailed("gone"),
    )
    assert found.by("reason", "millrace_tokens_wasted_total") == {"hedge_loser": 1}


@pytest.mark.parametrize(("delivered", "wasted"), [(14, 0), (11, 3), (20, 0)])
async def test_what_was_generated_twice_around_a_seam_is_wasted(delivered: int, wasted: int) -> None:
    """What all attempts generated without what the client has; never less than nothing."""
    found = await Observing().run(
        BEGIN,
        settled(1, "failed", usage=Usage(3, 8), is_delivered=True),
        [failed("openai/gpt", 1, has_delivered=True)],
        [continued("b/y", "openai/gpt", 2), TextDelta("lo"), ChoiceFinished("stop")],
        [UsageReported(Usage(3, delivered, is_estimated=True))],
        settled(2, target="b/y", usage=Usage(3, 6)),
    )
    assert found.by("upstream", "millrace_tokens_wasted_total", reason="resume_overlap") == (
        {"b/y": wasted} if wasted else {}
    )


async def test_of_a_whole_answer_what_was_kept_of_a_broken_attempt_is_not_wasted() -> None:
    """Nothing is handed on until it ends; what is too much shows then."""
    observing = Observing()
    found = await observing.run(
        settled(1, "failed", usage=Usage(3, 8), is_delivered=True),
        settled(2, target="b/y", usage=Usage(3, 6)),
        [*BEGIN, TextDelta("lo"), ChoiceFinished("stop"), UsageReported(Usage(3, 14))],
        call=observing.call(stream=False),
    )
    assert found.total("millrace_tokens_wasted_total") == 0


async def test_the_rare_fields_are_in_the_line_of_a_call_that_has_them() -> None:
    """And in no other."""
    observing = Observing()
    usage = Usage(10, 20, 4, 3, 8)
    await observing.run(BEGIN, [TextDelta("lo"), ChoiceFinished("stop"), UsageReported(usage)], settled(usage=usage))
    names = ("cache_read_input_tokens", "cache_write_input_tokens", "reasoning_tokens")
    assert [observing.lines[0][name] for name in names] == [4, 3, 8]
    rare = {"wasted_tokens", "stalls", "stall_s", "failover_lost_s", "backpressure_s", "client_abort_phase"}
    assert not rare & observing.lines[0].keys()


# --- who is counted under which name


async def test_a_thousand_names_that_clients_made_up_are_one_more() -> None:
    """Otherwise whoever calls could fill the memory of all who scrape."""
    observing = Observing()

    async def ask(name: str) -> None:
        target = f"openai/{name}"
        start, usage = StreamStarted("c1", "m", target=target), settled(target=target, usage=Usage(3, 2))
        broken = [failed(target, 1), continued(target, target, 2)]
        call = structs.replace(observing.call(), route=Route(targets=(Target("openai", name),)))
        await observing.play([start, TextDelta("a")], 3.0, broken, END, usage, call=call)

    await ask("first")
    known = observing.counted.series
    for number in range(1000):
        await ask(f"m{number}")
    assert observing.counted.series == known
    assert observing.counted.by("model", "millrace_requests_total") == {"other": 1001}
    assert observing.counted.by("upstream", "millrace_ttft_seconds_count") == {"openai/other": 1001}


async def test_a_call_that_no_target_answered_is_nobodys() -> None:
    """It has a duration, and an outcome."""
    other = StreamStarted("c", "m")
    found = await Observing().run([other, TextDelta("a")], 0.5, END)
    assert found.by("upstream", "millrace_ttft_seconds_count") == {"none": 1}


# --- live streams


async def test_a_stream_in_flight_can_be_seen_and_so_can_its_end() -> None:
    """How far it is, for how long nothing has come, and nothing of what was said."""
    observing = Observing()
    seen: list[Mapping[str, Any]] = []

    async def look(_: Call) -> None:
        seen.extend(observing.live.shown()["in_flight"])

    await observing.run(1.0, look, BEGIN, 0.5, [TextDelta("secret-answer")], 2.0, look, END, settled(), 1.0)
    assert seen[0] == {
        "id": "r1",
        "endpoint": "chat_completions",
        "model": "chat",
        "target": None,
        "stream": True,
        "phase": "prefill",
        "tokens": 0,
        "tokens_per_s": None,
        "ttft_s": None,
        "idle_s": 1.0,
        "age_s": 1.0,
        "attempts": 1,
        "outcome": None,
    }
    assert seen[1] == {
        **seen[0],
        "target": "openai/gpt",
        "phase": "decode",
        "tokens": 2,
        "tokens_per_s": 2.0,
        "ttft_s": 1.0,
        "idle_s": 2.0,
        "age_s": 3.5,
    }
    shown = observing.live.shown()
    assert shown["in_flight"] == []
    (ended,) = shown["recent"]
    assert (ended["outcome"], ended["age_s"], ended["idle_s"], ended["attempts"]) == ("completed", 4.5, None, 1)
    assert "secret" not in str(shown)


async def test_of_a_long_name_only_the_beginning_is_shown() -> None:
    """Any client may ask for one of ten megabytes, fifty times."""
    observing = Observing()
    await observing.run([StreamStarted("c", "m", target="openai/" + "x" * 10_000), TextDelta("a")])
    (ended,) = observing.live.shown()["recent"]
    assert ended["target"] == ("openai/" + "x" * 10_000)[:MAX_SHOWN_CHARACTERS]


async def test_an_end_that_nobody_has_looked_at_holds_nothing_of_the_answer() -> None:
    """Neither its first piece nor a name: that of a target may be ten megabytes long."""
    observing = Observing()

    class Name(str):
        """One that can be asked whether it is still there."""

        __slots__ = ("__weakref__",)

    async def ask() -> list[weakref.ref[Name]]:
        names = [Name("openai/" + letter * 10_000) for letter in "abc"]
        slow, start = [failed(names[0], 1), StreamStarted("c", "m", target=names[1])], names[2]
        seam = [continued(start, names[1], 2), TextDelta("b")]
        await observing.play([*slow, TextDelta("a")], 5.0, [failed(names[1], 2)], seam, 5.0, [TextDelta("c")])
        return [weakref.ref(name) for name in names]

    names = await ask()
    observing.lines.clear()
    gc.collect()
    assert [name() for name in names] == [None] * 3
    (ended,) = observing.live.shown()["recent"]
    assert ended["target"] == ("openai/" + "c" * 10_000)[:MAX_SHOWN_CHARACTERS]
    assert (ended["tokens"], ended["age_s"], ended["outcome"]) == (3, 10.0, "completed")


# --- whatever happens


async def test_a_log_that_cannot_be_written_spoils_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted all the same."""
    observing = Observing()

    def refuse(*_: object, **__: object) -> None:
        raise BrokenPipeError

    methods = {"info": refuse, "warning": refuse, "is_enabled_for": lambda *_: True, "bind": lambda self: self}
    monkeypatch.setattr("middleware.observe.log", type("Log", (), methods)())
    found = await observing.run(BEGIN, END)
    assert found.total("millrace_requests_total", outcome="completed") == 1


async def test_a_line_that_the_level_leaves_out_is_not_even_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended as it should is left out from ``warning`` up; what did not is told."""
    logger = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger("warning"))
    monkeypatch.setattr("middleware.observe.log", logger)
    made: list[object] = []

    def make(*about: object) -> dict[str, object]:
        made.append(about)
        return {}

    monkeypatch.setattr("middleware.observe._Observed._line", make)
    observing = Observing()
    await observing.run(BEGIN, END)
    assert not made
    await observing.run(BEGIN, StreamInterrupted("broken"))
    assert len(made) == 1


async def test_a_name_whose_targets_have_changed_is_counted_at_the_new_ones() -> None:
    """What was bound for a model is that of its targets."""
    observing = Observing()
    await observing.run(BEGIN, END, settled())
    route = Route(name="chat", targets=(Target("c", "z"),))
    call = structs.replace(observing.call(), route=route)
    found = await observing.run(BEGIN, END, settled(target="c/z"), settled(2), call=call)
    attempts = found.by("upstream", "millrace_upstream_attempts_total")
    assert attempts == {"openai/gpt": 1, "c/z": 1, "other": 1}


async def test_without_telemetry_everything_is_logged_and_nothing_counted() -> None:
    """A chain of one's own needs none."""
    line = await observe()
    assert line["outcome"] == "completed"
    assert repr(Observe()) == repr(Observe().instrumented(Telemetry())) == "Observe()"
