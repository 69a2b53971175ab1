from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.catalogue import BY_NAME, CATALOGUE, TTFT_S, Kind, Metric
from gateway.telemetry.meters import (
    _SPARE_BYTES,
    KEPT_SERIES,
    MAX_CHILDREN,
    MAX_LABEL_CHARACTERS,
    MAX_SERIES,
    OTHER,
    OVERFLOW,
    Histogram,
    Meters,
    others_of,
)
from gateway.telemetry.slab import CELL_COUNT, DIRECTORY_BYTES, Exemplar, Slab

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def values_of(slab: Slab) -> dict[tuple[str, ...], list[float]]:
    """Return what is in a slab, by family and labels."""
    children = slab.children()
    values = slab.read(len(children))
    return {(child.family, *child.labels): list(values[child.first : child.first + child.size]) for child in children}


def bind(meters: Meters, metric: Metric, *labels: str) -> None:
    """Bind a child of any kind."""
    binds = {"counter": meters.counter, "gauge": meters.gauge, "histogram": meters.histogram}
    binds[metric.kind](metric.name, *labels)


def test_a_counter_adds_up() -> None:
    """By one if nothing else is said."""
    slab = Slab.create()
    counter = Meters(slab).counter("millrace_stall_seconds_total", "chat", "openai/gpt")
    counter.inc()
    counter.inc(0.5)
    assert values_of(slab) == {("millrace_stall_seconds_total", "chat", "openai/gpt"): [1.5]}


@pytest.mark.parametrize("amount", [0.0, -1.0, -math.inf, math.inf, math.nan])
def test_a_counter_never_goes_back_nor_breaks(amount: float) -> None:
    """What would do so adds nothing."""
    slab = Slab.create()
    counter = Meters(slab).counter("millrace_spans_dropped_total")
    counter.inc(2)
    counter.inc(amount)
    assert values_of(slab) == {("millrace_spans_dropped_total",): [2.0]}


def test_a_gauge_is_what_was_said_last() -> None:
    """And goes up and down from there."""
    slab = Slab.create()
    gauge = Meters(slab).gauge("millrace_streams_active", "chat", "decode")
    gauge.set(7)
    gauge.inc()
    gauge.inc(-3)
    assert values_of(slab) == {("millrace_streams_active", "chat", "decode"): [5.0]}


@given(st.lists(st.floats(0, 1e6) | st.sampled_from(TTFT_S)))
def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it(observed: list[float]) -> None:
    """A bound belongs to its bucket; what is above all bounds has one too, and the sum is that of the values."""
    slab = Slab.create()
    histogram = Meters(slab).histogram("millrace_ttft_seconds", "chat", "openai/gpt")
    for value in observed:
        histogram.observe(value)
    *counts, total = values_of(slab)["millrace_ttft_seconds", "chat", "openai/gpt"]
    expected = [0] * (len(TTFT_S) + 1)
    for value in observed:
        expected[bisect_left(TTFT_S, value)] += 1
    assert counts == expected
    assert total == sum(observed)


@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.inf, math.nan])
def test_a_histogram_does_not_count_what_is_no_amount(value: float) -> None:
    """Its sum stays finite and never goes back."""
    slab = Slab.create()
    histogram = Meters(slab).histogram("millrace_event_loop_lag_seconds")
    histogram.observe(0.5)
    histogram.observe(value, TRACE_ID)
    assert sum(values_of(slab)["millrace_event_loop_lag_seconds",]) == 1.5
    assert slab.exemplars() == []


SIXTY_FOURTHS = st.integers(0, 64 * 400).map(lambda number: number / 64) | st.sampled_from([0.5, 1.0, 2.0, 300.0])
"""Amounts that add up to the same sum in any order, among them bounds, and the last one."""


@given(st.lists(st.tuples(st.sampled_from(["observe", "gather", "gather", "settle"]), SIXTY_FOURTHS)))
def test_what_is_gathered_is_counted_as_if_it_had_been_observed(steps: list[tuple[str, float]]) -> None:
    """Once, when it is settled and not before; whatever was observed in between is counted at once."""
    slab = Slab.create()
    histogram = Meters(slab).histogram("millrace_ttft_seconds", "chat", "openai/gpt")
    expected, gathered = [0.0] * (len(TTFT_S) + 2), list[float]()
    for way, value in [*steps, ("settle", 0.0)]:
        if way == "gather":
            histogram.gather(value)
            gathered.append(value)
            continue
        if way == "observe":
            histogram.observe(value)
        else:
            histogram.settle()
        for counted in [value] if way == "observe" else gathered:
            expected[bisect_left(TTFT_S, counted)] += 1
            expected[-1] += counted
        if way == "settle":
            gathered.clear()
        assert values_of(slab)["millrace_ttft_seconds", "chat", "openai/gpt"] == expected


@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.inf, math.nan])
def test_what_is_no_amount_is_not_counted_when_it_is_gathered_either(value: float) -> None:
    """What was gathered before and behind it is."""
    slab = Slab.create()
    histogram = Meters(slab).histogram("millrace_event_loop_lag_seconds")
    for one in (0.25, 64.0, value, 0.5, 0.001):
        histogram.gather(one)
    histogram.settle()
    *counts, total = values_of(slab)["millrace_event_loop_lag_seconds",]
    assert (sum(counts), total) == (4, 64.751)


def test_whoever_reads_sees_all_of_what_was_settled_or_nothing() -> None:
    """A count whose sum is not there yet would be a wrong mean, and one for ever if the worker is killed then."""
    written: list[list[float]] = []

    class Cells(array):  # type: ignore[type-arg]  # it takes none when it runs
        nbytes = 8 * 5

        def __setitem__(self, place: Any, value: Any) -> None:
            super().__setitem__(place, array("d", value) if isinstance(place, slice) else value)
            written.append(self.tolist())

    cells: Any = Cells("d", [0.0] * 5)
    histogram = Histogram(cells, (0.1, 0.2, 0.3), lambda *_: None)
    for value in (0.25, 0.125, 8.0, 0.25):
        histogram.gather(value)
    histogram.settle()
    histogram.settle()
    assert written == [[0.0, 1.0, 2.0, 1.0, 8.625]]


def test_all_that_is_gathered_is_settled_at_once() -> None:
    """Of whichever histogram."""
    slab = Slab.create()
    meters = Meters(slab)
    for upstream in ("a/b", "c/d"):
        meters.histogram("millrace_chunk_gap_seconds", "chat", upstream).gather(0.5)
    meters.histogram("millrace_chunk_transit_seconds").gather(0.25)
    assert sum(map(sum, values_of(slab).values())) == 0
    meters.settle()
    meters.settle()
    assert [sum(values) for values in values_of(slab).values()] == [1.5, 1.5, 1.25]


def test_an_observation_with_a_trace_can_stand_for_its_bucket() -> None:
    """The exemplar says which cell, which value, and when."""
    slab = Slab.create()
    meters = Meters(slab, clock=count(1000).__next__)
    meters.counter("millrace_spans_dropped_total")
    histogram = meters.histogram("millrace_ttft_seconds", "chat", "openai/gpt")
    histogram.observe(0.06, TRACE_ID)
    histogram.observe(0.07)
    histogram.observe(400.0, TRACE_ID)
    assert slab.exemplars() == [
        Exemplar(1 + 2, 0.06, 1000.0, TRACE_ID),
        Exemplar(1 + len(TTFT_S), 400.0, 1001.0, TRACE_ID),
    ]


def test_the_same_child_is_bound_once() -> None:
    """Whoever asks again counts in the same cells, by the same object."""
    slab = Slab.create()
    meters = Meters(slab)
    assert meters.counter("millrace_rejected_total", "busy") is meters.counter("millrace_rejected_total", "busy")
    assert meters.gauge("millrace_upstream_inflight", "a/b") is meters.gauge("millrace_upstream_inflight", "a/b")
    lag = meters.histogram("millrace_event_loop_lag_seconds")
    assert lag is meters.histogram("millrace_event_loop_lag_seconds")
    assert len(slab.children()) == 3


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
def test_a_name_that_the_catalogue_does_not_have_raises(kind: Kind) -> None:
    """Also one that it has, but of another kind: a mistake in the program is to be seen at once."""
    meters = Meters(Slab.create())
    wrong = {"counter": "millrace_ttft_seconds", "gauge": "millrace_requests_total", "histogram": "millrace_worker_up"}
    for name in ("millrace_nothing_total", wrong[kind]):
        with pytest.raises(ValueError, match=f"the catalogue has no {kind} {name}"):
            getattr(meters, kind)(name, "a", "b", "c", "d")


@pytest.mark.parametrize("labels", [(), ("busy", "more")])
def test_another_number_of_labels_than_the_family_has_raises(labels: tuple[str, ...]) -> None:
    """So does forgetting one."""
    with pytest.raises(ValueError, match="millrace_rejected_total has the labels"):
        Meters(Slab.create()).counter("millrace_rejected_total", *labels)


def test_every_family_can_be_counted() -> None:
    """With labels of their own, and with "other"."""
    slab = Slab.create()
    meters = Meters(slab)
    for metric in CATALOGUE:
        bind(meters, metric, *("x" for _ in metric.labels))
        bind(meters, metric, *others_of(metric))
    assert len(slab.children()) == sum(2 if metric.labels else 1 for metric in CATALOGUE)
    assert not any(map(sum, values_of(slab).values()))


@pytest.mark.parametrize("name", ["millrace_http_responses_total", "millrace_upstream_state", "millrace_ttft_seconds"])
def test_junk_labels_add_no_series_beyond_the_cap(name: str) -> None:
    """The rest is counted as "other", and how often is counted too; nothing is lost and nothing is kept of them."""
    slab = Slab.create()
    meters = Meters(slab)
    metric = BY_NAME[name]
    cap = MAX_CHILDREN[metric.kind]
    for number in range(cap + 250):
        match metric.kind:
            case "counter":
                meters.counter(name, "chat", f"junk {number}").inc()
            case "gauge":
                meters.gauge(name, "chat", f"junk {number}").inc()
            case "histogram":
                meters.histogram(name, "chat", f"junk {number}").observe(0.01)
    values = values_of(slab)
    assert sum(family == name for family, *_ in values) == cap + 1
    assert values[name, "other", "other"][0] == 250
    assert sum(children[0] for (family, *_), children in values.items() if family == name) == cap + 250
    assert values[OVERFLOW, name] == [250]
    assert len(meters._counters) + len(meters._gauges) + len(meters._histograms) == cap + 2


def test_histograms_leave_series_for_what_is_rare() -> None:
    """However many there are, a counter still gets a child of its own; all together keep within the cap."""
    slab = Slab.create()
    meters = Meters(slab)
    histograms = [metric for metric in CATALOGUE if metric.kind == "histogram" and metric.labels]
    counters = [
        metric for metric in CATALOGUE if metric.kind == "counter" and metric.labels and metric.name != OVERFLOW
    ]

    def series_count() -> int:
        return sum(
            BY_NAME[family].series_count
            for family, *labels in values_of(slab)
            if tuple(labels) != others_of(BY_NAME[family]) and family != OVERFLOW
        )

    for number in range(100):
        for metric in histograms:
            bind(meters, metric, *(f"{label} {number}" for label in metric.labels))
    assert MAX_SERIES - KEPT_SERIES - 30 < series_count() <= MAX_SERIES - KEPT_SERIES
    for number in range(500):
        for metric in counters:
            bind(meters, metric, *(f"{label} {number}" for label in metric.labels))
    assert series_count() == MAX_SERIES
    assert len({family for family, *_ in values_of(slab)}) == len(histograms) + len(counters) + 1


@pytest.mark.parametrize("label", ["x" * (MAX_LABEL_CHARACTERS + 1), "\ud800", "two\nlines", "\x00"])
def test_a_label_that_is_no_name_is_other(label: str) -> None:
    """It could not be written, or nobody wants to read it."""
    slab = Slab.create()
    Meters(slab).counter("millrace_rejected_total", label).inc()
    assert values_of(slab) == {
        (OVERFLOW, "millrace_rejected_total"): [1.0],
        ("millrace_rejected_total", "other"): [1.0],
    }


@pytest.mark.parametrize("label", ["", "Größe", "模型", 'a "b" \\ c', "x" * MAX_LABEL_CHARACTERS])
def test_any_other_label_is_kept_as_it_is(label: str) -> None:
    """Names are not always ASCII."""
    slab = Slab.create()
    Meters(slab).counter("millrace_rejected_total", label).inc()
    assert values_of(slab) == {("millrace_rejected_total", label): [1.0]}


def test_a_directory_that_is_full_still_tells_that_it_is() -> None:
    """Room for every "other" and every overflow is kept."""
    slab = Slab.create()
    meters = Meters(slab)
    slab.add("large", ("x" * (DIRECTORY_BYTES - _SPARE_BYTES - 100),), 1)
    for metric in CATALOGUE:
        bind(meters, metric, *("x" * 100 for _ in metric.labels))
    values = values_of(slab)
    labelled = [metric for metric in CATALOGUE if metric.labels and metric.name != OVERFLOW]
    assert all(values[OVERFLOW, metric.name] == [1.0] for metric in labelled)
    assert all((metric.name, *others_of(metric)) in values for metric in labelled)


def test_a_slab_without_any_room_loses_counts_and_nothing_else() -> None:
    """Whoever counts does not notice."""
    slab = Slab.create()
    slab.add("large", (), CELL_COUNT)
    meters = Meters(slab)
    meters.counter("millrace_rejected_total", "busy").inc()
    meters.gauge("millrace_worker_up", "0").set(1)
    meters.histogram("millrace_ttft_seconds", "chat", "openai/gpt").observe(0.5, TRACE_ID)
    assert [child.family for child in slab.children()] == ["large"]
    assert slab.exemplars() == []


def test_more_overflows_than_names_of_families_are_other_too() -> None:
    """Even where the program counts junk there, it ends."""
    slab = Slab.create()
    slab.add("large", ("x" * (DIRECTORY_BYTES - 100),), 1)
    meters = Meters(slab)
    for number in range(3):
        meters.counter(OVERFLOW, f"a name that is too long for what is left of the directory {number}").inc()
    assert values_of(slab)[OVERFLOW, OTHER][0] >= 1
