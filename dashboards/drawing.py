"""Numbers as pictures, for a reader who has no Grafana at hand: SVG out of points, in the manner of Grafana's panels.

Knows nothing of boards, queries or Prometheus. Times are in seconds since the epoch; what is no number is a gap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

Points = Sequence[tuple[float, float]]

COLOURS: Mapping[str, str] = {
    "green": "#73bf69", "yellow": "#fade2a", "light-orange": "#ffb357", "orange": "#ff9830",
    "semi-dark-orange": "#ff780a", "dark-orange": "#fa6400", "red": "#f2495c", "dark-red": "#c4162a",
    "light-blue": "#8ab8ff", "blue": "#5794f2", "dark-blue": "#3274d9", "purple": "#b877d9", "dark-purple": "#8f3bb8",
    "text": "#d8d9da", "transparent": "none",
}  # fmt: skip
"""Grafana's names for colours, as far as the boards use them."""

OTHERS = ("#5794f2", "#73bf69", "#ff9830", "#b877d9", "#fade2a", "#8ab8ff", "#f2495c", "#96d98d", "#ffb357", "#ca95e5")
"""For names that have no colour of their own."""

AXIS_WIDTH, AXIS_HEIGHT = 58, 20
BLUES = ("#0b1a33", "#0f2a55", "#143f7f", "#1f60c4", "#3274d9", "#5794f2", "#8ab8ff", "#c0d8ff", "#f0f6ff")

_SCALES: Mapping[str, tuple[tuple[float, str], ...]] = {
    "s": ((86400, "day"), (3600, "hour"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "short": ((1e9, "Bil"), (1e6, "Mil"), (1e3, "K"), (1, "")),
}
_SUFFIX: Mapping[str, str] = {"reqps": "req/s", "cps": "c/s"}


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a graph."""

    name: str
    colour: str
    points: Points
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What a graph is drawn into: its size in pixels, and the times at its two sides."""

    width: int
    height: int
    begin_s: float
    end_s: float

    def x(self, at_s: float) -> float:
        """Return where a time is."""
        share = (at_s - self.begin_s) / (self.end_s - self.begin_s)
        return AXIS_WIDTH + share * (self.width - AXIS_WIDTH - 6)

    def y(self, share: float) -> float:
        """Return where a value is that lies so far up."""
        return 6 + (1 - share) * (self.height - AXIS_HEIGHT - 6)


def in_words(value: float, unit: str = "none", decimals: int | None = None) -> str:
    """Return a value with its unit, as short as one can read it."""
    if math.isnan(value):
        return "–"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "percentunit":
        return f"{_digits(value * 100, decimals)}%"
    if unit == "locale":
        return f"{value:,.{decimals or 0}f}"
    scales = _SCALES.get("short" if unit in _SUFFIX else unit, ())
    for factor, word in scales:
        if value and abs(value) >= factor:
            return " ".join(filter(None, (_digits(value / factor, decimals), word, _SUFFIX.get(unit, ""))))
    return " ".join(filter(None, (_digits(value, decimals), "s" if unit == "s" else _SUFFIX.get(unit, ""))))


def _digits(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two values, about so many."""
    rough = (high - low) / max(1, count)
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if step * factor >= rough * 0.999)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def sparkline(points: Points, width: int, height: int, colour: str) -> str:
    """Return the recent course of one number, without axes."""
    known = [(at_s, value) for at_s, value in points if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    begin_s, end_s = known[0][0], known[-1][0]

    def at(point: tuple[float, float]) -> str:
        share = (point[1] - low) / (high - low) if high > low else 0.5
        return f"{(point[0] - begin_s) / (end_s - begin_s) * width:.1f},{height - 2 - share * (height - 4):.1f}"

    line = " ".join(map(at, known))
    shape = f'<polygon points="0,{height} {line} {width},{height}" fill="{colour}" fill-opacity=".18"/>'
    return _svg(width, height, [shape, f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2"/>'])


def graph(
    lines: Sequence[Line],
    frame: Frame,
    unit: str,
    *,
    is_stacked: bool = False,
    bars: bool = False,
    fill: float = 0.08,
    low: float | None = None,
    high: float | None = None,
    limits: Sequence[tuple[float, str]] = (),
) -> str:
    """Return lines over time, above each other where ``is_stacked``; ``limits`` are values and their colours."""
    layers = _stacked(lines) if is_stacked else [_Layer(line, [0.0] * len(line.points), line.points) for line in lines]
    values = [value for layer in layers for _, value in layer.points if math.isfinite(value)]
    bottom = min(values, default=0.0) if low is None else low
    top = max(values, default=1.0) * 1.05 if high is None else high
    top = top if top > bottom else bottom + 1
    shapes = [*_axes(frame, bottom, top, unit)]

    def y(value: float) -> float:
        return frame.y((min(max(value, bottom), top) - bottom) / (top - bottom))

    for layer in layers:
        draw = _bars if bars and not layer.line.is_dashed else _course
        shapes += draw(frame, layer, y, 0.0 if layer.line.is_dashed else fill)
    for value, colour in limits:
        if bottom <= value <= top and colour != "none":
            shapes.append(_horizontal(frame, y(value), colour, "6 6"))
    return _svg(frame.width, frame.height, shapes)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A line as it is drawn: on top of others, which are its floor."""

    line: Line
    floor: Sequence[float]
    points: Points


def _stacked(lines: Sequence[Line]) -> list[_Layer]:
    """Put lines on top of each other; a dashed one stands by itself."""
    total: dict[float, float] = {}
    layers = []
    for line in lines:
        floor = [0.0 if line.is_dashed else total.get(at_s, 0.0) for at_s, _ in line.points]
        points = [(at_s, base + value) for (at_s, value), base in zip(line.points, floor, strict=True)]
        layers.append(_Layer(line, floor, points))
        if not line.is_dashed:
            total |= {at_s: value for at_s, value in points if math.isfinite(value)}
    return layers


def _course(frame: Frame, layer: _Layer, y: Callable[[float], float], fill: float) -> Iterator[str]:
    colour = layer.line.colour
    dash = ' stroke-dasharray="6 5"' if layer.line.is_dashed else ""
    for run in _runs(layer.points):
        upper = [f"{frame.x(at_s):.1f},{y(value):.1f}" for _, (at_s, value) in run]
        if fill:
            lower = [f"{frame.x(at_s):.1f},{y(layer.floor[place]):.1f}" for place, (at_s, _) in reversed(run)]
            yield f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="{fill}"/>'
        yield f'<polyline points="{" ".join(upper)}" fill="none" stroke="{colour}" stroke-width="1.3"{dash}/>'


def _bars(frame: Frame, layer: _Layer, y: Callable[[float], float], fill: float) -> Iterator[str]:
    width = max(1.0, (frame.width - AXIS_WIDTH) / max(1, len(layer.points)) - 1)
    for base, (at_s, value) in zip(layer.floor, layer.points, strict=True):
        if math.isfinite(value) and value > base:
            left, right = _sides(frame, at_s, width)
            box = _box(left, y(value), right - left, y(base) - y(value))
            yield f'<rect {box} fill="{layer.line.colour}" fill-opacity="{fill}"/>'


def _sides(frame: Frame, at_s: float, width: float) -> tuple[float, float]:
    """Return where a bar around a moment begins and ends."""
    middle, half = frame.x(at_s), max(1.0, width) / 2
    return max(float(AXIS_WIDTH), middle - half), min(frame.width - 6.0, middle + half)


def _runs(points: Points) -> Iterator[list[tuple[int, tuple[float, float]]]]:
    """Yield what lies between gaps: a value that is missing for longer than usual is one."""
    usual_s = min((later[0] - earlier[0] for earlier, later in pairwise(points)), default=0.0)
    run: list[tuple[int, tuple[float, float]]] = []
    for place, (at_s, value) in enumerate(points):
        if run and (not math.isfinite(value) or at_s - run[-1][1][0] > 1.5 * usual_s):
            yield run
            run = []
        if math.isfinite(value):
            run.append((place, (at_s, value)))
    if run:
        yield run


def heatmap(rows: Sequence[tuple[str, Points]], frame: Frame) -> str:
    """Return one row of cells for each bucket, from the bottom up; a cell is the brighter the more is in it."""
    most = max((value for _, points in rows for _, value in points if math.isfinite(value)), default=0.0)
    height = (frame.height - AXIS_HEIGHT - 6) / max(1, len(rows))
    shapes = [*_time_axis(frame)]
    for place, (name, points) in enumerate(rows):
        y = frame.y(0) - (place + 1) * height
        if place % max(1, math.ceil(len(rows) / 8)) == 0:
            shapes.append(_text(AXIS_WIDTH - 6, y + height / 2 + 4, name, "end"))
        width = (frame.width - AXIS_WIDTH - 6) / max(1, len(points))
        for at_s, value in points:
            if most and value > 1e-9:
                colour = BLUES[min(len(BLUES) - 1, int(math.sqrt(value / most) * len(BLUES)))]
                left, right = _sides(frame, at_s, width - 0.5)
                shapes.append(f'<rect {_box(left, y + 0.5, right - left, max(1.0, height - 1))} fill="{colour}"/>')
    return _svg(frame.width, frame.height, shapes)


def bands(rows: Sequence[tuple[str, Points]], frame: Frame, states: Mapping[float, tuple[str, str]]) -> str:
    """Return one band for each series, coloured by its value; ``states`` gives values their names and colours."""
    height = (frame.height - AXIS_HEIGHT - 6) / max(1, len(rows))
    shapes = [*_time_axis(frame)]
    for place, (name, points) in enumerate(rows):
        y = 6 + place * height
        for value, begin_s, end_s in _held(points):
            _, colour = states.get(value, ("", COLOURS["text"]))
            left, right = frame.x(begin_s), frame.x(min(frame.end_s, end_s))
            box = _box(left, y + 2, max(1.0, right - left), max(2.0, height - 4))
            shapes.append(f'<rect {box} fill="{colour}" fill-opacity=".6"/>')
        shapes.append(_text(AXIS_WIDTH + 6, y + height / 2 + 4, name, "start", "#fff"))
    return _svg(frame.width, frame.height, shapes)


def _held(points: Points) -> Iterator[tuple[float, float, float]]:
    """Yield each value with the times from and until which it held; it holds until the next point."""
    usual_s = min((later[0] - earlier[0] for earlier, later in pairwise(points)), default=0.0)
    for run in _runs(points):
        for value, same in groupby((point for _, point in run), key=lambda point: point[1]):
            times = [at_s for at_s, _ in same]
            yield value, times[0], times[-1] + usual_s


def _axes(frame: Frame, low: float, high: float, unit: str) -> Iterator[str]:
    factor = next((factor for factor, _ in _SCALES["bytes"] if factor <= high), 1) if unit == "bytes" else 1
    for value in (factor * share for share in ticks(low / factor, high / factor, max(2, frame.height // 45))):
        y = frame.y((value - low) / (high - low))
        yield _horizontal(frame, y, "#2c3235", "")
        yield _text(AXIS_WIDTH - 6, y + 4, in_words(value, unit), "end")
    yield from _time_axis(frame)


def _time_axis(frame: Frame) -> Iterator[str]:
    span_s = frame.end_s - frame.begin_s
    most = max(2, (frame.width - AXIS_WIDTH) // 75)
    steps = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step_s = next((step for step in steps if span_s / step <= most), 86400)
    at_s = math.ceil(frame.begin_s / step_s) * step_s
    while at_s <= frame.end_s:
        if AXIS_WIDTH + 12 < frame.x(at_s) < frame.width - 20:
            words = time.strftime("%H:%M:%S" if step_s < 60 else "%H:%M", time.localtime(at_s))
            yield _text(frame.x(at_s), frame.height - 5, words, "middle")
        at_s += step_s


def _horizontal(frame: Frame, y: float, colour: str, dash: str) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{AXIS_WIDTH}" x2="{frame.width - 6}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"{dashed}/>'


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "") -> str:
    style = f' style="fill:{colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _svg(width: int, height: int, shapes: Sequence[str]) -> str:
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(shapes)}</svg>'
