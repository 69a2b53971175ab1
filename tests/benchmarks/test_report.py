"""Medians, ratios and the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from tests.benchmarks.pace import Reading
from tests.benchmarks.report import Figure, added, compared, faults_of, median, medians, ratio, shown, table

READING: Final = Reading(
    seconds=2.0,
    tokens=1000,
    answers=10,
    ttft_p50_ms=20.0,
    ttft_p99_ms=25.0,
    transit_p50_ms=0.1,
    transit_p99_ms=0.9,
    lost=0,
    doubled=0,
    reordered=0,
    truncated=0,
    refused=0,
    broken=0,
    first_fault="",
    spent_s=0.02,
    busiest_s=0.015,
    resident_before_kib=1000,
    resident_after_kib=3000,
    load_cores=0.1,
    streams=100,
)
GATEWAY_S: Final = (0.06, 0.02, 0.04)
NGINX_S: Final = (0.02, 0.01, 0.04)
ROUNDS: Final = [
    {"gateway": replace(READING, spent_s=ours, ttft_p50_ms=21 + ours), "nginx": replace(READING, spent_s=theirs)}
    for ours, theirs in zip(GATEWAY_S, NGINX_S, strict=True)
]


def spent(reading: Reading) -> float:
    """Return one value of a reading."""
    return reading.us_per_token


def test_the_median_is_that_of_the_rounds() -> None:
    """Of each side."""
    assert median(ROUNDS, "gateway", spent) == pytest.approx(40)
    assert medians(ROUNDS, spent) == pytest.approx({"gateway": 40, "nginx": 20})
    assert medians([], spent) == {}


def test_a_ratio_is_taken_within_each_round() -> None:
    """3, 2 and 1; the ratio of the largest to the largest would be another one."""
    assert ratio(ROUNDS, "gateway", "nginx", spent) == pytest.approx(2)
    assert ratio([ROUNDS[0]], "gateway", "nginx", spent) == pytest.approx(3)


def test_there_is_no_ratio_to_who_was_not_there_or_has_spent_nothing() -> None:
    """Where nginx is not installed the column is empty, and nothing fails."""
    alone = [{"gateway": READING}]
    assert ratio(alone, "gateway", "nginx", spent) is None
    assert ratio([{"gateway": READING, "nginx": replace(READING, spent_s=0)}], "gateway", "nginx", spent) is None
    figure = compared("CPU", "µs", alone, spent)
    assert figure.ratio is None
    assert figure.values == {"gateway": pytest.approx(20)}


def test_what_is_added_is_told_without_the_side_it_is_added_to() -> None:
    """The median of the rounds' differences."""
    rounds = [{"direct": READING, **one} for one in ROUNDS]
    figure = added("TTFT", "ms", rounds, lambda one: one.ttft_p50_ms)
    assert figure.values == {"gateway": pytest.approx(1.04), "nginx": 0}


def test_faults_are_told_with_their_side_and_the_first_in_words() -> None:
    """And nothing is told of those who had none."""
    assert faults_of(ROUNDS) == ""
    bad = replace(READING, lost=2, reordered=1, first_fault="reordered: token 7")
    assert faults_of([{"gateway": bad, "nginx": READING}]) == (
        "2 lost, 1 reordered (gateway, 100 streams: reordered: token 7)"
    )


def test_the_table_is_markdown_in_straight_columns() -> None:
    """Only sides that took part have one."""
    lines = table(
        [
            Figure(
                label="CPU per token", unit="µs", values={"nginx": 15.04, "gateway": 1234.5}, ratio=2, against="nginx"
            ),
            Figure(label="TLS", note="left out"),
        ]
    ).splitlines()
    assert [line.split("|")[1:-1] for line in lines] == [
        [" figure            ", " gateway ", " nginx ", " ratio            "],
        [" ----------------- ", " ------: ", " ----: ", " ---------------- "],
        [" CPU per token, µs ", "   1 234 ", "  15.0 ", " 2.00 times nginx "],
        [" TLS               ", "         ", "       ", " left out         "],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.123, "0.12"),
        (9.994, "9.99"),
        (12.34, "12.3"),
        (123.4, "123"),
        (50123.4, "50 123"),
        (-0.5, "-0.50"),
    ],
)
def test_a_number_is_shown_with_digits_that_mean_something(value: float, text: str) -> None:
    """Three or so."""
    assert shown(value) == text


def test_a_reading_is_divided_by_what_went_through() -> None:
    """And by nothing it is nothing."""
    assert READING.us_per_token == pytest.approx(20)
    assert READING.busiest_us_per_token == pytest.approx(15)
    assert READING.us_per_answer == pytest.approx(2000)
    assert READING.tokens_per_s == 500
    assert READING.answers_per_s == 5
    assert READING.cores == pytest.approx(0.01)
    assert READING.kib_per_stream == 20
    nothing = replace(READING, tokens=0, answers=0, streams=0)
    assert (nothing.us_per_token, nothing.us_per_answer, nothing.kib_per_stream) == (0, 0, 0)
    assert nothing.busiest_us_per_token == 0
