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
    from collections.abc import Collection, Sequence

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

_WAITING, _OPEN, _FINISHED = LEGAL["waiting"], LEGAL["open"], LEGAL["finished"]
_OF_NO_CHOICE = frozenset({StreamStarted, UsageReported, ProviderExtra, AttemptFailed, StreamContinued})


class Lifecycle:
    """Follows one stream and says which of its events are legal."""

    __slots__ = ("_calls", "_finished", "_open", "dropped_count", "has_started")

    def __init__(self) -> None:
        self.has_started = False
        self.dropped_count = 0
        self._open: set[int] = set()
        self._finished: Collection[int] = ()  # as long as there is none, no set is made
        self._calls: Collection[tuple[int, int]] = ()

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
        admitted: list[Event] = []
        for event in events:
            if (type(event) is TextDelta and event.index in is_open) or self._is_legal(event):
                admitted.append(event)  # noqa: PERF401, of few events a loop is faster
        self.dropped_count += len(events) - len(admitted)
        return admitted

    def _is_legal(self, event: Event) -> bool:
        kind = type(event)  # of a ``match`` each class that it is not takes as long as all of this
        if not self.has_started:
            self.has_started = kind is StreamStarted
            return kind in _WAITING
        if kind in _OF_NO_CHOICE:
            return kind in _OPEN
        index: int = event.index  # type: ignore[union-attr]  # all others have one
        if kind not in (_FINISHED if index in self._finished else _OPEN):
            return False
        if kind is ChoiceFinished:
            self._finished = {*self._finished, index}
            self._open.discard(index)
        elif kind is ToolCallStarted or kind is ToolCallDelta:
            return self._is_call_legal(event, index)  # type: ignore[arg-type]  # it is one of these
        elif kind is not CheckpointReached:
            self._open.add(index)
        return True

    def _is_call_legal(self, event: ToolCallStarted | ToolCallDelta, index: int) -> bool:
        """Whether a call begins that did not yet, or goes on that did."""
        call = index, event.call_index
        if type(event) is ToolCallDelta:
            return call in self._calls
        if call in self._calls:
            return False
        if type(self._calls) is not set:
            self._calls = set()
        self._calls.add(call)
        self._open.add(index)
        return True
