"""What code counts with, and what it calls a model and a target when it does: metrics seen from inside.

Who counts is handed ``Meters`` and knows nothing of how they are kept or who reads them. A child is asked for once and
kept; then to count is one call that returns at once and never raises. ``NO_METERS`` is for code that nobody measures.

Labels are of closed sets: names of the configuration, or words of the program. What a client made up is ``other``.
"""

from __future__ import annotations

from typing import Final, Protocol

from gateway.core.call import Route, Target

OTHER: Final = "other"
"""What a model is called, and the model of a target, that the configuration does not name."""

NOBODY: Final = "none"
"""The target of a call that none has answered."""


class Counter(Protocol):
    """Only goes up."""

    def inc(self, amount: float = 1.0) -> None:
        """Add to it; what is not above zero adds nothing."""


class Gauge(Protocol):
    """Goes up and down."""

    def set(self, value: float) -> None:
        """Put a value in place of the last one."""

    def inc(self, amount: float = 1.0) -> None:
        """Add to it, or take from it."""


class Histogram(Protocol):
    """Counts values by size."""

    def observe(self, value: float, exemplar_trace_id: str | None = None) -> None:
        """Count a value; one below zero, or not finite, is none. With a trace it can be an example of its bucket."""

    def gather(self, value: float, /) -> None:
        """Have a value counted by the next ``settle``, for a fifth of what it takes to observe it."""

    def settle(self) -> None:
        """Count what was gathered."""


class Meters(Protocol):
    """All that is counted, by the names of the catalogue; labels are in its order."""

    def counter(self, name: str, *labels: str) -> Counter:
        """Return the counter that has these labels."""

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return the gauge that has these labels."""

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return the histogram that has these labels."""

    def settle(self) -> None:
        """Count what was gathered by all histograms."""


class _Nothing:
    """A counter, a gauge and a histogram that forget what they are told."""

    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        """Forget it."""

    def set(self, value: float) -> None:
        """Forget it."""

    def observe(self, value: float, exemplar_trace_id: str | None = None) -> None:
        """Forget it."""

    def gather(self, value: float, /) -> None:
        """Forget it."""

    def settle(self) -> None:
        """There is nothing."""


class NoMeters:
    """The meters of code that nobody measures."""

    __slots__ = ()

    def counter(self, name: str, *labels: str) -> Counter:  # noqa: ARG002, as of any meters
        """Return one that counts nothing."""
        return _NOTHING

    def gauge(self, name: str, *labels: str) -> Gauge:  # noqa: ARG002, as of any meters
        """Return one that shows nothing."""
        return _NOTHING

    def histogram(self, name: str, *labels: str) -> Histogram:  # noqa: ARG002, as of any meters
        """Return one that counts nothing."""
        return _NOTHING

    def settle(self) -> None:
        """There is nothing."""


_NOTHING: Final = _Nothing()
NO_METERS: Final = NoMeters()


def upstream_label(route: Route, target: Target | str) -> str:
    """Return what metrics call a target, or the ``provider/model`` that an event names.

    A target of the configuration is called by its name, another model of a configured provider ``provider/other``, so
    that no client can make up a label.
    """
    name = str(target)
    if target in route.targets and route.name != OTHER:
        return name  # as good as always
    if not name:
        return NOBODY
    if route.name != OTHER and any(name == str(one) for one in route.targets):
        return name
    provider = name.partition("/")[0]
    return f"{provider}/{OTHER}" if any(provider == one.provider for one in route.targets) else OTHER
