"""What code counts with: counters, gauges and histograms of the catalogue, kept in a slab.

    ttft = meters.histogram("millrace_ttft_seconds", model, upstream)
    ttft.observe(0.4, trace_id)

A child is bound once and kept; then a count is an addition that is written to shared memory, and nothing else. Asking
again for the same child costs a look into a dict. Only the thread of the event loop counts.

Nobody else writes to a child's cells, so that it knows what is in them: to read them again for each addition was a
sixth of what a count cost.

What is observed with every token of every stream can be gathered instead, and counted by the hundred: that is a fifth
of the instructions. Who gathers settles when the stream has ended, and ``Meters.settle`` is called a few times a second
for those that go on. What a worker had gathered by then, and only that, is lost with it if it is killed.

A name or a number of labels that is not in the catalogue raises at once: that is a mistake in the program. Label values
never do. Where they are too many, or no names at all, the child is the one whose values are all "other", and the
overflow is counted. Code that must not be measured gets ``Meters`` over a slab that nobody reads.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from gateway.telemetry.catalogue import BY_NAME, Kind, Metric
from gateway.telemetry.slab import Child, Slab

MAX_CHILDREN: Final[dict[Kind, int]] = {"counter": 500, "gauge": 500, "histogram": 100}
"""Of one family: a child of a histogram is some twenty series."""
MAX_SERIES: Final = 10_000
KEPT_SERIES: Final = 1_500
"""Of all series, those that no histogram gets: a rare error is counted by name however many models there are."""
MAX_LABEL_CHARACTERS: Final = 200
OTHER: Final = "other"
OVERFLOW: Final = "millrace_metric_series_overflow_total"

_SPARE_BYTES: Final = 32_000
"""Of the directory: room for one "other" and one overflow of every family, when it is full otherwise."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a child is kept: ``first`` is its first cell in the slab, if it is in there."""

    labels: tuple[str, ...]
    first: int | None
    cells: memoryview[float]


class Cap:
    """How many children there may be, beside those whose labels are all "other", which cost nothing."""

    def __init__(self) -> None:
        self._series = self._histogram_series = 0
        self._children: Tally[str] = Tally()

    def take(self, metric: Metric, labels: tuple[str, ...]) -> bool:
        """Return whether a new child may have these labels; if so it is counted."""
        if metric.name == OVERFLOW:  # its labels are the names of families
            return True
        series = self._series + metric.series_count
        histogram_series = self._histogram_series + (metric.series_count if metric.kind == "histogram" else 0)
        if series > MAX_SERIES or histogram_series > MAX_SERIES - KEPT_SERIES:
            return False
        if self._children[metric.name] >= MAX_CHILDREN[metric.kind]:
            return False
        if not all(len(label) <= MAX_LABEL_CHARACTERS and label.isprintable() for label in labels):
            return False
        self._series, self._histogram_series = series, histogram_series
        self._children[metric.name] += 1
        return True


def others_of(metric: Metric) -> tuple[str, ...]:
    """Return the labels of the child that stands for all that have none of their own."""
    return (OTHER,) * len(metric.labels)


class Counter:
    """Only goes up."""

    __slots__ = ("_cells", "_value")

    def __init__(self, cells: memoryview[float]) -> None:
        self._cells = cells
        self._value = cells[0]

    def inc(self, amount: float = 1.0) -> None:
        """Add to it; what is not above zero, or not finite, adds nothing."""
        if 0.0 < amount < inf:
            self._value = self._cells[0] = self._value + amount


class Gauge:
    """Goes up and down."""

    __slots__ = ("_cells", "_value")

    def __init__(self, cells: memoryview[float]) -> None:
        self._cells = cells
        self._value = cells[0]

    def set(self, value: float) -> None:
        """Put a value in place of the last one."""
        self._value = self._cells[0] = value

    def inc(self, amount: float = 1.0) -> None:
        """Add to it, or take from it."""
        self._value = self._cells[0] = self._value + amount


class Histogram:
    """Counts values by size, and adds them up."""

    __slots__ = ("_bounds", "_cells", "_counts", "_gathered", "_note", "_row", "_sum", "gather")

    def __init__(
        self, cells: memoryview[float], bounds: tuple[float, ...], note: Callable[[int, float, str], None]
    ) -> None:
        self._cells = cells
        self._bounds = (*bounds, inf)
        *self._counts, self._sum = cells
        self._row = memoryview(bytearray(cells.nbytes)).cast("d")
        self._note = note
        self._gathered: list[float] = []
        self.gather: Callable[[float], None] = self._gathered.append

    def observe(self, value: float, exemplar_trace_id: str | None = None) -> None:
        """Count a value; one below zero, or not finite, is none. With a trace it can be an example of its bucket."""
        if 0.0 <= value < inf:
            cells, counts, bucket = self._cells, self._counts, bisect_left(self._bounds, value)
            counts[bucket] = cells[bucket] = counts[bucket] + 1.0
            self._sum = cells[-1] = self._sum + value
            if exemplar_trace_id is not None:
                self._note(bucket, value, exemplar_trace_id)

    def settle(self) -> None:
        """Count what was gathered; it is written as one piece, so that nobody sees counts without their sum."""
        gathered = self._gathered
        if not gathered:
            return
        gathered.sort()
        total = sum(gathered)
        if gathered[0] >= 0.0 and total < inf:
            bounds, counts, row = self._bounds, self._counts, self._row
            row[:] = self._cells
            bucket, begin, count = bisect_left(bounds, gathered[0]), 0, len(gathered)
            while begin < count:
                end = bisect_right(gathered, bounds[bucket], begin)
                counts[bucket] = row[bucket] = counts[bucket] + (end - begin)
                bucket, begin = bucket + 1, end
            self._sum = row[-1] = self._sum + total
            self._cells[:] = row
        else:  # one of them is no amount
            for value in gathered:
                self.observe(value)
        gathered.clear()


class Meters:
    """All that one process counts, in its slab. ``clock`` gives the wall-clock time of exemplars."""

    def __init__(self, slab: Slab, *, clock: Callable[[], float] = time.time) -> None:
        self._slab = slab
        self._clock = clock
        self._cap = Cap()
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._gauges: dict[tuple[str, ...], Gauge] = {}
        self._histograms: dict[tuple[str, ...], Histogram] = {}
        self._others: dict[str, _Place] = {}

    def counter(self, name: str, *labels: str) -> Counter:
        """Return the counter of a family that has these label values. ``ValueError`` if there is no such family."""
        counter = self._counters.get((name, *labels))
        if counter is None:
            place = self._place(_metric(name, "counter", labels), labels)
            counter = self._counters.setdefault((name, *place.labels), Counter(place.cells))
        return counter

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return the gauge of a family that has these label values. ``ValueError`` if there is no such family."""
        gauge = self._gauges.get((name, *labels))
        if gauge is None:
            place = self._place(_metric(name, "gauge", labels), labels)
            gauge = self._gauges.setdefault((name, *place.labels), Gauge(place.cells))
        return gauge

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return the histogram of a family that has these label values. ``ValueError`` if there is no such family."""
        histogram = self._histograms.get((name, *labels))
        if histogram is None:
            metric = _metric(name, "histogram", labels)
            place = self._place(metric, labels)
            bounds = tuple(float(bound) for bound in metric.buckets)  # floats compare faster with each other
            histogram = Histogram(place.cells, bounds, partial(self._note_exemplar, place.first))
            histogram = self._histograms.setdefault((name, *place.labels), histogram)
        return histogram

    def settle(self) -> None:
        """Count what was gathered by all histograms."""
        for histogram in self._histograms.values():
            histogram.settle()

    def _place(self, metric: Metric, labels: tuple[str, ...]) -> _Place:
        if labels != others_of(metric):
            if self._cap.take(metric, labels):
                spare_bytes = 0 if metric.name == OVERFLOW else _SPARE_BYTES
                if child := self._slab.add(metric.name, labels, metric.cell_count, spare_bytes=spare_bytes):
                    return self._place_of(child)
            self.counter(OVERFLOW, OTHER if metric.name == OVERFLOW else metric.name).inc()
        return self._others.get(metric.name) or self._other(metric)

    def _other(self, metric: Metric) -> _Place:
        labels = others_of(metric)
        child = self._slab.add(metric.name, labels, metric.cell_count)
        if child is None:  # not even this had room: what it counts is lost, what counts goes on
            place = _Place(labels, None, memoryview(bytearray(8 * metric.cell_count)).cast("d"))
        else:
            place = self._place_of(child)
        self._others[metric.name] = place
        return place

    def _place_of(self, child: Child) -> _Place:
        return _Place(child.labels, child.first, self._slab.cells[child.first : child.first + child.size])

    def _note_exemplar(self, first: int | None, bucket: int, value: float, trace_id: str) -> None:
        if first is not None:
            self._slab.note_exemplar(first + bucket, value, self._clock(), trace_id)


def _metric(name: str, kind: Kind, labels: tuple[str, ...]) -> Metric:
    metric = BY_NAME.get(name)
    if metric is None or metric.kind != kind:
        raise ValueError(f"the catalogue has no {kind} {name}")
    if len(labels) != len(metric.labels):
        raise ValueError(f"{name} has the labels {metric.labels}, not {labels}")
    return metric
