"""How upstreams do now: from what was counted in all, looked at again and again, to what happened in between.

Metrics only ever say how much there was since the start. Who looks at them twice knows what was new: here that is done
for a person who has no Prometheus at hand. Nothing is kept while nobody looks.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from prometheus_client.metrics_core import Metric as Family

WINDOW_S: Final = 15.0
"""What is new is what was counted in this time: shorter, and a rate of two streams a second is mostly chance."""

KEPT_COUNT: Final = 60
GONE_S: Final = 30.0
"""After so long without a look what was seen before says nothing about now."""

_HISTOGRAMS: Final = {"millrace_ttft_seconds": "ttft_s", "millrace_stream_tokens_per_second": "tokens_per_s"}
_ATTEMPTS: Final = "millrace_upstream_attempts_total"
_RESUMES: Final = "millrace_stream_resumes_total"
_IN_FLIGHT: Final = "millrace_upstream_inflight"
_STATE: Final = "millrace_upstream_state"

Buckets = Mapping[float, float]
"""How many were at most as much, by the bound; infinity is one of them."""


@dataclass(slots=True)
class Seen:
    """What was counted of one upstream until some moment."""

    buckets: dict[str, dict[float, float]] = field(
        default_factory=lambda: {name: defaultdict(float) for name in _HISTOGRAMS.values()}
    )
    attempts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    resumed: float = 0.0
    in_flight: float = 0.0
    state: str = ""


def seen_in(families: Iterable[Family]) -> dict[str, Seen]:
    """Return what metrics tell about each upstream, over all models."""
    found: dict[str, Seen] = defaultdict(Seen)
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            base, _, part = sample.name.rpartition("_")
            if part == "bucket" and base in _HISTOGRAMS:
                buckets = found[labels["upstream"]].buckets[_HISTOGRAMS[base]]
                buckets[float(labels["le"])] += sample.value
            elif sample.name == _ATTEMPTS:
                found[labels["upstream"]].attempts[labels["result"]] += sample.value
            elif sample.name == _RESUMES and labels["result"] == "completed":
                found[labels["from_upstream"]].resumed += sample.value
            elif sample.name == _IN_FLIGHT:
                found[labels["upstream"]].in_flight += sample.value
            elif sample.name == _STATE and sample.value:
                found[labels["upstream"]].state = labels["state"]
    return found


def quantile(share: float, buckets: Buckets, before: Buckets) -> float | None:
    """Return what ``share`` of the values counted since ``before`` were at most; ``None`` if there were none.

    Within a bucket values are taken to be spread evenly; beyond the last bound, to be that bound.
    """
    counts = [(bound, max(0.0, count - before.get(bound, 0.0))) for bound, count in sorted(buckets.items())]
    rank = share * counts[-1][1] if counts else 0.0
    if not rank:
        return None
    for (low, below), (high, upto) in pairwise([(0.0, 0.0), *counts]):
        if upto >= rank and upto > below:
            return low if high == float("inf") else low + (high - low) * (rank - below) / (upto - below)
    return None


class Pace:
    """Remembers what was seen lately, and says what it comes to."""

    def __init__(self, *, window_s: float = WINDOW_S, kept_count: int = KEPT_COUNT) -> None:
        self._window_s = window_s
        self._kept_count = kept_count
        self._looks: deque[tuple[float, Mapping[str, Seen]]] = deque()
        self._points: dict[str, dict[str, deque[float | None]]] = {}

    def look(self, families: Iterable[Family], now_s: float) -> list[dict[str, object]]:
        """Take a look, and return a description of each upstream that was ever asked or has a breaker."""
        if self._looks and now_s - self._looks[-1][0] > GONE_S:
            self._looks.clear()
            self._points.clear()
        seen = seen_in(families)
        self._looks.append((now_s, seen))
        while len(self._looks) > 1 and self._looks[1][0] <= now_s - self._window_s:
            self._looks.popleft()
        return [self._described(name, seen[name]) for name in sorted(seen) if _is_worth_showing(seen[name])]

    def _described(self, name: str, seen: Seen) -> dict[str, object]:
        before = self._looks[0][1].get(name, Seen())
        points = self._points.setdefault(
            name, {metric: deque(maxlen=self._kept_count) for metric in _HISTOGRAMS.values()}
        )
        told: dict[str, object] = {
            "name": name,
            "state": seen.state or "closed",
            "in_flight": int(seen.in_flight),
            "attempts": int(sum(seen.attempts.values())),
            "failed": int(seen.attempts["failed"]),
            "resumed": int(seen.resumed),
        }
        for metric, buckets in seen.buckets.items():
            is_first = len(self._looks) == 1
            points[metric].append(None if is_first else _rounded(quantile(0.5, buckets, before.buckets[metric])))
            told[metric] = {"all": _rounded(quantile(0.5, buckets, {})), "points": _list(points[metric])}
        return told


def _is_worth_showing(seen: Seen) -> bool:
    return bool(seen.in_flight or sum(seen.attempts.values()) or seen.state)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _list(points: Iterable[float | None]) -> Sequence[float | None]:
    return list(points)
