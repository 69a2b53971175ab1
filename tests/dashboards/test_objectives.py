"""The recorded series are what they say: checked with numbers, by Prometheus's own engine."""

from __future__ import annotations

from pathlib import Path

import dashboards
from dashboards.objectives import LONG_WINDOWS, OBJECTIVES, SHORT_WINDOWS, errors, missed, recording_groups, streams
from tests.dashboards.promtool import needs_promtool, try_rules

RULES = {"rules.yaml": dashboards.files()["prometheus/rules.yaml"]}
LABELS = 'job="millrace", model="chat", objective="complete"'


def judged(instance: str, met: str, values: str, model: str = "chat") -> dict[str, str]:
    """Return a counter of judged streams, with its values minute by minute."""
    inner = f'job="millrace", instance="{instance}", model="{model}", objective="complete", met="{met}"'
    return {"series": f"millrace_slo_streams_total{{{inner}}}", "values": values}


def expect(expression: str, value: float | None, *, at: str = "60m") -> dict[str, object]:
    """Return what an expression should come to."""
    samples = [] if value is None else [{"labels": f"{{{LABELS}}}", "value": value}]
    return {"expr": f"round({expression}, 0.001)", "eval_time": at, "exp_samples": samples}


def plays(*cases: dict[str, object], series: list[dict[str, str]], folder: Path) -> None:
    """Let the rules run over series, and compare."""
    try_rules([{"interval": "1m", "input_series": series, "promql_expr_test": list(cases)}], RULES, folder)


@needs_promtool
def test_gateways_are_added_up_before_they_are_divided(tmp_path: Path) -> None:
    """A gateway with few streams must not weigh as much as one with many."""
    series = [
        judged("a", "true", "0+90x60"),
        judged("a", "false", "0+0x60"),
        judged("b", "true", "0+0x60"),
        judged("b", "false", "0+10x60"),
    ]
    plays(
        expect(errors("5m"), 0.1),
        expect(f"{streams('5m')} * 60", 100),
        expect(f"{missed('1h')} * 3600", 600),
        expect(errors("6h"), 0.1),
        series=series,
        folder=tmp_path,
    )


@needs_promtool
def test_no_misses_at_all_are_0_even_before_the_first(tmp_path: Path) -> None:
    """A counter that nobody has needed yet is not there; the share is 0 all the same."""
    plays(expect(errors("1h"), 0), expect(missed("1h"), 0), series=[judged("a", "true", "0+5x60")], folder=tmp_path)


@needs_promtool
def test_without_streams_there_is_no_share(tmp_path: Path) -> None:
    """Nothing was missed, and nothing was met."""
    series = [judged("a", "true", "7x60"), judged("a", "false", "3x60")]
    plays(expect(errors("1h"), None), expect(missed("1h"), 0), series=series, folder=tmp_path)


@needs_promtool
def test_the_budget_weighs_streams_and_not_minutes(tmp_path: Path) -> None:
    """A bad minute of many streams counts for more than a bad hour of few."""
    series = [judged("a", "true", "0+0x60 0+100x60"), judged("a", "false", "0+1x60 60x60")]
    plays(expect(errors("30d"), 0.01, at="121m"), series=series, folder=tmp_path)


@needs_promtool
def test_the_targets_can_be_read(tmp_path: Path) -> None:
    """Boards divide by what they leave."""
    wanted = [{"labels": f'{{objective="{o.name}"}}', "value": float(o.target)} for o in OBJECTIVES]
    case: dict[str, object] = {"expr": "millrace:slo_target:ratio + 0", "eval_time": "5m", "exp_samples": wanted}
    plays(case, series=[judged("a", "true", "0+5x60")], folder=tmp_path)


def test_every_window_that_an_alert_looks_at_is_recorded() -> None:
    """Streams, misses and their share, for each."""
    groups = recording_groups()
    names = {rule["record"] for group in groups for rule in _rules(group)}
    for window in (*SHORT_WINDOWS, *LONG_WINDOWS, "30d"):
        assert {streams(window), missed(window), errors(window)} <= names
    assert [group.get("interval") for group in groups] == [None, None, "2m", "5m"]


def test_a_budget_is_what_the_target_leaves() -> None:
    """Reckoned in decimals, so that a rule says 0.001 and not 0.0010000000000000009."""
    assert [str(objective.budget) for objective in OBJECTIVES] == ["0.001", "0.01", "0.01", "0.01", "0.02"]


def _rules(group: dict[str, object]) -> list[dict[str, object]]:
    rules = group["rules"]
    assert isinstance(rules, list)
    return rules
