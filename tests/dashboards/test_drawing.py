"""Numbers become pictures that say the same."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from dashboards.drawing import BLUES, COLOURS, Frame, Line, bands, graph, heatmap, in_words, sparkline, ticks
from dashboards.panels import PALETTE

FRAME = Frame(400, 200, 1000.0, 1100.0)


def points(*values: float) -> list[tuple[float, float]]:
    """Return values ten seconds apart."""
    return [(1000.0 + 10 * place, value) for place, value in enumerate(values)]


def courses(svg: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each line of a picture."""
    found = re.findall(r'<polyline points="([^"]+)"', svg)
    return [[(float(x), float(y)) for x, y in (corner.split(",") for corner in one.split())] for one in found]


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "words"),
    [
        (0.98765, "percentunit", 1, "98.8%"),
        (0.0, "percentunit", None, "0%"),
        (0.0123, "s", None, "12.3 ms"),
        (90.0, "s", None, "1.5 min"),
        (0.0, "s", None, "0 s"),
        (0.00005, "s", None, "50 µs"),
        (12.345, "reqps", None, "12.3 req/s"),
        (1500.0, "reqps", None, "1.5 K req/s"),
        (31_400.0, "short", None, "31.4 K"),
        (-2_000_000.0, "short", None, "-2 Mil"),
        (1234.6, "locale", 0, "1,235"),
        (52_428_800.0, "bytes", None, "50 MiB"),
        (1.0, "bool_yes_no", None, "Yes"),
        (0.0, "bool_yes_no", None, "No"),
        (14.444, "none", 1, "14.4"),
        (1795361546.0, "none", None, "1795361546"),
        (math.nan, "s", None, "–"),
    ],
)
def test_a_value_is_told_in_its_unit(value: float, unit: str, decimals: int | None, words: str) -> None:
    """As Grafana would, more or less."""
    assert in_words(value, unit, decimals) == words


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-3, 8), (0.97, 1), (0, 12_345)])
def test_ticks_are_round_and_between_the_bounds(low: float, high: float) -> None:
    """Enough of them to read a value, and not so many that they touch."""
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    steps = [later - earlier for earlier, later in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_a_line_goes_from_the_left_to_the_right_and_up_with_its_values() -> None:
    """The first value is at the beginning of the time range, and a larger one is higher."""
    (course,) = courses(graph([Line("a", "#fff", points(1, 3, 2))], FRAME, "s", low=0))
    assert course[0][0] == pytest.approx(FRAME.x(1000))
    assert course[1][1] < course[2][1] < course[0][1]


def test_a_gap_is_a_gap() -> None:
    """What is no number is not drawn, nor is what is not there."""
    svg = graph([Line("a", "#fff", points(1, 2, math.nan, 3, 4))], FRAME, "s")
    assert [len(course) for course in courses(svg)] == [2, 2]
    holed = [*points(1, 2, 3), (1080.0, 4.0), (1090.0, 5.0)]
    assert [len(course) for course in courses(graph([Line("a", "#fff", holed)], FRAME, "s"))] == [3, 2]
    assert "nan" not in svg


def test_stacked_lines_lie_on_each_other_but_a_target_does_not() -> None:
    """The upper one is at the sum; what is dashed stands by itself."""
    lines = [
        Line("a", "#111", points(1, 1)),
        Line("b", "#222", points(2, 2)),
        Line("target", "#333", points(1, 1), is_dashed=True),
    ]
    lower, upper, target = courses(graph(lines, FRAME, "s", is_stacked=True, low=0, high=3))
    assert upper[0][1] == pytest.approx(FRAME.y(1), abs=0.1)
    assert lower[0][1] == target[0][1] == pytest.approx(FRAME.y(1 / 3), abs=0.1)


def test_bars_have_the_height_of_their_values() -> None:
    """Nothing is drawn for nothing."""
    svg = graph([Line("a", "#abc", points(1, 0, 2))], FRAME, "cps", bars=True, fill=0.6, low=0, high=2)
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert len(heights) == 2


def test_bytes_have_ticks_at_round_numbers_of_their_unit() -> None:
    """Those of a MiB, and not of a million."""
    svg = graph([Line("a", "#fff", points(0, 60 * 2**20))], FRAME, "bytes")
    assert {"0", "20 MiB", "40 MiB"} <= set(re.findall(r">([^<>]+)</text>", svg))


def test_a_limit_is_drawn_where_it_can_be_seen() -> None:
    """One that is far above the lines is not, so that they stay readable."""
    line = [Line("a", "#fff", points(1, 2))]
    assert "#f00" in graph(line, FRAME, "s", limits=[(1.5, "#f00"), (0.5, "none")])
    assert "#f00" not in graph(line, FRAME, "s", limits=[(14.4, "#f00")])


@pytest.mark.parametrize("values", [(), (0, 0, 0), (5, 5), (math.nan, math.inf), (1,)])
def test_a_graph_of_little_is_drawn_all_the_same(values: tuple[float, ...]) -> None:
    """Of nothing, of one point, of a line that is flat, of no number at all."""
    svg = graph([Line("a", "#fff", points(*values))], FRAME, "s", is_stacked=True)
    assert svg.startswith("<svg")
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_sparkline_shows_the_course_of_a_number() -> None:
    """From its least to its most; of a single point there is no course."""
    ((first, last),) = courses(sparkline(points(1, 2), 100, 20, "#fff"))
    assert (first[0], last[0]) == (0, 100)
    assert first[1] > last[1]
    assert sparkline(points(1, math.nan), 100, 20, "#fff") == ""


def test_a_heatmap_is_brightest_where_most_is() -> None:
    """Rows go from the bottom up; an empty cell is not drawn."""
    svg = heatmap([("10 ms", points(1, 0, 0)), ("1 s", points(0, 0, 9))], FRAME)
    cells = re.findall(r'<rect x="[\d.]+" y="([\d.]+)"[^>]*fill="(#\w+)"', svg)
    assert len(cells) == 2
    assert float(cells[0][0]) > float(cells[1][0])
    assert BLUES.index(cells[0][1]) < BLUES.index(cells[1][1]) == len(BLUES) - 1
    assert heatmap([], FRAME).startswith("<svg")


def test_a_band_has_the_colours_of_its_states() -> None:
    """Each as long as it held."""
    svg = bands([("p/m & co", points(1, 1, 3))], FRAME, {1.0: ("closed", "#0f0"), 3.0: ("open", "#f00")})
    found = re.findall(r'width="([\d.]+)"[^>]* fill="(#0f0|#f00)"', svg)
    assert [colour for _, colour in found] == ["#0f0", "#f00"]
    assert float(found[0][0]) == pytest.approx(2 * float(found[1][0]), abs=0.2)
    assert "p/m &amp; co" in svg


def test_every_colour_of_the_boards_is_known() -> None:
    """A name that Grafana knows and this does not would fail in the middle of a page."""
    used = {colour for names in PALETTE.values() for colour in names.values()}
    assert used <= COLOURS.keys()
