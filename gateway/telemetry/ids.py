"""Ids that nobody else has: of requests, traces and spans.

They are unique, not secret. So they come from a generator that the system has given 256 random bits once, instead of
from the system itself for each: a third of the time, and no system call. They are made many at a time, which is another
half. A process that is forked off gets bits of its own, or it would give the same ids again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from random import Random
from typing import Final

_AT_ONCE: Final = 64

_random = Random(os.urandom(32))  # noqa: S311, nobody has to be kept from guessing an id
_ready: defaultdict[int, list[str]] = defaultdict(list)


def new_id(size_bytes: int) -> str:
    """Return so many random bytes as lower-case hex."""
    try:
        return _ready[size_bytes].pop()
    except IndexError:  # not asked for in advance: another thread may take the last one
        return _make(size_bytes)


def _make(size_bytes: int) -> str:
    """Return a new id, and keep others ready."""
    size = 2 * size_bytes
    digits = _random.randbytes(_AT_ONCE * size_bytes).hex()
    first, *others = (digits[start : start + size] for start in range(0, len(digits), size))
    _ready[size_bytes] += others
    return first


def _begin_anew() -> None:
    _random.seed(os.urandom(32))
    _ready.clear()


os.register_at_fork(after_in_child=_begin_anew)
