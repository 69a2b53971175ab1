"""Text that a tool reads and a person may have to: JSON as Grafana keeps it, and the little of YAML that rules need.

A multi-line string becomes a literal block, so that an expression looks in the file as it does in Prometheus. Anything
but mappings, lists, strings, numbers and booleans is an error. Order is kept; nothing here depends on a clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, object]

_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/. :;,()\[\]+%*=<>~$-]*|\d+[smhd]")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"}


def as_json(document: Json) -> str:
    """Return a document as Grafana exports it, with a line end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_yaml(document: Mapping[str, object], *, head: str = "") -> str:
    """Return a document as YAML, after ``head`` as a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    return comment + "".join(f"{line}\n" for line in _mapping(document))


def _mapping(items: Mapping[str, object]) -> Iterator[str]:
    for key, value in items.items():
        yield from _entry(f"{_scalar(key)}:", value)


def _entry(key: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield key
        yield from (f"  {line}".rstrip() for line in _mapping(value))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield key
        for item in value:
            yield from _item(item)
    elif isinstance(value, str) and "\n" in value:
        yield f"{key} {'|' if value.endswith(chr(10)) else '|-'}"
        yield from (f"  {line}".rstrip() for line in value.rstrip("\n").split("\n"))
    else:
        yield f"{key} {_scalar(value)}"


def _item(item: object) -> Iterator[str]:
    lines = _mapping(item) if isinstance(item, Mapping) and item else iter([_scalar(item)])
    yield f"  - {next(lines)}"
    yield from (f"    {line}".rstrip() for line in lines)


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return json.dumps(value)
        case str() if _PLAIN.fullmatch(value) and not _is_ambiguous(value):
            return value
        case str() if '"' in value and value.isprintable():
            return "'" + value.replace("'", "''") + "'"
        case str():
            return json.dumps(value, ensure_ascii=False)  # a JSON string is a YAML string
        case []:
            return "[]"
        case _:
            raise TypeError(f"{value!r} has no place in a document")


def _is_ambiguous(text: str) -> bool:
    return text.lower() in _WORDS or ": " in text or text.endswith((":", " ")) or " #" in text or text[0] == "."
