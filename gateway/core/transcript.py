"""The transcript: a stream's events folded into what was delivered so far.

Resuming needs it to know where to go on, a whole answer is rendered from it, logs and metrics count by it. It keeps the
pieces and joins them when asked: appending is all that a token costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, assert_never

from gateway.core.events import (
    ChoiceFinished,
    Delta,
    Event,
    FinishReason,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class ToolCallTranscript:
    """One tool call as far as it was delivered."""

    id: str
    name: str
    kind: Literal["function", "custom", "legacy"]
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The argument text so far; whole JSON only when the choice has finished."""
        return "".join(self.pieces)


@dataclass(slots=True)
class ChoiceTranscript:
    """One choice as far as it was delivered."""

    text_pieces: list[str] = field(default_factory=list)
    reasoning_pieces: list[str] = field(default_factory=list)
    refusal_pieces: list[str] = field(default_factory=list)
    tool_calls: dict[int, ToolCallTranscript] = field(default_factory=dict)
    finish_reason: FinishReason | None = None
    native_reason: str = ""

    @property
    def text(self) -> str:
        """The visible answer so far."""
        return "".join(self.text_pieces)

    @property
    def reasoning(self) -> str:
        """The shown reasoning so far."""
        return "".join(self.reasoning_pieces)

    @property
    def refusal(self) -> str:
        """The words of refusal so far."""
        return "".join(self.refusal_pieces)


@dataclass(slots=True)
class Transcript:
    """What a stream has delivered so far."""

    started: StreamStarted | None = None
    choices: dict[int, ChoiceTranscript] = field(default_factory=dict)
    usage: Usage | None = None
    delta_count: int = 0

    def add(self, events: Sequence[Event]) -> None:
        """Fold in what one read brought."""
        for event in events:
            self._add(event)

    def choice(self, index: int = 0) -> ChoiceTranscript:
        """Return the choice ``index``, empty if nothing of it was delivered."""
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = ChoiceTranscript()
        return found

    @property
    def is_visible(self) -> bool:
        """Whether a user could have seen anything of it."""
        return self.delta_count > 0

    def _add(self, event: Event) -> None:
        match event:
            case StreamStarted():
                self.started = event
            case UsageReported(usage=usage):
                self.usage = usage
            case ProviderExtra():
                pass
            case ChoiceFinished():
                choice = self.choice(event.index)
                choice.finish_reason, choice.native_reason = event.reason, event.native_reason
            case _:
                self.delta_count += 1
                _add_delta(self.choice(event.index), event)


def _add_delta(choice: ChoiceTranscript, event: Delta) -> None:
    match event:
        case TextDelta():
            choice.text_pieces.append(event.text)
        case ReasoningDelta():
            choice.reasoning_pieces.append(event.text)
        case RefusalDelta():
            choice.refusal_pieces.append(event.text)
        case ToolCallStarted():
            choice.tool_calls[event.call_index] = ToolCallTranscript(event.id, event.name, event.kind)
        case ToolCallDelta():
            choice.tool_calls[event.call_index].pieces.append(event.arguments)
        case _:
            assert_never(event)
