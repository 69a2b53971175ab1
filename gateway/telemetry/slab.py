"""The numbers of one worker, in shared memory: one process writes them, any others read them, and nobody waits.

A slab is a region of fixed size without a name. Who supervises makes one for each worker slot; a forked worker has it
already, a spawned one is handed ``fd`` and attaches. What a worker has counted is in it, whatever becomes of the
worker. The slab knows no metric: a child is a family's name, label values, and a row of cells.

- A cell is an aligned float64, which a processor writes and reads whole. Only the one thread of the one writer adds to
  cells; nothing is locked.
- The directory says whose the cells are. It only grows and nothing in it moves, so that a reader remembers what it has
  read. An entry is written before it is counted, and carries a checksum for processors that reorder writes.
- A cell may have an exemplar, its last one: so that the rare slow stream is not pushed out by a thousand quick ones.
  There are fewer places than cells; two that share one take it from each other. A place has a number that is odd while
  it is being written; a reader who finds it odd, or changed when it has read, leaves the exemplar out.

The size: 10 000 series need fewer cells than that, as the count of a histogram is read from its buckets; an entry takes
100 bytes or so, 200 are set aside. Pages that nobody has written to take no memory: a slab of 2.1 MB with 6000 series
takes about 200 kB.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
import weakref
from collections.abc import Sequence
from typing import Final, Self
from zlib import crc32

import msgspec

CELL_COUNT: Final = 12_288
DIRECTORY_BYTES: Final = 2_000_000
EXEMPLAR_COUNT: Final = 512

_ENTRY: Final = struct.Struct("=II")
_EXEMPLAR: Final = struct.Struct("=Qdd16s")
_EXEMPLAR_BYTES: Final = 8 + _EXEMPLAR.size

_MAGIC, _EPOCH, _ENTRIES = range(3)
_OURS: Final = b"millslb1"

_EXEMPLARS_AT: Final = 64
_CELLS_AT: Final = _EXEMPLARS_AT + EXEMPLAR_COUNT * _EXEMPLAR_BYTES
_DIRECTORY_AT: Final = _CELLS_AT + CELL_COUNT * 8
SLAB_BYTES: Final = _DIRECTORY_AT + DIRECTORY_BYTES


class Child(msgspec.Struct, frozen=True, array_like=True):
    """Whose the ``size`` cells from ``first`` on are."""

    family: str
    labels: tuple[str, ...]
    first: int
    size: int


class Exemplar(msgspec.Struct, frozen=True):
    """One observation that stands for those of its cell. ``at_s`` is wall-clock time; ``trace_id`` 32 hex digits."""

    cell: int
    value: float
    at_s: float
    trace_id: str


class Slab:
    """A region of shared memory for one worker slot; ``create`` makes a new one, ``attach`` opens that of another.

    It lives as long as someone has it mapped. Not to be shared by threads, but for reading ``cells``.
    """

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        weakref.finalize(self, os.close, fd)
        whole = memoryview(mmap.mmap(fd, SLAB_BYTES))
        self.cells: Final = whole[_CELLS_AT:_DIRECTORY_AT].cast("d")
        self._header = whole[:_EXEMPLARS_AT].cast("Q")
        self._exemplars = whole[_EXEMPLARS_AT:_CELLS_AT]
        self._numbers = self._exemplars.cast("Q")[:: _EXEMPLAR_BYTES // 8]
        self._directory = whole[_DIRECTORY_AT:]
        self._children: list[Child] = []
        self._end = 0
        self._epoch = 0

    @classmethod
    def create(cls) -> Self:
        """Return a new one, all zero. Its descriptor is closed on exec unless it is passed on by name."""
        if sys.platform == "linux":
            fd = os.memfd_create("millrace-metrics")
        else:
            with tempfile.TemporaryFile(prefix="millrace-metrics-") as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, SLAB_BYTES)
        os.pwrite(fd, _OURS, 8 * _MAGIC)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Return the slab behind a descriptor, which belongs to it from now on. ``ValueError`` if it is of no slab."""
        if os.fstat(fd).st_size != SLAB_BYTES or os.pread(fd, 8, 8 * _MAGIC) != _OURS:
            raise ValueError(f"descriptor {fd} is not that of a slab")
        return cls(fd)

    # --- for the writer ---

    def add(self, family: str, labels: tuple[str, ...], size: int, *, spare_bytes: int = 0) -> Child | None:
        """Return new cells, all zero; ``None`` if there is no room for them and ``spare_bytes`` of other entries."""
        children = self.children()
        first = children[-1].first + children[-1].size if children else 0
        child = Child(family, labels, first, size)
        data = msgspec.msgpack.encode(child)
        start = self._end + _ENTRY.size
        end = start + len(data)
        if first + size > CELL_COUNT or end + spare_bytes > DIRECTORY_BYTES:
            return None
        self._directory[start:end] = data
        _ENTRY.pack_into(self._directory, self._end, len(data), crc32(data))
        self._header[_ENTRIES] += 1  # before this nobody looks at it
        return child

    def note_exemplar(self, cell: int, value: float, at_s: float, trace_id: str) -> None:
        """Keep an exemplar of a cell in place of its last one; with a trace id that is none it is not kept."""
        try:
            raw = bytes.fromhex(trace_id)
        except ValueError:
            return
        if len(raw) != 16:
            return
        place = cell % EXEMPLAR_COUNT
        number = self._numbers[place] | 1  # it is odd already where a writer was killed
        self._numbers[place] = number
        _EXEMPLAR.pack_into(self._exemplars, place * _EXEMPLAR_BYTES + 8, cell, value, at_s, raw)
        self._numbers[place] = number + 1

    # --- for readers ---

    @property
    def epoch(self) -> int:
        """How often the slab has been cleared: what was known of it before is no longer so."""
        return self._header[_EPOCH]

    def children(self) -> Sequence[Child]:
        """Return all that there are by now, in the order of their cells."""
        if self._epoch != self.epoch:
            self._epoch, self._end, self._children = self.epoch, 0, []
        while len(self._children) < self._header[_ENTRIES]:
            length, checksum = _ENTRY.unpack_from(self._directory, self._end)
            start = self._end + _ENTRY.size
            data = bytes(self._directory[start : start + length])
            if not data or crc32(data) != checksum:
                break  # counted, but not all of it is to be seen from this processor yet: next time
            self._children.append(msgspec.msgpack.decode(data, type=Child))
            self._end = start + length
        return self._children

    def read(self, child_count: int) -> Sequence[float]:
        """Return the values of all cells of the first ``child_count`` children."""
        if not child_count:
            return []
        last = self._children[child_count - 1]
        return self.cells[: last.first + last.size].tolist()

    def exemplars(self) -> list[Exemplar]:
        """Return those that can be read whole, in no order."""
        before = self._numbers.tolist()
        if not any(before):
            return []
        copied = bytes(self._exemplars)
        found = []
        for place, (number, still) in enumerate(zip(before, self._numbers, strict=True)):
            if number and number % 2 == 0 and number == still:
                cell, value, at_s, raw = _EXEMPLAR.unpack_from(copied, place * _EXEMPLAR_BYTES + 8)
                found.append(Exemplar(cell, value, at_s, raw.hex()))
        return found

    # --- between one writer and the next ---

    def clear(self) -> None:
        """Make it as new. Only when its writer has ended, and by the one who reads it."""
        self.children()
        used = len(self.read(len(self._children)))
        self._header[_ENTRIES] = 0
        self._header[_EPOCH] += 1
        self.cells[:used] = memoryview(bytes(8 * used)).cast("d")
        self._directory[: self._end] = bytes(self._end)
        self._exemplars[:] = bytes(len(self._exemplars))
