"""The alerts fire when they should, are quiet when they should, and say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote_plus

import pytest

import dashboards
from dashboards.alerts import ALERTS, Alert, alert_groups
from dashboards.boards import BOARDS
from dashboards.document import as_yaml
from dashboards.queries import BOARD, families
from tests.dashboards.alert_cases import CASES, Case
from tests.dashboards.promtool import needs_promtool, run, try_rules

FILES = dashboards.files()
RULES = {name: FILES[f"prometheus/{name}"] for name in ("rules.yaml", "alerts.yaml")}
RUNBOOK = FILES["runbook.md"]
BY_NAME = {alert.name: alert for alert in ALERTS}


def words(alert: Alert, case: Case) -> dict[str, object]:
    """Return what an alert should say of a case, with nothing left open."""

    def fill(match: re.Match[str]) -> str:
        if match[1] == "$value":
            return case.value
        text = case.labels[match[1].removeprefix("$labels.")]
        return quote_plus(text) if match[2] else text

    rule = alert.as_json(grafana_url="http://localhost:3000", runbook_url="runbook.md")
    texts = rule["annotations"]
    assert isinstance(texts, dict)
    pattern = r'\{\{ (?:printf "%\.0f" )?(\$value|\$labels\.\w+)(?: \| (?:(urlquery)|humanize\w*))? \}\}'
    return {name: re.sub(pattern, fill, text) for name, text in texts.items()}


def as_test(alert: Alert, case: Case) -> dict[str, object]:
    """Return a case as promtool wants it."""
    labels = {**case.labels, "severity": alert.severity}
    expected = [{"exp_labels": labels, "exp_annotations": words(alert, case)}] if case.fires else []
    return {
        "interval": "1m",
        "name": f"{alert.name}: {case.why}",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{case.after}m",
                "alertname": alert.name,
                "exp_alerts": expected,
            }
        ],
    }


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_and_is_quiet_as_its_cases_say(alert: Alert, tmp_path: Path) -> None:
    """Promtool plays every case, and finds the very labels and words that are expected."""
    tests = [as_test(alert, case) for name, case in CASES if name == alert.name]
    rule = alert.as_json(grafana_url="http://localhost:3000", runbook_url="runbook.md")
    rules = {"alert.yaml": as_yaml({"groups": [{"name": "alone", "rules": [rule]}]})}
    is_recorded = "millrace:" in alert.expression
    if is_recorded:
        rules["rules.yaml"] = RULES["rules.yaml"]
    try_rules(tests, rules, tmp_path, every="5m" if is_recorded else "1m")


def test_every_alert_has_a_case_that_fires_and_one_that_is_quiet() -> None:
    """What was never seen to fire may not; what was never seen quiet wakes people for nothing."""
    for fires in (True, False):
        assert {name for name, case in CASES if case.fires is fires} == BY_NAME.keys()


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    """Both files are what Prometheus can load."""
    for name, text in RULES.items():
        (tmp_path / name).write_text(text)
        run("check", "rules", tmp_path / name)


def test_the_runbook_has_a_section_for_every_alert_and_none_besides() -> None:
    """A page at night leads to words about it, and nothing in the runbook is about an alert that is gone."""
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == list(BY_NAME)


def test_every_section_says_what_to_check_and_what_to_do() -> None:
    """It begins with how urgent the alert is, which agrees with the rule."""
    sections = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    for section in sections:
        name, _, text = section.partition("\n")
        assert text.lstrip().startswith(f"{BY_NAME[name].severity.capitalize()}. ")
        assert "\n**Check**\n" in text
        assert "\n**Do**\n" in text


def test_the_links_within_the_runbook_lead_somewhere() -> None:
    """A section may send the reader on to another, which must be there."""
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOK)) <= {name.lower() for name in BY_NAME}


def test_the_runbook_names_only_panels_that_there_are() -> None:
    """What is set in italics with a capital is the title of a board, a row, a panel or a variable."""
    known = {"Millrace / Overview", "Targets", "Objective", "Model", "Upstream"}
    for board in BOARDS:
        known |= {board.title, *(row.title for row in board.rows), *(panel.title for panel in board.panels)}
    assert set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", RUNBOOK)) <= known


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_how_urgent_it_is_what_happens_and_where_to_look(alert: Alert) -> None:
    """Summary, description, runbook and board are there, and the board exists."""
    rule = alert.as_json(grafana_url="https://grafana", runbook_url="https://runbook")
    texts = rule["annotations"]
    assert isinstance(texts, dict)
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert texts["summary"]
    assert texts["description"].endswith(".")
    assert texts["runbook_url"] == f"https://runbook#{alert.name.lower()}"
    assert texts["dashboard"].startswith(f"https://grafana/d/{alert.board}")
    assert alert.board in {board.uid for board in BOARDS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_uses_only_labels_that_its_series_have(alert: Alert) -> None:
    """A label that is not there would leave a hole in the sentence, or in the link."""
    rule = alert.as_json(grafana_url="", runbook_url="")
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= set(alert.labels)
    assert families(alert.expression) or "millrace:" in alert.expression or "up{" in alert.expression


def test_the_links_to_boards_hand_on_only_variables_that_boards_have() -> None:
    """``var-model`` and the like are names that every board knows."""
    names = set(re.findall(r"var-(\w+)=", str(alert_groups(grafana_url="", runbook_url=""))))
    assert names == {"job", "instance", "model", "upstream"} == set(BOARD.variables.values())
