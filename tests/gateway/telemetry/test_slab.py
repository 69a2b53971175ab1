from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from gateway.telemetry.meters import MAX_SERIES
from gateway.telemetry.slab import (
    _ENTRIES,
    CELL_COUNT,
    DIRECTORY_BYTES,
    EXEMPLAR_COUNT,
    SLAB_BYTES,
    Child,
    Exemplar,
    Slab,
)
from tests.gateway.telemetry.conftest import MakeWriter
from tests.gateway.telemetry.writer import BOTH_HALVES, GATHERED_COUNT, GATHERED_S, value_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def make_reader(slab: Slab) -> Slab:
    """Return the same slab as another process has it."""
    return Slab.attach(os.dup(slab.fd))


def test_what_is_written_is_read_through_every_mapping() -> None:
    """A child's cells begin at zero and are seen by all."""
    slab = Slab.create()
    reader = make_reader(slab)
    assert list(reader.children()) == []
    assert list(reader.read(0)) == []
    assert slab.add("family", ("a", "b"), 3) == Child("family", ("a", "b"), 0, 3)
    assert slab.add("other", (), 1) == Child("other", (), 3, 1)
    slab.cells[1] = 0.5
    slab.cells[3] += 2.0
    assert list(reader.children()) == [Child("family", ("a", "b"), 0, 3), Child("other", (), 3, 1)]
    assert list(reader.read(2)) == [0.0, 0.5, 0.0, 2.0]
    assert list(reader.read(1)) == [0.0, 0.5, 0.0]


def test_a_reader_who_knows_some_reads_only_what_is_new() -> None:
    """The directory only grows: the children that are known are the same objects."""
    slab = Slab.create()
    slab.add("first", (), 1)
    reader = make_reader(slab)
    known = reader.children()[0]
    slab.add("second", (), 1)
    assert [child.family for child in reader.children()] == ["first", "second"]
    assert reader.children()[0] is known


def test_an_entry_that_is_not_counted_yet_is_not_there() -> None:
    """Whoever is killed in the middle of an entry leaves nothing, and the next entry takes its place."""
    slab = Slab.create()
    slab.add("whole", (), 1)
    reader = make_reader(slab)
    slab.add("half", (), 1)
    slab._header[_ENTRIES] = 1
    assert [child.family for child in reader.children()] == ["whole"]
    again = make_reader(slab)
    assert again.add("next", (), 1) == Child("next", (), 1, 1)
    assert [child.family for child in reader.children()] == ["whole", "next"]


@pytest.mark.parametrize("unseen", [slice(0, 4), slice(4, 8), slice(8, 9), slice(0, 100)])
def test_an_entry_that_is_counted_but_not_all_seen_is_waited_for(unseen: slice) -> None:
    """A processor may show the count before the entry; the checksum tells."""
    slab = Slab.create()
    slab.add("family", ("label",), 1)
    reader = make_reader(slab)
    kept = bytes(slab._directory[unseen])
    slab._directory[unseen] = bytes(len(kept))
    assert list(reader.children()) == []
    slab._directory[unseen] = kept
    assert list(reader.children()) == [Child("family", ("label",), 0, 1)]


def test_a_slab_without_room_for_cells_adds_nothing() -> None:
    """It says so, and what it has stays as it is."""
    slab = Slab.create()
    assert slab.add("large", (), CELL_COUNT - 1)
    assert slab.add("too large", (), 2) is None
    assert slab.add("last", (), 1)
    assert slab.add("none left", (), 1) is None
    assert [child.family for child in make_reader(slab).children()] == ["large", "last"]


def test_a_slab_without_room_for_names_adds_nothing() -> None:
    """Some of it can be kept for those that must be told."""
    slab = Slab.create()
    half = "x" * (DIRECTORY_BYTES // 2)
    assert slab.add("family", (half,), 1)
    assert slab.add("family", (half,), 1) is None
    assert slab.add("family", ("small",), 1, spare_bytes=DIRECTORY_BYTES // 2) is None
    assert slab.add("family", ("small",), 1)


def test_a_slab_has_cells_for_all_series_and_takes_memory_only_for_those_it_has() -> None:
    """Untouched pages are not there."""
    slab = Slab.create()
    assert CELL_COUNT > MAX_SERIES
    assert SLAB_BYTES < 2.2e6
    assert os.fstat(slab.fd).st_blocks * 512 <= 4096
    for number in range(300):
        child = slab.add("millrace_stream_max_gap_seconds", (f"model-{number % 10}", f"provider/model-{number}"), 20)
        assert child
        slab.cells[child.first + 19] += 1.0
    assert os.fstat(slab.fd).st_blocks * 512 < 100_000


def test_a_cell_keeps_its_last_exemplar() -> None:
    """However many others come to other cells, but for one that shares its place."""
    slab = Slab.create()
    reader = make_reader(slab)
    assert reader.exemplars() == []
    slab.note_exemplar(7, 30.0, 1e9, TRACE_ID)
    for number in range(1000):
        slab.note_exemplar(3, 0.25, number, TRACE_ID)
    assert reader.exemplars() == [Exemplar(3, 0.25, 999, TRACE_ID), Exemplar(7, 30.0, 1e9, TRACE_ID)]
    slab.note_exemplar(7 + EXEMPLAR_COUNT, 0.5, 1e9, TRACE_ID)
    assert [exemplar.cell for exemplar in reader.exemplars()] == [3, 7 + EXEMPLAR_COUNT]


@pytest.mark.parametrize("trace_id", ["", "no hex", TRACE_ID[:-2], TRACE_ID + "00"])
def test_an_exemplar_without_a_proper_trace_id_is_not_kept(trace_id: str) -> None:
    """Nobody could look it up."""
    slab = Slab.create()
    slab.note_exemplar(7, 0.25, 1e9, trace_id)
    assert slab.exemplars() == []


def test_an_exemplar_that_is_being_written_is_left_out() -> None:
    """Its number is odd; who was killed meanwhile leaves it so, and the next one is written over it."""
    slab = Slab.create()
    for cell in (1, 2, 3):
        slab.note_exemplar(cell, 0.25, 1e9, TRACE_ID)
    assert slab._numbers[2] == 2
    slab._numbers[2] += 1
    assert [exemplar.cell for exemplar in slab.exemplars()] == [1, 3]
    slab.note_exemplar(2, 0.5, 1e9, TRACE_ID)
    assert slab._numbers[2] == 4
    assert [exemplar.value for exemplar in slab.exemplars()] == [0.25, 0.5, 0.25]


def test_a_cleared_slab_is_as_new_for_everyone() -> None:
    """Cells, directory and exemplars are gone, also from what readers and the next writer remember."""
    slab = Slab.create()
    reader = make_reader(slab)
    for number in range(3):
        slab.add("family", (str(number),), 2)
    slab.cells[5] = 1.0
    slab.note_exemplar(5, 1.0, 1.0, TRACE_ID)
    assert len(reader.children()) == 3
    reader.clear()
    for one in (slab, reader, make_reader(slab)):
        assert list(one.children()) == []
        assert one.exemplars() == []
        assert one.epoch == 1
    assert not any(slab.cells)
    assert not any(slab._directory)
    assert slab.add("next", (), 1) == Child("next", (), 0, 1)
    assert list(reader.children()) == [Child("next", (), 0, 1)]


def test_a_descriptor_of_something_else_is_refused() -> None:
    """Whether it has another size or another content."""
    fd = os.memfd_create("empty")
    try:
        with pytest.raises(ValueError, match="not that of a slab"):
            Slab.attach(fd)
        os.ftruncate(fd, SLAB_BYTES)
        with pytest.raises(ValueError, match="not that of a slab"):
            Slab.attach(fd)
    finally:
        os.close(fd)


def test_a_slab_that_nobody_has_any_more_is_closed() -> None:
    """Its descriptor with it."""
    slab = Slab.create()
    fd = slab.fd
    os.fstat(fd)
    del slab
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_where_there_is_no_memfd_it_is_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which works as well."""
    monkeypatch.setattr(sys, "platform", "darwin")
    slab = Slab.create()
    assert os.fstat(slab.fd).st_nlink == 0
    slab.add("family", (), 1)
    slab.cells[0] = 1.0
    reader = make_reader(slab)
    assert [child.family for child in reader.children()] == ["family"]
    assert list(reader.read(1)) == [1.0]


def test_a_forked_worker_writes_where_its_parent_reads() -> None:
    """It has the slab already; what it counted is there after its end, to the last one."""
    program = """if True:
        import os
        from gateway.telemetry.meters import Meters
        from gateway.telemetry.slab import Slab

        slabs = [Slab.create(), Slab.create()]
        workers = []
        for slab in slabs:
            worker = os.fork()
            if not worker:
                counter = Meters(slab).counter("millrace_spans_dropped_total")
                for _ in range(100_000):
                    counter.inc()
                os.kill(os.getpid(), 9)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
        print(*((slab.children()[0].family, slab.cells[0]) for slab in slabs))
    """
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603, our own
    assert ran.stdout == "('millrace_spans_dropped_total', 100000.0) ('millrace_spans_dropped_total', 100000.0)\n"


def test_a_spawned_worker_killed_at_any_moment_leaves_only_whole_values(make_writer: MakeWriter) -> None:
    """Cells, entries and exemplars are whole while it writes and after it was killed, and after clearing it goes on."""
    slab = Slab.create()
    for number in range(8):
        writer = make_writer(slab)
        seen = 0.0
        for _ in range(200 + 37 * number):
            seen = check_whole(slab, seen)
        writer.kill()
        writer.wait()
        check_whole(slab, seen)
        check_settled(slab)
        slab.clear()


def check_whole(slab: Slab, seen: float) -> float:
    """Check all that is in the slab by what the writer writes; return the sum of its counts."""
    children = slab.children()
    values = slab.read(len(children))
    *started, ttft, buffered, gap = children[:6]
    assert {child.family for child in started} == {"millrace_requests_started_total"}
    assert (ttft.family, buffered.family) == ("millrace_ttft_seconds", "millrace_stream_buffered_bytes")
    assert gap.family == "millrace_chunk_gap_seconds"
    assert {child.family for child in children[6:]} <= {"millrace_rejected_total"}
    counts = values[: ttft.first + ttft.size - 1]
    assert all(count.is_integer() for count in counts)
    assert sum(counts) >= seen
    assert values[buffered.first] % BOTH_HALVES == 0
    for exemplar in slab.exemplars():
        number = int(exemplar.trace_id, 16)
        assert (exemplar.value, exemplar.at_s) == (value_of(number), float(number))
        assert ttft.first <= exemplar.cell < ttft.first + ttft.size - 1
    return sum(counts)


def check_settled(slab: Slab) -> None:
    """Check that what was gathered is all there, or nothing of it, for each time that it was settled."""
    children = slab.children()
    gap = children[5]
    *counts, total = slab.read(len(children))[gap.first : gap.first + gap.size]
    assert sum(counts) % GATHERED_COUNT == 0
    assert total == sum(counts) * GATHERED_S
