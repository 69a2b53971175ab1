from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import chain
from math import fsum
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.telemetry import collector as module
from gateway.telemetry.catalogue import BY_NAME, CATALOGUE, Metric
from gateway.telemetry.collector import Process, SlabCollector, read_process
from gateway.telemetry.meters import MAX_CHILDREN, OVERFLOW, Meters
from gateway.telemetry.slab import Slab
from tests.gateway.telemetry.conftest import MakeWriter
from tests.gateway.telemetry.writer import BOTH_HALVES, GATHERED_COUNT, GATHERED_S, value_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
PROMETHEUS_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3"

Values = dict[tuple[str, ...], float]
Read = Callable[[str], Iterable[Family]]

read_text: Read = text_string_to_metric_families
read_openmetrics: Read = openmetrics_parser.text_string_to_metric_families


def no_process(_: int) -> None:
    """Know of no process."""


def make_collector(*slabs: Slab, supervisor: Slab | None = None) -> SlabCollector:
    """Return a collector that looks at no process, so that two answers in a row are equal."""
    return SlabCollector(slabs, supervisor=supervisor, read_process=no_process)


def fill(meters: Meters, metric: Metric, *labels: str) -> None:
    """Count something in a child of any kind."""
    match metric.kind:
        case "counter":
            meters.counter(metric.name, *labels).inc(2.5)
        case "gauge":
            meters.gauge(metric.name, *labels).set(0.25)
        case "histogram":
            histogram = meters.histogram(metric.name, *labels)
            for value in (0.0001, 0.04, 0.2, 7.5, 1e6):
                histogram.observe(value, TRACE_ID)


def values_of(families: Iterable[Family]) -> Values:
    """Return all values, by name and label values in the catalogue's order."""
    values = {}
    for sample in chain.from_iterable(family.samples for family in families):
        metric = BY_NAME.get(sample.name) or BY_NAME[sample.name.rpartition("_")[0]]
        labels = (*metric.labels, "le") if "le" in sample.labels else metric.labels
        values[sample.name, *(sample.labels[label] for label in labels)] = sample.value
    return values


def told_by(collector: SlabCollector) -> Values:
    """Return all values of an answer."""
    return values_of(collector.collect())


def only_grows(name: str) -> bool:
    """Return whether the samples of that name are of a counter or a histogram."""
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


# --- merging ----------------------------------------------------------------------------------------------------------


def test_counters_and_histograms_are_summed_over_the_workers() -> None:
    """To the last one; what only one of them has is told too."""
    slabs = [Slab.create(), Slab.create(), Slab.create()]
    for number, slab in enumerate(slabs, start=1):
        meters = Meters(slab)
        meters.counter("millrace_rejected_total", f"only {number}").inc()
        meters.counter("millrace_rejected_total", "busy").inc(number)
        histogram = meters.histogram("millrace_overhead_seconds", "request")
        for _ in range(number):
            histogram.observe(0.0005)
            histogram.observe(0.0006)
            histogram.observe(64)
    told = told_by(make_collector(*slabs))
    assert told["millrace_rejected_total", "busy"] == 6
    assert [told["millrace_rejected_total", f"only {number}"] for number in (1, 2, 3)] == [1, 1, 1]
    bucket = "millrace_overhead_seconds_bucket"
    assert told[bucket, "request", "0.00025"] == 0
    assert told[bucket, "request", "0.0005"] == 6
    assert told[bucket, "request", "0.001"] == told[bucket, "request", "1.0"] == 12
    assert told[bucket, "request", "+Inf"] == told["millrace_overhead_seconds_count", "request"] == 18
    assert told["millrace_overhead_seconds_sum", "request"] == pytest.approx(6 * 64.0011)


@pytest.mark.parametrize(
    ("name", "labels", "merged"),
    [
        ("millrace_streams_active", ("chat", "decode"), 7.0),
        ("millrace_upstream_state", ("a/b", "open"), 4.0),
        ("millrace_upstream_ratelimit_remaining_ratio", ("a/b", "tokens"), 1.0),
        ("millrace_upstream_ttft_ewma_seconds", ("a/b",), 7 / 3),
    ],
)
def test_gauges_are_merged_as_the_catalogue_says(name: str, labels: tuple[str, ...], merged: float) -> None:
    """A sum, the largest, the smallest or the mean; a worker without one has no part in it."""
    slabs = [Slab.create() for _ in range(4)]
    for slab, value in zip(slabs, (2.0, 4.0, 1.0), strict=False):
        Meters(slab).gauge(name, *labels).set(value)
    assert told_by(make_collector(*slabs))[name, *labels] == merged


def test_a_gauge_with_its_worker_stands_for_itself() -> None:
    """Slots are not mixed up."""
    slabs = [Slab.create(), Slab.create()]
    for slot, slab in enumerate(slabs):
        Meters(slab).gauge("millrace_event_loop_lag_max_seconds", str(slot)).set(slot + 0.5)
    told = told_by(make_collector(*slabs))
    assert told["millrace_event_loop_lag_max_seconds", "0"] == 0.5
    assert told["millrace_event_loop_lag_max_seconds", "1"] == 1.5


def test_what_the_supervisor_counts_is_told_too() -> None:
    """From a slab of its own, which is no worker's."""
    supervisor = Slab.create()
    collector = make_collector(Slab.create(), supervisor=supervisor)
    Meters(supervisor).counter("millrace_worker_restarts_total", "0").inc()
    told = told_by(collector)
    assert told["millrace_worker_restarts_total", "0"] == 1
    assert [key for key in told if key[0] == "millrace_worker_up"] == [("millrace_worker_up", "0")]


def test_an_answer_counts_its_own_lines_and_the_time_that_the_last_one_took() -> None:
    """The series are those of this answer, itself included."""
    slab = Slab.create()
    meters = Meters(slab)
    for metric in CATALOGUE:
        if metric.name not in {"millrace_metrics_series", "millrace_scrape_duration_seconds"}:
            fill(meters, metric, *("x" for _ in metric.labels))
    collector = make_collector(slab)
    told = told_by(collector)
    assert told["millrace_metrics_series",] == len(told)
    assert told["millrace_scrape_duration_seconds",] == 0
    collector.render("")
    assert 0 < told_by(collector)["millrace_scrape_duration_seconds",] < 1


def test_an_answer_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that begins and ends while it is made is in all of it or in nothing, whatever series are new with it."""
    slab = Slab.create()
    meters = Meters(slab)
    numbers = iter(range(100))

    def call() -> None:
        meters.counter("millrace_requests_started_total", "chat", "m").inc()
        meters.counter("millrace_requests_total", "chat", "m", "true", f"outcome {next(numbers)}").inc()

    def before(function: Callable[..., object], times: int) -> Callable[..., object]:
        left = iter(range(times))

        def busy(*arguments: object) -> object:
            if next(left, None) is not None:
                call()
            return function(*arguments)

        return busy

    call()
    collector = make_collector(slab)
    monkeypatch.setattr(collector._cap, "take", before(collector._cap.take, 10))
    read = collector._workers[0].source.slab
    monkeypatch.setattr(read, "read", before(read.read, 1))
    for _ in range(5):
        told = told_by(collector)
        ended = [value for (name, *_), value in told.items() if name == "millrace_requests_total"]
        assert sum(ended) == told["millrace_requests_started_total", "chat", "m"]
    assert next(numbers) == 12


def test_what_another_version_of_the_gateway_counts_is_left_out() -> None:
    """Families that are unknown, of another size, or with other labels; exemplars with them."""
    slab = Slab.create()
    slab.note_exemplar(5, 0.5, 1.0, TRACE_ID)
    assert list(make_collector(slab).collect())
    Meters(slab).counter("millrace_spans_dropped_total").inc()
    slab.add("millrace_of_tomorrow_total", (), 1)
    slab.add("millrace_ttft_seconds", ("chat", "a/b"), 10)
    slab.add("millrace_requests_total", ("chat", "a/b"), 1)
    names = {family.name for family in make_collector(slab).collect()}
    assert "millrace_spans_dropped" in names
    assert not names & {"millrace_of_tomorrow", "millrace_ttft_seconds", "millrace_requests"}


# --- workers that die -------------------------------------------------------------------------------------------------


def test_counts_outlive_their_worker_and_gauges_do_not() -> None:
    """The next one's counts go on where they were."""
    slabs = [Slab.create(), Slab.create()]
    collector = make_collector(*slabs)
    for slab in slabs:
        meters = Meters(slab)
        meters.counter("millrace_spans_dropped_total").inc(5)
        meters.gauge("millrace_streams_active", "chat", "decode").set(3)
        meters.histogram("millrace_ttft_seconds", "chat", "a/b").observe(0.5, TRACE_ID)
    before = told_by(collector)
    collector.retire(0)
    after = told_by(collector)
    assert {key: value for key, value in after.items() if only_grows(key[0])} == {
        key: value for key, value in before.items() if only_grows(key[0])
    }
    assert after["millrace_streams_active", "chat", "decode"] == 3
    collector.retire(1)
    assert ("millrace_streams_active", "chat", "decode") not in told_by(collector)
    assert "millrace_streams_active" not in {family.name for family in collector.collect()}
    Meters(slabs[0]).counter("millrace_spans_dropped_total").inc()
    assert told_by(collector)["millrace_spans_dropped_total",] == 11
    collector.retire(0)
    collector.retire(0)
    assert told_by(collector)["millrace_spans_dropped_total",] == 11


def test_calls_that_were_in_flight_in_a_worker_that_died_have_ended_with_it() -> None:
    """Once, by route and model, and none of those that had ended before."""
    slab = Slab.create()
    collector = make_collector(slab)
    meters = Meters(slab)
    for model, started, ended in (("a", 5, 3), ("b", 2, 2), ("c", 1, 0)):
        meters.counter("millrace_requests_started_total", "chat", model).inc(started)
        meters.counter("millrace_requests_total", "chat", model, "false", "completed").inc(ended)
        meters.gauge("millrace_streams_active", model, "decode").set(started - ended)
    collector.retire(0)
    collector.retire(0)
    told = told_by(collector)
    name = "millrace_requests_total"
    assert {key[2:]: value for key, value in told.items() if key[0] == name and value} == {
        ("a", "false", "completed"): 3,
        ("a", "true", "gateway_error"): 2,
        ("b", "false", "completed"): 2,
        ("c", "true", "gateway_error"): 1,
    }


def test_a_slot_can_die_before_anyone_has_asked() -> None:
    """Its counts are not lost."""
    slab = Slab.create()
    collector = make_collector(slab)
    Meters(slab).counter("millrace_spans_dropped_total").inc(5)
    collector.retire(0)
    assert list(slab.children()) == []
    assert told_by(collector)["millrace_spans_dropped_total",] == 5


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.floats(0, 1e9))), max_size=60))
def test_nothing_that_only_grows_is_ever_told_smaller(steps: list[tuple[int, float | None]]) -> None:
    """Not by the last bit of a sum, however the workers die, and in the end it is what was counted."""
    slabs = [Slab.create() for _ in range(3)]
    all_meters = [Meters(slab) for slab in slabs]
    collector = make_collector(*slabs)
    told: Values = {}
    for worker, value in steps:
        if value is None:
            collector.retire(worker)
            all_meters[worker] = Meters(slabs[worker])
        else:
            all_meters[worker].counter("millrace_stall_seconds_total", "chat", "a/b").inc(value)
            all_meters[worker].histogram("millrace_event_loop_lag_seconds").observe(value)
        now = told_by(collector)
        assert all(now[key] >= value for key, value in told.items() if only_grows(key[0]))
        told = now
    counted = [value for _, value in steps if value is not None]
    if counted:
        assert told["millrace_stall_seconds_total", "chat", "a/b"] == pytest.approx(fsum(counted))
        assert told["millrace_event_loop_lag_seconds_sum",] == pytest.approx(fsum(counted))
        assert told["millrace_event_loop_lag_seconds_count",] == len(counted)


def test_junk_labels_of_many_workers_and_their_successors_keep_within_the_cap() -> None:
    """Each has others, and each keeps within it alone; what is turned away is counted as "other" and told."""
    slabs = [Slab.create(), Slab.create()]
    collector = make_collector(*slabs)
    cap = MAX_CHILDREN["counter"]
    for life in range(3):
        for slot, slab in enumerate(slabs):
            meters = Meters(slab)
            for number in range(300):
                meters.counter("millrace_rejected_total", f"junk {life} {slot} {number}").inc()
            told_by(collector)
        collector.retire(0)
        collector.retire(1)
    told = told_by(collector)
    rejected = {key: value for key, value in told.items() if key[0] == "millrace_rejected_total"}
    assert len(rejected) == cap + 1
    assert sum(rejected.values()) == 1800
    assert rejected["millrace_rejected_total", "other"] == 1800 - cap
    assert told[OVERFLOW, "millrace_rejected_total"] == 1800 - cap


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_worker_is_told_with_its_processor_time_memory_and_files() -> None:
    """As the system knows them, asked when the answer is made."""
    collector = SlabCollector([Slab.create(), Slab.create()])
    collector.note_started(0, os.getpid())
    told = told_by(collector)
    assert told["millrace_worker_up", "0"] == 1
    assert told["millrace_worker_cpu_seconds_total", "0"] == pytest.approx(time.process_time(), abs=2)
    assert 1e7 < told["millrace_worker_resident_memory_bytes", "0"] < 1e10
    assert 3 <= told["millrace_worker_open_fds", "0"] < 10_000
    others = [value for key, value in told.items() if key[0].startswith("millrace_worker_") and key[1] == "1"]
    assert others == [0, 0, 0, 0]


def test_the_processor_time_of_a_slot_goes_on_with_the_next_process() -> None:
    """What the last one used up to its end is in it, if it can still be read."""
    processes: dict[int, Process] = {}
    collector = SlabCollector([Slab.create()], read_process=processes.get)

    def told() -> list[float]:
        values = told_by(collector)
        names = ("up", "cpu_seconds_total", "resident_memory_bytes", "open_fds")
        return [values[f"millrace_worker_{name}", "0"] for name in names]

    assert told() == [0, 0, 0, 0]
    processes[7] = Process(has_ended=False, cpu_s=1.5, resident_bytes=100, open_fds=9)
    collector.note_started(0, 7)
    assert told() == [1, 1.5, 100, 9]
    processes[7] = Process(has_ended=True, cpu_s=2.0, resident_bytes=0, open_fds=0)
    assert told() == [0, 2.0, 0, 0]
    processes[7] = Process(has_ended=True, cpu_s=2.5, resident_bytes=0, open_fds=0)
    collector.retire(0)
    assert told() == [0, 2.5, 0, 0]
    processes[8] = Process(has_ended=False, cpu_s=0.25, resident_bytes=50, open_fds=4)
    collector.note_started(0, 8)
    assert told() == [1, 2.75, 50, 4]
    del processes[8]
    assert told() == [0, 2.75, 0, 0]


def test_a_slot_has_two_workers_while_one_leaves() -> None:
    """Both are counted, and what the old one has in flight is in flight; up is the slot only with the new one."""
    processes: dict[int, Process] = {}
    slabs = [Slab.create(), Slab.create()]
    collector = SlabCollector(read_process=processes.get)
    for number, slab in enumerate(slabs):
        meters = Meters(slab)
        meters.counter("millrace_spans_dropped_total").inc(5)
        meters.gauge("millrace_streams_active", "chat", "decode").set(3)
        processes[number] = Process(has_ended=False, cpu_s=1.5, resident_bytes=100, open_fds=9)

    def told(*names: str) -> list[float | None]:
        values = told_by(collector)
        return [values.get((f"millrace_worker_{name}", "0")) for name in names]

    old = collector.admit(0, slabs[0])
    collector.note_started(old, 0)
    new = collector.admit(0, slabs[1])
    collector.note_started(new, 1)
    collector.note_leaving(old)
    assert told("up", "cpu_seconds_total", "resident_memory_bytes", "open_fds") == [1, 3, 200, 18]
    values = told_by(collector)
    assert values["millrace_spans_dropped_total",] == 10
    assert values["millrace_streams_active", "chat", "decode"] == 6
    of_slot = collector.of_slot(0)
    assert of_slot is not None
    alone = values_of(of_slot.collect())
    assert alone["millrace_spans_dropped_total",] == 10
    assert not any(key[0] == "millrace_worker_up" for key in alone), "that is not in a slab"
    collector.dismiss(new)
    assert told("up", "cpu_seconds_total", "resident_memory_bytes") == [0, 3, 100]
    collector.dismiss(old)
    assert told("up", "cpu_seconds_total", "resident_memory_bytes") == [0, 3, 0]
    values = told_by(collector)
    assert values["millrace_spans_dropped_total",] == 10
    assert ("millrace_streams_active", "chat", "decode") not in values
    assert collector.of_slot(0) is None


def test_of_a_slot_that_there_is_no_more_only_what_was_counted_is_told() -> None:
    """A gateway with fewer workers than before does not miss any; one with more waits for them."""
    collector = make_collector(Slab.create(), Slab.create())
    assert told_by(collector)["millrace_worker_up", "1"] == 0
    collector.keep_slots(1)
    told = told_by(collector)
    assert {key[1] for key in told if key[0] == "millrace_worker_up"} == {"0"}
    assert told["millrace_worker_cpu_seconds_total", "1"] == 0
    collector.keep_slots(3)
    assert {key[1] for key in told_by(collector) if key[0] == "millrace_worker_up"} == {"0", "1", "2"}


def test_a_process_that_has_ended_is_told_apart_from_one_that_is_stopped() -> None:
    """It keeps its processor time until it is waited for; then there is nothing."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.send_signal(signal.SIGSTOP)
    stopped = read_process(process.pid)
    assert stopped
    assert not stopped.has_ended
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    ended = read_process(process.pid)
    assert ended
    assert ended.has_ended
    assert ended.resident_bytes == ended.open_fds == 0
    process.communicate()
    assert read_process(process.pid) is None


def test_files_that_may_not_be_counted_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of someone else still has its memory told."""

    def refuse(_: str) -> list[str]:
        raise PermissionError

    monkeypatch.setattr(os, "listdir", refuse)
    process = read_process(os.getpid())
    assert process
    assert process.open_fds == 0
    assert process.resident_bytes > 0


def test_where_the_system_tells_nothing_a_process_is_there_until_it_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is known of it."""
    monkeypatch.setattr(module, "_HAS_PROC", False)
    assert read_process(1) == Process(has_ended=False, cpu_s=0.0, resident_bytes=0, open_fds=0)


# --- what is written --------------------------------------------------------------------------------------------------


def make_full_collector() -> SlabCollector:
    """Return one with all families, counted by two workers, with labels that need escaping."""
    slabs = [Slab.create(), Slab.create()]
    for slab, label in zip(slabs, ("chat", 'a "b" \\ é'), strict=True):
        meters = Meters(slab, clock=lambda: 1_760_000_000.25)
        for metric in CATALOGUE:
            fill(meters, metric, *(f"{label} {name}" for name in metric.labels))
            fill(meters, metric, *("both" for _ in metric.labels))
    return make_collector(*slabs)


def plain(families: Iterable[Family], *, with_exemplars: bool) -> list[object]:
    """Return what was told, so that it can be compared."""

    def plain_sample(sample: Sample) -> object:
        exemplar = sample.exemplar if with_exemplars else None
        told = exemplar and (exemplar.labels, exemplar.value, float(exemplar.timestamp or 0))
        return (sample.name, sample.labels, sample.value, told)

    return [(one.name, one.type, one.documentation, [*map(plain_sample, one.samples)]) for one in families]


@pytest.mark.parametrize(
    ("accept", "content_type", "read"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", read_text),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", read_text),
        (
            "text/html, application/openmetrics-text;version=0.0.1",
            "text/plain; version=0.0.4; charset=utf-8",
            read_text,
        ),
        ("application/openmetrics-text; version=latest", "text/plain; version=0.0.4; charset=utf-8", read_text),
        ("application/openmetrics-text", OPENMETRICS, read_openmetrics),
        (PROMETHEUS_2, OPENMETRICS + "; escaping=underscores", read_openmetrics),
        (PROMETHEUS_3, OPENMETRICS + "; escaping=allow-utf-8", read_openmetrics),
    ],
)
def test_what_is_written_is_read_back_the_same(accept: str, content_type: str, read: Read) -> None:
    """Every family, help, label and value, in the format that was asked for; exemplars where there are any."""
    collector = make_full_collector()
    told = plain(collector.collect(), with_exemplars=read is read_openmetrics)
    body, told_type = collector.render(accept)
    assert told_type == content_type
    assert plain(read(body.decode()), with_exemplars=True) == told
    encoded = choose_encoder(accept.replace("latest", "0"))[0](collector)
    assert all(b"scrape_duration" in line for line in {*body.splitlines()} ^ {*encoded.splitlines()})
    assert len(told) == len(CATALOGUE)


def test_exemplars_are_those_seen_last_and_only_in_openmetrics() -> None:
    """One for a bucket, whichever worker saw it, and no longer than its worker."""
    slabs = [Slab.create(), Slab.create()]
    collector = make_collector(*slabs)
    for slab, at_s in zip(slabs, (2000.0, 1000.0), strict=True):
        meters = Meters(slab, clock=lambda at_s=at_s: at_s)  # type: ignore[misc]  # a default is no argument of a clock
        meters.counter("millrace_spans_dropped_total").inc()
        meters.histogram("millrace_ttft_seconds", "chat", "a/b").observe(0.19, f"{int(at_s):032x}")
        meters.histogram("millrace_ttft_seconds", "chat", "a/b").observe(at_s, f"{int(at_s):032x}")
    line = 'millrace_ttft_seconds_bucket{le="0.2",model="chat",upstream="a/b"} 2.0'
    newest = f'{line} # {{trace_id="000000000000000000000000000007d0"}} 0.19 2000.0\n'
    body = collector.render(PROMETHEUS_2)[0].decode()
    assert newest in body
    assert body.count(" # ") == 2
    body = collector.render("")[0].decode()
    assert f"{line}\n" in body
    assert " # " not in body
    collector.retire(0)
    body = collector.render(PROMETHEUS_2)[0].decode()
    assert f'{line} # {{trace_id="000000000000000000000000000003e8"}} 0.19 1000.0\n' in body


def test_it_is_a_collector_like_any_other() -> None:
    """A registry of prometheus_client takes it, beside others."""
    registry = CollectorRegistry(auto_describe=True)
    slab = Slab.create()
    Meters(slab).counter("millrace_rejected_total", "busy").inc(3)
    registry.register(make_collector(slab))
    assert registry.get_sample_value("millrace_rejected_total", {"reason": "busy"}) == 3


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Debian's package prometheus is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    """Neither an error nor a name that it would not have chosen."""
    body, _ = make_full_collector().render("")
    ran = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)  # noqa: S607
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_answers_in_several_threads_at_once_are_each_right() -> None:
    """While the loop's thread counts, and a worker dies."""
    slabs = [Slab.create(), Slab.create()]
    collector = make_collector(*slabs)
    Meters(slabs[1]).counter("millrace_rejected_total", "busy").inc(7)
    wrong: list[object] = []

    def ask() -> None:
        told: Values = {}
        for _ in range(50):
            now = values_of(read_openmetrics(collector.render(PROMETHEUS_3)[0].decode()))
            wrong.extend(key for key, value in told.items() if only_grows(key[0]) and now.get(key, -1) < value)
            told = now

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    meters = Meters(slabs[0])
    count = 0
    while any(thread.is_alive() for thread in threads):
        count += 1
        meters.counter("millrace_rejected_total", f"reason {count % 50}").inc()
        if count == 1000:
            collector.retire(1)
    assert wrong == []
    rejected = [value for (name, *_), value in told_by(collector).items() if name == "millrace_rejected_total"]
    assert sum(rejected) == count + 7


# --- workers as they are ----------------------------------------------------------------------------------------------


def test_ten_thousand_answers_stay_right_while_workers_are_killed_and_stopped(make_writer: MakeWriter) -> None:
    """None waits for a worker, goes back or tells half a value; in the end every count is there, once."""
    slabs = [Slab.create(), Slab.create()]
    collector = SlabCollector(slabs)
    writers = [make_writer(slab) for slab in slabs]
    for worker, writer in enumerate(writers):
        collector.note_started(worker, writer.pid)

    def replace_one() -> None:
        writers[0].kill()
        writers[0].wait()
        counted.append(int(sum(slabs[0].cells[:3].tolist())))
        collector.retire(0)
        writers[0] = make_writer(slabs[0])
        collector.note_started(0, writers[0].pid)

    events: dict[int, Callable[[], None]] = {
        3000: replace_one,
        5000: lambda: writers[1].send_signal(signal.SIGSTOP),
        8000: lambda: writers[1].send_signal(signal.SIGCONT),
    }
    counted: list[int] = []
    took_s: list[float] = []
    told: Values = {}
    for number in range(10_000):
        if number in events:
            events[number]()
        told = checked(timed(collector.collect, took_s), told)
        if number % 1000 == 999:
            told = checked(read_text(collector.render("")[0].decode()), told)
            told = checked(read_openmetrics(collector.render(PROMETHEUS_2)[0].decode()), told)
    assert sorted(took_s)[-100] < 0.1, "of those that took longer the machine had something else to do"
    assert max(took_s) < 30
    for writer in writers:
        writer.terminate()
        counted.append(int(writer.communicate()[0]))
    told = checked(collector.collect(), told)
    observed, killed = told["millrace_ttft_seconds_count", "a", "openai/a"], counted[0]
    assert sum(told["millrace_requests_started_total", "chat", model] for model in "abc") == sum(counted)
    assert sum(counted) - observed in {0, 1}  # the one that was killed may have come to the first of the two only
    total = sum(value_of(number) for count in counted for number in range(1, count + 1))
    assert total - told["millrace_ttft_seconds_sum", "a", "openai/a"] in {0, value_of(killed)}
    gathered = told["millrace_chunk_gap_seconds_count", "a", "openai/a"]
    assert sum(count // GATHERED_COUNT * GATHERED_COUNT for count in counted) - gathered in {0, GATHERED_COUNT}
    assert told["millrace_chunk_gap_seconds_sum", "a", "openai/a"] == gathered * GATHERED_S
    collector.retire(0)
    collector.retire(1)
    name = "millrace_requests_total"  # none has ended by itself, and now all have
    after = told_by(collector)
    assert all(told[key] == value for key, value in after.items() if is_counted(key) and key[0] != name)
    assert sum(value for key, value in after.items() if key[0] == name) == sum(counted)


def timed(collect: Callable[[], Iterable[Family]], took_s: list[float]) -> Iterable[Family]:
    """Return what is collected, of which the time is noted."""
    began_at_s = time.perf_counter()
    families = collect()
    took_s.append(time.perf_counter() - began_at_s)
    return families


def checked(answer: Iterable[Family], before: Values) -> Values:
    """Return the values of an answer in which nothing went back, no value is torn and every exemplar is whole."""
    families = list(answer)
    values = values_of(families)
    assert all(values[key] >= value for key, value in before.items() if only_grows(key[0]))
    assert values["millrace_stream_buffered_bytes",] % BOTH_HALVES == 0
    for sample in chain.from_iterable(family.samples for family in families):
        if sample.name.endswith(("_bucket", "_count")):
            assert float(sample.value).is_integer()
        if sample.exemplar:
            number = int(sample.exemplar.labels["trace_id"], 16)
            assert sample.exemplar.value == value_of(number) <= float(sample.labels["le"])
            assert float(sample.exemplar.timestamp or 0) == number
    return values


def is_counted(key: tuple[str, ...]) -> bool:
    """Return whether a value is one that the writers count."""
    return only_grows(key[0]) and "cpu" not in key[0]


def test_every_family_of_the_catalogue_can_be_asked_for() -> None:
    """With one worker it is the same way as with many: what it counted is what is told."""
    slab = Slab.create()
    meters = Meters(slab)
    for metric in CATALOGUE:
        fill(meters, metric, *("x" for _ in metric.labels))
    names = {family.name for family in make_collector(slab).collect()}
    assert names == {name.removesuffix("_total") for name in BY_NAME}
