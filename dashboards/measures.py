"""What several boards show, worded once: objectives met, budgets burnt, and how fast and slow an answer came."""

from __future__ import annotations

from dashboards.objectives import JUDGED
from dashboards.queries import BOARD, RATE, Wanted, share

OVERVIEW = "millrace-overview"
STREAMS = "millrace-streams"
UPSTREAMS = "millrace-upstreams"
GATEWAY = "millrace-gateway"
SLO = "millrace-slo"
"""The boards' own names in Grafana's addresses."""

ENDED = "millrace_requests_total"


def attained(objective: str, *by: str, over: str = RATE) -> str:
    """Return the share of streams that met an objective, as was decided for each of them when it ended."""
    grown = BOARD.rate if over == RATE else BOARD.increase
    met = grown(JUDGED, *by, over=over, objective=objective, met="true")
    return share(met, grown(JUDGED, *by, over=over, objective=objective))


def missed(objective: str, *by: str, over: str) -> str:
    """Return the share of streams that missed an objective."""
    part = BOARD.increase(JUDGED, *by, over=over, objective=objective, met="false")
    return share(part, BOARD.increase(JUDGED, *by, over=over, objective=objective))


def within(name: str, variable: str) -> str:
    """Return the share of what a histogram has counted that was within the target of a variable.

    An exposition writes the bound 2 as ``2`` or as ``2.0``; the pattern takes both.
    """
    counted = BOARD.rate(name, part="bucket", le="@")
    pattern = f'le=~"${variable}([.]0)?"'
    return share(counted.replace('le="@"', pattern), BOARD.rate(name, part="count"))


def ended(*by: str, over: str = RATE, outcome: Wanted = "", stream: Wanted = "") -> str:
    """Return calls that ended, in a second or in all."""
    grown = BOARD.rate if over == RATE else BOARD.increase
    return grown(ENDED, *by, over=over, outcome=outcome, stream=stream)


def quantiles(name: str, *quantities: float) -> dict[str, str]:
    """Return quantiles of a histogram by their legends."""
    return {f"p{q * 100:g}": BOARD.quantile(q, name) for q in quantities}
