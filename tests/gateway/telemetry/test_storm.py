"""Whether all accounts agree after a storm: those of clients, of providers, of the log and of the metrics.

Nothing here is a matter of time: what each party wrote down is held against what the others did, call by call.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import isinf
from typing import Any, Final

import pytest

from gateway.core.call import Route, Target
from gateway.core.meters import upstream_label
from gateway.simulator import Record
from gateway.telemetry.catalogue import CATALOGUE
from tests.gateway.telemetry.storm import DRAINED_COUNT, KINDS, MODELS, Line, Storm, Told, storm

LONGEST_TOKEN = 7
"""Characters of the simulator's tokens; an estimate counts four of them as one."""

Tally = Mapping[tuple[str, ...], float]


@pytest.fixture(scope="module")
def seen() -> Storm:
    """The storm, when it is over."""
    return asyncio.run(storm())


def tally(seen: Storm, name: str, *labels: str) -> Tally:
    """Return what was counted, by these labels; nothing that is 0."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample in seen.end.of_name(name):
        found[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
    return {key: value for key, value in found.items() if value}


def upstream(line: Line, models: Mapping[str, Any] = MODELS) -> str:
    """Return what metrics call the target of an attempt."""
    targets = models.get(line["model"], {"targets": []})["targets"]
    route = Route(name=line["model"], targets=tuple(Target(*target.split("/", 1)) for target in targets))
    return upstream_label(route, line["target"]) if targets else line["target"].partition("/")[0] + "/other"


def by_call(lines: Sequence[Line]) -> Mapping[str, Sequence[Line]]:
    """Return the lines of each call."""
    found: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        found[line["request_id"]].append(line)
    return found


def answers(seen: Storm) -> Iterator[tuple[Told, Line]]:
    """Yield what each client was told, if there was a call at all, and the line of the call."""
    ended = {line["request_id"]: line for line in seen.lines("stream.finished")}
    for told in seen.told:
        if line := ended.get(told.ticket):
            yield told, line


def attempts(seen: Storm) -> Iterator[tuple[Line, Record | None]]:
    """Yield each attempt with the record of the provider that was asked, if it was."""
    for ticket, lines in by_call(seen.lines("attempt.settled")).items():
        records: defaultdict[str, list[Record]] = defaultdict(list)
        for record in seen.records.get(ticket, ()):
            records[f"{record.model}?{record.script}"].append(record)
        made: defaultdict[str, list[Line]] = defaultdict(list)
        for line in sorted(lines, key=lambda line: line["attempt"]):
            made[line["target"].partition("/")[2]].append(line)
        assert made.keys() >= records.keys(), f"asked, but not settled: {records}"
        for target, its_lines in made.items():
            yield from _pairs(its_lines, records[target])


def _pairs(lines: Sequence[Line], records: Sequence[Record]) -> Sequence[tuple[Line, Record | None]]:
    """Return the attempts at one target for one call, each with its record: both are in their order.

    Of an attempt that was given up before it had a connection, the provider knows nothing.
    """
    unknown = [place for place, line in enumerate(lines) if _may_be_unknown(line)]
    for missing in combinations(unknown, len(lines) - len(records)):
        left = iter(records)
        found = [(line, None if place in missing else next(left)) for place, line in enumerate(lines)]
        if all(record is None or _agree(line, record) for line, record in found):
            return found
    raise AssertionError(f"the gateway tells of {lines}, the provider of {records}")


def _may_be_unknown(line: Line) -> bool:
    is_given_up = line["result"] == "cancelled" or line.get("code", "").endswith("_timeout")
    return is_given_up and "ttft_s" not in line and not line.get("output_tokens")


def _agree(line: Line, record: Record) -> bool:
    """Whether an attempt can have been what a provider has seen of it."""
    if line["result"] == "completed":
        return record.outcome == "finished"
    if record.outcome == "rejected" and line["result"] == "failed":
        return bool(line["http_status"] == record.status)
    return record.tokens_sent > 0 or "ttft_s" not in line


# --- calls


def test_the_storm_was_one(seen: Storm) -> None:
    """Two thousand calls and more, with every outcome, and every way out of trouble."""
    assert len(seen.told) == sum(kind.times for kind in KINDS) + DRAINED_COUNT > 2000
    assert len(tally(seen, "millrace_requests_total", "outcome")) == 9
    assert tally(seen, "millrace_requests_total", "outcome")["drained",] == DRAINED_COUNT
    assert tally(seen, "millrace_hedges_total", "result").keys() == {("won",), ("lost",)}
    reasons = tally(seen, "millrace_tokens_wasted_total", "reason")
    assert reasons.keys() >= {(one,) for one in ("client_abort", "failed_attempt", "resume_overlap")}
    ways = Counter(line.get("way") for line in seen.lines("attempt.settled"))
    assert min(ways[way] for way in ("exact", "anchored", "restart")) > 10
    assert len(tally(seen, "millrace_upstream_attempts_total", "error_type")) >= 7
    assert tally(seen, "millrace_metric_series_overflow_total", "family") == {}


def test_every_call_has_ended_once(seen: Storm) -> None:
    """One line for each; none only for who left before there was a call."""
    counts = Counter(line["request_id"] for line in seen.lines("stream.finished"))
    assert set(counts.values()) == {1}
    assert counts.keys() <= {told.ticket for told in seen.told}
    without = {told.kind.manner for told in seen.told if told.ticket not in counts}
    assert without <= {"leaves at once", "leaves in the body"}


def test_the_outcome_is_what_the_client_saw(seen: Storm) -> None:
    """Whoever has all of an answer is counted as completed, and nobody else is; of who left it is known that he did."""
    for told, line in answers(seen):
        outcome = line["outcome"]
        if not told.has_left:
            assert outcome in told.kind.ends.split(), (told.kind, line)
            assert told.is_complete == (outcome == "completed"), (told.kind, line)
            assert told.status == line["http_status"], (told.kind, line)
        elif told.kind.model in ("endless", "silent"):
            assert outcome == "client_aborted", (told.kind, line)
        else:  # its answer may have been ready before it was noticed
            assert outcome in ("client_aborted", *told.kind.ends.split()), (told.kind, line)


def test_calls_are_counted_as_they_are_logged(seen: Storm) -> None:
    """By path, model, kind and outcome; nothing is in flight any more."""
    labels = ("route", "model", "stream", "outcome")
    lines = seen.lines("stream.finished")
    ended = Counter((one["endpoint"], one["model"], str(one["stream"]).lower(), one["outcome"]) for one in lines)
    assert tally(seen, "millrace_requests_total", *labels) == ended
    durations = Counter((one["endpoint"], one["model"], str(one["stream"]).lower()) for one in lines)
    assert tally(seen, "millrace_request_duration_seconds_count", *labels[:3]) == durations
    begun = Counter((one["endpoint"], one["model"]) for one in lines)
    assert tally(seen, "millrace_requests_started_total", *labels[:2]) == begun
    for gauge, label in (("streams_active", "phase"), ("upstream_inflight", "upstream")):
        assert tally(seen, f"millrace_{gauge}", label) == {}
    left = Counter((one["endpoint"], one["client_abort_phase"]) for one in lines if one["outcome"] == "client_aborted")
    assert tally(seen, "millrace_client_aborts_total", "route", "phase") == left
    reasons = Counter((one["model"], one["finish_reason"]) for one in lines if one["finish_reason"])
    counted = tally(seen, "millrace_finish_reasons_total", "model", "finish_reason")
    assert counted.keys() == reasons.keys()
    assert all(counted[key] >= reasons[key] for key in reasons), "a call may have more choices than one"
    refused = sum(one["outcome"] == "rejected" for one in lines)
    assert sum(tally(seen, "millrace_rejected_total", "reason").values()) == refused


def test_what_is_in_flight_makes_up_the_difference_at_any_moment(seen: Storm) -> None:
    """In no turn of the loop are there calls begun that neither have ended nor are in flight."""
    assert seen.moment_count > 50
    assert seen.imbalances == []


def test_no_counter_goes_back(seen: Storm) -> None:
    """From one scrape to the next, in both formats, everything counted is there and is no less."""
    assert len(seen.scrapes) >= 4
    for before, after in zip(seen.scrapes, [*seen.scrapes[1:], seen.end], strict=True):
        later = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in after.samples}
        for sample in before.samples:
            if sample.name.endswith(_ONLY_UP) and not sample.name.startswith("millrace_worker_"):
                assert later[(sample.name, *sorted(sample.labels.items()))] >= sample.value, sample


def test_a_scrape_in_the_storm_adds_up(seen: Storm) -> None:
    """To the call that begins, ends or moves on at that moment."""
    for scrape in seen.scrapes:
        begun, ended, active = (
            scrape.total(f"millrace_{name}") for name in ("requests_started_total", "requests_total", "streams_active")
        )
        assert abs(begun - ended - active) <= 1
    assert any(scrape.total("millrace_streams_active") > 10 for scrape in seen.scrapes)


def test_a_histogram_is_in_itself_right(seen: Storm) -> None:
    """Its buckets only grow, the last one is its count, and its sum is between what its buckets allow."""
    checked = 0
    for metric in CATALOGUE:
        if metric.kind != "histogram":
            continue
        buckets: defaultdict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
        for sample in seen.end.of_name(f"{metric.name}_bucket"):
            key = tuple(sample.labels[label] for label in metric.labels)
            buckets[key].append((float(sample.labels["le"]), sample.value))
        counts = tally(seen, f"{metric.name}_count", *metric.labels)
        sums = tally(seen, f"{metric.name}_sum", *metric.labels)
        for key, found in buckets.items():
            values = [value for _, value in sorted(found)]
            assert isinf(max(found)[0])
            assert values == sorted(values)
            assert values[-1] == counts.get(key, 0)
            least, most = _limits(sorted(found))
            assert least - 1e-6 <= sums.get(key, 0.0) <= most + 1e-6, (metric.name, key)
            checked += 1
    assert checked > 100


_ONLY_UP: Final = ("_total", "_count", "_bucket", "_sum")


def _limits(buckets: Sequence[tuple[float, float]]) -> tuple[float, float]:
    least = most = before_bound = before = 0.0
    for bound, value in buckets:
        if value > before:
            least += before_bound * (value - before)
            most += bound * (value - before)
        before_bound, before = bound, value
    return least, most


# --- attempts and tokens


def test_every_attempt_is_one_request_of_a_provider(seen: Storm) -> None:
    """Nobody was asked for anything that is not accounted for, and both say alike how it went."""
    asked = [record for _, record in attempts(seen) if record is not None]
    assert len(asked) == sum(map(len, seen.records.values())) > 2000
    assert len({id(record) for record in asked}) == len(asked)
    given_up = [line for line, record in attempts(seen) if record is None]
    assert len(given_up) < len(asked) // 2


def test_attempts_are_counted_as_they_are_settled(seen: Storm) -> None:
    """By target, model, result and error."""
    settled = seen.lines("attempt.settled")
    counted = tally(seen, "millrace_upstream_attempts_total", "upstream", "model", "result", "error_type")
    assert counted == Counter(
        (upstream(one), one["model"], one["result"], one.get("error_type", "")) for one in settled
    )
    firsts = tally(seen, "millrace_upstream_ttft_seconds_count", "upstream", "model")
    assert sum(firsts.values()) <= sum("ttft_s" in one for one in settled)


def test_a_call_says_how_many_attempts_were_made_for_it(seen: Storm) -> None:
    """Those that lost a race too, and none that was not made any more."""
    made = by_call(seen.lines("attempt.settled"))
    wrong = [line for told, line in answers(seen) if line["attempts"] != len(made.get(told.ticket, ()))]
    assert wrong == []


def test_failovers_and_resumes_are_counted_as_they_are_logged(seen: Storm) -> None:
    """A seam is where an attempt went on with an answer; a failover behind every attempt that failed but the last."""
    lines = seen.lines("stream.finished")
    resumed = Counter[tuple[str, ...]]()
    for line in lines:
        resumed[line["model"],] += line["resumed"]
    assert tally(seen, "millrace_stream_resumes_total", "model") == +resumed
    failed = Counter(line["request_id"] for line in seen.lines("attempt.settled") if line["result"] == "failed")
    passed_over = Counter[tuple[str, ...]]()
    for line in lines:
        is_last = line["outcome"] in ("upstream_error", "truncated", "stalled", "deadline")
        passed_over[line["model"],] += max(0, failed[line["request_id"]] - is_last)
    assert tally(seen, "millrace_failovers_total", "model") == +passed_over


def test_tokens_are_those_of_the_log_and_of_the_providers(seen: Storm) -> None:
    """What a provider reported of a whole answer is what it sent, to the token; an estimate is of what it sent."""
    exact = 0
    for line, record in attempts(seen):
        if record is None or "output_tokens" not in line:
            continue
        if line["usage_source"] == "reported":
            if line["result"] == "completed":
                assert line["output_tokens"] == record.tokens_sent, (line, record)
                exact += 1
            else:
                assert line["output_tokens"] <= record.tokens_sent, (line, record)
        else:
            assert line["output_tokens"] <= -(-LONGEST_TOKEN * record.tokens_sent // 4), (line, record)
    assert exact > 1000
    settled = seen.lines("attempt.settled")
    for name in ("input_tokens", "output_tokens"):
        spent = Counter[tuple[str, ...]]()
        for line in settled:
            spent[line["model"], upstream(line)] += line.get(name, 0)
        assert tally(seen, f"millrace_{name}_total", "model", "upstream") == +spent
    sources = {"reported": "reported", "estimated": "counted"}
    told = Counter((upstream(one), sources[one["usage_source"]]) for one in settled if "usage_source" in one)
    assert tally(seen, "millrace_usage_total", "upstream", "source") == told


def test_what_was_generated_was_delivered_or_wasted(seen: Storm) -> None:
    """Of a whole answer: the tokens that its client was told of, and those that are wasted, are all there were."""
    settled = by_call(seen.lines("attempt.settled"))
    checked = 0
    for told, line in answers(seen):
        generated = sum(one.get("output_tokens", 0) for one in settled.get(told.ticket, ()))
        assert 0 <= line.get("wasted_tokens", 0) <= generated
        usage = told.usage
        if usage is not None:
            checked += 1
            assert usage["completion_tokens"] == line["output_tokens"]
            assert usage["prompt_tokens"] == line["input_tokens"]
        if line["outcome"] == "completed":
            attempts_of = settled[told.ticket]
            delivered = generated - line.get("wasted_tokens", 0)
            if any(one.get("usage_source") == "estimated" for one in attempts_of):
                assert delivered <= line["output_tokens"], (line, attempts_of)
            else:
                assert delivered == line["output_tokens"], (line, attempts_of)
    assert checked > 800


def test_waste_is_counted_as_it_is_logged(seen: Storm) -> None:
    """By model; and by reason, where the reason is in the line of the attempt."""
    by_model = Counter[tuple[str, ...]]()
    for line in seen.lines("stream.finished"):
        by_model[line["model"],] += line.get("wasted_tokens", 0)
    assert tally(seen, "millrace_tokens_wasted_total", "model") == +by_model
    lost = Counter[tuple[str, ...]]()
    reasons = {"hedge_lost": "hedge_loser", "client_gone": "client_abort"}
    for line in seen.lines("attempt.settled"):
        if line.get("reason") in reasons:
            lost[line["model"], upstream(line), reasons[line["reason"]]] += line.get("output_tokens", 0)
    counted = tally(seen, "millrace_tokens_wasted_total", "model", "upstream", "reason")
    assert {key: value for key, value in counted.items() if key[2] in reasons.values()} == +lost
    unheard = Counter[tuple[str, ...]]()
    failed = Counter[tuple[str, ...]]()
    for line in seen.lines("attempt.settled"):
        if line["result"] == "failed":
            key = line["model"], upstream(line), "failed_attempt"
            failed[key] += line.get("output_tokens", 0)
            unheard[key] += 0 if line["is_delivered"] else line.get("output_tokens", 0)
    for whose, value in failed.items():
        assert unheard[whose] <= counted.get(whose, 0) <= value, whose


# --- what clients had of it


def test_a_stream_is_logged_with_the_deltas_that_its_client_got(seen: Storm) -> None:
    """Each once; and none has a time to its first token that never came."""
    checked = 0
    for told, line in answers(seen):
        if told.has_left or not told.is_stream:
            continue
        count = told.delta_count
        assert (line["ttft_s"] is not None) == (count > 0), (told.kind, line)
        if told.kind.path == "/v1/chat/completions" and told.kind.model != "tools":
            assert line["delta_count"] == count, (told.kind, line)
            checked += 1
    assert checked > 1000


def test_times_are_those_of_streams_that_had_any(seen: Storm) -> None:
    """As many times to the first token as streams with one, by model and target; the others alike."""
    lines = [line for line in seen.lines("stream.finished") if line["stream"]]
    first = Counter(line["model"] for line in lines if line["ttft_s"] is not None)
    assert tally(seen, "millrace_ttft_seconds_count", "model") == {(model,): value for model, value in first.items()}
    for field, name in (("ttfc_s", "time_to_first_content_seconds"), ("tpot_s", "tpot_seconds")):
        told = sum(line[field] is not None for line in lines)
        assert sum(tally(seen, f"millrace_{name}_count", "model").values()) == told <= sum(first.values())
    paces = tally(seen, "millrace_tpot_seconds_count", "model", "upstream")
    assert tally(seen, "millrace_stream_tokens_per_second_count", "model", "upstream") == paces
    gaps = sum(line["max_gap_s"] is not None for line in lines)
    assert sum(tally(seen, "millrace_stream_max_gap_seconds_count", "model").values()) == gaps
    stalls = sum(line.get("stalls", 0) for line in lines)
    assert sum(tally(seen, "millrace_stalls_total", "model").values()) == stalls > 0


def test_no_stream_keeps_all_objectives_without_keeping_each(seen: Storm) -> None:
    """Every stream that can be judged is, in each of them, as its line says."""
    lines = [line for line in seen.lines("stream.finished") if "slo" in line]
    unjudged = ("client_aborted", "rejected")
    assert len(lines) == sum(
        line["stream"] and line["outcome"] not in unjudged for line in seen.lines("stream.finished")
    )
    judged: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        assert line["slo"]["all"] == all(met for name, met in line["slo"].items() if name != "all")
        judged.update((line["model"], name, str(met).lower()) for name, met in line["slo"].items())
    counted = tally(seen, "millrace_slo_streams_total", "model", "objective", "met")
    assert counted == judged
    for model in {line["model"] for line in lines}:
        for one in ("ttft", "tpot", "smooth", "complete"):
            assert counted.get((model, one, "true"), 0) >= counted.get((model, "all", "true"), 0)


def test_http_answers_are_counted_as_clients_had_them(seen: Storm) -> None:
    """By path and status; of who left nobody knows whether it was told any."""
    names = {"/v1/chat/completions": "chat_completions", "/api/chat/stream": "chat_stream"}
    had: Counter[tuple[str, ...]] = Counter()
    left: Counter[str] = Counter()
    for told in seen.told:
        if told.status:
            had[names[told.kind.path], str(told.status)] += 1
        else:
            left[names[told.kind.path]] += 1
    counted = tally(seen, "millrace_http_responses_total", "route", "code")
    for answer, value in had.items():
        assert value <= counted[answer] <= value + left[answer[0]], answer
    assert counted.keys() >= had.keys()
