"""The objectives, and the recording rules that say how fast their budgets are used up.

Whether a stream has met an objective is decided for each one when it ends, and counted; nothing here guesses it from
buckets. For every window there are three series, each by job, model and objective:

    millrace:slo_streams:rate1h         streams that were judged, in a second
    millrace:slo_missed:rate1h          those that missed the objective
    millrace:slo_errors:ratio_rate1h    the share that missed it

Long windows are made at longer intervals, and that of the whole budget from the recorded rates of five minutes, so that
nothing reads 30 days of every gateway's own series twice a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from dashboards.document import Json
from dashboards.queries import RULES, at_least_none

JUDGED = "millrace_slo_streams_total"
BY = ("job", "model", "objective")

SHORT_WINDOWS = ("5m", "30m", "1h", "2h", "6h")
LONG_WINDOWS = ("1d", "3d")
BUDGET_WINDOW = "30d"


@dataclass(frozen=True, slots=True)
class Objective:
    """What share of a model's streams should be good, what good means, and what is felt of the others."""

    name: str
    title: str
    target: Decimal
    should: str
    felt: str

    @property
    def budget(self) -> Decimal:
        """The share that may be bad."""
        return 1 - self.target


OBJECTIVES = (
    Objective("complete", "Completion", Decimal("0.999"), "be finished as the provider ends them", "streams break off"),
    Objective("ttft", "Ttft", Decimal("0.99"), "have their first token in time", "first tokens are late"),
    Objective("tpot", "Tpot", Decimal("0.99"), "be fast enough from token to token", "streams are slow"),
    Objective("smooth", "Smoothness", Decimal("0.99"), "have no long gap", "streams stutter"),
    Objective("all", "Goodput", Decimal("0.98"), "meet every objective at once", "streams are not good"),
)
"""``all`` is watched on the boards and wakes nobody: one of the others does."""


def streams(window: str) -> str:
    """Return the name of the series of streams that were judged."""
    return f"millrace:slo_streams:rate{window}"


def missed(window: str) -> str:
    """Return the name of the series of streams that missed an objective."""
    return f"millrace:slo_missed:rate{window}"


def errors(window: str) -> str:
    """Return the name of the series of the share that missed it."""
    return f"millrace:slo_errors:ratio_rate{window}"


TARGET = "millrace:slo_target:ratio"
"""The name of the series of the targets themselves, so that boards and rules cannot disagree."""


def recording_groups() -> list[Json]:
    """Return the groups of recording rules."""
    return [
        _group("millrace-targets", _targets()),
        _group("millrace-objectives", (rule for window in SHORT_WINDOWS for rule in _window(window))),
        _group("millrace-objectives-long", (rule for window in LONG_WINDOWS for rule in _window(window)), "2m"),
        _group("millrace-objectives-budget", _budget(), "5m"),
    ]


def _group(name: str, rules: Iterator[Json], interval: str = "") -> Json:
    return {"name": name} | ({"interval": interval} if interval else {}) | {"rules": list(rules)}


def _targets() -> Iterator[Json]:
    for objective in OBJECTIVES:
        yield {"record": TARGET, "expr": f"vector({objective.target})", "labels": {"objective": objective.name}}


def _window(window: str) -> Iterator[Json]:
    every = RULES.rate(JUDGED, *BY, over=window)
    bad = RULES.rate(JUDGED, *BY, over=window, met="false")
    yield {"record": streams(window), "expr": every}
    yield {"record": missed(window), "expr": at_least_none(bad, every)}
    yield _ratio(window)


def _budget() -> Iterator[Json]:
    for name in (streams, missed):
        yield {"record": name(BUDGET_WINDOW), "expr": f"avg_over_time({name('5m')}[{BUDGET_WINDOW}])"}
    yield _ratio(BUDGET_WINDOW)


def _ratio(window: str) -> Json:
    return {"record": errors(window), "expr": f"{missed(window)} / ({streams(window)} > 0)"}
