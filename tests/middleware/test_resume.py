from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from msgspec import structs

from gateway.core.budget import Budgets
from gateway.core.call import OPENAI_CHAT, Call, Message, ResponseFormat, Route, Source, Target, TextPart
from gateway.core.continuation import ANSWER_CONTINUES
from gateway.core.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import (
    AttemptFailed,
    CheckpointReached,
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
from gateway.core.seam import SEAM_NOT_FOUND
from gateway.core.transcript import Transcript
from gateway.pipeline import Send
from middleware.resume import MAX_IDLE_HOPS, MAX_WAIT_S, RESUME_PRICE, RETRY_PRICE, Resume
from tests.middleware.scripted_endpoint import ANSWER, START, Recorder, ScriptedEndpoint, Step, ignore

pytestmark = pytest.mark.usefixtures("idle_clock")

A, B = Target("openai", "gpt"), Target("anthropic", "claude")
CALL = Call(request_id="t", stream=True)
TEXT = "The mill stands by the river, and its wheel has turned for three hundred years."
QUESTION = Message(role="user", parts=(TextPart("Tell me of the mill."),))
FIRST, LAST = TEXT[:60], TEXT[60:]
BEGUN: list[Event] = [START, TextDelta(FIRST)]
FINISH: list[Event] = [ChoiceFinished("stop"), UsageReported(Usage(9, 7))]
REST: Step = [[StreamStarted("c9", "n", target="x/y"), TextDelta(LAST)], FINISH]


def cut(**more: Any) -> StreamInterrupted:
    """Return the error of a stream that broke off."""
    return StreamInterrupted("cut", **more)


def declined() -> UpstreamRefused:
    """Return the error of a target that is known not to go on with answers: it was not asked."""
    return UpstreamRefused("not here", code="continuation_unsupported", refused="continuation")


def refused() -> UpstreamRefused:
    """Return the error of a target that was asked to go on with an answer, and said no."""
    return UpstreamRefused("no prefill", upstream_status=400, refused="continuation")


def paused() -> StreamInterrupted:
    """Return the error with which a provider ends its turn before the answer."""
    return StreamInterrupted("not yet", code=ANSWER_CONTINUES, retryable=True, error_type="_OTHER")


def not_found() -> StreamInterrupted:
    """Return the error of an attempt that did not go on where it should."""
    return StreamInterrupted("elsewhere", code=SEAM_NOT_FOUND, retryable=False, error_type="protocol")


def make_call(policy: Any = "continue", targets: tuple[Target, ...] = (A,), **more: Any) -> Call:
    """Return a call of a route with this policy."""
    route = Route(name="chat", targets=targets, on_interrupt=policy)
    return Call(request_id="t", route=route, **{"target": A, "messages": (QUESTION,), "stream": True, **more})


class Spent(Budgets):
    """Budgets that write down what is taken from them. ``left`` is for how many it is enough."""

    def __init__(self, left: int = 99) -> None:
        super().__init__()
        self.left = left
        self.prices: list[tuple[str, float]] = []
        self.requests: list[str] = []

    def note_request(self, target: str, now_s: float) -> None:
        """Write it down."""
        self.requests.append(target)
        super().note_request(target, now_s)

    def take(self, target: str, price: float, now_s: float) -> bool:  # noqa: ARG002, the signature of any budget
        """Write it down, as long as there is something left."""
        if not self.left:
            return False
        self.left -= 1
        self.prices.append((target, price))
        return True


class Heard:
    """What a client hears of a call."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, events: Sequence[Event]) -> None:
        """Take it."""
        self.events += events

    @property
    def text(self) -> str:
        """All text."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    def of(self, *kinds: type) -> list[Event]:
        """All events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


async def hear(call: Call, *scripts: Step, **options: Any) -> tuple[Heard, ScriptedEndpoint]:
    """Return what the client hears of a call that is answered like this, and who was asked."""
    heard, endpoint = Heard(), ScriptedEndpoint(*scripts)
    await Resume(**options)(call, heard.send, endpoint)
    return heard, endpoint


async def fail(call: Call, *scripts: Step, **options: Any) -> tuple[UpstreamError, Heard, ScriptedEndpoint]:
    """Return the error of a call that is answered like this, what was heard before, and who was asked."""
    heard, endpoint = Heard(), ScriptedEndpoint(*scripts)
    with pytest.raises(UpstreamError) as raised:
        await Resume(**options)(call, heard.send, endpoint)
    return raised.value, heard, endpoint


def ways(endpoint: ScriptedEndpoint) -> list[tuple[int, str | None]]:
    """Return the number of each attempt, and how it was to go on."""
    return [(call.attempt, call.continuation.way if call.continuation else None) for call in endpoint.calls]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts; no time passes."""
    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        if delay_s:
            waited.append(delay_s)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def run(endpoint: ScriptedEndpoint, *, max_attempts: int = 3, call: Call = CALL) -> list[Any]:
    """Return the batches that a call is answered with, without the notes of attempts that failed."""
    sent: list[Any] = []
    await Resume(max_attempts=max_attempts)(call, sent.append, endpoint)
    return [batch for batch in sent if not isinstance(batch[0], AttemptFailed)]


# --- before there is anything to see


async def test_an_answer_that_begins_needs_one_attempt(waits: list[float]) -> None:
    """And no waiting."""
    endpoint = ScriptedEndpoint()
    assert await run(endpoint) == list(ANSWER)
    assert [call.attempt for call in endpoint.calls] == [1]
    assert waits == []


async def test_the_first_attempt_is_made_with_the_very_call() -> None:
    """There is nothing to change in it."""
    endpoint = ScriptedEndpoint()
    await run(endpoint)
    assert endpoint.calls[0] is CALL


@pytest.mark.parametrize(
    "error", [UpstreamBusy("busy"), UpstreamFailed("broken"), UpstreamUnreachable("gone"), UpstreamTimeout("slow")]
)
async def test_what_may_pass_is_tried_again(error: UpstreamError, waits: list[float]) -> None:
    """After a pause of random length, which doubles at most."""
    endpoint = ScriptedEndpoint([error], [error], ANSWER)
    assert await run(endpoint) == list(ANSWER)
    assert [call.attempt for call in endpoint.calls] == [1, 2, 3]
    assert len(waits) == 2
    assert all(0 <= wait_s <= most_s for wait_s, most_s in zip(waits, (0.25, 0.5), strict=True))


@pytest.mark.usefixtures("waits")
async def test_an_attempt_behind_which_there_is_another_is_told_to_who_watches() -> None:
    """Which, and why; the last one is told by its error, or by its answer."""
    error = UpstreamFailed("broken", code="boom")
    heard, _ = await hear(make_call(), [error], [UpstreamBusy("busy")], ANSWER)
    assert heard.events[:2] == [
        AttemptFailed("openai/gpt", 1, "server_error", "boom"),
        AttemptFailed("openai/gpt", 2, "overloaded", "upstream_busy"),
    ]
    _, heard, _ = await fail(make_call(), [UpstreamFailed("one")], [UpstreamFailed("two")], max_attempts=2)
    assert heard.events == [AttemptFailed("openai/gpt", 1, "server_error", "upstream_failed")]


@pytest.mark.usefixtures("waits")
async def test_attempts_are_counted_on_from_those_before() -> None:
    """Another middleware may have made some."""
    endpoint = ScriptedEndpoint([UpstreamFailed("broken")], ANSWER)
    await run(endpoint, call=Call(request_id="t", attempt=4))
    assert [call.attempt for call in endpoint.calls] == [4, 5]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
async def test_attempts_are_bounded_and_the_last_error_is_told(max_attempts: int) -> None:
    """As it is, not wrapped in anything."""
    errors = [UpstreamFailed(str(number)) for number in range(1, 6)]
    endpoint = ScriptedEndpoint(*([error] for error in errors))
    with pytest.raises(UpstreamFailed) as raised:
        await run(endpoint, max_attempts=max_attempts)
    assert raised.value is errors[max_attempts - 1]
    assert len(endpoint.calls) == max_attempts


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("no"),
        UpstreamFailed("told not to", retryable=False),
        InvalidRequest("wrong"),
        ClientGone("left"),
        InternalError("ours"),
        RuntimeError("a fault of ours"),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(error: Exception, waits: list[float]) -> None:
    """Whoever's fault it is."""
    endpoint = ScriptedEndpoint([error])
    with pytest.raises(type(error)) as raised:
        await run(endpoint)
    assert raised.value is error
    assert (len(endpoint.calls), waits) == (1, [])


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("error", [InvalidRequest("wrong"), RuntimeError("a fault of ours")])
async def test_what_another_attempt_says_of_itself_is_told(error: Exception) -> None:
    """As long as nothing was seen it is the whole truth."""
    endpoint = ScriptedEndpoint([UpstreamFailed("broken")], [error])
    with pytest.raises(type(error)) as raised:
        await run(endpoint)
    assert raised.value is error


@pytest.mark.parametrize(("asked_s", "expected"), [(3.0, [3.0]), (0.0, []), (MAX_WAIT_S, [MAX_WAIT_S])])
async def test_a_provider_that_names_a_time_is_taken_at_its_word(
    asked_s: float, expected: list[float], waits: list[float]
) -> None:
    """Neither earlier nor later."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=asked_s)], ANSWER)
    assert await run(endpoint) == list(ANSWER)
    assert waits == expected


async def test_a_time_longer_than_anybody_waits_is_given_up_at_once(waits: list[float]) -> None:
    """The client is told it instead."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=MAX_WAIT_S + 0.1)], ANSWER)
    with pytest.raises(UpstreamBusy) as raised:
        await run(endpoint)
    assert raised.value.retry_after_s == MAX_WAIT_S + 0.1
    assert (len(endpoint.calls), waits) == (1, [])


async def test_a_call_that_is_cancelled_while_it_waits_is_let_go() -> None:
    """The client has left: no further attempt is made."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=30.0)], ANSWER)
    work = asyncio.ensure_future(Resume()(CALL, ignore, endpoint))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize("scripts", [[["hang"]], [[UpstreamBusy("busy", retry_after_s=0.0)], ["hang"]]])
async def test_the_word_for_what_cancelled_a_call_reaches_the_attempt(scripts: list[Step]) -> None:
    """The first, and any other: it is how its end is accounted for."""
    ledger = Recorder()
    work = asyncio.ensure_future(Resume()(make_call(ledger=ledger), ignore, ScriptedEndpoint(*scripts)))
    await asyncio.sleep(0.01)
    work.cancel("drained")
    with pytest.raises(asyncio.CancelledError, match="drained"):
        await work
    assert ledger.ends[-1] == ("openai/gpt", len(scripts), "cancelled", "drained")


async def test_a_connection_that_turned_out_to_be_dead_is_replaced_at_once(waits: list[float]) -> None:
    """By one that nobody has used before; the second time it is waited for like anything else."""
    stale = UpstreamUnreachable("closed", error_type="reset")
    _, endpoint = await hear(make_call(), [stale], ANSWER)
    assert ([call.is_fresh for call in endpoint.calls], waits) == ([False, True], [])
    _, endpoint = await hear(make_call(), [stale], [stale], ANSWER)
    assert ([call.is_fresh for call in endpoint.calls], len(waits)) == ([False, True, True], 1)


@pytest.mark.usefixtures("waits")
async def test_another_error_needs_no_new_connection() -> None:
    """The one that was used is as good as any."""
    _, endpoint = await hear(make_call(), [UpstreamFailed("broken")], ANSWER)
    assert [call.is_fresh for call in endpoint.calls] == [False, False]


@pytest.mark.parametrize("kind", ["connect", "dns", "tls", "overloaded", "rate_limited", "read_timeout"])
async def test_what_will_still_be_so_in_a_moment_is_left_to_other_targets(kind: Any, waits: list[float]) -> None:
    """Where there are any: else it is tried again."""
    error = UpstreamFailed("broken", error_type=kind)
    raised, _, endpoint = await fail(make_call(other_targets=1), [error], ANSWER)
    assert (raised, len(endpoint.calls), waits) == (error, 1, [])
    await hear(make_call(), [error], ANSWER)


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("kind", ["reset", "protocol", "server_error"])
async def test_what_may_pass_in_a_moment_is_tried_here_first(kind: Any) -> None:
    """Another target costs its cache, and perhaps a seam."""
    _, endpoint = await hear(make_call(other_targets=1), [UpstreamFailed("broken", error_type=kind)], ANSWER)
    assert len(endpoint.calls) == 2


@pytest.mark.usefixtures("waits")
async def test_a_role_that_was_told_is_not_told_again() -> None:
    """The answer keeps its name, and the attempt is told which that is."""
    heard, endpoint = await hear(make_call(), [[START], cut()], REST)
    assert heard.of(StreamStarted) == [START]
    assert heard.of(StreamContinued) == []
    assert ways(endpoint) == [(1, None), (2, "restart")]
    continuation = endpoint.calls[1].continuation
    assert continuation is not None
    assert continuation.started is START


@pytest.mark.usefixtures("waits")
async def test_a_call_that_was_held_is_made_again_whole() -> None:
    """Of the first one nobody has seen anything."""
    half: list[Event] = [START, ToolCallStarted(0, "one", "f"), ToolCallDelta(0, '{"a')]
    whole: list[Event] = [START, ToolCallStarted(0, "two", "f"), ToolCallDelta(0, "{}"), ChoiceFinished("tool_calls")]
    heard, endpoint = await hear(make_call(), [half, cut()], [whole])
    assert heard.events[1:] == whole
    assert ways(endpoint) == [(1, None), (2, None)]


async def test_an_end_without_a_finish_releases_what_was_held() -> None:
    """Some providers have no other."""
    heard, _ = await hear(make_call(), [[START, ToolCallStarted(0, "one", "f")]])
    assert heard.events == [START, ToolCallStarted(0, "one", "f")]


# --- what it costs


@pytest.mark.usefixtures("waits")
async def test_a_retry_has_its_price_and_a_resume_the_double() -> None:
    """Both out of the budget of the target that failed."""
    budgets = Spent()
    await hear(make_call(budgets=budgets), [UpstreamFailed("broken")], [BEGUN, cut()], REST)
    assert budgets.prices == [("openai/gpt", RETRY_PRICE), ("openai/gpt", RESUME_PRICE)]
    assert budgets.requests == []


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("script", [[UpstreamFailed("broken")], [BEGUN, cut()]])
async def test_an_empty_budget_makes_the_first_error_the_last(script: Step) -> None:
    """A provider in trouble is not asked more than it can bear."""
    error, heard, endpoint = await fail(make_call(budgets=Spent(0)), script, ANSWER)
    assert error is script[-1]
    assert (len(endpoint.calls), heard.of(AttemptFailed)) == (1, [])


@pytest.mark.usefixtures("waits")
async def test_what_is_not_tried_again_costs_nothing() -> None:
    """Not the last attempt either."""
    budgets = Spent()
    for error in (UpstreamRefused("no"), UpstreamBusy("busy", retry_after_s=99.0)):
        await fail(make_call(budgets=budgets), [error])
    await fail(make_call(other_targets=1, budgets=budgets), [UpstreamBusy("busy")])
    await fail(make_call("error", budgets=budgets), [BEGUN, cut()])
    assert budgets.prices == []
    await fail(make_call(budgets=budgets), [UpstreamFailed("broken")], max_attempts=2)
    assert len(budgets.prices) == 1


@pytest.mark.usefixtures("waits")
async def test_without_anybody_elses_budget_it_has_its_own() -> None:
    """Shared by all calls, and made of their requests: 30 extra attempts in ten seconds, and one in ten."""
    resume, endpoint = Resume(_clock=lambda: 1000.0), ScriptedEndpoint([UpstreamFailed("broken")])
    for _ in range(20):
        with pytest.raises(UpstreamFailed):
            await resume(make_call(), ignore, endpoint)
    assert len(endpoint.calls) == 20 + 32


# --- behind text


async def test_text_is_gone_on_with_exactly(waits: list[float]) -> None:
    """One start, a seam, the rest, one finish; and the usage of one answer."""
    heard, endpoint = await hear(make_call(), [BEGUN, cut()], REST)
    assert heard.text == TEXT
    assert heard.of(StreamStarted) == [START]
    assert heard.of(StreamContinued) == [StreamContinued("openai/gpt", "openai/gpt", "exact", 2, len(FIRST))]
    assert heard.of(AttemptFailed) == [
        AttemptFailed("openai/gpt", 1, "reset", "stream_interrupted", has_delivered=True)
    ]
    assert len(heard.of(ChoiceFinished)) == len(heard.of(UsageReported)) == 1
    assert ways(endpoint) == [(1, None), (2, "exact")]
    continuation = endpoint.calls[1].continuation
    assert continuation is not None
    assert (continuation.text, continuation.started) == (FIRST, START)
    assert len(waits) == 1


@pytest.mark.usefixtures("waits")
async def test_an_answer_may_break_off_again() -> None:
    """As often as there are attempts."""
    heard, endpoint = await hear(
        make_call(), [BEGUN, cut()], [[START, TextDelta(LAST[:5])], cut()], [[TextDelta(LAST[5:])], FINISH]
    )
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (3, "exact")]
    assert [call.continuation.text for call in endpoint.calls if call.continuation] == [FIRST, FIRST + LAST[:5]]


@pytest.mark.usefixtures("waits")
async def test_a_target_that_does_not_go_on_exactly_is_asked_in_words() -> None:
    """One that is known not to was not asked: the attempt has no number, and costs nothing."""
    budgets = Spent()
    heard, endpoint = await hear(
        make_call(budgets=budgets), [BEGUN, cut()], [declined()], [[START, TextDelta(FIRST), TextDelta(LAST)], FINISH]
    )
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (2, "anchored")]
    assert heard.of(StreamContinued) == [StreamContinued("openai/gpt", "openai/gpt", "anchored", 2, len(FIRST))]
    assert [price for _, price in budgets.prices] == [RESUME_PRICE]


@pytest.mark.usefixtures("waits")
async def test_a_target_that_has_said_no_was_asked() -> None:
    """Its attempt has a number of its own."""
    heard, endpoint = await hear(make_call(), [BEGUN, cut()], [refused()], [[START, TextDelta(FIRST + LAST)], FINISH])
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (3, "anchored")]


@pytest.mark.usefixtures("waits")
async def test_a_target_that_does_not_go_on_at_all_leaves_the_error_of_what_broke() -> None:
    """That nobody can mend it is not what went wrong; whoever is outside may ask another target."""
    error = cut()
    raised, heard, endpoint = await fail(make_call(), [BEGUN, error], [declined()])
    assert raised is error
    assert isinstance(raised.__cause__, UpstreamRefused)
    assert ways(endpoint) == [(1, None), (2, "exact"), (2, "anchored")]
    assert raised.delivered is not None
    assert raised.delivered.choice().text == heard.text == FIRST


@pytest.mark.usefixtures("waits")
async def test_a_wire_that_cannot_express_the_continuation_declines_it() -> None:
    """It is no fault of the client's, to whom words were promised by then."""
    heard, endpoint = await hear(
        make_call(), [BEGUN, cut()], [InvalidRequest("no such turn")], [[START, TextDelta(FIRST + LAST)], FINISH]
    )
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (2, "anchored")]


@pytest.mark.usefixtures("waits")
async def test_what_does_not_fit_exactly_is_asked_for_in_words() -> None:
    """That is another attempt, and is paid for."""
    budgets = Spent()
    call = make_call(budgets=budgets)
    heard, endpoint = await hear(call, [BEGUN, cut()], [not_found()], [[START, TextDelta(FIRST + LAST)], FINISH])
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (3, "anchored")]
    assert [price for _, price in budgets.prices] == [RESUME_PRICE, RESUME_PRICE]
    error, _, endpoint = await fail(make_call(budgets=Spent(1)), [BEGUN, cut()], [not_found()])
    assert (error.code, len(endpoint.calls)) == (SEAM_NOT_FOUND, 2)


@pytest.mark.usefixtures("waits")
async def test_words_that_are_not_found_again_end_the_attempt() -> None:
    """There is no third way at this target, and no retry: another target may do it."""
    error, heard, endpoint = await fail(
        make_call(), [BEGUN, cut()], [declined()], [[START, TextDelta("Once upon a time there was a mill. " * 20)]]
    )
    assert (error.code, error.delivered is not None) == (SEAM_NOT_FOUND, True)
    assert heard.text == FIRST
    assert len(endpoint.calls) == 3


@pytest.mark.usefixtures("waits")
async def test_an_end_without_a_finish_is_the_end_of_a_later_attempt_too() -> None:
    """What was held back until then comes, or it has failed if it never fitted."""
    hosts: list[Step] = [[BEGUN, cut()], [declined()]]
    heard, _ = await hear(make_call(), *hosts, [[START, TextDelta(FIRST + LAST)]])
    assert heard.text == TEXT
    error, _, _ = await fail(make_call(), *hosts, [[START, TextDelta("Once upon")]])
    assert error.code == SEAM_NOT_FOUND
    half: list[Event] = [START, ToolCallStarted(0, "one", "f")]
    heard, _ = await hear(make_call(), [half, cut()], [half])
    assert heard.events[1:] == half


@pytest.mark.usefixtures("waits")
async def test_a_way_that_was_planned_for_less_text_is_not_taken() -> None:
    """An attempt that brought something and then cannot go on leaves nothing of the plans behind it true."""
    late = UpstreamRefused("now you say it", upstream_status=400, refused="continuation")
    error, heard, endpoint = await fail(make_call(), [BEGUN, cut()], [[START, TextDelta(LAST[:5])], late])
    assert heard.text == FIRST + LAST[:5]
    assert ways(endpoint) == [(1, None), (2, "exact")]
    assert error.delivered is not None


@pytest.mark.usefixtures("waits")
async def test_an_attempt_to_go_on_that_fails_is_made_again() -> None:
    """From the exact way on, with another connection where that was the reason."""
    stale = UpstreamUnreachable("closed", error_type="reset")
    heard, endpoint = await hear(make_call(), [BEGUN, cut(error_type="server_error")], [stale], REST)
    assert heard.text == TEXT
    assert ways(endpoint) == [(1, None), (2, "exact"), (3, "exact")]
    assert [call.is_fresh for call in endpoint.calls] == [False, False, True]


@pytest.mark.usefixtures("waits")
async def test_the_anchor_is_as_long_as_the_options_say() -> None:
    """In characters, up to a word's start."""
    _, endpoint = await hear(
        make_call(), [BEGUN, cut()], [declined()], [[START, TextDelta(FIRST + LAST)], FINISH], anchor_characters=20
    )
    *_, anchor = endpoint.calls[-1].messages[-1].text.partition("characters:\n")
    assert FIRST.endswith(anchor)
    assert 20 <= len(anchor) < 40


@pytest.mark.usefixtures("waits")
async def test_a_stop_sequence_that_ends_behind_the_seam_completes_the_answer() -> None:
    """The provider goes on; nobody waits for it."""
    heard, _ = await hear(
        make_call(stop=("hundred years",)),
        [[START, TextDelta("three hun")], cut()],
        [[TextDelta("dred years.")], cut()],
    )
    assert heard.text == "three hun"
    assert [event.reason for event in heard.events if isinstance(event, ChoiceFinished)] == ["stop"]


@pytest.mark.usefixtures("waits")
async def test_json_that_does_not_fit_together_is_an_error() -> None:
    """It has failed before its finish was told."""
    call = make_call(response_format=ResponseFormat(kind="json_object"))
    error, heard, _ = await fail(call, [[START, TextDelta('{"a": ')], cut()], [[TextDelta("}")], FINISH])
    assert error.code == SEAM_NOT_FOUND
    assert heard.of(ChoiceFinished) == []


@pytest.mark.usefixtures("waits")
async def test_several_choices_are_gone_on_with_one_by_one() -> None:
    """Each that has not finished, as the only choice of an attempt of its own."""
    call = make_call(choice_count=3, source=Source(OPENAI_CHAT, {"n": 3}))
    begun: list[Event] = [START, TextDelta("a"), TextDelta("b", 1), TextDelta("c", 2), ChoiceFinished("stop", index=1)]
    heard, endpoint = await hear(
        call, [begun, cut()], [[START, TextDelta("A")], FINISH], [[START, TextDelta("C")], FINISH]
    )
    assert [(one.attempt, one.choice_count, dict(one.source.body)) for one in endpoint.calls[1:]] == [
        (2, 1, {}),
        (3, 1, {}),
    ]
    transcript = Transcript()
    transcript.add(heard.events)
    assert [transcript.choice(index).text for index in range(3)] == ["aA", "b", "cC"]
    assert [transcript.choice(index).finish_reason for index in range(3)] == ["stop"] * 3


@pytest.mark.parametrize("policy", ["continue", "restart", "error"])
@pytest.mark.parametrize("said", [[TextDelta("a")], []])
async def test_an_answer_whose_end_was_told_is_whole(policy: str, said: list[Event], waits: list[float]) -> None:
    """Whatever its provider says behind it: there is nothing left to ask for, to wait for or to pay for."""
    whole: list[Event] = [START, *said, ChoiceFinished("stop")]
    budgets = Spent()
    heard, endpoint = await hear(make_call(policy, budgets=budgets), [whole, cut(retryable=False)])
    assert heard.events == whole
    assert (len(endpoint.calls), waits, budgets.prices) == (1, [], [])


async def test_the_end_of_a_later_attempt_is_the_end_too() -> None:
    """Of the answer, or of one choice."""
    failed = UpstreamFailed("broken", retry_after_s=0.0)
    heard, endpoint = await hear(make_call(), [failed], [[START, *FINISH[:1]], cut(retryable=False)])
    assert (len(endpoint.calls), heard.events[-1]) == (2, FINISH[0])
    call = make_call(choice_count=2)
    begun: list[Event] = [START, TextDelta("a"), TextDelta("b", 1)]
    begun_again: Step = [[START, TextDelta("a"), ChoiceFinished("stop")], cut(retry_after_s=0.0)]
    heard, endpoint = await hear(call, [failed], begun_again, [[TextDelta("B"), *FINISH], cut(retryable=False)])
    assert [one.choice_count for one in endpoint.calls] == [2, 2, 1]
    assert [event.index for event in heard.events if isinstance(event, ChoiceFinished)] == [0, 1]
    first: Step = [[TextDelta("A"), *FINISH], cut(retryable=False)]
    second: Step = [[TextDelta("B"), *FINISH], cut(retryable=False)]
    heard, endpoint = await hear(call, [begun, cut(retry_after_s=0.0)], first, second)
    assert (heard.text, len(endpoint.calls)) == ("abAB", 3)


@pytest.mark.usefixtures("waits")
async def test_choices_that_have_not_ended_are_asked_for_though_others_have() -> None:
    """Each alone, also when there is nothing to see of any of them."""
    call = make_call(choice_count=2, source=Source(OPENAI_CHAT, {"n": 2}))
    heard, endpoint = await hear(call, [[START, ChoiceFinished("content_filter")], cut()], [[TextDelta("b")], FINISH])
    assert [(one.attempt, one.choice_count) for one in endpoint.calls] == [(1, 2), (2, 1)]
    assert heard.of(TextDelta, ChoiceFinished) == [
        ChoiceFinished("content_filter"),
        TextDelta("b", 1),
        ChoiceFinished("stop", index=1),
    ]


@pytest.mark.usefixtures("waits")
async def test_reasoning_that_broke_off_is_begun_again() -> None:
    """The client sees it go on as a new block."""
    heard, endpoint = await hear(
        make_call(), [[START, ReasoningDelta("hm")], cut()], [[START, ReasoningDelta("so"), TextDelta("a")], FINISH]
    )
    assert "".join(event.text for event in heard.events if isinstance(event, ReasoningDelta)) == "hm\n\nso"
    assert ways(endpoint) == [(1, None), (2, "restart")]


# --- what the route says


@pytest.mark.parametrize(
    ("policy", "said", "goes_on"),
    [
        ("continue", [TextDelta("a")], True),
        ("restart", [TextDelta("a")], False),
        ("error", [TextDelta("a")], False),
        ("continue", [ReasoningDelta("a")], True),
        ("restart", [ReasoningDelta("a")], True),
        ("error", [ReasoningDelta("a")], False),
        ("continue", [ToolCallStarted(0, "i", "f"), TextDelta("a")], True),
        ("error", [ToolCallStarted(0, "i", "f")], False),
        ("restart", [ToolCallStarted(0, "i", "f")], True),
    ],
)
@pytest.mark.usefixtures("waits")
async def test_the_route_says_what_is_to_happen(policy: str, said: list[Event], goes_on: bool) -> None:  # noqa: FBT001
    """What was delivered when the provider broke decides with it."""
    call = make_call(policy)
    scripts: tuple[Step, ...] = ([[START, *said], cut()], [[START, TextDelta("b")], FINISH])
    if goes_on:
        _, endpoint = await hear(call, *scripts)
        assert len(endpoint.calls) == 2
    else:
        error, _, endpoint = await fail(call, *scripts)
        assert len(endpoint.calls) == 1
        assert (error.was_sent, error.delivered) == (True, None)


# --- what it tells who is outside


async def test_an_error_says_what_the_client_has() -> None:
    """So that another target may go on with it."""
    error, _, _ = await fail(make_call(), [BEGUN, cut(retryable=False)])
    assert error.was_sent
    assert error.delivered is not None
    assert (error.delivered.choice().text, error.delivered.started) == (FIRST, START)


async def test_an_error_before_anything_was_delivered_has_nothing_to_go_on_from() -> None:
    """Another target simply begins."""
    error, _, _ = await fail(make_call(), [UpstreamRefused("no")])
    assert (error.was_sent, error.delivered) == (False, None)


async def test_a_held_call_is_nothing_the_client_has() -> None:
    """Though the attempt had sent it."""
    half: list[Event] = [START, ToolCallStarted(0, "one", "f")]
    error, _, _ = await fail(make_call(), [half, cut(retryable=False)])
    assert (error.was_sent, error.delivered) == (False, None)


async def test_a_name_that_was_told_is_kept_by_the_next_target() -> None:
    """Though there is nothing to see yet."""
    error, _, _ = await fail(make_call(), [[START], cut(retryable=False)])
    assert not error.was_sent
    assert error.delivered is not None
    assert error.delivered.started is START


async def test_the_error_of_a_later_attempt_says_the_same(waits: list[float]) -> None:
    """The client has the text of all of them."""
    error, _, _ = await fail(make_call(), [BEGUN, cut()], [[TextDelta(LAST[:5])], cut()], max_attempts=2)
    assert error.attempt == 2
    assert error.delivered is not None
    assert error.delivered.choice().text == FIRST + LAST[:5]
    assert len(waits) == 1


# --- an answer that other targets have begun


@pytest.fixture
def begun() -> Transcript:
    """What the client has of an answer that another target has begun."""
    transcript = Transcript()
    transcript.add(BEGUN)
    return transcript


async def test_an_answer_from_elsewhere_is_gone_on_with(begun: Transcript, waits: list[float]) -> None:
    """The first attempt here is one to go on; it was paid for by who moved it here, and is not waited for."""
    budgets = Spent()
    call = make_call(target=B, attempt=4, delivered=begun, budgets=budgets)
    heard, endpoint = await hear(call, REST)
    assert begun.choice().text == FIRST + LAST
    assert ways(endpoint) == [(4, "exact")]
    assert heard.events[0] == StreamContinued("anthropic/claude", "openai/gpt", "exact", 4, len(FIRST))
    assert (budgets.prices, waits) == ([], [])


@pytest.mark.usefixtures("waits")
async def test_an_answer_from_elsewhere_may_break_off_here_too(begun: Transcript) -> None:
    """Then it is this target's own, and it has as many attempts as any."""
    call = make_call(target=B, attempt=4, delivered=begun)
    heard, endpoint = await hear(call, [[TextDelta(LAST[:5])], cut()], [[TextDelta(LAST[5:])], FINISH], max_attempts=2)
    assert heard.text == LAST
    assert ways(endpoint) == [(4, "exact"), (5, "exact")]


async def test_a_target_that_does_not_go_on_with_it_says_so(begun: Transcript) -> None:
    """There is no other error here to tell; whoever is outside has it."""
    error, heard, endpoint = await fail(make_call(target=B, attempt=4, delivered=begun), [declined()])
    assert error.refused == "continuation"
    assert error.delivered is begun
    assert ways(endpoint) == [(4, "exact"), (4, "anchored")]
    assert heard.events == []


async def test_an_unseen_beginning_from_elsewhere_is_begun_again_under_its_name() -> None:
    """The client knows no more of it than that."""
    transcript = Transcript()
    transcript.add([START])
    heard, endpoint = await hear(make_call(target=B, delivered=transcript), REST)
    assert ways(endpoint) == [(1, "restart")]
    assert heard.of(StreamStarted, StreamContinued) == []


# --- a provider that ends its turn before the answer


def with_token(text: str, token: str) -> list[Event]:
    """Return a piece of an answer, and the token for going on behind it."""
    return [TextDelta(text), CheckpointReached(token)]


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_planned_end_is_no_failure(max_attempts: int, waits: list[float]) -> None:
    """The provider is taken at its word: at once, for nothing, and however few attempts there may be."""
    budgets = Spent()
    turns: list[Step] = [[with_token(text, text), paused()] for text in "bcdef"]
    heard, endpoint = await hear(
        make_call(budgets=budgets),
        [[START, *with_token("a", "a")], paused()],
        *turns,
        [[TextDelta("g")], FINISH],
        max_attempts=max_attempts,
    )
    assert heard.text == "abcdefg"
    assert heard.of(AttemptFailed) == []
    assert (budgets.prices, waits) == ([], [])
    assert ways(endpoint) == [(1, None), *((number, "exact") for number in range(2, 8))]
    tokens = [call.continuation.checkpoint for call in endpoint.calls if call.continuation]
    assert [token.token for token in tokens if token] == list("abcdef")


@pytest.mark.usefixtures("waits")
async def test_a_planned_end_behind_a_failure_is_none_either() -> None:
    """All attempts are used up by then, and it goes on all the same."""
    heard, _ = await hear(
        make_call(),
        [UpstreamFailed("broken")],
        [[START, *with_token("a", "1")], paused()],
        [[TextDelta("b")], FINISH],
        max_attempts=2,
    )
    assert heard.text == "ab"


@pytest.mark.usefixtures("waits")
async def test_a_provider_that_only_pauses_is_not_waited_for_for_ever() -> None:
    """After a few turns without a new character its error is one like any other, and paid for."""
    error, heard, endpoint = await fail(
        make_call(budgets=Spent(0)), [[START, *with_token("a", "1")], paused()], [paused()]
    )
    assert error.code == ANSWER_CONTINUES
    assert (heard.text, len(endpoint.calls)) == ("a", 1 + MAX_IDLE_HOPS)
    assert error.delivered is not None


@pytest.mark.usefixtures("waits")
async def test_a_turn_that_ends_before_anything_was_seen_is_a_failure() -> None:
    """There is no token for it that anybody has got."""
    budgets = Spent()
    _, endpoint = await hear(make_call(budgets=budgets), [paused()], ANSWER)
    assert ways(endpoint) == [(1, None), (2, None)]
    assert [price for _, price in budgets.prices] == [RETRY_PRICE]


async def test_a_planned_end_is_gone_on_with_whatever_the_route_says() -> None:
    """Nothing was interrupted; but in no other way than the planned one."""
    heard, _ = await hear(make_call("error"), [[START, *with_token("a", "1")], paused()], [[TextDelta("b")], FINISH])
    assert heard.text == "ab"
    _, _, endpoint = await fail(make_call("error"), [[START, *with_token("a", "1")], paused()], [refused()])
    assert ways(endpoint) == [(1, None), (2, "exact")]


ENDS: dict[str, Callable[[], list[Step]]] = {
    "whole": lambda: [ANSWER],
    "retried": lambda: [[UpstreamFailed("broken", retry_after_s=0.0)], ANSWER],
    "resumed": lambda: [[BEGUN, cut(retry_after_s=0.0)], REST],
    "failed": lambda: [[UpstreamFailed("broken", retry_after_s=0.0)]],
    "declined": lambda: [[BEGUN, cut(retry_after_s=0.0)], [declined()]],
    "refused": lambda: [[UpstreamRefused("no")]],
}
"""How a call may end; the errors are made anew, since who keeps one keeps what it has come through."""


# --- an answer that is asked for whole

TOOLS: list[Event] = [ToolCallStarted(0, "t1", "look"), ToolCallDelta(0, '{"a": 1}')]
WHOLE: list[Event] = [*BEGUN, TextDelta(LAST), *FINISH]
ATTEMPTS: dict[str, Callable[[], list[Step]]] = {
    **ENDS,
    "in one piece": lambda: [[WHOLE]],
    "in a piece that comes twice": lambda: [[WHOLE, WHOLE]],
    "begun twice in one piece": lambda: [[[START, *WHOLE]]],
    "an empty piece first": lambda: [[[], WHOLE]],
    "of tools": lambda: [[[START, *TOOLS, *FINISH]]],
    "of tools of several choices": lambda: [
        [[START, *TOOLS, ToolCallStarted(0, "t2", "look", index=1), ChoiceFinished("stop", index=1), *FINISH]]
    ],
    "of tools behind a piece": lambda: [[BEGUN, TOOLS, FINISH]],
    "of tools without an end": lambda: [[[START, *TOOLS]]],
    "of tools that are cut": lambda: [[[START, *TOOLS], cut(retry_after_s=0.0)], [WHOLE]],
    "cut behind its end": lambda: [[WHOLE, cut(retry_after_s=0.0)]],
    "cut within": lambda: [[BEGUN, cut(retry_after_s=0.0)], REST],
    "cut twice": lambda: [[BEGUN, cut(retry_after_s=0.0)], [cut(retry_after_s=0.0)], REST],
    "only begun": lambda: [[[START], UpstreamFailed("broken", retry_after_s=0.0)], [WHOLE]],
    "not begun": lambda: [[cut(retry_after_s=0.0)], [WHOLE]],
    "given up": lambda: [[BEGUN, cut(retryable=False)]],
}


@pytest.mark.parametrize("attempts", ATTEMPTS)
async def test_an_answer_that_is_asked_for_whole_is_relayed_as_a_stream_is(attempts: str) -> None:
    """In the same batches, by the same attempts, and with the same end."""

    async def see(call: Call) -> tuple[object, ...]:
        batches: list[list[Event]] = []
        endpoint = ScriptedEndpoint(*ATTEMPTS[attempts]())
        end: tuple[object, ...] = ()
        try:
            await Resume()(call, lambda events: batches.append([*events]), endpoint)
        except UpstreamError as error:
            delivered = error.delivered
            text = delivered.choice().text if delivered else None
            end = (error.message, error.code, error.was_sent, text, delivered.usage if delivered else None)
        return batches, ways(endpoint), end

    assert await see(make_call(stream=False)) == await see(make_call(stream=True))


async def test_an_answer_that_comes_in_one_piece_is_not_looked_at() -> None:
    """It is handed on as it is."""
    sent: list[Sequence[Event]] = []
    await Resume()(make_call(stream=False), sent.append, ScriptedEndpoint([WHOLE]))
    assert sent[0] is WHOLE


# --- what is left


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", ENDS)
async def test_nothing_of_a_call_is_left_when_it_has_ended(end: str, *, stream: bool) -> None:
    """Neither its client nor its answer waits for the collector of cycles, however it ended."""
    client, number = Heard(), count()
    ref = weakref.ref(client)
    resume = Resume()

    async def endpoint(call: Call, send: Send) -> None:
        scripts = ENDS[end]()
        await ScriptedEndpoint(scripts[min(next(number), len(scripts) - 1)])(call, send)

    gc.collect()
    gc.disable()
    try:
        with suppress(UpstreamError):
            await resume(make_call(stream=stream), client.send, endpoint)
        del client
        assert ref() is None
    finally:
        gc.enable()


async def test_two_calls_at_once_know_nothing_of_each_other() -> None:
    """One instance serves all."""
    resume, call = Resume(), make_call()
    heard = [Heard() for _ in range(3)]
    scripts: list[tuple[Step, ...]] = [
        ([BEGUN, cut(retry_after_s=0.0)], REST),
        (ANSWER,),
        ([UpstreamFailed("broken", retry_after_s=0.0)], ANSWER),
    ]
    await asyncio.gather(
        *(
            resume(structs.replace(call, request_id=str(number)), one.send, ScriptedEndpoint(*script))
            for number, (one, script) in enumerate(zip(heard, scripts, strict=True))
        )
    )
    assert [one.text for one in heard] == [TEXT, "Hello", "Hello"]
