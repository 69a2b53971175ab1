"""The legal order of a stream's events, as a table.

One stream starts once, and each of its choices runs ``open`` → ``finished``. A tool call starts before its arguments.
Usage and extras may come at any time: providers send them before the start, on every chunk, or after the end. So may
the note that an attempt has failed, which no provider sends; a seam and a provider's checkpoint lie behind the start.

Providers do break the order: text after the finish, a second start, arguments of a call that never began. Such an event
is not passed on (nothing could be done with it that a client expects) and counted, see ``Lifecycle.dropped_count``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.events import (
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LEGAL: dict[str, frozenset[type]] = {
    "waiting": frozenset({StreamStarted, UsageReported, ProviderExtra, AttemptFailed}),
    "open": frozenset(
        {
            TextDelta,
            ReasoningDelta,
            RefusalDelta,
            ToolCallStarted,
            ToolCallDelta,
            ChoiceFinished,
            UsageReported,
            ProviderExtra,
            CheckpointReached,
            AttemptFailed,
            StreamContinued,
        }
    ),
    "finished": frozenset({UsageReported, ProviderExtra, CheckpointReached, AttemptFailed, StreamContinued}),
}
"""Which events may come while the stream waits for its start, and while a choice is open or finished."""

_OF_NO_CHOICE = frozenset({StreamStarted, UsageReported, ProviderExtra, AttemptFailed, StreamContinued})
_UNFOLLOWED = frozenset({UsageReported, ProviderExtra, AttemptFailed, StreamContinued, CheckpointReached})
"""What makes no difference to what is legal next."""


class Lifecycle:
    """Follows one stream and says which of its events are legal."""

    __slots__ = ("_calls", "_finished", "_open", "dropped_count", "has_started")

    def __init__(self) -> None:
        self.has_started = False
        self.dropped_count = 0
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self._calls: set[tuple[int, int]] = set()

    @property
    def finished_count(self) -> int:
        """How many choices have finished; 0 while any that was seen has not."""
        return 0 if self._open else len(self._finished)

    def is_open(self, index: int) -> bool:
        """Whether the choice ``index`` has begun and not finished, so that a delta of it is legal."""
        return index in self._open

    def admit(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that may be passed on, in their order."""
        is_open = self._open
        return [
            event for event in events if (type(event) is TextDelta and event.index in is_open) or self._allows(event)
        ]

    def _allows(self, event: Event) -> bool:
        if self._is_legal(event):
            return True
        self.dropped_count += 1
        return False

    def _is_legal(self, event: Event) -> bool:
        kind = type(event)
        if kind not in LEGAL[self._state(event)]:
            return False
        if kind in _UNFOLLOWED:
            return True
        match event:
            case TextDelta() | ReasoningDelta() | RefusalDelta():
                self._open.add(event.index)
            case ChoiceFinished(index=index):
                self._finished.add(index)
                self._open.discard(index)
            case StreamStarted():
                self.has_started = True
            case ToolCallStarted(call_index=call_index, index=index):
                if (index, call_index) in self._calls:
                    return False
                self._calls.add((index, call_index))
                self._open.add(index)
            case ToolCallDelta(call_index=call_index, index=index):
                return (index, call_index) in self._calls
        return True

    def _state(self, event: Event) -> str:
        if not self.has_started:
            return "waiting"
        if type(event) in _OF_NO_CHOICE:
            return "open"
        return "finished" if event.index in self._finished else "open"  # type: ignore[union-attr]  # all others have one
