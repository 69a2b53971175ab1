"""Made-up values that satisfy a JSON schema, the same ones every time.

Used for the arguments of tool calls and for answers that were asked for as JSON. The values depend on a seed and
on where they stand in the document, never on the schema's wording, because a gateway may have rewritten that on
the way. Understands what providers understand; a keyword it does not know is ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.simulator.text import number

ANY_OBJECT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "string"}},
        "depth_m": {"type": "number"},
    },
}

_WORDS: Final = ("weir", "sluice", "ripple", "leat", "ford", "eddy", "millpond", "tailrace", "spring", "reed")
_PLACES: Final = ("Oslo", "Lyon", "Kyoto", "Porto", "Tromsø", "Québec", "Ljubljana", "Montevideo")
_BY_FORMAT: Final = {
    "date": "2026-03-21",
    "date-time": "2026-03-21T06:30:00Z",
    "time": "06:30:00Z",
    "duration": "PT15M",
    "email": "miller@example.org",
    "hostname": "mill.example.org",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "uri": "https://example.org/mill",
    "uuid": "3f2b8c1e-6d4a-4b57-9c0e-2a7d51e8f690",
}
_PLACE_NAMES: Final = ("city", "location", "place", "town", "destination", "origin")
_DEEPEST: Final = 6


def sample(schema: Any, seed: str) -> Any:
    """Return a value that satisfies the schema, chosen by the seed."""
    return _Sampler(schema, seed).value(schema, "$", 0)


class _Sampler:
    """One document being made: holds the root, which `$ref` points into."""

    def __init__(self, root: Any, seed: str) -> None:
        self._root = root
        self._seed = seed

    def value(self, schema: Any, path: str, depth: int) -> Any:
        """Return the value for a part of the schema."""
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._one_of(schema["enum"], path)
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind in ("integer", "number"):
            return self._number(schema, path, whole=kind == "integer")
        if kind == "boolean":
            return self._number({}, path, whole=True) % 2 == 0
        return None if kind == "null" else self._string(schema, path)

    def _resolve(self, schema: Any, depth: int) -> Mapping[str, Any]:
        for _ in range(_DEEPEST):
            if not isinstance(schema, Mapping):
                return {}
            if isinstance(schema.get("$ref"), str):
                schema = _look_up(self._root, schema["$ref"])
            elif options := schema.get("anyOf") or schema.get("oneOf"):
                schema = _preferred(options, nothing_is_best=depth >= _DEEPEST)
            elif schema.get("allOf"):
                schema = _merged([self._resolve(part, depth) for part in schema["allOf"]])
            else:
                return schema
        return {}

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        required = schema.get("required") or ()
        properties = schema.get("properties") or {}
        names = [name for name in properties if depth < _DEEPEST or name in required]
        names += [name for name in required if name not in properties]
        if depth > 2 * _DEEPEST:
            names = []
        return {name: self.value(properties.get(name), f"{path}.{name}", depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> list[Any]:
        fewest = int(schema.get("minItems") or 0)
        most = int(schema.get("maxItems", max(2, fewest)))
        length = min(most, max(2, fewest)) if depth < _DEEPEST else fewest
        items = schema.get("items")
        return [self.value(items, f"{path}[{place}]", depth + 1) for place in range(length)]

    def _number(self, schema: Mapping[str, Any], path: str, *, whole: bool) -> Any:
        lowest = _bound(schema, "minimum", "exclusiveMinimum", 1)
        highest = _bound(schema, "maximum", "exclusiveMaximum", -1)
        if lowest is None:
            lowest = min(1.0, highest) if highest is not None else 1.0
        span = min(20.0, highest - lowest) if highest is not None else 20.0
        step = float(schema.get("multipleOf") or (1 if whole else 0.5))
        value = lowest + number(f"{self._seed}{path}", int(span / step) + 1) * step
        if schema.get("multipleOf"):
            value = -(-lowest // step) * step
        return int(value) if whole else round(value, 6)

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        name = path.rpartition(".")[2].lower()
        if schema.get("format") in _BY_FORMAT:
            return _BY_FORMAT[schema["format"]]
        words = _PLACES if any(place in name for place in _PLACE_NAMES) else _WORDS
        text = str(self._one_of(words, path))
        while len(text) < int(schema.get("minLength") or 0):
            text += " " + str(self._one_of(_WORDS, path + text))
        return text[: int(schema["maxLength"])] if "maxLength" in schema else text

    def _one_of(self, choices: Sequence[Any], path: str) -> Any:
        return choices[number(f"{self._seed}{path}", len(choices))]


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind.lower()  # Gemini writes STRING, OBJECT
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _look_up(root: Any, reference: str) -> Any:
    found = root
    for step in reference.lstrip("#").strip("/").split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        if key:
            found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _preferred(options: Sequence[Any], *, nothing_is_best: bool) -> Any:
    nothing = [one for one in options if isinstance(one, Mapping) and one.get("type") == "null"]
    something = [one for one in options if one not in nothing]
    return (nothing + something if nothing_is_best else something + nothing)[0]


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        properties = {**merged.get("properties", {}), **part.get("properties", {})}
        required = [*merged.get("required", ()), *part.get("required", ())]
        merged = {**merged, **part, "properties": properties, "required": required}
    return merged


def _bound(schema: Mapping[str, Any], inclusive: str, exclusive: str, inwards: int) -> float | None:
    if isinstance(schema.get(inclusive), int | float):
        return float(schema[inclusive])
    if isinstance(schema.get(exclusive), int | float) and not isinstance(schema[exclusive], bool):
        return float(schema[exclusive]) + inwards * (1 if schema.get("type") == "integer" else 0.5)
    return None
