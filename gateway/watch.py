"""Watches an attempt's time limits: first token, token to token, and the whole.

Nothing of it is paid per token but one look at the clock: a token writes down when it came, and an alarm looks at that
when a limit could have run out, ends the attempt if it has, and looks again later if not.

One alarm serves all attempts, with one timer of the loop, which is set when an attempt is due before all others. They
mostly have the same limits and are due in their order, so that hardly any attempt sets a timer, and none has to take it
back: to watch one costs half of what it did with a timer for each.

Only tokens are progress. A provider that pings, or sends empty deltas, is as late as one that is silent. One that is
not read from, because its client takes no more, is not late at all.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from types import TracebackType
from typing import Any, Final, Literal, Self

from gateway.core.call import Flow

Limit = Literal["ttft", "stall", "total"]

TICK_S: Final = 0.001
"""How finely a loop counts: what is due within that is due. uvloop's timers may run out so much too soon."""

SPARE_COUNT: Final = 64
"""How many of an alarm's times may be of watches that have ended, beside as many as there are others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a provider may take, in seconds, and how many calls it gets at once (0: any number)."""

    connect_timeout_s: float = 5.0
    ttft_timeout_s: float = 60.0
    stall_timeout_s: float = 30.0
    total_timeout_s: float = 900.0
    max_concurrency: int = 0


class Alarm:
    """Looks at watches when they are due, in one loop and with one timer for them all.

    A watch that ends leaves its time behind. Such times are cleared away when they are more than those of live ones.
    """

    __slots__ = ("_due", "_handle", "_last_number", "_rings_at_s", "_watches")

    def __init__(self) -> None:
        self._due: list[tuple[float, int]] = []
        self._watches: dict[int, Watch] = {}
        self._last_number = 0
        self._rings_at_s = inf
        self._handle: asyncio.TimerHandle | None = None

    def add(self, watch: Watch, due_at_s: float) -> int:
        """Look at ``watch`` then; returns the number by which it can be removed."""
        number = self._last_number = self._last_number + 1
        self._watches[number] = watch
        heappush(self._due, (due_at_s, number))
        if due_at_s < self._rings_at_s:
            self._set(due_at_s)
        return number

    def remove(self, number: int) -> None:
        """Look no more at a watch."""
        watches, due = self._watches, self._due
        watches.pop(number, None)
        if len(due) > 2 * len(watches) + SPARE_COUNT:
            self._due = [one for one in due if one[1] in watches]
            heapify(self._due)

    def _set(self, at_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._rings_at_s = at_s
        self._handle = asyncio.get_running_loop().call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._handle, self._rings_at_s = None, inf
        now_s = time.monotonic() + TICK_S
        again: list[tuple[float, int]] = []
        try:
            while self._due and self._due[0][0] <= now_s:
                number = heappop(self._due)[1]
                watch = self._watches.get(number)
                if watch is not None and (due_at_s := watch.look(now_s)) is not None:
                    again.append((due_at_s, number))
        finally:
            for due in again:
                heappush(self._due, due)
            if self._due:
                self._set(self._due[0][0])


class Watch:
    """A context that raises ``TimeoutError`` out of its body when a limit runs out; ``expired`` names it.

    It is what ``asyncio.timeout`` is, and cancels the task in whose awaits it is used; but its body is not entered by
    an await, and it has one time to be looked at for all limits, with the ``alarm`` that it shares with others.

    ``is_stream`` is false for an answer that is asked for whole: it has no tokens to watch, only a total. While
    ``flow`` is paused no token is waited for. The total counts from ``asked_at_s``, when the client asked, over all
    attempts; a body is not begun when those before it have used that up.

    It is no struct, as is faster made: what is written for every token is written three times as fast in slots.
    """

    __slots__ = (
        "_began_at_s", "_cancelling", "_number", "_task", "_total_at_s", "alarm", "asked_at_s", "expired", "flow",
        "is_stream", "limits", "progress_at_s",
    )  # fmt: skip

    def __init__(
        self,
        limits: Limits,
        *,
        is_stream: bool,
        flow: Flow,
        asked_at_s: float | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self.limits = limits
        self.is_stream = is_stream
        self.flow = flow
        self.asked_at_s = asked_at_s
        self.alarm = Alarm() if alarm is None else alarm
        self.progress_at_s: float | None = None
        self.expired: Limit | None = None
        self._began_at_s = 0.0
        self._total_at_s = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._number = 0

    def note_progress(self, at_s: float) -> float:
        """A token came then; returns how long after the one before, or after the client was waited for: -1 if none.

        Who has no call to spare writes ``progress_at_s`` itself.
        """
        before_s, self.progress_at_s = self.progress_at_s, at_s
        return -1.0 if before_s is None else at_s - before_s

    def note_pause(self) -> None:
        """The client has been waited for."""
        self.progress_at_s = time.monotonic()

    def __enter__(self) -> Self:
        limits = self.limits
        began_at_s = self._began_at_s = time.monotonic()
        asked_at_s = began_at_s if self.asked_at_s is None else self.asked_at_s
        due_at_s = self._total_at_s = asked_at_s + limits.total_timeout_s
        if began_at_s >= due_at_s:
            self.expired = "total"
            raise TimeoutError
        task = self._task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a watch is used in a task")
        self._cancelling = task.cancelling()
        if self.is_stream:
            token_s = min(limits.ttft_timeout_s, limits.stall_timeout_s)  # a token that comes soon is followed sooner
            due_at_s = min(due_at_s, began_at_s + token_s)
        self._number = self.alarm.add(self, due_at_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self.alarm.remove(self._number)
        if self.expired is None or task is None:
            return
        is_ours = task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        del task  # it may be cancelled once more: it keeps that error, by whose frames it would be kept itself
        if is_ours:
            raise TimeoutError from error

    def look(self, now_s: float) -> float | None:
        """End the body if a limit has run out by now; returns when to look again, ``None`` for never."""
        if self.progress_at_s is not None and self.flow.is_paused:
            self.note_pause()
        limit, due_at_s = self._next_due()
        if now_s < due_at_s:  # a token that comes before then is due sooner
            return min(due_at_s, now_s + self.limits.stall_timeout_s)
        if self._task is not None:
            self.expired = limit
            self._task.cancel()
        return None

    def _next_due(self) -> tuple[Limit, float]:
        limits = self.limits
        total_at_s = self._total_at_s
        if not self.is_stream:
            return "total", total_at_s
        if self.progress_at_s is None:
            token: tuple[Limit, float] = ("ttft", self._began_at_s + limits.ttft_timeout_s)
        else:
            token = ("stall", self.progress_at_s + limits.stall_timeout_s)
        return token if token[1] < total_at_s else ("total", total_at_s)
