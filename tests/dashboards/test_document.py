"""What is written as YAML or JSON is read again as what it was."""

from __future__ import annotations

import json

import pytest
import yaml

from dashboards.document import Json, as_json, as_yaml

DOCUMENT: Json = {
    "plain": "text",
    "spoken": 'it\'s 100 % "quoted": yes',
    "colon": "a: b",
    "comment": "a # b",
    "dash": "- a",
    "word": "yes",
    "number": "12",
    "interval": "15s",
    "empty": "",
    "dots": "...",
    "umlaut": "Mühle",
    "tab": "a\tb",
    "template": "{{ $labels.model }}",
    "block": "(\n  a > 1\n\n  and b\n)\nor c",
    "ended": "one\ntwo\n",
    "values": {"truth": True, "lie": False, "whole": 3, "part": 0.5},
    "list": ["a", "b: c", 1],
    "maps": [{"a": 1, "b": {"c": ["d"]}}, {"e": "f\ng"}],
    "none": [],
}


def test_yaml_is_read_again_as_what_it_was() -> None:
    """Whatever a string looks like, it stays that string."""
    assert yaml.safe_load(as_yaml(DOCUMENT, head="About this.\n\nAnd more.")) == DOCUMENT


def test_json_is_read_again_as_what_it_was() -> None:
    """It ends with a line end and keeps letters as they are."""
    assert json.loads(as_json(DOCUMENT)) == DOCUMENT
    assert as_json(DOCUMENT).endswith("}\n")
    assert "Mühle" in as_json(DOCUMENT)


def test_an_expression_of_several_lines_is_a_block() -> None:
    """It looks as it does in Prometheus."""
    assert as_yaml({"expr": "a\nor b"}) == "expr: |-\n  a\n  or b\n"


def test_no_line_ends_in_a_space() -> None:
    """Nor do empty lines of a head or of a block."""
    assert not [line for line in as_yaml(DOCUMENT, head="a\n\nb").splitlines() if line != line.rstrip()]


def test_what_has_no_place_in_a_document_is_an_error() -> None:
    """Rather than a text that looks right."""
    with pytest.raises(TypeError):
        as_yaml({"set": {1, 2}.__class__})
