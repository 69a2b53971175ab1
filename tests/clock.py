"""A clock that a test puts forward: a limit of half a minute is over at once, and none is over by accident."""

import asyncio
import time

import pytest

TURNS = 10


class Clock:
    """The monotonic clock of this process, and so that of its event loop, which runs ahead as far as it was put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.ahead_s)

    def advance(self, by_s: float) -> None:
        """Put it forward; what is due by then is done in the loop's next turn."""
        self.ahead_s += by_s

    async def pass_by(self, seconds: float) -> None:
        """Put it forward, and let be done what is due by then, with what follows from it at once."""
        self.advance(seconds)
        for _ in range(TURNS):
            await asyncio.sleep(0)


class IdleClock:
    """A clock that moves only when its event loop has nothing to do but wait, and then to when that wait is over.

    For what waits for timers alone: each runs out by itself and in its order, however slow the machine is, and at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: asyncio.SelectorEventLoop) -> None:
        self.now_s = time.monotonic()
        self._select = loop._selector.select  # type: ignore[attr-defined]  # what an event loop waits with
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(loop._selector, "select", self._pass_by)  # type: ignore[attr-defined]  # the same

    def _pass_by(self, timeout_s: float | None) -> object:
        ready = self._select(0 if timeout_s else timeout_s)
        if timeout_s and not ready:
            self.now_s += timeout_s + 1e-6
        return ready
