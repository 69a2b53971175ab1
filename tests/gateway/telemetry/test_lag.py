from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from gateway.telemetry.lag import LagSampler
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from tests.eventually import eventually
from tests.exposition import Exposition

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_a_blocked_loop_shows(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """In the histogram, and as the worst of the last seconds; one that is free hardly lags."""
    slab = Slab.create()

    async def run() -> None:
        sampler = LagSampler(Meters(slab), worker="1", interval_s=0.02)
        sampler.start()
        await asyncio.sleep(0.1)
        time.sleep(0.15)  # noqa: ASYNC251, to block is the point
        await asyncio.sleep(0.1)
        sampler.stop()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(run())
    found = Exposition.of(Slab.create(), slab)
    name = "millrace_event_loop_lag_seconds"
    assert found.total(f"{name}_count") >= 4
    assert found.total(f"{name}_count") - found.total(f"{name}_bucket", le="0.1") >= 1
    assert found.total(f"{name}_bucket", le="0.05") >= 1
    assert 0.1 < found.total("millrace_event_loop_lag_max_seconds", worker="1") < 5


async def test_the_worst_lag_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the last seconds."""
    monkeypatch.setattr("gateway.telemetry.lag.REMEMBERED_S", 0.1)
    slab = Slab.create()
    sampler = LagSampler(Meters(slab), interval_s=0.01)
    sampler.start()
    time.sleep(0.2)  # noqa: ASYNC251, to block is the point
    await asyncio.sleep(0.05)
    assert Exposition.of(slab).total("millrace_event_loop_lag_max_seconds", worker="0") > 0.1
    await eventually(lambda: Exposition.of(slab).total("millrace_event_loop_lag_max_seconds", worker="0") < 0.1)
    sampler.stop()


async def test_who_wants_to_be_looked_at_is_until_it_stops() -> None:
    """As often as the loop; what one of them raises does not end it, and is told to the loop."""
    looks: list[float] = []
    told: list[object] = []

    def look() -> None:
        looks.append(time.monotonic())
        raise LookupError

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    sampler = LagSampler(Meters(Slab.create()), samples=[look], interval_s=0.01)
    sampler.stop()
    sampler.start()
    await eventually(lambda: len(looks) >= 2)
    sampler.stop()
    count = len(looks)
    assert count == len(told)
    await asyncio.sleep(0.05)
    assert len(looks) == count
