from __future__ import annotations

import pytest

from gateway.core.call import Route, Target
from gateway.core.meters import NO_METERS, Meters, upstream_label
from gateway.telemetry.meters import Meters as SlabMeters
from gateway.telemetry.slab import Slab

CHAT = Route(name="chat", targets=(Target("openai", "gpt"), Target("two", "org/deep/model")))
DIRECT = Route(targets=(Target("openai", "made-up"),))


@pytest.mark.parametrize("meters", [NO_METERS, SlabMeters(Slab.create())], ids=["nobody's", "those of a slab"])
def test_whoever_counts_need_not_know_whether_anybody_looks(meters: Meters) -> None:
    """The same calls do for both."""
    meters.counter("millrace_requests_started_total", "chat", "chat").inc()
    meters.counter("millrace_input_tokens_total", "chat", "openai/gpt").inc(3)
    meters.gauge("millrace_stream_buffered_bytes").set(3.0)
    meters.gauge("millrace_streams_active", "chat", "prefill").inc(-1)
    meters.histogram("millrace_ttft_seconds", "chat", "openai/gpt").observe(0.2)
    meters.histogram("millrace_ttft_seconds", "chat", "openai/gpt").observe(0.2, "4bf92f3577b34da6a3ce929d0e0e4736")
    meters.histogram("millrace_chunk_gap_seconds", "chat", "openai/gpt").gather(0.2)
    meters.histogram("millrace_chunk_gap_seconds", "chat", "openai/gpt").settle()
    meters.settle()


@pytest.mark.parametrize(
    ("route", "target", "label"),
    [
        (CHAT, Target("openai", "gpt"), "openai/gpt"),
        (CHAT, "two/org/deep/model", "two/org/deep/model"),
        (CHAT, "openai/another", "openai/other"),
        (CHAT, "nobody/gpt", "other"),
        (CHAT, "", "none"),
        (DIRECT, Target("openai", "made-up"), "openai/other"),
        (DIRECT, "openai/made-up", "openai/other"),
        (Route(), "", "none"),
        (Route(), "anything", "other"),
    ],
)
def test_a_target_is_called_by_a_name_of_the_configuration(route: Route, target: Target | str, label: str) -> None:
    """What a client made up is another model of its provider: nobody who calls can make a series."""
    assert upstream_label(route, target) == label
