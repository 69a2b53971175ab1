"""How one answer goes, as its client has it: phases, gaps, stalls, failovers, and whether it was good.

Told of every batch by handing it on (``Progress.watching``). A gap is the time from one delivery of tokens to the next,
whatever happened in between: pauses while another attempt was made are part of it. Time in which the client itself did
not read is not; and a wait for the first token is no gap, it has a name and an objective of its own.

Most of a stream is text in even steps, which costs a subtraction and a comparison for each delivery. What comes closer
to a look is the first token, what is longer than any gap before, and what follows an attempt that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, TypeAlias

from gateway.core.events import (
    TOKEN_EVENTS,
    AttemptFailed,
    ChoiceFinished,
    Event,
    FinishReason,
    ReasoningDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    Usage,
    UsageReported,
)
from gateway.core.trace import Attributes

Phase = Literal["prefill", "reasoning", "decode", "draining"]
"""Before the first token, before the first visible one, and behind it; at last, that the gateway is stopping."""

Resolution = Literal["recovered", "failed_over", "gave_up", "client_left"]
FailurePhase = Literal["pre_first_token", "mid_stream"]
Objective = Literal["ttft", "tpot", "smooth", "complete", "all"]
OBJECTIVES: Final[tuple[Objective, ...]] = ("ttft", "tpot", "smooth", "complete", "all")
Verdict: TypeAlias = tuple[bool, bool, bool, bool, bool]
"""Which of the objectives were met, in their order."""

_TOKENS: Final = frozenset(TOKEN_EVENTS)
_NO_TIME_S: Final = 1e-9
"""What was moved on by a pause, and back, may be off by its last bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a stream must keep to count as good. A gap longer than ``max_gap_s`` is a stall."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1
    max_gap_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Stall:
    """A gap that was too long: which target was waited for, how far the answer was, and what became of it."""

    target: str
    phase: Phase
    resolution: Resolution
    length_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The time that a failover took. Before the first token it counts from the start of the first failed attempt.

    In mid stream it is the gap that the client had.
    """

    phase: FailurePhase
    length_s: float


def _ignore(before: Phase, phase: Phase) -> None:
    """Take no note of a phase."""


def _forget(name: str, attributes: Attributes) -> None:
    """Take no note of what happened."""


_NO_FAILOVERS: Final[Mapping[int, AttemptFailed]] = {}
_NO_SEAMS: Final[Sequence[StreamContinued]] = []
_NO_STALLS: Final[Sequence[Stall]] = []
_NO_LOSSES: Final[Sequence[Loss]] = []
"""What most answers have: nobody changes these, they are replaced."""


class Progress:
    """One answer on its way. ``asked_at_s`` and all other times are on one monotonic clock.

    ``note_phase`` is called with the phase that ends and the one that begins, ``note`` with what is worth an event of a
    trace when it happens: ``first_token``, ``stall``, ``seam``, ``failover``. Times shown are those of the first token,
    the first visible one and the last; of the last, moved on by as long as the client did not read behind it.
    """

    __slots__ = (
        "_alarm_s", "_failed", "_failing_since_s", "_has_open_attempt", "_is_failing", "_shifted_s", "_speaker",
        "asked_at_s", "choice_count", "content_at_s", "delta_count", "failovers", "finish_reasons", "first_at_s",
        "last_at_s", "last_target", "losses", "max_gap_s", "note", "note_phase", "paused_s", "phase", "reasoning_count",
        "seams", "slo", "stalls", "started", "target", "targets", "usage",
    )  # fmt: skip

    def __init__(
        self,
        asked_at_s: float,
        slo: Slo = Slo(),
        choice_count: int = 1,
        note_phase: Callable[[Phase, Phase], None] = _ignore,
        note: Callable[[str, Attributes], None] = _forget,
    ) -> None:
        self.asked_at_s = asked_at_s
        self.slo = slo
        self.choice_count = choice_count
        self.note_phase = note_phase
        self.note = note
        self.phase: Phase = "prefill"
        self.delta_count = 0
        self.reasoning_count = 0
        self.first_at_s: float | None = None
        self.content_at_s: float | None = None
        self.last_at_s = -inf
        self.max_gap_s = 0.0
        self.paused_s = 0.0
        self.target = ""
        self.last_target = ""
        self.targets: list[str] = []
        self.started: StreamStarted | None = None
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, FinishReason] = {}
        self.failovers = _NO_FAILOVERS
        self.seams = _NO_SEAMS
        self.stalls = _NO_STALLS
        self.losses = _NO_LOSSES
        self._alarm_s = -1.0
        self._shifted_s = 0.0
        self._speaker = ""
        self._failed: frozenset[int] = frozenset()
        self._has_open_attempt = True
        self._failing_since_s: float | None = None
        self._is_failing = False

    # --- what happens

    def watching(
        self, send: Callable[[Sequence[Event]], None], clock: Callable[[], float]
    ) -> Callable[[Sequence[Event]], None]:
        """Return a ``send`` that hands a batch, of at least one event, on to ``send``, and takes it in.

        It is called for every token: that it is one function, and not one that calls another, is a tenth of it.
        """

        def hand_on(events: Sequence[Event]) -> None:
            send(events)
            now_s = clock()
            count, reasoning_count = len(events), 0
            for event in events:
                if type(event) is not TextDelta:
                    if type(event) is ReasoningDelta:
                        reasoning_count += 1
                    elif type(event) is UsageReported and count > 1:  # some tell the running total with each text
                        self.usage = event.usage
                        count -= 1
                    else:
                        self._add_mixed(events, now_s)
                        return
            gap_s = now_s - self.last_at_s
            if reasoning_count:
                if reasoning_count < count:  # it ends here, or goes on
                    self._add_mixed(events, now_s)
                    return
                self.reasoning_count += count
                if gap_s > self._alarm_s:
                    self._look(gap_s, now_s, is_content=False)
            elif gap_s > self._alarm_s or self.content_at_s is None:
                self._look(gap_s, now_s, is_content=True)
            self.last_at_s = now_s
            self.delta_count += count

        return hand_on

    def note_failed_attempt(self, started_at_s: float) -> None:
        """An attempt has failed that began then; it is not said that there will be another."""
        if self._failing_since_s is None:
            self._failing_since_s = started_at_s

    def note_pause(self, pause_s: float) -> None:
        """The client did not read for so long, until now: nobody waited for a token meanwhile."""
        self.paused_s += pause_s
        if self.first_at_s is not None:
            self.last_at_s += pause_s
            self._shifted_s += pause_s

    def drain(self) -> None:
        """The gateway is stopping, and waits for the answer to end; it is in no other phase any more."""
        self._move("draining")

    def end(self, now_s: float, *, is_complete: bool, has_client: bool, last_attempt: int | None) -> None:
        """The call has ended. If there was more to come, the wait for it has ended too.

        ``last_attempt`` is the number of the one that failed with what ended the call: 0 where that was no attempt's
        error, ``None`` where the last one did not fail.
        """
        self.note_phase = _ignore
        if last_attempt is not None:
            self._has_open_attempt = False
            self._failed |= {last_attempt} - {0}
        if is_complete or self.first_at_s is None or self.is_finished:
            return
        gap_s = now_s - self.last_at_s
        self.max_gap_s = max(self.max_gap_s, gap_s)
        self._note_stall(gap_s, "gave_up" if has_client else "client_left")

    def let_go(self) -> None:
        """All is told: forget the answer, and all names, which may be long; numbers are left for who remembers it."""
        self.started = None
        self.note = _forget
        self.target = self.last_target = self._speaker = ""
        self.targets = []
        self.failovers, self.seams = _NO_FAILOVERS, _NO_SEAMS
        self.stalls, self.losses = _NO_STALLS, _NO_LOSSES

    def pass_by(self, target: str) -> None:
        """Write down that the call has been at a target, unless it still is."""
        targets = self.targets
        if target and (not targets or targets[-1] != target):
            targets.append(target)

    # --- what it has come to

    @property
    def attempt_count(self) -> int:
        """How many attempts were made, or are being made.

        One may be told of twice, where another that was to go on with its answer could not even be made.
        """
        return len(self._failed) + self._has_open_attempt

    @property
    def is_finished(self) -> bool:
        """Whether the provider has said of every choice that it is whole."""
        return len(self.finish_reasons) >= self.choice_count

    @property
    def ttft_s(self) -> float | None:
        """How long the client waited for the first token."""
        return None if self.first_at_s is None else self.first_at_s - self.asked_at_s

    @property
    def ttfc_s(self) -> float | None:
        """How long the client waited for the first text or tool call."""
        return None if self.content_at_s is None else self.content_at_s - self.asked_at_s

    @property
    def token_count(self) -> int:
        """How many tokens were delivered, as far as is known: reasoning that nobody was shown is not among them.

        What a provider reports on the way may be long out of date; a delta is at least one token.
        """
        if self.usage is None:
            return self.delta_count
        hidden_count = 0 if self.reasoning_count else self.usage.reasoning_tokens
        reported = self.usage.output_tokens - hidden_count
        return reported if self.is_finished and reported > 0 else max(reported, self.delta_count)

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token behind the first, up to the last delivery; ``None`` where all came at once."""
        if self.first_at_s is None:
            return None
        decode_s, behind_count = self.last_at_s - self.first_at_s - self._shifted_s, self.token_count - 1
        return decode_s / behind_count if decode_s > _NO_TIME_S and behind_count > 0 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens behind the first by the time they took."""
        tpot_s = self.tpot_s
        return 1 / tpot_s if tpot_s else None

    @property
    def stall_s(self) -> float:
        """How long the client has stared at stalls."""
        return sum(stall.length_s for stall in self.stalls)

    @property
    def lost_s(self) -> float:
        """How long failovers took."""
        return sum(loss.length_s for loss in self.losses)

    def judge(self, now_s: float, tpot_s: float | None, *, is_complete: bool) -> Verdict:
        """Return which objectives the answer has met, now that it has ended; ``tpot_s`` is its own.

        One that failed before its first token has missed that. In what was never seen of an answer, nothing was slow;
        an answer without any token is as late as its end.
        """
        slo, first_at_s = self.slo, self.first_at_s
        if first_at_s is None:
            first_at_s = now_s if is_complete else inf
        is_prompt = first_at_s - self.asked_at_s <= slo.ttft_s
        is_fast = tpot_s is None or tpot_s <= slo.tpot_s
        is_smooth = self.max_gap_s <= slo.max_gap_s
        return is_prompt, is_fast, is_smooth, is_complete, is_prompt and is_fast and is_smooth and is_complete

    # --- inside

    def _add_mixed(self, events: Sequence[Event], now_s: float) -> None:
        for event in events:
            if type(event) in _TOKENS:
                is_content = type(event) is not ReasoningDelta
                gap_s = now_s - self.last_at_s
                if gap_s > self._alarm_s or (is_content and self.content_at_s is None):
                    self._look(gap_s, now_s, is_content=is_content)
                self.last_at_s = now_s
                self.delta_count += 1
                self.reasoning_count += not is_content
            elif type(event) is UsageReported:
                self.usage = event.usage
            elif type(event) is ChoiceFinished:
                self.finish_reasons.setdefault(event.index, event.reason)
            elif type(event) is StreamStarted:
                self.started = self.started or event
                self._speak(event.target)
            else:
                self._note(event)

    def _look(self, gap_s: float, now_s: float, *, is_content: bool) -> None:
        """Take in a token that is the first one, or follows a gap that is worth a look."""
        limit_s = self.slo.max_gap_s
        if self._is_failing:
            self._note_loss(gap_s, now_s)
        if self.first_at_s is None:
            self.first_at_s = now_s
            if self.note is not _forget:
                self.note("first_token", {"target": self.last_target})
        else:
            if gap_s > self.max_gap_s:  # noqa: PLR1730, two calls for each look are a third of it
                self.max_gap_s = gap_s
            if gap_s > limit_s:
                self._note_stall(gap_s, "failed_over" if self._is_failing else "recovered")
        if is_content and self.content_at_s is None:
            self.content_at_s = now_s
        self._is_failing = False
        self._failing_since_s = None
        self._speaker = self.last_target
        self._alarm_s = self.max_gap_s if self.max_gap_s < limit_s else limit_s  # noqa: FURB136, same
        phase: Phase = "reasoning" if self.content_at_s is None else "decode"
        if phase != self.phase:
            self._move(phase)

    def _note_loss(self, gap_s: float, now_s: float) -> None:
        if self.first_at_s is not None:
            self.losses = [*self.losses, Loss("mid_stream", gap_s)]
        else:
            since_s = self.asked_at_s if self._failing_since_s is None else self._failing_since_s
            self.losses = [*self.losses, Loss("pre_first_token", now_s - since_s)]

    def _note_stall(self, gap_s: float, resolution: Resolution) -> None:
        if gap_s > self.slo.max_gap_s:
            self.stalls = [*self.stalls, Stall(self._speaker, self.phase, resolution, gap_s)]
            said: Attributes = {
                "target": self._speaker, "phase": self.phase, "resolution": resolution, "length_s": gap_s,
            }  # fmt: skip
            self.note("stall", said)

    def _move(self, phase: Phase) -> None:
        before = self.phase
        if before not in (phase, "draining"):
            self.phase = phase
            self.note_phase(before, phase)

    def _note(self, event: Event) -> None:
        """Take in what happens seldom."""
        match event:
            case AttemptFailed():
                self._note_failure(event)
            case StreamContinued():
                self._note_seam(event)
            case _:
                pass

    def _note_seam(self, event: StreamContinued) -> None:
        self.seams = [*self.seams, event]
        self._speak(event.target)
        said = {name: getattr(event, name) for name in ("target", "from_target", "way", "attempt", "character_count")}
        self.note("seam", said)

    def _note_failure(self, event: AttemptFailed) -> None:
        """An attempt has failed and there will be another; what could not even be tried is no attempt."""
        self.pass_by(event.target)
        self._is_failing = True
        self._alarm_s = -1.0
        if event.attempt:
            self._failed |= {event.attempt}
            self.failovers = {**self.failovers, event.attempt: self.failovers.get(event.attempt, event)}
            said = {name: getattr(event, name) for name in ("target", "attempt", "error_type", "code", "has_delivered")}
            self.note("failover", said)

    def _speak(self, target: str) -> None:
        """The next tokens are of this target."""
        self.target = self.target or target
        self.last_target = target
        self.pass_by(target)
        self._alarm_s = -1.0
