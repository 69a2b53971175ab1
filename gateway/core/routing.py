"""Which of a route's targets is asked first, and whether another may do what one did not.

Targets are asked in the order of the configuration, by weight, or the fastest of two drawn at random first ("power of
two choices", by the average of their recent times to the first token).

What an error says decides whether to go elsewhere: nothing is sent there that is wrong everywhere, and a request that
is too long for one model may fit the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.call import Route, Target
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.health import HealthBoard
from gateway.core.seam import SEAM_NOT_FOUND

FAILURES = (UpstreamError, InvalidRequest)
"""What one target fails with; all else ends the call."""


class Dice(Protocol):
    """What chance is asked for, as ``random.Random`` answers it."""

    def random(self) -> float:
        """Return a number from 0 up to 1."""

    def sample(self, population: Sequence[int], k: int) -> list[int]:
        """Return so many of them."""


class TargetOrder:
    """Puts the targets of a call's route in the order in which they are to be asked, by what is known of them."""

    __slots__ = ("_board", "_clock", "_dice")

    def __init__(self, board: HealthBoard, clock: Callable[[], float], dice: Dice) -> None:
        self._board = board
        self._clock = clock
        self._dice = dice

    def of(self, route: Route) -> list[Target]:
        """Return the route's targets, each as often as it is there."""
        targets = list(route.targets)
        if route.strategy == "priority" or len(targets) == 1:
            return targets
        places = range(len(targets))
        if route.strategy == "weighted":
            return [targets[place] for place in self._weighted(route.weights or tuple(1.0 for _ in places))]
        return [targets[place] for place in self._fastest(targets)]

    def _weighted(self, weights: Sequence[float]) -> list[int]:
        """Draw one place after the other; what has no weight comes last (Efraimidis and Spirakis, 2006)."""
        keys = [self._dice.random() ** (1 / weight) if weight else -1.0 for weight in weights]
        return sorted(range(len(weights)), key=keys.__getitem__, reverse=True)

    def _fastest(self, targets: Sequence[Target]) -> list[int]:
        """Draw two that may be asked and take the faster; the others follow by their pace. Unknown is worth a try."""
        now_s = self._clock()
        health = [self._board.of(str(target)) for target in targets]
        pace = [one.pace.ttft_s(now_s) or 0.0 for one in health]
        places = sorted(range(len(targets)), key=pace.__getitem__)
        closed = [place for place in places if not health[place].breaker.is_open(now_s)]
        drawn = self._dice.sample(closed, min(2, len(closed)))
        first = [min(drawn, key=pace.__getitem__)] if drawn else []
        return [*first, *(place for place in places if place not in first)]


def tells_more(error: UpstreamError | InvalidRequest) -> bool:
    """Whether an error hides those before it: not that a target cannot express the request, or go on with an answer."""
    return isinstance(error, UpstreamError) and error.refused != "continuation"


def is_worth_another(error: UpstreamError | InvalidRequest) -> bool:
    """Whether another target may do what this one did not: all but a request that a provider called wrong.

    An ``InvalidRequest`` behind a target says that its wire cannot express the request; another's may. A prompt that is
    too long for one model may fit another.
    """
    if isinstance(error, InvalidRequest) or error.retryable or error.refused == "continuation":
        return True
    return (
        error.error_type in ("auth", "rate_limited", "context_length")
        or error.code == SEAM_NOT_FOUND
        or error.upstream_status == 404
    )
