import asyncio
import time

from gateway.warmth import LATELY_S, LOOK_S, Warmth
from tests.clock import Clock


class Provider:
    """One that counts how often a connection to it is wanted; from the first time on it may never be made."""

    def __init__(self, *, is_reachable: bool = True) -> None:
        self.asked_at_s = -1e9
        self.warm_count = 0
        self._is_reachable = is_reachable

    async def warm(self) -> None:
        """Be asked for a connection."""
        self.warm_count += 1
        if not self._is_reachable:
            await asyncio.Event().wait()


class Sleep:
    """What is slept through goes by at once, on the clock too, when a test says so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pass = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        """Wait until the test says so."""
        assert seconds == LOOK_S
        await self._pass.acquire()
        self._clock.advance(seconds)

    async def go_by(self) -> None:
        """Let one sleep end, and what follows from it be done."""
        self._pass.release()
        await settle()


async def settle() -> None:
    """Let be done what waits for nothing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_every_provider_has_a_connection_from_the_beginning() -> None:
    """One that cannot be reached keeps no other waiting."""
    providers = [Provider(), Provider(is_reachable=False), Provider()]
    warmth = Warmth(providers)
    warmth.start()
    await settle()
    assert [one.warm_count for one in providers] == [1, 1, 1]
    await warmth.stop()


async def test_only_who_was_asked_lately_keeps_one(clock: Clock) -> None:
    """A provider that nobody wants is left alone."""
    idle, busy = Provider(), Provider()
    sleep = Sleep(clock)
    warmth = Warmth([idle, busy], sleep=sleep)
    warmth.start()
    await settle()
    while idle.warm_count == busy.warm_count:
        busy.asked_at_s = time.monotonic()
        await sleep.go_by()
    assert 1 < idle.warm_count <= LATELY_S // LOOK_S + 1, "for as long after the beginning as after a call"
    count = idle.warm_count
    idle.asked_at_s = time.monotonic()
    await sleep.go_by()
    assert idle.warm_count == count + 1, "and again when it is asked again"
    await warmth.stop()


async def test_it_ends_while_a_connection_is_being_made() -> None:
    """A gateway that stops does not wait for who does not answer."""
    provider = Provider(is_reachable=False)
    warmth = Warmth([provider])
    warmth.start()
    await settle()
    await warmth.stop()
    assert provider.warm_count == 1


async def test_without_providers_there_is_nothing_to_look_after() -> None:
    """A gateway with none but the simulator of its own begins and ends nothing."""
    warmth = Warmth([])
    warmth.start()
    await warmth.stop()
