"""What the wires share: reading odd content, and choices side by side."""

from typing import Any

import pytest

from gateway.simulator.ask import Rejected, Tool, invalid
from gateway.simulator.schema import ANY_OBJECT
from gateway.simulator.script import Script
from gateway.simulator.wires.base import Reply, chosen_tool, decided, interleaved, listed, part_texts, schema_of_format


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text", "text"),
        (None, ""),
        (7, ""),
        ([{"type": "text", "text": "a"}, "b", {"type": "image_url", "image_url": {"url": "data:"}}, 7], "ab"),
        ([{"text": None}], ""),
    ],
)
def test_text_is_found_in_any_content(content: Any, text: str) -> None:
    """Images and the like are accepted and passed over."""
    assert part_texts(content) == text


def test_choices_take_turns() -> None:
    """Until each has ended."""
    assert list(interleaved([iter("ace"), iter("bd")])) == list("abcde")


def test_one_value_is_a_list_of_one() -> None:
    """And none an empty one."""
    assert (listed(None), listed("a"), listed(["a"])) == ([], ["a"], ["a"])


def test_a_response_format_is_a_schema_or_none() -> None:
    """Plain JSON is any object."""
    assert schema_of_format({"type": "json_schema", "json_schema": {"schema": {"x": 1}}}) == {"x": 1}
    assert schema_of_format({"type": "json_object"}) is ANY_OBJECT
    assert schema_of_format({"type": "text"}) is None
    assert schema_of_format(None) is None


def test_a_chosen_tool_must_be_offered() -> None:
    """Else the request is invalid."""
    tool = Tool("a", None)
    assert chosen_tool([tool], "a") is tool
    with pytest.raises(Rejected):
        chosen_tool([tool], "b")


def test_the_script_decides_about_a_trailing_turn() -> None:
    """Before that, the wire."""
    no = invalid("no")
    assert decided("echo", Script(), no) == "echo"
    assert decided("echo", Script(echo="off"), no) == "continue"
    assert decided("new", Script(echo="on"), no) == "new"
    assert decided("new", Script(prefill="accept", echo="on"), no) == "echo"
    with pytest.raises(Rejected):
        decided("continue", Script(prefill="reject"), no)


def test_ids_are_new_with_every_answer() -> None:
    """And have the length that was asked for."""
    assert Reply("1", 0, "m").id(24) != Reply("2", 0, "m").id(24)
    assert Reply("1", 0, "m").id(24) != Reply("1", 0, "m").id(24, "other")
    assert len(Reply("1", 0, "m").id(24)) == 24
