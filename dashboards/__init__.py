"""Grafana boards and Prometheus rules, made from the catalogue of metrics.

``write`` is what ``millrace dashboards`` does:

    grafana/<board>.json                                    five boards, linked with each other
    grafana/.lint                                           what dashboard-linter is asked to excuse, and why
    grafana/provisioning/datasources/millrace.yaml          Grafana's way to Prometheus
    grafana/provisioning/dashboards/millrace.yaml           Grafana's way to the boards
    prometheus/rules.yaml, prometheus/alerts.yaml           recording and alerting rules
    prometheus/prometheus.yaml                              a configuration to begin with
    prometheus/prometheusrule.yaml, kustomization.yaml      rules and boards for Kubernetes: kubectl apply -k
    runbook.md                                              what to check and do, for each alert

The same files are in this folder, to be read and copied; a test says when they are out of date, and
``millrace dashboards --out dashboards`` renews them. ``dashboards.render`` draws a board where there is no Grafana.
Of the gateway this package knows the catalogue and nothing else, and it needs nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dashboards.alerts import alert_groups
from dashboards.board import CHOICES, Board
from dashboards.boards import BOARDS
from dashboards.document import Json, as_json, as_yaml
from dashboards.objectives import OBJECTIVES, recording_groups
from dashboards.panels import Panel
from dashboards.provisioning import dashboard_provider, datasource, kustomization, prometheus_config, prometheus_rule
from dashboards.queries import recorded, runnable

MADE = "Made by `millrace dashboards`; changes here are lost the next time."
RUNBOOK = Path(__file__).with_name("runbook.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where things are, for the links from one to the other."""

    grafana_url: str = "http://localhost:3000"
    prometheus_url: str = "http://localhost:9090"
    runbook_url: str = "runbook.md"
    admin_address: str = "localhost:8081"


def files(addresses: Addresses = Addresses()) -> dict[str, str]:
    """Return the text of every file, by its path."""
    alerts = alert_groups(grafana_url=addresses.grafana_url, runbook_url=addresses.runbook_url)
    documents: dict[str, Json] = {
        "grafana/.lint": {"exclusions": _excused()},
        "grafana/provisioning/datasources/millrace.yaml": datasource(addresses.prometheus_url),
        "grafana/provisioning/dashboards/millrace.yaml": dashboard_provider(),
        "prometheus/rules.yaml": {"groups": recording_groups()},
        "prometheus/alerts.yaml": {"groups": alerts},
        "prometheus/prometheus.yaml": prometheus_config(addresses.admin_address),
        "prometheus/prometheusrule.yaml": prometheus_rule([*recording_groups(), *alerts]),
        "kustomization.yaml": kustomization([_file_name(board) for board in BOARDS]),
    }
    return {
        **{f"grafana/{_file_name(board)}.json": as_json(board.as_json()) for board in BOARDS},
        **{path: as_yaml(document, head=MADE) for path, document in documents.items()},
        "runbook.md": RUNBOOK.read_text("utf-8"),
    }


def write(out: Path, addresses: Addresses = Addresses()) -> list[Path]:
    """Write every file under ``out`` and return their paths; an ``OSError`` where that cannot be."""
    written = []
    for name, text in files(addresses).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        written.append(path)
    return written


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One expression that a board asks Prometheus for, ready to be asked.

    ``may_be_empty`` is the reason why nothing, or nothing but zeros, may come back; without one, something must.
    ``needs_rules`` says that it reads what the recording rules have recorded.
    """

    board: str
    panel: str
    expression: str
    is_instant: bool
    may_be_empty: str
    needs_rules: bool


def panel_queries(*, interval: str = "1m", **values: str) -> Iterator[PanelQuery]:
    """Yield every expression of every panel, with all variables set to *All* but for ``values``.

    ``interval`` stands for the time range and for the interval of rates. The variable *Objective* takes each of its
    values in turn.
    """
    chosen = {name: value for name, (_, value, _) in CHOICES.items()} | {"job": ".+", "instance": ".+"} | values
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                names = [objective.name for objective in OBJECTIVES] if "$objective" in query.expression else [""]
                for name in names:
                    yield PanelQuery(
                        board=board.uid,
                        panel=panel.title,
                        expression=runnable(query.expression, {"objective": name} | chosen, interval=interval),
                        is_instant=query.is_instant,
                        may_be_empty=panel.may_be_empty,
                        needs_rules=bool(recorded(query.expression)),
                    )


def _file_name(board: Board) -> str:
    return board.uid.removeprefix("millrace-")


def _excused() -> Json:
    """Return what dashboard-linter is asked to excuse: what is recorded is no longer any one gateway's."""
    entries = [_entry(board, panel) for board in BOARDS for panel in board.panels if _is_recorded(panel)]
    reason = "Objectives and alerts are kept for each model over all gateways; what is recorded has no instance."
    targets = "The series of the targets and of alerts belong to no job."
    return {
        "target-instance-rule": {"reason": reason, "entries": entries},
        "target-job-rule": {"reason": targets, "entries": entries},
    }


def _is_recorded(panel: Panel) -> bool:
    return any(recorded(query.expression) or "ALERTS{" in query.expression for query in panel.queries)


def _entry(board: Board, panel: Panel) -> Json:
    return {"dashboard": f"Millrace / {board.title}", "panel": panel.title}
