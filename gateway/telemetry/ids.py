"""Ids that nobody else has: of requests, traces and spans.

They are unique, not secret. So they come from a generator that the system has given 256 random bits once, instead of
from the system itself for each: a third of the time, and no system call. A process that is forked off gets bits of its
own, or it would give the same ids again.
"""

from __future__ import annotations

import os
from random import Random

_random = Random(os.urandom(32))  # noqa: S311, nobody has to be kept from guessing an id
_random_bytes = _random.randbytes


def new_id(size_bytes: int) -> str:
    """Return so many random bytes as lower-case hex."""
    return _random_bytes(size_bytes).hex()


def _begin_anew() -> None:
    _random.seed(os.urandom(32))


os.register_at_fork(after_in_child=_begin_anew)
