"""What only the garbage collector can clear up: objects of ours that keep each other alive behind a call's end.

The collector is kept from it while something is done, and then asked for all that it finds. What counts is what is of
``gateway`` or ``middleware``: an instance of one of their classes, a function, frame, coroutine or traceback of their
files. The simulator is left out, which is a provider where these tests use it.

Two circles are left out, of which a connection to a provider is the only thing that is ours; both take a client that
leaves in one certain turn of the loop. If it is the one in which the connection is made, uvloop drops the transport
without a word to its protocol, and they keep each other. If it is the one in which the head of an answer has come that
aiohttp reads, this waits in the connection to be taken, and its body has the connection.
"""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, MethodType, TracebackType
from typing import Any, Final

from gateway.provider_connection import AbruptConnection

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("gateway", "middleware")
NOT_OURS: Final = "gateway.simulator"

_OURS: Final = tuple(f"{ROOT / package}/" for package in PACKAGES)
_CODES: Final = ("__code__", "f_code", "cr_code", "gi_code", "ag_code")
"""What functions, frames, coroutines and generators call their code."""


@contextmanager
def uncollected() -> Iterator[Callable[[], str]]:
    """Keep the collector away; yields what tells, in words, which garbage of ours there is by now, and clears it up.

    What was there before does not count.
    """
    gc.collect()
    gc.freeze()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield _told
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _told() -> str:
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return told(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()  # they still keep each other alive


def told(found: Sequence[object]) -> str:
    """Return what of the objects is ours, and a circle by which it is kept; nothing if none is."""
    ours = [one for one in found if name_of(one)]
    if not ours:
        return ""
    counts = ", ".join(f"{count} {name}" for name, count in Counter(map(name_of, ours)).most_common())
    way = circle(found, ours) or circle(found, found)
    return f"{counts}\n  in a circle: {' > '.join(map(_shown, way))}"


def name_of(one: object) -> str:
    """Return the name of an object that is ours, and nothing for any other."""
    held = one.__self__ if isinstance(one, MethodType) else one
    if isinstance(held, AbruptConnection) and (held.transport is not None or held._buffer):
        return ""  # it was never told that it is lost, or has an answer that nobody took
    code = _code_of(one)
    if code is not None:
        module = Path(code.co_filename)
        if not code.co_filename.startswith(_OURS) or _module(module).startswith(NOT_OURS):
            return ""
        return f"{type(one).__name__} of {_module(module)}.{code.co_qualname}"
    kind = type(one)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name if name.startswith(PACKAGES) and not name.startswith(NOT_OURS) else ""


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _code_of(one: object) -> CodeType | None:
    if isinstance(one, MethodType):
        one = one.__func__
    if isinstance(one, TracebackType):
        one = one.tb_frame
    codes = (getattr(one, name, None) for name in _CODES)
    return next((code for code in codes if isinstance(code, CodeType)), None)


def circle(found: Sequence[object], some: Sequence[object]) -> list[object]:
    """Return the shortest way by which one of some objects keeps itself alive; nothing if another keeps them all."""
    known = {id(one): one for one in found}
    circles = (_way_back(one, known) for one in some)
    return min((one for one in circles if one), key=len, default=[])


def _way_back(start: object, known: dict[int, object]) -> list[object]:
    """Return the shortest way from an object to itself, over those that are known."""
    before: dict[int, int] = {}
    left = deque([id(start)])
    while left:
        at = left.popleft()
        for following in map(id, gc.get_referents(known[at])):
            if following == id(start):
                way = [start]
                while at != id(start):
                    way.insert(1, known[at])
                    at = before[at]
                return [*way, start]
            if following in known and following not in before:
                before[following] = at
                left.append(following)
    return []


def _shown(one: object) -> str:
    """Return what an object is: nothing of what it holds."""
    if isinstance(one, FrameType):
        return f"frame of {one.f_code.co_qualname}, line {one.f_lineno}"
    named: Any = one.__func__ if isinstance(one, MethodType) else one
    return f"{type(one).__name__} {getattr(named, '__qualname__', '')}".rstrip()
