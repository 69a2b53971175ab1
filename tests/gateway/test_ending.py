from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from gateway import ending
from gateway.core.delivery import AnswerComplete
from gateway.core.errors import (
    ClientGone,
    InternalError,
    StreamInterrupted,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.ledger import Result
from gateway.ending import late, let_go, result_of, translated
from gateway.exchange import Answer, ask
from gateway.pipeline import HEDGE_LOST
from gateway.upstream import make_session
from gateway.watch import Limit, Limits
from tests.eventually import TIMEOUT_S, eventually
from tests.scripted_upstream import END, STREAM, Script, ScriptedUpstream, answer, chunk

KEY = ConnectionKey("canary", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
FAULT = OSError(111, "canary")
RESPONSE = aiohttp.ClientResponseError(
    aiohttp.RequestInfo(URL("http://canary"), "POST", {}, URL("http://canary")),  # type: ignore[arg-type]  # no headers
    (),
    message="canary",
)


# --- in our own words


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, FAULT), UpstreamUnreachable, "dns"),
        (aiohttp.ClientConnectorSSLError(KEY, FAULT), UpstreamUnreachable, "tls"),
        (aiohttp.ClientConnectorCertificateError(KEY, FAULT), UpstreamUnreachable, "tls"),
        (ssl.SSLError(1, "canary"), UpstreamUnreachable, "tls"),
        (aiohttp.ClientConnectorError(KEY, FAULT), UpstreamUnreachable, "connect"),
        (aiohttp.ConnectionTimeoutError("canary"), UpstreamTimeout, "connect"),
        (aiohttp.ClientPayloadError("canary"), StreamInterrupted, "protocol"),
        (RESPONSE, StreamInterrupted, "protocol"),
        (aiohttp.ServerDisconnectedError("canary"), UpstreamUnreachable, "reset"),
        (ConnectionResetError("canary"), UpstreamUnreachable, "reset"),
        (FAULT, UpstreamUnreachable, "reset"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_goes_wrong_with_a_transport_is_told_in_our_own_words(
    error: Exception, kind: type[UpstreamError], told: str
) -> None:
    """Another attempt may help, and nothing of what the libraries say is kept: it names hosts."""
    found = translated(error)
    assert type(found) is kind
    assert (found.error_type, found.retryable) == (told, True)
    assert "canary" not in f"{found!r} {found.message} {found.code}"


def test_an_address_that_is_none_does_not_become_one_by_trying_again() -> None:
    """The configuration is wrong."""
    found = translated(aiohttp.InvalidUrlClientError("http://canary"))
    assert isinstance(found, UpstreamUnreachable)
    assert not found.retryable


def test_a_limit_that_has_run_out_is_not_the_transports() -> None:
    """Whoever watches it knows which it was."""
    assert translated(TimeoutError()) is None


@pytest.mark.parametrize(
    ("limit", "message", "retryable"),
    [
        ("ttft", "the provider sent no token within 1.5 s", True),
        ("stall", "the provider sent no further token for 2 s", True),
        ("total", "the answer was not complete after 90 s", False),
    ],
)
@pytest.mark.parametrize(("has_begun", "kind"), [(False, UpstreamTimeout), (True, StreamInterrupted)])
def test_a_limit_that_has_run_out_is_told_by_its_name(
    limit: Limit, message: str, kind: type[UpstreamError], *, retryable: bool, has_begun: bool
) -> None:
    """What was begun is interrupted by it; behind the last of them there is no time for another attempt."""
    limits = Limits(ttft_timeout_s=1.5, stall_timeout_s=2.0, total_timeout_s=90.0)
    found = late(limit, limits, has_begun=has_begun)
    assert type(found) is kind
    assert (found.code, found.message, found.status_code) == (f"{limit}_timeout", message, 504)
    assert found.retryable is retryable


@pytest.mark.parametrize(
    ("failure", "result", "reason"),
    [
        (None, "completed", ""),
        (asyncio.CancelledError(HEDGE_LOST), "cancelled", HEDGE_LOST),
        (asyncio.CancelledError(), "cancelled", "client_gone"),
        (ClientGone("gone"), "cancelled", "client_gone"),
        (AnswerComplete(), "cancelled", "enough"),
        (UpstreamFailed("no"), "failed", ""),
        (InternalError("no"), "failed", ""),
        (ValueError("no"), "failed", ""),
    ],
    ids=repr,
)
def test_an_attempt_is_accounted_for_by_what_ended_it(
    failure: BaseException | None, result: Result, reason: str
) -> None:
    """Only what nobody here wanted has failed."""
    assert result_of(failure) == (result, reason)


# --- what becomes of the connection


@asynccontextmanager
async def answered(*scripts: Script) -> AsyncIterator[tuple[ScriptedUpstream, Answer, aiohttp.ClientSession]]:
    """Yield a provider, its answer to a first request, and the session with which a second can be made."""
    async with ScriptedUpstream(*scripts) as server, make_session() as session:
        yield server, await post(session, server), session


async def post(session: aiohttp.ClientSession, server: ScriptedUpstream) -> Answer:
    """Make a request of a provider."""
    return await ask(session, server.url, {}, b"{}", connect_timeout_s=TIMEOUT_S, note_connect=lambda _: None)


async def test_a_connection_on_which_nothing_more_will_come_is_given_back() -> None:
    """The next request goes over it."""
    async with answered([answer(200, b"{}")]) as (server, first, session):
        await first.read(100)
        let_go(first, is_whole=False)
        let_go(await post(session, server), is_whole=False)
        assert [request.connection for request in server.requests] == [1, 1]


async def test_the_last_bytes_behind_a_whole_answer_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They often come in a packet of their own, and the connection is worth it."""
    monkeypatch.setattr(ending, "DRAIN_TIMEOUT_S", TIMEOUT_S)
    has_let_go = asyncio.Event()
    async with answered([STREAM + chunk(b"all"), has_let_go, END]) as (server, first, session):
        let_go(first, is_whole=True)
        has_let_go.set()
        await eventually(lambda: not ending._DRAINING)
        let_go(await post(session, server), is_whole=False)
        assert [request.connection for request in server.requests] == [1, 1]


@pytest.mark.parametrize("behind", ["stall", "rst", "more"])
async def test_an_end_that_does_not_come_behind_a_whole_answer_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    """Neither where the provider says nothing, nor where it is gone, nor where it talks on."""
    monkeypatch.setattr(ending, "DRAIN_TIMEOUT_S", TIMEOUT_S if behind == "more" else 0.05)
    rest = [chunk(b"x" * (2 * ending.DRAIN_BYTES)), "stall"] if behind == "more" else [behind]
    async with answered([STREAM + chunk(b"all"), *rest]) as (server, first, _):
        let_go(first, is_whole=True)
        await asyncio.wait_for(server.requests[0].gone.wait(), TIMEOUT_S)
        await eventually(lambda: not ending._DRAINING)


async def test_an_answer_that_is_left_in_the_middle_is_cut() -> None:
    """Its provider stops at once, and nothing of it is read as the next answer."""
    async with answered([STREAM + chunk(b"some"), "stall"], [answer(200, b"{}")]) as (server, first, session):
        let_go(first, is_whole=False)
        await asyncio.wait_for(server.requests[0].gone.wait(), TIMEOUT_S)
        second = await post(session, server)
        assert await second.read(100) == b"{}"
        let_go(second, is_whole=True)
        assert [request.connection for request in server.requests] == [1, 2]
