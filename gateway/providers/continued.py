"""What all providers share that can go on with a partial answer: how it is shown to them, and what is new of the rest.

A partial answer is shown as an open turn of the assistant's, the last of the conversation. Where the client had begun
that turn itself, both are one. What comes back is cut by the trims of ``core/seam.py``, whatever the wire: an echo of
the turn, white space that was not shown, what comes once more behind a checkpoint. Of bytes this module knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from gateway.core.call import Call, Message, TextPart
from gateway.core.continuation import Continuation
from gateway.core.errors import StreamInterrupted
from gateway.core.events import (
    CheckpointReached,
    ChoiceFinished,
    Event,
    RefusalDelta,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from gateway.core.seam import LEAST_ANCHOR_CHARACTERS, EchoTrim, ReplayTrim, SpaceTrim, Trim
from gateway.providers.base import Decoder, ProviderOptions


def goes_on(options: ProviderOptions, call: Call, *, is_known: bool) -> bool:
    """Return whether the target goes on with an open turn: by the operator's word, else by what is known of it.

    None does with a turn that the client began with something else than text, which words cannot be put behind.
    """
    if options.continuation == "auto" and not is_known:
        return False
    return options.continuation in ("auto", "exact") and all(isinstance(part, TextPart) for part in _begun(call).parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTurn:
    """A partial answer as a target is shown it: ``text``, without the white space that stands behind that.

    ``echo`` is what the target may say again before it goes on; one that ``echoes`` does so as a rule.
    """

    text: str = field(repr=False)
    echo: str = field(repr=False)
    space: str = ""
    echoes: bool = False

    def rest(self) -> Rest:
        """Return what passes on of the answer only what is behind the turn."""
        return Rest((EchoTrim(self.echo, expected=self.echoes), SpaceTrim(self.space)))


def open_turn(call: Call, *, echoes: bool = False, takes_space: bool = True) -> OpenTurn | None:
    """Return the turn that ``call`` is to go on with; ``None`` where it is to begin one.

    ``echoes`` says whether its target repeats the turn, ``takes_space`` whether it may end in white space there.
    """
    continuation = call.continuation
    if continuation is None or continuation.way != "exact" or not continuation.text:
        return None
    begun = _begun(call).text if takes_space else _begun(call).text.rstrip()
    text = echo = begun + continuation.text
    if begun and _is_repeated(begun, call, continuation, echoes=echoes):
        echo = continuation.text
        text = max(begun, echo, key=len)
    shown = text if takes_space else text.rstrip()
    return OpenTurn(text=shown, echo=echo if takes_space else echo.rstrip(), space=text[len(shown) :], echoes=echoes)


def messages_with(call: Call, turn: OpenTurn | None) -> tuple[Message, ...]:
    """Return the messages of ``call`` and the open turn behind them, which is one with the client's own."""
    if turn is None or not turn.text:
        return call.messages
    begun = _begun(call)
    is_own = bool(call.messages) and call.messages[-1] is begun
    before = call.messages[:-1] if is_own else call.messages
    return (*before, msgspec.structs.replace(begun, parts=(TextPart(turn.text),), source=None))


_NOT_BEGUN = Message(role="assistant")


def _begun(call: Call) -> Message:
    """Return the turn that the client itself began for the model, an empty one where it did not."""
    last = call.messages[-1] if call.messages else _NOT_BEGUN
    return last if last.role == "assistant" and not last.tool_calls else _NOT_BEGUN


def _is_repeated(begun: str, call: Call, continuation: Continuation, *, echoes: bool) -> bool:
    """Whether what the client has begins with what it has ``begun`` itself, because it was repeated to it.

    That is sure of an answer that began at this provider, if it does so; else a beginning of some length tells.
    """
    started, text = continuation.started, continuation.text
    if echoes and call.target is not None and started is not None:
        provider, _, _ = started.target.partition("/")
        if provider == call.target.provider:
            return text.startswith(begun) or begun.startswith(text)
    return len(begun) >= LEAST_ANCHOR_CHARACTERS and text.startswith(begun)


class Rest:
    """Passes on of an answer's events what is new; the text of its first choice is cut by ``trims``.

    An event that had to be changed loses its frame. Text that is held back goes on before the end of its choice, and
    before a tool call. Once a trim has raised, nothing more is passed on, and ``failure`` is its error.
    ``is_replaying`` says whether text came last of which nothing was passed on.

    Of an answer that goes on from a checkpoint, ``replayed`` is what the client has from behind it. A new checkpoint
    in there is none for the client, who is farther, and is not passed on.
    """

    __slots__ = ("_behind_count", "_trims", "failure", "is_replaying")

    def __init__(self, trims: Iterable[Trim] = (), *, replayed: str = "") -> None:
        self._trims: tuple[Trim, ...] = (*trims, ReplayTrim(replayed)) if replayed else (*trims,)
        self._behind_count = len(replayed)
        self.failure: StreamInterrupted | None = None
        self.is_replaying = False

    def take(self, events: list[Event]) -> list[Event]:
        """Return what of ``events`` is new."""
        passed: list[Event] = []
        self.is_replaying = False
        if self.failure is None:
            try:
                for event in events:
                    self._take(event, passed)
            except StreamInterrupted as error:
                self.failure = error
        return passed

    def finish(self, events: list[Event]) -> list[Event]:
        """Return what of the last ``events`` is new, and what is held back; raises ``StreamInterrupted``."""
        passed = self.take(events)
        if self.failure is None:
            self._flush(passed)
            return passed
        raise self.failure

    def _take(self, event: Event, passed: list[Event]) -> None:
        match event:
            case TextDelta(index=0):
                self._take_text(event, passed)
                return
            case CheckpointReached(index=0) if self._behind_count:
                return
            case ToolCallStarted(index=0) | RefusalDelta(index=0) | ChoiceFinished(index=0):
                self._flush(passed)
            case _:
                pass
        passed.append(event)

    def _take_text(self, event: TextDelta, passed: list[Event]) -> None:
        text = event.text
        self._behind_count = max(0, self._behind_count - len(text))
        for trim in self._trims:
            text = text and trim.take(text)
        self.is_replaying = not text
        if text == event.text:
            passed.append(event)
        elif text:
            passed.append(msgspec.structs.replace(event, text=text, frame=None))

    def _flush(self, passed: list[Event]) -> None:
        """Pass on what is held back: nothing more of this text will come."""
        text = ""
        trims, self._trims = self._trims, ()
        for trim in trims:
            text = (text and trim.take(text)) + trim.finish()
        if text:
            passed.append(TextDelta(text))


def continued(decoder: Decoder, rest: Rest | None) -> Decoder:
    """Return ``decoder``, or what reads with it no more than the rest of an answer."""
    return decoder if rest is None else ContinuedDecoder(decoder, rest)


def continued_answer(events: list[Event], rest: Rest | None) -> list[Event]:
    """Return the events of a whole answer, or what of them is the rest of one; raises ``StreamInterrupted``."""
    return events if rest is None else rest.finish(events)


class ContinuedDecoder:
    """Reads the stream that goes on with an answer: what ``decoder`` reads in it, without what the client has."""

    def __init__(self, decoder: Decoder, rest: Rest) -> None:
        self._decoder = decoder
        self._rest = rest

    @property
    def is_complete(self) -> bool:
        """Whether nothing more needs to be read, as the decoder has it or because the parts do not fit."""
        return self._rest.failure is not None or self._decoder.is_complete

    @property
    def is_replaying(self) -> bool:
        """Whether what came last is an echo, or so it seems, or comes once more behind a checkpoint."""
        return self._rest.is_replaying

    @property
    def usage(self) -> Usage | None:
        """What the attempt has used so far, with what was said again."""
        return self._decoder.usage

    def feed(self, data: bytes) -> list[Event]:
        """Return what is new of the events that ``data`` completes."""
        return self._rest.take(self._decoder.feed(data))

    def finish(self) -> list[Event]:
        """Take the end of the bytes; raises as the decoder does, and where the parts do not fit."""
        if self._rest.failure is not None:
            raise self._rest.failure
        return self._rest.finish(self._decoder.finish())
