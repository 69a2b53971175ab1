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
    table.end(two, two)
    table.end(one, one)
    assert ids(table) == (["three"], ["one", "two"])
    table.end(three, None)
    assert ids(table) == ([], ["one", "two"])


def test_of_a_stream_that_has_ended_it_is_told_when() -> None:
    """So that the tables of several processes can be joined."""
    times_s = iter((1.5, 2.0004))
    table = LiveTable(clock=lambda: next(times_s))
    for name in ("one", "two"):
        stream = Stream(name)
        table.begin(stream)
        table.end(stream, stream)
    assert list(table.shown()["recent"]) == [{"id": "two", "ended_at_s": 2.0}, {"id": "one", "ended_at_s": 1.5}]


def test_a_model_that_is_called_like_a_key_is_not_shown() -> None:
    """Any client may name one, and may have put its key into the wrong field."""
    key = "sk-proj-0123456789abcdef"
    table = LiveTable()
    table.begin(Stream(f"openai/{key}"))
    stream = Stream(key)
    table.begin(stream)
    table.end(stream, stream)
    assert ids(table) == (["openai/[redacted]"], ["[redacted]"])


def test_only_so_many_of_the_last_are_remembered() -> None:
    """However many there were."""
    table = LiveTable()
    for number in range(200):
        stream = Stream(str(number))
        table.begin(stream)
        table.end(stream, stream)
    assert ids(table) == ([], [str(number) for number in range(199, 199 - KEPT_COUNT, -1)])
    few = LiveTable(kept_count=0)
    few.begin(stream)
    few.end(stream, stream)
    assert ids(few) == ([], [])


def test_a_stream_pays_nothing_until_somebody_looks() -> None:
    """Neither while it lives nor when it ends."""
    table, stream = LiveTable(), Stream("one")
    table.begin(stream)
    assert stream.asked_count == 0
    table.shown()
    assert stream.asked_count == 1
    table.end(stream, stream)
    assert stream.asked_count == 1
    table.shown()
    assert stream.asked_count == 2


def test_whatever_is_in_flight_when_the_gateway_stops_is_told_so() -> None:
    """And what still begins then, as its request had come already; not what has ended."""
    table = LiveTable()
    ended, before, behind = Stream("ended"), Stream("before"), Stream("behind")
    table.begin(ended)
    table.end(ended, ended)
    table.begin(before)
    table.drain()
    table.begin(behind)
    assert (ended.drained_count, before.drained_count, behind.drained_count) == (0, 1, 1)
