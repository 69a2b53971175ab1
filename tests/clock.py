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
