"""The table of live streams: every call in flight and the last that have ended, for who asks what is going on.

One line for each call is too much for metrics, where every value of a label is kept for ever; here it is gone when it
has been looked at. What a stream is like, or how it ended, is only asked when somebody looks: being in the table costs
it nothing. Nothing in it looks like a key, even where a client has asked for a model of that name.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from gateway.logs import clean

KEPT_COUNT: Final = 50


class Ended(Protocol):
    """A call that can say how it ended."""

    def shown(self) -> Mapping[str, object]:
        """Return that."""


class Stream(Protocol):
    """A call that can say how it goes."""

    def shown(self) -> Mapping[str, object]:
        """Return how it goes now."""

    def drain(self) -> None:
        """The gateway is stopping, and waits for it."""


class LiveTable:
    """All calls in flight, in the order in which they began, and the last ``kept_count`` that have ended.

    ``clock`` gives the wall-clock time at which one has ended, by which the tables of several processes can be joined.
    """

    def __init__(self, *, kept_count: int = KEPT_COUNT, clock: Callable[[], float] = time.time) -> None:
        self._in_flight: dict[int, Stream] = {}
        self._recent: deque[tuple[Ended, float]] = deque(maxlen=kept_count)
        self._clock = clock
        self._is_draining = False

    def begin(self, stream: Stream) -> None:
        """A call has begun."""
        self._in_flight[id(stream)] = stream
        if self._is_draining:
            stream.drain()

    def end(self, stream: Stream, kept: Ended | None) -> None:
        """A call has ended; ``kept`` says how, and is remembered as one of the last, if it is worth that."""
        del self._in_flight[id(stream)]
        if kept is not None:
            self._recent.append((kept, self._clock()))

    def drain(self) -> None:
        """The gateway is stopping: whatever is in flight from now on is waited for."""
        self._is_draining = True
        for stream in self._in_flight.values():
            stream.drain()

    def shown(self) -> Mapping[str, Sequence[Mapping[str, object]]]:
        """Return the whole table; of those that have ended the last one comes first."""
        return {
            "in_flight": [_safe(stream.shown()) for stream in self._in_flight.values()],
            "recent": [
                {**_safe(ended.shown()), "ended_at_s": round(at_s, 3)} for ended, at_s in reversed(self._recent)
            ],
        }


def _safe(shown: Mapping[str, object]) -> Mapping[str, object]:
    """Return what is shown without what looks like a key: looked for only when somebody looks, as it takes a while."""
    return {name: clean(said) if isinstance(said, str) else said for name, said in shown.items()}
