"""Every query of every panel and rule is asked of a real Prometheus that scrapes a real gateway under real traffic."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import dashboards
from dashboards.board import Board
from dashboards.boards import BOARDS
from dashboards.queries import runnable
from dashboards.render import render, screen_of
from gateway.telemetry.catalogue import CATALOGUE
from tests.dashboards import traffic
from tests.dashboards.processes import Process, free_ports, running, running_simulator, write_config
from tests.dashboards.prometheus import Prometheus, running_prometheus
from tests.dashboards.promtool import needs_prometheus

pytestmark = needs_prometheus

RATE, RANGE = "20s", "5m"
"""What a rate is over, and how long the time on the screen is: longer than all this takes."""

RULES: list[dict[str, Any]] = [
    rule
    for name in ("rules", "alerts")
    for group in yaml.safe_load(dashboards.files()[f"prometheus/{name}.yaml"])["groups"]
    for rule in group["rules"]
]

NEVER_SEEN = {
    "millrace_cache_read_input_tokens_total": "the simulator has no cache",
    "millrace_cache_write_input_tokens_total": "the same",
    "millrace_worker_restarts_total": "no worker was replaced",
    "millrace_log_records_dropped_total": "somebody reads the log",
    "millrace_metric_series_overflow_total": "every label value has its series",
    'source="missing"': "what no provider reports the gateway counts itself",
}
"""What did not happen, and how it is called in a query, with the reason."""

NEVER_FIRED = {
    "MillraceWorkersRestart": "no worker was replaced",
    "MillraceReloadFailed": "nothing was reloaded",
    "MillraceConfigurationsDiffer": "there is one gateway",
    "MillraceRateLimitNear": "the simulator has plenty left",
    "MillraceUsageMissing": "what no provider reports the gateway counts itself",
    "MillraceLogsDropped": "somebody reads the log",
    "MillraceSeriesOverflow": "every label value has its series",
}
MAY_FIRE = {
    "MillraceEventLoopLags": "it is up to the machine",
    "MillraceTransitSlow": "it is up to the machine",
    "MillraceOverheadHigh": "it is up to the machine",
    "MillraceNoWorkers": "a scrape may find the gateway starting or stopping",
    "MillraceWorkerDown": "a scrape may find the gateway starting or stopping",
}

HAPPENED: Mapping[tuple[str, str], set[str]] = {
    ("millrace_requests_total", "outcome"): {
        "completed", "client_aborted", "upstream_error", "truncated", "stalled", "deadline", "gateway_error",
        "rejected",
    },
    ("millrace_requests_total", "stream"): {"true", "false"},
    ("millrace_requests_total", "route"): {"chat_completions", "chat_stream"},
    ("millrace_http_responses_total", "code"): {"200", "400", "404", "500", "502", "503", "504"},
    ("millrace_rejected_total", "reason"): {"invalid_request", "unknown_model"},
    ("millrace_client_aborts_total", "phase"): {"prefill", "decode"},
    ("millrace_finish_reasons_total", "finish_reason"): {"stop", "length", "tool_calls"},
    ("millrace_stalls_total", "resolution"): {"recovered", "failed_over", "gave_up", "client_left"},
    ("millrace_stalls_total", "phase"): {"reasoning", "decode"},
    ("millrace_slo_streams_total", "objective"): {"complete", "ttft", "tpot", "smooth", "all"},
    ("millrace_slo_streams_total", "met"): {"true", "false"},
    ("millrace_tokens_wasted_total", "reason"): {"client_abort", "failed_attempt", "resume_overlap"},
    ("millrace_upstream_attempts_total", "result"): {"completed", "failed", "cancelled"},
    ("millrace_upstream_attempts_total", "error_type"): {
        "rate_limited", "overloaded", "auth", "bad_request", "connect", "read_timeout", "reset", "protocol",
    },
    ("millrace_failovers_total", "phase"): {"pre_first_token", "mid_stream"},
    ("millrace_failovers_total", "result"): {"completed", "failed", "cancelled"},
    ("millrace_failover_lost_seconds_count", "phase"): {"pre_first_token", "mid_stream"},
    ("millrace_stream_resumes_total", "result"): {"completed", "failed", "cancelled"},
    ("millrace_hedges_total", "result"): {"won", "lost"},
    ("millrace_usage_total", "source"): {"reported", "counted"},
    ("millrace_upstream_state", "state"): {"closed", "open", "half_open"},
    ("millrace_streams_active", "phase"): {"prefill", "reasoning", "decode", "draining"},
    ("millrace_overhead_seconds_count", "stage"): {"request", "first_token"},
}  # fmt: skip
"""What the traffic must have brought about, or the panels that tell of it were not tried.

Two words are missing. ``drained`` is counted in the moment in which a gateway ends, and nobody scrapes it any more.
``hedge_loser`` needs a token, and the first token decides a race: the other target seldom has one by then.
"""


@dataclass(frozen=True, slots=True)
class Watched:
    """What Prometheus has seen from ``begin_s`` on. At ``end_s`` all had happened; the gateway was then restarted."""

    prometheus: Prometheus
    log: Path
    address: str
    begin_s: float
    end_s: float
    last_s: float

    def values(self, expression: str, *, is_instant: bool) -> list[float]:
        """Return all that a panel would show, number by number."""
        if is_instant:
            return [float(series["value"][1]) for series in self.prometheus.now(expression, self.end_s)]
        found = self.prometheus.over(expression, self.begin_s, self.last_s)
        return [float(value) for series in found for _, value in series["values"]]

    def fault(self, expression: str, *, is_instant: bool) -> str:
        """Return what is wrong with an answer: a panel would show nothing, or nothing but zeros."""
        values = self.values(expression, is_instant=is_instant)
        if not values:
            return "empty"
        known = [value for value in values if math.isfinite(value)]
        return "" if any(known) else "zero" if known else "not a number"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Play the traffic twice over a gateway that Prometheus watches, and restart it while somebody streams."""
    folder = tmp_path_factory.mktemp("live")
    port, admin_port, dead_port = free_ports(3)
    address = f"127.0.0.1:{admin_port}"
    with running_prometheus(folder, [address, f"127.0.0.1:{dead_port}"]) as prometheus:
        with running_simulator(folder) as origin:
            file = write_config(folder, traffic.config(origin, port=port, admin_port=admin_port, dead_port=dead_port))
            begin_s = time.time()
            prometheus.wait_for('ALERTS{alertname="MillraceAbsent"}')
            with running(folder, "serve", "--config", file) as gateway:
                prometheus.wait_for_scrape(address)
                end_s = asyncio.run(_play(gateway, origin, prometheus, address))
            with running(folder, "serve", "--config", file):
                last_s = prometheus.wait_for_scrape(address)
        yield Watched(prometheus, folder / "prometheus.log", address, begin_s, end_s, last_s + 3)


async def _play(gateway: Process, origin: str, prometheus: Prometheus, address: str) -> float:
    """Let everything happen, and the gateway stop while it answers; returns when all had happened."""
    async with traffic.clients(gateway.told, origin) as clients:
        while not await asyncio.to_thread(prometheus.now, 'max(millrace:slo_errors:ratio_rate1h{objective="all"}) < 1'):
            await traffic.play_calmly(clients)
            await asyncio.to_thread(prometheus.wait_for_scrape, address)
        for _ in range(2):
            await traffic.play(clients)
            await asyncio.to_thread(prometheus.wait_for_scrape, address)
        async with traffic.in_every_phase(clients):
            end_s = await asyncio.to_thread(prometheus.wait_for_scrape, address)
            gateway.stop()
            await asyncio.to_thread(prometheus.wait_for, 'millrace_streams_active{phase="draining"} > 0')
    await asyncio.to_thread(gateway.wait)
    return end_s


def test_all_has_happened_that_the_boards_tell_of(watched: Watched) -> None:
    """Or it would be no wonder that nothing is empty."""
    for (name, label), values in HAPPENED.items():
        recent = f"max_over_time({name}[10s]) > 0"  # a phase may be seen in one scrape only
        found = watched.prometheus.over(f"count by ({label}) ({recent})", watched.begin_s, watched.last_s)
        assert {series["metric"].get(label) for series in found} >= values, (name, label)


def test_every_panel_has_something_to_show(watched: Watched) -> None:
    """No query fails, and none is empty, zero or no number, but for what did not happen."""
    queries = list(dashboards.panel_queries(interval=RATE, __range=RANGE))
    faults = {
        f"{query.board}: {query.panel}: {fault}: {query.expression}"
        for query in queries
        if (fault := watched.fault(query.expression, is_instant=query.is_instant)) and not _is_excused(query)
    }
    assert not faults, "\n".join(sorted(faults))
    assert {query.board for query in queries} == {board.uid for board in BOARDS}


def _is_excused(query: dashboards.PanelQuery) -> bool:
    """Return whether a panel says that it may be empty, and asks for something that did not happen."""
    return bool(query.may_be_empty) and any(name in query.expression for name in NEVER_SEEN)


def test_every_choice_of_a_variable_has_an_effect_that_prometheus_takes(watched: Watched) -> None:
    """One model, one upstream, one gateway: whatever is chosen, every query is answered."""
    one = {"job": "millrace", "instance": re.escape(watched.address).replace("\\", "\\\\"), "model": "good"}
    one["upstream"] = "openai/.*"
    for query in dashboards.panel_queries(interval=RATE, __range=RANGE, **one):
        watched.prometheus.now(query.expression, watched.end_s)
    calls = next(query for query in dashboards.panel_queries(interval=RATE, **one) if query.panel == "Calls by model")
    (series,) = watched.prometheus.over(calls.expression, watched.begin_s, watched.end_s)
    assert series["metric"] == {"model": "good"}


def test_every_variable_has_values_to_offer(watched: Watched) -> None:
    """As Grafana asks for them."""
    for board in BOARDS:
        variables = cast("dict[str, Any]", board.as_json()["templating"])["list"]
        for variable in variables:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
                assert match
                selector = runnable(match[1], {"job": ".+", "instance": ".+"})
                found = watched.prometheus.get(
                    f"label/{match[2]}/values", **{"match[]": selector}, start=watched.begin_s
                )
                assert found, variable["query"]


def test_every_label_in_a_query_is_on_the_series(watched: Watched) -> None:
    """Of a matcher for a label that is not there nothing comes back, or everything."""
    found: dict[str, set[str]] = {}
    queries = [query.expression for query in dashboards.panel_queries(interval=RATE)] + [rule["expr"] for rule in RULES]
    for expression in queries:
        for name, matchers in re.findall(r"\b(millrace[_:][\w:]+|up)\b(\{[^}]*\})?", re.sub(r"#.*", "", expression)):
            if any(name.startswith(never) for never in NEVER_SEEN):
                continue
            labels = found.setdefault(name, watched.prometheus.labels(name, watched.begin_s))
            wanted = set(re.findall(r"(\w+)(?:=~|!=|=)\"", matchers))
            assert wanted <= labels, (expression, wanted - labels)
    assert len(found) > len(CATALOGUE)


def test_every_family_of_the_catalogue_has_been_scraped(watched: Watched) -> None:
    """What is in the catalogue is exported, or it did not happen."""
    names = set(watched.prometheus.get("label/__name__/values", start=watched.begin_s))
    for metric in CATALOGUE:
        parts = {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
        wanted = parts if metric.kind == "histogram" else {metric.name}
        assert wanted <= names or metric.name in NEVER_SEEN, metric.name


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    """Neither of them has anything that matches twice, and what is recorded is a number."""
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(RULES)
    for rule in RULES:
        if "record" in rule:
            assert watched.fault(rule["record"], is_instant=False) == "", rule["record"]


def test_every_alert_fires_when_there_is_a_reason(watched: Watched) -> None:
    """All but those for which there was none; each of those stays quiet."""
    found = watched.prometheus.over('ALERTS{alertstate="firing"}', watched.begin_s, watched.last_s)
    fired = {series["metric"]["alertname"] for series in found}
    expected = {rule["alert"] for rule in RULES if "alert" in rule} - NEVER_FIRED.keys()
    assert fired - MAY_FIRE.keys() == expected - MAY_FIRE.keys()


def test_a_restart_and_a_release_are_marked(watched: Watched) -> None:
    """And alerts; nothing can be reloaded yet."""
    for board in BOARDS:
        annotations = cast("dict[str, Any]", board.as_json()["annotations"])["list"]
        marked = {
            annotation["name"]
            for annotation in annotations
            if "expr" in annotation
            and watched.prometheus.over(runnable(annotation["expr"], {"job": ".+"}), watched.begin_s, watched.last_s)
        }
        assert marked == {"Restarts", "Releases", "Alerts"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_board_can_be_drawn_without_grafana(board: Board, watched: Watched) -> None:
    """From the same Prometheus; every panel shows something."""
    screen = screen_of(
        watched.prometheus.url, since_s=watched.end_s - watched.begin_s, end_s=watched.end_s, interval=RATE
    )
    page = render(board, screen)
    assert "No data" not in page
    assert "No traffic" not in page
    assert page.count("<svg") > 10


def test_a_slow_stream_leads_to_its_trace(watched: Watched) -> None:
    """Where a graph shows examples, Prometheus has some, and each has a trace id."""
    queries = [query for board in BOARDS for panel in board.panels for query in panel.queries if query.with_exemplars]
    assert queries
    for query in queries:
        expression = runnable(query.expression, {"job": ".+", "instance": ".+"})
        found = watched.prometheus.get("query_exemplars", query=expression, start=watched.begin_s, end=watched.last_s)
        ids = {example["labels"]["trace_id"] for series in found for example in series["exemplars"]}
        assert ids, query.expression
        assert all(re.fullmatch("[0-9a-f]{32}", trace_id) for trace_id in ids)


def test_prometheus_has_nothing_to_complain_of(watched: Watched) -> None:
    """No sample out of order, none twice, no exemplar that it does not take."""
    assert watched.log.read_text() == ""
