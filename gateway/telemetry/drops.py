"""What could not be told: log lines and spans that were lost, counted where everything else is.

Who loses them counts for itself, in a thread of its own. This looks from time to time, on the loop that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.core.meters import Counter, Meters


class DropSampler:
    """Counts what was lost since it last looked: ``lines`` tells how many by level, ``spans`` how many, in all."""

    def __init__(self, meters: Meters, *, lines: Callable[[], Mapping[str, int]], spans: Callable[[], int]) -> None:
        self._meters = meters
        self._lines = lines
        self._read_spans = spans
        self._spans = meters.counter("millrace_spans_dropped_total")
        self._known: dict[Counter, int] = {}

    def __call__(self) -> None:
        """Look, and count."""
        self._count(self._spans, self._read_spans())
        for level, count in self._lines().items():
            self._count(self._meters.counter("millrace_log_records_dropped_total", level), count)

    def _count(self, counter: Counter, count: int) -> None:
        counter.inc(count - self._known.get(counter, 0))
        self._known[counter] = count
