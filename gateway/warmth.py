"""Keeps a connection to each provider ready, so that a first token does not have to wait for a handshake.

A TCP and TLS handshake is two or three round trips and the dearest thing that a gateway does for a call; a connection
that rests costs neither side anything. One is made to every provider when the gateway begins to serve, and again for
those that were asked lately when theirs has been let go of. Nothing is sent on it, and that it cannot be made is no
fault: whoever asks the provider will find out, and say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

LOOK_S: Final = 20.0
"""How often it is looked whether a connection is kept."""

LATELY_S: Final = 600.0
"""For so long after a provider was asked it is likely to be asked again."""


class Warmed(Protocol):
    """What is known of a provider here. ``asked_at_s`` is on the monotonic clock."""

    @property
    def asked_at_s(self) -> float:
        """When it was asked last."""

    async def warm(self) -> None:
        """Make a connection, unless one is kept; one that cannot be made is nobody's error."""


class Warmth:
    """Looks after ``providers`` from ``start`` to ``stop``; all count as asked when it begins."""

    def __init__(
        self, providers: Sequence[Warmed], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._providers = providers
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; to be called inside the loop."""
        if self._providers:
            self._task = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Make no more connections."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _look_after(self) -> None:
        began_at_s = time.monotonic()
        while True:
            since_s = time.monotonic() - LATELY_S
            lately = [one for one in self._providers if max(one.asked_at_s, began_at_s) >= since_s]
            await asyncio.gather(*(one.warm() for one in lately))
            await self._sleep(LOOK_S)
