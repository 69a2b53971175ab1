"""What of several attempts reaches one client, as one answer: once, in order, with one start, one role and one usage.

``Delivery.send`` is the ``send`` of every attempt; ``begin`` says what the next one is to be. The first attempt's
events pass through as they are. What a later one adds is cut at the seam by its trims, keeps the identity of the first,
and is announced by ``StreamContinued``.

Where a call may have to be made again, its tool calls are held back until their choice has finished: a truncated
argument string can look like a whole one, and clients run what they are handed.

Usage: the prompt counts once, and of the answer what was delivered. What every attempt really cost is in the ledger.

What was passed on last is folded into the transcript when somebody looks at that, or when there is more: an answer that
comes whole, and does not break, is never folded at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from msgspec import structs

from gateway.core.continuation import Way
from gateway.core.events import (
    TOKEN_EVENTS,
    AttemptFailed,
    CheckpointReached,
    ChoiceFinished,
    Event,
    Note,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.seam import StopTrim, Trim
from gateway.core.transcript import ChoiceTranscript, Transcript

CHARACTERS_PER_TOKEN = 4
MOST_CHARACTERS_PER_TOKEN = 8
"""A delta with more on the average is not one token but several."""

NEW_BLOCK = "\n\n"
"""Stands between reasoning that broke off and that of the attempt which began again."""


class AnswerComplete(Exception):
    """The client has all of its answer though the provider goes on: a stop sequence has ended behind a seam."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How the next attempt's events are to be joined to what was delivered.

    One that ``is_alone`` is for a single choice of several: its events are those of choice ``index``. ``added_tokens``
    is how much longer its prompt is than the client's, and ``repeated_tokens`` how much of the answer its provider says
    once more, unseen. ``check`` looks at the whole text of a choice before its end is
    told, and raises if that cannot be it.
    """

    target: str
    number: int
    way: Way = "restart"
    index: int = 0
    is_alone: bool = False
    added_tokens: int = 0
    repeated_tokens: int = 0
    trims: Sequence[Trim] = ()
    check: Callable[[str], None] | None = field(default=None, repr=False)


class Delivery:
    """One answer on its way to one client. ``transcript`` is what the client has of it."""

    __slots__ = (
        "_attempt",
        "_before",
        "_calls",
        "_choice",
        "_counted_before",
        "_dropped_count",
        "_early",
        "_holds_calls",
        "_is_joining",
        "_last",
        "_lengths",
        "_reported",
        "_rethought_count",
        "_seam",
        "_seen_count",
        "_send",
        "_transcript",
    )

    def __init__(
        self, send: Callable[[Sequence[Event]], None], *, holds_calls: bool, transcript: Transcript | None = None
    ) -> None:
        self._send = send
        self._holds_calls = holds_calls
        self._transcript = transcript or Transcript()
        self._choice: ChoiceTranscript | None = None
        self._last: Sequence[Event] = ()
        self._attempt: Attempt | None = None
        self._early: list[Event] = []
        self._calls: dict[int, list[Event]] = {}
        self._seam: StreamContinued | None = None
        self._is_joining = False
        self._reported: Usage | None = None
        self._before = 0
        self._counted_before = 0
        self._seen_count = 0
        self._dropped_count = 0
        self._rethought_count = 0
        self._lengths: list[int] = []

    @property
    def transcript(self) -> Transcript:
        """What the client has by now."""
        self._fold()
        return self._transcript

    def begin(self, attempt: Attempt) -> None:
        """Make ready for another attempt: what was held back of the one before is forgotten."""
        transcript = self.transcript
        self.settle()
        self._attempt = attempt
        self._early.clear()
        self._calls.clear()
        self._reported = None
        self._seen_count = self._dropped_count = self._rethought_count = 0
        self._lengths.clear()
        self._before, self._counted_before = transcript.output_tokens, self._counted()
        self._choice = None
        self._is_joining = transcript.is_visible or attempt.is_alone
        if self._is_joining:
            count = transcript.choice(attempt.index).character_count
            self._seam = StreamContinued(attempt.target, transcript.target, attempt.way, attempt.number, count)

    def send(self, events: Sequence[Event]) -> None:
        """Pass on what one read brought, as far as the client is to have it."""
        choice = self._choice
        if choice is not None:
            if len(events) == 1:  # nearly all of a stream is text of the first choice, and most comes piece by piece
                event = events[0]
                if type(event) is TextDelta and not event.index:
                    self._send(events)
                    choice.write(event.text)
                    choice.text_delta_count += 1
                    self._transcript.delta_count += 1
                    return
                if type(event) is ReasoningDelta and not event.index:
                    self._send(events)
                    choice.add(event)
                    self._transcript.delta_count += 1
                    return
            elif _is_plain(events):
                self._send_plain(events, choice)
                return
        if self._is_joining:
            self._join(events)
        elif self._early or not _is_plain(events):
            self._choice = None
            self._take(events)
        else:  # all before is folded now, and what comes next may be written straight away
            self._choice = self.transcript.choice()
            self.send(events)

    def _send_plain(self, events: Sequence[Event], choice: ChoiceTranscript) -> None:
        """Pass on several pieces of text, or some with the running total of what they cost."""
        self._send(events)
        count, reasoning_count, write = 0, 0, choice.write
        for event in events:
            if type(event) is TextDelta:
                write(event.text)
                count += 1
            elif type(event) is ReasoningDelta:
                choice.add(event)
                reasoning_count += 1
            elif type(event) is UsageReported:
                self._reported = self._transcript.usage = event.usage
        choice.text_delta_count += count
        self._transcript.delta_count += count + reasoning_count

    def finish(self) -> None:
        """The attempt is complete: release what is still held, of a provider that tells no finish.

        Raises as a finish would have done.
        """
        if not (self._is_joining or self._early or self._calls):
            return  # nearly always
        rest = self._early[:]
        attempt = self._attempt
        try:
            if self._is_joining and attempt is not None and attempt.index in self.open_choices(attempt.index + 1):
                self._flush(attempt.index, attempt, rest)
                self._check(attempt.index, attempt, rest)
                if self._calls:
                    self._add_seam(rest)
            rest += [event for held in self._calls.values() for event in held]
        finally:
            self._early.clear()
            self._calls.clear()
            if rest:
                self._pass_on(rest)

    def settle(self) -> None:
        """Count what the attempt that has ended delivered, and what its prompt was: the transcript may go elsewhere."""
        transcript = self.transcript
        has_own_prompt = self._attempt is None or not self._attempt.added_tokens
        if self._reported is not None and has_own_prompt and transcript.input_tokens is None:
            transcript.input_tokens = self._reported.input_tokens
            transcript.cached_input_tokens = self._reported.cached_input_tokens
        own = self._counted() - self._counted_before
        if self._reported is not None and transcript.is_visible and not self._calls:
            own = max(own, self._delivered_tokens(self._reported))
        transcript.output_tokens = max(transcript.output_tokens, self._before + own)

    def open_choices(self, count: int) -> list[int]:
        """Return which of ``count`` choices have not finished."""
        choices = self.transcript.choices
        return [index for index in range(count) if index not in choices or choices[index].finish_reason is None]

    # --- an attempt that begins the answer

    def _take(self, events: Sequence[Event]) -> None:
        kept: list[Event] = []
        for event in events:
            if type(event) is TextDelta:
                kept.append(event)
            else:
                self._sort(event, kept)
        if not self._early and kept == events:
            self._pass_on(events)
        elif kept and (any(isinstance(event, _SHOWN) for event in kept) or not self._calls):
            kept = [*self._early, *kept]
            self._early.clear()
            self._pass_on(kept)
        else:
            self._early += kept

    def _sort(self, event: Event, kept: list[Event]) -> None:
        """Append what may go on now."""
        if type(event) is StreamStarted:
            if (self._last or self._transcript.started) and self.transcript.started is not None:
                return  # the client knows the answer by the name that it was begun with
        elif type(event) is ChoiceFinished:
            kept += self._calls.pop(event.index, ())
        elif type(event) is UsageReported:
            self._reported = event.usage
        elif self._holds_calls and (type(event) is ToolCallStarted or type(event) is ToolCallDelta):
            self._calls.setdefault(event.index, []).append(event)
            return
        kept.append(event)

    def _pass_on(self, events: Sequence[Event]) -> None:
        if self._last:
            self._fold()
        self._last = events
        self._send(events)

    def _fold(self) -> None:
        transcript, last = self._transcript, self._last
        transcript.choice()  # there is always one
        self._last = ()
        transcript.add(last)

    # --- an attempt that goes on with it

    def _join(self, events: Sequence[Event]) -> None:
        kept: list[Event] = []
        try:
            for event in events:
                self._join_one(event, kept)
        finally:
            if kept:
                self._pass_on(kept)

    def _join_one(self, event: Event, kept: list[Event]) -> None:
        attempt = self._attempt
        assert attempt is not None  # noqa: S101, there is one before anything is joined
        if attempt.is_alone and getattr(event, "index", attempt.index) != attempt.index:
            event = structs.replace(event, index=attempt.index, frame=None)
        match event:
            case StreamStarted():
                pass
            case TextDelta():
                self._join_text(event, attempt, kept)
            case ReasoningDelta():
                self._join_reasoning(event, attempt, kept)
            case RefusalDelta() | ToolCallStarted() | ToolCallDelta():
                self._join_other(event, attempt, kept)
            case ChoiceFinished():
                self._join_finish(event, attempt, kept)
            case UsageReported(usage=usage):
                self._reported = usage
                kept.append(UsageReported(self._merged(usage)))
            case ProviderExtra() | CheckpointReached() | AttemptFailed() | StreamContinued():
                if self._is_true_of(event, attempt):
                    kept.append(event)
            case _:
                assert_never(event)

    def _is_true_of(self, event: ProviderExtra | Note, attempt: Attempt) -> bool:
        """Whether it is about what the client has: about its own choice, and with no text behind it that it has not."""
        match event:
            case ProviderExtra():
                return not (attempt.is_alone and attempt.index)
            case CheckpointReached():
                return not self._lengths and (self._seam is None or attempt.target == self.transcript.target)
            case _:
                return True

    def _join_text(self, event: TextDelta, attempt: Attempt, kept: list[Event]) -> None:
        self._seen_count += 1
        self._lengths.append(len(event.text))
        text = event.text
        for trim in attempt.trims:
            text = trim.take(text)
        self._add_text(event if text == event.text else TextDelta(text, event.index), kept)
        self._end_if_stopped(event.index, attempt, kept)

    def _end_if_stopped(self, index: int, attempt: Attempt, kept: list[Event]) -> None:
        """Finish a choice in which a stop sequence has ended; what the attempt has used by then was counted here."""
        if any(isinstance(trim, StopTrim) and trim.is_stopped for trim in attempt.trims):
            self._add_seam(kept)
            told = self._reported or Usage(0, 0)
            usage = structs.replace(told, output_tokens=max(told.output_tokens, self._seen_count))
            kept += (ChoiceFinished("stop", "stop_sequence", index), UsageReported(self._merged(usage)))
            raise AnswerComplete

    def _add_text(self, event: TextDelta, kept: list[Event]) -> None:
        if not event.text:
            return
        self._add_seam(kept)
        kept.append(event)
        left, count = len(event.text), 0
        while left > 0 and self._lengths:  # of what was held back the end is new
            left -= self._lengths.pop()
            count += 1
        self._dropped_count += len(self._lengths)
        self._lengths.clear()
        if count > 1:  # they go on as one
            self.transcript.choice(event.index).text_delta_count += count - 1

    def _join_reasoning(self, event: ReasoningDelta, attempt: Attempt, kept: list[Event]) -> None:
        """What is thought again behind text that was delivered is nothing the client could place."""
        self._seen_count += 1
        if attempt.way != "restart":
            self._dropped_count += 1
            self._rethought_count += 1
            return
        if self._seam is not None and self.transcript.choice(event.index).reasoning_delta_count:
            self._add_seam(kept)
            kept.append(ReasoningDelta(NEW_BLOCK, event.index))
        self._add_seam(kept)
        kept.append(event)

    def _join_other(
        self, event: RefusalDelta | ToolCallStarted | ToolCallDelta, attempt: Attempt, kept: list[Event]
    ) -> None:
        self._flush(event.index, attempt, kept)
        self._end_if_stopped(event.index, attempt, kept)
        if isinstance(event, ToolCallDelta):
            self._seen_count += max(1, round(len(event.arguments) / CHARACTERS_PER_TOKEN))
        if self._holds_calls and not isinstance(event, RefusalDelta):
            self._calls.setdefault(event.index, []).append(event)
        else:
            self._add_seam(kept)
            kept.append(event)

    def _join_finish(self, event: ChoiceFinished, attempt: Attempt, kept: list[Event]) -> None:
        self._flush(event.index, attempt, kept)
        if event.reason == "stop":
            self._check(event.index, attempt, kept)
        self._add_seam(kept)
        kept += self._calls.pop(event.index, ())
        kept.append(event)
        if self._reported is not None:  # told while it was not yet known how much of the attempt is new
            kept.append(UsageReported(self._merged(self._reported)))

    def _check(self, index: int, attempt: Attempt, kept: list[Event]) -> None:
        """Raise if a choice cannot end as it is; ``kept`` is what is about to be passed on."""
        if attempt.check is not None:
            new = "".join(one.text for one in kept if isinstance(one, TextDelta) and one.index == index)
            attempt.check(self.transcript.choice(index).text + new)

    def _flush(self, index: int, attempt: Attempt, kept: list[Event]) -> None:
        """No more text comes: let go of what the trims hold; raises if the seam was not found by now."""
        for number, trim in enumerate(attempt.trims):
            text = trim.finish()
            for later in attempt.trims[number + 1 :]:
                text = later.take(text) if text else text
            self._add_text(TextDelta(text, index), kept)

    def _add_seam(self, kept: list[Event]) -> None:
        if self._seam is not None:
            kept.append(self._seam)
            self._seam = None

    # --- what it used

    def _counted(self) -> int:
        """Return about how many tokens were delivered, by what is known here."""
        return sum(map(delivered_tokens, self.transcript.choices.values()))

    def _merged(self, usage: Usage) -> Usage:
        """Return the usage of the whole answer: one prompt, and the tokens delivered."""
        transcript, attempt = self.transcript, self._attempt
        prompt = transcript.input_tokens
        if prompt is None:
            prompt = max(1, usage.input_tokens - (attempt.added_tokens if attempt else 0))
        return Usage(
            prompt,
            self._before + self._delivered_tokens(usage),
            transcript.cached_input_tokens,
            0,
            0 if self._drops_reasoning else usage.reasoning_tokens,
            is_estimated=True,
        )

    @property
    def _drops_reasoning(self) -> bool:
        return self._attempt is not None and self._attempt.way != "restart"

    def _delivered_tokens(self, usage: Usage) -> int:
        """Return how many of this attempt's tokens were delivered: such a share of them as of its deltas.

        What was thought again was not; where it is not told how much that is, its deltas count like all others.
        """
        repeated = self._attempt.repeated_tokens if self._attempt is not None else 0
        tokens, seen_count = max(0, usage.output_tokens - repeated), self._seen_count
        dropped_count = self._dropped_count + len(self._lengths)
        if self._drops_reasoning and usage.reasoning_tokens:
            tokens = max(0, tokens - usage.reasoning_tokens)
            seen_count -= self._rethought_count
            dropped_count -= self._rethought_count
        return tokens - round(tokens * dropped_count / seen_count) if seen_count else tokens


_SHOWN = (*TOKEN_EVENTS, ChoiceFinished)


def _is_plain(events: Sequence[Event]) -> bool:
    """Whether it is all text of the first choice, or its reasoning, but for what was used by then."""
    has_text = False
    for event in events:
        if (type(event) is TextDelta or type(event) is ReasoningDelta) and not event.index:
            has_text = True
        elif type(event) is not UsageReported:
            return False
    return has_text


def delivered_tokens(choice: ChoiceTranscript) -> int:
    """Return about how many tokens of a choice were delivered, of its text and of its reasoning."""
    return text_tokens(choice) + choice.reasoning_delta_count


def text_tokens(choice: ChoiceTranscript) -> int:
    """Return about how many tokens of a choice's text were delivered: one for each delta, if those are short enough."""
    characters, deltas = choice.character_count, choice.text_delta_count
    if characters > MOST_CHARACTERS_PER_TOKEN * deltas:
        return -(-characters // CHARACTERS_PER_TOKEN)
    return deltas
