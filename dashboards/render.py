"""A board as one HTML page, for who has a Prometheus and no Grafana: a picture of it, and nothing to click.

    python -m dashboards.render --prometheus http://localhost:9090 --board overview --since 15m --out overview.html

Every panel is asked for and drawn as in Grafana, where the board has placed it, but for rows that are folded away.
The page needs nothing but itself. The picture in the README is made by ``python -m tests.dashboards.picture``, which
runs a gateway under traffic for some minutes, renders the board and takes a screenshot.

A Prometheus that cannot be reached raises ``OSError``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode
from urllib.request import urlopen

from dashboards.board import CHOICES, Board
from dashboards.boards import BOARDS
from dashboards.drawing import COLOURS, OTHERS, Frame, Line, Points, bands, graph, heatmap, in_words, sparkline
from dashboards.queries import runnable

WIDTH, HEAD = 1440, 50
CELL, GAP = 30, 8
TIMEOUT_S = 30.0

Json = Mapping[str, Any]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

STYLE = """
body{margin:0;background:#111217;color:#d8d9da;font:13px Inter,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
header{display:flex;align-items:center;gap:7px;height:50px;padding:0 10px;box-sizing:border-box;font-size:12px}
header b{font-size:17px;font-weight:500;margin-right:10px;white-space:nowrap}
header span{border:1px solid #2f3037;border-radius:3px;overflow:hidden;white-space:nowrap}
header span i{font-style:normal;display:inline-block;padding:4px 8px;background:#22252b;color:#9fa7b3}
header span em{font-style:normal;padding:4px 8px}
header span:last-child{margin-left:auto}
main{position:relative;margin:0 8px}
h2{position:absolute;margin:0;font-size:15px;font-weight:500;line-height:30px}
h2:before{content:"\\2304";margin-right:8px;color:#9fa7b3}
section{position:absolute;box-sizing:border-box;background:#181b1f;border:1px solid #24262c;border-radius:3px;
overflow:hidden}
h3{margin:0;padding:6px 9px 0;font-size:13px;font-weight:500;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
svg{display:block}text{fill:#9fa7b3;font-size:11px}
.stat{text-align:center;font-weight:500;position:absolute;left:0;right:0;white-space:nowrap}
.behind{position:absolute;left:0;bottom:0}
.keys{padding:0 9px;font-size:11.5px;line-height:17px;color:#c7d0d9;max-height:36px;overflow:hidden}
.keys span{margin-right:12px;white-space:nowrap}.keys i,td i{display:inline-block;width:13px;height:4px;
border-radius:2px;margin-right:6px;vertical-align:middle}
table{border-collapse:collapse;width:100%;font-size:12.5px}
th{color:#6e9fff;font-weight:500;text-align:right;padding:5px 9px;border-bottom:1px solid #2c2f36}
td{text-align:right;padding:4.5px 9px;border-bottom:1px solid #202228;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.keys td,.keys th{padding:0 6px;border:0;font-size:11.5px;line-height:17px}
.none{color:#6b7280;text-align:center;padding-top:24px}
"""


@dataclass(frozen=True, slots=True)
class Screen:
    """What is on the screen: a Prometheus at ``url``, a time range, and the values of variables."""

    url: str
    begin_s: float
    end_s: float
    interval: str
    values: Mapping[str, str]

    @property
    def step_s(self) -> float:
        """From one point of a line to the next."""
        return max(1.0, (self.end_s - self.begin_s) / 150)

    def series(self, expression: str) -> list[tuple[Json, Points]]:
        """Return the labels and points of each series that a graph has."""
        times = {"start": self.begin_s, "end": self.end_s, "step": self.step_s}
        found = self._get("query_range", expression, times)
        return [(one["metric"], [(float(at_s), float(value)) for at_s, value in one["values"]]) for one in found]

    def rows(self, expression: str) -> list[tuple[Json, float]]:
        """Return the labels and the value of each series at the end of the range."""
        found = self._get("query", expression, {"time": self.end_s})
        return [(one["metric"], float(one["value"][1])) for one in found]

    def _get(self, path: str, expression: str, times: Mapping[str, float]) -> list[Json]:
        known = {"__range": f"{int(self.end_s - self.begin_s)}s"} | dict(self.values)
        query = urlencode({"query": runnable(expression, known, interval=self.interval), **times})
        with urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=TIMEOUT_S) as answer:  # noqa: S310, as it was told
            data = json.load(answer)["data"]
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]


def render(board: Board, screen: Screen) -> str:
    """Return the page."""
    document = cast("Json", board.as_json())
    parts = []
    for panel in _open(document):
        box = _box(panel["gridPos"])
        style = ";".join(f"{name}:{value}px" for name, value in box.items())
        if panel["type"] == "row":
            parts.append(f'<h2 style="{style}">{escape(panel["title"])}</h2>')
        else:
            inside = _DRAWN[panel["type"]](panel, screen, box["width"] - 2, box["height"] - 2)
            title, says = escape(panel["title"]), escape(panel["description"])
            parts.append(f'<section style="{style}" title="{says}"><h3>{title}</h3>{inside}</section>')
    return (
        f'<!doctype html><meta charset="utf-8"><title>{escape(document["title"])}</title><style>{STYLE}</style>'
        f'<body style="width:{WIDTH}px">{_head(document, screen)}'
        f"<main>{''.join(parts)}</main>"
    )


def _open(document: Json) -> list[Json]:
    """Return the panels and headings that are not folded away."""
    return [panel for panel in document["panels"] if not (panel["type"] == "row" and panel["collapsed"])]


def _box(place: Json) -> dict[str, int]:
    column = (WIDTH - 16 + GAP) / 24
    return {
        "left": round(place["x"] * column),
        "top": place["y"] * (CELL + GAP),
        "width": round(place["w"] * column) - GAP,
        "height": place["h"] * (CELL + GAP) - GAP,
    }


def _head(document: Json, screen: Screen) -> str:
    pills = []
    for variable in document["templating"]["list"]:
        if variable["type"] != "datasource":
            chosen = variable["current"].get("text", "")
            pills.append((variable["label"], chosen if isinstance(chosen, str) else ", ".join(chosen)))
    minutes = round((screen.end_s - screen.begin_s) / 60)
    pills.append(("Last", f"{minutes} minutes, until {time.strftime('%H:%M', time.localtime(screen.end_s))}"))
    told = "".join(f"<span><i>{escape(name)}</i><em>{escape(value)}</em></span>" for name, value in pills)
    return f"<header><b>{escape(document['title'])}</b>{told}</header>"


# --- the kinds of panel


def _stat(panel: Json, screen: Screen, width: int, height: int) -> str:
    defaults, (target,) = panel["fieldConfig"]["defaults"], panel["targets"]
    if target["instant"]:
        points: Points = [(screen.end_s, value) for _, value in screen.rows(target["expr"])]
    else:
        points = next((points for _, points in screen.series(target["expr"])), ())
    value = next((value for _, value in reversed(points) if math.isfinite(value)), math.nan)
    colour = _judged(defaults, value)
    if math.isnan(value):
        words = defaults["noValue"]
        colour = COLOURS["text"]
    else:
        words = in_words(value, defaults["unit"], defaults.get("decimals"))
    size = 34 if height > 130 else 27
    return (
        f'<div class="behind">{sparkline(points, width, height // 3, colour)}</div>'
        f'<div class="stat" style="top:{height * 0.52 - size * 0.45:.0f}px;font-size:{size}px;color:{colour}">'
        f"{escape(words)}</div>"
    )


def _judged(defaults: Json, value: float) -> str:
    """Return the colour of a value: that of the last threshold below it, or the fixed one."""
    if defaults["color"]["mode"] == "fixed":
        return COLOURS[defaults["color"]["fixedColor"]]
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    return COLOURS[steps[-1]["color"]]


def _lines(panel: Json, screen: Screen) -> list[Line]:
    """Return the lines of a graph, in the order of its legend; a name that has no colour gets the next one."""
    named = {
        override["matcher"]["options"]: {item["id"]: item["value"] for item in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    found = [
        (_legend(target["legendFormat"], labels), points)
        for target in panel["targets"]
        for labels, points in screen.series(target["expr"])
        if any(math.isfinite(value) for _, value in points)
    ]
    others = sorted({name for name, _ in found} - named.keys())
    lines = []
    for name, points in found:
        special = named.get(name, {})
        colour = special["color"]["fixedColor"] if "color" in special else ""
        hue = COLOURS[colour] if colour else OTHERS[others.index(name) % len(OTHERS)]
        lines.append(Line(name, hue, points, is_dashed="custom.lineStyle" in special))
    return lines


def _legend(text: str, labels: Json) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: str(labels.get(match[1], "")), text).strip()


def _graph(panel: Json, screen: Screen, width: int, height: int) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    lines = _lines(panel, screen)
    if not lines:
        return f'<div class="none">{escape(defaults["noValue"])}</div>'
    if custom["stacking"]["mode"] == "percent":
        lines, unit, defaults = _shares(lines), "percentunit", {**defaults, "max": 1}
    is_table = panel["options"]["legend"]["displayMode"] == "table"
    shown = [line for line in lines if any(value for _, value in line.points if math.isfinite(value))] or lines
    keys = _table_of(shown, unit) if is_table else _keys(shown)
    legend_height = min(6, len(shown) + 1) * 18 + 4 if is_table else 38
    steps = defaults["thresholds"]["steps"] if custom["thresholdsStyle"]["mode"] != "off" else []
    drawn = graph(
        lines,
        Frame(width, height - 26 - legend_height, screen.begin_s, screen.end_s),
        unit,
        is_stacked=custom["stacking"]["mode"] != "none",
        bars=custom["drawStyle"] == "bars",
        fill=custom["fillOpacity"] / 100,
        low=defaults.get("min"),
        high=defaults.get("max"),
        limits=[(step["value"], COLOURS[step["color"]]) for step in steps if step["value"] is not None],
    )
    return drawn + keys


def _shares(lines: Sequence[Line]) -> list[Line]:
    total: dict[float, float] = {}
    for line in lines:
        for at_s, value in line.points:
            total[at_s] = total.get(at_s, 0.0) + (value if math.isfinite(value) else 0.0)
    return [
        Line(
            line.name, line.colour, [(at_s, value / total[at_s] if total[at_s] else 0.0) for at_s, value in line.points]
        )
        for line in lines
    ]


def _keys(lines: Sequence[Line]) -> str:
    keys = (f'<span><i style="background:{line.colour}"></i>{escape(line.name)}</span>' for line in lines)
    return f'<div class="keys">{"".join(keys)}</div>'


def _table_of(lines: Sequence[Line], unit: str) -> str:
    rows = []
    for line in lines:
        known = [value for _, value in line.points if math.isfinite(value)]
        told = (in_words(value, unit) for value in (sum(known) / len(known), max(known), known[-1]))
        cells = "".join(f"<td>{value}</td>" for value in told)
        rows.append(f'<tr><td><i style="background:{line.colour}"></i>{escape(line.name)}</td>{cells}</tr>')
    head = "<tr><th>Name</th><th>Mean</th><th>Max</th><th>Last</th></tr>"
    return f'<div class="keys" style="max-height:none"><table>{head}{"".join(rows)}</table></div>'


def _heatmap(panel: Json, screen: Screen, width: int, height: int) -> str:
    unit = panel["options"]["yAxis"]["unit"]
    found = sorted(screen.series(panel["targets"][0]["expr"]), key=lambda one: float(one[0]["le"]))
    rows, below = [], dict[float, float]()
    for labels, points in found:
        bound = float(labels["le"])
        name = "∞" if math.isinf(bound) else in_words(bound, unit)
        rows.append((name, [(at_s, value - below.get(at_s, 0.0)) for at_s, value in points]))
        below = dict(points)
    used = [place for place, (_, points) in enumerate(rows) if any(value > 1e-9 for _, value in points)]
    if not used:
        return '<div class="none">No data</div>'
    rows = rows[max(0, used[0] - 1) : used[-1] + 2]
    return heatmap(rows, Frame(width, height - 30, screen.begin_s, screen.end_s))


def _states(panel: Json, screen: Screen, width: int, height: int) -> str:
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    states = {float(value): (one["text"], COLOURS[one["color"]]) for value, one in mapping["options"].items()}
    (target,) = panel["targets"]
    rows = [(_legend(target["legendFormat"], labels), points) for labels, points in screen.series(target["expr"])]
    if not rows:
        return '<div class="none">No data</div>'
    drawn = bands(rows, Frame(width, height - 52, screen.begin_s, screen.end_s), states)
    return drawn + _keys([Line(name, colour, []) for name, colour in states.values()])


def _table(panel: Json, screen: Screen, _width: int, height: int) -> str:
    organize = panel["transformations"][1]["options"]
    keys = [name for name in organize["renameByName"] if not name.startswith("Value")]
    headings = list(organize["renameByName"].values())
    looks = {
        override["matcher"]["options"]: {item["id"]: item["value"] for item in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for heading, target in zip(headings[len(keys) :], panel["targets"], strict=True):
        for labels, value in screen.rows(target["expr"]):
            rows.setdefault(tuple(labels.get(key, "") for key in keys), {})[heading] = value
    for order in reversed(panel["options"]["sortBy"]):
        by = order["displayName"]
        rows = dict(sorted(rows.items(), key=lambda row: row[1].get(by, -math.inf), reverse=order["desc"]))
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(key)}</td>' for key in row)}"
        f"{''.join(_cell(values.get(heading, math.nan), looks[heading]) for heading in headings[len(keys) :])}</tr>"
        for row, values in list(rows.items())[: (height - 58) // 27]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: float, look: Json) -> str:
    if math.isnan(value):
        return "<td>–</td>"
    colour, words = COLOURS["text"], in_words(value, look["unit"], look.get("decimals"))
    if "thresholds" in look:
        colour = _judged({"color": look["color"], "thresholds": look["thresholds"]}, value)
    for mapping in look.get("mappings", []):
        one = mapping["options"].get(f"{value:g}")
        if one:
            colour, words = COLOURS[one["color"]], one["text"]
    return f'<td style="color:{colour}">{escape(words)}</td>'


_DRAWN = {"stat": _stat, "timeseries": _graph, "heatmap": _heatmap, "state-timeline": _states, "table": _table}


# --- the command


def screen_of(url: str, *, since_s: float, end_s: float, interval: str, **chosen: str) -> Screen:
    """Return a screen on which every variable is at *All*, or as the boards begin with, but for ``chosen``."""
    known = {name: value for name, (_, value, _) in CHOICES.items()}
    values = known | {"job": ".+", "instance": ".+", "objective": "complete"} | chosen
    return Screen(url.rstrip("/"), end_s - since_s, end_s, interval, values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Render one board into a file."""
    boards = {board.uid.removeprefix("millrace-"): board for board in BOARDS}
    parser = argparse.ArgumentParser(prog="python -m dashboards.render", description="Draw a board without Grafana.")
    parser.add_argument("--prometheus", metavar="URL", default="http://localhost:9090")
    parser.add_argument("--board", choices=boards, default="overview")
    parser.add_argument("--since", metavar="TIME", default="1h", help="how far back, such as 15m or 6h")
    parser.add_argument("--interval", metavar="TIME", default="1m", help="what rates are over: four scrapes")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("board.html"))
    options = parser.parse_args(arguments)
    found = re.fullmatch(r"(\d+)([smhd])", options.since)
    if not found:
        parser.error(f"--since: expected a number and s, m, h or d, got {options.since}")
    since_s = int(found[1]) * _SECONDS[found[2]]
    screen = screen_of(options.prometheus, since_s=since_s, end_s=time.time(), interval=options.interval)
    options.out.write_text(render(boards[options.board], screen), "utf-8")


if __name__ == "__main__":
    main()
