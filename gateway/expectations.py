"""Whether a library is as a file expects it that reaches below its public surface.

Such a file lists what it calls or replaces, rehearses what it does with it, and goes the public way where either fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

Signatures: TypeAlias = Mapping[str, tuple[object, str, Sequence[str]]]
"""By name: what has an attribute, the attribute, and its parameters."""


def unlike(signatures: Signatures) -> Iterator[str]:
    """Yield the names of what has other parameters than these, or is not there; never raises."""
    for name, (owner, attribute, expected) in signatures.items():
        try:
            found = list(inspect.signature(getattr(owner, attribute)).parameters)
        except (AttributeError, TypeError, ValueError):
            found = []
        if found != list(expected):
            yield name


def lacking(names: Mapping[str, tuple[object, str]]) -> Iterator[str]:
    """Yield the names of what has not the attribute; never raises."""
    yield from (name for name, (owner, attribute) in names.items() if not hasattr(owner, attribute))


def failing(rehearse: Callable[[], None], what: str) -> Iterator[str]:
    """Yield how a rehearsal of ``what`` went wrong, if it did; never raises."""
    try:
        rehearse()
    except Exception as error:  # noqa: BLE001, whatever it is, the public way may still do
        yield f"{what}: {type(error).__name__}: {error}"


def expect(what_is: bool, what: str) -> None:  # noqa: FBT001, as in an assertion
    """Raise ``LookupError`` in a rehearsal in which something is not as it should be."""
    if not what_is:
        raise LookupError(what)
