from __future__ import annotations

import pytest

from gateway.config import SloConfig
from gateway.telemetry.catalogue import BY_NAME, CATALOGUE, GAP_S, TPOT_S, TTFT_S, Metric
from gateway.telemetry.meters import KEPT_SERIES, MAX_SERIES

LABELS = {
    "code",
    "error_type",
    "family",
    "finish_reason",
    "from_upstream",
    "hash",
    "level",
    "loop",
    "met",
    "model",
    "objective",
    "outcome",
    "phase",
    "python",
    "reason",
    "resolution",
    "resource",
    "result",
    "route",
    "source",
    "stage",
    "state",
    "stream",
    "upstream",
    "version",
    "worker",
}
"""Each is of a closed set, or a name of the configuration. No key, user, address, path or request is among them."""

PROMISED = """
millrace_requests_total{route,model,stream,outcome} millrace_request_duration_seconds{route,model,stream}
millrace_ttft_seconds{model,upstream} millrace_time_to_first_content_seconds{model}
millrace_tpot_seconds{model,upstream} millrace_stream_tokens_per_second{model,upstream}
millrace_chunk_gap_seconds{model,upstream} millrace_stream_max_gap_seconds{model,upstream}
millrace_streams_active{model,phase} millrace_input_tokens_total{model,upstream}
millrace_output_tokens_total{model,upstream} millrace_tokens_wasted_total{model,upstream,reason}
millrace_upstream_attempts_total{upstream,model,result,error_type}
millrace_failovers_total{model,from_upstream,phase,result}
millrace_stream_resumes_total{model,from_upstream,result} millrace_stalls_total{model,upstream,phase,resolution}
millrace_client_aborts_total{route,phase} millrace_slo_streams_total{model,objective,met}
millrace_upstream_state{upstream,state} millrace_chunk_transit_seconds{} millrace_overhead_seconds{stage}
millrace_event_loop_lag_seconds{}
"""
"""The names that users were given, with their labels."""

UNITS = ("_seconds", "_bytes", "_ratio", "_info", "_per_second")
COUNTS = {
    "millrace_config_generation",
    "millrace_config_last_reload_success",
    "millrace_metrics_series",
    "millrace_streams_active",
    "millrace_upstream_inflight",
    "millrace_upstream_state",
    "millrace_worker_open_fds",
    "millrace_worker_up",
}
"""The gauges without a unit: what they count is in their name, or they are 0 and 1."""

MLPERF_TTFT_S = (0.45, 0.5, 1.5, 2, 4.5, 6)
MLPERF_TPOT_S = (0.015, 0.03, 0.04, 0.08, 0.1, 0.175, 0.2)


@pytest.mark.parametrize("promised", PROMISED.split())
def test_a_name_that_users_were_given_is_there_with_its_labels(promised: str) -> None:
    """They have it in their queries."""
    name, _, labels = promised.removesuffix("}").partition("{")
    assert BY_NAME[name].labels == tuple(filter(None, labels.split(",")))


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_a_name_says_what_is_counted_and_in_which_unit(metric: Metric) -> None:
    """Base units at its end; counters end in ``_total``, and nothing else does."""
    assert metric.name.startswith("millrace_")
    assert metric.name.replace("_", "").isalnum()
    assert metric.name.islower()
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.kind != "counter":
        assert metric.name.endswith(UNITS) != (metric.name in COUNTS)
    assert not metric.name.endswith(("_bucket", "_count", "_sum", "_created"))


def test_no_two_families_share_a_name() -> None:
    """Nor would they in OpenMetrics, where a counter is named without its ``_total``."""
    assert len(BY_NAME) == len(CATALOGUE)
    assert len({metric.name.removesuffix("_total") for metric in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_labels_are_of_closed_sets(metric: Metric) -> None:
    """So nobody who calls can make a series."""
    assert set(metric.labels) <= LABELS
    assert len(set(metric.labels)) == len(metric.labels)


def test_every_label_that_is_allowed_is_used() -> None:
    """Otherwise it need not be allowed."""
    assert {label for metric in CATALOGUE for label in metric.labels} == LABELS


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_the_help_is_a_sentence(metric: Metric) -> None:
    """On one line."""
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.isprintable()


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_buckets_rise_and_only_histograms_have_them(metric: Metric) -> None:
    """None is infinite: the bucket without a bound is always there."""
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert all(0 < bound < 10_000 for bound in metric.buckets)


def test_an_objective_is_a_bound_of_what_it_is_about() -> None:
    """Otherwise the share that met it would be a guess: those of the configuration's defaults, and MLPerf's."""
    slo = SloConfig()
    assert {slo.ttft_s, *MLPERF_TTFT_S} <= set(TTFT_S)
    assert {slo.tpot_s, *MLPERF_TPOT_S} <= set(TPOT_S)
    assert slo.max_gap_s in GAP_S
    assert (slo.ttft_s, slo.tpot_s, slo.max_gap_s) == (2.0, 0.1, 2.0)
    buckets: dict[str, tuple[float, ...]] = {
        "millrace_ttft_seconds": TTFT_S,
        "millrace_upstream_ttft_seconds": TTFT_S,
        "millrace_time_to_first_content_seconds": TTFT_S,
        "millrace_tpot_seconds": TPOT_S,
        "millrace_stream_max_gap_seconds": GAP_S,
    }
    assert {name: BY_NAME[name].buckets for name in buckets} == buckets


def test_only_gauges_that_do_not_add_up_are_merged_otherwise() -> None:
    """Two workers in one state, at one version or with one average are not twice as much of it."""
    merged = {metric.name: metric.merge for metric in CATALOGUE if metric.merge != "sum"}
    assert merged == {
        "millrace_build_info": "max",
        "millrace_config_generation": "max",
        "millrace_config_info": "max",
        "millrace_config_last_reload_success": "min",
        "millrace_event_loop_lag_max_seconds": "max",
        "millrace_upstream_ratelimit_remaining_ratio": "min",
        "millrace_upstream_state": "max",
        "millrace_upstream_ttft_ewma_seconds": "mean",
    }
    assert {BY_NAME[name].kind for name in merged} == {"gauge"}


def test_a_histogram_is_told_in_one_line_more_than_it_has_cells() -> None:
    """Its count is made of its buckets."""
    ttft, requests = BY_NAME["millrace_ttft_seconds"], BY_NAME["millrace_requests_total"]
    assert (ttft.cell_count, ttft.series_count) == (22, 23)
    assert (requests.cell_count, requests.series_count) == (1, 1)


USUAL = {
    "route": 3,
    "stream": 2,
    "code": 6,
    "finish_reason": 3,
    "met": 2,
    "objective": 5,
    "phase": 2,
    "stage": 2,
    "resource": 2,
    "state": 2,
    "family": 0,
    "worker": 8,
}
"""How many values of a label are there while little goes wrong; where nothing is said, one."""


def test_fifty_pairs_of_a_model_and_a_target_keep_within_the_series_there_are() -> None:
    """With ten models and eight workers, and no histogram is turned away by the series kept for the rest."""
    series = {metric.name: usual_children(metric) * metric.series_count for metric in CATALOGUE}
    histograms = {name: count for name, count in series.items() if BY_NAME[name].kind == "histogram"}
    assert sum(histograms.values()) <= MAX_SERIES - KEPT_SERIES
    assert sum(series.values()) <= MAX_SERIES


def usual_children(metric: Metric) -> int:
    """Return how many children there usually are with ten models, each over five targets."""
    has_target = {"upstream", "from_upstream"} & set(metric.labels)
    children = 50 if has_target else 10 if "model" in metric.labels else 1
    for label in set(metric.labels) - {"model", "upstream", "from_upstream"}:
        children *= USUAL.get(label, 1)
    return children
