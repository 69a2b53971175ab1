from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import (
    AttemptFailed,
    ChoiceFinished,
    Event,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.progress import OBJECTIVES, Loss, Phase, Progress, Slo, Stall

START = StreamStarted("c1", "m", target="a/x")
A, R = TextDelta("a"), ReasoningDelta("r")
STOP = ChoiceFinished("stop")
SLO = Slo(ttft_s=1.0, tpot_s=0.1, max_gap_s=2.0)


class Going:
    """A progress that began at 100 s, and the phases it went through."""

    def __init__(self, **options: Any) -> None:
        self.phases: list[tuple[Phase, Phase]] = []
        self.progress = Progress(100.0, SLO, note_phase=lambda *both: self.phases.append(both), **options)
        self.now_s = 100.0
        self.handed_on: list[Sequence[Event]] = []
        self._send = self.progress.watching(self.handed_on.append, lambda: self.now_s)

    def add(self, at_s: float, *events: Event) -> Progress:
        """Hand on a batch so many seconds after the request."""
        self.now_s = 100.0 + at_s
        self._send(list(events))
        return self.progress

    def end(
        self, at_s: float, *, is_complete: bool = True, has_client: bool = True, last: int | None = None
    ) -> Progress:
        """End the call so many seconds after the request."""
        self.progress.end(100.0 + at_s, is_complete=is_complete, has_client=has_client, last_attempt=last)
        return self.progress


def failed(attempt: int, target: str = "a/x", **more: Any) -> AttemptFailed:
    """Return the note of an attempt behind which there is another."""
    return AttemptFailed(target, attempt, "reset", "stream_truncated", **more)


def seam(attempt: int, target: str = "b/y", from_target: str = "a/x") -> StreamContinued:
    """Return the note of a seam."""
    return StreamContinued(target, from_target, "exact", attempt, 5)


# --- times


def test_an_answer_in_even_steps() -> None:
    """TTFT to the first token, TPOT over those behind it, and the longest gap."""
    going = Going()
    going.add(0.5, START, A)
    for number in range(1, 5):
        going.add(0.5 + number / 4, A)
    progress = going.add(1.6, STOP, UsageReported(Usage(3, 5)))
    assert (progress.ttft_s, progress.ttfc_s, progress.max_gap_s) == (0.5, 0.5, 0.25)
    assert (progress.tpot_s, progress.tokens_per_s, progress.token_count, progress.delta_count) == (0.25, 4.0, 5, 5)
    assert (progress.stalls, progress.losses, progress.finish_reasons) == ([], [], {0: "stop"})


def test_before_the_first_token_nothing_is_known() -> None:
    """A start, a report and an extra are no tokens."""
    progress = Going().add(0.5, START, UsageReported(Usage(3, 0)), ProviderExtra())
    assert (progress.ttft_s, progress.ttfc_s, progress.tpot_s, progress.tokens_per_s) == (None, None, None, None)
    assert (progress.max_gap_s, progress.token_count, progress.phase) == (0.0, 0, "prefill")


def test_an_answer_in_one_piece_has_no_speed() -> None:
    """Nobody waited between its tokens; neither is one token fast."""
    assert Going().add(0.5, START, *[A] * 9, STOP).tpot_s is None
    one = Going()
    one.add(0.5, START, A)
    one.add(0.6, STOP, UsageReported(Usage(3, 1)))
    assert one.progress.tpot_s is None


def test_a_delivery_of_several_tokens_is_one_gap_and_several_tokens() -> None:
    """Made-up gaps would hide the stutter; the speed is that of tokens."""
    going = Going()
    going.add(0.5, START, A)
    going.add(1.0, A, A, A, A)
    progress = going.add(1.5, A, A, A, A)
    assert (progress.max_gap_s, progress.tpot_s, progress.delta_count) == (0.5, 0.125, 9)


def test_a_total_beside_the_text_is_no_token_and_the_last_one_counts() -> None:
    """Before it or behind it; alone it is no delivery of tokens."""
    going = Going()
    going.add(0.5, START, A)
    going.add(0.6, UsageReported(Usage(3, 1)), A, UsageReported(Usage(3, 2)))
    progress = going.add(0.7, A, UsageReported(Usage(3, 4)))
    going.add(0.9, UsageReported(Usage(3, 5)), UsageReported(Usage(3, 6)))
    assert progress.last_at_s == pytest.approx(100.7)
    assert (progress.delta_count, progress.usage) == (3, Usage(3, 6))
    going.add(1.0, A, R, UsageReported(Usage(3, 8)))
    assert (progress.delta_count, progress.reasoning_count, progress.usage) == (5, 1, Usage(3, 8))


def test_reasoning_is_a_first_token_but_no_first_content() -> None:
    """An empty screen for who does not show it."""
    going = Going()
    going.add(0.5, START, R)
    going.add(0.75, R)
    progress = going.add(1.0, R, UsageReported(Usage(3, 3)), R)
    assert (progress.phase, progress.delta_count, progress.reasoning_count) == ("reasoning", 4, 4)
    assert progress.usage == Usage(3, 3)
    assert progress.last_at_s == pytest.approx(101.0)
    going.add(2.0, A)
    assert (progress.ttft_s, progress.ttfc_s, progress.max_gap_s) == (0.5, 2.0, 1.0)
    assert (progress.phase, progress.delta_count, progress.reasoning_count) == ("decode", 5, 4)


@pytest.mark.parametrize("event", [A, RefusalDelta("no"), ToolCallStarted(0, "i", "f")])
def test_text_a_refusal_and_a_tool_call_are_content(event: Event) -> None:
    """Reasoning before it in the same delivery is none."""
    progress = Going().add(0.5, START, R, event)
    assert (progress.ttfc_s, progress.phase) == (0.5, "decode")


def test_every_kind_of_token_is_progress() -> None:
    """A gap ends with any of them."""
    going = Going()
    events: list[Event] = [R, RefusalDelta("no"), ToolCallStarted(0, "i", "f"), ToolCallDelta(0, "{}"), A]
    for at_s, event in enumerate(events):
        going.add(at_s / 4, event)
    assert (going.progress.delta_count, going.progress.max_gap_s) == (5, 0.25)


def test_what_is_no_token_ends_no_gap() -> None:
    """A report on the way is not what the client waits for."""
    going = Going()
    going.add(0.5, START, A)
    going.add(1.0, UsageReported(Usage(3, 1)), ProviderExtra())
    assert going.add(1.5, A).max_gap_s == 1.0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_the_longest_gap_is_the_longest_and_every_stall_is_one(tenths: list[int]) -> None:
    """However many there are, in whatever order."""
    going, at_s = Going(), 0.0
    going.add(at_s, START, A)
    gaps = [number / 8 for number in tenths]
    for gap_s in gaps:
        at_s += gap_s
        going.add(at_s, A)
    assert going.progress.max_gap_s == max(gaps)
    assert [stall.length_s for stall in going.progress.stalls] == [gap_s for gap_s in gaps if gap_s > 2.0]
    assert going.progress.stall_s == sum(gap_s for gap_s in gaps if gap_s > 2.0)


# --- tokens


@pytest.mark.parametrize(
    ("deltas", "usage", "is_finished", "count"),
    [
        ([A, A], None, True, 2),
        ([A, A], Usage(3, 10), True, 10),
        ([A, A], Usage(3, 1), True, 1),
        ([A, A], Usage(3, 1), False, 2),
        ([A, A], Usage(3, 0), True, 2),
        ([A, A], Usage(3, 100, reasoning_tokens=80), True, 20),
        ([R, A], Usage(3, 100, reasoning_tokens=80), True, 100),
    ],
)
def test_tokens_are_those_delivered(deltas: list[Event], usage: Usage | None, count: int, *, is_finished: bool) -> None:
    """As reported at the end; on the way there is at least one in a delta. Hidden reasoning was delivered to nobody."""
    more: list[Event] = [*([UsageReported(usage)] if usage else []), *([STOP] if is_finished else [])]
    assert Going().add(0.5, START, *deltas, *more).token_count == count


# --- phases


def test_the_phases_of_an_answer() -> None:
    """Each is told of once, with the one before it."""
    going = Going()
    going.add(0.1, START)
    going.add(0.2, R)
    going.add(0.3, R, R)
    going.add(0.4, A)
    going.add(0.5, A, R)
    assert going.phases == [("prefill", "reasoning"), ("reasoning", "decode")]
    assert going.progress.phase == "decode"


def test_what_is_drained_is_in_no_other_phase_any_more() -> None:
    """Whether it had begun or not."""
    going = Going()
    going.progress.drain()
    going.progress.drain()
    going.add(0.5, START, A)
    assert going.phases == [("prefill", "draining")]
    assert going.progress.ttft_s == 0.5


def test_behind_the_end_no_phase_is_told_of() -> None:
    """Whoever counts has taken it out."""
    going = Going()
    going.end(1.0)
    going.progress.drain()
    assert going.phases == []


# --- stalls


def test_a_stall_that_passes_by_itself() -> None:
    """Its target is the one that was waited for."""
    going = Going()
    going.add(0.5, START, A)
    assert going.add(3.5, A).stalls == [Stall("a/x", "decode", "recovered", 3.0)]


def test_a_stall_while_it_reasons_is_one_of_that_phase() -> None:
    """Also when it ends with the first visible token."""
    going = Going()
    going.add(0.5, START, R)
    going.add(3.5, R)
    going.add(7.5, A)
    assert [(stall.phase, stall.length_s) for stall in going.progress.stalls] == [
        ("reasoning", 3.0),
        ("reasoning", 4.0),
    ]


def test_a_stall_that_another_target_ended() -> None:
    """It is the fault of the one before."""
    going = Going()
    going.add(0.5, START, A)
    going.add(3.0, failed(1))
    going.add(3.5, seam(2), A)
    going.add(7.5, A)
    assert going.progress.stalls == [
        Stall("a/x", "decode", "failed_over", 3.0),
        Stall("b/y", "decode", "recovered", 4.0),
    ]


@pytest.mark.parametrize(("has_client", "resolution"), [(True, "gave_up"), (False, "client_left")])
def test_a_stall_that_never_ended(resolution: str, *, has_client: bool) -> None:
    """The call failed, or its client did not want to wait for that."""
    going = Going()
    going.add(0.5, START, A)
    progress = going.end(4.5, is_complete=False, has_client=has_client)
    assert [(stall.resolution, stall.length_s) for stall in progress.stalls] == [(resolution, 4.0)]
    assert progress.max_gap_s == 4.0


def test_a_wait_for_the_first_token_is_no_stall() -> None:
    """It has an objective of its own: models that think for a minute would stall all the time."""
    going = Going()
    going.add(30.0, START, A)
    assert (going.progress.stalls, going.progress.max_gap_s) == ([], 0.0)
    never = Going()
    assert never.end(30.0, is_complete=False).stalls == []


def test_the_wait_for_the_end_is_no_gap() -> None:
    """When all has been said there is no token to wait for."""
    going = Going()
    going.add(0.5, START, A, STOP)
    assert (going.end(9.5, is_complete=False).stalls, going.progress.max_gap_s) == ([], 0.0)
    complete = Going()
    complete.add(0.5, START, A)
    assert complete.end(9.5).max_gap_s == 0.0


def test_all_is_said_when_every_choice_is() -> None:
    """One of two is still waited for."""
    going = Going(choice_count=2)
    going.add(0.5, START, A, TextDelta("a", 1), STOP)
    assert not going.progress.is_finished
    assert len(going.end(9.5, is_complete=False).stalls) == 1


# --- clients that do not read


def test_nobody_waits_for_a_token_while_the_client_does_not_read() -> None:
    """The gap, the stall and the speed are without the pause; how long it was is known."""
    going = Going()
    going.add(0.5, START, A)
    going.progress.note_pause(10.0)
    progress = going.add(11.0, A)
    assert (progress.max_gap_s, progress.stalls, progress.paused_s) == (0.5, [], 10.0)
    assert progress.tpot_s == pytest.approx(0.5)


def test_a_pause_before_the_first_token_shortens_nothing() -> None:
    """TTFT is what the client waited."""
    going = Going()
    going.progress.note_pause(1.0)
    progress = going.add(3.0, START, A)
    assert (progress.ttft_s, progress.paused_s) == (3.0, 1.0)


def test_an_answer_in_one_piece_that_was_read_slowly_has_no_speed_either() -> None:
    """What was moved on by the pause is moved back."""
    going = Going()
    going.add(0.1, START, A, A)
    going.progress.note_pause(0.3)
    assert going.progress.tpot_s is None


# --- attempts


def test_failing_before_the_first_token_costs_the_time_from_the_first_attempt_on() -> None:
    """Not from the request: what the gateway took before that was lost to nobody."""
    going = Going()
    going.progress.note_failed_attempt(100.25)
    going.add(0.5, failed(1))
    going.progress.note_failed_attempt(100.5)
    going.add(0.75, failed(2))
    progress = going.add(1.25, StreamStarted("c1", "m", target="b/y"), A)
    assert progress.losses == [Loss("pre_first_token", 1.0)]
    assert (progress.lost_s, progress.targets, progress.target) == (1.0, ["a/x", "b/y"], "b/y")


def test_without_a_ledger_it_costs_the_time_from_the_request_on() -> None:
    """That is all that is known."""
    going = Going()
    going.add(0.5, failed(1))
    assert going.add(1.5, START, A).losses == [Loss("pre_first_token", 1.5)]


def test_failing_in_mid_stream_costs_the_gap() -> None:
    """However short it was, and only the one behind the failure."""
    going = Going()
    going.add(0.5, START, A)
    going.add(1.5, A)
    going.add(1.6, failed(1, has_delivered=True))
    progress = going.add(1.75, seam(2), A)
    going.add(2.75, A)
    assert progress.losses == [Loss("mid_stream", 0.25)]
    assert (progress.target, progress.last_target, progress.targets) == ("a/x", "b/y", ["a/x", "b/y"])


def test_a_failover_that_brings_nothing_cost_no_time_that_could_be_told() -> None:
    """The call has failed."""
    going = Going()
    going.add(0.5, START, A)
    going.add(1.0, failed(1, has_delivered=True))
    assert going.end(1.5, is_complete=False, last=2).losses == []


def test_a_planned_seam_is_no_failure() -> None:
    """A provider that ends its turn and leaves a token for the rest has not failed."""
    going = Going()
    going.add(0.5, START, A)
    progress = going.add(0.75, seam(2, "a/x"), A)
    assert (progress.losses, progress.failovers, len(progress.seams)) == ([], {}, 1)


def test_an_attempt_that_is_told_of_twice_failed_once_and_what_was_never_made_is_none() -> None:
    """A target that could not even be asked is on the way."""
    going = Going()
    going.add(0.5, failed(1), failed(1), failed(0, "b/y"))
    assert list(going.progress.failovers) == [1]
    assert going.progress.targets == ["a/x", "b/y"]
    assert going.progress.attempt_count == 2


@pytest.mark.parametrize(("last", "count"), [(None, 3), (0, 2), (2, 2), (3, 3)])
def test_attempts_are_those_that_failed_and_the_last(last: int | None, count: int) -> None:
    """Which may be one of those that were told of, or none at all."""
    going = Going()
    going.add(0.5, failed(1), failed(2))
    assert going.end(1.0, is_complete=last is None, last=last).attempt_count == count


# --- objectives


def judged(going: Going, at_s: float, *, is_complete: bool = True) -> set[str]:
    """End the call, and return the objectives that it has met."""
    progress = going.end(at_s, is_complete=is_complete)
    met = progress.judge(100.0 + at_s, progress.tpot_s, is_complete=is_complete)
    return {objective for objective, is_met in zip(OBJECTIVES, met, strict=True) if is_met}


def steady(first_s: float, gap_s: float, count: int = 5) -> Going:
    """Return an answer in even steps."""
    going = Going()
    going.add(first_s, START, A)
    for number in range(1, count):
        going.add(first_s + number * gap_s, A)
    return going


EACH = {"ttft", "tpot", "smooth", "complete"}


def test_a_good_answer_meets_all() -> None:
    """Begun in time, fast enough, without a long gap, finished: at its very limits."""
    assert judged(steady(1.0, 0.0625), 2.0) == {*EACH, "all"}


@pytest.mark.parametrize(
    ("going", "missed"),
    [
        (lambda: steady(1.5, 0.05), {"ttft"}),
        (lambda: steady(0.5, 0.5), {"tpot"}),
        (lambda: steady(0.5, 3.0), {"tpot", "smooth"}),
    ],
)
def test_an_answer_that_misses_one_is_not_good(going: Any, missed: set[str]) -> None:
    """The others are still judged for themselves."""
    assert judged(going(), 20.0) == EACH - missed


def test_an_answer_that_broke_is_not_complete() -> None:
    """What was delivered of it may have been fast and smooth."""
    assert judged(steady(0.5, 0.05), 1.0, is_complete=False) == EACH - {"complete"}


def test_an_answer_that_broke_off_in_a_stall_is_not_smooth() -> None:
    """The wait that nothing followed counts like any other."""
    assert judged(steady(0.5, 0.05), 10.0, is_complete=False) == {"ttft", "tpot"}


def test_what_failed_before_its_first_token_has_missed_that() -> None:
    """However soon it failed: otherwise an outage would look quick. It was not slow in what nobody saw of it."""
    assert judged(Going(), 0.1, is_complete=False) == {"tpot", "smooth"}


@pytest.mark.parametrize(("at_s", "met"), [(0.5, {*EACH, "all"}), (1.5, EACH - {"ttft"})])
def test_an_answer_without_a_token_is_as_late_as_its_end(at_s: float, met: set[str]) -> None:
    """A filter may leave nothing of one."""
    going = Going()
    going.add(at_s, START, ChoiceFinished("content_filter"))
    assert judged(going, at_s) == met
