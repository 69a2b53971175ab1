from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import ConfigError
from gateway.yaml_tree import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    Faults,
    List,
    Map,
    Node,
    Place,
    Scalar,
    is_null,
    printable,
    read_tree,
)

INVALID = "x.yaml:1: not valid YAML"
QUOTE_IT = "inside [ ] or { }, quote ${...}"
NO_NAME = "expected the name of an environment variable between ${ and }; $${ is a literal ${"
ENVIRON = {"PORT": " 8080\n", "WORD": "swordfish", "EMPTY": ""}


def read(text: str) -> Node:
    """Read the text as a tree; raise all faults."""
    faults = Faults("x.yaml")
    node = read_tree(text, ENVIRON, faults)
    faults.raise_if_any()
    return node


def faults_of(text: str) -> list[str]:
    """Return the faults that the text has."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.faults


def texts_of(node: Node) -> object:
    """Return a tree as its texts alone."""
    match node:
        case Map():
            return {name: texts_of(item) for name, item in node.items.items()}
        case List():
            return [texts_of(item) for item in node.items]
        case Scalar():
            return node.text


@pytest.mark.parametrize(
    ("text", "scalar"),
    [
        ("a", Scalar("a", plain=True, line=1)),
        ("'12'", Scalar("12", line=1)),
        ("12", Scalar("12", tag="int", plain=True, line=1)),
        ("1:30", Scalar("1:30", tag="int", plain=True, line=1)),
        ("off", Scalar("off", tag="bool", plain=True, line=1)),
        ("=", Scalar("=", plain=True, line=1)),
        ("\n~", Scalar("~", tag="null", plain=True, line=1)),
        ("$${WORD}", Scalar("${WORD}", line=1)),
        ("${WORD}", Scalar("swordfish", whole=True, concealed="the value of ${WORD}", line=1)),
        ("a${WORD}", Scalar("aswordfish", concealed="a value made with ${WORD}", line=1)),
        ("${PORT}${EMPTY}", Scalar(" 8080\n", concealed="a value made with ${PORT}, ${EMPTY}", line=1)),
    ],
)
def test_a_scalar_keeps_its_text_and_says_where_it_came_from(text: str, scalar: Scalar) -> None:
    """What YAML takes it for stands beside it; what came from the environment has a name to be shown instead."""
    assert read(text) == scalar


def test_every_node_has_its_line() -> None:
    """Keys and items are told by where they are written."""
    tree = read("a:\n  b: 1\nc:\n- d\n- e\n")
    assert isinstance(tree, Map)
    places = [(place.path, place.line) for _, _, place in tree.children(Place())]
    assert places == [("a", 1), ("c", 3)]
    inner, items = tree.items["a"], tree.items["c"]
    assert isinstance(inner, Map)
    assert isinstance(items, List)
    assert ([place for _, _, place in inner.children(Place("a", 1))], items.lines) == ([Place("a.b", 2)], (4, 5))
    assert tree.without("a").items == {"c": items}


def test_faults_are_told_once_in_the_order_of_lines() -> None:
    """Whoever stops at one tells those before it as well."""
    faults = Faults("x.yaml")
    faults.raise_if_any()
    faults.add(Place("b", 2), "second")
    faults.add(Place("b", 2), "second")
    error = faults.stop(Place("a").item(0, 1), "first")
    assert error.faults == faults.lines() == ["x.yaml:1: a[0]: first", "x.yaml:2: b: second"]
    with pytest.raises(ConfigError):
        faults.raise_if_any()


def test_a_text_without_a_document_is_an_empty_mapping() -> None:
    """One that says null is null."""
    assert read("") == read("# nothing") == Map()
    assert is_null(read("---"))
    assert not is_null(read("{}"))


def test_an_alias_repeats_and_a_merge_key_adds() -> None:
    """What is written wins over what is merged, and what is merged first over what comes later."""
    text = "a: &a [1]\nb: *a\nc: [&x {id: x, sum: q}, &y {id: y}, {<<: [*y, *x]}, {<<: *x, id: z}]"
    assert texts_of(read(text)) == {
        "a": ["1"],
        "b": ["1"],
        "c": [{"id": "x", "sum": "q"}, {"id": "y"}, {"id": "y", "sum": "q"}, {"id": "z", "sum": "q"}],
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", f"{INVALID}, while parsing a flow node, expected the node content, but found '<stream end>'"),
        ("a: 1\nb: *swordfish", "x.yaml:2: not valid YAML, found undefined alias"),
        ("a: \0", "x.yaml:1: not valid YAML: character #x0000"),
        ('a: "\\UFFFFFFFF"', "x.yaml: not valid YAML: a number or an escape is out of range"),
        ("[" * 100, f"x.yaml:1: not valid YAML, nested more than {MAX_DEPTH} levels deep"),
        ("x" * (MAX_CHARACTERS + 1), f"x.yaml: expected at most {MAX_CHARACTERS} characters, got {MAX_CHARACTERS + 1}"),
        ("low: [${X}]", f"{INVALID}, while parsing a flow sequence, expected ',' or ']', but got '{{'; {QUOTE_IT}"),
        ("low: !!str 1", "x.yaml:1: low: expected no YAML tag; quote what is meant as text"),
        ("low: !!python/object:os.system [a]", "x.yaml:1: low: expected no YAML tag; quote what is meant as text"),
        ("low: 1\nlow: 2", "x.yaml:2: low: duplicate key, first on line 1"),
        ("? [a]\n: 1", "x.yaml:1: expected text as a key"),
        ("<<: 1", "x.yaml:1: <<: expected a mapping to merge, or a list of them"),
        ("low: ${NOWHERE}", "x.yaml:1: low: the environment variable NOWHERE is not set"),
        ('low: "\\uD800"', "x.yaml:1: low: expected valid Unicode"),
        *((f"low: '{bad}'", f"x.yaml:1: low: {NO_NAME}") for bad in ("${", "${}", "${1A}", "${A B}", "a${PORT")),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_read_is_one_line(text: str, fault: str) -> None:
    """What is wrong before any type is looked at is told in the same form, without quoting the file."""
    assert faults_of(text) == [fault]


def test_an_alias_of_its_own_parent_is_a_fault() -> None:
    """A node that holds itself is refused, not followed."""
    assert faults_of("inner: &a {id: *a}") == ["x.yaml:1: inner.id: expected no alias of what it is itself a part of"]


def test_aliases_that_multiply_are_stopped() -> None:
    """A few lines that stand for a billion values are refused at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert faults_of("\n".join(lines))[-1] == "x.yaml:4: more than 100000 values, aliases expanded"


def test_aliases_that_nest_too_deeply_are_stopped() -> None:
    """Depth is counted with aliases expanded, also where they hide in keys."""
    lines = ["? &a0 [x]\n: 1"] + [f"? &a{i} [*a{i - 1}]\n: 1" for i in range(1, 3000)]
    assert faults_of("\n".join(lines))[-1].endswith(f": nested more than {MAX_DEPTH} levels deep")


def test_a_variable_that_is_no_text_is_a_fault() -> None:
    """Bytes in the environment that are not UTF-8 are refused without showing them."""
    faults = Faults("x")
    read_tree("a: ${BAD}", {"BAD": "\udcff"}, faults)
    assert faults.lines() == ["x:1: a: expected valid Unicode"]


@given(st.text())
def test_a_name_in_a_fault_never_breaks_the_line(name: str) -> None:
    """Whatever a key is called, the fault about it is one printable line."""
    assert printable(name).isprintable()
    assert Place().key("a", 1).key(name, 2).path.isprintable()
