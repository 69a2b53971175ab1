import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.call import OpenFlow
from gateway.watch import SPARE_COUNT, Alarm, Limit, Limits, Watch
from tests.clock import Clock

LIMITS = Limits(ttft_timeout_s=200, stall_timeout_s=100, total_timeout_s=600)


class PausedFlow(OpenFlow):
    """A client that takes nothing."""

    is_paused = True


async def run(
    clock: Clock, *gaps_s: float, limits: Limits = LIMITS, is_stream: bool = True
) -> tuple[Limit | None, int]:
    """Make progress after each of the gaps; returns the limit that ran out, if any, and the progress made by then."""
    watch = Watch(limits, is_stream=is_stream, flow=OpenFlow())
    token_count = 0
    try:
        with watch:
            for gap_s in gaps_s:
                await clock.pass_by(gap_s)
                watch.note_progress(time.monotonic())
                token_count += 1
    except TimeoutError:
        pass
    return watch.expired, token_count


@pytest.mark.parametrize(
    ("gaps_s", "expired", "token_count"),
    [
        ((), None, 0),
        ((20,), None, 1),
        ((150, 50, 50, 50), None, 4),
        ((400,), "ttft", 0),
        ((20, 300), "stall", 1),
    ],
)
async def test_the_limit_that_runs_out_first_ends_the_body_and_is_named(
    gaps_s: tuple[float, ...], expired: Limit | None, token_count: int, clock: Clock
) -> None:
    """First token, token to token, and the whole each have their own limit."""
    found, count = await run(clock, *gaps_s)
    assert found == expired
    assert count == token_count


async def test_a_lively_body_that_takes_too_long_is_ended_by_the_total(clock: Clock) -> None:
    """Progress does not move it."""
    expired, count = await run(clock, *([50] * 100))
    assert expired == "total"
    assert 9 <= count <= 11


async def test_a_stall_is_noticed_when_it_is_due_however_long_the_first_token_might_have_taken(clock: Clock) -> None:
    """A patient limit on the first token does not delay the one between tokens."""
    limits = Limits(ttft_timeout_s=60_000, stall_timeout_s=100)
    assert await run(clock, 30, 30, 130, limits=limits) == ("stall", 2)


async def test_a_total_before_the_first_token_is_named_total(clock: Clock) -> None:
    """The shorter of the two counts."""
    limits = Limits(ttft_timeout_s=500, total_timeout_s=100)
    assert (await run(clock, 130, limits=limits))[0] == "total"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_the_total_counts_from_when_the_client_asked(clock: Clock, *, is_stream: bool) -> None:
    """Attempts before have used some of it; the other limits are each attempt's own."""
    limits = Limits(ttft_timeout_s=1000, total_timeout_s=600)
    asked_at_s = asyncio.get_running_loop().time() - 400
    watch = Watch(limits, is_stream=is_stream, flow=OpenFlow(), asked_at_s=asked_at_s)
    passed_s = 0

    async def body() -> None:
        nonlocal passed_s
        with watch:
            for _ in range(10):
                await clock.pass_by(40)
                passed_s += 40

    with pytest.raises(TimeoutError):
        await body()
    assert watch.expired == "total"
    assert passed_s == 160, "the limit ran out behind that"


async def test_a_body_for_which_no_time_is_left_is_not_begun() -> None:
    """Not even up to its first await: a request could be written by then."""
    asked_at_s = asyncio.get_running_loop().time() - LIMITS.total_timeout_s
    watch = Watch(LIMITS, is_stream=True, flow=OpenFlow(), asked_at_s=asked_at_s)
    begun = []
    with pytest.raises(TimeoutError), watch:
        begun.append(True)
    assert (watch.expired, begun) == ("total", [])
    await asyncio.sleep(0.01)


async def test_an_answer_wanted_whole_has_only_a_total(clock: Clock) -> None:
    """It has no tokens to be late with."""
    assert await run(clock, 400, is_stream=False) == (None, 1)
    assert (await run(clock, 800, is_stream=False))[0] == "total"


async def test_a_paused_client_stops_the_clock_between_tokens_but_not_the_whole(clock: Clock) -> None:
    """A provider that is not read from is not late; an answer that takes too long is."""
    watch = Watch(LIMITS, is_stream=True, flow=PausedFlow())
    passed_s = 0

    async def body() -> None:
        nonlocal passed_s
        with watch:
            watch.note_progress(time.monotonic())
            for _ in range(10):
                await clock.pass_by(80)
                passed_s += 80

    with pytest.raises(TimeoutError):
        await body()
    assert watch.expired == "total"
    assert passed_s == 560, "the limit ran out behind that"


async def test_a_body_that_ends_in_time_leaves_no_timer(clock: Clock) -> None:
    """What ran out afterwards concerns nobody."""
    watch = Watch(LIMITS, is_stream=True, flow=OpenFlow())
    with watch:
        pass
    await clock.pass_by(700)
    assert watch.expired is None


async def test_an_error_of_the_body_passes_through() -> None:
    """The watch translates nothing but its own end."""
    with pytest.raises(ValueError, match="mine"), Watch(LIMITS, is_stream=True, flow=OpenFlow()):
        raise ValueError("mine")


async def test_a_cancellation_from_outside_is_not_a_timeout() -> None:
    """Who left was not late."""
    watch = Watch(LIMITS, is_stream=True, flow=OpenFlow())

    async def body() -> None:
        with watch:
            await asyncio.sleep(5)

    task = asyncio.ensure_future(body())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watch.expired is None


async def test_progress_tells_how_long_after_the_last_it_came() -> None:
    """By the times that it is told; for the first there is none before."""
    watch = Watch(LIMITS, is_stream=True, flow=OpenFlow())
    assert [watch.note_progress(at_s) for at_s in (10.0, 10.5, 10.5, 12.5)] == [-1.0, 0.5, 0.0, 2.0]


async def test_behind_a_pause_the_time_since_the_last_token_begins_anew() -> None:
    """It was the client who was waited for."""
    watch = Watch(LIMITS, is_stream=True, flow=OpenFlow())
    watch.note_progress(time.monotonic() - 100)
    watch.note_pause()
    assert 0 <= watch.note_progress(time.monotonic()) < 50


# --- one alarm for many


async def watched(alarm: Alarm, limits: Limits, *, flow: OpenFlow | None = None) -> None:
    """Wait under a watch until a limit has run out."""
    with Watch(limits, is_stream=True, flow=flow or OpenFlow(), alarm=alarm):
        await asyncio.Event().wait()


class Timers:
    """The timers that a loop is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        loop = asyncio.get_running_loop()
        self._call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", self._note)

    def _note(self, at_s: float, callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.count += 1
        return self._call_at(at_s, callback, *args, **options)


@pytest.mark.parametrize("order", [(100, 200, 300), (300, 200, 100), (200, 300, 100)])
async def test_watches_of_one_alarm_are_each_ended_when_they_are_due(order: tuple[int, ...], clock: Clock) -> None:
    """In whatever order they have begun."""
    alarm = Alarm()
    tasks = {limit_s: asyncio.create_task(watched(alarm, Limits(ttft_timeout_s=limit_s))) for limit_s in order}
    await asyncio.sleep(0)
    await clock.pass_by(50)
    for limit_s in (100, 200, 300):
        assert not tasks[limit_s].done()
        await clock.pass_by(100)
        assert isinstance(tasks[limit_s].exception(), TimeoutError)


async def test_watches_that_are_due_at_once_are_all_ended(clock: Clock) -> None:
    """However many there are, the alarm rings once for them."""
    alarm = Alarm()
    tasks = [asyncio.create_task(watched(alarm, LIMITS)) for _ in range(100)]
    await asyncio.sleep(0)
    await clock.pass_by(220)
    assert all(isinstance(task.exception(), TimeoutError) for task in tasks)


async def test_a_watch_that_is_due_behind_others_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all attempts are: they have the limits of those before."""
    timers, alarm = Timers(monkeypatch), Alarm()
    for _ in range(3 * SPARE_COUNT):
        with Watch(LIMITS, is_stream=True, flow=OpenFlow(), alarm=alarm):
            pass
    assert timers.count == 1
    with Watch(Limits(ttft_timeout_s=10), is_stream=True, flow=OpenFlow(), alarm=alarm):
        assert timers.count == 2, "it is due before them"


async def test_of_watches_that_have_ended_little_is_kept() -> None:
    """Neither them, nor whom they watched; and of their times no more than a few."""
    alarm = Alarm()
    flow = OpenFlow()
    gone = weakref.ref(flow)
    with Watch(LIMITS, is_stream=True, flow=OpenFlow(), alarm=alarm):
        for _ in range(10 * SPARE_COUNT):
            with Watch(LIMITS, is_stream=True, flow=flow, alarm=alarm):
                pass
    del flow
    gc.collect()
    assert gone() is None
    assert len(alarm._due) <= SPARE_COUNT + 2


async def test_a_live_watch_is_ended_when_it_is_due_however_many_have_ended_since(clock: Clock) -> None:
    """Clearing away their times leaves its own."""
    alarm = Alarm()
    first = asyncio.create_task(watched(alarm, LIMITS))
    await asyncio.sleep(0)
    for _ in range(10 * SPARE_COUNT):
        with Watch(Limits(ttft_timeout_s=20), is_stream=True, flow=OpenFlow(), alarm=alarm):
            pass
    last = asyncio.create_task(watched(alarm, LIMITS))
    await asyncio.sleep(0)
    await clock.pass_by(90)
    assert not first.done()
    assert not last.done()
    await clock.pass_by(130)
    assert isinstance(first.exception(), TimeoutError)
    assert isinstance(last.exception(), TimeoutError)


async def test_a_watch_that_cannot_be_looked_at_is_no_harm_to_others(clock: Clock) -> None:
    """They are ended when they are due."""

    class BrokenFlow(OpenFlow):
        @property
        def is_paused(self) -> bool:  # type: ignore[override]  # the others are never paused
            raise RuntimeError("broken")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    alarm = Alarm()
    broken = Watch(LIMITS, is_stream=True, flow=BrokenFlow(), alarm=alarm)
    broken.note_progress(time.monotonic())
    with broken:
        other = asyncio.create_task(watched(alarm, Limits(ttft_timeout_s=150, stall_timeout_s=150)))
        await asyncio.sleep(0)
        await clock.pass_by(50)
        await clock.pass_by(60)
        assert not other.done()
        await clock.pass_by(100)
        assert isinstance(other.exception(), TimeoutError)
