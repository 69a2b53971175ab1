from __future__ import annotations

from collections.abc import Mapping

from gateway.telemetry.live import KEPT_COUNT, LiveTable


class Stream:
    """A call in flight with a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.drained_count = 0
        self.asked_count = 0

    def shown(self) -> Mapping[str, object]:
        """Return its name."""
        self.asked_count += 1
        return {"id": self.name}

    def drain(self) -> None:
        """Count that it was told."""
        self.drained_count += 1


def ids(table: LiveTable) -> tuple[list[object], list[object]]:
    """Return the names of those in flight and of the last."""
    shown = table.shown()
    return [one["id"] for one in shown["in_flight"]], [one["id"] for one in shown["recent"]]


def test_a_stream_is_in_flight_until_it_ends_and_then_one_of_the_last() -> None:
    """In the order in which they began; the last one to end comes first."""
    table = LiveTable()
    one, two, three = streams = [Stream(name) for name in ("one", "two", "three")]
    for stream in streams:
        table.begin(stream)
    table.end(two, is_kept=True)
    table.end(one, is_kept=True)
    assert ids(table) == (["three"], ["one", "two"])
    table.end(three, is_kept=False)
    assert ids(table) == ([], ["one", "two"])


def test_only_so_many_of_the_last_are_remembered() -> None:
    """However many there were."""
    table = LiveTable()
    for number in range(200):
        stream = Stream(str(number))
        table.begin(stream)
        table.end(stream, is_kept=True)
    assert ids(table) == ([], [str(number) for number in range(199, 199 - KEPT_COUNT, -1)])
    few = LiveTable(kept_count=0)
    few.begin(stream)
    few.end(stream, is_kept=True)
    assert ids(few) == ([], [])


def test_a_stream_pays_nothing_until_somebody_looks() -> None:
    """Once at its end, so that nothing else of it need be kept."""
    table, stream = LiveTable(), Stream("one")
    table.begin(stream)
    assert stream.asked_count == 0
    table.shown()
    assert stream.asked_count == 1
    table.end(stream, is_kept=True)
    table.shown()
    assert stream.asked_count == 2


def test_whatever_is_in_flight_when_the_gateway_stops_is_told_so() -> None:
    """And what still begins then, as its request had come already; not what has ended."""
    table = LiveTable()
    ended, before, behind = Stream("ended"), Stream("before"), Stream("behind")
    table.begin(ended)
    table.end(ended, is_kept=True)
    table.begin(before)
    table.drain()
    table.begin(behind)
    assert (ended.drained_count, before.drained_count, behind.drained_count) == (0, 1, 1)
