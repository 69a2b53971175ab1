import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config import ServerConfig, parse_config
from gateway.core.errors import ConfigError
from gateway.process import supervisor as module
from gateway.process.member import Member, Started
from gateway.process.supervisor import Listening, Settings, Supervisor, WorkerFailed
from tests.eventually import TIMEOUT_S, eventually
from tests.exposition import Exposition, scrape
from tests.gateway.process.test_member import STUB
from tests.raw_client import exchange, request


def settings(text: str = "", **server: Any) -> Settings:
    """Return a configuration; its text is what the stub is to do."""
    base = parse_config("", "my.yaml", {})
    return Settings(
        replace(base, server=replace(ServerConfig(port=0, admin_port=0, drain_timeout_s=30), **server)), f"#{text}"
    )


class Running:
    """A supervisor that runs, and what it is to read at the next reload."""

    def __init__(self, first: Settings) -> None:
        self.next: Settings | ConfigError = first
        self.supervisor = Supervisor(first, self.read, command=STUB)
        self.listening: Listening | None = None

    def read(self) -> Settings:
        """Return what is to be read."""
        if isinstance(self.next, ConfigError):
            raise self.next
        return self.next

    @property
    def admin_url(self) -> str:
        """Where its admin port is."""
        assert self.listening is not None
        return f"http://127.0.0.1:{self.listening.admin_port}"

    @property
    def serving(self) -> dict[int, Member]:
        """The workers that serve, by their slots."""
        return {member.slot: member for member in self.supervisor.members if member.state == "serving"}

    async def all_serve(self, count: int, *, generation: int = 1) -> dict[int, Member]:
        """Wait until so many workers of a generation do."""

        def look() -> dict[int, Member] | None:
            found = {slot: one for slot, one in self.serving.items() if one.generation == generation}
            return found if len(found) == count else None

        return await eventually(look)

    async def replaced(self, member: Member) -> Member:
        """Wait until another worker serves in its slot."""

        def look() -> Member | None:
            found = self.serving.get(member.slot)
            return found if found is not None and found is not member else None

        return await eventually(look)

    async def status(self, path: str, method: str = "GET") -> int:
        """Ask the admin port."""
        return (await exchange(self.admin_url, request(path, method=method))).status

    async def scrape(self) -> Exposition:
        """Return what it has counted."""
        return await scrape(self.admin_url)

    async def streams(self) -> Any:
        """Return what it says is in flight."""
        return (await exchange(self.admin_url, request("/admin/streams", method="GET"))).json


@asynccontextmanager
async def supervising(text: str = "", **server: Any) -> AsyncIterator[Running]:
    """Run workers until the end of the block."""
    running = Running(settings(text, **server))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            running.listening = await running.supervisor.start()
        yield running
    finally:
        running.supervisor.ask_to_stop()
        running.supervisor.ask_to_stop()
        async with asyncio.timeout(TIMEOUT_S):
            await running.supervisor.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker hang for a fifth of the time."""
    monkeypatch.setattr(module, "TICK_S", 0.2)
    monkeypatch.setattr(module, "ASK_S", 0.3)


# --- starting


async def test_it_serves_when_the_first_worker_does_and_with_all_of_them_soon() -> None:
    """It says where, and with what the first one is like."""
    with capture_logs() as logs:
        async with supervising(workers=3) as running:
            assert running.listening is not None
            assert running.listening.first.model in {"m0", "m1", "m2"}
            assert await running.status("/readyz") == 200
            members = await running.all_serve(3)
            assert len({member.pid for member in members.values()}) == 3
            found = await eventually(lambda: _counted(running, 3))  # each counts one in its slab
            assert found.by("worker", "millrace_worker_up") == {"0": 1, "1": 1, "2": 1}
            assert found.total("millrace_config_generation") == found.total("millrace_config_last_reload_success") == 1
            (build,) = found.of_name("millrace_build_info")
            assert build.labels["loop"] == "stub"
    events = [line["event"] for line in logs]
    assert events.count("worker.started") == events.count("worker.exited") == 3
    assert events[-1] == "gateway.stopped"
    assert "gateway.listening" in events


@pytest.mark.parametrize(("word", "kind"), [("refuse", ConfigError), ("crash", WorkerFailed)])
async def test_a_worker_that_cannot_begin_ends_the_start(word: str, kind: type[Exception]) -> None:
    """With what it says is wrong, or that it has said nothing; and nothing is left."""
    running = Running(settings(word, workers=2))
    with pytest.raises(kind) as caught:
        await running.supervisor.start()
    if isinstance(caught.value, ConfigError):
        assert caught.value.faults == ["my.yaml: one thing", "my.yaml: another"]
    else:
        assert str(caught.value) == "a worker ended before it was ready: exit code 3"
    await running.supervisor.stop()
    assert running.supervisor.members == []


async def test_processes_that_were_started_before_are_commissioned_and_the_rest_let_go() -> None:
    """They have begun to begin while the supervisor did."""
    started = [Started.of(STUB) for _ in range(3)]
    supervisor = Supervisor(settings(workers=2), settings, command=("/nowhere",), started=started)
    async with asyncio.timeout(TIMEOUT_S):
        await supervisor.start()
        pids = {member.pid for member in supervisor.members}
        await supervisor.stop()
    assert pids < {one.process.pid for one in started}
    assert all(one.process.returncode is not None for one in started)


async def test_an_address_that_cannot_be_had_is_a_fault_before_any_worker_is_started() -> None:
    """Of either port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for key in ("port", "admin_port"):
            running = Running(settings(**{key: port}))
            with pytest.raises(ConfigError, match="address already in use"):
                await running.supervisor.start()
            assert running.supervisor.members == []
            await running.supervisor.stop()


# --- failing


async def test_a_killed_worker_is_replaced_at_once_and_what_it_has_counted_is_kept() -> None:
    """The others are as they were."""
    async with supervising(workers=2) as running:
        members = await running.all_serve(2)
        before = (await running.scrape()).total("millrace_requests_started_total")
        os.kill(members[0].pid, signal.SIGKILL)
        new = await running.replaced(members[0])
        assert running.serving == {0: new, 1: members[1]}
        found = await eventually(lambda: _counted(running, before + 1))
        assert found.by("worker", "millrace_worker_restarts_total") == {"0": 1}
        assert found.by("worker", "millrace_worker_up") == {"0": 1, "1": 1}


async def _counted(running: Running, count: float) -> Exposition | None:
    found = await running.scrape()
    return found if found.total("millrace_requests_started_total") == count else None


@pytest.mark.parametrize("word", ["silent", ""])
async def test_a_worker_that_hangs_is_killed_and_replaced(word: str) -> None:
    """Whether its process is stopped or only its loop; while it hangs the admin port answers."""
    with capture_logs() as logs:
        async with supervising(word, workers=1) as running:
            (member,) = (await running.all_serve(1)).values()
            assert await running.streams()
            if not word:
                os.kill(member.pid, signal.SIGSTOP)
                shown = await running.streams()
                assert [one["has_answered"] for one in shown["workers"]] == [False]
                assert [one["id"] for one in shown["in_flight"]] == ["r0"], "what it said last"
                assert await running.status("/healthz") == 200
                assert await eventually(lambda: _is_unready(running)), "before it is killed"
                assert running.supervisor.members == [member]
            new = await running.replaced(member)
            assert new.pid != member.pid
    (hung,) = [line for line in logs if line["event"] == "worker.hung" and line["pid"] == member.pid]
    assert hung["worker"] == 0
    (exited,) = [line for line in logs if line["event"] == "worker.exited" and line["pid"] == member.pid]
    assert (exited["reason"], exited["ended_by"]) == ("it did not answer", "signal SIGKILL")


async def test_a_worker_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for for ever."""
    monkeypatch.setattr(module, "START_TICKS", 10)
    running = Running(settings("mute"))
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        await running.supervisor.start()
    await running.supervisor.stop()


async def test_a_worker_that_keeps_failing_is_started_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has something else to do; the worker beside it serves."""
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.1)
    waits: list[float] = []
    real = Supervisor._wait_s

    def wait_s(self: Supervisor, member: Member) -> float:
        waits.append(real(self, member))
        return waits[-1]

    monkeypatch.setattr(Supervisor, "_wait_s", wait_s)
    async with supervising("fall1", workers=2) as running:
        await running.all_serve(1)
        await eventually(lambda: len(waits) >= 4)
        assert await running.status("/readyz") == 200
    assert waits[:4] == [0, 0.2, 0.4, 0.8]


def test_a_worker_that_has_served_for_long_does_not_count_as_failing() -> None:
    """Whatever it was before; and no wait is longer than the longest."""

    class Ended:
        slot = 0
        began_at_s = 0.0

    async def wait(served_s: float) -> float:
        ended: Any = Ended()
        if served_s:
            ended.began_at_s = asyncio.get_running_loop().time() - served_s
        return supervisor._wait_s(ended)

    async def all_waits() -> list[float]:
        return [await wait(served_s) for served_s in (60, 1, 1, 0, 60, 0, *[0] * 20)]

    supervisor = Supervisor(settings(), settings)
    waits = asyncio.run(all_waits())
    assert waits[:6] == [0, 0, 0.5, 1.0, 0, 0.25]
    assert max(waits) == module.MOST_WAIT_S


async def test_a_worker_that_somebody_terminates_is_replaced_while_it_finishes() -> None:
    """It accepts nothing more, so another one does."""
    async with supervising("busy") as running:
        (member,) = (await running.all_serve(1)).values()
        os.kill(member.pid, signal.SIGTERM)
        await running.replaced(member)
        assert member in running.supervisor.members
        member.end()
        await asyncio.wait_for(asyncio.shield(member.ended), TIMEOUT_S)


# --- what is told of all of them


async def test_the_streams_of_all_workers_are_told_with_whose_they_are() -> None:
    """Of those that have ended the last one comes first."""
    async with supervising(workers=2) as running:
        members = await running.all_serve(2)
        shown = await running.streams()
    assert shown["in_flight"] == [
        {"id": "r0", "worker": 0, "generation": 1},
        {"id": "r1", "worker": 1, "generation": 1},
    ]
    assert [one["id"] for one in shown["recent"]] == ["r0", "r1"]
    assert shown["workers"] == [
        {"worker": slot, "generation": 1, "pid": member.pid, "state": "serving", "has_answered": True}
        for slot, member in sorted(members.items())
    ]


async def test_a_worker_can_be_scraped_alone() -> None:
    """As its slab has it."""
    async with supervising(workers=2) as running:
        await running.all_serve(2)
        body = await eventually(lambda: _alone(running))
        assert Exposition.read(body).total("millrace_requests_started_total") == 1
        assert await running.status("/metrics?worker=2") == 404


async def _alone(running: Running) -> bytes:
    body = (await exchange(running.admin_url, request("/metrics?worker=1", method="GET"))).body
    return body if b"millrace_requests_started_total{" in body else b""


# --- reloading


async def test_a_reload_has_new_workers_serve_and_the_old_ones_leave() -> None:
    """At once, and with nothing lost of what was counted; the old ones end when they have finished."""
    with capture_logs() as logs:
        async with supervising("busy one", workers=2) as running:
            old = await running.all_serve(2)
            running.next = settings("two", workers=3)
            done = await running.supervisor.reload()
            assert (done.generation, list(done.faults), list(done.needs_restart)) == (2, [], [])
            await running.all_serve(3, generation=2)
            assert {member.state for member in old.values()} == {"leaving"}
            found = await eventually(lambda: _counted(running, 5))
            assert found.by("worker", "millrace_worker_up") == {"0": 1, "1": 1, "2": 1}
            assert found.total("millrace_config_generation") == 2
            hashes = {one.labels["hash"]: one.value for one in found.of_name("millrace_config_info")}
            assert hashes == {"#busy one": 0, "#two": 1}
            for member in old.values():
                member.end()
            await eventually(lambda: len(running.supervisor.members) == 3)
            found = await running.scrape()
            assert found.total("millrace_requests_started_total") == 5
            assert found.total("millrace_worker_restarts_total") == 0, "nobody has failed"
            running.next = settings("three", workers=1)
            assert (await running.supervisor.reload()).generation == 3
            found = await running.scrape()
            assert found.by("worker", "millrace_worker_up") == {"0": 1}
    assert [line["generation"] for line in logs if line["event"] == "config.reloaded"] == [2, 3]


@pytest.mark.parametrize("next_one", [ConfigError(["my.yaml:3: server.prot: unknown key"]), "refuse", "crash1", "mute"])
async def test_a_configuration_with_faults_changes_nothing(
    next_one: ConfigError | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds them: the workers are the same, none is left of the new ones, and it is told."""
    monkeypatch.setattr(module, "START_TICKS", 20)
    with capture_logs() as logs:
        async with supervising(workers=2) as running:
            old = await running.all_serve(2)
            running.next = next_one if isinstance(next_one, ConfigError) else settings(next_one, workers=2)
            found = await exchange(running.admin_url, request("/admin/reload"), timeout_s=TIMEOUT_S)
            assert (found.status, found.json["generation"]) == (422, 1)
            faults = found.json["error"]["faults"]
            assert faults
            await eventually(lambda: len(running.supervisor.members) == 2)
            assert running.serving == old
            shown = await running.scrape()
            assert shown.total("millrace_config_last_reload_success") == 0
            assert shown.total("millrace_config_generation") == 1
            running.next = settings()
            assert (await running.supervisor.reload()).generation == 2
            assert (await running.scrape()).total("millrace_config_last_reload_success") == 1
    (rejected,) = [line for line in logs if line["event"] == "config.rejected"]
    assert rejected["faults"] == faults


async def test_nothing_is_reloaded_by_a_gateway_that_has_not_begun_or_is_stopping() -> None:
    """Its workers have something else to do."""
    running = Running(settings())
    assert (await running.supervisor.reload()).faults
    async with supervising() as begun:
        stopping = asyncio.ensure_future(begun.supervisor.stop())
        await asyncio.sleep(0)
        assert (await begun.supervisor.reload()).faults
        await stopping


async def test_what_a_reload_cannot_change_is_told() -> None:
    """The rest is in force."""
    async with supervising() as running:
        running.next = settings(host="localhost", port=1, drain_timeout_s=5)
        done = await running.supervisor.reload()
        assert list(done.needs_restart) == ["server.host", "server.port"]
        assert done.generation == 2


async def test_a_connection_that_an_old_worker_gives_away_goes_to_a_new_one() -> None:
    """Its client notices nothing."""
    async with supervising("one") as running:
        assert running.listening is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", running.listening.port)
        running.next = settings("two")
        await running.supervisor.reload()
        async with asyncio.timeout(TIMEOUT_S):
            assert await reader.read(100) == b"worker 0"
        writer.close()


async def test_reloads_that_are_asked_for_at_once_happen_one_after_another() -> None:
    """By a signal, too; whoever does not wait for one does not break it off."""
    async with supervising() as running:
        running.supervisor.ask_to_reload()
        impatient = asyncio.ensure_future(running.supervisor.reload())
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await running.supervisor.reload()).generation == 4
        await running.all_serve(1, generation=4)


# --- stopping


async def test_it_is_not_ready_at_once_and_accepts_until_the_delay_is_over() -> None:
    """Load balancers have the time to notice; then connections are refused."""
    async with supervising(drain_delay_s=60) as running:
        assert running.listening is not None
        port = running.listening.port
        stopping = asyncio.ensure_future(running.supervisor.stop())
        assert await eventually(lambda: _is_unready(running))
        socket.create_connection(("127.0.0.1", port)).close()
        (member,) = running.serving.values()
        os.kill(member.pid, signal.SIGKILL)
        await running.replaced(member)
        assert await running.status("/readyz") == 503
        running.supervisor.ask_to_stop()
        running.supervisor.ask_to_stop()
        await asyncio.wait_for(stopping, TIMEOUT_S)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


async def _is_unready(running: Running) -> bool:
    return await running.status("/readyz") == 503


async def test_streams_are_waited_for_and_not_when_it_is_asked_twice() -> None:
    """Meanwhile it is alive, and says what it waits for."""
    async with supervising("busy", workers=2) as running:
        await running.all_serve(2)
        stopping = asyncio.ensure_future(running.supervisor.stop())
        shown = await eventually(lambda: _leaving(running))
        assert len(shown) == 2
        assert await running.status("/healthz") == 200
        assert not stopping.done()
        running.supervisor.ask_to_stop()
        assert not stopping.done()
        running.supervisor.ask_to_stop()
        await asyncio.wait_for(stopping, TIMEOUT_S)
        assert running.supervisor.members == []


async def _leaving(running: Running) -> Sequence[Any]:
    workers = (await running.streams())["workers"]
    return workers if {one["state"] for one in workers} == {"leaving"} else []


async def test_what_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop has an end, whatever workers do."""
    monkeypatch.setattr(module, "END_S", 0.2)
    with capture_logs() as logs:
        async with supervising("busy stuck") as running:
            await running.all_serve(1)
            running.supervisor.ask_to_stop()
            running.supervisor.ask_to_stop()
    (exited,) = [line for line in logs if line["event"] == "worker.exited"]
    assert (exited["reason"], exited["ended_by"]) == ("it does not end", "signal SIGKILL")


async def test_a_worker_that_ends_while_it_stops_is_not_replaced() -> None:
    """Nor is one that crashes."""
    async with supervising("busy", workers=2) as running:
        members = await running.all_serve(2)
        stopping = asyncio.ensure_future(running.supervisor.stop())
        await eventually(lambda: _leaving(running))
        os.kill(members[0].pid, signal.SIGKILL)
        await eventually(lambda: len(running.supervisor.members) == 1)
        await asyncio.sleep(0.3)
        assert running.supervisor.members == [members[1]]
        members[1].end()
        await asyncio.wait_for(stopping, TIMEOUT_S)
