"""From a tree to frozen dataclasses: every fault found at once, each with its line.

``Reader`` reads a tree of ``gateway.yaml_tree`` as a type: the annotations of a dataclass are the schema, and
``Annotated`` carries ``Range``, ``Pattern`` or ``Check`` where a type says too little.

Three rules. What the text looks like decides, not YAML 1.1's idea of it: ``off`` is text where text is expected,
``1:30`` is never 90, and text is never taken for a number unless it is all of a ``${NAME}``. A fault never shows a
secret, text that may hold one, or what an environment variable holds. This module knows no key of the configuration.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from gateway.yaml_tree import BROKEN, Faults, List, Map, Node, Place, Scalar, is_null, printable

T = TypeVar("T")
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0b[01_]+|0|[1-9][0-9_]*)")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
FAULTY: Any = object()  # stands for a value whose fault is already reported
# Linters move imports that only annotations use under TYPE_CHECKING; these names resolve all the same.
_ANNOTATION_NAMES = {"Mapping": Mapping, "Sequence": Sequence, "Callable": Callable}
_MAPPINGS = (Mapping, dict)


class Secret:
    """Text that no ``repr``, log line or fault may show; ``reveal()`` gives it to who must send it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


@dataclass(frozen=True, slots=True)
class Block:
    """A mapping kept unread, with its place: as the type of a field, it is read later against a class."""

    source: str
    place: Place
    node: Map = field(repr=False)


# --- rules ------------------------------------------------------------------------------------------------------------


class Rule(Protocol):
    """What ``Annotated`` may add to a type. ``shown`` allows a fault to show the text that broke it."""

    shown: bool

    def expected(self, noun: str) -> str:
        """Return what is expected, to follow the word "expected"."""

    def check(self, value: Any) -> Any:
        """Return the value to keep, or raise ``ValueError``."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``low`` to ``high``, both included, or ``above`` a bound; ``unit`` follows "a number of"."""

    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    above: float | None = None
    unit: str = ""
    shown: bool = True

    def expected(self, noun: str) -> str:
        """Return the noun with the bounds: "an integer from 0 to 65535"."""
        words = f"{noun} of {self.unit}" if self.unit else noun
        words += "" if self.above is None else f" above {self.above:g}"
        match self.low, self.high:
            case None, None:
                return words
            case low, None:
                return f"{words} of at least {low}"
            case None, high:
                return f"{words} of at most {high}"
            case low, high:
                return f"{words} from {low} to {high}"

    def check(self, value: Any) -> Any:
        """Return the number, or raise ``ValueError`` if it is out of range."""
        low = self.low is None or value >= self.low
        high = self.high is None or value <= self.high
        if low and high and (self.above is None or value > self.above):
            return value
        raise ValueError


@dataclass(frozen=True, slots=True)
class Check:
    """A value that ``function`` takes: it returns the value to keep, or raises ``ValueError``."""

    function: Callable[[Any], Any]
    words: str
    shown: bool = False

    def expected(self, noun: str) -> str:  # noqa: ARG002  # the words say it all
        """Return the words given."""
        return self.words

    def check(self, value: Any) -> Any:
        """Return what the function makes of the value."""
        return self.function(value)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that matches a regular expression as a whole; unless ``shown``, a fault does not show the text."""

    regex: str
    words: str
    shown: bool = False

    def expected(self, noun: str) -> str:  # noqa: ARG002  # the words say it all
        """Return the words given."""
        return self.words

    def check(self, value: Any) -> Any:
        """Return the text, or raise ``ValueError`` if it does not match."""
        if re.fullmatch(self.regex, value):
            return value
        raise ValueError


Seconds = Annotated[float, Range(above=0, unit="seconds")]


# --- from the tree to a type ------------------------------------------------------------------------------------------


def read_as(kind: type[T], node: Node, place: Place, faults: Faults) -> T | None:
    """Return the node as an instance of a dataclass; None when that is impossible, with the reasons in ``faults``."""
    value = Reader(faults).read(node, kind, place)
    return None if value is FAULTY else cast("T", value)


class Reader:
    """Reads nodes as types. What cannot be read becomes a fault and ``FAULTY``, and the rest is still read."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def read(self, node: Node, kind: Any, place: Place, rules: Sequence[Rule] = ()) -> Any:
        """Return the node as what the annotation ``kind`` names, or ``FAULTY``."""
        origin = get_origin(kind)
        if origin is Annotated:
            base, *more = get_args(kind)
            return self.read(node, base, place, (*rules, *more))
        if origin in {Union, UnionType}:
            return self._union(node, get_args(kind), place, rules)
        if node is BROKEN:
            return FAULTY
        value = self._bare(node, kind, place, rules)
        return value if value is FAULTY else self._ruled(value, node, kind, place, rules)

    def _expected(self, node: Node, kind: Any, place: Place, rules: Sequence[Rule]) -> Any:
        self.faults.add(place, f"expected {expectation(kind, rules)}, got {_got(node, kind, rules)}")
        return FAULTY

    def _ruled(self, value: Any, node: Node, kind: Any, place: Place, rules: Sequence[Rule]) -> Any:
        try:
            for rule in rules:
                value = rule.check(value)
        except ValueError:
            return self._expected(node, kind, place, rules)
        return value

    def _union(self, node: Node, kinds: Sequence[Any], place: Place, rules: Sequence[Rule]) -> Any:
        if NoneType in kinds and is_null(node):
            return None
        some = [kind for kind in kinds if kind is not NoneType]
        if len(some) == 1:
            return self.read(node, some[0], place, rules)
        trial = Reader(Faults(self.faults.source))
        read = (trial.read(node, kind, place, rules) for kind in some)
        value = next((value for value in read if value is not FAULTY), FAULTY)
        return value if value is not FAULTY or node is BROKEN else self._expected(node, Union[*kinds], place, rules)

    def _bare(self, node: Node, kind: Any, place: Place, rules: Sequence[Rule]) -> Any:
        origin = get_origin(kind)
        if origin is Literal:
            return self._literal(node, kind, place)
        if origin is tuple and isinstance(node, List):
            return self._tuple(node, get_args(kind)[0], place)
        if origin in _MAPPINGS and isinstance(node, Map):
            return self._mapping(node, *get_args(kind), place=place)
        if kind is Block and isinstance(node, Map):
            return Block(self.faults.source, place, node)
        if _is_record(kind) and (isinstance(node, Map) or is_null(node)):
            return self._record(node if isinstance(node, Map) else Map(line=place.line), kind, place)
        value = _SCALARS[kind](node) if kind in _SCALARS and isinstance(node, Scalar) else FAULTY
        return self._expected(node, kind, place, rules) if value is FAULTY else value

    def _literal(self, node: Node, kind: Any, place: Place) -> Any:
        if not isinstance(node, Scalar) or is_null(node):
            return self._expected(node, kind, place, ())
        choices = get_args(kind)
        text = node.text if node.plain or node.tag == "str" else None
        for choice in choices:
            if choice in (text, _integer(node)):
                return choice
        near = "" if node.concealed else _nearest(node.text, [word for word in choices if isinstance(word, str)])
        self.faults.add(place, f"expected {expectation(kind)}, got {_got(node, int, ())}{near}")
        return FAULTY

    def _tuple(self, node: List, kind: Any, place: Place) -> Any:
        lines = node.lines or (place.line,) * len(node.items)
        values = [
            self.read(item, kind, place.item(i, line))
            for i, (item, line) in enumerate(zip(node.items, lines, strict=True))
        ]
        return FAULTY if FAULTY in values else tuple(values)

    def _mapping(self, node: Map, key: Any, kind: Any, *, place: Place) -> Any:
        names = [self.read(Scalar(name), key, spot) for name, _, spot in node.children(place)]
        values = [self.read(child, kind, spot) for _, child, spot in node.children(place)]
        return FAULTY if FAULTY in (*names, *values) else dict(zip(names, values, strict=True))

    def _record(self, node: Map, cls: type, place: Place) -> Any:
        try:
            options = options_of(cls)
        except (NameError, TypeError) as error:  # a mistake in a middleware from elsewhere, told like the others
            self.faults.add(place, f"the options of {cls.__qualname__} cannot be read: {error}")
            return FAULTY
        values = {}
        for name, child, spot in node.children(place):
            if name not in options:
                self._unknown(name, spot, options)
            elif not (is_null(child) and _is_structure(options[name].kind)):  # an empty section is one left out
                values[name] = self.read(child, options[name].kind, spot)
        unknown = node.items.keys() - options.keys()
        missing = [name for name, option in options.items() if option.is_required and name not in values]
        for name in missing:
            spot = place.key(name, node.lines.get(name, place.line))
            self.faults.add(spot, f"missing, expected {expectation(options[name].kind)}")
        return FAULTY if unknown or missing or FAULTY in values.values() else self._made(cls, values, place)

    def _unknown(self, name: str, place: Place, known: Iterable[str]) -> None:
        near = _nearest(name, known)
        self.faults.add(place, "unknown key" + (near or f"; known here: {', '.join(known) or 'none'}"))

    def _made(self, cls: type, values: Mapping[str, object], place: Place) -> Any:
        try:
            return cls(**values)
        except ValueError as error:  # the class's own check of how its options go together
            self.faults.add(place, printable(str(error), 500))
            return FAULTY


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a dataclass that the configuration may set."""

    kind: Any
    is_required: bool


@cache
def options_of(cls: type) -> Mapping[str, Option]:
    """Return the options of a dataclass by name.

    A field whose name starts with ``_``, that ``__init__`` does not take, or whose type YAML cannot express (a clock)
    is no option. Raises ``TypeError`` when such a field has no default, ``NameError`` for an annotation of nothing.
    """
    kinds = get_type_hints(cls, localns=_ANNOTATION_NAMES, include_extras=True)
    options = {}
    for item in fields(cls):
        is_required = item.default is MISSING and item.default_factory is MISSING
        if item.init and not item.name.startswith("_") and is_readable(kinds[item.name]):
            options[item.name] = Option(kinds[item.name], is_required)
        elif item.init and is_required:
            raise TypeError(f"{item.name} has no default and a type that YAML cannot express")
    return options


def is_readable(kind: Any) -> bool:
    """Whether ``Reader`` can read this annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_readable(inner[0])
    if origin is tuple:
        return len(inner) == 2 and inner[1] is Ellipsis and is_readable(inner[0])
    if origin is Literal:
        return all(type(choice) in {str, int} for choice in inner)
    if origin in {Union, UnionType} or origin in _MAPPINGS:
        return all(map(is_readable, inner))
    return kind in _SCALARS or kind is Block or _is_record(kind)


def expectation(kind: Any, rules: Sequence[Rule] = ()) -> str:
    """Return what a type with its rules expects, to follow the word "expected"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return expectation(inner[0], (*rules, *inner[1:]))
    if origin in {Union, UnionType}:
        return " or ".join(expectation(choice, rules) for choice in inner if choice is not NoneType)
    if origin is Literal:
        noun = "one of " + ", ".join(map(str, inner))
    else:
        noun = "a list" if origin is tuple else _NOUNS.get(kind, "a mapping")
    return rules[-1].expected(noun) if rules else noun


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind) and kind is not Block


def _is_structure(kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Annotated:
        return _is_structure(get_args(kind)[0])
    return origin is tuple or origin in _MAPPINGS or _is_record(kind)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:60].lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _got(node: Node, kind: Any, rules: Sequence[Rule]) -> str:
    """Say what was found instead; of text only that it was text, unless the type or the rules allow more."""
    if not isinstance(node, Scalar):
        return "a mapping" if isinstance(node, Map) else "a list" if node.items else "an empty list"
    if node.concealed or is_null(node):
        return node.concealed or "null"
    if kind in {bool, int, float} or (rules and kind is str and node.tag == "str" and rules[-1].shown):
        shown = printable(node.text)
        is_quoted = shown[:1] in {"'", '"'}
        return shown if is_quoted or (node.plain and node.tag != "str") else f"'{shown}'"
    noun = {"int": "a number", "float": "a number", "bool": "true or false"}.get(node.tag, "text")
    return noun + ("; quote it if text is meant" if kind in {str, Secret} and noun != "text" else "")


# --- scalars ----------------------------------------------------------------------------------------------------------


def _text(node: Scalar) -> Any:
    is_word = node.tag == "bool" and node.plain and node.text.lower() in {"on", "off", "yes", "no"}
    return node.text if is_word or node.tag in {"str", "timestamp"} else FAULTY


def _secret(node: Scalar) -> Any:
    text = _text(node)
    is_fit = text is not FAULTY and text and text.isprintable() and text == text.strip()
    return Secret(text) if is_fit else FAULTY


def _boolean(node: Scalar) -> Any:
    if node.whole:
        return {"true": True, "false": False}.get(node.text.strip().lower(), FAULTY)
    return node.text.lower() in {"true", "yes", "on"} if node.tag == "bool" else FAULTY


def _integer(node: Scalar) -> Any:
    return _parsed(node, _INTEGER, lambda text: int(text, 0))


def _number(node: Scalar) -> Any:
    value = _parsed(node, _NUMBER, float)
    return value if value is FAULTY or math.isfinite(value) else FAULTY


def _parsed(node: Scalar, regex: re.Pattern[str], parse: Callable[[str], float]) -> Any:
    text = node.text.strip() if node.whole else node.text
    if not (node.plain or node.whole) or not regex.fullmatch(text):
        return FAULTY
    try:
        return parse(text)
    except ValueError:
        return FAULTY


_SCALARS: dict[Any, Callable[[Scalar], Any]] = {
    str: _text,
    Secret: _secret,
    bool: _boolean,
    int: _integer,
    float: _number,
    NoneType: lambda node: None if is_null(node) else FAULTY,
}
_NOUNS: dict[Any, str] = {
    str: "text",
    Secret: "printable text that is not empty and has no blanks at its ends",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    NoneType: "null",
}


# --- plain values -----------------------------------------------------------------------------------------------------


def tree_of(value: object) -> Node:
    """Return plain Python values, or trees among them, as a tree of no file. No fault shows a ``Secret``."""
    match value:
        case None:
            return Scalar("null", tag="null", plain=True)
        case bool():
            return Scalar(str(value).lower(), tag="bool", plain=True)
        case int() | float():
            return Scalar(repr(value), tag="int" if isinstance(value, int) else "float", plain=True)
        case str():
            return Scalar(value)
        case Secret():
            return Scalar(value.reveal(), concealed="a secret")
        case Scalar() | List() | Map():
            return value
        case Mapping():
            return Map({str(key): tree_of(item) for key, item in value.items()})
        case list() | tuple():
            return List(tuple(map(tree_of, value)))
        case _:
            raise TypeError(f"no configuration holds a {type(value).__name__}")


def plain_of(node: Node) -> object:
    """Return a tree as plain Python values; what came from the environment is a ``Secret``."""
    match node:
        case Map():
            return {name: plain_of(item) for name, item in node.items.items()}
        case List():
            return tuple(map(plain_of, node.items))
        case Scalar(concealed=concealed) if concealed:
            return Secret(node.text)
        case Scalar(tag="null"):
            return None
        case _:
            read = (_SCALARS[kind](node) for kind in (bool, int, float))
            return next((value for value in read if value is not FAULTY), node.text)
