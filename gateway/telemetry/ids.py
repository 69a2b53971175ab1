"""Ids that nobody else has: of requests, traces and spans.

The system is asked for the bits of many at a time: a call of it for each cost as much as all the rest of an id. A
process that is forked off gets bits of its own, or it would give the same ids again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from struct import unpack
from typing import Final

_AT_ONCE: Final = 64

_ready: defaultdict[int, list[bytes]] = defaultdict(list)


def new_id(size_bytes: int) -> str:
    """Return so many random bytes as lower-case hex."""
    try:
        return _ready[size_bytes].pop().hex()
    except IndexError:  # not asked for in advance: another thread may take the last one
        return _make(size_bytes)


def _make(size_bytes: int) -> str:
    """Return a new id, and keep others ready."""
    made: list[bytes] = list(unpack(f"{size_bytes}s" * _AT_ONCE, os.urandom(_AT_ONCE * size_bytes)))
    one = made.pop()
    _ready[size_bytes] += made
    return one.hex()


os.register_at_fork(after_in_child=_ready.clear)
