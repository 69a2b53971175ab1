"""Values made from a schema satisfy it, and are the same every time."""

from typing import Any

import pytest

from gateway.simulator.schema import ANY_OBJECT, sample


def test_the_same_seed_and_schema_give_the_same_value() -> None:
    """Two makings of one document are equal; another seed gives another document."""
    schema = {"type": "object", "properties": {"word": {"type": "string"}, "place": {"type": "string"}}}
    assert sample(schema, "seed") == sample(schema, "seed")
    assert len({str(sample(schema, str(seed))) for seed in range(20)}) > 5


def test_the_wording_of_a_schema_does_not_change_the_values() -> None:
    """Descriptions and upper-case types, which a gateway or a provider may add, make no difference."""
    plain = {"type": "object", "properties": {"city": {"type": "string"}}}
    google = {"type": "OBJECT", "properties": {"city": {"type": "STRING", "description": "where"}}}
    assert sample(plain, "seed") == sample(google, "seed")


@pytest.mark.parametrize("seed", [str(seed) for seed in range(10)])
def test_every_property_has_its_type_and_bounds(seed: str) -> None:
    """Strings, numbers, enums, arrays and nested objects are as asked for."""
    schema = {
        "type": "object",
        "properties": {
            "unit": {"enum": ["celsius", "kelvin"]},
            "fixed": {"const": 7},
            "count": {"type": "integer", "minimum": 3, "maximum": 5},
            "above": {"type": "integer", "exclusiveMinimum": 10},
            "below": {"type": "number", "maximum": -2.5},
            "step": {"type": "integer", "multipleOf": 5, "minimum": 11},
            "yes": {"type": "boolean"},
            "none": {"type": "null"},
            "maybe": {"type": ["null", "string"]},
            "day": {"type": "string", "format": "date"},
            "long": {"type": "string", "minLength": 60},
            "short": {"type": "string", "maxLength": 2},
            "three": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "integer"}},
            "inner": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        },
        "required": ["unit", "unheard_of"],
    }
    made: dict[str, Any] = sample(schema, seed)
    assert set(made) == {*schema["properties"], "unheard_of"}
    assert made["unit"] in ("celsius", "kelvin")
    assert made["fixed"] == 7
    assert made["count"] in (3, 4, 5)
    assert made["above"] > 10
    assert made["below"] <= -2.5
    assert made["step"] % 5 == 0
    assert made["step"] >= 11
    assert isinstance(made["yes"], bool)
    assert made["none"] is None
    assert isinstance(made["maybe"], str)
    assert made["day"] == "2026-03-21"
    assert len(made["long"]) >= 60
    assert len(made["short"]) <= 2
    assert [type(one) for one in made["three"]] == [int, int, int]
    assert isinstance(made["inner"]["x"], float)


def test_references_and_choices_are_followed() -> None:
    """`$ref`, `anyOf` and `allOf` lead to a value."""
    schema = {
        "$defs": {"name": {"type": "string"}, "a/b": {"type": "integer"}},
        "type": "object",
        "properties": {
            "name": {"$ref": "#/$defs/name"},
            "slashed": {"$ref": "#/$defs/a~1b"},
            "either": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
            "both": {"allOf": [{"properties": {"x": {"type": "null"}}}, {"properties": {"y": {"const": 1}}}]},
        },
    }
    made = sample(schema, "seed")
    assert isinstance(made["name"], str)
    assert isinstance(made["slashed"], int)
    assert isinstance(made["either"], bool)
    assert made["both"] == {"x": None, "y": 1}


def test_a_schema_that_contains_itself_comes_to_an_end() -> None:
    """Recursion stops, with null where that is allowed."""
    tree = {"$ref": "#/$defs/node"}
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [tree, {"type": "null"}]}, "all": {"type": "array", "items": tree}},
        "required": ["next", "all"],
    }
    assert "None" in str(sample({**tree, "$defs": {"node": node}}, "seed"))
    endless = {"$defs": {"node": {"type": "object", "properties": {"on": tree}, "required": ["on"]}}, **tree}
    assert len(str(sample(endless, "seed"))) < 500


@pytest.mark.parametrize("odd", [None, True, [], "text", {}, {"$ref": "#/nowhere"}, {"type": []}])
def test_a_schema_that_is_none_still_gives_a_value(odd: Any) -> None:
    """What cannot be read as a schema does not break the answer."""
    sample(odd, "seed")


def test_an_object_of_any_kind_has_something_in_it() -> None:
    """JSON mode without a schema is answered with a small document."""
    assert set(sample(ANY_OBJECT, "seed")) == {"title", "notes", "depth_m"}
