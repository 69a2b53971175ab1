from __future__ import annotations

from collections import Counter

import pytest

from dashboards.queries import CLIENTS, OURS, PROVIDERS, REFUSED
from gateway.core.errors import ClientError
from gateway.core.meters import NO_METERS
from gateway.telemetry.catalogue import BY_NAME, CATALOGUE, Metric
from gateway.telemetry.meters import MAX_SERIES, OVERFLOW, Meters
from gateway.telemetry.seeds import BAD_OUTCOMES, MAX_COUNTERS, MAX_UPSTREAMS, REFUSALS, RESULTS, seed
from gateway.telemetry.slab import Slab
from middleware.observe import _reason_of, _result_of
from tests.exposition import Exposition
from tests.gateway.telemetry.test_catalogue import usual_children

SMALL = [("chat", "openai/gpt"), ("chat", "anthropic/claude"), ("code", "openai/gpt")]


def seeded(pairs: list[tuple[str, str]]) -> tuple[Slab, Meters]:
    """Return a slab with nothing in it but seeds, and the meters over it."""
    slab = Slab.create()
    meters = Meters(slab)
    seed(meters, pairs, worker="2")
    return slab, meters


def many(model_count: int, target_count: int) -> list[tuple[str, str]]:
    """Return the pairs of so many models over so many targets each."""
    return [(f"m{m}", f"p{t}/m{m}") for m in range(model_count) for t in range(target_count)]


def test_what_may_go_wrong_is_there_before_it_does() -> None:
    """At zero, for each model and target of the configuration; breakers are closed."""
    found = Exposition.of(seeded(SMALL)[0])
    requests = list(found.of_name("millrace_requests_total", route="chat_completions", model="chat", stream="true"))
    assert {one.labels["outcome"] for one in requests} == {*BAD_OUTCOMES, "completed"}
    for model in ("chat", "code"):
        missed = found.of_name("millrace_slo_streams_total", model=model, met="false")
        assert {one.labels["objective"] for one in missed} == {"ttft", "tpot", "smooth", "complete", "all"}
    states = {
        (one.labels["upstream"], one.labels["state"]): one.value for one in found.of_name("millrace_upstream_state")
    }
    assert states == {
        (upstream, state): float(state == "closed")
        for upstream in ("openai/gpt", "anthropic/claude")
        for state in ("closed", "open", "half_open")
    }
    pairs = {
        (one.labels["model"], one.labels["from_upstream"])
        for one in found.of_name("millrace_failovers_total", phase="mid_stream", result="failed")
    }
    assert pairs == set(SMALL)
    assert found.total("millrace_worker_restarts_total", worker="2") == 0
    counters = {metric.name for metric in CATALOGUE if metric.kind == "counter"}
    assert all(one.value == 0 for one in found.samples if one.name in counters)
    assert all(one.value == 0 for one in found.samples if one.name.endswith(("_bucket", "_sum", "_count")))


def test_a_seed_is_the_series_that_is_counted_in() -> None:
    """The same child, so that it grows by one and no second series appears."""
    slab, meters = seeded(SMALL)
    before = Exposition.of(slab).series
    meters.counter("millrace_requests_total", "chat_completions", "chat", "true", "gateway_error").inc()
    meters.counter("millrace_slo_streams_total", "chat", "complete", "false").inc()
    meters.gauge("millrace_upstream_state", "openai/gpt", "open").set(1)
    meters.counter("millrace_tokens_wasted_total", "code", "openai/gpt", "client_abort").inc(9)
    meters.counter("millrace_client_aborts_total", "chat_completions", "decode").inc()
    found = Exposition.of(slab)
    assert found.series == before
    assert found.by("outcome", "millrace_requests_total") == {"gateway_error": 1}


def test_without_a_model_there_is_what_belongs_to_none() -> None:
    """The simulator alone, or a configuration of providers without aliases."""
    found = Exposition.of(seeded([])[0])
    assert {one.labels["reason"] for one in found.of_name("millrace_rejected_total")} == set(REFUSALS)
    assert {one.labels["model"] for one in found.of_name("millrace_requests_total")} == {"other"}
    assert found.total("millrace_chunk_transit_seconds_count") == 0
    seed(NO_METERS, SMALL)


@pytest.mark.parametrize(("model_count", "target_count"), [(50, 1), (10, 5), (1, 50), (300, 4)])
def test_seeds_keep_to_their_limit_and_overflow_nothing(model_count: int, target_count: int) -> None:
    """Of large configurations only what matters most is seeded; the objectives of fifty models all are."""
    found = Exposition.of(seeded(many(model_count, target_count))[0])
    assert found.total(OVERFLOW) == 0
    labelled = [one for one in found.samples if BY_NAME.get(one.name, BY_NAME[OVERFLOW]).kind != "histogram"]
    assert len(labelled) <= MAX_COUNTERS + 3 * MAX_UPSTREAMS + 120
    if model_count <= 50:
        missed = list(found.of_name("millrace_slo_streams_total", objective="complete", met="false"))
        assert len(missed) == model_count


@pytest.mark.parametrize("kinds", [("histogram", "counter", "gauge"), ("gauge", "counter", "histogram")])
def test_seeds_leave_room_for_all_that_fifty_pairs_use(kinds: tuple[str, ...]) -> None:
    """Whichever comes first: nothing is turned away, and all together keep within the series there are."""
    slab, meters = seeded(many(10, 5))
    seeds = Counter(child.family for child in slab.children())
    for kind in kinds:
        for metric in CATALOGUE:
            if metric.kind == kind:
                for number in range(usual_children(metric) - seeds[metric.name]):
                    bind(meters, metric, number)
    found = Exposition.of(slab)
    assert found.total(OVERFLOW) == 0
    assert len(found.samples) <= MAX_SERIES


def bind(meters: Meters, metric: Metric, number: int) -> None:
    """Make a child that no seed has made."""
    labels = [f"{label} {number}" for label in metric.labels]
    match metric.kind:
        case "counter":
            meters.counter(metric.name, *labels)
        case "gauge":
            meters.gauge(metric.name, *labels)
        case "histogram":
            meters.histogram(metric.name, *labels)


def test_the_words_are_those_that_are_counted() -> None:
    """A seed that is spelled otherwise would stay zero for ever, beside the series that grows."""
    assert {*BAD_OUTCOMES, "completed"} == {*OURS, *PROVIDERS, *CLIENTS, *REFUSED, "completed"}
    assert {_result_of(outcome) for outcome in (*BAD_OUTCOMES, "completed")} == set(RESULTS)
    kinds: set[type[ClientError]] = {ClientError, *subclasses(ClientError)}
    assert {_reason_of(kind("no")) for kind in kinds} == set(REFUSALS)


def subclasses(kind: type[ClientError]) -> set[type[ClientError]]:
    """Return all kinds of an error."""
    return {found for one in kind.__subclasses__() for found in (one, *subclasses(one))}
