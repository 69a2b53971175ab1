"""What ``/metrics`` says, read by the parsers of prometheus_client: for tests of what was counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample

from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.slab import Slab
from tests.raw_client import exchange, request

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Exposition:
    """All samples of one answer."""

    samples: tuple[Sample, ...]

    @classmethod
    def read(cls, body: bytes, content_type: str = "") -> Self:
        """Read an answer in either format."""
        parse = read_openmetrics if "openmetrics" in content_type else read_text
        families: Iterable[Family] = parse(body.decode())
        return cls(tuple(sample for family in families for sample in family.samples))

    @classmethod
    def of(cls, *slabs: Slab) -> Self:
        """Read what is in the slabs, through their collector."""
        return cls.read(SlabCollector(slabs).render("")[0])

    def of_name(self, name: str, **labels: str) -> Iterator[Sample]:
        """Yield the samples of this name that have these labels, whatever others they have."""
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over all series of this name that have these labels."""
        return sum(sample.value for sample in self.of_name(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return the sums for each value of a label; nothing that is 0."""
        found: dict[str, float] = {}
        for sample in self.of_name(name, **labels):
            if sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found

    def mean(self, name: str, **labels: str) -> float:
        """Return the mean of what a histogram has counted."""
        return self.total(f"{name}_sum", **labels) / self.total(f"{name}_count", **labels)

    @property
    def series(self) -> set[tuple[str, ...]]:
        """Return the name and label values of every series."""
        return {(sample.name, *sample.labels.values()) for sample in self.samples}


async def scrape(admin_url: str, accept: str = "") -> Exposition:
    """Ask a gateway for its metrics."""
    found = await exchange(admin_url, request("/metrics", method="GET", accept=accept))
    assert found.status == 200
    return Exposition.read(found.body, found.headers["content-type"])
