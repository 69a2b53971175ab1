"""Reads the function calls of Google's ``generateContent``.

A call has no id on most models: it gets one made of the answer's own. It arrives whole and is told in one delta; where
Vertex sends the arguments in pieces, each with its JSONPath, they are put together first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from gateway.core.events import Event, ToolCallDelta, ToolCallStarted
from gateway.providers.errors import NOT_JSON, malformed

_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,6})\]|\[(["'])((?:(?!\3)[^\\]|\\.)*)\3\]""")
_MAX_STEPS = 64


class _PartialArgument(msgspec.Struct, rename="camel", gc=False):
    json_path: str = ""
    string_value: str | None = None
    number_value: int | float | None = None
    bool_value: bool | None = None
    will_continue: bool | None = None


class FunctionCall(msgspec.Struct, rename="camel", gc=False):
    """A call, or a piece of one, as it stands in a part."""

    id: str | None = None
    name: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"null")
    partial_args: list[_PartialArgument] | None = None
    will_continue: bool | None = None


@dataclass(slots=True)
class _OpenCall:
    """A call whose arguments come in pieces."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class CallReader:
    """Reads the calls of one answer; it knows how many there were, and which have not ended."""

    __slots__ = ("_counts", "_open")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._open: dict[int, _OpenCall] = {}

    def has_called(self, index: int) -> bool:
        """Whether the candidate ``index`` has made a call that was told."""
        return index in self._counts

    def open_indices(self) -> Iterable[int]:
        """Return the candidates that are in the middle of a call."""
        return self._open.keys()

    def read(self, said: FunctionCall, index: int, answer_id: str) -> list[Event]:
        """Return the call that ``said`` completes: whole at once, or by a piece that does not say it will continue.

        Raises ``StreamInterrupted`` for what cannot be told as a call: one without a name, or inside another.
        """
        begun = self._open.get(index)
        pieces = said.partial_args or []
        is_open = bool(said.will_continue) or any(piece.will_continue for piece in pieces)
        if said.name:
            if begun is not None:
                raise malformed("a function call inside another")
            if not pieces and not is_open:
                return self._tell(said.id, said.name, _compact(bytes(said.args)), index, answer_id)
            begun = self._open[index] = _OpenCall(said.id or "", said.name)
        elif begun is None:
            if pieces or is_open or bytes(said.args) not in (b"null", b"{}"):
                raise malformed("a function call without a name")
            return []
        for piece in pieces:
            _place(begun.arguments, piece)
        if is_open:
            return []
        del self._open[index]
        return self._tell(begun.id, begun.name, _encode(begun.arguments), index, answer_id)

    def _tell(self, call_id: str | None, name: str, arguments: str, index: int, answer_id: str) -> list[Event]:
        call_index = self._counts.get(index, 0)
        self._counts[index] = call_index + 1
        if not call_id:
            number = sum(self._counts.values()) - 1
            call_id = f"call_{answer_id}_{number}"
        return [ToolCallStarted(call_index, call_id, name, index=index), ToolCallDelta(call_index, arguments, index)]


def _compact(arguments: bytes) -> str:
    """Return arguments without the white space between them; none at all are an empty object."""
    if arguments == b"null":
        return "{}"
    try:
        text = msgspec.json.format(arguments, indent=-1).decode()
    except NOT_JSON as error:
        raise malformed("function arguments that are not JSON") from error
    if not text.startswith("{"):
        raise malformed("function arguments that are not an object")
    return text


def _encode(arguments: dict[str, Any]) -> str:
    return msgspec.json.encode(arguments).decode()


def _place(arguments: dict[str, Any], piece: _PartialArgument) -> None:
    """Put one piece where its path says; text goes on where there is text."""
    steps = _steps(piece.json_path)
    container: Any = arguments
    for step, following in pairwise(steps):
        inner = _get(container, step)
        if inner is None:
            inner = _set(container, step, [] if isinstance(following, int) else {})
        container = inner
    known = _get(container, steps[-1])
    value: Any = piece.number_value if piece.bool_value is None else piece.bool_value
    if piece.string_value is not None:
        value = known + piece.string_value if isinstance(known, str) else piece.string_value
    _set(container, steps[-1], value)


def _steps(path: str) -> list[str | int]:
    """Take a JSONPath such as ``$.rooms[0].name`` apart."""
    steps: list[str | int] = []
    position = 1
    while path.startswith("$") and position < len(path) and len(steps) < _MAX_STEPS:
        found = _STEP.match(path, position)
        if found is None:
            break
        plain, number, _, quoted = found.groups()
        steps.append(int(number) if number else plain or re.sub(r"\\(.)", r"\1", quoted))
        position = found.end()
    if not steps or position < len(path):
        raise malformed("a function argument with a path that is none")
    return steps


def _get(container: Any, step: str | int) -> Any:
    if isinstance(container, dict) and isinstance(step, str):
        return container.get(step)
    if isinstance(container, list) and isinstance(step, int) and step <= len(container):
        return container[step] if step < len(container) else None
    raise malformed("function arguments that do not fit together")


def _set(container: Any, step: str | int, value: Any) -> Any:
    """Set what ``_get`` has looked for, and return it."""
    if isinstance(container, list) and step == len(container):
        container.append(value)
    else:
        container[step] = value
    return value
