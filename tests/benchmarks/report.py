"""What the readings of several rounds say together: medians, ratios, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.benchmarks.pace import Reading
from tests.benchmarks.sides import DIRECT, GATEWAY, LITELLM, NAIVE, NGINX

Round = Mapping[str, Reading]
"""What was read of each side, one soon after the other."""

Read = Callable[[Reading], float]
SIDES: Final = (GATEWAY, NGINX, NAIVE, LITELLM, DIRECT)
"""The order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A line of the table. ``ratio`` is how many times ``against`` the gateway's value is."""

    label: str
    unit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    ratio: float | None = None
    against: str = ""
    note: str = ""


def median(rounds: Sequence[Round], side: str, read: Read) -> float:
    """Return the median over the rounds."""
    return statistics.median(read(one[side]) for one in rounds)


def medians(rounds: Sequence[Round], read: Read) -> dict[str, float]:
    """Return the median of each side that took part."""
    return {side: median(rounds, side, read) for side in (rounds[0] if rounds else ())}


def ratio(rounds: Sequence[Round], side: str, other: str, read: Read) -> float | None:
    """Return the median of how many times the other's value a side's is, in the same round.

    Not the ratio of the medians: what slows the machine down for a while slows both sides of a round. None if there is
    no round with something of both.
    """
    found = [
        read(one[side]) / read(one[other]) for one in rounds if side in one and other in one and read(one[other]) > 0
    ]
    return statistics.median(found) if found else None


def compared(label: str, unit: str, rounds: Sequence[Round], read: Read, *, note: str = "") -> Figure:
    """Return the figure of all sides, and the gateway's ratio to nginx."""
    return Figure(
        label=label,
        unit=unit,
        values=medians(rounds, read),
        ratio=ratio(rounds, GATEWAY, NGINX, read),
        against=NGINX,
        note=note,
    )


def added(label: str, unit: str, rounds: Sequence[Round], read: Read) -> Figure:
    """Return the figure of what each side adds to the same without it, the median over the rounds."""
    sides = [side for side in (rounds[0] if rounds else ()) if side != DIRECT]
    values = {side: statistics.median(read(one[side]) - read(one[DIRECT]) for one in rounds) for side in sides}
    return Figure(label=label, unit=unit, values=values)


def faults_of(rounds: Iterable[Round]) -> str:
    """Return what went wrong in all readings together, with the first of it in words; empty if nothing did."""
    readings = [(side, reading) for one in rounds for side, reading in one.items()]
    names = ("lost", "doubled", "reordered", "truncated", "refused", "broken")
    told = [
        ", ".join(f"{getattr(reading, name)} {name}" for name in names if getattr(reading, name))
        + f" ({side}, {reading.streams} streams: {reading.first_fault})"
        for side, reading in readings
        if reading.faults
    ]
    return "; ".join(told)


def table(figures: Sequence[Figure]) -> str:
    """Return the table, as Markdown that can be read as it stands."""
    sides = [side for side in SIDES if any(side in figure.values for figure in figures)]
    rows = [["figure", *sides, "ratio"], ["---", *("---:" for _ in sides), "---"]]
    rows += [
        [_label(one), *(shown(one.values[side]) if side in one.values else "" for side in sides), _ratio(one)]
        for one in figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows[1] = [
        "-" * width if cell == "---" else "-" * (width - 1) + ":" for cell, width in zip(rows[1], widths, strict=True)
    ]
    return "\n".join(f"| {' | '.join(_padded(row, widths))} |" for row in rows)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    last = len(row) - 1
    return [
        cell.ljust(width) if index in {0, last} else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _label(figure: Figure) -> str:
    return f"{figure.label}, {figure.unit}" if figure.unit else figure.label


def _ratio(figure: Figure) -> str:
    told = "" if figure.ratio is None else f"{figure.ratio:.2f} times {figure.against}"
    return "; ".join(filter(None, (told, figure.note)))


def shown(value: float) -> str:
    """Return a number with as many digits as mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
