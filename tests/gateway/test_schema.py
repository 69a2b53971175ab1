from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import ConfigError
from gateway.schema import (
    FAULTY,
    Block,
    Check,
    Pattern,
    Range,
    Reader,
    Secret,
    is_readable,
    options_of,
    plain_of,
    read_as,
    tree_of,
)
from gateway.yaml_tree import Faults, Map, Place, read_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRON = {"PORT": " 8080\n", "WORD": "swordfish", "FLAG": "True", "EMPTY": ""}


@dataclass(frozen=True, slots=True)
class Inner:
    """A dataclass inside another."""

    id: str
    sha256: Annotated[str, Pattern(r"[0-9a-f]{4}", "4 hex digits")] = "0000"


@dataclass(frozen=True, slots=True)
class Options:
    """One field of each type that can be read."""

    count: Annotated[int, Range(0, 9)] = 1
    ratio: float = 0.5
    wait_s: Annotated[float, Range(above=0, unit="seconds")] | None = None
    is_on: bool = False
    word: str = "none"
    token: Secret | None = None
    mode: Literal["on", "off", "auto", 3] = "auto"
    either: int | Literal["all"] = "all"
    keys: tuple[Inner, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner("default"))
    named: Mapping[Annotated[str, Pattern("[a-z]+", "a lowercase name")], tuple[int, ...]] = field(default_factory=dict)
    later: Block | None = None
    shouted: Annotated[str, Check(str.upper, "text"), Pattern("[A-Z]*", "letters", shown=True)] = ""


@dataclass(frozen=True, slots=True)
class WithClock:
    """Fields that are no options."""

    limit: int
    clock: Callable[[], float] = float
    table: ClassVar[Mapping[str, int]] = {}
    _cache: tuple[int, ...] = ()
    made: int = field(init=False, default=0)


@dataclass(frozen=True, slots=True)
class NeedsClock:
    """A field that must be set and cannot."""

    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class LostName:
    """An annotation of nothing."""

    clock: Nowhere = None  # type: ignore[name-defined]  # noqa: F821  # that it is lost is the point


@dataclass(frozen=True, slots=True)
class Pair:
    """Fields that must go together."""

    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


def read(text: str, cls: type[Any] = Options) -> Any:
    """Read the text as a dataclass; raise all faults."""
    faults = Faults("x.yaml")
    value = read_as(cls, read_tree(text, ENVIRON, faults), Place(), faults)
    faults.raise_if_any()
    return value


def faults_of(text: str, cls: type[Any] = Options) -> list[str]:
    """Return the faults that the text has."""
    with pytest.raises(ConfigError) as caught:
        read(text, cls)
    return caught.value.faults


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("count: 7", "count", 7),
        ("count: 0x7", "count", 7),
        ("ratio: 2", "ratio", 2.0),
        ("ratio: 1e-3", "ratio", 0.001),
        ("ratio: .5", "ratio", 0.5),
        ("wait_s: null", "wait_s", None),
        ("wait_s: ~", "wait_s", None),
        ("wait_s: 1_0", "wait_s", 10.0),
        ("is_on: yes", "is_on", True),
        ("is_on: off", "is_on", False),
        ("is_on: ${FLAG}", "is_on", True),
        ("word: off", "word", "off"),
        ("word: 2023-06-01", "word", "2023-06-01"),
        ("word: '12'", "word", "12"),
        ("word: =", "word", "="),
        ("word: a${WORD}b$${WORD}", "word", "aswordfishb${WORD}"),
        ("word: ${EMPTY}", "word", ""),
        ("token: none", "token", Secret("none")),
        ("token: ${WORD}", "token", Secret("swordfish")),
        ("mode: off", "mode", "off"),
        ("mode: on", "mode", "on"),
        ("mode: 3", "mode", 3),
        ("either: all", "either", "all"),
        ("either: 5", "either", 5),
        ("keys: [{id: a}, {id: b, sha256: 00ff}]", "keys", (Inner("a"), Inner("b", "00ff"))),
        ("keys:", "keys", ()),
        ("inner:", "inner", Inner("default")),
        ("named: {a: [1, 2]}", "named", {"a": (1, 2)}),
        ("shouted: abc", "shouted", "ABC"),
    ],
)
def test_a_value_of_the_right_type_is_read(text: str, name: str, value: object) -> None:
    """Each supported type takes what looks like it, whatever YAML 1.1 would make of it."""
    assert getattr(read(text), name) == value


def test_a_number_that_is_all_of_a_variable_is_parsed() -> None:
    """A value that came wholly from the environment may be a number, with blanks around it."""
    faults = Faults("x")
    node = read_tree("${PORT}", ENVIRON, faults)
    assert Reader(faults).read(node, int, Place()) == 8080
    assert Reader(faults).read(node, float, Place()) == 8080.0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("count: abc", "count: expected an integer from 0 to 9, got 'abc'"),
        ("count: '5'", "count: expected an integer from 0 to 9, got '5'"),
        ("count: 10", "count: expected an integer from 0 to 9, got 10"),
        ("count: 1.5", "count: expected an integer from 0 to 9, got 1.5"),
        ("count: 010", "count: expected an integer from 0 to 9, got 010"),
        ("count: 1:30", "count: expected an integer from 0 to 9, got 1:30"),
        ("count: true", "count: expected an integer from 0 to 9, got true"),
        ("count: null", "count: expected an integer from 0 to 9, got null"),
        ("count: [1]", "count: expected an integer from 0 to 9, got a list"),
        ("count: 8${EMPTY}", "count: expected an integer from 0 to 9, got a value made with ${EMPTY}"),
        ("count: ${WORD}", "count: expected an integer from 0 to 9, got the value of ${WORD}"),
        ("ratio: .nan", "ratio: expected a number, got .nan"),
        ("ratio: 1e999", "ratio: expected a number, got '1e999'"),
        ("ratio: .", "ratio: expected a number, got '.'"),
        ("wait_s: 0", "wait_s: expected a number of seconds above 0, got 0"),
        ("is_on: 1", "is_on: expected true or false, got 1"),
        ("word: 12", "word: expected text, got a number; quote it if text is meant"),
        ("word: true", "word: expected text, got true or false; quote it if text is meant"),
        ("word: {a: 1}", "word: expected text, got a mapping"),
        ("mode: Off", "mode: expected one of on, off, auto, 3, got Off; did you mean off?"),
        ("mode: '3'", "mode: expected one of on, off, auto, 3, got '3'"),
        ("mode: ${WORD}", "mode: expected one of on, off, auto, 3, got the value of ${WORD}"),
        ("mode:", "mode: expected one of on, off, auto, 3, got null"),
        ("either: some", "either: expected an integer or one of all, got text"),
        ("keys: {}", "keys: expected a list, got a mapping"),
        ("keys: [{id: a}, {id: b, sha256: swordfish}]", "keys[1].sha256: expected 4 hex digits, got text"),
        ("keys: [{sha256: 00ff}]", "keys[0].id: missing, expected text"),
        ("keys: [id]", "keys[0]: expected a mapping, got text"),
        ("inner: {id: a, idd: b}", "inner.idd: unknown key; did you mean id?"),
        ("named: {A: []}", "named.A: expected a lowercase name, got text"),
        ("named: {a: [x]}", "named.a[0]: expected an integer, got 'x'"),
        ("later: 1", "later: expected a mapping, got a number"),
        ("shouted: a-b", "shouted: expected letters, got 'a-b'"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_line(text: str, fault: str) -> None:
    """A fault names file, line, key path, what was expected and, where that is harmless, what was found."""
    assert faults_of(text) == [f"x.yaml:1: {fault}"]


def test_many_faults_are_all_found_in_the_order_of_lines() -> None:
    """No fault hides another, at whatever depth they are."""
    text = "keys:\n- {id: 1}\n- {sha256: x}\ncount: x\ninner: {id: a, b: c}\nkount: 1\n"
    assert [fault.split(": ")[:2] for fault in faults_of(text)] == [
        ["x.yaml:2", "keys[0].id"],
        ["x.yaml:3", "keys[1].sha256"],
        ["x.yaml:3", "keys[1].id"],
        ["x.yaml:4", "count"],
        ["x.yaml:5", "inner.b"],
        ["x.yaml:6", "kount"],
    ]


def test_an_unknown_key_like_no_other_lists_what_is_known() -> None:
    """Without a near name, the names that exist are listed."""
    assert faults_of("zzz: 1", Pair) == ["x.yaml:1: zzz: unknown key; known here: low, high"]


def test_a_class_that_refuses_its_options_is_a_fault_at_their_place() -> None:
    """A ValueError of the dataclass itself is told like any other fault."""
    assert faults_of("low: 2", Pair) == ["x.yaml: low is above high"]


def test_a_document_that_is_no_mapping_is_a_fault() -> None:
    """It has no keys to read."""
    assert faults_of("- low", Pair) == ["x.yaml: expected a mapping, got a list"]


def test_a_block_is_kept_and_read_later_with_its_lines() -> None:
    """A field of type Block keeps the mapping, its place and its lines."""
    block = read("later:\n  low: x\n").later
    faults = Faults(block.source)
    assert read_as(Pair, block.node, block.place, faults) is None
    assert faults.lines() == ["x.yaml:2: later.low: expected an integer, got 'x'"]


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing", "---", "null", "{}"])
def test_an_empty_text_is_all_defaults(text: str) -> None:
    """A document with nothing in it reads as a mapping with no keys."""
    assert read(text, Pair) == Pair()


def test_aliases_and_merge_keys_share_what_was_written_once() -> None:
    """An alias repeats a value; a merge key adds what is not written, and what is merged first wins."""
    text = "named: {a: &a [1], b: *a}\nkeys: [&x {id: x, sha256: aaaa}, &y {sha256: bbbb}, {<<: [*y, *x]}]"
    assert faults_of(text) == ["x.yaml:2: keys[1].id: missing, expected text"]
    value = read(text.replace("{sha256: bbbb}", "{id: y}"))
    assert value.named == {"a": (1,), "b": (1,)}
    assert value.keys == (Inner("x", "aaaa"), Inner("y"), Inner("y", "aaaa"))


# --- the parts --------------------------------------------------------------------------------------------------------


def test_a_secret_shows_itself_only_when_asked() -> None:
    """No way of printing a secret shows it, and equality and pickling work."""
    secret = Secret("swordfish")
    assert "swordfish" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "swordfish"
    assert secret == Secret("swordfish") != Secret("other")
    assert len({secret, Secret("swordfish")}) == 1
    assert pickle.loads(pickle.dumps(secret)) == secret  # noqa: S301  # our own bytes


@pytest.mark.parametrize("text", ["''", '"a\\nb"', "' a'", '"a "', "[a]", "12345"])
def test_a_secret_that_no_header_can_carry_is_refused_unseen(text: str) -> None:
    """An empty secret, or one with line breaks or blanks at its ends, is refused and not shown."""
    (fault,) = faults_of(f"token: {text}")
    assert fault.startswith("x.yaml:1: token: expected printable text that is not empty")
    assert "12345" not in fault


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Range(), "a number"),
        (Range(1), "a number of at least 1"),
        (Range(None, 2.5), "a number of at most 2.5"),
        (Range(1, 2, unit="seconds"), "a number of seconds from 1 to 2"),
        (Range(above=0), "a number above 0"),
    ],
)
def test_a_range_says_what_it_expects(rule: Range, words: str) -> None:
    """The bounds of a range are told in words."""
    assert rule.expected("a number") == words


def test_a_field_that_yaml_cannot_express_is_no_option() -> None:
    """A clock, a private field or one that __init__ does not take is left to its default."""
    assert list(options_of(WithClock)) == ["limit"]
    assert read("limit: 3", WithClock) == WithClock(3)
    assert faults_of("limit: 3\nclock: x", WithClock) == ["x.yaml:2: clock: unknown key; known here: limit"]


def test_a_class_whose_options_cannot_be_read_is_a_fault() -> None:
    """A mistake in a class from elsewhere is told at start, like a mistake in the file."""
    assert faults_of("", NeedsClock) == [
        "x.yaml: the options of NeedsClock cannot be read: clock has no default and a type that YAML cannot express"
    ]
    assert faults_of("", LostName) == ["x.yaml: the options of LostName cannot be read: name 'Nowhere' is not defined"]


@pytest.mark.parametrize(
    "kind", [object, Any, list[int], tuple[int, str], tuple[int], Literal[True], Callable[[], int]]
)
def test_a_type_outside_the_schema_is_not_readable(kind: object) -> None:
    """What the reader cannot read, it says it cannot."""
    assert not is_readable(kind)


def test_plain_values_and_trees_turn_into_each_other() -> None:
    """A tree made of plain values gives them back; what came from the environment stays a secret."""
    value = {"a": (1, 2.5, "x", None, True, "12"), "b": {"c": Secret("s")}, "d": 0x10}
    assert plain_of(tree_of(value)) == value
    assert plain_of(read_tree("{a: '${WORD}', b: 1:30, c: off}", ENVIRON, Faults("x"))) == {
        "a": Secret("swordfish"),
        "b": "1:30",
        "c": False,
    }
    with pytest.raises(TypeError, match="no configuration holds a set"):
        tree_of({1})


def test_a_union_leaves_no_fault_of_the_types_it_tried() -> None:
    """A value that suits the second type of a union is no fault of the first; one already told is not told again."""
    faults = Faults("x")
    assert Reader(faults).read(tree_of("a"), int | str, Place()) == "a"
    assert not faults.lines()
    broken = read_tree("a: ${NOWHERE}", {}, faults)
    assert isinstance(broken, Map)
    assert Reader(faults).read(broken.items["a"], int | str, Place()) is FAULTY
    assert len(faults.lines()) == 1


@given(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_written_by_python_are_read_back(whole: int, real: float) -> None:
    """Every integer and every finite float survives being written and read."""
    faults = Faults("x")
    assert Reader(faults).read(read_tree(repr(whole), {}, faults), int, Place()) == whole
    assert Reader(faults).read(read_tree(repr(real), {}, faults), float, Place()) == real
    assert not faults.lines()
