"""What was made for a key, kept for when the key comes again: found in one step, with no call of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(dict[K, V], Generic[K, V]):
    """A dictionary that makes what it has not. Where keys are anybody's word, ``most`` is how many it has at once."""

    __slots__ = ("_make", "_most")

    def __init__(self, make: Callable[[K], V], *, most: int | None = None) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: K) -> V:
        if self._most is not None and len(self) >= self._most:
            self.clear()
        made = self[key] = self._make(key)
        return made
