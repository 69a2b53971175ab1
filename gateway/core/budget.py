"""How many extra attempts may be made: a share of the recent requests, and a little more.

A token bucket after Finagle's ``RetryBudget`` (twitter/finagle, ``finagle-core/.../RetryBudget.scala``): every request
puts in its share, every extra attempt takes its price, and what was put in is worth nothing after ``window_s``. A
floor lets a gateway with few requests retry at all. Retries, resumes and hedges of one target share one, so that a
provider in trouble gets 1.1 times its usual load and not three times. Knows no clock: it is told the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SLICES = 10
"""A window is forgotten in so many steps."""

MAX_TARGETS = 1024
"""Any client may name ``provider/model``: so many are remembered, and the one longest unused is forgotten for more."""


class Window:
    """How many, and how much, in the last ``length_s``; forgotten in steps, so that it stays small."""

    __slots__ = ("_last", "_slices", "_step_s")

    def __init__(self, length_s: float) -> None:
        self._step_s = length_s / SLICES
        self._slices: deque[_Slice] = deque()
        self._last = _NONE

    def count(self, now_s: float) -> None:
        """Put in one: what nearly all calls come to, in one addition."""
        last = self._last
        if last.number != int(now_s / self._step_s):
            last = self._begin(now_s)
        last.count += 1

    def add(self, now_s: float, *, count: int = 0, amount: float = 0.0) -> None:
        """Put in what has just happened: so many, and so much."""
        last = self._last
        if last.number != int(now_s / self._step_s):
            last = self._begin(now_s)
        last.count += count
        last.amount += amount

    def sums(self, now_s: float) -> tuple[int, float]:
        """Return the count and the amount."""
        self._forget(now_s)
        return sum(one.count for one in self._slices), sum(one.amount for one in self._slices)

    def clear(self) -> None:
        """Forget all of it."""
        self._slices.clear()
        self._last = _NONE

    def _begin(self, now_s: float) -> _Slice:
        """Return the slice that is now, made if there is none yet."""
        number = self._forget(now_s)
        if not self._slices or self._slices[-1].number != number:
            self._slices.append(_Slice(number))
        self._last = self._slices[-1]
        return self._last

    def _forget(self, now_s: float) -> int:
        """Drop the slices that have passed; return the number of the one that is now."""
        number = int(now_s / self._step_s)
        slices = self._slices
        while slices and slices[0].number <= number - SLICES:
            slices.popleft()
        return number


@dataclass(slots=True)
class _Slice:
    number: int
    count: int = 0
    amount: float = 0.0


_NONE = _Slice(-(1 << 62))
"""No time has this number, so that nothing is ever put in here."""


@dataclass(slots=True)
class Budget:
    """One bucket. ``percent`` of the requests of the last ``window_s``, and ``floor_per_s`` besides."""

    percent: float = 10.0
    floor_per_s: float = 3.0
    window_s: float = 10.0
    _recent: Window = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._recent = Window(self.window_s)

    def note_request(self, now_s: float) -> None:
        """Put in a request's share."""
        self._recent.count(now_s)

    def take(self, price: float, now_s: float) -> bool:
        """Pay for an extra attempt; say whether there was enough."""
        request_count, spent = self._recent.sums(now_s)
        if spent + price > request_count * self.percent / 100 + self.floor_per_s * self.window_s:
            return False
        self._recent.add(now_s, amount=price)
        return True


class Budgets:
    """A budget for each target, made when it is first asked for."""

    def __init__(self, *, percent: float = 10.0, floor_per_s: float = 3.0) -> None:
        self._percent = percent
        self._floor_per_s = floor_per_s
        self._by_target: dict[str, Budget] = {}
        self._last: tuple[str, Budget] | None = None

    def note_request(self, target: str, now_s: float) -> None:
        """Put in the share of a request that goes to ``target``."""
        self._of(target).note_request(now_s)

    def take(self, target: str, price: float, now_s: float) -> bool:
        """Pay for an extra attempt because of ``target``; say whether there was enough."""
        return self._of(target).take(price, now_s)

    def _of(self, target: str) -> Budget:
        """Return the target's budget, which is now the last of them to be forgotten."""
        if self._last is not None and self._last[0] == target:
            return self._last[1]
        found = self._by_target.pop(target, None)
        if found is None:
            if len(self._by_target) >= MAX_TARGETS:
                del self._by_target[next(iter(self._by_target))]
            found = Budget(self._percent, self._floor_per_s)
        self._by_target[target] = found
        self._last = target, found
        return found
