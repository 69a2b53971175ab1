"""What holds for every board: the rules of Grafana's own linter, said again here, and ours.

The linter is a program in Go; its 17 rules are short. What it is asked to excuse stands in ``grafana/.lint``, which is
read here as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import dashboards
from dashboards.board import ALERTS, CHOICES, COLUMNS, TAG
from dashboards.boards import BOARDS
from dashboards.objectives import OBJECTIVES
from dashboards.panels import PALETTE
from dashboards.queries import CLIENTS, OURS, PROVIDERS, REFUSED, families, recorded, runnable
from gateway.telemetry.catalogue import BY_NAME, CATALOGUE
from tests.dashboards.promtool import check_expressions, needs_promtool

Json = dict[str, Any]

FILES = dashboards.files()
DOCUMENTS: dict[str, Json] = {board.uid: cast("Json", board.as_json()) for board in BOARDS}
EXCUSED: Json = yaml.safe_load(FILES["grafana/.lint"])["exclusions"]
RULES: list[Json] = [
    rule
    for name in ("rules", "alerts")
    for group in yaml.safe_load(FILES[f"prometheus/{name}.yaml"])["groups"]
    for rule in group["rules"]
]

DRAWN = {"stat", "timeseries", "heatmap", "table", "state-timeline"}

UNITS = {"none", "short", "percentunit", "s", "bytes", "reqps", "cps", "bool_yes_no", "locale"}
"""Those of the linter's list that are in use."""

WITHOUT_PANEL: dict[str, str] = {}
"""Families that no panel and no rule reads, each with its reason."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One panel of one board, as Grafana gets it."""

    board: str
    panel: Json

    @property
    def expressions(self) -> list[str]:
        """What it asks for."""
        return [target["expr"] for target in self.panel["targets"]]

    def __str__(self) -> str:
        return f"{self.board}: {self.panel['title']}"


def panels(board: Json) -> Iterator[Json]:
    """Yield the panels of a board that show something, folded away or not."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


PANELS = [Drawn(uid, panel) for uid, document in DOCUMENTS.items() for panel in panels(document)]
each_board = pytest.mark.parametrize("board", DOCUMENTS.values(), ids=DOCUMENTS)


def selectors(expression: str) -> list[tuple[str, str, str]]:
    """Return name, matchers and range of each series that an expression selects."""
    pattern = r"\b(millrace[_:][\w:]+|up|ALERTS)\b(\{[^}]*\})?(?:\[([^\]]+)\])?"
    spans = [match.span() for match in re.finditer(r'"[^"]*"', expression)]
    return [
        (match[1], match[2] or "", match[3] or "")
        for match in re.finditer(pattern, expression)
        if not any(start <= match.start() < end for start, end in spans)
    ]


def is_excused(rule: str, drawn: Drawn) -> bool:
    """Return whether the linter is asked to excuse a panel from one of its rules."""
    entry = {"dashboard": DOCUMENTS[drawn.board]["title"], "panel": drawn.panel["title"]}
    return entry in EXCUSED[rule]["entries"]


def variables(board: Json) -> dict[str, Json]:
    """Return the variables of a board by their names."""
    return {variable["name"]: variable for variable in board["templating"]["list"]}


# The linter's rules for a board.


@each_board
def test_template_datasource(board: Json) -> None:
    """The data source is a variable, so that a board works with any Prometheus."""
    found = variables(board)["datasource"]
    assert (found["type"], found["query"], found["label"]) == ("datasource", "prometheus", "Data source")


@each_board
@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_and_template_instance(board: Json, name: str) -> None:
    """Job and instance are variables, of which several or all may be chosen."""
    found = variables(board)[name]
    assert found["datasource"]["uid"] == "${datasource}"
    assert (found["type"], found["label"], found["allValue"]) == ("query", name.capitalize(), ".+")
    assert found["multi"]
    assert found["includeAll"]


@each_board
def test_template_label_promql(board: Json) -> None:
    """What a variable offers comes from a query that Grafana has and of a family that there is."""
    for variable in variables(board).values():
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+)(?:\{(.*)\})?, (\w+)\)", variable["query"])
            assert match
            labels = {*BY_NAME[match[1]].labels, "job", "instance"}
            assert match[3] in labels
            assert set(re.findall(r"(\w+)=~", match[2] or "")) <= labels


@each_board
def test_template_on_time_change_reload(board: Json) -> None:
    """What a variable offers is looked up again when the time range changes."""
    assert {v["refresh"] for v in variables(board).values() if v["type"] == "query"} == {2}


@each_board
def test_uneditable_dashboard(board: Json) -> None:
    """What comes from files is not to be changed in the browser, where the next release would undo it."""
    assert board["editable"] is False


# The linter's rules for a panel and what it asks for.


def test_panel_datasource() -> None:
    """Every panel and every query has the data source of the variable."""
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    parts = [(drawn, part) for drawn in PANELS for part in (drawn.panel, *drawn.panel["targets"])]
    assert [str(drawn) for drawn, part in parts if part["datasource"] != wanted] == []


def test_panel_title_description() -> None:
    """Every panel says in sentences what it shows, and names the metric."""
    for drawn in PANELS:
        description = drawn.panel["description"]
        assert drawn.panel["title"]
        assert not description[0].islower(), drawn
        assert description.split("\n\nMetric: ")[0].endswith("."), drawn
        assert all(f"`{metric.name}`" in description for text in drawn.expressions for metric in families(text)), drawn


def test_panel_units() -> None:
    """A number without a unit is a riddle."""
    for drawn in PANELS:
        config = drawn.panel["fieldConfig"]
        found = {config["defaults"]["unit"]}
        found |= {p["value"] for override in config["overrides"] for p in override["properties"] if p["id"] == "unit"}
        assert found <= UNITS, drawn


def test_panel_no_targets() -> None:
    """Every panel asks for something, and each query has a letter of its own."""
    for drawn in PANELS:
        letters = [target["refId"] for target in drawn.panel["targets"]]
        assert letters, drawn
        assert len(set(letters)) == len(letters), drawn


@needs_promtool
@each_board
def test_target_promql(board: Json, tmp_path: Path) -> None:
    """Prometheus can parse every query."""
    expressions = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    values = {name: value for name, (_, value, _) in CHOICES.items()} | {"objective": "all"}
    check_expressions([runnable(expression, values) for expression in expressions], tmp_path)


def test_target_rate_interval() -> None:
    """A rate is over ``$__rate_interval``, which is never too short for the scrapes."""
    for drawn in PANELS:
        for expression in drawn.expressions:
            unquoted = re.sub(r'"[^"]*"', "", expression)
            found = re.findall(r"\bi?rate\([^\[]*\[([^\]]+)\]", unquoted)
            assert set(found) <= {"$__rate_interval"}, drawn


@pytest.mark.parametrize("label", ["job", "instance"])
def test_target_job_and_target_instance(label: str) -> None:
    """Every series is narrowed by job and instance, or the panel is excused, with a reason."""
    for drawn in PANELS:
        found = [(name, matchers) for text in drawn.expressions for name, matchers, _ in selectors(text)]
        misses = [name for name, matchers in found if f'{label}=~"${label}"' not in matchers]
        assert not misses or is_excused(f"target-{label}-rule", drawn), drawn
        assert all(name.startswith(("millrace:", "ALERTS")) for name in misses), drawn


def test_target_counter_agg() -> None:
    """A counter by itself says nothing: it is always within a rate or an increase."""
    for drawn in PANELS:
        for expression in drawn.expressions:
            for match in re.finditer(r"(\w+\()?millrace_\w+_(?:total|bucket|sum|count)\b", expression):
                assert match[1] in ("rate(", "increase("), drawn


def test_target_logql_and_target_logql_auto() -> None:
    """There is no query to Loki that these two rules could be about."""
    assert {t["datasource"]["type"] for drawn in PANELS for t in drawn.panel["targets"]} == {"prometheus"}


def test_the_linter_is_asked_to_excuse_only_what_there_is() -> None:
    """Each exception has a reason, and is of a panel that needs it."""
    needy = [d for d in PANELS if any(recorded(text) or "ALERTS{" in text for text in d.expressions)]
    for name, rule in EXCUSED.items():
        assert rule["reason"]
        assert [drawn for drawn in PANELS if is_excused(name, drawn)] == needy
        assert len(rule["entries"]) == len(needy)


# Grafana's schema, as far as it matters here.


@each_board
def test_a_board_is_in_the_classic_schema(board: Json) -> None:
    """It has what Grafana 10.4 to 13 expect at the head of a board."""
    assert 39 <= board["schemaVersion"] <= 41
    assert board["id"] is None
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["title"].startswith("Millrace / ")
    assert (board["graphTooltip"], board["tags"], board["time"]["to"]) == (1, [TAG], "now")
    assert json.loads(FILES[f"grafana/{board['uid'].removeprefix('millrace-')}.json"]) == board


@each_board
def test_panels_fill_their_rows_and_do_not_overlap(board: Json) -> None:
    """Each line is as wide as the screen, and no panel hides another."""
    taken: set[tuple[int, int]] = set()
    for panel in [*panels(board), *(panel for panel in board["panels"] if panel["type"] == "row")]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(COLUMNS) for y in range(bottom)}


@each_board
def test_every_panel_has_a_number_of_its_own(board: Json) -> None:
    """A link to a panel leads to that one."""
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    numbers = [panel["id"] for panel in [*rows, *panels(board)]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_a_panel_is_of_a_kind_that_grafana_has() -> None:
    """Its queries come in the form that its kind needs."""
    for drawn in PANELS:
        kind = drawn.panel["type"]
        assert kind in DRAWN
        assert {"defaults", "overrides"} == drawn.panel["fieldConfig"].keys()
        for target in drawn.panel["targets"]:
            assert target["format"] == (kind if kind in ("heatmap", "table") else "time_series"), drawn
            assert target["instant"] is not target["range"], drawn
            assert target["instant"] or kind != "table", drawn


# Ours.


def test_every_series_is_in_the_catalogue_or_recorded() -> None:
    """Nothing is asked for that nobody exports."""
    known = {rule["record"] for rule in RULES if "record" in rule}
    for text in [text for drawn in PANELS for text in drawn.expressions] + [rule["expr"] for rule in RULES]:
        assert set(recorded(text)) <= known
        for name, matchers, _ in selectors(text):
            if name.startswith("millrace_"):
                (metric,) = families(name)
                labels = {*metric.labels, "job", "instance", "le"}
                assert set(re.findall(r"(\w+)(?:=~|!=|=)", re.sub(r'"[^"]*"', "", matchers))) <= labels, text


def test_labels_to_sum_by_are_labels_of_the_series() -> None:
    """A sum by a label that is not there would be one number for all."""
    for drawn in PANELS:
        for text in drawn.expressions:
            labels = {label for metric in families(text) for label in metric.labels}
            if families(text) and not recorded(text):
                by = {label for found in re.findall(r"\bby \(([^)]*)\)", text) for label in found.split(", ")}
                assert by <= labels | {"job", "instance", "le"}, drawn


def test_a_legend_uses_only_labels_that_the_result_has() -> None:
    """A legend with a hole in it says nothing."""
    for drawn in PANELS:
        for target in drawn.panel["targets"]:
            labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            by = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            assert all(any(label in found.split(", ") for found in by) for label in labels), drawn


def test_every_family_of_the_catalogue_is_looked_at() -> None:
    """What nobody looks at should not be exported; an exception has its reason."""
    texts = [text for drawn in PANELS for text in drawn.expressions] + [rule["expr"] for rule in RULES]
    texts += [a["expr"] for board in DOCUMENTS.values() for a in board["annotations"]["list"] if "expr" in a]
    used = {metric.name for text in texts for metric in families(text)}
    assert {metric.name for metric in CATALOGUE} - used == WITHOUT_PANEL.keys()


@each_board
def test_links_lead_to_boards_that_there_are(board: Json) -> None:
    """Every link names a board, and sets only variables that it has."""
    text = json.dumps(board)
    for uid, rest in re.findall(r'"url": "/d/([\w-]+)\?([^"]*)"', text):
        names = set(re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", rest))
        assert {a or b for a, b in names} <= variables(DOCUMENTS[uid]).keys()
        assert "${__url_time_range}" in rest
    assert set(re.findall(r'"/d/([\w-]+)\?', text)) <= DOCUMENTS.keys()
    (link,) = board["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == ("dashboards", [TAG], True, True)


def test_every_board_is_reached_by_a_link_from_another() -> None:
    """From a number one gets to the board that explains it."""
    for uid in DOCUMENTS:
        assert any(f"/d/{uid}?" in json.dumps(board) for other, board in DOCUMENTS.items() if other != uid)


@each_board
def test_every_variable_that_a_board_asks_for_has_an_effect(board: Json) -> None:
    """A choice that changes nothing misleads."""
    text = json.dumps([board["panels"], board["templating"]])
    for name, variable in variables(board).items():
        if variable["type"] == "custom":
            assert f"${name}" in text or f"${{{name}" in text


@each_board
def test_no_variable_is_used_that_a_board_has_not(board: Json) -> None:
    """It would stay in the query as it is written."""
    known = variables(board).keys() | {"__rate_interval", "__range"}
    for panel in panels(board):
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known
        assert set(re.findall(r"\$\{(\w+)", panel["description"])) <= known


def test_targets_to_choose_from_are_bounds_of_the_buckets() -> None:
    """Between two bounds a share would be a guess."""
    for name, metric in (
        ("ttft_slo", "millrace_ttft_seconds"),
        ("tpot_slo", "millrace_tpot_seconds"),
        ("gap_slo", "millrace_stream_max_gap_seconds"),
    ):
        assert {float(value) for value in CHOICES[name][2].values()} <= set(BY_NAME[metric].buckets)
        assert CHOICES[name][1] in CHOICES[name][2].values()


def test_the_objectives_to_choose_from_are_those_of_the_rules() -> None:
    """The board says the target that the rules have."""
    options = variables(DOCUMENTS["millrace-slo"])["objective"]["options"]
    assert [option["value"] for option in options] == [objective.name for objective in OBJECTIVES]
    for option, objective in zip(options, OBJECTIVES, strict=True):
        assert f"({float(objective.target * 100):g} %)" in option["text"]


@each_board
def test_reloads_restarts_releases_and_alerts_are_marked(board: Json) -> None:
    """Whether something was done when a line began to rise is seen without asking."""
    names = {found["name"] for found in board["annotations"]["list"]}
    assert {"Reloads", "Restarts", "Releases", "Alerts"} <= names


@needs_promtool
def test_promtool_parses_the_annotations(tmp_path: Path) -> None:
    """A query that does not parse would silently mark nothing."""
    found = [a["expr"] for board in DOCUMENTS.values() for a in board["annotations"]["list"] if "expr" in a]
    check_expressions([runnable(expression) for expression in dict.fromkeys(found)], tmp_path)
    assert ALERTS in found


def test_distributions_that_matter_are_heatmaps() -> None:
    """Two humps look like one number to every percentile."""
    found = {m.name for d in PANELS if d.panel["type"] == "heatmap" for text in d.expressions for m in families(text)}
    assert found >= {
        "millrace_ttft_seconds",
        "millrace_tpot_seconds",
        "millrace_chunk_gap_seconds",
        "millrace_stream_max_gap_seconds",
        "millrace_upstream_ttft_seconds",
        "millrace_chunk_transit_seconds",
        "millrace_event_loop_lag_seconds",
        "millrace_request_duration_seconds",
    }


def test_an_outcome_is_the_fault_of_exactly_one() -> None:
    """The three shares of *Whose fault* and those that were completed and refused are all there is."""
    outcomes = [*OURS, *PROVIDERS, *CLIENTS, *REFUSED, "completed"]
    assert len(set(outcomes)) == len(outcomes)
    assert set(outcomes) == PALETTE["outcome"].keys()


def test_a_division_never_divides_by_nothing() -> None:
    """A share of no calls is no share, and not infinitely many."""
    for drawn in PANELS:
        for expression in drawn.expressions:
            for divisor in re.findall(r" / (?:ignoring \(\w+\) |on \(\w+\) )?(?:group_left \(\) )?(\S.*)", expression):
                assert divisor.startswith(("(sum", "(1 - "))
                assert not divisor.startswith("(sum") or "> 0)" in divisor
