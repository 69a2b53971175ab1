from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from gateway.config import build_options, parse_config
from gateway.core.call import OPENAI_CHAT, Call, Message, Route, Source, Target, TextPart
from gateway.core.collected import SHORT_ANSWER_TOKENS
from gateway.core.errors import (
    ClientGone,
    ConfigError,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import (
    AttemptFailed,
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.pipeline import Next, Send, Telemetry, compose
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from middleware.fallback import ATTEMPTS_PER_LANE, Fallback
from middleware.resume import Resume
from tests.exposition import Exposition
from tests.middleware.scripted_endpoint import ANSWER, HANG, START, Recorder, ScriptedEndpoint, Step, ignore

pytestmark = pytest.mark.usefixtures("idle_clock")

A, B, C = Target("openai", "a"), Target("anthropic", "b"), Target("llama", "c")
TEXT = "The mill stands by the river, and its wheel has turned for three hundred years."
FIRST, LAST = TEXT[:60], TEXT[60:]
BEGUN: list[Event] = [START, TextDelta(FIRST)]
FINISH: list[Event] = [ChoiceFinished("stop"), UsageReported(Usage(9, 7))]
REST: Step = [[StreamStarted("c9", "n", target="anthropic/b"), TextDelta(LAST)], FINISH]
HEDGE_AFTER_S = 0.05


class Clock:
    """A clock that stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class Heard:
    """What a client hears of a call."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Event]] = []

    def send(self, events: Sequence[Event]) -> None:
        """Take it."""
        self.batches.append(events)

    @property
    def events(self) -> list[Event]:
        """All of it."""
        return [event for batch in self.batches for event in batch]

    @property
    def text(self) -> str:
        """All text."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    def of(self, *kinds: type) -> list[Event]:
        """All events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


def cut(**more: Any) -> StreamInterrupted:
    """Return the error of a stream that broke off."""
    return StreamInterrupted("cut", **more)


def declined() -> UpstreamRefused:
    """Return the error of a target that is known not to go on with answers: it was not asked."""
    return UpstreamRefused("not here", code="continuation_unsupported", refused="continuation")


def no_stream() -> UpstreamRefused:
    """Return the error of a target that gives whole answers only."""
    return UpstreamRefused("no stream", upstream_status=400, refused="stream")


def make_call(*targets: Target, attempt: int = 1, stream: bool = True, **more: Any) -> Call:
    """Return a call whose route has these targets; more is said of the route, or of the call."""
    names = ("strategy", "weights", "on_interrupt", "hedge_after_s")
    route = Route(name="chat", targets=targets, **{name: more.pop(name) for name in names if name in more})
    turn = Message(role="user", parts=(TextPart("the secret plan"),))
    return Call(
        request_id="t",
        model="chat",
        route=route,
        attempt=attempt,
        stream=stream,
        credential="the secret key",
        messages=(turn,),
        **more,
    )


async def run(endpoint: ScriptedEndpoint, *targets: Target) -> list[Any]:
    """Return the batches that a call is answered with, without the notes of targets that failed."""
    sent: list[Any] = []
    await Fallback()(make_call(*targets), sent.append, endpoint)
    return [batch for batch in sent if not isinstance(batch[0], AttemptFailed)]


def tried(endpoint: ScriptedEndpoint) -> list[str]:
    """Return the targets that were tried, in their order."""
    return [str(call.target) for call in endpoint.calls]


def make_chain(endpoint: Next, *, max_attempts: int = 1, fallback: Fallback | None = None) -> Next:
    """Return an endpoint behind both middlewares that try again, in the order of the default chain."""
    return compose([fallback or Fallback(), Resume(max_attempts=max_attempts)], endpoint)


async def hear(call: Call, *scripts: Step, **options: Any) -> tuple[Heard, ScriptedEndpoint]:
    """Return what the client hears of a call that is answered like this, and who was asked."""
    heard, endpoint = Heard(), ScriptedEndpoint(*scripts)
    await make_chain(endpoint, **options)(call, heard.send)
    return heard, endpoint


async def fail(call: Call, *scripts: Step, **options: Any) -> tuple[GatewayError, Heard, ScriptedEndpoint]:
    """Return the error of a call that is answered like this, what was heard before, and who was asked."""
    heard, endpoint = Heard(), ScriptedEndpoint(*scripts)
    with pytest.raises(GatewayError) as raised:
        await make_chain(endpoint, **options)(call, heard.send)
    return raised.value, heard, endpoint


# --- one target after the other


async def test_a_call_goes_to_the_first_target() -> None:
    """And to no other when that one answers."""
    endpoint = ScriptedEndpoint()
    assert await run(endpoint, A, B) == list(ANSWER)
    assert tried(endpoint) == ["openai/a"]


@pytest.mark.parametrize(
    "error",
    [
        UpstreamBusy("busy"),
        UpstreamFailed("broken"),
        UpstreamUnreachable("gone"),
        UpstreamTimeout("slow"),
        StreamInterrupted("cut"),
        UpstreamRefused("no credit", error_type="auth"),
        UpstreamRefused("no quota", error_type="rate_limited", retryable=False),
        UpstreamRefused("too long", error_type="context_length"),
    ],
)
async def test_a_target_that_cannot_is_followed_by_the_next(error: UpstreamError) -> None:
    """Also when its key, its quota or its context is the reason, which another target does not share."""
    endpoint = ScriptedEndpoint([error], ANSWER)
    assert await run(endpoint, A, B, C) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]


async def test_targets_are_tried_in_their_order_until_the_last() -> None:
    """Whose error is the one that is told."""
    errors = [UpstreamFailed(word) for word in ("first", "second", "third")]
    endpoint = ScriptedEndpoint(*([error] for error in errors))
    with pytest.raises(UpstreamFailed, match="third"):
        await run(endpoint, A, B, C)
    assert tried(endpoint) == ["openai/a", "anthropic/b", "llama/c"]


async def test_a_target_that_is_listed_twice_is_tried_twice() -> None:
    """What is last is a matter of place, not of name."""
    endpoint = ScriptedEndpoint([UpstreamFailed("once")], [UpstreamFailed("twice")], ANSWER)
    assert await run(endpoint, A, B, A) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b", "openai/a"]


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("this wire has no audio"), UpstreamRefused("no such model", upstream_status=404)],
)
async def test_what_one_target_cannot_do_is_asked_of_the_next(error: GatewayError) -> None:
    """A wire that cannot express the request, or a provider without the model, says nothing of the others."""
    endpoint = ScriptedEndpoint([error], ANSWER)
    assert await run(endpoint, A, B) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]


@pytest.mark.parametrize("order", [0, 1])
async def test_that_a_wire_has_no_words_for_a_request_does_not_hide_that_another_is_down(order: int) -> None:
    """The client's request is not to blame where one target would have taken it."""
    failures: list[Step] = [[UpstreamBusy("busy")], [InvalidRequest("this wire has no audio")]]
    with pytest.raises(UpstreamBusy):
        await run(ScriptedEndpoint(failures[order], failures[1 - order]), A, B)
    with pytest.raises(InvalidRequest):
        await run(ScriptedEndpoint([InvalidRequest("none")]), A, B)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("bad request"),
        UpstreamTimeout("too late", code="total_timeout", retryable=False),
        ClientGone("left"),
    ],
)
async def test_a_request_that_is_wrong_everywhere_is_not_sent_elsewhere(error: GatewayError) -> None:
    """Nor is one that there is no time left for, or that nobody waits for."""
    endpoint = ScriptedEndpoint([error])
    with pytest.raises(type(error)) as raised:
        await run(endpoint, A, B)
    assert raised.value is error
    assert tried(endpoint) == ["openai/a"]


@pytest.mark.parametrize("sent", [[START], [TextDelta("a")]])
async def test_an_answer_that_was_delivered_in_part_is_not_begun_again(sent: list[Any]) -> None:
    """A second one from the start would be a duplicate, where nobody has a transcript to go on from."""
    endpoint = ScriptedEndpoint([sent, StreamInterrupted("cut")], ANSWER)
    with pytest.raises(StreamInterrupted):
        await run(endpoint, A, B)
    assert tried(endpoint) == ["openai/a"]


async def test_every_attempt_has_a_number_of_its_own() -> None:
    """Counted on from those that were made on the target before."""
    busy = UpstreamFailed("broken", retry_after_s=0.0)
    _, endpoint = await hear(make_call(A, B, C), [busy], [busy], [busy], [busy], ANSWER, max_attempts=2)
    assert [call.attempt for call in endpoint.calls] == [1, 2, 3, 4, 5]
    assert tried(endpoint) == ["openai/a"] * 2 + ["anthropic/b"] * 2 + ["llama/c"]


async def test_attempts_are_counted_on_from_those_before() -> None:
    """Whoever is outside may have made some."""
    _, endpoint = await hear(make_call(A, B, attempt=7), [UpstreamFailed("once")], ANSWER)
    assert [call.attempt for call in endpoint.calls] == [7, 8]


async def test_a_target_is_told_how_many_others_there_are() -> None:
    """It need not try so hard itself."""
    _, endpoint = await hear(make_call(A, B, C), [UpstreamFailed("once")], [UpstreamFailed("twice")], ANSWER)
    assert [call.other_targets for call in endpoint.calls] == [2, 1, 0]


async def test_a_call_without_targets_is_told_by_the_end_of_the_chain() -> None:
    """An unknown model, or what was wrong before it could be looked up."""
    endpoint = ScriptedEndpoint([UnknownModel("no such model")])
    with pytest.raises(UnknownModel):
        await run(endpoint)
    assert tried(endpoint) == ["None"]


async def test_a_target_that_failed_is_logged_without_a_word_of_the_call() -> None:
    """Which, and why; the last one is told by its error."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy with the secret plan", code="overloaded")], ANSWER)
    with capture_logs() as logs:
        await run(endpoint, A, B)
    assert logs == [
        {
            "event": "target.failed",
            "log_level": "warning",
            "request_id": "t",
            "target": "openai/a",
            "error_type": "overloaded",
            "code": "overloaded",
        }
    ]


async def test_a_target_that_failed_is_told_to_who_watches() -> None:
    """Once for each attempt behind which there is another, whoever makes that."""
    busy = UpstreamFailed("broken", retry_after_s=0.0)
    heard, _ = await hear(make_call(A, B), [busy], [busy], ANSWER, max_attempts=2)
    assert heard.of(AttemptFailed) == [
        AttemptFailed("openai/a", 1, "server_error", "upstream_failed"),
        AttemptFailed("openai/a", 2, "server_error", "upstream_failed"),
    ]


async def test_an_attempt_that_was_never_made_is_told_without_a_number() -> None:
    """Its wire had no words for the request."""
    heard, _ = await hear(make_call(A, B, C), [InvalidRequest("none")], [InvalidRequest("none")], ANSWER)
    assert heard.of(AttemptFailed) == [
        AttemptFailed("openai/a", 0, "bad_request", "invalid_request"),
        AttemptFailed("anthropic/b", 0, "bad_request", "invalid_request"),
    ]


async def test_what_is_sent_is_passed_on_as_it_is() -> None:
    """The same batches, not copies of them."""
    batch: list[Event] = [StreamStarted("a", "m"), TextDelta("b")]
    [sent] = await run(ScriptedEndpoint([batch]), A)
    assert sent is batch


# --- the order


async def test_the_route_does_not_change_by_being_asked() -> None:
    """Its targets are those of all calls."""
    call = make_call(A, B)
    for _ in range(2):
        _, endpoint = await hear(call, [UpstreamFailed("once")], ANSWER)
        assert tried(endpoint) == ["openai/a", "anthropic/b"]
    assert call.route.targets == (A, B)


async def test_targets_are_asked_by_their_weight() -> None:
    """One without any is the last resort."""
    call = make_call(A, B, strategy="weighted", weights=(0.0, 1.0))
    _, endpoint = await hear(call, [UpstreamFailed("once")], ANSWER)
    assert tried(endpoint) == ["anthropic/b", "openai/a"]


async def test_targets_are_asked_by_what_is_known_of_them() -> None:
    """The faster one first, as long as its breaker lets requests through."""
    fallback = Fallback(_clock=Clock(), breaker_failures=1)
    call = make_call(A, B, strategy="fastest")
    fallback.note_first_token(call.route, str(A), 2.0)
    fallback.note_first_token(call.route, str(B), 0.2)
    for _ in range(10):
        _, endpoint = await hear(call, ANSWER, fallback=fallback)
        assert tried(endpoint) == ["anthropic/b"]
    fallback._board.of(str(B)).breaker.note_failure(1000.0)
    _, endpoint = await hear(call, ANSWER, fallback=fallback)
    assert tried(endpoint) == ["openai/a"]


# --- what breakers let through


async def end_with(fallback: Fallback, clock: Clock, *scripts: Step, call: Call | None = None) -> ScriptedEndpoint:
    """Return who was asked for a call that is answered like this."""
    endpoint = ScriptedEndpoint(*scripts, clock=clock)
    with suppress(GatewayError):
        await fallback(call or make_call(A, B), ignore, endpoint)
    return endpoint


@pytest.fixture
def clock() -> Clock:
    """The clock of breakers and budgets."""
    return Clock()


@pytest.fixture
async def opened(clock: Clock) -> Fallback:
    """A fallback at which the breaker of A has just opened."""
    fallback = Fallback(breaker_failures=2, breaker_open_s=10.0, _clock=clock)
    for _ in range(2):
        await end_with(fallback, clock, [UpstreamFailed("broken")], ANSWER)
    clock.now_s += 1
    return fallback


async def test_a_target_that_fails_again_and_again_is_passed_over(opened: Fallback, clock: Clock) -> None:
    """Nobody waits for an error that is known."""
    assert tried(await end_with(opened, clock)) == ["anthropic/b"]


async def test_a_target_that_is_passed_over_is_no_other_target(opened: Fallback, clock: Clock) -> None:
    """So that the one that is asked tries harder."""
    endpoint = await end_with(opened, clock, call=make_call(B, A, C))
    assert endpoint.calls[0].other_targets == 1
    endpoint = await end_with(opened, clock, call=make_call(B, A))
    assert endpoint.calls[0].other_targets == 0


async def test_when_the_time_has_come_one_call_tries_it(opened: Fallback, clock: Clock) -> None:
    """Others go elsewhere until it is known how that went; then it is as any other."""
    clock.now_s += 10
    first = ScriptedEndpoint([[START, TextDelta("a")], 0.01, FINISH], clock=clock)
    probe = asyncio.ensure_future(opened(make_call(A, B), ignore, ScriptedEndpoint([0.01, *ANSWER], clock=clock)))
    await asyncio.sleep(0)
    assert tried(await end_with(opened, clock)) == ["anthropic/b"]
    await probe
    await opened(make_call(A, B), ignore, first)
    assert tried(first) == ["openai/a"]


async def test_a_probe_that_fails_closes_the_door_for_longer(opened: Fallback, clock: Clock) -> None:
    """And its call goes on to the next target."""
    clock.now_s += 10
    assert tried(await end_with(opened, clock, [UpstreamFailed("still")], ANSWER)) == ["openai/a", "anthropic/b"]
    clock.now_s += 15
    assert tried(await end_with(opened, clock)) == ["anthropic/b"]
    clock.now_s += 6
    assert tried(await end_with(opened, clock)) == ["openai/a"]


@pytest.mark.parametrize("error", [InvalidRequest("no words"), declined()])
async def test_a_probe_that_asked_nothing_leaves_the_door_to_the_next(
    opened: Fallback, clock: Clock, error: GatewayError
) -> None:
    """Nothing was learned of the target."""
    clock.now_s += 10
    assert tried(await end_with(opened, clock, [error], ANSWER)) == ["openai/a", "anthropic/b"]
    assert tried(await end_with(opened, clock)) == ["openai/a"]


async def test_a_probe_is_given_back_while_its_call_goes_on_elsewhere(opened: Fallback, clock: Clock) -> None:
    """That may take minutes."""
    clock.now_s += 10
    endpoint = ScriptedEndpoint([InvalidRequest("no words")], [HANG], clock=clock)
    work = asyncio.ensure_future(opened(make_call(A, B), ignore, endpoint))
    await asyncio.sleep(0.01)
    assert tried(await end_with(opened, clock)) == ["openai/a"]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("lag_s", [0.0, 0.5])
async def test_a_probe_whose_client_leaves_is_given_back(opened: Fallback, clock: Clock, lag_s: float) -> None:
    """Also where the loop's clock is behind, as uvloop's is by up to a turn of the loop."""
    clock.now_s += 10
    endpoint = ScriptedEndpoint([HANG], clock=lambda: clock.now_s - lag_s)
    work = asyncio.ensure_future(opened(make_call(A, B), ignore, endpoint))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert tried(await end_with(opened, clock)) == ["openai/a"]


async def test_an_answer_that_nobody_accounts_for_gives_its_probe_back_too(opened: Fallback, clock: Clock) -> None:
    """Something on the way has answered out of its own head."""
    clock.now_s += 10
    endpoint = ScriptedEndpoint(ANSWER, clock=clock, silent=True)
    await opened(make_call(A, B), ignore, endpoint)
    assert tried(await end_with(opened, clock)) == ["openai/a"]


async def test_the_last_hope_is_asked_even_so(opened: Fallback, clock: Clock) -> None:
    """A client would rather have the error itself than hear that nobody was asked."""
    assert tried(await end_with(opened, clock, call=make_call(A))) == ["openai/a"]
    for _ in range(2):
        await end_with(opened, clock, [UpstreamFailed("broken")], call=make_call(B))
    assert tried(await end_with(opened, clock, [UpstreamFailed("broken")])) == ["openai/a"]


async def test_a_target_that_is_passed_over_is_none_to_move_on_to(opened: Fallback, clock: Clock) -> None:
    """Where it is the only one left the error is told, and nobody hears of another attempt."""
    heard = Heard()
    endpoint = ScriptedEndpoint([UpstreamFailed("broken")], clock=clock)
    with pytest.raises(UpstreamFailed):
        await opened(make_call(B, A), heard.send, endpoint)
    assert tried(endpoint) == ["anthropic/b"]
    assert heard.events == []


async def test_what_a_client_did_wrong_opens_nothing(clock: Clock) -> None:
    """Nor does one who leaves."""
    fallback = Fallback(breaker_failures=1, _clock=clock)
    for error in (UpstreamRefused("bad", upstream_status=400), ClientGone("left"), InvalidRequest("no words")):
        await end_with(fallback, clock, [error], call=make_call(A))
    assert tried(await end_with(fallback, clock)) == ["openai/a"]


async def test_attempts_that_are_made_again_at_one_target_count_each(clock: Clock) -> None:
    """The breaker learns from the attempts, not from the calls."""
    fallback = Fallback(breaker_failures=3, _clock=clock)
    endpoint = ScriptedEndpoint([UpstreamFailed("broken", retry_after_s=0.0)], clock=clock)
    with pytest.raises(UpstreamFailed):
        await make_chain(endpoint, max_attempts=3, fallback=fallback)(make_call(A), ignore)
    clock.now_s += 1
    assert tried(await end_with(fallback, clock)) == ["anthropic/b"]


# --- the ledger


async def test_the_ledger_outside_is_told_of_every_attempt() -> None:
    """Each once, of the first token and of the end."""
    ledger = Recorder()
    await hear(make_call(A, B, ledger=ledger), [UpstreamFailed("broken")], ANSWER)
    assert ledger.first_tokens == [("anthropic/b", 2)]
    assert ledger.ends == [("openai/a", 1, "failed", ""), ("anthropic/b", 2, "completed", "")]


# --- going on with an answer elsewhere


async def test_an_answer_that_broke_off_is_gone_on_with_by_the_next_target() -> None:
    """One start, one seam, one finish; its attempts are counted on."""
    heard, endpoint = await hear(make_call(A, B), [BEGUN, cut()], REST)
    assert heard.text == TEXT
    assert heard.of(StreamStarted) == [START]
    assert heard.of(StreamContinued) == [StreamContinued("anthropic/b", "openai/gpt", "exact", 2, len(FIRST))]
    assert heard.of(AttemptFailed) == [AttemptFailed("openai/a", 1, "reset", "stream_interrupted", has_delivered=True)]
    assert [call.attempt for call in endpoint.calls] == [1, 2]


async def test_the_usage_is_that_of_one_answer() -> None:
    """Its prompt as the first target told it, and what all of them delivered."""
    begun: list[Event] = [START, UsageReported(Usage(12, 1, 5)), TextDelta(FIRST[:5]), TextDelta(FIRST[5:8])]
    heard, _ = await hear(make_call(A, B), [begun, cut()], [[TextDelta("x")], FINISH])
    assert heard.of(UsageReported)[-1] == UsageReported(Usage(12, 2 + 7, 5, is_estimated=True))


def make_poor(clock: Clock, floor_per_s: float) -> Fallback:
    """Return a fallback with a budget of ten times this, and no more."""
    return Fallback(retry_percent=0.0, retry_floor_per_s=floor_per_s, _clock=clock)


async def test_to_go_on_elsewhere_costs_a_resume_and_to_begin_elsewhere_nothing(clock: Clock) -> None:
    """Out of the budget of the target that broke."""
    error = cut()
    raised, _, endpoint = await fail(make_call(A, B), [BEGUN, error], REST, fallback=make_poor(clock, 0.1))
    assert raised is error
    assert tried(endpoint) == ["openai/a"]
    await hear(make_call(A, B), [BEGUN, cut()], REST, fallback=make_poor(clock, 0.2))
    await hear(make_call(A, B), [UpstreamFailed("no")], ANSWER, fallback=make_poor(clock, 0.0))


async def test_the_budget_is_a_share_of_the_requests_of_a_target(clock: Clock) -> None:
    """Also of those that went well."""
    fallback = Fallback(retry_percent=50.0, retry_floor_per_s=0.0, _clock=clock)
    for _ in range(2):
        await fallback(make_call(A), ignore, ScriptedEndpoint(clock=clock))
    await fail(make_call(A, B), [BEGUN, cut()], REST, fallback=fallback)
    await hear(make_call(A, B), [BEGUN, cut()], REST, fallback=fallback)


async def test_retries_and_moves_share_one_budget(clock: Clock) -> None:
    """It travels with the call."""
    fallback = make_poor(clock, 0.2)
    again = UpstreamFailed("broken", retry_after_s=0.0)
    _, _, endpoint = await fail(make_call(A, B), [again], [BEGUN, cut()], REST, fallback=fallback, max_attempts=3)
    assert tried(endpoint) == ["openai/a", "openai/a"]


async def test_what_the_route_does_not_go_on_with_is_not_moved() -> None:
    """Its error is told."""
    error, heard, endpoint = await fail(make_call(A, B, on_interrupt="restart"), [BEGUN, cut()], REST)
    assert isinstance(error, StreamInterrupted)
    assert (heard.text, tried(endpoint)) == (FIRST, ["openai/a"])


async def test_a_target_that_does_not_go_on_is_followed_by_one_that_does() -> None:
    """For nothing: there was no attempt."""
    fallback = make_poor(Clock(), 0.2)
    heard, endpoint = await hear(
        make_call(A, B, C), [BEGUN, cut()], [declined()], [declined()], REST, fallback=fallback
    )
    assert heard.text == TEXT
    assert tried(endpoint) == ["openai/a", "anthropic/b", "anthropic/b", "llama/c"]
    assert heard.of(AttemptFailed)[1:] == [
        AttemptFailed("anthropic/b", 0, "bad_request", "continuation_unsupported", has_delivered=True)
    ]


async def test_where_nobody_goes_on_the_error_is_that_of_what_broke() -> None:
    """That others do not know how to mend it helps nobody."""
    error = cut()
    raised, heard, _ = await fail(make_call(A, B), [BEGUN, error], [declined()])
    assert raised is error
    assert heard.text == FIRST


async def test_an_attempt_that_has_failed_is_told_once() -> None:
    """Also when its own target has declined to go on, so that its error comes out of a later attempt."""
    heard, endpoint = await hear(
        make_call(A, B), [BEGUN, cut(retry_after_s=0.0)], [declined()], [declined()], REST, max_attempts=3
    )
    assert heard.text == TEXT
    assert tried(endpoint) == ["openai/a"] * 3 + ["anthropic/b"]
    assert heard.of(AttemptFailed) == [AttemptFailed("openai/a", 1, "reset", "stream_interrupted", has_delivered=True)]


async def test_an_attempt_that_was_refused_keeps_its_number() -> None:
    """Though the error that is told is that of one before it."""
    ledger = Recorder()
    asked = UpstreamRefused("no prefill", upstream_status=400, refused="continuation")
    begun: Step = [BEGUN, cut(retry_after_s=0.0)]
    call = make_call(A, B, ledger=ledger)
    heard, _ = await hear(call, begun, [asked], [declined()], REST, max_attempts=3)
    assert heard.text == TEXT
    assert [one.attempt for one in ledger.settlements] == [1, 2, 4]


async def test_words_that_are_not_found_again_are_looked_for_at_the_next_target() -> None:
    """It is no better an answer for that, but it may be a more obedient model."""
    other: Step = [[START, TextDelta("Once upon a time there was a mill. " * 20)]]
    heard, endpoint = await hear(make_call(A, B, C), [BEGUN, cut()], [declined()], other, REST)
    assert heard.text == TEXT
    assert tried(endpoint) == ["openai/a", "anthropic/b", "anthropic/b", "llama/c"]


async def test_a_wire_without_words_for_the_continuation_is_passed_over() -> None:
    """It must not begin the answer anew, nor call the client's request wrong."""
    heard, _ = await hear(make_call(A, B, C), [BEGUN, cut()], [InvalidRequest("no")], [InvalidRequest("no")], REST)
    assert heard.text == TEXT
    error, heard, _ = await fail(make_call(A, B), [BEGUN, cut()], [InvalidRequest("no")])
    assert (type(error), heard.text) == (StreamInterrupted, FIRST)


async def test_an_answer_may_wander() -> None:
    """As long as there are targets."""
    heard, endpoint = await hear(
        make_call(A, B, C),
        [BEGUN, cut()],
        [[StreamStarted("x", "y", target="anthropic/b"), TextDelta(LAST[:5])], cut()],
        [[TextDelta(LAST[5:])], FINISH],
    )
    assert heard.text == TEXT
    assert [event.from_target for event in heard.events if isinstance(event, StreamContinued)] == [
        "openai/gpt",
        "anthropic/b",
    ]
    assert [call.attempt for call in endpoint.calls] == [1, 2, 3]


# --- whole answers, and targets that do not stream


async def test_a_target_that_does_not_stream_is_asked_for_the_whole_answer() -> None:
    """In an attempt of its own."""
    heard, endpoint = await hear(make_call(A, B), [no_stream()], ANSWER)
    assert heard.text == "Hello"
    assert tried(endpoint) == ["openai/a", "openai/a"]
    assert [(call.stream, call.attempt) for call in endpoint.calls] == [(True, 1), (False, 2)]


async def test_a_target_that_gives_no_whole_answer_either_has_failed() -> None:
    """The next is asked for a stream again."""
    _, endpoint = await hear(make_call(A, B), [no_stream()], [UpstreamFailed("broken")], ANSWER)
    assert [(str(call.target), call.stream, call.attempt) for call in endpoint.calls] == [
        ("openai/a", True, 1),
        ("openai/a", False, 2),
        ("anthropic/b", True, 3),
    ]


async def test_a_refusal_of_what_was_not_asked_for_is_an_error() -> None:
    """It is not asked for again."""
    call = make_call(A, stream=False, on_interrupt="error")
    _, _, endpoint = await fail(call, [no_stream()])
    assert [call.stream for call in endpoint.calls] == [False]


async def test_a_whole_answer_is_asked_for_as_a_stream() -> None:
    """Its events come once, at the end, as they came."""
    heard = Heard()
    endpoint = ScriptedEndpoint([*ANSWER, 0.01])
    work = asyncio.ensure_future(make_chain(endpoint)(make_call(A, B, stream=False), heard.send))
    await asyncio.sleep(0.005)
    assert heard.events == []
    await work
    assert all(got is wanted for got, wanted in zip(heard.batches, ANSWER, strict=True))
    assert endpoint.calls[0].stream


async def test_what_is_only_told_to_who_watches_is_told_at_once() -> None:
    """A log need not wait for the answer."""
    heard = Heard()
    endpoint = ScriptedEndpoint([UpstreamFailed("broken")], [*ANSWER, HANG])
    work = asyncio.ensure_future(make_chain(endpoint)(make_call(A, B, stream=False), heard.send))
    await asyncio.sleep(0.01)
    assert [type(event) for event in heard.events] == [AttemptFailed]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_whole_answer_that_broke_off_is_continued() -> None:
    """It is paid for like any other, and not made anew."""
    heard, endpoint = await hear(make_call(A, B, stream=False), [BEGUN, cut()], REST)
    assert heard.text == TEXT
    assert [call.attempt for call in endpoint.calls] == [1, 2]


@pytest.mark.parametrize(
    ("broken", "asked"),
    [
        ([[BEGUN, cut()], [declined()], [declined()]], "anthropic/b"),
        ([[[START, RefusalDelta("I can")], cut()]], "anthropic/b"),
        ([[BEGUN, cut()], [[TextDelta("a")], cut()]], "openai/a"),
    ],
    ids=["nobody goes on", "nobody could", "too often"],
)
async def test_a_whole_answer_that_cannot_be_continued_is_asked_for_once_more(broken: list[Step], asked: str) -> None:
    """Nobody has seen any of it: by all targets, the one that broke off last, in attempts with numbers of their own."""
    heard, endpoint = await hear(make_call(A, B, stream=False), *broken, ANSWER)
    assert heard.text == "Hello"
    assert heard.of(StreamStarted) == [START]
    assert heard.of(StreamContinued) == []
    assert tried(endpoint)[-1] == asked
    numbers = [call.attempt for call in endpoint.calls]
    assert numbers[-1] > max(numbers[:-1])
    assert isinstance(heard.events[0], AttemptFailed)


async def test_a_whole_answer_is_not_asked_for_a_third_time() -> None:
    """Whatever happens to the second."""
    call = make_call(A, stream=False)
    error, heard, endpoint = await fail(call, [BEGUN, cut()])
    assert (type(error), len(endpoint.calls)) == (StreamInterrupted, 2)
    assert heard.of(AttemptFailed) == heard.events


async def test_a_whole_answer_is_asked_for_once_more_only_if_there_is_money_and_sense() -> None:
    """The price is a resume's; time that has run out, or a word that is final, is no reason."""
    poor = make_poor(Clock(), 0.1)
    _, _, endpoint = await fail(make_call(A, stream=False), [BEGUN, cut()], fallback=poor)
    assert len(endpoint.calls) == 1
    for error in (cut(code="total_timeout", retryable=False), cut(error_type="content_filter", retryable=False)):
        _, heard, endpoint = await fail(make_call(A, stream=False), [BEGUN, error])
        assert (len(endpoint.calls), heard.events) == (1, [])
    _, _, endpoint = await fail(make_call(A, stream=False), [UpstreamFailed("broken")])
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"on_interrupt": "restart"},
        {"on_interrupt": "error"},
        {"source": Source(OPENAI_CHAT, {"modalities": ["text", "audio"]})},
    ],
    ids=["restart", "error", "audio"],
)
async def test_what_is_not_to_be_continued_is_asked_for_as_the_client_did(more: dict[str, Any]) -> None:
    """Audio does not come in a stream of events that we know."""
    heard, endpoint = await hear(make_call(A, stream=False, **more), ANSWER)
    assert not endpoint.calls[0].stream
    assert heard.text == "Hello"


@pytest.mark.parametrize(
    ("limit_tokens", "stream"),
    [(None, True), (SHORT_ANSWER_TOKENS + 1, True), (SHORT_ANSWER_TOKENS, False), (1, False)],
)
async def test_a_whole_answer_that_cannot_be_long_is_asked_for_as_it_is_wanted(
    limit_tokens: int | None,
    stream: bool,  # noqa: FBT001
) -> None:
    """It is one document, and made once more if it breaks off."""
    heard, endpoint = await hear(make_call(A, B, stream=False, max_output_tokens=limit_tokens), [cut()], ANSWER)
    assert [call.stream for call in endpoint.calls] == [stream, stream]
    assert heard.text == "Hello"


async def test_a_whole_answer_from_a_target_that_does_not_stream() -> None:
    """It comes as it was asked for."""
    heard, endpoint = await hear(make_call(A, stream=False), [no_stream()], [[START, TextDelta("a"), *FINISH]])
    assert [call.stream for call in endpoint.calls] == [True, False]
    assert heard.text == "a"


# --- hedging


def make_hedged(*targets: Target, **more: Any) -> Call:
    """Return a call whose second target is raced against a slow first."""
    return make_call(*targets, hedge_after_s=HEDGE_AFTER_S, **more)


def generous(**more: Any) -> Fallback:
    """Return a fallback that may hedge every call."""
    return Fallback(hedge_percent=100.0, **more)


async def test_a_first_token_in_time_needs_no_second_target() -> None:
    """However long the rest takes."""
    heard, endpoint = await hear(
        make_hedged(A, B), [[START, TextDelta("a")], 2 * HEDGE_AFTER_S, FINISH], fallback=generous()
    )
    assert (heard.text, tried(endpoint)) == ("a", ["openai/a"])


async def test_a_second_target_is_asked_when_the_first_is_slow() -> None:
    """Not earlier; the first token has the client, and the other attempt is let go at once."""
    ledger = Recorder()
    begun_at_s = time.monotonic()
    heard, endpoint = await hear(make_hedged(A, B, ledger=ledger), [HANG], ANSWER, fallback=generous())
    assert time.monotonic() - begun_at_s >= HEDGE_AFTER_S
    assert heard.batches == list(ANSWER)
    assert endpoint.cancelled_count == 1
    assert sorted(ledger.ends) == [
        ("anthropic/b", 1 + ATTEMPTS_PER_LANE, "completed", ""),
        ("openai/a", 1, "cancelled", "hedge_lost"),
    ]
    assert ledger.first_tokens == [("anthropic/b", 1 + ATTEMPTS_PER_LANE)]
    assert [call.other_targets for call in endpoint.calls] == [1, 0]


async def test_a_first_target_that_is_faster_after_all_has_the_client() -> None:
    """The second is let go."""
    ledger = Recorder()
    heard, endpoint = await hear(
        make_hedged(A, B, ledger=ledger), [2 * HEDGE_AFTER_S, *ANSWER], [HANG], fallback=generous()
    )
    assert heard.batches == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]
    assert min(ledger.ends) == ("anthropic/b", 1 + ATTEMPTS_PER_LANE, "cancelled", "hedge_lost")


async def test_a_held_call_is_a_first_token_too() -> None:
    """The client does not see it yet, but the target is at work."""
    call: list[Event] = [START, ToolCallStarted(0, "i", "f")]
    _, endpoint = await hear(
        make_hedged(A, B), [call, 2 * HEDGE_AFTER_S, [ChoiceFinished("tool_calls")]], fallback=generous()
    )
    assert tried(endpoint) == ["openai/a"]


async def test_whoever_begins_has_the_client() -> None:
    """Though it has only said its name: there is one start."""
    heard, endpoint = await hear(make_hedged(A, B), [[START], 2 * HEDGE_AFTER_S, *ANSWER[1:]], fallback=generous())
    assert tried(endpoint) == ["openai/a"]
    assert heard.text == "lo"


async def test_that_an_attempt_has_failed_decides_nothing() -> None:
    """Both lanes may tell that."""
    failed = UpstreamFailed("broken", retry_after_s=0.0)
    heard, _ = await hear(make_hedged(A, B), [failed], [HANG], [failed], ANSWER, fallback=generous(), max_attempts=2)
    assert heard.of(AttemptFailed) == [
        AttemptFailed("openai/a", 1, "server_error", "upstream_failed"),
        AttemptFailed("anthropic/b", 101, "server_error", "upstream_failed"),
    ]
    assert heard.text == "Hello"


@pytest.mark.parametrize("silent", [False, True])
async def test_only_one_of_two_has_the_client(silent: bool) -> None:  # noqa: FBT001
    """Also when both begin at the same moment, or nobody tells the ledger of a first token."""
    heard = Heard()
    endpoint = ScriptedEndpoint(
        [2 * HEDGE_AFTER_S, [START, TextDelta("a")], 0.02, [TextDelta("a")], FINISH],
        [HEDGE_AFTER_S, [START, TextDelta("b")], 0.02, [TextDelta("b")], FINISH],
        silent=silent,
    )
    await make_chain(endpoint, fallback=generous())(make_hedged(A, B), heard.send)
    assert heard.text in ("aa", "bb")
    assert len(heard.of(ChoiceFinished)) == len(heard.of(StreamStarted)) == 1


async def test_what_the_loser_still_says_is_dropped() -> None:
    """It may be in the middle of a read when it is let go."""
    heard = Heard()

    async def endpoint(call: Call, send: Send) -> None:
        if call.target == A:
            try:
                await asyncio.Event().wait()
            finally:
                send([START, TextDelta("too late")])
        else:
            send([START, TextDelta("in time")])

    await generous()(make_hedged(A, B), heard.send, endpoint)
    assert heard.text == "in time"


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_first_token_that_comes_too_late_decides_nothing(is_cancelled: bool) -> None:  # noqa: FBT001
    """Neither behind another's, nor when the call is over."""
    heard = Heard()

    async def endpoint(call: Call, send: Send) -> None:
        if call.target == A or is_cancelled:
            try:
                await asyncio.Event().wait()
            finally:
                call.ledger.note_first_token(A, call.attempt, 1.0)
        else:
            send([START, TextDelta("in ")])
            await asyncio.sleep(0.01)
            send([TextDelta("time")])

    work = asyncio.ensure_future(generous()(make_hedged(A, B), heard.send, endpoint))
    await asyncio.sleep(HEDGE_AFTER_S / 2)
    if is_cancelled:
        work.cancel("drained")
        with pytest.raises(asyncio.CancelledError, match="drained"):
            await work
    else:
        await work
        assert heard.text == "in time"


async def test_a_loser_is_told_once_to_go() -> None:
    """It may need a moment to let go of its provider, and the call ends when it has."""
    has_let_go = False

    async def endpoint(call: Call, send: Send) -> None:
        nonlocal has_let_go
        if call.target == A:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.02)
                has_let_go = True
        else:
            send([START, TextDelta("a")])
            await asyncio.sleep(0.01)

    await generous()(make_hedged(A, B), ignore, endpoint)
    assert has_let_go


async def test_a_first_target_that_fails_before_the_time_is_followed_by_the_next() -> None:
    """There is nothing to race against."""
    heard, endpoint = await hear(make_hedged(A, B), [UpstreamFailed("broken")], ANSWER, fallback=generous())
    assert heard.text == "Hello"
    assert [(str(call.target), call.attempt) for call in endpoint.calls] == [("openai/a", 1), ("anthropic/b", 2)]


async def test_a_first_target_that_fails_during_the_race_leaves_it_to_the_second() -> None:
    """Its error is nobody's concern."""
    heard, _ = await hear(
        make_hedged(A, B),
        [2 * HEDGE_AFTER_S, UpstreamFailed("broken")],
        [4 * HEDGE_AFTER_S, *ANSWER],
        fallback=generous(),
    )
    assert heard.text == "Hello"


async def test_a_second_target_that_fails_leaves_it_to_the_first() -> None:
    """As if it had not been asked."""
    heard, endpoint = await hear(
        make_hedged(A, B), [4 * HEDGE_AFTER_S, *ANSWER], [UpstreamFailed("broken")], fallback=generous()
    )
    assert heard.text == "Hello"
    assert len(endpoint.calls) == 2


async def test_where_both_fail_the_next_target_is_asked_and_the_firsts_error_is_told() -> None:
    """Whichever failed first; no number is given twice, however many attempts the second has made."""
    ledger = Recorder()
    failed = UpstreamFailed("broken", retry_after_s=0.0)
    error, _, endpoint = await fail(
        make_hedged(A, B, C, ledger=ledger),
        [4 * HEDGE_AFTER_S, UpstreamRefused("no credit", error_type="auth")],
        [failed],
        [failed],
        [failed],
        [UpstreamRefused("neither here", error_type="auth")],
        fallback=generous(),
        max_attempts=3,
    )
    assert error.message == "neither here"
    assert tried(endpoint) == ["openai/a", *["anthropic/b"] * 3, "llama/c"]
    numbers = [one.attempt for one in ledger.settlements]
    assert len(numbers) == len(set(numbers)) == 5
    error, _, _ = await fail(
        make_hedged(A, B),
        [4 * HEDGE_AFTER_S, UpstreamRefused("first", error_type="auth")],
        [UpstreamRefused("second", error_type="auth")],
        fallback=generous(),
    )
    assert error.message == "first"


async def test_each_race_of_a_call_has_numbers_of_its_own() -> None:
    """The first one's second target may have made more attempts than its first."""
    ledger = Recorder()
    failed = UpstreamFailed("broken", retry_after_s=0.0)
    slow: Step = [4 * HEDGE_AFTER_S, UpstreamRefused("no credit", error_type="auth")]
    await fail(
        make_hedged(A, B, A, B, ledger=ledger),
        *(slow, [failed], [failed], [failed]),
        *(slow, [failed], [failed], [failed]),
        fallback=generous(breaker_failures=1000),
        max_attempts=3,
    )
    numbers = [one.attempt for one in ledger.settlements]
    assert len(numbers) == len(set(numbers)) == 8


async def test_a_winner_that_breaks_off_is_followed_by_who_was_only_slower() -> None:
    """It has failed at nothing, and goes on with the answer; the winner is the one that has failed."""
    heard, endpoint = await hear(make_hedged(A, B), [HANG], [BEGUN, cut()], REST, fallback=generous())
    assert heard.text == TEXT
    assert tried(endpoint) == ["openai/a", "anthropic/b", "openai/a"]
    assert heard.of(AttemptFailed) == [
        AttemptFailed("anthropic/b", 101, "reset", "stream_interrupted", has_delivered=True)
    ]
    assert endpoint.calls[-1].attempt == 102


async def test_a_winner_that_is_final_ends_the_call() -> None:
    """Though the other might have had more to say."""
    heard, endpoint = Heard(), ScriptedEndpoint([HANG], [BEGUN, cut(retryable=False)])
    with pytest.raises(StreamInterrupted):
        await make_chain(endpoint, fallback=generous())(make_hedged(A, B), heard.send)
    assert (heard.text, len(endpoint.calls)) == (FIRST, 2)


async def test_a_fault_of_ours_or_a_client_who_has_left_ends_the_race() -> None:
    """No other target can mend it."""
    for error in (ClientGone("left"), RuntimeError("a fault")):
        endpoint = ScriptedEndpoint([2 * HEDGE_AFTER_S, error], [HANG])
        with pytest.raises(type(error)) as raised:
            await generous()(make_hedged(A, B), ignore, endpoint)
        assert raised.value is error
        assert endpoint.cancelled_count == 1


@pytest.mark.parametrize("wait_s", [HEDGE_AFTER_S / 2, 2 * HEDGE_AFTER_S])
@pytest.mark.parametrize("words", [("drained",), ()])
async def test_the_word_for_what_cancelled_a_call_reaches_both(wait_s: float, words: tuple[str, ...]) -> None:
    """Before the second was asked, and while they race."""
    ledger = Recorder()
    endpoint = ScriptedEndpoint([HANG])
    work = asyncio.ensure_future(make_chain(endpoint, fallback=generous())(make_hedged(A, B, ledger=ledger), ignore))
    await asyncio.sleep(wait_s)
    work.cancel(*words)
    with pytest.raises(asyncio.CancelledError) as raised:
        await work
    assert raised.value.args == words
    assert len(ledger.ends) == (1 if wait_s < HEDGE_AFTER_S else 2)
    assert {reason for *_, reason in ledger.ends} == {words[0] if words else "client_gone"}


async def test_a_call_that_is_cancelled_behind_the_race_lets_the_winner_go() -> None:
    """By the same word."""
    ledger = Recorder()
    endpoint = ScriptedEndpoint([HANG], [BEGUN, HANG])
    work = asyncio.ensure_future(make_chain(endpoint, fallback=generous())(make_hedged(A, B, ledger=ledger), ignore))
    await asyncio.sleep(3 * HEDGE_AFTER_S)
    work.cancel("drained")
    with pytest.raises(asyncio.CancelledError, match="drained"):
        await work
    assert sorted(ledger.ends) == [
        ("anthropic/b", 101, "cancelled", "drained"),
        ("openai/a", 1, "cancelled", "hedge_lost"),
    ]


async def test_only_a_share_of_the_calls_is_hedged(clock: Clock) -> None:
    """Two in a hundred, as it comes: the others wait."""
    fallback = Fallback(_clock=clock)
    call = make_hedged(A, B)
    for _ in range(49):
        await fallback(call, ignore, ScriptedEndpoint())
    _, endpoint = await hear(call, [2 * HEDGE_AFTER_S, *ANSWER], ANSWER, fallback=fallback)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]
    _, endpoint = await hear(call, [2 * HEDGE_AFTER_S, *ANSWER], ANSWER, fallback=fallback)
    assert tried(endpoint) == ["openai/a"]


async def test_a_hedge_is_paid_for_like_a_retry() -> None:
    """A provider in trouble does not get the double."""
    poor = generous(retry_percent=0.0, retry_floor_per_s=0.0, _clock=Clock())
    _, endpoint = await hear(make_hedged(A, B), [2 * HEDGE_AFTER_S, *ANSWER], ANSWER, fallback=poor)
    assert tried(endpoint) == ["openai/a"]
    poor = generous(retry_percent=0.0, retry_floor_per_s=0.1, _clock=Clock())
    for expected in (2, 1):
        _, endpoint = await hear(make_hedged(A, B), [2 * HEDGE_AFTER_S, *ANSWER], ANSWER, fallback=poor)
        assert len(endpoint.calls) == expected


async def test_where_there_is_nobody_to_race_nothing_is_paid(clock: Clock) -> None:
    """One target alone, one whose only other is down, or has gone down meanwhile."""
    fallback = Fallback(breaker_failures=1, hedge_percent=100.0, _clock=clock)
    await end_with(fallback, clock, [UpstreamFailed("broken")], call=make_call(B))
    clock.now_s += 1
    slow: Step = [2 * HEDGE_AFTER_S, *ANSWER]
    for targets in ((A,), (A, B)):
        _, endpoint = await hear(make_hedged(*targets), slow, fallback=fallback)
        assert tried(endpoint) == ["openai/a"]
    assert not fallback._hedges.take(1.0, clock.now_s)
    work = asyncio.ensure_future(hear(make_hedged(A, C), slow, fallback=fallback))
    await asyncio.sleep(HEDGE_AFTER_S / 4)
    await end_with(fallback, clock, [UpstreamFailed("broken")], call=make_call(C))
    _, endpoint = await work
    assert tried(endpoint) == ["openai/a"]
    assert fallback._hedges.take(1.0, clock.now_s)


async def test_an_answer_that_is_gone_on_with_is_not_hedged() -> None:
    """Two would have to fit the same seam."""
    _, endpoint = await hear(make_hedged(A, B, C), [BEGUN, cut()], [2 * HEDGE_AFTER_S, *REST], fallback=generous())
    assert tried(endpoint) == ["openai/a", "anthropic/b"]


async def test_the_second_and_the_third_race_when_the_first_is_down() -> None:
    """Nothing was delivered yet."""
    _, endpoint = await hear(make_hedged(A, B, C), [UpstreamFailed("broken")], [HANG], ANSWER, fallback=generous())
    assert tried(endpoint) == ["openai/a", "anthropic/b", "llama/c"]


async def test_in_a_race_too_a_target_that_does_not_stream_is_asked_for_the_whole_answer() -> None:
    """Whichever of the two it is."""
    heard, endpoint = await hear(make_hedged(A, B), [HANG], [no_stream()], ANSWER, fallback=generous())
    assert heard.text == "Hello"
    assert [(str(call.target), call.stream, call.attempt) for call in endpoint.calls] == [
        ("openai/a", True, 1),
        ("anthropic/b", True, 101),
        ("anthropic/b", False, 102),
    ]
    heard, endpoint = await hear(make_hedged(A, B), [no_stream()], ANSWER, fallback=generous())
    assert [call.stream for call in endpoint.calls] == [True, False]


async def test_a_whole_answer_may_be_hedged() -> None:
    """It is a stream in here."""
    heard, _ = await hear(make_hedged(A, B, stream=False), [HANG], ANSWER, fallback=generous())
    assert heard.batches == list(ANSWER)


async def test_a_hedged_call_is_logged() -> None:
    """Which two, without a word of the call."""
    with capture_logs() as logs:
        await hear(make_hedged(A, B), [HANG], ANSWER, fallback=generous())
    assert logs == [
        {"event": "call.hedged", "log_level": "info", "request_id": "t", "target": "openai/a", "second": "anthropic/b"}
    ]


async def test_reasoning_wins_a_race() -> None:
    """A target that thinks aloud is at work."""
    heard, _ = await hear(
        make_hedged(A, B), [HANG], [[START, ReasoningDelta("hm")], 0.01, [TextDelta("a")], FINISH], fallback=generous()
    )
    assert heard.text == "a"


# --- what is left


ENDS: dict[str, Callable[[], list[Step]]] = {
    "whole": lambda: [ANSWER],
    "moved on": lambda: [[UpstreamFailed("broken")], ANSWER],
    "gone on with": lambda: [[BEGUN, cut()], REST],
    "failed": lambda: [[UpstreamFailed("broken")]],
    "no more targets": lambda: [[BEGUN, cut()], [declined()]],
    "second": lambda: [[HANG], ANSWER],
    "first": lambda: [[2 * HEDGE_AFTER_S, *ANSWER], [HANG]],
    "neither": lambda: [[2 * HEDGE_AFTER_S, UpstreamFailed("broken")], [2 * HEDGE_AFTER_S, UpstreamFailed("broken")]],
}
"""How a call may end; the errors are made anew, since who keeps one keeps what it has come through."""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_of_a_call_is_left_when_it_has_ended(end: str, stream: bool) -> None:  # noqa: FBT001
    """Neither its client nor its answer waits for the collector of cycles, however it ended."""
    client, number = Heard(), count()
    ref = weakref.ref(client)

    async def endpoint(call: Call, send: Send) -> None:
        scripts = ENDS[end]()
        await ScriptedEndpoint(scripts[min(next(number), len(scripts) - 1)])(call, send)

    chain = make_chain(endpoint, fallback=generous())
    gc.collect()
    gc.disable()
    try:
        with suppress(UpstreamError):
            await chain(make_hedged(A, B, stream=stream), client.send)
        await asyncio.sleep(0)
        del client
        assert ref() is None
    finally:
        gc.enable()


# --- options


def options_of(text: str) -> Fallback:
    """Return what the configuration makes of the options."""
    document = f"middleware: [{{use: middleware.fallback.Fallback, {text}}}]"
    return build_options(Fallback, parse_config(document, "test.yaml", {}).middleware[0])


def test_options_come_from_the_configuration() -> None:
    """Each by its name."""
    made = options_of(
        "retry_percent: 5, retry_floor_per_s: 0, hedge_percent: 1.5, breaker_failures: 3, breaker_open_s: 2.5"
    )
    assert repr(made) == (
        "Fallback(retry_percent=5.0, retry_floor_per_s=0.0, hedge_percent=1.5, breaker_failures=3, breaker_open_s=2.5)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("retry_percent: 101", "retry_percent: expected a number of per cent from 0 to 100"),
        ("hedge_percent: -1", "hedge_percent: expected a number of per cent from 0 to 100"),
        ("retry_floor_per_s: -1", "retry_floor_per_s: expected a number of at least 0"),
        ("breaker_failures: 0", "breaker_failures: expected an integer from 1 to 1000"),
        ("breaker_open_s: 0", "breaker_open_s: expected a number of seconds from 0.001 to 300"),
        ("_clock: now", "_clock: unknown key"),
        ("_board: x", "_board: unknown key"),
        ("hedge: 1", "hedge: unknown key"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_the_start(text: str, expected: str) -> None:
    """With their name and what was expected; what calls share is none of them."""
    with pytest.raises(ConfigError) as raised:
        options_of(text)
    assert expected in str(raised.value)


async def test_two_fallbacks_share_nothing() -> None:
    """What one has learned of its targets stays with it."""
    clock = Clock()
    one, other = (Fallback(breaker_failures=1, _clock=clock) for _ in range(2))
    await end_with(one, clock, [UpstreamFailed("broken")], call=make_call(A))
    clock.now_s += 1
    assert tried(await end_with(one, clock)) == ["anthropic/b"]
    assert tried(await end_with(other, clock)) == ["openai/a"]


# --- what is shown


async def test_the_state_and_the_pace_of_a_target_are_shown(clock: Clock) -> None:
    """One state at a time, from its first attempt on; half open as soon as somebody is let through."""
    slab = Slab.create()
    fallback = Fallback(breaker_failures=2, _clock=clock).instrumented(Telemetry(meters=Meters(slab)))
    states: list[dict[str, float]] = []

    def look(_: object = None) -> None:
        states.append(Exposition.of(slab).by("state", "millrace_upstream_state", upstream="openai/a"))

    async def probe(call: Call, send: Send) -> None:
        look()
        await ScriptedEndpoint(ANSWER, clock=clock)(call, send)

    for _ in range(2):
        await end_with(fallback, clock, [UpstreamFailed("broken")], call=make_call(A))
        look()
    clock.now_s += 1000
    await fallback(make_call(A), ignore, probe)
    look()
    assert states == [{"closed": 1}, {"open": 1}, {"half_open": 1}, {"closed": 1}]
    fallback.note_first_token(make_call(A).route, "openai/a", 2.0)
    fallback.look()  # as it is called a few times a second
    assert 0 < Exposition.of(slab).total("millrace_upstream_ttft_ewma_seconds", upstream="openai/a") <= 2.0


async def test_a_breaker_that_nobody_asks_is_shown_as_it_is(clock: Clock) -> None:
    """It becomes half open by itself: whoever looks sees it, and the log is told of each change once."""
    slab = Slab.create()
    looks: list[Callable[[], None]] = []
    telemetry = Telemetry(meters=Meters(slab), sample=looks.append)
    fallback = Fallback(breaker_failures=1, breaker_open_s=15.0, _clock=clock).instrumented(telemetry)
    [look] = looks
    with capture_logs() as logs:
        await end_with(fallback, clock, [UpstreamFailed("broken")], call=make_call(A))
        look()
        clock.now_s += 16
        look()
        look()
        assert Exposition.of(slab).by("state", "millrace_upstream_state", upstream="openai/a") == {"half_open": 1}
        await end_with(fallback, clock, call=make_call(A))
        look()
    assert [line for line in logs if line["event"].startswith("breaker.")] == [
        {"event": "breaker.opened", "log_level": "warning", "target": "openai/a", "open_s": 15.0},
        {"event": "breaker.half_opened", "log_level": "info", "target": "openai/a"},
        {"event": "breaker.closed", "log_level": "info", "target": "openai/a"},
    ]


async def test_a_target_that_the_configuration_does_not_name_is_not_shown() -> None:
    """Any client could make one up."""
    slab = Slab.create()
    fallback = Fallback().instrumented(Telemetry(meters=Meters(slab)))
    call = make_call(A)
    route = Route(targets=call.route.targets)
    await fallback(structs.replace(call, route=route), ignore, ScriptedEndpoint())
    assert not list(Exposition.of(slab).of_name("millrace_upstream_state"))


@pytest.mark.parametrize(
    ("scripts", "results"),
    [
        ([[ANSWER[0], *ANSWER[1:]]], {}),
        ([[HANG], ANSWER], {"won": 1}),
        ([[3 * HEDGE_AFTER_S, *ANSWER], [HANG]], {"lost": 1}),
    ],
)
async def test_races_are_counted_by_whether_they_were_worth_it(scripts: list[Step], results: dict[str, int]) -> None:
    """What had its first token in time was no race."""
    slab = Slab.create()
    fallback = generous().instrumented(Telemetry(meters=Meters(slab)))
    await fallback(make_hedged(A, B), ignore, ScriptedEndpoint(*scripts))
    assert Exposition.of(slab).by("result", "millrace_hedges_total", model="chat") == results
