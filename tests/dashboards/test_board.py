"""A board gives every panel its place, and all boards the same head."""

from __future__ import annotations

from typing import Any, cast

from dashboards.board import Board, Row, custom
from dashboards.panels import stat

PANELS = [stat(str(number), "Says.", "1", unit="none", width=10, height=height) for number, height in enumerate((4, 6))]
WIDE = stat("wide", "Says.", "1", unit="none", width=20, height=3)


def board(*rows: Row) -> dict[str, Any]:
    """Return a board with these rows, as Grafana gets it."""
    found = Board(uid="millrace-test", title="Test", says="Says.", rows=rows, choices=("ttft_slo",))
    return cast("dict[str, Any]", found.as_json())


def places(panels: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Return title, column and line of each."""
    return [(panel["title"], panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]


def test_panels_are_laid_out_from_left_to_right() -> None:
    """A line is as high as its highest panel; a row without a title has no heading."""
    assert places(board(Row("", (*PANELS, WIDE)), Row("More", (WIDE,)))["panels"]) == [
        ("0", 0, 0),
        ("1", 10, 0),
        ("wide", 0, 6),
        ("More", 0, 9),
        ("wide", 0, 10),
    ]


def test_an_optional_row_is_folded_and_holds_its_panels() -> None:
    """Grafana keeps them inside of its heading."""
    heading, last = board(Row("Folded", PANELS, is_optional=True), Row("", (WIDE,)))["panels"]
    assert (heading["type"], heading["collapsed"]) == ("row", True)
    assert places(heading["panels"]) == [("0", 0, 1), ("1", 10, 1)]
    assert (last["title"], last["id"]) == ("wide", 4)


def test_an_open_row_has_its_panels_beside_it() -> None:
    """So does Grafana keep them."""
    heading, *rest = board(Row("Open", PANELS))["panels"]
    assert (heading["collapsed"], heading["panels"]) == (False, [])
    assert [panel["title"] for panel in rest] == ["0", "1"]


def test_every_board_has_the_same_first_variables_and_then_its_own() -> None:
    """Data source, job, instance, model, upstream, and the targets it asks for."""
    names = [variable["name"] for variable in board()["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "model", "upstream", "ttft_slo"]


def test_all_panels_of_a_board_are_in_reading_order() -> None:
    """Those that are folded away as well."""
    found = Board(uid="a", title="A", says="Says.", rows=(Row("", PANELS), Row("B", (WIDE,), is_optional=True)))
    assert found.panels == [*PANELS, WIDE]


def test_a_custom_variable_offers_texts_and_begins_with_what_is_chosen() -> None:
    """Its query is what Grafana shows in its editor."""
    found = custom("target", "Target", "2", {"1 s": "1", "2 s": "2"})
    assert found["query"] == "1 s : 1, 2 s : 2"
    assert found["current"] == {"selected": True, "text": "2 s", "value": "2"}
