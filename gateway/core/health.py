"""How each target is doing: whether it is worth asking at all, and how soon it answers.

A breaker opens when its target fails, so that requests go elsewhere at once instead of waiting for the same error. The
rules and numbers are Envoy's outlier detection, with two changes that long answers ask for. A first token is enough to
prove a target alive, since its last may be minutes away (go-zero counted at the end, and refused calls that all went
well: zeromicro/go-zero#5011). And a stream that is cut counts half, until it happens twice in a row: one may be a
connection's bad luck.

What a client did wrong says nothing about the target, see ``counts``. Nor does what began before the breaker opened:
fifty streams that die together are one outage and open it once. Nothing here picks a target, and nothing knows a clock:
every method is told the time. Who picks should ask an open target all the same when there is no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from gateway.core.budget import MAX_TARGETS, Window
from gateway.core.errors import ErrorType
from gateway.core.ledger import Settlement

State = Literal["closed", "open", "half_open"]

WINDOW_S = 30.0
LEAST_OUTCOMES = 20
"""Of fewer outcomes in ``WINDOW_S`` no share is taken: the half of three is chance."""

FAILED_SHARE = 0.5
MAX_OPEN_S = 300.0
PROBE_S = 60.0
"""A probe that has not told by then was lost, or waits for a slow first token: another may try."""

SAMPLE_WEIGHT = 0.3
HALF_LIFE_S = 60.0
"""A target that was slow once is tried again: what is remembered of it halves in this time."""

NEVER_COUNTED = frozenset({"answer_continues", "concurrency_limit", "seam_not_found", "total_timeout"})
"""Codes of errors that are about the answer, or our own limits, and not about the target."""

COUNTED = frozenset(
    {"rate_limited", "overloaded", "connect", "tls", "dns", "read_timeout", "reset", "protocol", "server_error"}
)


def counts(error_type: ErrorType | None, code: str | None, http_status: int | None) -> bool:
    """Whether an error is a reason to think worse of its target: never one of the client's, or one of ours."""
    if code in NEVER_COUNTED:
        return False
    if http_status in (408, 429):
        return True
    return error_type in COUNTED and not (http_status is not None and 400 <= http_status < 500)


class Breaker:
    """Whether a target may be asked.

    Opens after ``failures`` in a row, or when half of what ended lately has failed. It stays open for ``open_s``, twice
    as long with every opening that no completed answer lies between; then one request is let through as a probe, and
    what becomes of it decides. Whoever was let through and asked nothing after all gives that back, see ``release``.
    """

    __slots__ = (
        "_cuts", "_failures", "_limit", "_open_s", "_openings", "_probe_at_s", "_recent", "open_until_s", "opened_at_s",
    )  # fmt: skip

    def __init__(self, *, failures: int = 5, open_s: float = 15.0) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._cuts = 0
        self._openings = 0
        self._probe_at_s: float | None = None
        self._recent = Window(WINDOW_S)
        self.opened_at_s = -inf
        self.open_until_s = 0.0
        """When the next probe is let through; 0 while closed."""

    def state(self, now_s: float) -> State:
        """Return ``closed`` where all are let through, ``open`` where nobody is, ``half_open`` where one is."""
        if not self.open_until_s:
            return "closed"
        return "open" if now_s < self.open_until_s else "half_open"

    def is_open(self, now_s: float) -> bool:
        """Whether ``admit`` would say no."""
        if not self.open_until_s:
            return False
        return now_s < self.open_until_s or (self._probe_at_s is not None and now_s < self._probe_at_s + PROBE_S)

    def admit(self, now_s: float) -> bool:
        """Say whether the target may be asked; half-open, the one who is told so is the probe."""
        if not self.open_until_s:
            return True
        if self.is_open(now_s):
            return False
        self._probe_at_s = now_s
        return True

    def release(self, at_s: float) -> None:
        """Give back the probe, which tells nothing; not one that was let through after ``at_s``."""
        if self._probe_at_s is not None and self._probe_at_s <= at_s:
            self._probe_at_s = None

    def note_first_token(self, now_s: float) -> None:
        """The target is alive. Where it cuts its streams, that is not yet to say that it is well."""
        if not self._cuts:
            self._failures = 0
        if self.open_until_s:
            self._close_half_open(now_s)

    def note_completed(self, now_s: float) -> None:
        """An answer has come to its end."""
        self._recent.count(now_s)
        self._failures = self._cuts = self._openings = 0
        if self.open_until_s:
            self._close_half_open(now_s)

    def note_failure(self, now_s: float) -> None:
        """An attempt has failed before its first token."""
        match self.state(now_s):
            case "closed":
                self._failures += 1
                self._weigh(1.0, now_s)
            case "half_open":
                self._open(now_s)
            case "open":  # nothing new
                pass

    def note_cut(self, now_s: float) -> None:
        """An answer broke off after its first token."""
        self._close_half_open(now_s)
        if not self.open_until_s:
            before = self._cut_weight()
            self._cuts += 1
            self._weigh(self._cut_weight() - before, now_s)

    def _cut_weight(self) -> float:
        return float(self._cuts) if self._cuts > 1 else self._cuts / 2

    def _weigh(self, weight: float, now_s: float) -> None:
        """Open, if what has failed by now is too much."""
        self._recent.add(now_s, count=1, amount=weight)
        count, failed = self._recent.sums(now_s)
        is_often = count >= LEAST_OUTCOMES and failed >= FAILED_SHARE * count
        if is_often or self._failures + self._cut_weight() >= self._limit:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        """Let nobody through for a while. That streams were cut is remembered: the next one may open it again."""
        self.opened_at_s = now_s
        self.open_until_s = now_s + min(MAX_OPEN_S, self._open_s * 2.0 ** min(self._openings, 32))
        self._openings += 1
        self._failures = 0
        self._probe_at_s = None
        self._recent.clear()

    def _close_half_open(self, now_s: float) -> None:
        if self.state(now_s) == "half_open":
            self.open_until_s = 0.0


class Pace:
    """How many seconds a target takes to its first token: an average in which the last ones weigh most."""

    __slots__ = ("_at_s", "_ttft_s")

    def __init__(self) -> None:
        self._ttft_s: float | None = None
        self._at_s = 0.0

    def note(self, ttft_s: float, now_s: float) -> None:
        """Take in a sample. The longer there was none, the less weighs what is remembered."""
        if self._ttft_s is not None:
            kept = (1 - SAMPLE_WEIGHT) * self._left(now_s)
            ttft_s = kept * self._ttft_s + (1 - kept) * ttft_s
        self._ttft_s, self._at_s = ttft_s, now_s

    def ttft_s(self, now_s: float) -> float | None:
        """Return the average, less by half for each ``HALF_LIFE_S`` without a sample; ``None`` before any."""
        return None if self._ttft_s is None else self._ttft_s * self._left(now_s)

    def _left(self, now_s: float) -> float:
        """Return how much is left of what is remembered."""
        return float(2.0 ** (-max(0.0, now_s - self._at_s) / HALF_LIFE_S))


@dataclass(slots=True)
class TargetHealth:
    """One target's breaker and pace, and what its attempts tell them.

    ``told`` is the state that the log was told last, ``shown`` the one that was shown last, if any was.
    """

    breaker: Breaker = field(default_factory=Breaker)
    pace: Pace = field(default_factory=Pace)
    told: State = "closed"
    shown: State | None = None

    def note_first_token(self, ttft_s: float, now_s: float) -> None:
        """Take in that an attempt has just brought its first token, ``ttft_s`` after it was begun."""
        self.pace.note(ttft_s, now_s)
        if now_s - ttft_s >= self.breaker.opened_at_s:
            self.breaker.note_first_token(now_s)

    def note(self, settlement: Settlement, now_s: float) -> None:
        """Take in what an attempt came to; ``admit`` was asked before it began."""
        breaker = self.breaker
        if settlement.started_at_s < breaker.opened_at_s:
            return
        if settlement.result == "completed":
            breaker.note_completed(now_s)
        elif settlement.result == "cancelled" or not counts(
            settlement.error_type, settlement.code, settlement.http_status
        ):
            breaker.release(settlement.started_at_s)
        elif settlement.first_token_at_s is None:
            breaker.note_failure(now_s)
        else:
            breaker.note_cut(now_s)


class HealthBoard:
    """The health of each target, made when it is first asked for. Iterates over targets and their health.

    ``failures`` and ``open_s`` are those of the breakers.
    """

    def __init__(self, *, failures: int = 5, open_s: float = 15.0) -> None:
        self._failures = failures
        self._open_s = open_s
        self._by_target: dict[str, TargetHealth] = {}
        self._last: tuple[str, TargetHealth] | None = None

    def of(self, target: str) -> TargetHealth:
        """Return the target's health, which is now the last of them to be forgotten."""
        if self._last is not None and self._last[0] == target:
            return self._last[1]
        found = self._by_target.pop(target, None)
        if found is None:
            if len(self._by_target) >= MAX_TARGETS:
                del self._by_target[next(iter(self._by_target))]
            found = TargetHealth(Breaker(failures=self._failures, open_s=self._open_s))
        self._by_target[target] = found
        self._last = target, found
        return found

    def __iter__(self) -> Iterator[tuple[str, TargetHealth]]:
        return iter(list(self._by_target.items()))
