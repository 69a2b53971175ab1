"""For each alert, series on which it must fire and series on which it must not.

The values are those of promtool: ``0+5x60`` begins at 0 and rises by 5 each minute, 60 times; ``_`` is a minute without
a sample. A case is judged after ``after`` minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

GATEWAY = 'job="millrace", instance="a:8081"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series, and what the alert should make of them: ``labels`` and ``value`` as it tells them, or nothing."""

    series: Mapping[str, str]
    why: str
    after: int = 60
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""

    @property
    def fires(self) -> bool:
        """Whether the alert should fire."""
        return bool(self.value)


def _judged(objective: str, *, met: str, missed: str) -> dict[str, str]:
    inner = f'{GATEWAY}, model="chat", objective="{objective}"'
    return {
        f'millrace_slo_streams_total{{{inner}, met="true"}}': met,
        f'millrace_slo_streams_total{{{inner}, met="false"}}': missed,
    }


def _budgets(objective: str, title: str, *, fast: int, slow: int) -> Iterator[tuple[str, Case]]:
    """Give the cases of one objective. ``fast`` and ``slow`` are streams of a thousand that miss it."""
    labels = {"job": "millrace", "model": "chat", "objective": objective}

    def judged(missed: int) -> dict[str, str]:
        return _judged(objective, met=f"0+{1000 - missed}x600", missed=f"0+{missed}x600")

    for name, thousandths in (("BurnsFast", fast), ("BurnsSlowly", slow)):
        alert = f"Millrace{title}Budget{name}"
        yield (
            alert,
            Case(
                why="many streams miss it, for an hour and still",
                series=judged(thousandths),
                labels=labels,
                value=f"{thousandths / 10:g}%",
            ),
        )
        few = _judged(objective, met="0+0x60", missed="0x30 1 2 3 4x60")
        yield alert, Case(why="every stream misses it, but there were four", series=few)
        yield alert, Case(why="all is well", series=judged(0))
    yield (
        f"Millrace{title}BudgetBurnsFast",
        Case(
            why="it is over: for the last half hour all was well",
            series=_judged(objective, met=f"0+{1000 - fast}x60", missed=f"0+{fast}x30 {fast * 30}x30"),
            after=60,
        ),
    )
    yield (
        f"Millrace{title}BudgetBurnsFast",
        Case(why="it burns, but no faster than a ticket is worth", series=judged(slow)),
    )
    yield (
        f"Millrace{title}BudgetBurnsSlowly",
        Case(
            why="it is over: for the last seven hours all was well",
            series=_judged(objective, met="0+1000x600", missed=f"0+{fast}x60 {fast * 60}x540"),
            after=500,
        ),
    )


def _counter(name: str, inner: str, values: str) -> dict[str, str]:
    return {f"{name}{{{GATEWAY}, {inner}}}" if inner else f"{name}{{{GATEWAY}}}": values}


def _histogram(name: str, inner: str, below: Mapping[str, int]) -> dict[str, str]:
    """Give a histogram that grows each minute by so many observations up to each bound."""
    comma = f"{inner}, " if inner else ""
    return {f'{name}_bucket{{{GATEWAY}, {comma}le="{bound}"}}': f"0+{n}x60" for bound, n in below.items()}


def _attempts(upstream: str, result: str, values: str) -> dict[str, str]:
    inner = f'model="chat", upstream="{upstream}", result="{result}", error_type=""'
    return _counter("millrace_upstream_attempts_total", inner, values)


def _breaker(upstream: str, *, is_open: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for state in ("closed", "half_open", "open"):
        value = int((state == "open") == is_open and state != "half_open")
        found |= _counter("millrace_upstream_state", f'upstream="{upstream}", state="{state}"', f"{value}x60")
    return found


def _ended(outcome: str, values: str) -> dict[str, str]:
    inner = f'route="chat", model="chat", stream="true", outcome="{outcome}"'
    return _counter("millrace_requests_total", inner, values)


def _failovers(result: str, values: str) -> dict[str, str]:
    inner = f'model="chat", from_upstream="p/m", phase="mid_stream", result="{result}"'
    return _counter("millrace_failovers_total", inner, values)


def _slow(name: str, metric: str, inner: str, value: str, labels: Mapping[str, str]) -> Iterator[tuple[str, Case]]:
    """Give the cases of an alert on a p99: 5 of a hundred take between 0.05 and 0.1 seconds, or none does."""
    found = {"0.01": 95, "0.025": 95, "0.05": 95, "0.1": 100, "+Inf": 100}
    yield (
        name,
        Case(
            why="one in twenty takes long",
            series=_histogram(metric, inner, found),
            labels={"job": "millrace", "instance": "a:8081", **labels},
            value=value,
        ),
    )
    quick = dict.fromkeys(found, 100)
    yield name, Case(why="all are quick", series=_histogram(metric, inner, quick))
    yield name, Case(why="it has only begun", series=_histogram(metric, inner, found), after=5)


def _dropped(name: str, metric: str, labels: Mapping[str, str]) -> Iterator[tuple[str, Case]]:
    """Give the cases of an alert on a counter that should not move."""
    inner = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    yield (
        name,
        Case(
            why="it has moved",
            series=_counter(metric, inner, "0x50 0+2x20"),
            labels={"job": "millrace", "instance": "a:8081", **labels},
            value="18",
        ),
    )
    yield name, Case(why="it moved long ago", series=_counter(metric, inner, "0+2x20 40x60"))


def _cases() -> Iterator[tuple[str, Case]]:
    yield from _budgets("complete", "Completion", fast=20, slow=4)
    yield from _budgets("ttft", "Ttft", fast=200, slow=40)
    yield from _budgets("tpot", "Tpot", fast=200, slow=40)
    yield from _budgets("smooth", "Smoothness", fast=200, slow=40)
    yield from _presence()
    yield from _fault_of_ours()
    lags = ("millrace_event_loop_lag_seconds", "", "90ms")
    yield from _slow("MillraceEventLoopLags", *lags, {})
    yield from _slow("MillraceTransitSlow", "millrace_chunk_transit_seconds", "", "90ms", {})
    stage = {"stage": "first_token"}
    yield from _slow("MillraceOverheadHigh", "millrace_overhead_seconds", 'stage="first_token"', "90ms", stage)
    yield from _providers()
    yield from _streams()
    yield from _dropped("MillraceLogsDropped", "millrace_log_records_dropped_total", {"level": "info"})
    yield from _dropped("MillraceSpansDropped", "millrace_spans_dropped_total", {})
    family = {"family": "millrace_ttft_seconds"}
    yield from _dropped("MillraceSeriesOverflow", "millrace_metric_series_overflow_total", family)


def _presence() -> Iterator[tuple[str, Case]]:
    here = {"job": "millrace", "instance": "a:8081"}
    yield (
        "MillraceDown",
        Case(why="it cannot be scraped", series={f"up{{{GATEWAY}}}": "1x10 0x60"}, labels=here, value="0"),
    )
    yield "MillraceDown", Case(why="one scrape failed", series={f"up{{{GATEWAY}}}": "1x58 0 1x60"})
    yield (
        "MillraceDown",
        Case(why="something else is down", series={'up{job="node", instance="a:9100"}': "0x60"}),
    )
    build = f'millrace_build_info{{{GATEWAY}, version="1"}}'
    yield "MillraceAbsent", Case(why="there never was one", series={'up{job="node"}': "1x60"}, value="1")
    yield "MillraceAbsent", Case(why="the last one is gone", series={build: "1x20 _x60"}, value="1")
    yield "MillraceAbsent", Case(why="there is one", series={build: "1x60"})
    workers = [f'millrace_worker_up{{{GATEWAY}, worker="{worker}"}}' for worker in (0, 1)]
    yield (
        "MillraceNoWorkers",
        Case(why="both are down", series=dict.fromkeys(workers, "0x60"), labels=here, value="0"),
    )
    one_down = {workers[0]: "0x60", workers[1]: "1x60"}
    yield "MillraceNoWorkers", Case(why="one still serves", series=one_down)
    yield "MillraceWorkerDown", Case(why="one is down", series=one_down, labels=here | {"worker": "0"}, value="0")
    yield (
        "MillraceWorkerDown",
        Case(why="it was replaced", series={workers[0]: "1x55 0x2 1x60", workers[1]: "1x60"}),
    )
    restarts = _counter("millrace_worker_restarts_total", 'worker="0"', "0x50 1 2 3x60")
    yield (
        "MillraceWorkersRestart",
        Case(why="three within a quarter of an hour", series=restarts, labels=here, value="3"),
    )
    once = _counter("millrace_worker_restarts_total", 'worker="0"', "0x55 1x60")
    yield "MillraceWorkersRestart", Case(why="one, once", series=once)


def _fault_of_ours() -> Iterator[tuple[str, Case]]:
    of_model = {"job": "millrace", "model": "chat"}
    yield (
        "MillraceGatewayErrors",
        Case(
            why="one call in twenty",
            series=_ended("completed", "0+95x60") | _ended("gateway_error", "0+5x60"),
            labels=of_model,
            value="5%",
        ),
    )
    yield (
        "MillraceGatewayErrors",
        Case(
            why="the providers fail, not we",
            series=_ended("completed", "0+50x60") | _ended("upstream_error", "0+50x60"),
        ),
    )
    yield (
        "MillraceGatewayErrors",
        Case(why="one in a quiet hour", series=_ended("completed", "0x60") | _ended("gateway_error", "0x55 1x60")),
    )
    success = f"millrace_config_last_reload_success{{{GATEWAY}}}"
    here = {"job": "millrace", "instance": "a:8081"}
    yield "MillraceReloadFailed", Case(why="refused", series={success: "1x10 0x60"}, labels=here, value="0")
    yield "MillraceReloadFailed", Case(why="corrected at once", series={success: "1x55 0x3 1x60"})
    config = 'millrace_config_info{{job="millrace", instance="{}:8081", hash="{}"}}'
    yield (
        "MillraceConfigurationsDiffer",
        Case(
            why="two hashes",
            series={config.format("a", "1"): "1x60", config.format("b", "2"): "1x60"},
            labels={"job": "millrace"},
            value="2",
        ),
    )
    yield (
        "MillraceConfigurationsDiffer",
        Case(why="two gateways, one hash", series={config.format("a", "1"): "1x60", config.format("b", "1"): "1x60"}),
    )
    rollout = {config.format("a", "1"): "1x40 _x60", config.format("a", "2"): "_x40 1x60"}
    yield (
        "MillraceConfigurationsDiffer",
        Case(why="a rollout", series=rollout | {config.format("b", "2"): "_x35 1x60"}),
    )


def _providers() -> Iterator[tuple[str, Case]]:
    of_model = {"job": "millrace", "model": "chat"}
    both = _attempts("p/m", "failed", "0+1x60") | _attempts("q/m", "failed", "0+1x60")
    yield (
        "MillraceModelUnavailable",
        Case(
            why="both breakers are open",
            series=both | _breaker("p/m", is_open=True) | _breaker("q/m", is_open=True),
            labels=of_model,
            value="1",
        ),
    )
    yield (
        "MillraceModelUnavailable",
        Case(why="one still answers", series=both | _breaker("p/m", is_open=True) | _breaker("q/m", is_open=False)),
    )
    elsewhere = {
        'millrace_upstream_state{job="millrace", instance="b:8081", upstream="p/m", state="open"}': "0x60",
        'millrace_upstream_state{job="millrace", instance="b:8081", upstream="p/m", state="closed"}': "1x60",
    }
    yield (
        "MillraceModelUnavailable",
        Case(
            why="another gateway reaches it",
            series=_attempts("p/m", "failed", "0+1x60") | _breaker("p/m", is_open=True) | elsewhere,
        ),
    )
    idle = _attempts("p/m", "failed", "0+1x10 10x60")
    yield "MillraceModelUnavailable", Case(why="nobody has asked since", series=idle | _breaker("p/m", is_open=True))
    of_upstream = {"job": "millrace", "upstream": "p/m"}
    probed = {
        f'millrace_upstream_state{{{GATEWAY}, upstream="p/m", state="open"}}': "1x9 0 1x9 0 1x60",
        f'millrace_upstream_state{{{GATEWAY}, upstream="p/m", state="half_open"}}': "0x9 1 0x9 1 0x60",
    }
    yield (
        "MillraceBreakerOpen",
        Case(
            why="open for an hour, but for a call of probation now and then",
            series=probed | _attempts("p/m", "failed", "0+1x60"),
            labels=of_upstream,
            value="1",
        ),
    )
    failing = _attempts("p/m", "failed", "0+1x60")
    yield "MillraceBreakerOpen", Case(why="closed", series=failing | _breaker("p/m", is_open=False))
    yield "MillraceBreakerOpen", Case(why="just opened", series=failing | _breaker("p/m", is_open=True), after=5)
    idle = _attempts("p/m", "failed", "0+1x10 10x60")
    yield "MillraceBreakerOpen", Case(why="nobody has asked since", series=idle | _breaker("p/m", is_open=True))
    yield (
        "MillraceUpstreamFails",
        Case(
            why="every third",
            series=_attempts("p/m", "completed", "0+10x60") | _attempts("p/m", "failed", "0+5x60"),
            labels=of_upstream,
            value="33.33%",
        ),
    )
    yield (
        "MillraceUpstreamFails",
        Case(
            why="clients left, which is no failure",
            series=_attempts("p/m", "completed", "0+10x60") | _attempts("p/m", "cancelled", "0+50x60"),
        ),
    )
    yield "MillraceUpstreamFails", Case(why="one of one", series=_attempts("p/m", "failed", "0x55 1x60"))
    yield (
        "MillraceFailoverExhausted",
        Case(
            why="half of them",
            series=_failovers("completed", "0+2x60") | _failovers("failed", "0+2x60"),
            labels=of_model,
            value="50%",
        ),
    )
    yield "MillraceFailoverExhausted", Case(why="all are saved", series=_failovers("completed", "0+20x60"))
    yield "MillraceFailoverExhausted", Case(why="one is lost", series=_failovers("failed", "0x55 1x60"))
    left = _failovers("completed", "0+2x60") | _failovers("cancelled", "0+20x60")
    yield "MillraceFailoverExhausted", Case(why="clients did not wait for the end", series=left)
    headroom = f'millrace_upstream_ratelimit_remaining_ratio{{{GATEWAY}, upstream="p/m", resource="tokens"}}'
    yield (
        "MillraceRateLimitNear",
        Case(
            why="little is left",
            series={headroom: "0.05x60"},
            labels=of_upstream | {"resource": "tokens"},
            value="5%",
        ),
    )
    yield "MillraceRateLimitNear", Case(why="much is left", series={headroom: "0.6x60"})
    yield "MillraceRateLimitNear", Case(why="a peak", series={headroom: "0.6x55 0.01x2 0.6x60"})


def _streams() -> Iterator[tuple[str, Case]]:
    pair = 'model="chat", upstream="p/m"'
    stalls = "millrace_stalls_total"
    stalled = f'{pair}, phase="decode", resolution="gave_up"'
    done = _attempts("p/m", "completed", "0+100x60")
    yield (
        "MillraceStalls",
        Case(
            why="one in ten",
            series=done | _counter(stalls, stalled, "0+10x60"),
            labels={"job": "millrace", "model": "chat", "upstream": "p/m"},
            value="10%",
        ),
    )
    yield "MillraceStalls", Case(why="one in a hundred", series=done | _counter(stalls, stalled, "0+1x60"))
    rare = _attempts("p/m", "completed", "0x55 2x60") | _counter(stalls, stalled, "0x55 2x60")
    yield "MillraceStalls", Case(why="two of two", series=rare)
    output, wasted = "millrace_output_tokens_total", "millrace_tokens_wasted_total"
    reason = f'{pair}, reason="failed_attempt"'
    yield (
        "MillraceTokensWasted",
        Case(
            why="a fifth",
            series=_counter(output, pair, "0+1000x90") | _counter(wasted, reason, "0+200x90"),
            after=80,
            labels={"job": "millrace"},
            value="20%",
        ),
    )
    yield (
        "MillraceTokensWasted",
        Case(why="a twentieth", series=_counter(output, pair, "0+1000x90") | _counter(wasted, reason, "0+50x90")),
    )
    yield (
        "MillraceTokensWasted",
        Case(why="a fifth of little", series=_counter(output, pair, "0+10x90") | _counter(wasted, reason, "0+2x90")),
    )
    usage = "millrace_usage_total"
    told = _counter(usage, 'upstream="p/m", source="reported"', "0+90x90")
    yield (
        "MillraceUsageMissing",
        Case(
            why="one in ten",
            series=told | _counter(usage, 'upstream="p/m", source="missing"', "0+10x90"),
            after=80,
            labels={"job": "millrace", "upstream": "p/m"},
            value="10%",
        ),
    )
    yield (
        "MillraceUsageMissing",
        Case(
            why="the gateway has counted",
            series=told | _counter(usage, 'upstream="p/m", source="counted"', "0+10x90"),
        ),
    )


CASES: tuple[tuple[str, Case], ...] = tuple(_cases())
