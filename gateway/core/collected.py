"""An answer that is wanted whole, kept while it comes as a stream: like that, it too can be continued.

Nobody has seen any of it before its end, so that it can be asked for once more where it cannot be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core.call import Call
from gateway.core.events import AttemptFailed, Event
from gateway.core.plan import is_spoken

SHORT_ANSWER_TOKENS = 1024
"""An answer wanted whole that cannot be longer is asked for as it is wanted, and once more if it breaks off.

A stream of a hundred chunks takes ten times the CPU of the one document that they make, for every such answer; what it
saves is a few seconds of a model's time, for one in thousands.
"""


def may_be_collected(call: Call) -> bool:
    """Whether an answer that is wanted whole is asked for as a stream: it is to be continued, and may well be long."""
    is_short = call.max_output_tokens is not None and call.max_output_tokens <= SHORT_ANSWER_TOKENS
    return call.route.on_interrupt == "continue" and not is_short and not is_spoken(call)


class Collected:
    """Keeps the events of an answer that is wanted whole; what is only told to who watches is told at once."""

    __slots__ = ("_batches", "_send")

    def __init__(self, send: Callable[[Sequence[Event]], None]) -> None:
        self._send = send
        self._batches: list[Sequence[Event]] = []

    def send(self, events: Sequence[Event]) -> None:
        """Keep ``events``."""
        if any(isinstance(event, AttemptFailed) for event in events):
            self._send([event for event in events if isinstance(event, AttemptFailed)])
            events = [event for event in events if not isinstance(event, AttemptFailed)]
        if events:
            self._batches.append(events)

    def clear(self) -> None:
        """Forget what was kept."""
        self._batches.clear()

    def pass_on(self) -> None:
        """Send all that was kept, as it came."""
        for events in self._batches:
            self._send(events)
