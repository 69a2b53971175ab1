"""The search for what is sustained, and what the cases are called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.cases import (
    CASES,
    LONG_PROMPT,
    MIDDLE_STREAMS,
    PACED,
    STREAMS,
    Effort,
    idle,
    most,
    mostly,
    without,
)
from tests.benchmarks.report import Figure
from tests.benchmarks.test_report import READING


@pytest.mark.parametrize("first", [1, 40, 600, 6000])
@pytest.mark.parametrize("limit", [1, 2, 37, 599, 600, 1234, 5999])
def test_the_most_is_found_from_wherever_it_begins(first: int, limit: int) -> None:
    """Within its precision, and with few looks."""
    asked: list[int] = []

    def passes(count: int) -> bool:
        asked.append(count)
        return count <= limit

    found = most(passes, first, precision=0.05)
    assert found <= limit
    assert limit - found <= max(1, 0.06 * limit)
    assert len(asked) == len(set(asked)) < 45


def test_the_search_ends_at_the_ceiling_and_at_nothing() -> None:
    """Where all pass, and where none does."""
    assert most(lambda count: count > 0, 10, ceiling=500) == 500
    assert most(lambda count: count < 0, 600) == 0


@pytest.mark.parametrize(
    ("seen", "told", "look_count"),
    [("yy", "y", 2), ("nn", "n", 2), ("yny", "y", 3), ("nyn", "n", 3), ("nyy", "y", 3), ("ynn", "n", 3)],
)
def test_one_look_of_three_may_be_out_of_line(seen: str, told: str, look_count: int) -> None:
    """And the third is only had where the two before differ."""
    looks = iter(seen)
    assert mostly(lambda: next(looks) == "y") == (told == "y")
    assert len(seen) - len(list(looks)) == look_count


def test_a_limit_that_was_not_the_gateways_is_told() -> None:
    """When its workers had time to spare in most rounds."""
    busy, bored = (replace(READING, spent_s=cores * READING.seconds) for cores in (0.97, 0.5))
    assert idle([busy, bored, busy], 1) == ""
    assert idle([busy, bored, bored], 1) == "not the gateway's limit: it had 0.50 of 1.00 cores"
    assert idle([busy], 2) == "not the gateway's limit: it had 0.97 of 2.00 cores"


def test_the_cases_have_the_names_that_only_knows() -> None:
    """And each says what it is."""
    assert " ".join(CASES) == "relay ttft dialects short prompts sustained transit memory tls workers start"
    assert all(case.__doc__ for case in CASES.values())


def test_the_load_is_what_the_table_says() -> None:
    """100 tokens, 50 each second; 200 kB of prompt."""
    assert PACED.tokens == 100
    assert pytest.approx(50) == 1 / PACED.interval_s
    assert PACED.stream_s == pytest.approx(2.02)
    assert 199_000 < len(LONG_PROMPT) <= 200_000
    assert STREAMS[0] < MIDDLE_STREAMS < STREAMS[1]


def test_a_quick_run_is_quicker() -> None:
    """In all that takes time."""
    quick, whole = Effort.quick(), Effort()
    assert (quick.rounds, quick.starts) < (whole.rounds, whole.starts)
    assert quick.seconds + quick.ramp_s < whole.seconds + whole.ramp_s


def test_a_side_can_be_left_out_of_a_figure() -> None:
    """Where it has no meaning."""
    figure = Figure(label="CPU", values={"gateway": 1.0, "direct": 0.0})
    assert without("direct", figure).values == {"gateway": 1.0}
