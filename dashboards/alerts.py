"""The alerts: what pages somebody, what can wait until the morning, and what each of them says.

A page is for what users feel or will in a moment; everything else is a ticket. The budgets of the objectives are
watched as the SRE workbook says: a long window shows that it matters, a short one that it is still going on, and both
must burn. So that a quiet night wakes nobody, too few missed streams are no alert, whatever share of all they are.

Each alert names its section of the runbook and the board that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dashboards.document import Json
from dashboards.measures import GATEWAY, OVERVIEW, SLO, STREAMS, UPSTREAMS
from dashboards.objectives import OBJECTIVES, Objective, errors, missed
from dashboards.queries import RULES, at_least_none, share

Severity = Literal["page", "ticket"]

GUARD = 5
"""So many streams must have missed an objective in the long window before anybody is told."""

PAGE = ((Decimal("14.4"), "1h", "5m"), (Decimal(6), "6h", "30m"))
TICKET = ((Decimal(3), "1d", "2h"), (Decimal(1), "3d", "6h"))
"""How many times faster than allowed, over which long and which short window (SRE workbook, chapter 5)."""

NOT_CLOSED = ("open", "half_open")
"""A breaker that is open lets one call through from time to time, and is half open until that has failed."""

_SECONDS = {"h": 3600, "d": 86400}
_ROUNDED = '{{ printf "%.0f" $value }}'  # an increase is extrapolated, and 3.2 workers read oddly


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert. ``labels`` are those its series have, which the link to the board hands on where it has a variable."""

    name: str
    severity: Severity
    expression: str
    lasts: str
    summary: str
    description: str
    board: str
    labels: tuple[str, ...]

    def as_json(self, *, grafana_url: str, runbook_url: str) -> Json:
        """Return the alerting rule."""
        known = [label for label in ("job", "instance", "model", "upstream") if label in self.labels]
        variables = "&".join(f"var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in known)
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook_url}#{self.name.lower()}",
                "dashboard": f"{grafana_url}/d/{self.board}" + (f"?{variables}" if variables else ""),
            },
        }


def _burns(objective: Objective, severity: Severity) -> Alert:
    pairs = PAGE if severity == "page" else TICKET
    is_page = severity == "page"
    return Alert(
        name=f"Millrace{objective.title}Budget{'BurnsFast' if is_page else 'BurnsSlowly'}",
        severity=severity,
        expression="\nor\n".join(_pair(objective, *pair) for pair in pairs),
        lasts="2m" if is_page else "15m",
        summary=f"{{{{ $labels.model }}}}: {objective.felt}, and the error budget burns "
        + ("fast" if is_page else "slowly"),
        description=f"{{{{ $value | humanizePercentage }}}} of the streams of {{{{ $labels.model }}}} missed the "
        f"objective ({float(objective.target * 100):g} % should {objective.should}), and it goes on. "
        + (
            "At 6 times the allowed rate the budget of 30 days is gone in five days, at 14.4 times in two."
            if is_page
            else "At this rate the budget of 30 days will not last."
        ),
        board=SLO,
        labels=("job", "model", "objective"),
    )


def _pair(objective: Objective, factor: Decimal, long: str, short: str) -> str:
    wanted = f'{{objective="{objective.name}"}}'
    limit = f"{factor} * {objective.budget}"
    seconds = int(long[:-1]) * _SECONDS[long[-1]]
    return (
        "(\n"
        f"  {errors(long)}{wanted} > {limit}\n"
        f"  and {errors(short)}{wanted} > {limit}\n"
        f"  and {missed(long)}{wanted} * {seconds} >= {GUARD}\n"
        ")"
    )


def _above(part: str, whole: str, limit: str, at_least: int) -> str:
    """Return a share that is above a limit, unless it is of too few."""
    return f"({share(part, whole)}) > {limit}\nand {part} >= {at_least}"


def _objectives() -> Iterator[Alert]:
    for objective in OBJECTIVES:
        if objective.name != "all":
            yield _burns(objective, "page")
            yield _burns(objective, "ticket")


def _presence() -> Iterator[Alert]:
    yield Alert(
        name="MillraceDown",
        severity="page",
        expression='up{job=~"millrace.*"} == 0',
        lasts="2m",
        summary="{{ $labels.instance }} cannot be scraped",
        description="Prometheus has not reached the admin port of {{ $labels.instance }} for two minutes. Whether it "
        "still serves its clients nobody can see.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    yield Alert(
        name="MillraceAbsent",
        severity="page",
        expression="absent(millrace_build_info)",
        lasts="5m",
        summary="No gateway reports at all",
        description="No series of any gateway has reached Prometheus for five minutes: all are down, or it no longer "
        "knows where they are. No other alert of these rules can fire meanwhile.",
        board=GATEWAY,
        labels=(),
    )
    yield Alert(
        name="MillraceNoWorkers",
        severity="page",
        expression=f"{RULES.latest('max', 'millrace_worker_up', 'job', 'instance')} == 0",
        lasts="1m",
        summary="{{ $labels.instance }} has no worker that serves",
        description="The gateway {{ $labels.instance }} answers Prometheus and nobody else: each of its workers is "
        "down.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    yield Alert(
        name="MillraceWorkerDown",
        severity="ticket",
        expression="millrace_worker_up == 0",
        lasts="5m",
        summary="Worker {{ $labels.worker }} of {{ $labels.instance }} is down",
        description="Worker {{ $labels.worker }} of {{ $labels.instance }} has not served for five minutes and was "
        "not replaced. The others take its share.",
        board=GATEWAY,
        labels=("job", "instance", "worker"),
    )
    restarts = RULES.increase("millrace_worker_restarts_total", "job", "instance", over="15m")
    yield Alert(
        name="MillraceWorkersRestart",
        severity="ticket",
        expression=f"{restarts} >= 2",
        lasts="0m",
        summary="Workers of {{ $labels.instance }} die again and again",
        description=f"{_ROUNDED} workers of {{{{ $labels.instance }}}} had to be replaced within 15 minutes. Each took "
        "the streams it was serving with it.",
        board=GATEWAY,
        labels=("job", "instance"),
    )


def _fault_of_ours() -> Iterator[Alert]:
    calls = RULES.increase("millrace_requests_total", "job", "model", over="10m")
    broken = RULES.increase("millrace_requests_total", "job", "model", over="10m", outcome="gateway_error")
    yield Alert(
        name="MillraceGatewayErrors",
        severity="page",
        expression=_above(broken, calls, "0.01", GUARD),
        lasts="2m",
        summary="{{ $labels.model }}: calls fail by a fault of the gateway",
        description="{{ $value | humanizePercentage }} of the calls for {{ $labels.model }} ended as gateway_error in "
        "the last 10 minutes. It is neither the provider nor the client.",
        board=OVERVIEW,
        labels=("job", "model"),
    )
    yield Alert(
        name="MillraceReloadFailed",
        severity="ticket",
        expression="millrace_config_last_reload_success == 0",
        lasts="5m",
        summary="{{ $labels.instance }} has refused its configuration",
        description="The last reload of {{ $labels.instance }} did not take effect; the configuration before it is "
        "still in force, and will not be after a restart.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    yield Alert(
        name="MillraceConfigurationsDiffer",
        severity="ticket",
        expression="count by (job) (count by (job, hash) (millrace_config_info)) > 1",
        lasts="30m",
        summary="Gateways of {{ $labels.job }} run different configurations",
        description="{{ $value }} different configurations have been in force in {{ $labels.job }} for half an hour. "
        "What a client gets depends on which gateway it meets.",
        board=GATEWAY,
        labels=("job",),
    )


def _delay() -> Iterator[Alert]:
    loop = RULES.quantile(0.99, "millrace_event_loop_lag_seconds", "job", "instance", over="5m")
    yield Alert(
        name="MillraceEventLoopLags",
        severity="ticket",
        expression=f"{loop} > 0.05",
        lasts="10m",
        summary="The event loop of {{ $labels.instance }} lags",
        description="The event loop does what it is asked {{ $value | humanizeDuration }} too late (p99). Every stream "
        "of the worker waits that long.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    transit = RULES.quantile(0.99, "millrace_chunk_transit_seconds", "job", "instance", over="5m")
    yield Alert(
        name="MillraceTransitSlow",
        severity="ticket",
        expression=f"{transit} > 0.025",
        lasts="10m",
        summary="{{ $labels.instance }} is slow to hand on tokens",
        description="A delivery takes {{ $value | humanizeDuration }} from the provider's socket to the client's "
        "(p99). The objective is 1 ms.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    overhead = RULES.quantile(0.99, "millrace_overhead_seconds", "job", "instance", "stage", over="5m")
    yield Alert(
        name="MillraceOverheadHigh",
        severity="ticket",
        expression=f"{overhead} > 0.05",
        lasts="10m",
        summary="{{ $labels.instance }} delays first tokens",
        description="The gateway's own work adds {{ $value | humanizeDuration }} to a call before its first token "
        "(p99, stage {{ $labels.stage }}). The objective is 5 ms.",
        board=GATEWAY,
        labels=("job", "instance", "stage"),
    )


def _providers() -> Iterator[Alert]:
    attempts = "millrace_upstream_attempts_total"
    is_open, state = (
        "max by (job, instance, upstream) (" + RULES.series("millrace_upstream_state", state=wanted) + ")"
        for wanted in (NOT_CLOSED, "")
    )
    everywhere = f"min by (job, upstream) ({at_least_none(is_open, state)})"
    used = f"group by (job, model, upstream) (increase({RULES.series(attempts)}[1h]) > 0)"
    still = RULES.increase(attempts, "job", "model", over="15m", result="failed")
    yield Alert(
        name="MillraceModelUnavailable",
        severity="page",
        expression=f"min by (job, model) (\n  {used}\n  * on (job, upstream) group_left ()\n  {everywhere}\n) == 1"
        f"\nand {still} > 0",
        lasts="2m",
        summary="{{ $labels.model }}: every upstream is given up on",
        description="On every gateway the breaker of every upstream that {{ $labels.model }} used in the last hour is "
        "open or on probation. Its calls go to the first of them all the same, and fail.",
        board=UPSTREAMS,
        labels=("job", "model"),
    )
    still = RULES.increase(attempts, "job", "upstream", over="15m", result="failed")
    yield Alert(
        name="MillraceBreakerOpen",
        severity="ticket",
        expression=f"max by (job, upstream) ({RULES.series('millrace_upstream_state', state=NOT_CLOSED)}) == 1"
        f"\nand {still} > 0",
        lasts="10m",
        summary="{{ $labels.upstream }} is given up on",
        description="The breaker of {{ $labels.upstream }} has not closed for ten minutes on at least one gateway: "
        "whenever it lets a call through, that fails. Other upstreams take its calls, if its models have any.",
        board=UPSTREAMS,
        labels=("job", "upstream"),
    )
    failed = RULES.increase(attempts, "job", "upstream", over="10m", result="failed")
    judged = RULES.increase(attempts, "job", "upstream", over="10m", result=("completed", "failed"))
    yield Alert(
        name="MillraceUpstreamFails",
        severity="ticket",
        expression=_above(failed, judged, "0.2", GUARD),
        lasts="5m",
        summary="{{ $labels.upstream }} fails many attempts",
        description="{{ $value | humanizePercentage }} of the attempts at {{ $labels.upstream }} failed in the last "
        "10 minutes. Fallback and resume hide it from clients as long as something else answers.",
        board=UPSTREAMS,
        labels=("job", "upstream"),
    )
    lost = RULES.increase("millrace_failovers_total", "job", "model", over="15m", result="failed")
    judged = RULES.increase("millrace_failovers_total", "job", "model", over="15m", result=("completed", "failed"))
    yield Alert(
        name="MillraceFailoverExhausted",
        severity="ticket",
        expression=_above(lost, judged, "0.25", GUARD),
        lasts="5m",
        summary="{{ $labels.model }}: failing over does not help",
        description="{{ $value | humanizePercentage }} of the failovers of {{ $labels.model }} in the last 15 minutes "
        "did not save the call: the attempts after them failed as well. Calls whose client left are not among them.",
        board=UPSTREAMS,
        labels=("job", "model"),
    )
    yield Alert(
        name="MillraceRateLimitNear",
        severity="ticket",
        expression="min by (job, upstream, resource) (millrace_upstream_ratelimit_remaining_ratio) < 0.1",
        lasts="5m",
        summary="{{ $labels.upstream }}: the rate limit on {{ $labels.resource }} is nearly reached",
        description="{{ $value | humanizePercentage }} of the provider's limit on {{ $labels.resource }} is left at "
        "{{ $labels.upstream }}, and has been low for five minutes. At 0 it answers 429.",
        board=UPSTREAMS,
        labels=("job", "upstream", "resource"),
    )


def _streams() -> Iterator[Alert]:
    pair = ("job", "model", "upstream")
    stalls = RULES.increase("millrace_stalls_total", *pair, over="15m")
    attempts = RULES.increase("millrace_upstream_attempts_total", *pair, over="15m")
    yield Alert(
        name="MillraceStalls",
        severity="ticket",
        expression=_above(stalls, attempts, "0.05", GUARD),
        lasts="10m",
        summary="{{ $labels.model }}: streams of {{ $labels.upstream }} stall",
        description="There were {{ $value | humanizePercentage }} as many stalls as attempts at {{ $labels.upstream }} "
        "for {{ $labels.model }} in the last 15 minutes. Users see an answer that stands still.",
        board=STREAMS,
        labels=pair,
    )
    output = RULES.increase("millrace_output_tokens_total", "job", over="1h")
    wasted = RULES.increase("millrace_tokens_wasted_total", "job", over="1h")
    yield Alert(
        name="MillraceTokensWasted",
        severity="ticket",
        expression=f"({share(wasted, output)}) > 0.1\nand {output} >= 10000",
        lasts="15m",
        summary="{{ $labels.job }}: many generated tokens reach nobody",
        description="{{ $value | humanizePercentage }} of the tokens generated in the last hour were paid for and "
        "delivered to no client.",
        board=STREAMS,
        labels=("job",),
    )
    missing = RULES.increase("millrace_usage_total", "job", "upstream", over="1h", source="missing")
    counted = RULES.increase("millrace_usage_total", "job", "upstream", over="1h")
    yield Alert(
        name="MillraceUsageMissing",
        severity="ticket",
        expression=_above(missing, counted, "0.01", GUARD),
        lasts="15m",
        summary="{{ $labels.upstream }}: attempts without token counts",
        description="{{ $value | humanizePercentage }} of the attempts at {{ $labels.upstream }} in the last hour have "
        "no token counts. Every sum of tokens is too low by theirs.",
        board=UPSTREAMS,
        labels=("job", "upstream"),
    )


def _observer() -> Iterator[Alert]:
    logs = RULES.increase("millrace_log_records_dropped_total", "job", "instance", "level", over="15m")
    yield Alert(
        name="MillraceLogsDropped",
        severity="ticket",
        expression=f"{logs} > 0",
        lasts="0m",
        summary="{{ $labels.instance }} loses log lines",
        description=f"{_ROUNDED} lines of level {{{{ $labels.level }}}} were lost within 15 minutes, as nobody took "
        "them in time. Metrics are not affected.",
        board=GATEWAY,
        labels=("job", "instance", "level"),
    )
    spans = RULES.increase("millrace_spans_dropped_total", "job", "instance", over="15m")
    yield Alert(
        name="MillraceSpansDropped",
        severity="ticket",
        expression=f"{spans} > 0",
        lasts="0m",
        summary="{{ $labels.instance }} loses spans",
        description=f"{_ROUNDED} spans could not be exported within 15 minutes. Traces have holes.",
        board=GATEWAY,
        labels=("job", "instance"),
    )
    overflow = RULES.increase("millrace_metric_series_overflow_total", "job", "instance", "family", over="15m")
    yield Alert(
        name="MillraceSeriesOverflow",
        severity="ticket",
        expression=f"{overflow} > 0",
        lasts="0m",
        summary="{{ $labels.instance }}: {{ $labels.family }} has too many label values",
        description=f"{_ROUNDED} times within 15 minutes a label value of {{{{ $labels.family }}}} was beyond the cap "
        "and counted as other.",
        board=GATEWAY,
        labels=("job", "instance", "family"),
    )


ALERTS: tuple[Alert, ...] = (
    *_objectives(),
    *_presence(),
    *_fault_of_ours(),
    *_delay(),
    *_providers(),
    *_streams(),
    *_observer(),
)


def alert_groups(*, grafana_url: str, runbook_url: str) -> list[Json]:
    """Return the groups of alerting rules."""
    burns = [alert for alert in ALERTS if "Budget" in alert.name]
    rest = [alert for alert in ALERTS if "Budget" not in alert.name]
    return [
        {"name": name, "rules": [alert.as_json(grafana_url=grafana_url, runbook_url=runbook_url) for alert in alerts]}
        for name, alerts in (("millrace-budgets", burns), ("millrace-causes", rest))
    ]
