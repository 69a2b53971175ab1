"""The fifth board: which objective burns, for which model, how fast, and what is left of the month.

It reads what the recording rules have recorded, as 30 days of every gateway's own series would be slow to read; the
rules in ``prometheus/rules.yaml`` must be loaded. What is recorded is kept per model and not per gateway, so that the
variable *Instance* has no effect on it.
"""

from __future__ import annotations

from dashboards.board import Board, Row, custom
from dashboards.measures import OVERVIEW, SLO, STREAMS, UPSTREAMS
from dashboards.objectives import BUDGET_WINDOW, JUDGED, OBJECTIVES, TARGET, errors, missed
from dashboards.panels import BUDGET, BURN, COUNT, Column, Panel, Steps, graph, link_to, stat, states, table
from dashboards.queries import BOARD, share

CHOSEN = 'job=~"$job", model=~"$model", objective="$objective"'
KNOWN = 'ALERTS{alertname=~"Millrace.*", job=~"$job|"}'  # the alert that no gateway is there has no job
FIRING = 'ALERTS{alertname=~"Millrace.*", job=~"$job|", alertstate="firing"}'

TEXTS = {
    "finished (99.9 %)": "complete",
    "first token in time (99 %)": "ttft",
    "fast enough (99 %)": "tpot",
    "no long gap (99 %)": "smooth",
    "all at once (98 %)": "all",
}


def _of(name: str, matchers: str = CHOSEN) -> str:
    return f"{name}{{{matchers}}}"


def _every(objective: str) -> str:
    return f'job=~"$job", model=~"$model", objective="{objective}"'


def _burn(window: str, matchers: str = CHOSEN) -> str:
    return f"{_of(errors(window), matchers)} / on (objective) group_left () (1 - {TARGET})"


def _left(matchers: str) -> str:
    return f"1 - {_burn(BUDGET_WINDOW, matchers)}"


def _worst(expression: str, *by: str) -> str:
    return f"max by ({', '.join(by)}) ({expression})" if by else f"max ({expression})"


def _pair(title: str, says: str, long: str, short: str, factor: float) -> Panel:
    steps: Steps = (("transparent", None), ("red", factor))
    return graph(
        title,
        f"{says} The worst of the chosen models. Both windows must be above {factor:g} for it to fire: the long one "
        "says that it matters, the short one that it is still going on.",
        {"long": _worst(_burn(long)), "short": _worst(_burn(short))},
        unit="none",
        width=6,
        limits=steps,
        may_be_empty="no stream missed the objective.",
    )


HEAD = (
    stat(
        "Met, 1 h",
        "Share of the streams of the last hour that met *Objective*, of the worst of the chosen models.",
        f"1 - {_worst(_of(errors('1h')))}",
        unit="percentunit",
        width=4,
        decimals=2,
    ),
    stat(
        "Target",
        "What share of the streams should meet *Objective*, by the rules.",
        f'{TARGET}{{objective="$objective"}}',
        unit="percentunit",
        width=4,
        decimals=1,
        nothing="Rules not loaded",
    ),
    stat(
        "Burn rate, 1 h",
        "How many times faster than allowed the last hour used up the budget, for the worst of the chosen models.",
        _worst(_burn("1h")),
        unit="none",
        steps=BURN,
        width=4,
        decimals=1,
        may_be_empty="no stream missed the objective.",
    ),
    stat(
        "Burn rate, 3 d",
        "The same over three days. Above 1 the budget will not last for the month.",
        _worst(_burn("3d")),
        unit="none",
        steps=(("green", None), ("orange", 1), ("red", 3)),
        width=4,
        decimals=1,
        may_be_empty="no stream missed the objective.",
    ),
    stat(
        "Budget left, 30 d",
        "What is left of the budget of 30 days, of the model that has least. Below 0 the objective is broken.",
        f"min({_left(CHOSEN)})",
        unit="percentunit",
        steps=BUDGET,
        width=4,
        decimals=1,
    ),
    stat(
        "Streams judged, 30 d",
        "Streams that the budget is reckoned from. Of a few hundred, a single one is much.",
        BOARD.increase(JUDGED, over=BUDGET_WINDOW, objective="$objective"),
        unit="short",
        width=4,
        decimals=0,
        is_instant=True,
    ),
)

BURNING = (
    _pair("Page: 14.4 times, 1 h and 5 min", "A fiftieth of the month's budget in an hour.", "1h", "5m", 14.4),
    _pair("Page: 6 times, 6 h and 30 min", "A twentieth of the month's budget in six hours.", "6h", "30m", 6),
    _pair("Ticket: 3 times, 1 d and 2 h", "A tenth of the month's budget in a day.", "1d", "2h", 3),
    _pair("Ticket: once, 3 d and 6 h", "A tenth of the month's budget in three days.", "3d", "6h", 1),
)


def _matrix() -> Panel:
    columns = [
        Column(
            title=objective.title.upper() if objective.title in ("Ttft", "Tpot") else objective.title,
            expression=f"min by (model) ({_left(_every(objective.name))})",
            unit="percentunit",
            steps=BUDGET,
        )
        for objective in OBJECTIVES
    ]
    streams_judged = Column(
        title="Streams",
        expression=BOARD.increase(JUDGED, "model", over=BUDGET_WINDOW, objective="all"),
        unit=COUNT,
    )
    return table(
        "Budget left, by model and objective",
        "What is left of the budget of 30 days. Red is spent. Goodput counts a stream that missed anything. Click a "
        "model to see why.",
        {"model": "Model"},
        (streams_judged, *columns),
        links={
            "model": (
                link_to(SLO, "Only this model", model="${__value.raw}"),
                link_to(STREAMS, "Streams of this model", model="${__value.raw}"),
                link_to(UPSTREAMS, "Upstreams of this model", model="${__value.raw}"),
                link_to(OVERVIEW, "Overview of this model", model="${__value.raw}"),
            )
        },
        sort_by="Streams",
        width=12,
    )


BUDGETS = (
    _matrix(),
    graph(
        "Budget left, by model",
        "What was left of the budget of the 30 days before each moment, for *Objective*. It rises again as bad days "
        "fall out of the 30.",
        {"{{model}}": f"min by (model) ({_left(CHOSEN)})"},
        unit="percentunit",
        width=12,
        legend="table",
        least=None,
        most=1,
    ),
)

WHERE = (
    graph(
        "Burn rate by model, 1 h",
        "How many times faster than allowed each model used up its budget for *Objective*.",
        {"{{model}}": _worst(_burn("1h"), "model")},
        unit="none",
        legend="table",
        limits=(("transparent", None), ("orange", 1), ("red", 14.4)),
        may_be_empty="no stream missed the objective.",
    ),
    graph(
        "Streams that missed, by model",
        "In an hour, at the rate of the last five minutes, for *Objective*. A high share of few streams is a low line "
        "here.",
        {"{{model}}": f"sum by (model) ({_of(missed('5m'))}) * 3600"},
        unit="short",
        legend="table",
        stack="normal",
        may_be_empty="no stream missed the objective.",
    ),
    graph(
        "Streams that missed, by objective",
        "Streams in a second that missed each objective. One stream may miss several; `all` counts it once. Read from "
        "the gateways' own counters, so that *Instance* has its effect.",
        {"{{objective}}": BOARD.rate(JUDGED, "objective", met="false")},
        unit="reqps",
        may_be_empty="every stream met every objective.",
    ),
    table(
        "By gateway, over the whole time range",
        "Share of each gateway's streams that missed *Objective*, from its own counter. One gateway alone is its "
        "machine or its configuration; all alike are a provider.",
        {"instance": "Instance"},
        (
            Column(
                title="Streams",
                expression=BOARD.increase(JUDGED, "instance", objective="$objective"),
                unit=COUNT,
            ),
            Column(
                title="Missed",
                expression=share(
                    BOARD.increase(JUDGED, "instance", objective="$objective", met="false"),
                    BOARD.increase(JUDGED, "instance", objective="$objective"),
                ),
                unit="percentunit",
            ),
        ),
        sort_by="Missed",
        width=24,
        height=6,
    ),
)

ALARMS = (
    table(
        "Alerts",
        "What fires or is about to. `runbook.md` has a section for each.",
        {"alertname": "Alert", "severity": "Severity", "alertstate": "State"}
        | {"model": "Model", "upstream": "Upstream", "instance": "Instance"},
        (
            Column(
                title="Series",
                expression=f"count by (alertname, severity, alertstate, model, upstream, instance) ({KNOWN})",
                unit="none",
                width=80,
            ),
        ),
        width=10,
        may_be_empty="nothing fires.",
    ),
    states(
        "Alerts over time",
        "When each alert was pending and when it fired, for any model, upstream or gateway.",
        f"max by (alertname) ({FIRING} * 2 or {KNOWN})",
        legend="{{alertname}}",
        names={"1": ("pending", "yellow"), "2": ("firing", "red")},
        width=14,
        height=8,
        may_be_empty="nothing fired.",
    ),
)

BOARD_SLO = Board(
    uid=SLO,
    title="SLO drill-down",
    says="Which objective burns, for which model, how fast, and what is left. Needs the recording rules.",
    since="now-24h",
    refresh="1m",
    variables=(custom("objective", "Objective", "complete", TEXTS),),
    rows=(
        Row("", HEAD),
        Row("How fast it burns", BURNING),
        Row("What is left", BUDGETS),
        Row("Where it comes from", WHERE),
        Row("Alerts", ALARMS),
    ),
)
