"""What stands for a client where a body is read: one that takes all, and one that can be shut by hand."""

import asyncio

from gateway.provider_connection import Take


class Tap:
    """A flow that is closed by hand."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    is_committed = False

    @property
    def is_paused(self) -> bool:
        """Whether reading should pause."""
        return not self._open.is_set()

    async def wait(self) -> None:
        """Return when the tap is open."""
        await self._open.wait()

    def turn(self, *, is_open: bool) -> None:
        """Open or close."""
        if is_open:
            self._open.set()
        else:
            self._open.clear()


def ignore() -> None:
    """Take note of nothing."""


def into(got: list[bytes]) -> Take:
    """Return a taker that keeps what it is given, and never has enough."""

    def take(data: bytes, arrived_at_s: float) -> bool:  # noqa: ARG001, the signature of a taker
        got.append(data)
        return False

    return take
