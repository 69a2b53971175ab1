"""Watches an attempt's time limits: first token, token to token, and the whole.

Nothing of it is paid per token but one look at the clock: a token writes down when it came, and a single timer per
attempt looks at that when a limit could have run out, ends the attempt if it has, and looks again later if not.

Only tokens are progress. A provider that pings, or sends empty deltas, is as late as one that is silent. One that is
not read from, because its client takes no more, is not late at all.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from gateway.core.call import Flow

Limit = Literal["ttft", "stall", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a provider may take, in seconds, and how many calls it gets at once (0: any number)."""

    connect_timeout_s: float = 5.0
    ttft_timeout_s: float = 60.0
    stall_timeout_s: float = 30.0
    total_timeout_s: float = 900.0
    max_concurrency: int = 0


class Watch:
    """A context that raises ``TimeoutError`` out of its body when a limit runs out; ``expired`` names it.

    It is what ``asyncio.timeout`` is, and cancels the task in whose awaits it is used; but its body is not entered by
    an await, and it has one timer for all limits.

    ``is_stream`` is false for an answer that is asked for whole: it has no tokens to watch, only a total. While
    ``flow`` is paused no token is waited for. The total counts from ``asked_at_s``, when the client asked, over all
    attempts; a body is not begun when those before it have used that up.
    """

    __slots__ = (
        "_asked_at_s",
        "_began_at_s",
        "_cancelling",
        "_flow",
        "_handle",
        "_is_stream",
        "_limits",
        "_loop",
        "_task",
        "expired",
        "progress_at_s",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        is_stream: bool,
        flow: Flow,
        asked_at_s: float | None = None,
    ) -> None:
        self._limits = limits
        self._is_stream = is_stream
        self._flow = flow
        self._loop = asyncio.get_running_loop()
        self._began_at_s = self._loop.time()
        self._asked_at_s = self._began_at_s if asked_at_s is None else asked_at_s
        self.progress_at_s: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._handle: asyncio.TimerHandle | None = None
        self.expired: Limit | None = None

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
        if self._loop.time() >= self._asked_at_s + self._limits.total_timeout_s:
            self.expired = "total"
            raise TimeoutError
        task = self._task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a watch is used in a task")
        self._cancelling = task.cancelling()
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._handle is not None:
            self._handle.cancel()
        if self.expired is None or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self) -> None:
        if self.progress_at_s is not None and self._flow.is_paused:
            self.note_pause()
        limit, due_at_s = self._next_due()
        now_s = self._loop.time()
        if now_s < due_at_s:  # a token that comes before then is due sooner
            self._handle = self._loop.call_at(min(due_at_s, now_s + self._limits.stall_timeout_s), self._look)
        elif self._task is not None:
            self.expired = limit
            self._task.cancel()

    def _next_due(self) -> tuple[Limit, float]:
        limits = self._limits
        total_at_s = self._asked_at_s + limits.total_timeout_s
        if not self._is_stream:
            return "total", total_at_s
        if self.progress_at_s is None:
            token: tuple[Limit, float] = ("ttft", self._began_at_s + limits.ttft_timeout_s)
        else:
            token = ("stall", self.progress_at_s + limits.stall_timeout_s)
        return token if token[1] < total_at_s else ("total", total_at_s)
