from __future__ import annotations

import pytest

from gateway.core.kept import Kept


def test_each_is_made_once() -> None:
    """And is the same from then on, though it be nothing."""
    asked: list[str] = []

    def make(key: str) -> list[str] | None:
        asked.append(key)
        return [key] if key else None

    kept = Kept(make)
    assert kept["a"] is kept["a"]
    assert kept[""] is kept[""] is None
    assert asked == ["a", ""]


def test_there_are_never_more_than_that() -> None:
    """Who asks for ever new ones fills no memory; without a limit all are kept."""
    some, every = Kept(str, most=3), Kept(str)
    for number in range(10):
        assert (some[number], every[number]) == (str(number), str(number))
        assert len(some) <= 3
    assert len(every) == 10


def test_what_cannot_be_made_is_not_kept() -> None:
    """It is tried again."""
    kept = Kept(int)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            kept["x"]
    assert not kept
