import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing

import pytest
from structlog.testing import capture_logs

from gateway.core.errors import ConfigError
from gateway.process import listening
from gateway.process.listening import Acceptor, open_sockets


class Greeter(asyncio.Protocol):
    """Says hello to who is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


def port_of(sock: socket.socket) -> int:
    """Return the port it listens on."""
    port: int = sock.getsockname()[1]
    return port


async def heard_at(port: int) -> bytes:
    """Connect, and return all that is said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


@asynccontextmanager
async def accepting(
    sock: socket.socket, make_protocol: Callable[[], asyncio.Protocol] = Greeter
) -> AsyncIterator[Acceptor]:
    """Accept from a socket."""
    acceptor = Acceptor([sock], make_protocol)
    acceptor.start()
    yield acceptor
    await acceptor.stop(takes_rest=False)


# --- opening


def test_a_host_is_listened_on_at_all_its_addresses_under_one_port() -> None:
    """``localhost`` may have two, and port 0 is the same for both."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(sock) for sock in open_sockets("localhost", 0, "my.yaml")]
        assert sockets
        assert len({port_of(sock) for sock in sockets}) == 1
        assert port_of(sockets[0]) > 0


def test_an_address_that_cannot_be_had_is_one_fault_and_nothing_is_left_open() -> None:
    """It names the place where it is written."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = port_of(taken)
        with pytest.raises(ConfigError) as caught:
            open_sockets("127.0.0.1", port, "my.yaml")
        assert caught.value.faults == [f"my.yaml: cannot listen on 127.0.0.1:{port}: address already in use"]
    with pytest.raises(ConfigError, match=r"my.yaml: cannot listen on no-such-host.invalid:0: "):
        open_sockets("no-such-host.invalid", 0, "my.yaml")


# --- accepting


async def test_whoever_shares_the_socket_may_accept_and_the_others_go_on() -> None:
    """One that stops takes the socket from nobody."""
    (sock,) = open_sockets("127.0.0.1", 0, "my.yaml")
    port = port_of(sock)
    async with accepting(sock.dup()) as one, accepting(sock):
        assert [await heard_at(port) for _ in range(5)] == [b"hello"] * 5
        await one.stop(takes_rest=False)
        assert [await heard_at(port) for _ in range(5)] == [b"hello"] * 5
    with pytest.raises(ConnectionRefusedError):
        await heard_at(port)


async def test_who_is_busy_accepts_one_for_each_millisecond_that_it_was() -> None:
    """So nobody waits for many turns of its loop; and who rests leaves others to who shares the socket."""
    (sock,) = open_sockets("127.0.0.1", 0, "my.yaml")
    now_s, accepted = 100.0, []

    class Counted(Greeter):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(self)
            super().connection_made(transport)

    acceptor = Acceptor([sock], Counted, clock=lambda: now_s)
    turns: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    with ExitStack() as waiting, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "add_reader", lambda _, take, of: turns.append(lambda: take(of)))
        acceptor.start()
        for _ in range(12):
            waiting.enter_context(socket.create_connection(sock.getsockname()))
        counts = []
        for passed_s in (0.0, 0.0056, 0.0001, 3600.0, 0.02):
            now_s += passed_s
            turns[0]()
            counts.append(len(acceptor._beginning))
        await acceptor.stop(takes_rest=False)
    assert counts == [1, 7, 8, 9, 12]
    assert len(accepted) == 12


async def test_the_last_one_takes_who_waits_before_it_stops() -> None:
    """They would be reset otherwise, and have done nothing wrong."""
    (sock,) = open_sockets("127.0.0.1", 0, "my.yaml")
    acceptor = Acceptor([sock], Greeter)
    with ExitStack() as waiting:
        clients = [waiting.enter_context(socket.create_connection(sock.getsockname())) for _ in range(20)]
        await acceptor.stop(takes_rest=True)
        for client in clients:
            client.settimeout(30)
            assert await asyncio.to_thread(client.recv, 10) == b"hello"


async def test_who_is_connected_already_is_spoken_to() -> None:
    """Although another process has accepted it."""
    (sock,) = open_sockets("127.0.0.1", 0, "my.yaml")
    with socket.create_connection(sock.getsockname()) as client:
        connection, _ = sock.accept()
        acceptor = Acceptor([sock], Greeter)
        acceptor.adopt(connection)
        await acceptor.stop(takes_rest=False)
        client.settimeout(30)
        assert await asyncio.to_thread(client.recv, 10) == b"hello"


async def test_without_descriptors_it_pauses_and_goes_on_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once a pause, and the loop does not spin."""
    monkeypatch.setattr(listening, "PAUSE_S", 0.05)
    (sock,) = open_sockets("127.0.0.1", 0, "my.yaml")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with accepting(sock):
        with socket.create_connection(sock.getsockname()) as client:
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno(), limits[1]))
            try:
                with capture_logs() as logs:
                    began_at_s = time.monotonic()
                    for _ in range(20):
                        await asyncio.sleep(0.01)
                    took_s = time.monotonic() - began_at_s
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            client.settimeout(30)
            assert await asyncio.to_thread(client.recv, 10) == b"hello"
    assert {line["event"] for line in logs} == {"gateway.cannot_accept"}
    assert logs[0]["reason"] == "too many open files"
    assert len(logs) <= 2 + took_s / listening.PAUSE_S
