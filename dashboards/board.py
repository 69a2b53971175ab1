"""A board: rows of panels, laid out from left to right, with the head that all boards share.

The head is the variables, the links to the other boards, and the annotations. Everything is decided here once, so that
a board in ``dashboards.boards`` is only a list of panels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dashboards.document import Json
from dashboards.panels import DATASOURCE, Panel
from dashboards.queries import BOARD

SCHEMA_VERSION = 39  # that of Grafana 10.4; every later one reads it
TAG = "millrace"
COLUMNS = 24

ALERTS = 'ALERTS{alertname=~"Millrace.*", alertstate="firing"}'

CHOICES = {
    "ttft_slo": (
        "TTFT target",
        "2",
        {"300 ms": "0.3", "450 ms": "0.45", "500 ms": "0.5", "750 ms": "0.75", "1 s": "1", "1.5 s": "1.5"}
        | {"2 s": "2", "3 s": "3", "4.5 s": "4.5", "6 s": "6", "10 s": "10"},
    ),
    "tpot_slo": (
        "TPOT target",
        "0.1",
        {"15 ms": "0.015", "30 ms": "0.03", "40 ms": "0.04", "60 ms": "0.06", "80 ms": "0.08", "100 ms": "0.1"}
        | {"150 ms": "0.15", "175 ms": "0.175", "200 ms": "0.2"},
    ),
    "gap_slo": ("Gap target", "2", {"500 ms": "0.5", "1 s": "1", "2 s": "2", "5 s": "5", "10 s": "10"}),
    "completion_target": (
        "Completion target",
        "0.999",
        {"99 %": "0.99", "99.5 %": "0.995", "99.9 %": "0.999", "99.95 %": "0.9995"},
    ),
}
"""The targets to choose from: heading, what is chosen at first, and text with value. Times are bounds of buckets."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading; without one they are at the head of the board. ``is_optional`` ones are folded away."""

    title: str
    panels: Sequence[Panel]
    is_optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board. ``choices`` are the targets it asks for, ``since`` how far back it looks at first."""

    uid: str
    title: str
    says: str
    rows: Sequence[Row]
    choices: Sequence[str] = ()
    variables: Sequence[Json] = ()
    since: str = "now-1h"
    refresh: str = "30s"

    @property
    def panels(self) -> list[Panel]:
        """All panels, in reading order, folded away or not."""
        return [panel for row in self.rows for panel in row.panels]

    def as_json(self) -> Json:
        """Return the board as Grafana keeps it."""
        return {
            "annotations": {"list": _annotations()},
            "description": self.says,
            "editable": False,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "id": None,
            "links": _links(),
            "panels": list(_place(self.rows)),
            "refresh": self.refresh,
            "schemaVersion": SCHEMA_VERSION,
            "tags": [TAG],
            "templating": {"list": [*_variables(), *self.variables, *(_choice(name) for name in self.choices)]},
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "timezone": "",
            "title": f"Millrace / {self.title}",
            "uid": self.uid,
            "version": 1,
            "weekStart": "",
        }


def custom(name: str, label: str, chosen: str, texts: dict[str, str]) -> Json:
    """Return a variable with fixed values; ``texts`` gives each its text."""
    options = [{"selected": value == chosen, "text": text, "value": value} for text, value in texts.items()]
    return {
        "current": next(option for option in options if option["selected"]),
        "hide": 0,
        "includeAll": False,
        "label": label,
        "multi": False,
        "name": name,
        "options": options,
        "query": ", ".join(f"{text} : {value}" for text, value in texts.items()),
        "skipUrlSync": False,
        "type": "custom",
    }


def _choice(name: str) -> Json:
    label, chosen, texts = CHOICES[name]
    return custom(name, label, chosen, texts)


def _place(rows: Sequence[Row]) -> Iterator[Json]:
    """Give every panel a number and a place, and the rows those that are theirs."""
    number, y = 1, 0
    for row in rows:
        inside: list[Json] = []
        if row.title:
            heading: Json = {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": row.is_optional,
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
                "panels": inside if row.is_optional else [],
            }
            number, y = number + 1, y + 1
            yield heading
        x, height = 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            placed = panel.as_json(number=number, x=x, y=y)
            if row.is_optional:
                inside.append(placed)
            else:
                yield placed
            number, x, height = number + 1, x + panel.width, max(height, panel.height)
        y += height


def _variables() -> list[Json]:
    """Return the variables of all boards, each narrowed by those before it."""
    return [
        {
            "current": {},
            "hide": 0,
            "includeAll": False,
            "label": "Data source",
            "multi": False,
            "name": "datasource",
            "options": [],
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "skipUrlSync": False,
            "type": "datasource",
        },
        _values_of("job", "label_values(millrace_build_info, job)", every=".+"),
        _values_of("instance", 'label_values(millrace_build_info{job=~"$job"}, instance)', every=".+"),
        _values_of("model", _labels("millrace_requests_started_total", "model"), every=".*"),
        _values_of("upstream", _labels("millrace_upstream_attempts_total", "upstream", "model"), every=".*"),
    ]


def _labels(metric: str, label: str, *narrowed: str) -> str:
    matchers = ", ".join(f'{name}=~"${name}"' for name in ("job", "instance", *narrowed))
    return f"label_values({metric}{{{matchers}}}, {label})"


def _values_of(name: str, query: str, *, every: str) -> Json:
    return {
        "allValue": every,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": name.capitalize(),
        "multi": True,
        "name": name,
        "options": [],
        "query": query,
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _links() -> list[Json]:
    return [
        {
            "asDropdown": False,
            "icon": "external link",
            "includeVars": True,
            "keepTime": True,
            "tags": [TAG],
            "targetBlank": False,
            "title": "Millrace",
            "tooltip": "",
            "type": "dashboards",
            "url": "",
        }
    ]


def _annotations() -> list[Json]:
    """Return what is marked in every graph. Two minutes hold two scrapes, so that a change between them is seen."""
    generation = BOARD.series("millrace_config_generation")
    cpu = BOARD.series("millrace_worker_cpu_seconds_total")
    version = BOARD.series("millrace_build_info")
    return [
        {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "name": "Annotations & Alerts",
            "type": "dashboard",
        },
        _annotation("Reloads", "blue", f"changes({generation}[2m]) > 0", "Configuration reloaded", "instance"),
        _annotation(
            "Restarts",
            "orange",
            f"max by (instance, worker) (resets({cpu}[2m])) > 0",
            "Worker restarted",
            "instance,worker",
        ),
        _annotation(
            "Releases",
            "purple",
            f"group by (version) ({version}) unless group by (version) ({version} offset 5m)",
            "New version",
            "version",
        ),
        _annotation("Alerts", "red", ALERTS, "{{alertname}}", "severity,model,upstream,instance"),
    ]


def _annotation(name: str, colour: str, expression: str, title: str, tags: str) -> Json:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": expression,
        "hide": False,
        "iconColor": colour,
        "name": name,
        "step": "60s",
        "tagKeys": tags,
        "target": {"expr": expression, "refId": f"{name}-annotation"},
        "textFormat": "",
        "titleFormat": title,
        "useValueForTime": False,
    }
