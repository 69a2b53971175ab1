"""The few kinds of panel that the boards are made of, each a function with only what differs from one to the next.

They are in Grafana's classic schema, which 10.4 to 13 read alike. What holds for all of them: a description that says
what is seen and names the metric; a unit; the data source of the variable; colours that a name keeps wherever it
appears; and no colour that judges (``steps``) unless there is a judgement to make.

``may_be_empty`` is the reason why a panel may show nothing, or nothing but zeros, in a healthy system. It is part of
the description, and tests excuse no other panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from dashboards.document import Json
from dashboards.queries import families, recorded

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}

FOLLOWED = ("job", "instance", "model", "upstream")
"""The variables at the head of every board; a panel says which of them have no effect on it."""

Steps = Sequence[tuple[str, float | None]]
"""Colours, each with the value from which on it holds; that of the first is ``None``."""

GOOD_ABOVE_999: Steps = (("red", None), ("orange", 0.99), ("green", 0.999))
GOOD_ABOVE_99: Steps = (("red", None), ("orange", 0.95), ("green", 0.99))
BAD_ABOVE_1_PERCENT: Steps = (("green", None), ("orange", 0.001), ("red", 0.01))
BURN: Steps = (("green", None), ("yellow", 1), ("orange", 6), ("red", 14.4))
BUDGET: Steps = (("red", None), ("orange", 0), ("yellow", 0.25), ("green", 0.5))
NONE_IS_GOOD: Steps = (("green", None), ("red", 1))

COUNT = "locale"
"""The unit of what is counted: 1,234. An increase is extrapolated, and 48.7 calls would read oddly."""

_QUANTILES = {"p5": "dark-purple", "p50": "light-blue", "p95": "blue", "p99": "dark-blue", "mean": "purple"}
_FAULTS = {"gateway": "red", "provider": "orange", "client left": "purple", "refused": "yellow"}
_PHASES = {
    "queue": "yellow",
    "connect": "orange",
    "prefill": "purple",
    "reasoning": "light-blue",
    "decode": "blue",
    "draining": "red",
}

PALETTE: Mapping[str, Mapping[str, str]] = {
    "": _QUANTILES
    | _FAULTS
    | {"target": "red", "client": "blue", "in": "purple", "out": "blue", "long": "dark-blue", "short": "light-blue"},
    "outcome": {
        "completed": "green",
        "client_aborted": "purple",
        "rejected": "yellow",
        "upstream_error": "orange",
        "truncated": "dark-orange",
        "stalled": "light-orange",
        "deadline": "semi-dark-orange",
        "gateway_error": "red",
        "drained": "dark-red",
    },
    "phase": _PHASES | {"pre_first_token": "purple", "mid_stream": "blue"},
    "resolution": {"recovered": "green", "failed_over": "blue", "gave_up": "red", "client_left": "purple"},
    "result": {"completed": "green", "failed": "orange", "cancelled": "purple"},
    "state": {"closed": "green", "half_open": "yellow", "open": "red"},
}
"""The colours that a name keeps, under the label it is a value of; under the empty one, those of written legends."""

_NO_TRAFFIC: Json = {"type": "special", "options": {"match": "nan", "result": {"index": 0, "text": "No traffic"}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression of a panel; ``legend`` is Grafana's, such as ``{{model}}``."""

    expression: str
    legend: str = "__auto"
    form: Literal["time_series", "table", "heatmap"] = "time_series"
    is_instant: bool = False
    with_exemplars: bool = False

    def as_json(self, letter: str) -> Json:
        """Return the query as Grafana's target ``letter``."""
        target: Json = {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expression,
            "format": self.form,
            "instant": self.is_instant,
            "legendFormat": self.legend,
            "range": not self.is_instant,
            "refId": letter,
        }
        return target | {"exemplar": True} if self.with_exemplars else target


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel, without its place: where it is, the board decides."""

    kind: str
    title: str
    says: str
    queries: tuple[Query, ...]
    width: int
    height: int
    defaults: Json
    options: Json
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()
    links: tuple[Json, ...] = ()
    may_be_empty: str = ""
    extra: Json = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What is seen, why there may be nothing to see, what has no effect on it, and which metrics it comes from."""
        paragraphs = [self.says]
        if self.may_be_empty:
            paragraphs.append(f"May be empty: {self.may_be_empty}")
        expressions = [query.expression for query in self.queries]
        deaf = [name for name in FOLLOWED if not any(f'"${name}' in expression for expression in expressions)]
        if deaf:
            paragraphs.append("Does not follow " + ", ".join(f"*{name.capitalize()}*" for name in deaf) + ".")
        names = [metric.name for expression in expressions for metric in families(expression)]
        names += [name for expression in expressions for name in recorded(expression)]
        names += [name for name in ("up", "ALERTS") if any(f"{name}{{" in expression for expression in expressions)]
        paragraphs.append("Metric: " + ", ".join(f"`{name}`" for name in dict.fromkeys(names)))
        return "\n\n".join(paragraphs)

    def as_json(self, *, number: int, x: int, y: int) -> Json:
        """Return the panel at its place."""
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        panel: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [query.as_json(letter) for query, letter in zip(self.queries, letters, strict=False)],
            "fieldConfig": {"defaults": self.defaults, "overrides": list(self.overrides)},
            "options": self.options,
        }
        if self.transformations:
            panel["transformations"] = list(self.transformations)
        if self.links:
            panel["links"] = list(self.links)
        return panel | self.extra


def link_to(uid: str, title: str, **variables: str) -> Json:
    """Return a link to another board, with the same time range and variables but for those that are given."""
    parts = [f"${{{name}:queryparam}}" for name in ("datasource", *FOLLOWED) if name not in variables]
    parts += [f"var-{name}={value}" for name, value in variables.items()]
    return {"title": title, "url": f"/d/{uid}?{'&'.join(parts)}&${{__url_time_range}}"}


def stat(
    title: str,
    says: str,
    expression: str,
    *,
    unit: str,
    steps: Steps = (),
    width: int = 3,
    height: int = 4,
    is_instant: bool = False,
    decimals: int | None = None,
    nothing: str = "No traffic",
    link: Json | None = None,
    may_be_empty: str = "",
) -> Panel:
    """Return one number with its recent course behind it."""
    defaults: Json = {
        "color": {"mode": "thresholds"} if steps else {"mode": "fixed", "fixedColor": "blue"},
        "mappings": [_NO_TRAFFIC],
        "noValue": nothing,
        "thresholds": _thresholds(steps),
        "unit": unit,
    }
    return Panel(
        kind="stat",
        title=title,
        says=says,
        queries=(Query(expression=expression, is_instant=is_instant),),
        width=width,
        height=height,
        defaults=defaults if decimals is None else defaults | {"decimals": decimals},
        options={
            "colorMode": "value",
            "graphMode": "none" if is_instant else "area",
            "justifyMode": "center",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "value",
            "wideLayout": True,
        },
        links=(link,) if link else (),
        may_be_empty=may_be_empty,
    )


def graph(
    title: str,
    says: str,
    expressions: Mapping[str, str],
    *,
    unit: str,
    width: int = 8,
    height: int = 8,
    stack: Literal["", "normal", "percent"] = "",
    bars: bool = False,
    legend: Literal["list", "table"] = "list",
    limits: Steps = (),
    least: float | None = 0,
    most: float | None = None,
    exemplars: bool = False,
    may_be_empty: str = "",
) -> Panel:
    """Return lines over time. ``expressions`` gives each legend its expression; one called *target* is dashed."""
    custom: Json = {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if bars else 30 if stack else 8 if least == 0 else 0,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": stack or "none"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    defaults: Json = {
        "color": {"mode": "palette-classic-by-name"},
        "custom": custom,
        "noValue": "No data",
        "thresholds": _thresholds(limits),
        "unit": unit,
    }
    bounds: Json = {name: value for name, value in (("min", least), ("max", most)) if value is not None}
    return Panel(
        kind="timeseries",
        title=title,
        says=says,
        queries=tuple(
            Query(expression=expression, legend=name, with_exemplars=exemplars and number == 0)
            for number, (name, expression) in enumerate(expressions.items())
        ),
        width=width,
        height=height,
        defaults=defaults | bounds,
        overrides=tuple(_colours(expressions)),
        options={
            "legend": {
                "calcs": ["mean", "max", "lastNotNull"] if legend == "table" else [],
                "displayMode": legend,
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        may_be_empty=may_be_empty,
    )


def heatmap(title: str, says: str, expression: str, *, unit: str = "s", width: int = 8, height: int = 8) -> Panel:
    """Return a distribution over time: one row for each bucket, the darker the more fell into it."""
    return Panel(
        kind="heatmap",
        title=title,
        says=says,
        queries=(Query(expression=expression, legend="{{le}}", form="heatmap"),),
        width=width,
        height=height,
        defaults={"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False}}, "unit": "short"},
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {
                "exponent": 0.5,
                "fill": "blue",
                "mode": "scheme",
                "reverse": False,
                "scale": "exponential",
                "scheme": "Blues",
                "steps": 64,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: an expression with a value for each row."""

    title: str
    expression: str
    unit: str
    steps: Steps = ()
    names: Mapping[str, tuple[str, str]] | None = None
    width: int | None = None

    def properties(self) -> list[Json]:
        """Return how the column's cells look."""
        found: list[Json] = [{"id": "unit", "value": self.unit}]
        if self.unit == COUNT:
            found.append({"id": "decimals", "value": 0})
        if self.width:
            found.append({"id": "custom.width", "value": self.width})
        if self.steps:
            found.append({"id": "thresholds", "value": _thresholds(self.steps)})
        if self.names:
            found.append({"id": "mappings", "value": [_mapping(self.names)]})
        if self.steps or self.names:
            found.append({"id": "color", "value": {"mode": "thresholds"}})
            found.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        return found


def table(
    title: str,
    says: str,
    keys: Mapping[str, str],
    columns: Sequence[Column],
    *,
    links: Mapping[str, Sequence[Json]] | None = None,
    sort_by: str = "",
    width: int = 24,
    height: int = 8,
    may_be_empty: str = "",
) -> Panel:
    """Return a table with a row for each combination of ``keys``, which gives labels their headings."""
    values = [f"Value #{letter}" for letter, _ in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns, strict=False)]
    if len(columns) == 1:
        values = ["Value"]  # Grafana numbers them only where there are several
    order = [*keys, *values]
    overrides: list[Json] = [_override(column.title, column.properties()) for column in columns]
    overrides += [_override(keys[key], [{"id": "links", "value": list(found)}]) for key, found in (links or {}).items()]
    return Panel(
        kind="table",
        title=title,
        says=says,
        queries=tuple(Query(expression=column.expression, form="table", is_instant=True) for column in columns),
        width=width,
        height=height,
        defaults={
            "color": {"mode": "fixed", "fixedColor": "text"},
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True},
            "mappings": [_NO_TRAFFIC],
            "noValue": "–",
            "thresholds": _thresholds(()),
            "unit": "none",
        },
        overrides=tuple(overrides),
        options={
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
            "sortBy": [{"desc": True, "displayName": sort_by}] if sort_by else [],
        },
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate(order)},
                    "renameByName": dict(keys) | dict(zip(values, (column.title for column in columns), strict=True)),
                },
            },
        ),
        may_be_empty=may_be_empty,
    )


def states(
    title: str,
    says: str,
    expression: str,
    *,
    legend: str,
    names: Mapping[str, tuple[str, str]],
    width: int = 24,
    height: int = 6,
    may_be_empty: str = "",
) -> Panel:
    """Return bands over time, one for each series; ``names`` gives a value its name and colour."""
    return Panel(
        kind="state-timeline",
        title=title,
        says=says,
        queries=(Query(expression=expression, legend=legend),),
        width=width,
        height=height,
        defaults={
            "color": {"mode": "thresholds"},
            "custom": {"fillOpacity": 70, "lineWidth": 0},
            "mappings": [_mapping(names)],
            "noValue": "No data",
            "thresholds": _thresholds(()),
            "unit": "none",
        },
        options={
            "alignValue": "center",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        may_be_empty=may_be_empty,
    )


def _thresholds(steps: Steps) -> Json:
    found = steps or (("text", None),)
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in found]}


def _mapping(names: Mapping[str, tuple[str, str]]) -> Json:
    return {
        "type": "value",
        "options": {
            value: {"color": colour, "index": place, "text": text}
            for place, (value, (text, colour)) in enumerate(names.items())
        },
    }


def _override(name: str, properties: list[Json]) -> Json:
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def _colours(legends: Iterable[str]) -> Iterable[Json]:
    """Return an override for every name that has a colour of its own and may appear under the legends."""
    written = [{name: PALETTE[""][name]} for name in legends if name in PALETTE[""]]
    by_label = [PALETTE[legend[2:-2]] for legend in legends if legend.startswith("{{") and legend[2:-2] in PALETTE]
    for name, colour in chain.from_iterable(names.items() for names in (*written, *by_label)):
        properties: list[Json] = [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]
        if name == "target":
            properties += [
                {"id": "custom.lineStyle", "value": {"dash": [8, 8], "fill": "dash"}},
                {"id": "custom.fillOpacity", "value": 0},
                {"id": "custom.stacking", "value": {"group": "A", "mode": "none"}},
            ]
        yield _override(name, properties)
