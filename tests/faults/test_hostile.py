"""Clients that mean no good: slow with their headers, slow with their bodies, slow to read, or not reading at all.

Debian's slowhttptest opens hundreds of connections, while those who only want an answer are to notice nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.soak import held_by, processes_of
from tests.eventually import eventually
from tests.faults.test_workers import (
    PATH,
    TIMEOUT_S,
    Client,
    Fleet,
    config_of,
    ended,
    many_sockets,
    model,
    running,
    simulating,
)
from tests.raw_client import chat, request

CONNECTIONS: Final = 500
ATTACK_S: Final = 10
GOOD: Final = 10
TOKENS: Final = 40
MOST_MB: Final = 60.0
"""How much memory an attack may cost: a connection takes some 20 kB, and each worker's allocator rounds up."""
LEFT: Final = 50
"""How many descriptors more there may be afterwards: each worker keeps its idle connections to the provider a while."""
ATTACKS: Final = {
    "slow headers": ("-H", "-i", "2", "-u", "{url}/"),
    "slow bodies": ("-B", "-i", "2", "-s", "8192", "-f", "application/json", "-u", "{url}" + PATH),
    "slow readers": ("-X", "-w", "1", "-y", "16", "-n", "2", "-z", "4", "-k", "3", "-u", "{url}/"),
}
SHORT_S: Final[dict[str, Any]] = {"header_timeout_s": 4, "body_timeout_s": 4, "write_timeout_s": 2}


def held(fleet: Fleet) -> tuple[int, float]:
    """Return how many descriptors the gateway's processes have, and their resident memory in MB."""
    found = [held_by(pid) for pid in processes_of(fleet.process.pid)]
    return sum(descriptors for _, descriptors, _ in found), sum(resident_mb for _, _, resident_mb in found)


async def peak(fleet: Fleet, process: asyncio.subprocess.Process) -> tuple[int, float]:
    """Return the most that the gateway's processes have held before another process ended."""
    most = held(fleet)
    while process.returncode is None:
        now = held(fleet)
        most = max(most[0], now[0]), max(most[1], now[1])
        await asyncio.sleep(0.2)
    return most


@asynccontextmanager
async def attacking(fleet: Fleet, kind: str, seconds: int = ATTACK_S) -> AsyncIterator[asyncio.subprocess.Process]:
    """Attack until the end of the block, or until the attacker gives up."""
    program = shutil.which("slowhttptest", path="/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("no slowhttptest on the path")
    options = (option.replace("{url}", fleet.url) for option in ATTACKS[kind])
    process = await asyncio.create_subprocess_exec(
        program, *options, "-c", str(CONNECTIONS), "-r", "250", "-l", str(seconds), "-v", "0",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ask_while(fleet: Fleet, process: asyncio.subprocess.Process, name: str) -> list[Client]:
    """Ask for one stream after another, on new connections, for as long as a process runs."""
    clients: list[Client] = []
    while process.returncode is None:
        clients += await fleet.open(1, name)
        await ended(clients[-1:])
    return clients


@pytest.mark.parametrize("kind", ATTACKS)
async def test_good_streams_go_on_under_attack_and_nothing_of_it_stays(tmp_path: Path, kind: str) -> None:
    """Each is complete, those that run and those that begin meanwhile; memory and connections keep within bounds."""
    with many_sockets():
        async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator, **SHORT_S)) as fleet:
            expected = await fleet.said(model(TOKENS, 0))
            await ended(await fleet.open(GOOD, model(TOKENS, 0.01)))
            descriptors, resident_mb = held(fleet)
            async with attacking(fleet, kind) as attacker:
                looking = asyncio.ensure_future(peak(fleet, attacker))
                asking = [asyncio.ensure_future(ask_while(fleet, attacker, model(TOKENS, 0.05))) for _ in range(GOOD)]
                async with asyncio.timeout(TIMEOUT_S):
                    clients = [client for clients in await asyncio.gather(*asking) for client in clients]
                    most_descriptors, most_mb = await looking
            assert most_descriptors > descriptors + CONNECTIONS / 4, "there was an attack"
            assert len(clients) >= GOOD
            assert [client.is_complete and client.said == expected for client in clients] == [True] * len(clients)
            assert most_mb < resident_mb + MOST_MB
            await eventually(lambda: held(fleet)[0] <= descriptors + LEFT, timeout_s=TIMEOUT_S, every_s=0.2)
            found = await fleet.scrape()
            assert found.total("millrace_streams_active") == 0
            assert found.total("millrace_worker_restarts_total") == 0
            assert found.total("millrace_requests_total", outcome="gateway_error") == 0


def _never_reading(port: int, name: str) -> socket.socket:
    """Ask for a stream, with next to no room for its answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(request(PATH, chat(model=name)))
    return sock


async def test_clients_that_never_read_are_let_go_and_take_no_memory(tmp_path: Path) -> None:
    """Their provider waits meanwhile, and is aborted with them; a good stream beside them is whole."""
    count = 50
    with many_sockets(), ExitStack() as held_open:
        async with simulating(tmp_path) as simulator, running(tmp_path, config_of(simulator, **SHORT_S)) as fleet:
            expected = await fleet.said(model(TOKENS, 0))
            descriptors, resident_mb = held(fleet)
            port = int(fleet.url.rpartition(":")[2])
            began_at_s = time.monotonic()
            for _ in range(count):
                held_open.enter_context(_never_reading(port, model(100_000, 0.0)))
            (good,) = await fleet.open(1, model(TOKENS, 0.05))
            outcomes: dict[str, float] = {}
            most_mb = resident_mb

            async def look() -> bool:
                nonlocal most_mb
                most_mb = max(most_mb, held(fleet)[1])
                outcomes.update((await fleet.scrape()).by("outcome", "millrace_requests_total"))
                return outcomes.get("client_aborted") == count

            await eventually(look, timeout_s=TIMEOUT_S, every_s=0.2)
            assert time.monotonic() - began_at_s > SHORT_S["write_timeout_s"]
            await ended([good])
            assert good.is_complete
            assert good.said == expected
            assert most_mb < resident_mb + MOST_MB
            await eventually(lambda: held(fleet)[0] <= descriptors + LEFT, timeout_s=TIMEOUT_S, every_s=0.2)
            lines: list[dict[str, Any]] = [one for one in fleet.events if one["event"] == "stream.finished"]
            assert sum(one["outcome"] == "client_aborted" for one in lines) == count
            assert json.dumps(lines).count('"backpressure_s"') >= count
