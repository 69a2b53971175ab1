"""Waiting for what will be so, of which nobody tells when it is."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

TIMEOUT_S = 30.0


@overload
async def eventually(
    look: Callable[[], Awaitable[T | None]], *, timeout_s: float = TIMEOUT_S, every_s: float = 0.01
) -> T: ...


@overload
async def eventually(look: Callable[[], T | None], *, timeout_s: float = TIMEOUT_S, every_s: float = 0.01) -> T: ...


async def eventually(look: Callable[[], object], *, timeout_s: float = TIMEOUT_S, every_s: float = 0.01) -> object:
    """Look until there is something to see, and return it; ``TimeoutError`` if there never is."""
    async with asyncio.timeout(timeout_s):
        while True:
            seen = look()
            if inspect.isawaitable(seen):
                seen = await seen
            if seen:
                return seen
            await asyncio.sleep(every_s)
