"""What several boards show means the same on each."""

from __future__ import annotations

from dashboards.measures import attained, ended, missed, quantiles, within


def test_an_objective_is_met_or_missed_as_the_gateway_has_judged() -> None:
    """Not as buckets would make one guess."""
    assert 'objective="ttft", met="true"' in attained("ttft", "model")
    assert attained("ttft", "model").startswith("(sum by (model) (rate(")
    assert "increase(" in attained("ttft", over="$__range")
    assert 'met="false"' in missed("ttft", over="1h")
    assert missed("ttft", over="1h").count("[1h]") == 3


def test_a_target_finds_its_bucket_however_its_bound_is_written() -> None:
    """2 and 2.0 are the same bound, and 200 is another."""
    assert 'le=~"$ttft_slo([.]0)?"' in within("millrace_ttft_seconds", "ttft_slo")
    assert "@" not in within("millrace_ttft_seconds", "ttft_slo")


def test_calls_that_ended_are_counted_by_the_second_or_in_all() -> None:
    """Of any outcome, or of some."""
    assert ended("model", outcome=("stalled", "truncated")).startswith("sum by (model) (rate(millrace_requests_total{")
    assert 'outcome=~"stalled|truncated"' in ended(outcome=("stalled", "truncated"))
    assert "outcome" not in ended(over="$__range")
    assert "increase(" in ended(over="$__range")


def test_quantiles_go_by_their_usual_names() -> None:
    """Each name has its colour."""
    assert list(quantiles("millrace_ttft_seconds", 0.05, 0.5, 0.99)) == ["p5", "p50", "p99"]
