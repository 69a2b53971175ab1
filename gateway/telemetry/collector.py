"""Makes one answer of all slabs: what ``/metrics`` says, however many workers there are.

Nothing is asked of a worker: its slab is read, whether it is busy, hangs or is dead. Counters and histograms are summed
over the workers, gauges merged as the catalogue says. When a worker has died its counts are kept, in ``retired``, and
its slab is cleared for the next one, whose counts begin at zero: the sum goes on where it was. Its gauges are gone with
it. Sums of floats depend on their order, and for Prometheus a counter that is less by its last bit has begun again; so
what was told once is the least that is told from then on.

A slot is a number that one worker has after another. While a new one has begun in it and the old one still finishes its
streams, both are counted: the slot's memory is that of both, and it is up if the new one is.

Label values are capped over all workers as in each: the caps hold for the answer too.

Calls that were in flight in a worker that has died have ended with it: they are counted as such, so that at any time
those that were started are those with an outcome and those in flight. Whether they were streams nobody knows any more;
nearly all are, and so are they taken for it.

The collector has mappings and a lock of its own, so that it can be used in any thread. It is a collector of
prometheus_client, whose encoders write the answer.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import fsum
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from gateway.telemetry.catalogue import BY_NAME, CATALOGUE, Kind, Merge, Metric
from gateway.telemetry.meters import OVERFLOW, Cap, Meters, others_of
from gateway.telemetry.slab import Child, Slab
from gateway.telemetry.slab import Exemplar as SlabExemplar

_MERGE: Final[Mapping[Merge, Callable[[Sequence[float]], float]]] = {"sum": sum, "max": max, "min": min, "mean": fmean}
_FAMILIES: Final[Mapping[Kind, type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_OF_SLOT: Final = ("worker",)
_STARTED: Final = "millrace_requests_started_total"
_ENDED: Final = "millrace_requests_total"
_SERIES_COUNT: Final = "millrace_metrics_series"
MOST_LOOKS: Final = 3
"""A worker makes its series when it begins, and seldom later: one look is enough nearly always."""

_HAS_PROC: Final = Path("/proc/self/stat").exists()


@dataclass(frozen=True, slots=True)
class Process:
    """What the system says of a process. One that has ended may be there until someone waits for it."""

    has_ended: bool
    cpu_s: float
    resident_bytes: int
    open_fds: int


def read_process(pid: int) -> Process | None:
    """Return what ``/proc`` says of a process, ``None`` if there is no such one. Without ``/proc`` all is 0."""
    if not _HAS_PROC:
        return Process(has_ended=False, cpu_s=0.0, resident_bytes=0, open_fds=0)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *numbers = stat.rpartition(")")[2].split()  # the name before it may contain anything
    try:
        open_fds = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208, a path for each of 10 000 is not needed
    except OSError:  # it ended just now, or may not be looked at
        open_fds = 0
    return Process(
        has_ended=state in "ZX",
        cpu_s=(int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=int(numbers[20]) * os.sysconf("SC_PAGE_SIZE"),
        open_fds=open_fds,
    )


@dataclass(eq=False, slots=True)
class _Series:
    """One child of the answer: its values are those of the cells of a slab."""

    metric: Metric
    labels: tuple[str, ...]
    retired: Sequence[float] = ()
    told: Sequence[float] = ()
    samples: Sequence[tuple[str, dict[str, str]]] = ()

    def __post_init__(self) -> None:
        labels = dict(zip(self.metric.labels, self.labels, strict=True))
        name = self.metric.name
        if self.metric.kind == "histogram":
            bounds = [*(repr(float(bound)) for bound in self.metric.buckets), "+Inf"]
            buckets = [(f"{name}_bucket", {**labels, "le": bound}) for bound in bounds]
            self.samples = [*buckets, (f"{name}_count", labels), (f"{name}_sum", labels)]
        else:
            self.samples = [(name, labels)]

    def retire(self, values: Sequence[float]) -> None:
        self.retired = _sums(self.retired, values) if self.retired else values

    def merge(self, parts: Sequence[Sequence[float]]) -> Sequence[float]:
        if self.metric.kind == "gauge":
            return [_MERGE[self.metric.merge]([part[0] for part in parts])]
        values = parts[0] if len(parts) == 1 else _sums(*parts)
        self.told = list(map(max, values, self.told)) if self.told else values
        return self.told


def _sums(*parts: Sequence[float]) -> Sequence[float]:
    return list(map(fsum, zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class _Place:
    """The cells of a slab that are a part of a series."""

    series: _Series
    first: int
    size: int


class _Source:
    """A slab, and where in it the parts are: remembered, as nothing in a slab moves.

    What a worker of another version counts in another way is left out.
    """

    def __init__(self, slab: Slab) -> None:
        self.slab: Final = Slab.attach(os.dup(slab.fd))  # so that reading it does not meet its writer's thread
        self._epoch = 0
        self._child_count = 0
        self._places: list[_Place] = []
        self._firsts: list[int] = []
        self._values: Sequence[float] = []

    def places(self, series_of: Callable[[Metric, tuple[str, ...]], _Series]) -> Sequence[_Place]:
        children = self._look()
        if self._epoch != self.slab.epoch:
            self._epoch, self._child_count = self.slab.epoch, 0
            self._places, self._firsts = [], []
        for child in children[self._child_count :]:
            metric = BY_NAME.get(child.family)
            if metric is not None and (metric.cell_count, len(metric.labels)) == (child.size, len(child.labels)):
                self._places.append(_Place(series_of(metric, child.labels), child.first, child.size))
                self._firsts.append(child.first)
        self._child_count = len(children)
        return self._places

    def parts(self) -> Iterator[tuple[_Series, Sequence[float]]]:
        for place in self._places:
            yield place.series, self._values[place.first : place.first + place.size]

    def _look(self) -> Sequence[Child]:
        """Read the children and, at once, their values: one that came in between has what others would lack."""
        for _ in range(MOST_LOOKS):
            children = list(self.slab.children())
            self._values = self.slab.read(len(children))
            if len(self.slab.children()) == len(children):
                break
        return children

    def exemplars(self) -> Iterator[tuple[_Series, int, SlabExemplar]]:
        for exemplar in self.slab.exemplars():
            index = bisect_right(self._firsts, exemplar.cell) - 1
            if index >= 0:
                place = self._places[index]
                bucket = exemplar.cell - place.first
                if bucket < place.size - 1:
                    yield place.series, bucket, exemplar


_Values = Mapping[_Series, Sequence[float]]
_Exemplars = Mapping[tuple[_Series, int], Exemplar]


class _Slot:
    """What is told of the processes that work in one slot."""

    def __init__(self, slot: int, meters: Meters) -> None:
        self.number: Final = slot
        self._up = meters.gauge("millrace_worker_up", str(slot))
        self._cpu_s = meters.counter("millrace_worker_cpu_seconds_total", str(slot))
        self._resident_bytes = meters.gauge("millrace_worker_resident_memory_bytes", str(slot))
        self._open_fds = meters.gauge("millrace_worker_open_fds", str(slot))

    def clear(self) -> None:
        for gauge in (self._up, self._resident_bytes, self._open_fds):
            gauge.set(0.0)

    def add(self, process: Process, cpu_s: float, *, is_leaving: bool) -> None:
        if not (process.has_ended or is_leaving):
            self._up.set(1.0)
        self._cpu_s.inc(cpu_s)
        self._resident_bytes.inc(process.resident_bytes)
        self._open_fds.inc(process.open_fds)


class _Worker:
    """A slab, and the process that writes to it now."""

    def __init__(self, slot: _Slot, slab: Slab) -> None:
        self.source: Final = _Source(slab)
        self.slot: Final = slot
        self.is_leaving = False
        self._pid: int | None = None
        self._cpu_seen_s = 0.0

    def begin(self, pid: int | None) -> None:
        self._pid = pid
        self._cpu_seen_s = 0.0

    def look(self, read: Callable[[int], Process | None]) -> None:
        process = None if self._pid is None else read(self._pid)
        if process is not None:
            self.slot.add(process, process.cpu_s - self._cpu_seen_s, is_leaving=self.is_leaving)
            self._cpu_seen_s = process.cpu_s


class SlabCollector(Collector):
    """Reads the slabs of ``workers``, in the order of their slots, and that of the ``supervisor`` if it counts too.

    Each worker has a place: for these it is their slot, for those who come later it is what ``admit`` returns.
    """

    def __init__(
        self,
        workers: Sequence[Slab] = (),
        *,
        supervisor: Slab | None = None,
        read_process: Callable[[int], Process | None] = read_process,
    ) -> None:
        own = Slab.create()
        meters = Meters(own)
        self._meters = meters
        meters.gauge(_SERIES_COUNT)
        self._scrape_s = meters.gauge("millrace_scrape_duration_seconds")
        self._read_process = read_process
        self._lock = Lock()
        self._cap = Cap()
        self._series: dict[str, dict[tuple[str, ...], _Series]] = {metric.name: {} for metric in CATALOGUE}
        self._slots: dict[int, _Slot] = {}
        self._gone: set[str] = set()
        self._workers: dict[int, _Worker] = {}
        self._place_count = 0
        self._others = [_Source(slab) for slab in ([own] if supervisor is None else [supervisor, own])]
        for slot, slab in enumerate(workers):
            self.admit(slot, slab)

    def admit(self, slot: int, slab: Slab) -> int:
        """Read one more slab, that of a worker in a slot; returns its place."""
        with self._lock:
            place = self._place_count
            self._place_count += 1
            if slot not in self._slots:
                self._slots[slot] = _Slot(slot, self._meters)
            self._workers[place] = _Worker(self._slots[slot], slab)
            return place

    def note_started(self, place: int, pid: int) -> None:
        """A process has begun to work there; from now on its processor time, memory and files are told."""
        with self._lock:
            self._workers[place].begin(pid)

    def note_leaving(self, place: int) -> None:
        """The worker there accepts nothing more: it is counted until it has ended, but its slot is not up with it."""
        with self._lock:
            self._workers[place].is_leaving = True

    def retire(self, place: int) -> None:
        """Keep what the process there has counted, and clear the slab for the next one.

        Only when the process has ended. Best before it is waited for: then its processor time can still be read.
        """
        with self._lock:
            self._retire(self._workers[place])

    def dismiss(self, place: int) -> None:
        """Keep what the process there has counted, as ``retire`` does, and read its slab no more."""
        with self._lock:
            self._retire(self._workers.pop(place))

    def keep_slots(self, count: int) -> None:
        """There are slots below ``count``, and no others: of those nothing is told but what was counted in them."""
        with self._lock:
            self._gone = {str(slot) for slot in self._slots} | self._gone
            self._gone -= {str(slot) for slot in range(count)}
            self._slots = {slot: self._slots.get(slot) or _Slot(slot, self._meters) for slot in range(count)}

    def of_slot(self, slot: int) -> SlabCollector | None:
        """Return a collector of only that which is in the slabs of a slot now; ``None`` if there are none."""
        with self._lock:
            slabs = [worker.source.slab for worker in self._workers.values() if worker.slot.number == slot]
        if not slabs:
            return None
        alone = SlabCollector()
        alone._others += map(_Source, slabs)
        return alone

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the answer and its content type, in the format that an ``Accept`` header asks for."""
        began_at_s = time.perf_counter()
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # it asks for a version that is no number
            encode, content_type = choose_encoder("")
        if isinstance(encode, partial) and encode.keywords.get("escaping") == UNDERSCORES:
            encode = partial(encode, escaping=ALLOWUTF8)  # no name has to be escaped, and to look for it takes as long
        body = encode(self)
        with self._lock:
            self._scrape_s.set(time.perf_counter() - began_at_s)
        return body, content_type

    def collect(self) -> Iterable[Family]:
        """Return every family of the catalogue that has children, in its order."""
        with self._lock:
            for slot in self._slots.values():
                slot.clear()
            for worker in self._workers.values():
                worker.look(self._read_process)
            values = self._merge()
            exemplars = self._exemplars()
            return [
                _family(metric, children, values, exemplars)
                for metric in CATALOGUE
                if (children := [series for series in self._series[metric.name].values() if series in values])
            ]

    def _retire(self, worker: _Worker) -> None:
        worker.look(self._read_process)
        worker.begin(None)
        worker.source.places(self._series_of)
        lost: Tally[tuple[str, ...]] = Tally()
        for series, values in worker.source.parts():
            if series.metric.kind != "gauge":
                series.retire(values)
            if series.metric.name == _STARTED:
                lost[series.labels] += round(values[0])
            elif series.metric.name == _ENDED:
                lost[series.labels[:2]] -= round(values[0])
        worker.source.slab.clear()
        for (route, model), count in lost.items():
            if count > 0:
                self._series_of(BY_NAME[_ENDED], (route, model, "true", "gateway_error")).retire([float(count)])

    def _sources(self) -> list[_Source]:
        return [*(worker.source for worker in self._workers.values()), *self._others]

    def _merge(self) -> _Values:
        parts: dict[_Series, list[Sequence[float]]] = {
            series: [series.retired]
            for children in self._series.values()
            for series in children.values()
            if series.retired
        }
        for source in self._sources():
            for place in source.places(self._series_of):
                parts.setdefault(place.series, [])
        for series in [series for series in parts if self._is_of_gone_slot(series)]:
            del parts[series]
        for source in self._sources():
            for series, values in source.parts():
                if series in parts:
                    parts[series].append(values)
        count = sum(series.metric.series_count for series in parts)
        parts[self._series_of(BY_NAME[_SERIES_COUNT], ())] = [[float(count)]]
        return {series: series.merge(several) for series, several in parts.items()}

    def _is_of_gone_slot(self, series: _Series) -> bool:
        return series.metric.kind == "gauge" and series.metric.labels == _OF_SLOT and series.labels[0] in self._gone

    def _exemplars(self) -> _Exemplars:
        latest: dict[tuple[_Series, int], SlabExemplar] = {}
        for source in self._sources():
            for series, bucket, exemplar in source.exemplars():
                known = latest.get((series, bucket))
                if known is None or known.at_s < exemplar.at_s:
                    latest[series, bucket] = exemplar
        return {
            place: Exemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at_s)
            for place, exemplar in latest.items()
        }

    def _series_of(self, metric: Metric, labels: tuple[str, ...]) -> _Series:
        children = self._series[metric.name]
        if labels not in children and labels != others_of(metric) and not self._cap.take(metric, labels):
            self._meters.counter(OVERFLOW, metric.name).inc()
            labels = others_of(metric)
        return children.setdefault(labels, _Series(metric, labels))


def _family(metric: Metric, children: Iterable[_Series], values: _Values, exemplars: _Exemplars) -> Family:
    family = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
    for series in children:
        told = values[series]
        if metric.kind == "histogram":
            *counts, total = told
            buckets = list(accumulate(counts))
            told = [*buckets, buckets[-1], total]
        for place, ((name, labels), value) in enumerate(zip(series.samples, told, strict=True)):
            family.samples.append(Sample(name, labels, value, None, exemplars.get((series, place))))
    return family
