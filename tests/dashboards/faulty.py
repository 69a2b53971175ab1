"""A middleware with a mistake in it, for a gateway that is to be seen failing by its own fault."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.call import Call
from gateway.pipeline import Next, Send

MODEL = "faulty"


@dataclass(frozen=True)
class Faulty:
    """Fails on every call for one model."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Fail as no middleware should, or hand the call on."""
        if call.route.name == MODEL:
            raise ZeroDivisionError
        await call_next(call, send)
