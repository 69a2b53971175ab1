from __future__ import annotations

from gateway.telemetry.drops import DropSampler
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from tests.exposition import Exposition


def test_what_was_lost_is_counted_once() -> None:
    """However often it is looked at, and for each level by itself; all are there before anything was lost."""
    lines = {"info": 0, "error": 2}
    spans = [0]
    slab = Slab.create()
    sample = DropSampler(Meters(slab), lines=lambda: lines, spans=lambda: spans[0])

    def counts() -> tuple[dict[str, float], float]:
        sample()
        sample()
        shown = Exposition.of(slab)
        return (
            shown.by("level", "millrace_log_records_dropped_total"),
            shown.total("millrace_spans_dropped_total"),
        )

    assert counts() == ({"error": 2}, 0)
    shown = {sample.labels.get("level") for sample in Exposition.of(slab).samples if "dropped_total" in sample.name}
    assert shown == {"info", "error", None}
    lines["info"], spans[0] = 5, 7
    assert counts() == ({"info": 5, "error": 2}, 7)
    lines["info"] += 1
    assert counts() == ({"info": 6, "error": 2}, 7)
