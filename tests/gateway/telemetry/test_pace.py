from __future__ import annotations

from math import inf
from typing import Any

import pytest

from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.meters import Meters
from gateway.telemetry.pace import GONE_S, Pace, quantile
from gateway.telemetry.slab import Slab


class Counted:
    """Metrics, and somebody who looks at them."""

    def __init__(self) -> None:
        slab = Slab.create()
        self.meters = Meters(slab)
        self._collector = SlabCollector([slab])
        self.pace = Pace(window_s=10, kept_count=5)

    def observe(self, upstream: str, ttft_s: float, *, model: str = "chat", tokens_per_s: float = 50.0) -> None:
        """Count a stream."""
        self.meters.histogram("millrace_ttft_seconds", model, upstream).observe(ttft_s)
        self.meters.histogram("millrace_stream_tokens_per_second", model, upstream).observe(tokens_per_s)
        self.meters.counter("millrace_upstream_attempts_total", upstream, model, "completed", "").inc()

    def look(self, now_s: float) -> dict[str, Any]:
        """Return what is told of each upstream, by name."""
        return {str(one["name"]): one for one in self.pace.look(self._collector.collect(), now_s)}


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({1.0: 10, 2.0: 10, inf: 10}, 0.5),
        ({1.0: 0, 2.0: 10, inf: 10}, 1.5),
        ({1.0: 5, 2.0: 5, 4.0: 10, inf: 10}, 1.0),
        ({1.0: 2, 2.0: 2, 4.0: 10, inf: 10}, 2.75),
        ({1.0: 0, 2.0: 0, inf: 10}, 2.0),
        ({1.0: 0, inf: 0}, None),
        ({}, None),
    ],
)
def test_a_median_is_guessed_within_its_bucket(buckets: dict[float, float], expected: float | None) -> None:
    """As Prometheus guesses it; beyond the last bound it is that bound."""
    assert quantile(0.5, buckets, {}) == expected


def test_what_was_counted_before_does_not_count() -> None:
    """Only what is new tells of now, and a count that went down tells nothing."""
    assert quantile(0.5, {1.0: 100, 2.0: 110, inf: 110}, {1.0: 100, 2.0: 100, inf: 100}) == 1.5
    assert quantile(0.5, {1.0: 1, inf: 1}, {1.0: 2, inf: 2}) is None


def test_every_upstream_is_told_of_over_all_its_models() -> None:
    """What was counted since the start, and at the first look nothing of how it does now."""
    counted = Counted()
    counted.observe("b/x", 0.4)
    counted.observe("b/x", 0.4, model="draft")
    counted.observe("a/y", 0.04, tokens_per_s=8)
    counted.meters.counter("millrace_upstream_attempts_total", "b/x", "chat", "failed", "reset").inc(3)
    counted.meters.counter("millrace_stream_resumes_total", "chat", "b/x", "completed").inc(2)
    counted.meters.counter("millrace_stream_resumes_total", "chat", "b/x", "failed").inc()
    counted.meters.gauge("millrace_upstream_inflight", "b/x").set(2)
    counted.meters.gauge("millrace_upstream_state", "b/x", "closed").set(0)
    counted.meters.gauge("millrace_upstream_state", "b/x", "open").set(1)
    counted.meters.gauge("millrace_upstream_state", "c/z", "closed").set(1)
    counted.meters.gauge("millrace_upstream_inflight", "never/asked").set(0)
    told = counted.look(0)
    assert list(told) == ["a/y", "b/x", "c/z"]
    assert told["b/x"] == {
        "name": "b/x",
        "state": "open",
        "in_flight": 2,
        "attempts": 5,
        "failed": 3,
        "resumed": 2,
        "ttft_s": {"all": pytest.approx(0.375), "points": [None]},
        "tokens_per_s": {"all": pytest.approx(45.0), "points": [None]},
    }
    assert (told["c/z"]["state"], told["c/z"]["attempts"], told["c/z"]["ttft_s"]["all"]) == ("closed", 0, None)


def test_a_point_tells_of_the_window_before_it_and_old_points_go() -> None:
    """An upstream that gives no first token has none; a model with many looks keeps so many points."""
    counted = Counted()
    counted.observe("a/y", 0.04)
    counted.look(0)
    counted.observe("a/y", 0.4)
    assert counted.look(5)["a/y"]["ttft_s"]["points"] == [None, pytest.approx(0.375)]
    assert counted.look(9)["a/y"]["ttft_s"]["points"][-1] == pytest.approx(0.375)
    assert counted.look(16)["a/y"]["ttft_s"]["points"][-1] is None
    for now_s in range(17, 30):
        points = counted.look(now_s)["a/y"]["ttft_s"]["points"]
    assert points == [None] * 5


def test_after_a_pause_one_begins_anew() -> None:
    """What came while nobody looked is not what happens now."""
    counted = Counted()
    counted.look(0)
    counted.observe("a/y", 0.4)
    assert counted.look(GONE_S + 1)["a/y"]["ttft_s"]["points"] == [None]
