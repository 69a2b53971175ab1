"""What becomes of live streams when workers die, hang, are replaced by a reload, and when the gateway stops.

A gateway and a simulator as processes of their own, and clients that cost next to nothing. The simulator says the same
whenever it is asked the same: whether anything was lost, doubled or mixed up on the way is seen in the text.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.eventually import eventually
from tests.exposition import Exposition, scrape
from tests.raw_client import Answer, chat, connected, exchange, parse, request
from tests.scripted_upstream import DONE, texts_of

ROOT: Final = Path(__file__).parents[2]
PATH: Final = "/v1/chat/completions"
STREAMS: Final = 500
TIMEOUT_S: Final = 90.0
KEYS: Final = {"one": "mr_test_one_0123456789", "two": "mr_test_two_0123456789"}


class Client(asyncio.Protocol):
    """Asks for one stream, and keeps what comes."""

    def __init__(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._data = data
        self._pieces: list[bytes] = []
        self.has_text: asyncio.Future[None] = loop.create_future()
        self.is_over: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self._pieces.append(data)
        if not self.has_text.done() and b'"content":"' in data:
            self.has_text.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, however it ended
        """Tell whoever waits."""
        if not self.has_text.done():
            self.has_text.set_result(None)
        self.is_over.set_result(None)

    @property
    def answer(self) -> Answer:
        """What has come."""
        return parse(b"".join(self._pieces))

    @property
    def said(self) -> str:
        """The text."""
        return "".join(texts_of(self.answer.body))

    @property
    def is_complete(self) -> bool:
        """Whether the answer ended as a whole one does."""
        return bool(self._pieces) and self.answer.is_whole and self.answer.body.endswith(DONE)


class Fleet:
    """A gateway with several workers, a simulator behind it, and its clients."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process, log: Path) -> None:
        self.folder = folder
        self.process = process
        self.log = log
        self.url, self.admin_url = (
            next(line for line in _lines(log) if line.startswith(start)).split()[1].removesuffix("/readyz").rstrip("/")
            for start in ("page:", "admin:")
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in _lines(self.log) if line.startswith("{")]

    async def open(self, count: int, model: str, *, key: str | None = None) -> list[Client]:
        """Begin so many streams; returns when each has its first token, or has ended."""
        loop, port = asyncio.get_running_loop(), int(self.url.rpartition(":")[2])
        clients = [
            Client(request(PATH, chat(model=model), connection="close", x_request_id=f"s{number}", x_api_key=key))
            for number in range(count)
        ]
        for client in clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]  # bound
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(client.has_text for client in clients))
        return clients

    async def said(self, model: str) -> str:
        """Return what a model says to everybody, asked without haste."""
        (client,) = await self.open(1, model)
        await ended([client])
        assert client.is_complete
        return client.said

    async def admin(self, path: str, method: str = "GET") -> Answer:
        """Ask the admin port."""
        return await exchange(self.admin_url, request(path, method=method), timeout_s=TIMEOUT_S)

    async def workers(self) -> list[dict[str, Any]]:
        """Return its worker processes."""
        workers: list[dict[str, Any]] = (await self.admin("/admin/streams")).json["workers"]
        return workers

    async def pid_of(self, slot: int, *, other_than: int = 0) -> int:
        """Return the process that serves in a slot, when there is one other than that."""

        async def look() -> int | None:
            found = [one["pid"] for one in await self.workers() if one["worker"] == slot and one["state"] == "serving"]
            return next((pid for pid in found if pid != other_than), None)

        return await eventually(look, timeout_s=TIMEOUT_S)

    async def streams_of(self) -> dict[int, set[str]]:
        """Return the ids of the streams in flight, by worker."""
        found: dict[int, set[str]] = {}
        for one in (await self.admin("/admin/streams")).json["in_flight"]:
            found.setdefault(one["worker"], set()).add(one["id"])
        return found

    async def scrape(self) -> Exposition:
        """Return what it has counted."""
        return await scrape(self.admin_url)

    async def reload(self, config: Mapping[str, Any] | None = None) -> Answer:
        """Have it reload, with another configuration if one is given."""
        if config is not None:
            (self.folder / "fleet.yaml").write_text(yaml.safe_dump(dict(config)))
        return await self.admin("/admin/reload", method="POST")

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_S)


async def ended(clients: Sequence[Client]) -> None:
    """Wait until all streams have ended."""
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(client.is_over for client in clients))


def has_ended(pid: int) -> bool:
    """Return whether there is no such process any more; one that nobody waits for has ended too."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def _lines(log: Path) -> Iterator[str]:
    text = log.read_text()
    return iter(text[: text.rfind("\n") + 1].splitlines())


def config_of(simulator: str, *, keys: Sequence[str] = (), **server: Any) -> dict[str, Any]:
    """Return a configuration over a simulator."""
    hashed = [{"id": name, "sha256": sha256(KEYS[name].encode()).hexdigest()} for name in keys]
    return {
        "server": {"port": 0, "admin_port": 0, "workers": 2, "drain_timeout_s": 60, **server},
        "providers": {"up": {"kind": "openai-compatible", "api_key": "fake", "base_url": f"{simulator}/hosts/vllm/v1"}},
        "models": {"chat": {"targets": ["up/mill"]}},
        "middleware": [
            {"use": "middleware.observe.Observe"},
            {"use": "middleware.auth.Auth", "keys": hashed},
            {"use": "middleware.fallback.Fallback"},
        ],
        "telemetry": {"log_level": "info"},
    }


def model(token_count: int, interval_s: float) -> str:
    """Return the name of a model that says so much, so fast."""
    return f"up/mill?first_token_s=0.01&token_count={token_count}&interval_s={interval_s}"


@asynccontextmanager
async def started(
    folder: Path, command: str, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Run a command of ``millrace`` until the end of the block; yields its process and its log."""
    log = folder / f"{command}.log"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", command, *arguments,
            cwd=folder, env=environ, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def look() -> bool:
        assert process.returncode is None, log.read_text()
        return any(line.startswith(("simulator:", "stream:")) for line in _lines(log))

    try:
        await eventually(look, timeout_s=TIMEOUT_S)
        yield process, log
    finally:
        for _ in range(2):
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def simulating(folder: Path) -> AsyncIterator[str]:
    """Run a simulator; yields its origin."""
    async with started(folder, "simulate", "--port", "0") as (_, log):
        line = next(line for line in _lines(log) if line.startswith("simulator:"))
        yield line.removeprefix("simulator: ").removesuffix("/v1")


@asynccontextmanager
async def running(folder: Path, config: Mapping[str, Any]) -> AsyncIterator[Fleet]:
    """Run a gateway."""
    (folder / "fleet.yaml").write_text(yaml.safe_dump(dict(config)))
    async with started(folder, "serve", "--config", "fleet.yaml") as (process, log):
        yield Fleet(folder, process, log)


@contextmanager
def many_sockets() -> Iterator[None]:
    """Allow as many open files as can be."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 4096:
        pytest.skip(f"only {limits[1]} open files are allowed here, five hundred streams need two thousand")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- workers that fail


async def test_a_worker_that_is_killed_and_one_that_hangs_take_no_stream_of_another_with_them(tmp_path: Path) -> None:
    """Nor a connection that is made meanwhile; both are replaced, and what they have counted is kept."""
    slow, quick = model(50, 0.25), model(3, 0)
    with many_sockets():
        async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator)) as fleet:
            expected, short = await fleet.said(model(50, 0)), await fleet.said(quick)
            killed, other = await fleet.pid_of(0), await fleet.pid_of(1)
            clients = await fleet.open(STREAMS, slow)
            of_worker = await fleet.streams_of()
            assert min(len(ids) for ids in of_worker.values()) > STREAMS / 100, "both have something to do"
            before = await fleet.scrape()

            os.kill(killed, signal.SIGKILL)
            killed_at_s = time.monotonic()
            await _all_answered(fleet, quick, short)
            hung = await fleet.pid_of(0, other_than=killed)
            back_s = time.monotonic() - killed_at_s

            more = await fleet.open(20, slow)
            os.kill(hung, signal.SIGSTOP)
            hung_at_s = time.monotonic()
            await _all_answered(fleet, quick, short)
            assert (await fleet.admin("/readyz")).status == 200
            await fleet.scrape()
            await fleet.pid_of(0, other_than=hung)
            replaced_s = time.monotonic() - hung_at_s

            await ended([*clients, *more])
            after = await fleet.scrape()
            assert await fleet.pid_of(1) == other
            assert {line["event"] for line in fleet.events if line["level"] == "error"} == {
                "worker.exited",
                "worker.hung",
            }
    untouched = [client for number, client in enumerate(clients) if f"s{number}" in of_worker[1]]
    lost = [client for number, client in enumerate(clients) if f"s{number}" in of_worker[0]]
    lost_later = sum(not client.is_complete for client in more)
    assert len(untouched) + len(lost) == STREAMS
    assert [client.said == expected and client.is_complete for client in untouched] == [True] * len(untouched)
    assert not any(client.answer.is_whole for client in lost), "whoever was cut can see so"
    assert back_s < 10, "it takes less than two seconds where there is time for it"
    assert replaced_s < 30, "and this less than fifteen"
    name = "millrace_requests_started_total"
    assert after.total(name) == 2 + STREAMS + 20 + 2 * 20
    assert after.total("millrace_requests_total") == after.total(name), "those that were lost have ended too"
    assert after.total("millrace_requests_total", outcome="gateway_error") == len(lost) + lost_later
    assert after.total("millrace_streams_active") == 0
    assert after.by("worker", "millrace_worker_restarts_total") == {"0": 2}
    assert after.by("worker", "millrace_worker_up") == {"0": 1, "1": 1}
    _grown(before, after)


async def _all_answered(fleet: Fleet, name: str, expected: str) -> None:
    """Make connections, one after another, of which none may be refused, reset or kept waiting."""
    for _ in range(20):
        (client,) = await fleet.open(1, name)
        await ended([client])
        assert client.is_complete
        assert client.said == expected


def _grown(before: Exposition, after: Exposition) -> None:
    """Check that nothing that only grows has become less."""
    now = {(one.name, *sorted(one.labels.items())): one.value for one in after.samples}
    for one in before.samples:
        if one.name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert now[one.name, *sorted(one.labels.items())] >= one.value, one


# --- reloads


async def test_streams_outlive_ten_reloads(tmp_path: Path) -> None:
    """None is cut, none is late by a token; connections are made all the time, and none of them fails either."""
    slow, quick = model(32, 0.4), model(3, 0)
    with many_sockets():
        async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator)) as fleet:
            expected, short = await fleet.said(model(32, 0)), await fleet.said(quick)
            clients = await fleet.open(STREAMS, slow)
            pids = {one["pid"] for one in await eventually(lambda: _both_serving(fleet), timeout_s=TIMEOUT_S)}
            held = _held_by(fleet.process.pid)
            is_over = asyncio.Event()
            asking = asyncio.ensure_future(_ask_until(is_over, fleet, quick, short))
            for number in range(10):
                done = await fleet.reload()
                assert (done.status, done.json["generation"]) == (200, number + 2)
                pids |= {one["pid"] for one in await fleet.workers()}
            is_over.set()
            asked = await asking
            await ended(clients)
            assert [client.said == expected and client.is_complete for client in clients] == [True] * STREAMS
            assert asked > 20
            workers = await eventually(lambda: _only_serving(fleet), timeout_s=TIMEOUT_S)
            assert {one["generation"] for one in workers} == {11}
            left = [pid for pid in pids if pid not in {one["pid"] for one in workers}]
            assert len(left) == 20
            assert all(map(has_ended, left))
            assert _held_by(fleet.process.pid) <= held, "the supervisor has let go of all that was theirs"
            found = await fleet.scrape()
            name = "millrace_requests_started_total"
            assert found.total(name) == found.total("millrace_requests_total") == 2 + STREAMS + asked
            assert found.total("millrace_streams_active") == 0
            assert found.total("millrace_config_generation") == 11
            assert found.total("millrace_worker_restarts_total") == 0
            assert {line["event"] for line in fleet.events if line["level"] == "error"} == set()


def _held_by(pid: int) -> int:
    """Return how many slabs a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("millrace-metrics")


async def _both_serving(fleet: Fleet) -> list[dict[str, Any]] | None:
    workers = await fleet.workers()
    return workers if len(workers) == 2 else None


async def _only_serving(fleet: Fleet) -> list[dict[str, Any]] | None:
    workers = await fleet.workers()
    return workers if {one["state"] for one in workers} == {"serving"} else None


async def _ask_until(is_over: asyncio.Event, fleet: Fleet, name: str, expected: str) -> int:
    """Ask again and again, on a connection of its own and on one that is kept."""
    count = 0
    async with connected(fleet.url) as kept:
        while not is_over.is_set():
            (client,) = await fleet.open(1, name)
            await ended([client])
            assert client.is_complete
            assert client.said == expected
            await kept.send(request(PATH, chat(model=name, stream=False)))
            answer = await kept.answer(timeout_s=TIMEOUT_S)
            assert answer.status == 200
            assert answer.json["choices"][0]["message"]["content"] == expected
            count += 2
    return count


async def test_a_key_that_was_revoked_is_refused_at_once_and_its_stream_goes_on(tmp_path: Path) -> None:
    """On a connection that was there before, too, which is not even closed."""
    slow, quick = model(60, 0.1), model(3, 0)
    async with (
        simulating(tmp_path) as simulator,
        running(tmp_path, config_of(simulator, keys=["one", "two"])) as fleet,
        connected(fleet.url) as kept,
    ):
        ask = request("/v1/models", method="GET", x_api_key=KEYS["one"])
        await kept.send(ask)
        assert (await kept.answer()).status == 200
        (client,) = await fleet.open(1, slow, key=KEYS["one"])
        assert (await fleet.reload(config_of(simulator, keys=["two"]))).status == 200
        await kept.send(ask)
        assert (await kept.answer(timeout_s=TIMEOUT_S)).status == 401
        await kept.send(request("/v1/models", method="GET", x_api_key=KEYS["two"]))
        assert (await kept.answer(timeout_s=TIMEOUT_S)).status == 200
        assert (await exchange(fleet.url, ask)).status == 401
        old = [one for one in await fleet.workers() if one["generation"] == 1]
        assert client.is_over.done() or {one["state"] for one in old} == {"leaving"}
        (other,) = await fleet.open(1, quick, key=KEYS["two"])
        await ended([client, other])
        assert client.is_complete
        assert other.is_complete


async def test_a_configuration_with_faults_changes_nothing(tmp_path: Path) -> None:
    """It is told by line, whether it is asked for by a signal or over the admin port."""
    async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator)) as fleet:
        before = await eventually(lambda: _both_serving(fleet), timeout_s=TIMEOUT_S)
        (client,) = await fleet.open(1, model(20, 0.1))
        (tmp_path / "fleet.yaml").write_text("server:\n  prot: 1\nmiddleware:\n- use: middleware.nope.Nope\n")
        fleet.process.send_signal(signal.SIGHUP)
        rejected = await eventually(
            lambda: next((line for line in fleet.events if line["event"] == "config.rejected"), None)
        )
        assert [fault.partition(" ")[0] for fault in rejected["faults"]] == ["fleet.yaml:2:"]
        (tmp_path / "fleet.yaml").write_text("middleware:\n- use: middleware.nope.Nope\n")
        told = await fleet.admin("/admin/reload", method="POST")
        assert told.status == 422
        assert [fault.partition(" ")[0] for fault in told.json["error"]["faults"]] == ["fleet.yaml:2:"]
        assert await fleet.workers() == before
        await ended([client])
        assert client.is_complete
        assert (await fleet.said(model(3, 0))) != ""


# --- a rolling restart

HAPROXY: Final = """
global
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option redispatch
  retries 3
frontend public
  bind 127.0.0.1:{port}
  monitor-uri /known
  acl two_are_up nbsrv(gateways) eq 2
  monitor fail unless two_are_up
  default_backend gateways
backend gateways
  balance leastconn
  option httpchk GET /readyz
  default-server check inter 100ms fall 1 rise 1
"""


async def test_streams_outlive_a_rolling_restart_behind_haproxy(tmp_path: Path) -> None:
    """Two gateways are replaced by two others, one after the other: no stream is cut and no connection fails."""
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        pytest.skip("no haproxy on the path")
    count, slow, quick = 500, model(32, 0.25), model(3, 0)
    port, *ports = _free_ports(9)
    servers = [f"  server g{at} 127.0.0.1:{ports[at]} port {ports[at + 1]}\n" for at in range(0, 8, 2)]
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(port=port).lstrip() + "".join(servers))
    async with simulating(tmp_path) as simulator, AsyncExitStack() as gateways:

        async def start(at: int) -> Fleet:
            folder = tmp_path / f"gateway{at}"
            folder.mkdir()
            server: dict[str, Any] = {
                "port": ports[2 * at],
                "admin_port": ports[2 * at + 1],
                "workers": 1,
                "drain_delay_s": 1.0,
            }
            return await gateways.enter_async_context(running(folder, config_of(simulator, **server)))

        old = [await start(0), await start(1)]
        expected, short = await old[0].said(model(32, 0)), await old[0].said(quick)
        async with _balancing(haproxy, tmp_path / "haproxy.cfg"):
            front = Fleet(tmp_path, old[0].process, old[0].log)
            front.url = f"http://127.0.0.1:{port}"
            await eventually(lambda: _is_known(front.url), timeout_s=TIMEOUT_S)
            clients = await front.open(count, slow)
            assert all([await one.streams_of() for one in old]), "both have something to do"
            is_over = asyncio.Event()
            asking = asyncio.ensure_future(_ask_until(is_over, front, quick, short))
            for at, gateway in enumerate(old):
                await start(2 + at)
                assert await gateway.end() == 0
            is_over.set()
            assert await asking > 10
            await ended(clients)
    assert [client.said == expected and client.is_complete for client in clients] == [True] * count


def _free_ports(count: int) -> list[int]:
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


async def _is_known(url: str) -> bool:
    """Return whether the load balancer is there, and has found out who is there behind it."""
    try:
        return (await exchange(url, request("/known", method="GET"))).status == 200
    except (OSError, IndexError):  # nobody is there, or it says nothing
        return False


@asynccontextmanager
async def _balancing(program: str, config: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(program, "-q", "-db", "-f", str(config))
    try:
        yield
    finally:
        process.kill()
        await process.wait()


# --- the end


async def test_streams_that_outlast_the_drain_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    """Each has an error and no clean end; the exit code is 0, and every stream has its outcome."""
    count = 100
    async with (
        simulating(tmp_path) as simulator,
        running(tmp_path, config_of(simulator, drain_timeout_s=1)) as fleet,
    ):
        clients = await fleet.open(count, model(2000, 0.2))
        pids = [one["pid"] for one in await fleet.workers()]
        assert await fleet.end() == 0
        await ended(clients)
    for client in clients:
        assert not client.answer.is_whole
        assert b'"code":"gateway_stopping"' in client.answer.body
        assert b"[DONE]" not in client.answer.body
    outcomes = Counter(line["outcome"] for line in fleet.events if line["event"] == "stream.finished")
    assert outcomes == {"drained": count}
    assert all(map(has_ended, pids))
    assert fleet.events[-1]["event"] == "gateway.stopped"


async def test_workers_that_have_lost_their_supervisor_finish_their_streams_and_end(tmp_path: Path) -> None:
    """Whatever has become of it: no process is left behind, and no stream is cut."""
    async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator)) as fleet:
        expected = await fleet.said(model(30, 0))
        clients = await fleet.open(20, model(30, 0.1))
        pids = [one["pid"] for one in await fleet.workers()]
        await fleet.end(signal.SIGKILL)
        await ended(clients)
        assert [client.said == expected and client.is_complete for client in clients] == [True] * 20
        await eventually(lambda: all(map(has_ended, pids)), timeout_s=TIMEOUT_S)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(fleet.url.rpartition(":")[2])))
