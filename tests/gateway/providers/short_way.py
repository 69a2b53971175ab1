"""Whether a decoder's short way for a piece that is like the last comes to what reading in full does."""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.core.events import Event


def check_short_way(make: Callable[[], Any], pieces: Sequence[bytes]) -> None:
    """Read ``pieces`` with decoders that ``make`` has made ready: in full, in one read, and each in a read of its own.

    All have to bring the same events and the same usage.
    """
    plain, together, apart = make(), make(), make()
    expected: list[Event] = []
    for piece in pieces:
        plain._ready = None
        expected += plain.feed(piece)
    assert together.feed(b"".join(pieces)) == expected
    assert [event for piece in pieces for event in apart.feed(piece)] == expected
    assert plain.usage == together.usage == apart.usage
