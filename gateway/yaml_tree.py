"""From YAML to a tree of nodes, each with its line: what is written, before anybody asks what it means.

``read_tree`` turns the text into a small tree (``Scalar``, ``List``, ``Map``), where ``${NAME}`` is already replaced,
aliases are shared and merged keys are in. A scalar keeps its text as written beside what YAML takes it for, so that
whoever reads it decides. What is wrong goes to ``Faults``, one line for each, with its place.

A fault never quotes the file beyond its keys, nor shows what an environment variable holds. This module knows neither
types nor keys of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, TypeAlias, cast, get_args

import yaml
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from gateway.core.errors import ConfigError

MAX_CHARACTERS = 1 << 20  # thousands of client keys fit; what is larger is not a configuration
MAX_DEPTH = 40  # a sane file has six levels; Python's own limit must never be met
MAX_VALUES = 100_000  # counted with every alias expanded, so that a few lines cannot fill the memory

Tag = Literal["str", "int", "float", "bool", "null", "timestamp"]
_TAGS = frozenset(get_args(Tag))
_YAML = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$(?:\$\{|\{(?P<name>[^}]*)(?P<end>\}?))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# --- places and faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: its key path, and its line (0: it comes from no file)."""

    path: str = ""
    line: int = 0

    def key(self, name: str, line: int) -> Place:
        """Return the place of an entry of the mapping that is here."""
        shown = printable(name)
        return Place(f"{self.path}.{shown}" if self.path else shown, line)

    def item(self, index: int, line: int) -> Place:
        """Return the place of an item of the list that is here."""
        return Place(f"{self.path}[{index}]", line)


class Faults:
    """All that is wrong with one source, in the order of its lines."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[tuple[int, str]] = []

    def add(self, place: Place, message: str) -> None:
        """Note one fault."""
        self._found.append((place.line, self.line(place, message)))

    def line(self, place: Place, message: str) -> str:
        """Write one fault as one line: ``source:line: key path: message``."""
        where = f"{printable(self.source, 4096)}:{place.line}" if place.line else printable(self.source, 4096)
        return ": ".join(part for part in (where, place.path, message) if part)

    def lines(self) -> list[str]:
        """Return the faults found so far, each once."""
        return list(dict.fromkeys(text for _, text in sorted(self._found, key=lambda found: found[0])))

    def raise_if_any(self) -> None:
        """Raise ``ConfigError`` with every fault noted."""
        if self._found:
            raise ConfigError(self.lines())

    def stop(self, place: Place, message: str) -> ConfigError:
        """Note a fault that nothing can be read after, and return the error to raise."""
        self.add(place, message)
        return ConfigError(self.lines())


def printable(text: str, limit: int = 60) -> str:
    """Return the text as part of one line: cut when long, escaped when it holds what does not print."""
    cut = text if len(text) <= limit else text[:limit] + "..."
    return cut if cut and cut.isprintable() and cut == cut.strip() else repr(cut)


# --- the tree ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as written. ``concealed`` says what to show of it instead, if it must not be shown."""

    text: str
    _: KW_ONLY
    tag: Tag = "str"
    plain: bool = False  # neither quoted nor touched by ${NAME}
    whole: bool = False  # nothing but one ${NAME}
    concealed: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class List:
    """A sequence of nodes, each with its own line."""

    items: tuple[Node, ...] = ()
    lines: tuple[int, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Map:
    """Nodes by key, each key with its own line; merged keys are already in."""

    items: Mapping[str, Node] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    line: int = 0

    def children(self, place: Place) -> Iterator[tuple[str, Node, Place]]:
        """Yield each key with its node and its place."""
        for name, node in self.items.items():
            yield name, node, place.key(name, self.lines.get(name, 0))

    def without(self, name: str) -> Map:
        """Return the same mapping less one key."""
        return Map({key: node for key, node in self.items.items() if key != name}, self.lines, self.line)


Node: TypeAlias = Scalar | List | Map
BROKEN = Scalar("")  # known by its identity: what stood there is already reported


def is_null(node: Node) -> bool:
    """Whether the node is YAML's null, or nothing at all behind a key."""
    return isinstance(node, Scalar) and node.tag == "null"


# --- the text ---------------------------------------------------------------------------------------------------------


def read_tree(text: str, environ: Mapping[str, str], faults: Faults) -> Node:
    """Return the one document in the text; raises ``ConfigError`` if it is not YAML or out of all bounds."""
    if len(text) > MAX_CHARACTERS:
        raise faults.stop(Place(), f"expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    raw = _compose(text, faults)
    return Map() if raw is None else _Builder(environ, faults).build(raw, Place(line=1))


class _Loader(yaml.SafeLoader):
    """PyYAML's parser as far as its nodes, which stops at too deep a nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # so in PyYAML's stubs
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, faults: Faults) -> yaml.Node | None:
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise faults.stop(*_syntax_fault(error, text)) from None  # the original quotes the file
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise faults.stop(Place(line=line), f"not valid YAML: character #x{ord(text[error.position]):04x}") from None
    except (ValueError, OverflowError):  # from \U escapes and %YAML numbers beyond what Python takes
        raise faults.stop(Place(), "not valid YAML: a number or an escape is out of range") from None


def _syntax_fault(error: yaml.MarkedYAMLError, text: str) -> tuple[Place, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    # The names of aliases, anchors and tags are the file's own words, and may be a secret that starts with * or &.
    problem = re.sub(r"\b(alias|anchor|handle) .*", r"\1", error.problem or "", flags=re.DOTALL)
    message = ", ".join(part for part in ("not valid YAML", error.context, problem) if part)
    around = "\n".join(text.splitlines()[max(0, line - 2) : line])
    return Place(line=line), message + ("; inside [ ] or { }, quote ${...}" if "${" in around else "")


class _Builder:
    """Builds the tree in the order of the document, so that whatever an alias names is already built."""

    def __init__(self, environ: Mapping[str, str], faults: Faults) -> None:
        self.environ = environ
        self.faults = faults
        self.resolver = Resolver()
        self.built: dict[int, Node | None] = {}  # None: being built
        self.extents: dict[int, tuple[int, int]] = {}  # values and levels of each, with its aliases expanded
        self.values = 0
        self.levels = 0

    def build(self, raw: yaml.Node, place: Place) -> Node:
        values, levels, self.levels = self.values, self.levels, 0
        if id(raw) not in self.built:
            self.built[id(raw)] = None
            self._count(1, 0, place)
            self.built[id(raw)] = self._make(raw, place)
            self.extents[id(raw)] = (self.values - values, self.levels + 1)
            self._count(0, self.levels + 1, place)
        elif self.built[id(raw)] is not None:
            self._count(*self.extents[id(raw)], place)
        self.levels = max(levels, self.levels)
        return self.built[id(raw)] or self._fault(place, "expected no alias of what it is itself a part of")

    def _count(self, values: int, levels: int, place: Place) -> None:
        self.values += values
        self.levels = levels
        if self.values > MAX_VALUES:
            raise self.faults.stop(Place(line=place.line), f"more than {MAX_VALUES} values, aliases expanded")
        if levels > MAX_DEPTH:
            raise self.faults.stop(Place(line=place.line), f"nested more than {MAX_DEPTH} levels deep")

    def _fault(self, place: Place, message: str) -> Scalar:
        self.faults.add(place, message)
        return BROKEN

    def _make(self, raw: yaml.Node, place: Place) -> Node:
        node: Node
        implied = (isinstance(raw, yaml.ScalarNode) and raw.style is None, True)
        tag: str = self.resolver.resolve(type(raw), raw.value, implied)  # type: ignore[no-untyped-call]  # so in PyYAML's stubs
        match raw:
            case yaml.ScalarNode():
                node = self._scalar(raw, place)
            case yaml.SequenceNode():
                node = self._list(raw, place)
            case _:
                node = self._map(raw, place)
        return node if raw.tag == tag else self._fault(place, "expected no YAML tag; quote what is meant as text")

    def _scalar(self, raw: yaml.ScalarNode, place: Place) -> Scalar:
        names: list[str] = []
        wrong: list[str] = []
        text = _VARIABLE.sub(lambda match: self._variable(match, names, wrong), raw.value)
        if not wrong and not _is_encodable(text):
            wrong.append("expected valid Unicode")
        for message in wrong:
            self._fault(place, message)
        if wrong:
            return BROKEN
        tag = raw.tag.removeprefix(_YAML)
        whole = bool(names) and _VARIABLE.fullmatch(raw.value) is not None
        return Scalar(
            text,
            tag=cast("Tag", tag) if tag in _TAGS else "str",
            plain=raw.style is None and text == raw.value,
            whole=whole,
            concealed=_origin(names, whole=whole),
            line=place.line,
        )

    def _variable(self, match: re.Match[str], names: list[str], wrong: list[str]) -> str:
        name = match["name"]
        if name is None:
            return "${"
        if not match["end"] or not _NAME.fullmatch(name):
            wrong.append("expected the name of an environment variable between ${ and }; $${ is a literal ${")
        elif name not in self.environ:
            wrong.append(f"the environment variable {name} is not set")
        else:
            names.append(name)
            return self.environ[name]
        return ""

    def _list(self, raw: yaml.SequenceNode, place: Place) -> List:
        items = [self.build(item, place.item(i, item.start_mark.line + 1)) for i, item in enumerate(raw.value)]
        return List(tuple(items), tuple(item.start_mark.line + 1 for item in raw.value), place.line)

    def _map(self, raw: yaml.Node, place: Place) -> Map:
        items: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: list[Map] = []
        for key, value in raw.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.build(key, Place(place.path, line))
                self._fault(Place(place.path, line), "expected text as a key")
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            node = self.build(value, place.key(name, line))
            if key.tag == _YAML + "merge":
                merged += self._mergeable(node, place.key(name, line))
            elif name in items:
                self._fault(place.key(name, line), f"duplicate key, first on line {lines[name]}")
            elif isinstance(key, yaml.ScalarNode):
                items[name], lines[name] = node, line
        for other in merged:  # what is written here wins, then what was merged first
            items |= {name: node for name, node in other.items.items() if name not in items}
            lines |= {name: line for name, line in other.lines.items() if name not in lines}
        return Map(items, lines, place.line)

    def _mergeable(self, node: Node, place: Place) -> list[Map]:
        candidates = node.items if isinstance(node, List) else (node,)
        found = [item for item in candidates if isinstance(item, Map)]
        if len(found) != len(candidates):
            self._fault(place, "expected a mapping to merge, or a list of them")
        return found


def _origin(names: Sequence[str], *, whole: bool) -> str:
    shown = ", ".join(f"${{{name}}}" for name in names)
    return f"{'the value of' if whole else 'a value made with'} {shown}" if names else ""


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
