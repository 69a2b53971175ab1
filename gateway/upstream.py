"""The one client: opens a provider's answer, feeds what is read to its decoder, sends the events on.

One attempt is one call of ``Upstream``. It returns when the provider's own end marker was seen, and raises otherwise:
whatever aiohttp, a socket or a clock has to say is translated here and travels no further.

Nothing is sent before the first event that a user could see. A role, a ping or an empty delta is held back until then,
so that an attempt which dies before its first token leaves no trace, whoever tries again.

aiohttp's defaults that would hurt a stream are switched off: 100 connections in all, 300 seconds in all, redirects,
proxies from the environment, cookies, 256 KiB of read-ahead per stream (567 KiB were seen behind one slow reader).
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import aiohttp
from msgspec import structs
from yarl import URL

from gateway.core.call import Call
from gateway.core.errors import (
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
    unknown_model,
)
from gateway.core.events import TOKEN_EVENTS, ChoiceFinished, Event, StreamStarted, TextDelta
from gateway.pipeline import Send
from gateway.providers.base import Decoder, Provider, with_usage
from gateway.providers.errors import malformed
from gateway.push import relay
from gateway.watch import Limits, Watch

READ_AHEAD_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_TIMEOUT_S = 1.0
LARGE_BODY_BYTES = 512 * 1024
"""Above this aiohttp wants a file, so that it can write in pieces instead of blocking the loop."""

SHOWN_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "openai-processing-ms", "openai-version")
"""Headers of a provider's answer that its client may see; all others stay here."""

_VISIBLE = (*TOKEN_EVENTS, ChoiceFinished)


class ConfiguredProvider:
    """A provider with its limits, and how many calls are with it now."""

    def __init__(self, provider: Provider, limits: Limits, *, proxy: str | None = None) -> None:
        self.provider = provider
        self.limits = limits
        self.proxy = proxy
        self.in_flight_count = 0


def make_session() -> aiohttp.ClientSession:
    """Return a session made for long streams; to be called inside the loop that will use it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=READ_AHEAD_BYTES,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"user-agent": "millrace", "accept-encoding": "identity"},
    )


class Upstream:
    """The endpoint of the chain: one attempt at the call's target."""

    def __init__(self, providers: Mapping[str, ConfiguredProvider], session: aiohttp.ClientSession) -> None:
        self._providers = providers
        self._session = session

    async def __call__(self, call: Call, send: Send) -> None:
        """Relay the target's answer to ``send``; raises ``UpstreamError`` for every end that is not its own."""
        if call.target is None:
            raise unknown_model(call.model)
        upstream = self._providers[call.target.provider]
        limit = upstream.limits.max_concurrency
        if limit and upstream.in_flight_count >= limit:
            raise UpstreamBusy("the provider's concurrency limit is reached", code="concurrency_limit")
        upstream.in_flight_count += 1
        attempt = _Attempt(call, send, upstream)
        try:
            await attempt.run(self._session)
        except UpstreamError as error:
            error.target, error.attempt, error.was_sent = call.target, call.attempt, attempt.has_sent
            raise
        finally:
            upstream.in_flight_count -= 1


class _Attempt:
    """One request to one provider, from the connection to the last event."""

    __slots__ = (
        "_call",
        "_decoder",
        "_headers",
        "_held",
        "_is_whole",
        "_limits",
        "_provider",
        "_proxy",
        "_send",
        "_watch",
        "has_sent",
    )

    def __init__(self, call: Call, send: Send, upstream: ConfiguredProvider) -> None:
        self._call = call
        self._send = send
        self._provider = upstream.provider
        self._proxy = upstream.proxy
        self._limits = upstream.limits
        self._watch = Watch(upstream.limits, is_stream=call.stream, flow=call.flow)
        self._decoder: Decoder | None = None
        self._held: list[Event] = []
        self.has_sent = False
        self._is_whole = False
        self._headers: Mapping[str, str] = {}

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Make the request and relay its answer."""
        try:
            async with self._watch, self._answer(session) as response:
                self._headers = _shown(response)
                if self._call.stream and response.content_type != "application/json":
                    await self._relay(response)
                else:
                    await self._relay_whole(response)
        except TimeoutError as error:
            self._end_late(error)

    @asynccontextmanager
    async def _answer(self, session: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the request and yield its answer; a connection that is left before the last byte is aborted."""
        request = self._provider.request(self._call)
        body = request.body if len(request.body) < LARGE_BODY_BYTES else io.BytesIO(request.body)
        with _translated():
            response = await session.post(
                URL(request.url, encoded=True),
                data=body,
                headers=request.headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_timeout_s),
                allow_redirects=False,
                proxy=self._proxy,
            )
            try:
                if response.status >= 300:
                    raise self._refusal(response, await _read_at_most(response, MAX_ERROR_BYTES))
                yield response
            finally:
                _let_go(response, is_whole=self._is_whole)

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> UpstreamError:
        status = response.status
        if status < 400:
            message = f"the provider answered with a redirect ({status})"
            return UpstreamFailed(message, code="upstream_redirect", retryable=False, upstream_status=status)
        return self._provider.error(status, _headers(response), body)

    async def _relay(self, response: aiohttp.ClientResponse) -> None:
        """Relay a stream. How the transport ended does not matter, only whether the answer was whole by then."""
        decoder = self._decoder = self._provider.decoder(self._call)
        with suppress(aiohttp.ClientError, OSError):
            await relay(
                response.content, partial(self._take, decoder), self._call.flow, note_pause=self._watch.note_progress
            )
        self._finish(decoder)

    def _finish(self, decoder: Decoder) -> None:
        events = decoder.finish()
        self._is_whole = True
        if self._held or events:
            self._flush(events)

    def _end_late(self, error: TimeoutError) -> None:
        """A limit has run out; a provider that was slow to stop behind a whole answer has answered all the same."""
        if self._decoder is not None:
            with suppress(UpstreamError):
                self._finish(self._decoder)
                return
        raise self._late() from error

    def _take(self, decoder: Decoder, data: bytes) -> bool:
        """Pass on what one read brought; returns whether the answer is complete."""
        events = decoder.feed(data)
        if events:
            if self.has_sent and type(events[0]) is TextDelta:  # nearly all of a stream
                self._watch.note_progress()
                self._send(events)
            else:
                self._pass_on(events)
        return decoder.is_complete

    def _pass_on(self, events: list[Event]) -> None:
        """Send ``events``, or hold them back while there is nothing to see."""
        if any(isinstance(event, _VISIBLE) for event in events):
            self._watch.note_progress()
        elif not self.has_sent:
            self._held += events
            return
        if self.has_sent:
            self._send(events)
        else:
            self._flush(events)

    def _flush(self, events: Sequence[Event]) -> None:
        """Send what was held back and ``events``; the start gets the headers that a client may see."""
        self.has_sent = True
        batch = [
            structs.replace(event, headers=self._headers) if isinstance(event, StreamStarted) else event
            for event in (*self._held, *events)
        ]
        self._held.clear()
        self._send(batch)

    async def _relay_whole(self, response: aiohttp.ClientResponse) -> None:
        """Relay an answer that is not a stream, whether one was asked for or not."""
        body = await _read_at_most(response, MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            raise malformed(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._flush(with_usage(self._call, self._provider.answer(self._call, body)))

    def _late(self) -> UpstreamError:
        """Return the error for the limit that has run out."""
        limit = self._watch.expired or "total"
        code = f"{limit}_timeout"
        if limit == "ttft":
            message = f"the provider sent no token within {self._limits.ttft_timeout_s:g} s"
        elif limit == "stall":
            message = f"the provider sent no further token for {self._limits.stall_timeout_s:g} s"
        else:
            message = f"the answer was not complete after {self._limits.total_timeout_s:g} s"
        if self.has_sent:
            return StreamInterrupted(message, code=code, status_code=504, error_type="read_timeout")
        return UpstreamTimeout(message, code=code)


async def _read_at_most(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """Return the body, or its first ``limit_bytes``."""
    pieces: list[bytes] = []
    size = 0
    while size < limit_bytes:
        piece = await response.content.readany()
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)[:limit_bytes]


def _let_go(response: aiohttp.ClientResponse, *, is_whole: bool) -> None:
    """Give the connection back if nothing more will come on it, abort it otherwise.

    Closing would be too polite: with TLS a close waits for the other side, which goes on generating and billing.
    """
    connection = response.connection
    if connection is None:
        return
    if response.content.is_eof():
        response.release()
    elif is_whole:
        draining = asyncio.ensure_future(_drain(response))
        _DRAINING.add(draining)
        draining.add_done_callback(_DRAINING.discard)
    else:
        _abort(response)


_DRAINING: set[asyncio.Future[None]] = set()
"""The loop holds tasks weakly; somebody has to hold these."""


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Wait for the last bytes behind a complete answer, so that the connection can serve another."""
    try:
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await _read_at_most(response, READ_AHEAD_BYTES)
    finally:
        if response.content.is_eof():
            response.release()
        else:
            _abort(response)


def _abort(response: aiohttp.ClientResponse) -> None:
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def _headers(response: aiohttp.ClientResponse) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _shown(response: aiohttp.ClientResponse) -> Mapping[str, str]:
    return {name: value for name, value in _headers(response).items() if name.startswith(SHOWN_PREFIXES)}


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what aiohttp and the system raise into our own errors; nothing of their words is kept."""
    try:
        yield
    except UpstreamError:
        raise
    except aiohttp.ClientConnectorDNSError as error:
        raise UpstreamUnreachable("the provider's host name was not found", error_type="dns") from error
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise UpstreamUnreachable("no secure connection to the provider could be made", error_type="tls") from error
    except aiohttp.ClientConnectorError as error:
        raise UpstreamUnreachable("no connection to the provider could be made") from error
    except aiohttp.ServerTimeoutError as error:
        raise UpstreamTimeout("no connection to the provider could be made in time", code="connect_timeout") from error
    except aiohttp.InvalidURL as error:
        raise UpstreamUnreachable("the provider's address is not a URL", retryable=False) from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
        raise malformed("an answer that is not valid HTTP, or broke off") from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, asyncio.TimeoutError):
            raise
        raise UpstreamUnreachable("the provider closed the connection", error_type="reset") from error
