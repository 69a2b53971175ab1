"""PromQL out of the catalogue: a metric, a part of it or a label that does not exist cannot be written down.

A scope says which series are meant before anything else is said. ``BOARD`` follows the variables at the head of every
board; ``RULES`` means every series there is. The matchers that a call adds are keyword arguments:

    outcome="completed"                 outcome="completed"
    outcome="!completed"                outcome!="completed"
    outcome=("stalled", "truncated")    outcome=~"stalled|truncated"
    outcome=""                          nothing: every outcome
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gateway.telemetry.catalogue import BY_NAME, Metric

RATE = "$__rate_interval"  # Grafana's own: never shorter than four scrapes, so that a rate is never empty
RANGE = "$__range"  # all of the time range that is on the screen

Part = Literal["", "bucket", "sum", "count"]
Wanted = str | tuple[str, ...]

OURS = ("gateway_error", "drained")
PROVIDERS = ("upstream_error", "truncated", "stalled", "deadline")
CLIENTS = ("client_aborted",)
REFUSED = ("rejected",)
"""Whose fault an outcome is. Together with ``completed`` these are all outcomes there are."""

_NAME = re.compile(r"\b(millrace_[a-z0-9_]+?)(?:_(?:bucket|sum|count))?(?=[^a-z0-9_]|$)")
_RECORDED = re.compile(r"\bmillrace:[a-z0-9_:]+")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series are meant. ``variables`` gives a label the name of the variable that it follows, where it exists."""

    variables: Mapping[str, str]

    def series(self, name: str, part: Part = "", **wanted: Wanted) -> str:
        """Return a selector of the catalogue's ``name``; ``part`` is which of a histogram's series."""
        return self._select(name, part, wanted)

    def rate(self, name: str, *by: str, over: str = RATE, part: Part = "", **wanted: Wanted) -> str:
        """Return how much a counter grows in a second, summed up but for the labels in ``by``."""
        return f"sum{_by(by)} (rate({self._select(name, part, wanted)}[{over}]))"

    def increase(self, name: str, *by: str, over: str = RANGE, part: Part = "", **wanted: Wanted) -> str:
        """Return by how much a counter has grown, summed up but for the labels in ``by``."""
        return f"sum{_by(by)} (increase({self._select(name, part, wanted)}[{over}]))"

    def quantile(self, q: float, name: str, *by: str, over: str = RATE, **wanted: Wanted) -> str:
        """Return a quantile of a histogram."""
        function = "rate" if over == RATE else "increase"
        grown = f"{function}({self._select(name, 'bucket', wanted)}[{over}])"
        return f"histogram_quantile({q}, sum{_by(('le', *by))} ({grown}))"

    def mean(self, name: str, *by: str) -> str:
        """Return the mean of what a histogram has counted; it is exact, whatever the buckets are."""
        return f"{self.rate(name, *by, part='sum')} / ({self.rate(name, *by, part='count')} > 0)"

    def latest(self, function: Literal["sum", "max", "min", "count"], name: str, *by: str) -> str:
        """Return a gauge, brought together but for the labels in ``by``."""
        return f"{function}{_by(by)} ({self._select(name, '', {})})"

    def _select(self, name: str, part: Part, wanted: Mapping[str, Wanted]) -> str:
        metric = BY_NAME[name]
        if (metric.kind == "histogram") != bool(part):
            raise ValueError(f"{name} is a {metric.kind}, so that {part or 'no part'!r} cannot be asked of it")
        labels = {*metric.labels, "job", "instance", *(["le"] if part == "bucket" else [])}
        if unknown := wanted.keys() - labels:
            raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}")
        asked = {label: value for label, value in wanted.items() if value}
        followed = [label for label in self.variables if label in labels - asked.keys()]
        matchers = [f'{label}=~"${self.variables[label]}"' for label in followed]
        matchers += [_matcher(label, value) for label, value in asked.items()]
        return f"{name}{part and '_'}{part}" + ("{" + ", ".join(matchers) + "}" if matchers else "")


BOARD = Scope(
    MappingProxyType(
        {"job": "job", "instance": "instance", "model": "model", "upstream": "upstream", "from_upstream": "upstream"}
    )
)
RULES = Scope(MappingProxyType({}))


def share(part: str, whole: str) -> str:
    """Return one amount as a share of another: 0 where there is none of it, nothing where there is nothing at all."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def at_least_none(part: str, whole: str) -> str:
    """Return an amount, or 0 where there is none of it although there is some of the whole."""
    return f"{part} or 0 * {whole}"


def families(expression: str) -> list[Metric]:
    """Return the families of the catalogue that an expression reads, in its order; a ``KeyError`` for any other."""
    names = (match[1] for match in _NAME.finditer(re.sub(r'"[^"]*"', "", expression)))
    return [BY_NAME[name] for name in dict.fromkeys(names)]


def recorded(expression: str) -> list[str]:
    """Return the recorded series that an expression reads."""
    return list(dict.fromkeys(_RECORDED.findall(expression)))


def runnable(expression: str, values: Mapping[str, str] | None = None, *, interval: str = "1m") -> str:
    """Return an expression of a board as Prometheus takes it: ``values`` for variables, every series for the others."""
    known = {"__rate_interval": interval, "__interval": interval, "__range": interval} | dict(values or {})
    return _VARIABLE.sub(lambda match: known.get(match[1] or match[2], ".*"), expression)


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _matcher(label: str, wanted: Wanted) -> str:
    if isinstance(wanted, tuple):
        return f'{label}=~"{"|".join(wanted)}"'
    return f'{label}!="{wanted[1:]}"' if wanted.startswith("!") else f'{label}="{wanted}"'
