"""The end of a chain that plays a script: what each attempt sends, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.core.call import Call
from gateway.core.errors import UpstreamError
from gateway.core.events import ChoiceFinished, Event, StreamStarted, TextDelta, Usage, UsageReported
from gateway.pipeline import Send

HANG = "hang"
"""A step that never ends by itself."""

START = StreamStarted("c1", "m", target="openai/gpt")
ANSWER: tuple[list[Event], ...] = (
    [START, TextDelta("Hel")],
    [TextDelta("lo"), ChoiceFinished("stop")],
    [UsageReported(Usage(3, 2))],
)
"""An answer in three reads."""

Step = Sequence[list[Event] | BaseException | str]


def ignore(events: Sequence[Event]) -> None:
    """Take events, and do nothing with them."""


class ScriptedEndpoint:
    """Plays one script per attempt: lists are sent, an exception is raised, ``HANG`` waits for ever.

    ``calls`` are those that reached it, ``cancelled_count`` how many of them were waiting when they were let go.
    """

    def __init__(self, *scripts: Step) -> None:
        self._scripts = list(scripts) or [ANSWER]
        self.calls: list[Call] = []
        self.cancelled_count = 0

    async def __call__(self, call: Call, send: Send) -> None:
        """Play the next script, or the last one again."""
        self.calls.append(call)
        was_sent = False
        for step in self._scripts[min(len(self.calls), len(self._scripts)) - 1]:
            await asyncio.sleep(0)
            if isinstance(step, BaseException):
                if isinstance(step, UpstreamError):
                    step.was_sent = was_sent  # as the real end of the chain says it
                raise step
            if isinstance(step, str):
                await self._hang()
            else:
                was_sent = True
                send(step)

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled_count += 1
            raise
