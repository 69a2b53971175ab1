"""Expressions that can be written down are those that the catalogue has series for."""

from __future__ import annotations

import pytest

from dashboards.queries import BOARD, RULES, at_least_none, families, recorded, runnable, share
from gateway.telemetry.catalogue import BY_NAME


def test_a_board_follows_the_variables_of_the_labels_that_a_family_has() -> None:
    """Job and instance always, model and upstream where there are such labels."""
    assert BOARD.series("millrace_build_info") == 'millrace_build_info{job=~"$job", instance=~"$instance"}'
    found = BOARD.series("millrace_failovers_total")
    assert found.endswith('model=~"$model", from_upstream=~"$upstream"}')


def test_rules_mean_every_series() -> None:
    """They know no variables."""
    assert RULES.series("millrace_build_info") == "millrace_build_info"


def test_what_is_wanted_of_a_label_is_one_value_several_or_any_but_one() -> None:
    """And it replaces the variable that the label would follow."""
    name = "millrace_requests_total"
    assert RULES.series(name, outcome="completed") == name + '{outcome="completed"}'
    assert RULES.series(name, outcome="!completed") == name + '{outcome!="completed"}'
    assert RULES.series(name, outcome=("stalled", "truncated")) == name + '{outcome=~"stalled|truncated"}'
    assert RULES.series(name, outcome="") == name
    assert 'model="chat"' in BOARD.series(name, model="chat")
    assert "$model" not in BOARD.series(name, model="chat")


def test_what_the_catalogue_has_not_cannot_be_asked_for() -> None:
    """A slip of the pen is an error where it is made."""
    with pytest.raises(KeyError):
        BOARD.rate("millrace_request_total")
    with pytest.raises(ValueError, match="has no label upstream"):
        BOARD.rate("millrace_requests_total", upstream="x")
    with pytest.raises(ValueError, match="is a histogram"):
        BOARD.rate("millrace_ttft_seconds")
    with pytest.raises(ValueError, match="is a counter"):
        BOARD.rate("millrace_requests_total", part="sum")
    with pytest.raises(ValueError, match="has no label le"):
        BOARD.rate("millrace_ttft_seconds", part="sum", le="1")


def test_quantiles_and_means_are_made_of_a_histograms_own_series() -> None:
    """Over the interval of rates, or over all of the time on the screen."""
    assert RULES.quantile(0.5, "millrace_ttft_seconds", "model") == (
        "histogram_quantile(0.5, sum by (le, model) (rate(millrace_ttft_seconds_bucket[$__rate_interval])))"
    )
    assert "increase(millrace_ttft_seconds_bucket[$__range])" in RULES.quantile(
        0.5, "millrace_ttft_seconds", over="$__range"
    )
    assert RULES.mean("millrace_ttft_seconds") == (
        "sum (rate(millrace_ttft_seconds_sum[$__rate_interval])) / "
        "(sum (rate(millrace_ttft_seconds_count[$__rate_interval])) > 0)"
    )
    assert RULES.latest("max", "millrace_worker_up", "worker") == "max by (worker) (millrace_worker_up)"
    assert RULES.increase("millrace_requests_total", over="1h") == "sum (increase(millrace_requests_total[1h]))"


def test_a_share_of_something_is_0_where_there_is_none_of_it() -> None:
    """And nothing at all where there is nothing to have a share of."""
    assert share("a", "b") == "(a or 0 * b) / (b > 0)"
    assert at_least_none("a", "b") == "a or 0 * b"


def test_the_families_of_an_expression_are_found_once_each_and_not_in_strings() -> None:
    """Whichever of a histogram's series they are."""
    expression = BOARD.mean("millrace_ttft_seconds") + " + " + BOARD.rate("millrace_spans_dropped_total")
    assert families(expression + ' and x{family="millrace_nothing"}') == [
        BY_NAME["millrace_ttft_seconds"],
        BY_NAME["millrace_spans_dropped_total"],
    ]
    assert families("millrace:slo_errors:ratio_rate1h") == []
    with pytest.raises(KeyError):
        families("millrace_nothing")


def test_recorded_series_are_found() -> None:
    """They have a colon."""
    found = recorded("millrace:slo_errors:ratio_rate1h / millrace:slo_target:ratio")
    assert found == ["millrace:slo_errors:ratio_rate1h", "millrace:slo_target:ratio"]


def test_an_expression_can_be_run_when_its_variables_have_values() -> None:
    """Those that nobody has chosen mean everything."""
    expression = 'rate(a{model=~"$model", job=~"${job:regex}"}[$__rate_interval]) > $limit'
    assert runnable(expression, {"limit": "2"}, interval="5m") == 'rate(a{model=~".*", job=~".*"}[5m]) > 2'
