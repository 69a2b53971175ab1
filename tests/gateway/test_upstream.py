import asyncio
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp
import pytest
import uvloop
from msgspec import structs

from gateway import ending, upstream
from gateway.configured_provider import ConfiguredProvider
from gateway.core.call import OPENAI_CHAT, Call, Message, Route, Source, Target, TextPart, ToolCall
from gateway.core.continuation import Checkpoint, Continuation, Way
from gateway.core.delivery import AnswerComplete
from gateway.core.errors import (
    ClientGone,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import ChoiceFinished, Event, StreamStarted, TextDelta, Usage, UsageReported
from gateway.core.ledger import Settlement
from gateway.exchange import IS_SHORT
from gateway.pipeline import DRAINED, HEDGE_LOST
from gateway.providers.anthropic import Anthropic
from gateway.providers.base import Provider, ProviderOptions
from gateway.providers.compatible import OpenAICompatible
from gateway.providers.google import Google
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab
from gateway.upstream import Upstream, make_session
from gateway.watch import Limits
from tests.clock import Clock
from tests.eventually import TIMEOUT_S, eventually
from tests.exposition import Exposition
from tests.scripted_upstream import (
    CLOSE_DELIMITED,
    DONE,
    END,
    FINISH,
    PING,
    ROLE,
    STREAM,
    Certificate,
    Script,
    ScriptedUpstream,
    answer,
    chunk,
    complete,
    event,
    openai_chunk,
    text,
    words,
)

KEY = "sk-canary-0123456789abcdef"
PATIENT = Limits()
SENT: Literal["sent"] = "sent"
"""In a script: wait until something was sent on. What comes with a break is not always read."""
TCP_ESTABLISHED = 1
GONE_S = 10.0
"""How long a connection may take to be gone where it is let go of at once: less than any limit of ours, and of TLS."""
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Relay:
    """An ``Upstream`` over one provider, what it has sent and counted, and the ledger in which it settles."""

    url: str
    limits: Limits = PATIENT
    make: Callable[[ProviderOptions], Provider] = OpenAICompatible
    host: str | None = None
    continuation: Literal["auto", "exact", "anchored", "off"] = "auto"
    events: list[Event] = field(default_factory=list)
    batches: list[list[Event]] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    session: aiohttp.ClientSession | None = None
    on_send: Callable[[Sequence[Event]], None] | None = None
    slab: Slab = field(default_factory=Slab.create)
    has_sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self.session = self.session or make_session()
        self.fresh = make_session(keeps_connections=False)
        options = ProviderOptions(
            name="up", base_url=self.url, api_key=KEY, host=self.host, continuation=self.continuation
        )
        takes_anchored = self.continuation in ("auto", "anchored")
        self.provider = ConfiguredProvider(self.make(options), self.limits, takes_anchored=takes_anchored)
        self.upstream = Upstream({"up": self.provider}, self.session, self.fresh, meters=Meters(self.slab))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.session is not None
        await self.session.close()
        await self.fresh.close()

    def send(self, events: Sequence[Event]) -> None:
        """Keep what comes."""
        self.notes.append("sent")
        self.events += events
        self.batches.append(list(events))
        self.has_sent.set()
        if self.on_send is not None:
            self.on_send(events)

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Keep when it was told."""
        assert ttft_s >= 0
        self.notes.append(f"first token of {target}, attempt {attempt}")

    def settle(self, settlement: Settlement) -> None:
        """Keep it."""
        self.notes.append("settled")
        self.settled.append(settlement)

    async def __call__(self, call: Call | None = None) -> None:
        """Make one attempt."""
        await self.upstream(structs.replace(call or make_call(), ledger=self), self.send)

    async def until(self, text: str) -> None:
        """Return when this is the text that was sent."""
        await eventually(lambda: self.text == text)

    @property
    def counted(self) -> Exposition:
        """What was counted so far."""
        return Exposition.of(self.slab)

    @property
    def text(self) -> str:
        """The text sent so far."""
        return "".join(one.text for one in self.events if isinstance(one, TextDelta))


def make_call(*, stream: bool = True, content: str = "Hello", model: str = "mill", **fields: Any) -> Call:
    """Return a call for a model of the one provider there is."""
    body: Mapping[str, Any] = {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}
    call = Call(
        request_id="req_1",
        model="up/mill",
        route=Route(name="chat"),
        target=Target("up", model),
        stream=stream,
        messages=(Message(role="user", parts=(TextPart(content),), source=body["messages"][0]),),
        source=Source(OPENAI_CHAT, body),
    )
    return structs.replace(call, **fields)


@asynccontextmanager
async def playing(*script: Any, **options: Any) -> AsyncIterator[Relay]:
    """Yield a relay over a provider that plays the script."""
    has_sent = asyncio.Event()
    steps = [has_sent if step == SENT else step for step in script]
    async with ScriptedUpstream(steps) as server, Relay(server.url, has_sent=has_sent, **options) as relay:
        yield relay


async def fail(*script: Any, limits: Limits = PATIENT, stream: bool = True) -> tuple[UpstreamError, Relay]:
    """Play the script to one attempt and return the error that it ends with."""
    async with playing(*script, limits=limits) as relay:
        with pytest.raises(UpstreamError) as caught:
            await asyncio.wait_for(relay(make_call(stream=stream)), TIMEOUT_S)
    return caught.value, relay


async def succeed(*script: Any, limits: Limits = PATIENT, stream: bool = True) -> Relay:
    """Play the script to one attempt that ends well."""
    async with playing(*script, limits=limits) as relay:
        await relay(make_call(stream=stream))
    return relay


# --- an answer that goes well


async def test_a_complete_stream_is_sent_in_order_and_the_attempt_returns() -> None:
    """Start, text and finish come in the order in which the provider sent them."""
    relay = await succeed(STREAM + chunk(ROLE), chunk(text("a", "b")), 0.02, chunk(text("c"), FINISH, DONE) + END)
    kinds = [type(one) for one in relay.events]
    assert kinds[0] is StreamStarted
    assert relay.text == "abc"
    assert kinds.index(ChoiceFinished) > max(place for place, kind in enumerate(kinds) if kind is TextDelta)
    assert kinds.count(UsageReported) == 1, "the provider reported none: it is estimated, once"


async def test_the_request_is_the_providers_own_and_its_key_travels_in_a_header_only() -> None:
    """What goes out is a POST of JSON that asks for an uncompressed stream."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        await relay()
        request = server.requests[0]
    assert request.head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"] == "millrace"
    assert request.json["model"] == "mill"
    assert request.json["stream"] is True
    assert KEY.encode() not in request.body


async def test_an_answer_wanted_whole_is_sent_as_one_batch() -> None:
    """A JSON answer becomes events at once."""
    message = {"role": "assistant", "content": "Hello there"}
    document = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "mill",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    relay = await succeed(answer(200, document), stream=False)
    assert relay.text == "Hello there"
    assert len(relay.batches) == 1


async def test_a_json_body_for_a_stream_is_sent_as_a_stream() -> None:
    """A host that ignores ``stream`` is understood all the same."""
    message = {"role": "assistant", "content": "Hello there"}
    document = {"id": "c1", "created": 1, "model": "mill", "choices": [{"message": message, "finish_reason": "stop"}]}
    relay = await succeed(answer(200, document, content_type="application/json; charset=utf-8"))
    assert relay.text == "Hello there"
    assert isinstance(relay.events[0], StreamStarted)
    assert any(isinstance(one, ChoiceFinished) for one in relay.events)


async def test_a_body_of_two_megabytes_arrives_whole_and_warns_of_nothing() -> None:
    """A large request is written in pieces, so that aiohttp has nothing to warn of."""
    content = "x" * 2_000_000
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await relay(make_call(content=content))
        assert server.requests[0].json["messages"][0]["content"] == content
        assert server.requests[0].headers["content-length"] == str(len(server.requests[0].body))


async def test_only_listed_headers_of_the_answer_travel_on() -> None:
    """Rate limits are shown; cookies, server names and request ids of the provider are not."""
    head = STREAM[:-2] + (
        b"x-ratelimit-remaining-requests: 41\r\nanthropic-ratelimit-tokens-limit: 9\r\nopenai-processing-ms: 12\r\n"
        b"openai-version: 2020-10-01\r\nset-cookie: a=b\r\nserver: secret\r\nx-request-id: theirs\r\n\r\n"
    )
    relay = await succeed(head + chunk(ROLE, text("a"), FINISH, DONE) + END)
    started = relay.events[0]
    assert isinstance(started, StreamStarted)
    assert dict(started.headers) == {
        "x-ratelimit-remaining-requests": "41",
        "anthropic-ratelimit-tokens-limit": "9",
        "openai-processing-ms": "12",
        "openai-version": "2020-10-01",
    }


async def test_an_attempt_shows_nothing_of_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what was asked nor the answer: a loop that tells of a failure shows the object that it was in."""
    shown: list[str] = []
    really = upstream._Attempt._pass_on

    def pass_on(attempt: upstream._Attempt, events: list[Event], arrived_at_s: float) -> None:
        try:
            really(attempt, events, arrived_at_s)
        finally:
            shown.append(repr(attempt))

    monkeypatch.setattr(upstream._Attempt, "_pass_on", pass_on)
    held = openai_chunk({"role": "assistant", "content": ""}, said="canary")
    async with playing(STREAM + chunk(held), 0.02, chunk(text("canary"), FINISH, DONE) + END) as relay:
        await relay(make_call(content="canary"))
    assert shown
    assert all("req_1" in one and "canary" not in one for one in shown)


async def test_a_cookie_is_not_sent_back() -> None:
    """The session keeps no cookies: one call says nothing to the next."""
    head = STREAM[:-2] + b"set-cookie: track=1; Path=/\r\n\r\n"
    async with ScriptedUpstream([head + chunk(ROLE, text("a"), FINISH, DONE) + END]) as server:
        async with Relay(server.url) as relay:
            await relay()
            await relay()
        assert "cookie" not in server.requests[1].headers


async def test_proxies_from_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the configuration names a proxy."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await succeed(*complete("direct"))).text == "direct"


async def test_a_configured_proxy_is_used() -> None:
    """The proxy gets the absolute address and relays it."""
    async with ScriptedUpstream() as proxy, Relay("http://provider.invalid/v1") as relay:
        relay.provider.proxy = f"http://127.0.0.1:{proxy.port}"
        await relay()
        assert proxy.requests[0].head.startswith("POST http://provider.invalid/v1/chat/completions ")
    assert relay.text == "Hello"


# --- nothing before the first visible event


async def test_nothing_is_sent_before_the_first_visible_event() -> None:
    """A role, pings and empty deltas are held back, and come together with the first text."""
    script: Script = [STREAM + chunk(ROLE), chunk(PING), chunk(text("")), 0.1, chunk(text("a")), *_end()]
    async with ScriptedUpstream(script) as server, Relay(server.url) as relay:
        await relay()
    first = relay.batches[0]
    assert isinstance(first[0], StreamStarted)
    assert any(isinstance(one, TextDelta) for one in first)


@pytest.mark.parametrize("before", [STREAM, STREAM + chunk(ROLE), STREAM + chunk(PING, ROLE, PING)])
async def test_an_attempt_that_dies_before_its_first_token_has_sent_nothing(before: bytes) -> None:
    """Whoever tries again finds no trace."""
    error, relay = await fail(before, 0.02, "fin")
    assert relay.batches == []
    assert error.retryable


async def test_an_answer_without_any_token_is_complete_all_the_same() -> None:
    """A finish without text is an empty answer, not an error."""
    relay = await succeed(STREAM + chunk(ROLE, FINISH, DONE) + END)
    assert relay.text == ""
    assert any(isinstance(one, ChoiceFinished) for one in relay.events)


def _end() -> Script:
    return [chunk(FINISH, DONE) + END]


# --- what the provider answers instead


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "told"),
    [
        (400, UpstreamRefused, False, 400),
        (401, UpstreamRefused, False, 502),
        (403, UpstreamRefused, False, 502),
        (404, UpstreamRefused, False, 404),
        (408, UpstreamRefused, True, 408),
        (413, UpstreamRefused, False, 413),
        (418, UpstreamRefused, False, 502),
        (429, UpstreamBusy, True, 429),
        (500, UpstreamFailed, True, 502),
        (502, UpstreamFailed, True, 502),
        (503, UpstreamBusy, True, 503),
        (529, UpstreamBusy, True, 503),
    ],
)
async def test_a_status_of_the_provider_becomes_an_error_of_its_kind(
    status: int, kind: type[UpstreamError], told: int, *, retryable: bool
) -> None:
    """The class says whose fault it is, ``retryable`` whether another attempt may help."""
    said = {"error": {"message": "No.", "type": "x", "code": "some_code"}}
    error, relay = await fail(answer(status, said, retry_after="7"))
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.status_code == told
    assert error.upstream_status == status
    assert str(error.target) == "up/mill"
    assert error.attempt == 1
    assert relay.batches == []
    if status == 429:
        assert error.retry_after_s == 7


async def test_an_error_body_without_an_end_is_read_only_so_far() -> None:
    """A provider cannot fill the memory with an error."""
    head = b"HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\n\r\n"
    error, _ = await fail(head + b'{"error": "' + b"x" * 1_000_000, "stall", limits=Limits())
    assert isinstance(error, UpstreamFailed)
    assert len(error.message) < 500


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_refused_and_not_followed(status: int) -> None:
    """A provider that moved must be configured anew: keys are not carried elsewhere."""
    async with ScriptedUpstream() as elsewhere:
        error, _ = await fail(answer(status, b"", location=f"{elsewhere.url}/chat/completions"))
        assert elsewhere.requests == []
    assert isinstance(error, UpstreamFailed)
    assert error.code == "upstream_redirect"
    assert not error.retryable


async def test_the_key_echoed_by_the_provider_is_not_in_the_error() -> None:
    """A provider's words are cleaned of the key that it was shown."""
    error, _ = await fail(answer(400, {"error": {"message": f"bad key {KEY} in Bearer {KEY}"}}))
    told = f"{error} {error.message} {error.code} {error.param} {error!r}"
    assert KEY not in told
    assert "canary" not in error.message


async def test_a_json_error_inside_a_200_is_an_error() -> None:
    """A stream was asked for, an error document came."""
    error, relay = await fail(answer(200, {"error": {"message": "overloaded", "code": 503}}))
    assert isinstance(error, UpstreamBusy)
    assert relay.batches == []


async def test_an_error_event_first_is_a_failure_before_the_start() -> None:
    """200 and then an error event: nothing was seen, another attempt may do better."""
    error, relay = await fail(STREAM + chunk(event({"error": {"message": "Overloaded", "code": 503}})) + END)
    assert isinstance(error, UpstreamBusy)
    assert error.retryable
    assert relay.batches == []


async def test_an_error_event_after_text_is_an_interruption_and_the_text_before_it_is_sent() -> None:
    """Even in one read: what was good is not taken along."""
    script = [STREAM + chunk(ROLE, text("a", "b"), event({"error": {"message": "broke", "code": 500}}), DONE) + END]
    error, relay = await fail(*script)
    assert isinstance(error, StreamInterrupted)
    assert relay.text == "ab"


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        STREAM + b"zz\r\nnot a chunk size\r\n",
    ],
    ids=["tls", "ssh", "two lengths", "chunk size"],
)
async def test_an_answer_that_is_not_http_is_an_upstream_error(said: bytes) -> None:
    """Its bytes travel no further, and its target is known."""
    error, relay = await fail(said, 0.05, "fin")
    assert error.retryable
    assert relay.batches == []
    assert "SSH" not in error.message


@pytest.mark.parametrize("junk", [b"zz\r\n", b"3\r\noddxx\r\n"])
@pytest.mark.parametrize("said", [b"", chunk(ROLE, text("a"))], ids=["before text", "behind text"])
async def test_a_stream_that_is_not_http_any_more_ends_at_once(said: bytes, junk: bytes) -> None:
    """Its provider says nothing more and does not close; no limit is waited for."""
    endless = Limits(ttft_timeout_s=600.0, stall_timeout_s=600.0)
    error, relay = await fail(STREAM + said, *([SENT] if said else [0.05]), junk, "stall", limits=endless)
    assert isinstance(error, StreamInterrupted)
    assert error.retryable
    assert relay.text == ("a" if said else "")


async def test_an_html_page_for_a_stream_is_an_interruption() -> None:
    """A login page with status 200 is no answer."""
    error, relay = await fail(answer(200, b"<html>Sign in</html>", content_type="text/html"))
    assert isinstance(error, StreamInterrupted)
    assert relay.batches == []


# --- no connection


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_refused_connection_is_unreachable() -> None:
    """Nobody listens there."""
    async with Relay(f"http://127.0.0.1:{free_port()}/v1") as relay:
        with pytest.raises(UpstreamUnreachable) as caught:
            await relay()
    assert caught.value.error_type == "connect"
    assert caught.value.retryable


async def test_an_unknown_host_name_is_unreachable() -> None:
    """Its error says that it is the name."""
    async with Relay("http://no-such-host.invalid/v1", Limits(connect_timeout_s=30)) as relay:
        with pytest.raises(UpstreamUnreachable) as caught:
            await relay()
    assert caught.value.error_type == "dns"


async def test_a_certificate_that_nobody_vouches_for_is_unreachable(tmp_path: Path) -> None:
    """No byte of the request is shown to a stranger."""
    async with ScriptedUpstream(tls=Certificate.make(tmp_path)) as server:
        async with Relay(server.url, Limits()) as relay:
            with pytest.raises(UpstreamUnreachable) as caught:
                await relay()
        assert server.requests == []
    assert caught.value.error_type == "tls"


async def test_a_server_that_does_not_accept_runs_into_the_connect_timeout() -> None:
    """A full backlog drops the handshake: that ends after ``connect_timeout_s``."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.settimeout(0)
                filler.connect_ex(("127.0.0.1", port))
            limits = Limits(connect_timeout_s=0.3)
            async with asyncio.timeout(TIMEOUT_S), Relay(f"http://127.0.0.1:{port}/v1", limits) as relay:
                with pytest.raises(UpstreamTimeout) as caught:
                    await relay()
        finally:
            for filler in fillers:
                filler.close()
    assert caught.value.code == "connect_timeout"
    assert caught.value.error_type == "connect"
    assert caught.value.retryable
    (settled,) = relay.settled
    assert (settled.result, settled.code, settled.error_type) == ("failed", "connect_timeout", "connect")


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_connection_that_dies_before_an_answer_is_unreachable(how: str) -> None:
    """The request was read and nothing came back."""
    error, relay = await fail(how)
    assert isinstance(error, UpstreamUnreachable)
    assert error.error_type == "reset"
    assert relay.batches == []


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_connection_that_dies_within_the_headers_is_unreachable(how: str) -> None:
    """Half a status line is no answer."""
    error, _ = await fail(b"HTTP/1.1 200 OK\r\ncontent-ty", 0.02, how)
    assert error.retryable


# --- limits of time


async def test_a_provider_that_says_nothing_runs_into_the_ttft_timeout() -> None:
    """No header, no token: the attempt is over, and may be repeated."""
    error, _ = await fail("stall", limits=Limits(ttft_timeout_s=0.3))
    assert isinstance(error, UpstreamTimeout)
    assert error.code == "ttft_timeout"
    assert error.status_code == 504
    assert error.retryable


async def test_pings_and_roles_are_no_first_token() -> None:
    """A provider that only pings is as late as one that is silent."""
    pings: list[Any] = [step for _ in range(3000) for step in (chunk(PING, openai_chunk({"role": "assistant"})), 0.02)]
    error, relay = await fail(STREAM + chunk(ROLE), *pings, limits=Limits(ttft_timeout_s=0.3))
    assert isinstance(error, UpstreamTimeout)
    assert error.code == "ttft_timeout"
    assert relay.batches == []


async def test_a_stream_that_stops_runs_into_the_stall_timeout() -> None:
    """What was sent stays sent; the attempt is an interruption."""
    error, relay = await fail(STREAM + chunk(ROLE, text("a")), "stall", limits=Limits(stall_timeout_s=0.3))
    assert isinstance(error, StreamInterrupted)
    assert error.code == "stall_timeout"
    assert relay.text == "a"


async def test_pings_and_empty_deltas_do_not_hide_a_stall() -> None:
    """Only tokens are progress."""
    pings: list[Any] = [step for _ in range(3000) for step in (chunk(PING, openai_chunk({"content": ""})), 0.02)]
    error, relay = await fail(STREAM + chunk(ROLE, text("a")), *pings, limits=Limits(stall_timeout_s=0.3))
    assert error.code == "stall_timeout"
    assert relay.text == "a"


async def test_a_slow_stream_that_goes_on_is_not_stalled(clock: Clock) -> None:
    """Every token starts the limit anew."""
    gates = [asyncio.Event() for _ in range(6)]
    steps: list[Any] = [step for gate, word in zip(gates, words(6), strict=True) for step in (gate, chunk(text(word)))]
    limits = Limits(ttft_timeout_s=20, stall_timeout_s=20)
    async with playing(STREAM + chunk(ROLE), *steps, *_end(), limits=limits) as relay:
        attempt = asyncio.ensure_future(relay())
        for count, gate in enumerate(gates):
            await relay.until("".join(words(count)))
            await clock.pass_by(12)
            gate.set()
        await attempt
    assert relay.text == "".join(words(6))


async def test_an_answer_that_never_ends_runs_into_the_total_timeout(clock: Clock) -> None:
    """However lively it is."""
    steps: list[Any] = [step for word in words(100) for step in (chunk(text(word)), 0.02)]
    async with playing(STREAM + chunk(ROLE), *steps, limits=Limits(total_timeout_s=20)) as relay:
        relay.on_send = lambda _: clock.advance(25) if relay.text.endswith(" w5 ") else None
        with pytest.raises(StreamInterrupted) as caught:
            await relay()
    assert caught.value.code == "total_timeout"
    assert relay.text.startswith("w0 w1 ")


async def test_a_whole_answer_is_watched_by_its_total_only() -> None:
    """It has no tokens: what is slow to a stream is not slow to it."""
    message = {"role": "assistant", "content": "late"}
    document = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    relay = await succeed(
        0.5, answer(200, document), stream=False, limits=Limits(ttft_timeout_s=0.1, stall_timeout_s=0.1)
    )
    assert relay.text == "late"
    error, _ = await fail("stall", stream=False, limits=Limits(total_timeout_s=0.3))
    assert error.code == "total_timeout"


async def test_a_provider_that_stalls_behind_a_whole_answer_has_still_answered() -> None:
    """The finish was there; waiting in vain for what may follow it makes no error of it."""
    relay = await succeed(STREAM + chunk(ROLE, text("a"), FINISH), "stall", limits=Limits(stall_timeout_s=0.3))
    assert relay.text == "a"
    assert sum(isinstance(one, UsageReported) for one in relay.events) == 1


# --- how a body ends


@pytest.mark.parametrize("head", [STREAM, CLOSE_DELIMITED], ids=["chunked", "close-delimited"])
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("rest", [b"", openai_chunk({"content": "half"})[:40]], ids=["between", "mid-event"])
async def test_a_cut_stream_is_an_interruption_however_its_socket_closed(head: bytes, how: str, rest: bytes) -> None:
    """Without the provider's own end there is no end, and half an event is not passed on."""
    framed = chunk if head is STREAM else _bare
    error, relay = await fail(head + framed(ROLE, text("a", "b"), rest), SENT, how)
    assert isinstance(error, StreamInterrupted)
    assert error.retryable
    assert relay.text == "ab"


async def test_a_clean_end_of_the_body_without_the_end_marker_is_an_interruption() -> None:
    """The last chunk is there, the finish is not."""
    error, relay = await fail(STREAM + chunk(ROLE, text("a")) + END)
    assert isinstance(error, StreamInterrupted)
    assert error.code == "stream_truncated"
    assert relay.text == "a"


async def test_done_without_a_finish_is_an_interruption() -> None:
    """Engines send it behind a failure too."""
    error, _ = await fail(STREAM + chunk(ROLE, text("a"), DONE) + END)
    assert isinstance(error, StreamInterrupted)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("end", [FINISH, FINISH + DONE], ids=["finish", "done"])
async def test_a_transport_error_behind_a_whole_answer_is_no_error(how: str, end: bytes) -> None:
    """How the transport ended does not matter, only whether the answer was whole by then."""
    relay = await succeed(STREAM + chunk(ROLE, text("a"), end), SENT, how)
    assert relay.text == "a"


async def test_a_close_delimited_stream_with_its_end_is_complete() -> None:
    """Its framing is poor, its answer is whole."""
    relay = await succeed(CLOSE_DELIMITED + ROLE + text("a") + FINISH + DONE, "fin")
    assert relay.text == "a"


async def test_a_whole_answer_that_is_cut_is_an_error() -> None:
    """A body shorter than promised is not parsed for what it has."""
    error, relay = await fail(answer(200, b'{"id": "c", "choices": [', content_length="500"), "fin", stream=False)
    assert error.retryable
    assert relay.batches == []


async def test_bytes_that_are_split_anywhere_arrive_as_they_were() -> None:
    """Chunks end inside of characters, lines and events."""
    body = ROLE + text("käse ", "日本語 ", "🧀") + FINISH + DONE
    steps = [STREAM, *(chunk(body[at : at + 7]) for at in range(0, len(body), 7)), END]
    relay = await succeed(b"".join(steps))
    assert relay.text == "käse 日本語 🧀"


@pytest.mark.parametrize(
    "garbage",
    [b"data: {not json}\n\n", b"data: \xff\xfe\n\n", b"data: \x00\n\n", b"data: []\n\n"],
    ids=["json", "utf-8", "nul", "array"],
)
async def test_an_event_that_is_no_chunk_is_an_interruption_and_not_passed_on(garbage: bytes) -> None:
    """Malformed bytes never reach a client."""
    error, relay = await fail(STREAM + chunk(ROLE, text("a"), garbage, text("b"), FINISH, DONE) + END)
    assert isinstance(error, StreamInterrupted)
    assert error.error_type == "protocol"
    assert relay.text == "a"


# --- connections


async def test_a_connection_is_used_again_after_a_complete_stream() -> None:
    """Two calls, one connection."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        await relay()
        await relay()
        assert [request.connection for request in server.requests] == [1, 1]


async def test_a_call_uses_the_connection_that_was_made_ready_for_it() -> None:
    """It waits for no handshake, and counts none."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        [warmed] = relay.upstream.warmed()
        assert warmed.asked_at_s < 0, "nobody has asked it"
        await warmed.warm()
        await warmed.warm()
        assert server.connection_count == IS_SHORT
        before_s = time.monotonic()
        await relay()
        assert server.connection_count == 1
        assert before_s <= warmed.asked_at_s <= time.monotonic()
        assert (relay.settled[0].connect_s is None) == IS_SHORT


async def test_no_connection_is_made_ready_to_what_cannot_be_reached_or_is_behind_a_proxy() -> None:
    """The one is nobody's error, the other is not asked that way."""
    async with Relay(f"http://127.0.0.1:{free_port()}") as relay:
        [warmed] = relay.upstream.warmed()
        await warmed.warm()
        relay.provider.proxy = "http://127.0.0.1:1"
        assert relay.upstream.warmed() == []


async def test_a_connection_whose_last_chunk_is_a_little_late_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the body often comes in a packet of its own."""
    monkeypatch.setattr(ending, "DRAIN_TIMEOUT_S", TIMEOUT_S)
    script: Script = [STREAM + chunk(ROLE, text("a"), FINISH, DONE), 0.05, END]
    async with ScriptedUpstream(script) as server, Relay(server.url) as relay:
        await relay()
        await eventually(lambda: not ending._DRAINING)
        await relay()
        assert [request.connection for request in server.requests] == [1, 1]


async def test_a_connection_is_not_used_again_after_an_interruption() -> None:
    """What is left of a broken answer must not be read as the next one."""
    broken: Script = [STREAM + chunk(ROLE, text("a"), event({"error": {"message": "broke"}})), 0.3, chunk(text("late"))]
    async with ScriptedUpstream(broken, complete("fresh")) as server, Relay(server.url) as relay:
        with pytest.raises(UpstreamError):
            await relay()
        relay.events.clear()
        await relay()
        assert relay.text == "fresh"
        assert server.connection_count == 2
        await asyncio.wait_for(server.requests[0].gone.wait(), GONE_S)


async def test_a_provider_that_talks_on_behind_its_end_is_hung_up_on() -> None:
    """A connection whose body does not end is given up, and no second call waits for it."""
    endless: list[Any] = [STREAM + chunk(ROLE, text("a"), FINISH, DONE), *[chunk(PING), 0.05] * 200]
    async with ScriptedUpstream(endless) as server, Relay(server.url) as relay:
        await relay()
        await asyncio.wait_for(server.requests[0].gone.wait(), GONE_S)


async def test_more_than_a_hundred_calls_run_at_once() -> None:
    """The pool has no limit of its own."""
    go_on = asyncio.Event()
    async with ScriptedUpstream([go_on, *complete("Hello")]) as server, Relay(server.url) as relay:
        calls = asyncio.gather(*(relay() for _ in range(150)))
        await server.request(149)
        go_on.set()
        await calls
        assert server.connection_count == 150


async def test_a_call_over_the_concurrency_limit_is_refused_at_once() -> None:
    """``max_concurrency`` calls are with the provider; the next one may go elsewhere, and later here again."""
    go_on = asyncio.Event()
    async with ScriptedUpstream([go_on, *complete("Hello")]) as server:
        async with Relay(server.url, Limits(max_concurrency=1)) as relay:
            first = asyncio.ensure_future(relay())
            await server.request()
            with pytest.raises(UpstreamBusy) as caught:
                await relay()
            go_on.set()
            await first
            await relay()
        assert len(server.requests) == 2
    assert caught.value.code == "concurrency_limit"


async def test_a_call_without_a_target_is_a_call_for_an_unknown_model() -> None:
    """Nobody in the chain knew where to."""
    async with Relay("http://127.0.0.1:9/v1") as relay:
        with pytest.raises(UnknownModel):
            await relay(structs.replace(make_call(), target=None))


# --- back-pressure


class SlowFlow:
    """A client that has stopped reading, until it is told to go on."""

    def __init__(self) -> None:
        self.is_paused = False
        self._goes_on = asyncio.Event()

    def stop(self) -> None:
        """Take no more."""
        self.is_paused = True
        self._goes_on.clear()

    def go_on(self) -> None:
        """Take more."""
        self.is_paused = False
        self._goes_on.set()

    async def wait(self) -> None:
        """Return when more is taken."""
        if self.is_paused:
            await self._goes_on.wait()


async def test_a_paused_client_stops_the_reading_from_the_provider_and_loses_nothing() -> None:
    """Read-ahead is bounded: of eight megabytes most stay with the provider meanwhile."""
    many = [f"{number:07d}" + "x" * 993 for number in range(8000)]
    script: Script = [STREAM + chunk(ROLE), chunk(text(*many)), *_end()]
    flow = SlowFlow()
    async with ScriptedUpstream(script, has_small_buffers=True) as server, Relay(server.url) as relay:
        relay.on_send = lambda _: None if flow._goes_on.is_set() else flow.stop()
        attempt = asyncio.ensure_future(relay(make_call(flow=flow)))
        received = await server.request()
        await eventually(lambda: flow.is_paused)
        assert await received.rest() < 3_000_000, "most of it is in the kernel's buffers, whose size the kernel chooses"
        flow.go_on()
        await attempt
    assert relay.text == "".join(many)


async def test_a_provider_is_not_blamed_for_a_client_that_reads_slowly(clock: Clock) -> None:
    """While the client is waited for, no stall counts."""
    flow = SlowFlow()
    script: Script = [STREAM + chunk(ROLE, text("a")), 0.05, chunk(text("b")), *_end()]
    async with ScriptedUpstream(script) as server, Relay(server.url, Limits(stall_timeout_s=10)) as relay:
        flow.stop()
        attempt = asyncio.ensure_future(relay(make_call(flow=flow)))
        await relay.until("a")
        for _ in range(3):
            await clock.pass_by(8)
        flow.go_on()
        await attempt
    assert relay.text == "ab"


async def test_a_stall_behind_a_slow_client_is_still_a_stall() -> None:
    """The limit begins anew when the client has caught up."""
    flow = SlowFlow()
    async with (
        ScriptedUpstream([STREAM + chunk(ROLE, text("a")), "stall"]) as server,
        Relay(server.url, Limits(stall_timeout_s=0.3)) as relay,
    ):
        flow.stop()
        attempt = asyncio.ensure_future(relay(make_call(flow=flow)))
        await asyncio.sleep(0.5)
        flow.go_on()
        with pytest.raises(StreamInterrupted) as caught:
            await attempt
    assert caught.value.code == "stall_timeout"


# --- letting go


async def test_a_client_that_is_gone_ends_the_attempt() -> None:
    """``send`` raises, and the provider's connection is aborted."""

    def gone(_: Sequence[Event]) -> None:
        raise ClientGone("the client has left")

    script: Script = [STREAM + chunk(ROLE, text("a")), "stall"]
    async with ScriptedUpstream(script) as server, Relay(server.url, on_send=gone) as relay:
        with pytest.raises(ClientGone):
            await relay()
        await asyncio.wait_for(server.requests[0].gone.wait(), GONE_S)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("transport", ["plain", "tls"])
@pytest.mark.parametrize("moment", ["before the headers", "before the first token", "mid-stream"])
def test_a_cancelled_attempt_is_gone_from_the_provider_at_once(
    loop: str, transport: str, moment: str, tmp_path: Path
) -> None:
    """Whatever the loop, with TLS or without: nothing goes on generating and billing."""
    before: dict[str, Script] = {
        "before the headers": [],
        "before the first token": [STREAM + chunk(ROLE)],
        "mid-stream": [STREAM + chunk(ROLE, text("a"))],
    }
    tls = Certificate.make(tmp_path) if transport == "tls" else None

    async def cancel() -> None:
        async with ScriptedUpstream([*before[moment], "stall"], tls=tls) as server, Relay(server.url) as relay:
            if tls is not None:
                _trust(relay, tls)
            attempt = asyncio.ensure_future(relay())
            received = await server.request()
            if moment == "mid-stream":
                await relay.until("a")
            else:
                await asyncio.sleep(0.1)
                assert relay.text == ""
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            await asyncio.wait_for(received.gone.wait(), GONE_S)

    _run(cancel, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_provider_that_does_not_say_goodbye_is_not_waited_for(loop: str, tmp_path: Path) -> None:
    """One that is busy generating, and reads nothing: a polite end of TLS would keep the connection until it does."""
    tls = Certificate.make(tmp_path)
    has_asked, state = threading.Event(), []

    def generate(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with tls.server_context().wrap_socket(connection, server_side=True) as served:
            served.recv(65536)
            has_asked.set()
            for _ in range(200):
                state.append(served.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0])
                if state[-1] != TCP_ESTABLISHED:
                    return
                time.sleep(0.02)

    async def cancel() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            generating = asyncio.ensure_future(asyncio.to_thread(generate, listening))
            async with Relay(f"https://127.0.0.1:{listening.getsockname()[1]}/v1") as relay:
                _trust(relay, tls)
                attempt = asyncio.ensure_future(relay())
                await asyncio.to_thread(has_asked.wait, 30)
                attempt.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await attempt
                await generating

    _run(cancel, loop)
    assert state[-1] != TCP_ESTABLISHED, "it could go on for four seconds, and bill for it"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_over_tls_is_relayed_and_its_connection_used_again(loop: str, tmp_path: Path) -> None:
    """The one difference is the socket."""
    tls = Certificate.make(tmp_path)

    async def relay_twice() -> None:
        async with ScriptedUpstream(complete(*words(50)), tls=tls) as server, Relay(server.url) as relay:
            _trust(relay, tls)
            await relay()
            await relay()
            assert relay.text == "".join(words(50)) * 2
            assert server.connection_count == 1

    _run(relay_twice, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_timeout_is_gone_from_the_provider_at_once(loop: str) -> None:
    """An attempt that was given up leaves nothing running."""

    async def time_out() -> None:
        script: Script = [STREAM + chunk(ROLE, text("a")), "stall"]
        async with ScriptedUpstream(script) as server, Relay(server.url, Limits(stall_timeout_s=0.3)) as relay:
            with pytest.raises(StreamInterrupted):
                await relay()
            await asyncio.wait_for(server.requests[0].gone.wait(), GONE_S)

    _run(time_out, loop)


# --- the ledger


USAGE = openai_chunk({}, usage={"prompt_tokens": 11, "completion_tokens": 7})


async def end(*script: Any, call: Call | None = None, **options: Any) -> tuple[Settlement, Relay]:
    """Play the script to one attempt, however it ends, and return how it was settled: once, and after all else."""
    async with playing(*script, **options) as relay:
        with suppress(GatewayError):
            await relay(call)
    (settled,) = relay.settled
    assert relay.notes.index("settled") == len(relay.notes) - 1
    return settled, relay


async def test_a_complete_attempt_is_settled_with_what_its_provider_reported() -> None:
    """When it began, when it ended, and what it was part of."""
    began_at_s = asyncio.get_running_loop().time()
    script = [0.05, STREAM + chunk(ROLE), 0.05, chunk(text("a")), SENT, 0.05, chunk(FINISH, USAGE, DONE) + END]
    settled, _ = await end(*script, call=make_call(attempt=3))
    ended_at_s = asyncio.get_running_loop().time()
    assert settled.first_token_at_s is not None
    assert began_at_s <= settled.started_at_s <= settled.first_token_at_s - 0.09
    assert settled.first_token_at_s <= settled.ended_at_s - 0.04
    assert settled.ended_at_s <= ended_at_s
    assert settled == Settlement(
        request_id="req_1",
        attempt=3,
        target=Target("up", "mill"),
        model="chat",
        result="completed",
        started_at_s=settled.started_at_s,
        ended_at_s=settled.ended_at_s,
        first_token_at_s=settled.first_token_at_s,
        connect_s=settled.connect_s,
        usage=Usage(11, 7),
        is_delivered=True,
    )


ENDS: dict[str, tuple[list[Any], str, str, int | None, int | None, bool]] = {
    "refused": ([answer(400, {"error": {"message": "No.", "code": "odd"}})], "odd", "bad_request", 400, None, False),
    "busy": ([answer(429, {})], "upstream_busy", "rate_limited", 429, None, False),
    "overloaded": ([answer(529, {})], "upstream_busy", "overloaded", 529, None, False),
    "no credentials": ([answer(401, {})], "upstream_auth", "auth", 401, None, False),
    "broke": ([answer(500, {})], "upstream_failed", "server_error", 500, None, False),
    "redirect": ([answer(302, b"")], "upstream_redirect", "server_error", 302, None, False),
    "error first": (
        [STREAM + chunk(event({"error": {"message": "x", "code": 503}})) + END],
        "upstream_busy", "overloaded", 503, None, False,
    ),
    "error later": (
        [STREAM + chunk(ROLE, text("abcd" * 5), event({"error": {"message": "x", "code": 500}})) + END],
        "upstream_failed", "server_error", 500, 5, True,
    ),
    "dead before an answer": (["fin"], "upstream_unreachable", "reset", None, None, False),
    "cut before a token": ([STREAM + chunk(ROLE), 0.02, "fin"], "stream_truncated", "reset", None, None, False),
    "cut": ([STREAM + chunk(ROLE, text("abcd" * 3)), SENT, "rst"], "stream_truncated", "reset", None, 3, True),
    "cut behind usage": (
        [STREAM + chunk(ROLE, text("a"), USAGE), SENT, "fin"], "stream_truncated", "reset", None, 7, True,
    ),
    "malformed": ([STREAM + chunk(ROLE, text("a"), b"data: {\n\n")], "malformed_stream", "protocol", None, 1, True),
    "no token": ([STREAM + chunk(ROLE), "stall"], "ttft_timeout", "read_timeout", None, None, False),
    "stalled": ([STREAM + chunk(ROLE, text("a")), "stall"], "stall_timeout", "read_timeout", None, 1, True),
    "too long": (
        [STREAM + chunk(ROLE), *[step for word in words(99) for step in (chunk(text(word)), 0.02)]],
        "total_timeout", "read_timeout", None, None, True,
    ),
}  # fmt: skip
"""Script; then code, error type and status of the settlement, its output tokens, and whether any was delivered."""

ENDING_LIMITS = {
    "no token": Limits(ttft_timeout_s=0.3),
    "stalled": Limits(stall_timeout_s=0.3),
    "too long": Limits(total_timeout_s=20),
}


@pytest.mark.parametrize("kind", ENDS)
async def test_an_attempt_that_failed_is_settled_once_with_why_and_what_it_used(kind: str, clock: Clock) -> None:
    """Reported usage, else an estimate that says so, else none; the error is its own, however far it came."""
    script, code, error_type, http_status, output_tokens, is_delivered = ENDS[kind]
    sent = list[Event]()

    def hurry(events: Sequence[Event]) -> None:
        sent.extend(events)
        if kind == "too long" and len(sent) > 5:
            clock.advance(60)

    settled, relay = await end(*script, limits=ENDING_LIMITS.get(kind, PATIENT), on_send=hurry)
    assert (settled.result, settled.reason) == ("failed", "")
    assert (settled.code, settled.error_type, settled.http_status) == (code, error_type, http_status)
    assert settled.is_delivered is bool(relay.batches) is is_delivered
    assert (settled.first_token_at_s is not None) is is_delivered
    if kind == "too long":  # how far it comes depends on the machine
        assert settled.usage is not None
        assert settled.usage.output_tokens > 3
    elif output_tokens is None:
        assert settled.usage is None
    else:
        assert settled.usage is not None
        assert settled.usage.output_tokens == output_tokens
        assert settled.usage.is_estimated is (kind != "cut behind usage")


async def test_an_attempt_that_never_got_a_connection_is_settled_too() -> None:
    """It was begun: whoever opens a breaker wants to know."""
    async with Relay(f"http://127.0.0.1:{free_port()}/v1") as relay:
        with pytest.raises(UpstreamUnreachable):
            await relay()
    (settled,) = relay.settled
    assert (settled.result, settled.code, settled.error_type) == ("failed", "upstream_unreachable", "connect")
    assert settled.usage is None


async def test_a_whole_answer_is_settled_with_what_its_document_says() -> None:
    """Its first token is the whole of it."""
    message = {"role": "assistant", "content": "Hello there"}
    document = {"id": "c", "choices": [{"message": message, "finish_reason": "stop"}]}
    used = {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    for call in (make_call(stream=False), make_call()):
        settled, _ = await end(0.02, answer(200, {**document, **used}), call=call)
        assert (settled.result, settled.usage) == ("completed", Usage(5, 2))
        assert settled.first_token_at_s is not None
    settled, _ = await end(answer(200, document), call=make_call(stream=False))
    assert settled.usage == Usage(2, 3, is_estimated=True)


@pytest.mark.parametrize(
    ("error", "result", "reason", "code"),
    [
        (ClientGone("the client has left"), "cancelled", "client_gone", None),
        (AnswerComplete(), "cancelled", "enough", None),
        (StreamInterrupted("no seam", code="seam_not_found"), "failed", "", "seam_not_found"),
        (ZeroDivisionError("a fault of ours"), "failed", "", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_attempt_that_its_reader_ends_is_settled_as_what_that_was(
    error: Exception, result: str, reason: str, code: str | None
) -> None:
    """A client that is gone, or has all it wanted, says nothing bad of the provider; the provider is let go."""

    def stop(_: Sequence[Event]) -> None:
        raise error

    script: Script = [STREAM + chunk(ROLE, text("a")), "stall"]
    async with ScriptedUpstream(script) as server, Relay(server.url, on_send=stop) as relay:
        with pytest.raises(type(error)) as caught:
            await relay()
        await asyncio.wait_for(server.requests[0].gone.wait(), GONE_S)
    assert caught.value is error
    (settled,) = relay.settled
    assert (settled.result, settled.reason, settled.code) == (result, reason, code)
    assert settled.usage == Usage(2, 1, is_estimated=True)
    assert settled.is_delivered


@pytest.mark.parametrize(
    ("words", "reason"), [((), "client_gone"), ((DRAINED,), "drained"), ((HEDGE_LOST,), "hedge_lost")]
)
@pytest.mark.parametrize("before", [[], [STREAM + chunk(ROLE)], [STREAM + chunk(ROLE, text("a"))]])
async def test_a_cancelled_attempt_is_settled_with_the_word_it_was_cancelled_with(
    words: tuple[str, ...], reason: str, before: list[Any]
) -> None:
    """Before the headers, before the first token, in the middle: and with what it had used by then."""
    async with ScriptedUpstream([*before, "stall"]) as server, Relay(server.url) as relay:
        attempt = asyncio.ensure_future(relay())
        await server.request()
        await asyncio.sleep(0.05)
        attempt.cancel(*words)
        with pytest.raises(asyncio.CancelledError):
            await attempt
    (settled,) = relay.settled
    assert (settled.result, settled.reason, settled.code, settled.error_type) == ("cancelled", reason, None, None)
    assert settled.is_delivered is bool(relay.batches)
    assert (settled.usage is not None) is (relay.text == "a")


async def test_an_attempt_cancelled_while_it_connects_is_settled() -> None:
    """It was begun, and nothing was used."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        async with Relay(f"http://127.0.0.1:{listening.getsockname()[1]}/v1") as relay:
            attempt = asyncio.ensure_future(relay())
            await asyncio.sleep(0.05)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
    assert [(one.result, one.reason, one.usage) for one in relay.settled] == [("cancelled", "client_gone", None)]


async def test_the_ledger_is_told_of_the_first_token_as_soon_as_it_is_sent() -> None:
    """Once, and before anything else: the client does not wait for what is only noted."""
    _, relay = await end(STREAM + chunk(ROLE), 0.02, chunk(text("a")), SENT, chunk(text("b")), *_end())
    assert relay.notes[:3] == ["sent", "first token of up/mill, attempt 1", "sent"]
    assert relay.notes[-1] == "settled"
    assert sum(note.startswith("first") for note in relay.notes) == 1


async def test_a_first_token_that_could_not_be_passed_on_is_noted_all_the_same() -> None:
    """The provider has given it, by then."""

    def leave(_: Sequence[Event]) -> None:
        raise ClientGone("the client has left")

    async with ScriptedUpstream(complete("a")) as server, Relay(server.url, on_send=leave) as relay:
        with pytest.raises(ClientGone):
            await relay(make_counted())
        found = relay.counted
    assert relay.notes == ["sent", "first token of up/mill, attempt 1", "settled"]
    assert relay.settled[0].first_token_at_s is not None
    assert found.total("millrace_upstream_ttft_seconds_count", **PAIR) == 1
    assert found.total("millrace_chunk_transit_seconds_count") == 0


async def test_an_attempt_without_a_token_tells_the_ledger_of_none() -> None:
    """Headers, roles and pings are none."""
    _, relay = await end(STREAM + chunk(ROLE, PING), 0.02, "fin")
    assert relay.notes == ["settled"]


@pytest.mark.parametrize("way", ["restart", "exact", "anchored"])
async def test_an_attempt_is_settled_with_the_way_in_which_it_went_on(way: Way) -> None:
    """What is continued costs its prompt again, which an estimate knows of."""
    script = [STREAM + chunk(ROLE, text("b"))]
    async with ScriptedUpstream([*script, "fin"]) as server, Relay(server.url, host="vllm") as relay:
        with pytest.raises(StreamInterrupted):
            await relay(make_call(continuation=Continuation(way=way, text="x" * 400 if way == "exact" else "")))
    (settled,) = relay.settled
    assert settled.way == way
    assert settled.usage == Usage(102 if way == "exact" else 2, 1, is_estimated=True)


async def test_what_was_never_asked_of_a_provider_is_not_settled() -> None:
    """No room, no way to go on, no words for it in its wire, no time, no target: there was no attempt."""
    now_s = asyncio.get_running_loop().time()
    custom = Message(role="assistant", tool_calls=(ToolCall("c", "f", "x", is_custom=True),))
    calls: dict[str, tuple[Call, type[GatewayError]]] = {
        "continuation": (make_call(continuation=Continuation(way="exact", text="a")), UpstreamRefused),
        "wire": (structs.replace(make_call(), messages=(custom,)), InvalidRequest),
        "deadline": (make_call(received_at_s=now_s - 6), UpstreamTimeout),
        "target": (structs.replace(make_call(), target=None), UnknownModel),
    }
    async with ScriptedUpstream() as server:
        async with Relay(server.url, Limits(total_timeout_s=5, max_concurrency=1), make=Anthropic) as relay:
            for call, kind in calls.values():
                with pytest.raises(kind):
                    await relay(call)
            assert relay.provider.in_flight_count == 0
            relay.provider.in_flight_count = 1
            with pytest.raises(UpstreamBusy):
                await relay()
        assert server.connection_count == 0
    assert (relay.settled, relay.notes) == ([], [])


# --- ways to go on


EXACT = Continuation(way="exact", text="Hello, ")
ANCHORED = Continuation(way="anchored", text="Hello, ")
RESTART = Continuation(way="restart")


@pytest.mark.parametrize(
    ("host", "word", "ways"),
    [
        (None, "auto", ["anchored"]),
        ("vllm", "auto", ["exact", "anchored"]),
        (None, "exact", ["exact"]),
        ("vllm", "exact", ["exact"]),
        (None, "anchored", ["anchored"]),
        ("vllm", "anchored", ["anchored"]),
        (None, "off", []),
        ("vllm", "off", []),
    ],
)
async def test_a_target_is_asked_only_in_ways_that_it_knows_and_its_operator_allows(
    host: str | None, word: Literal["auto", "exact", "anchored", "off"], ways: list[str]
) -> None:
    """The others it declines by itself, at once; to begin again may be asked of every one."""
    async with ScriptedUpstream() as server, Relay(server.url, host=host, continuation=word) as relay:
        for continuation in (EXACT, ANCHORED):
            if continuation.way in ways:
                await relay(make_call(continuation=continuation))
                continue
            with pytest.raises(UpstreamRefused) as caught:
                await relay(make_call(continuation=continuation))
            error = caught.value
            assert (error.code, error.refused) == ("continuation_unsupported", "continuation")
            assert not error.retryable
            assert (str(error.target), error.attempt, error.was_sent) == ("up/mill", 1, False)
        for plain in (RESTART, None):
            await relay(make_call(continuation=plain))
        assert len(server.requests) == len(ways) + 2
    assert [settled.way for settled in relay.settled] == [*ways, "restart", None]


NO_PREFILL = {"error": {"message": "This model does not support assistant message prefill."}}


@pytest.mark.parametrize("status", [400, 422])
async def test_a_model_that_refused_to_go_on_exactly_is_not_asked_to_again(status: int) -> None:
    """The first time costs a request, the second none. Other models, and other requests, are asked as before."""
    scripts: list[Script] = [[answer(status, NO_PREFILL)], complete("Hello")]
    async with ScriptedUpstream(*scripts) as server, Relay(server.url, host="vllm") as relay:
        for request_count in (1, 1):
            with pytest.raises(UpstreamRefused) as caught:
                await relay(make_call(continuation=EXACT))
            assert caught.value.refused == "continuation"
            assert len(server.requests) == request_count
        assert caught.value.code == "continuation_unsupported"
        for continuation in (ANCHORED, RESTART, None):
            await relay(make_call(continuation=continuation))
        await relay(make_call(model="other", continuation=EXACT))
        assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "message", "refused"),
    [(400, "the prompt is too long", "continuation"), (404, "no such model", "request"), (500, "prefill", "request")],
)
async def test_nothing_is_learned_from_an_error_that_is_about_something_else(
    status: int, message: str, refused: str
) -> None:
    """What a longer request is refused for may still be had in another way: that much every 400 says."""
    async with ScriptedUpstream([answer(status, {"error": {"message": message}})], complete("Hello")) as server:
        async with Relay(server.url, host="vllm") as relay:
            with pytest.raises(UpstreamError) as caught:
                await relay(make_call(continuation=EXACT))
            await relay(make_call(continuation=EXACT))
        assert len(server.requests) == 2
    assert caught.value.refused == refused


async def test_a_token_of_the_targets_own_still_goes_through_when_open_turns_do_not() -> None:
    """It is another way of going on; one that was refused, because it has expired, says nothing of open turns."""
    own = Checkpoint(target="up/gemini-2.5-flash", token="t", character_count=7)
    foreign = replace(own, target="other/gemini-4-argon")
    refusal = [answer(400, {"error": {"message": "continuationToken is not valid", "code": 400}})]
    open_turn = [answer(400, {"error": {"message": "Requests ending with a model turn are not supported"}})]
    scripts: list[Script] = [refusal, open_turn, _gemini("b"), _gemini("b")]
    async with ScriptedUpstream(*scripts) as server, Relay(server.url, make=Google) as relay:
        for checkpoint in (own, None, foreign):
            with pytest.raises(UpstreamRefused):
                await relay(make_call(model="gemini-2.5-flash", continuation=replace(EXACT, checkpoint=checkpoint)))
        assert len(server.requests) == 2, "a token of another target's is nothing to this one"
        await relay(make_call(model="gemini-2.5-flash", continuation=replace(EXACT, checkpoint=own)))
        assert server.requests[2].json["continuationToken"] == "t"


def _gemini(*words: str) -> Script:
    """Return the script of a stream of Gemini's that goes well."""
    said = [event({"candidates": [{"content": {"parts": [{"text": word}], "role": "model"}}]}) for word in words]
    return [STREAM + chunk(*said, event({"candidates": [{"finishReason": "STOP"}]})) + END]


# --- fresh connections, and the time that is left


async def test_a_fresh_connection_is_nobody_elses_before_or_after() -> None:
    """The ones that are kept stay, for those who do not ask for it."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        for is_fresh in (False, True, True, False):
            await relay(make_call(is_fresh=is_fresh))
        assert [request.connection for request in server.requests] == [1, 2, 3, 1]


async def test_a_kept_connection_that_has_died_is_told_as_a_reset() -> None:
    """By that word whoever tries again knows to ask for a fresh one."""
    async with ScriptedUpstream(complete("a"), ["fin"], complete("b")) as server, Relay(server.url) as relay:
        await relay()
        with pytest.raises(UpstreamUnreachable) as caught:
            await relay()
        assert (caught.value.error_type, caught.value.was_sent, caught.value.retryable) == ("reset", False, True)
        await relay(make_call(is_fresh=True))
        assert [request.connection for request in server.requests] == [1, 1, 2]
    assert relay.text == "ab"


async def test_without_another_session_the_one_there_is_must_do() -> None:
    """Who makes an ``Upstream`` with one has it used for all."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        assert relay.session is not None
        upstream = Upstream({"up": relay.provider}, relay.session)
        for is_fresh in (False, True):
            await upstream(make_call(is_fresh=is_fresh), relay.send)
        assert server.connection_count == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_an_attempt_has_what_the_client_has_left_of_the_total(clock: Clock, *, stream: bool) -> None:
    """It began to wait before; and when its time is up, no other attempt is of any use."""
    limits = Limits(ttft_timeout_s=900, total_timeout_s=600)
    async with ScriptedUpstream(["stall"]) as server, Relay(server.url, limits) as relay:
        received_at_s = asyncio.get_running_loop().time() - 400
        attempt = asyncio.ensure_future(relay(make_call(stream=stream, attempt=2, received_at_s=received_at_s)))
        await server.request()
        await clock.pass_by(150)
        assert not attempt.done()
        await clock.pass_by(60)
        with pytest.raises(UpstreamTimeout) as caught:
            await asyncio.wait_for(attempt, TIMEOUT_S)
    assert (caught.value.code, caught.value.retryable) == ("total_timeout", False)
    assert caught.value.message == "the answer was not complete after 600 s"


async def test_an_attempt_for_which_no_time_is_left_is_not_made() -> None:
    """Its provider is not asked, not even over a connection that waits: it might bill."""
    limits = Limits(total_timeout_s=60)
    async with ScriptedUpstream() as server, Relay(server.url, limits) as relay:
        await relay()
        with pytest.raises(UpstreamTimeout) as caught:
            await relay(make_call(received_at_s=asyncio.get_running_loop().time() - limits.total_timeout_s))
        await asyncio.sleep(0.05)
        assert len(server.requests) == len(relay.settled) == 1
    assert (caught.value.code, caught.value.retryable, caught.value.was_sent) == ("total_timeout", False, False)


# --- what is no progress, in every wire


@dataclass(frozen=True)
class Wire:
    """What a provider says that is no token: at the start, and from time to time. And what it says that is one."""

    make: Callable[[ProviderOptions], Provider]
    model: str
    start: bytes
    idle: bytes
    say: Callable[[str], bytes]
    host: str | None = None


def _anthropic(kind: str, **fields: Any) -> bytes:
    return b"event: %b\n" % kind.encode() + event({"type": kind, **fields})


def _anthropic_text(words: str) -> bytes:
    return _anthropic("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


def _google_text(words: str) -> bytes:
    return event({"candidates": [{"content": {"parts": [{"text": words}], "role": "model"}}], "responseId": "r"})


WIRES = {
    "openai": Wire(
        OpenAICompatible,
        "mill",
        ROLE,
        PING + ROLE + openai_chunk({"content": ""}) + openai_chunk({}),
        text,
        host="vllm",
    ),
    "anthropic": Wire(
        Anthropic,
        "claude-haiku-4-5",
        _anthropic("message_start", message={"id": "m", "model": "c", "usage": {"input_tokens": 3, "output_tokens": 1}})
        + _anthropic("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _anthropic("ping") + _anthropic_text(""),
        _anthropic_text,
    ),
    "google": Wire(Google, "gemini-2.5-flash", _google_text(""), b"\n\n" + _google_text(""), _google_text),
}


@pytest.mark.parametrize("continuation", [None, EXACT, ANCHORED], ids=["begun", "exact", "anchored"])
@pytest.mark.parametrize("has_text", [False, True], ids=["ttft", "stall"])
@pytest.mark.parametrize("name", WIRES)
async def test_a_provider_that_only_pings_is_as_late_as_one_that_is_silent(
    name: str, continuation: Continuation | None, *, has_text: bool
) -> None:
    """Each wire's own pings, roles and empty deltas; also where an attempt goes on with an answer.

    The first token and the next each have their own limit, error and message.
    """
    wire = WIRES[name]
    limits = Limits(stall_timeout_s=0.2) if has_text else Limits(ttft_timeout_s=0.2)
    idle: list[Any] = [step for _ in range(3000) for step in (chunk(wire.idle), 0.02)]
    begun = [chunk(wire.say("word"))] if has_text else []
    call = make_call(model=wire.model, continuation=continuation)
    async with (
        ScriptedUpstream([STREAM + chunk(wire.start), *begun, *idle]) as server,
        Relay(server.url, limits, make=wire.make, host=wire.host) as relay,
    ):
        began_at_s = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamError) as caught:
            await asyncio.wait_for(relay(call), TIMEOUT_S)
        assert asyncio.get_running_loop().time() - began_at_s > 0.15
        for received in server.requests:  # where the machine stood still there is none
            await asyncio.wait_for(received.gone.wait(), GONE_S)
    if has_text:
        assert isinstance(caught.value, StreamInterrupted)
        assert caught.value.code == "stall_timeout"
        assert caught.value.message == "the provider sent no further token for 0.2 s"
    else:
        assert isinstance(caught.value, UpstreamTimeout)
        assert caught.value.code == "ttft_timeout"
        assert caught.value.message == "the provider sent no token within 0.2 s"
    assert caught.value.retryable
    assert relay.text == ("word" if has_text else "")
    assert relay.settled[0].code == caught.value.code


@pytest.mark.parametrize("name", WIRES)
async def test_a_provider_that_pings_between_its_tokens_is_not_late(name: str, clock: Clock) -> None:
    """As long as the tokens come: what is no progress is no harm either."""
    wire = WIRES[name]
    limits = Limits(ttft_timeout_s=20, stall_timeout_s=20)
    gates = [asyncio.Event() for _ in range(5)]
    steps: list[Any] = [
        step
        for gate, word in zip(gates, words(5), strict=True)
        for step in (chunk(wire.idle), gate, chunk(wire.idle), chunk(wire.say(word)))
    ]
    cut = asyncio.Event()
    async with (
        ScriptedUpstream([STREAM + chunk(wire.start), *steps, cut, "fin"]) as server,
        Relay(server.url, limits, make=wire.make, host=wire.host) as relay,
    ):
        attempt = asyncio.ensure_future(relay(make_call(model=wire.model)))
        await server.request()
        for count, gate in enumerate(gates, 1):
            await clock.pass_by(12)
            gate.set()
            await relay.until("".join(words(count)))
        cut.set()
        with pytest.raises(StreamInterrupted) as caught:
            await attempt
    assert caught.value.code == "stream_truncated"


def _run(work: Callable[[], Awaitable[None]], loop: str) -> None:
    async def run() -> None:
        await work()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


def _trust(relay: Relay, tls: Certificate) -> None:
    """Give the session, otherwise as it is, the test's own authority."""
    assert relay.session is not None
    assert isinstance(relay.session.connector, aiohttp.TCPConnector)
    relay.session.connector._ssl = tls.client_context()


def _bare(*pieces: bytes) -> bytes:
    return b"".join(pieces)


# --- what is counted

CHAT = Route(name="chat", targets=(Target("up", "mill"),))
PAIR = {"model": "chat", "upstream": "up/mill"}


def make_counted(**fields: Any) -> Call:
    """Return a call that was received 20 ms ago, for a target of the configuration."""
    return make_call(**{"route": CHAT, "received_at_s": time.monotonic() - 0.02, **fields})


async def test_how_fast_a_provider_is_and_what_the_gateway_adds_is_counted() -> None:
    """A gap for each delivery behind the first, a transit for each at all; of the attempt one first token."""
    script = [STREAM + chunk(ROLE), 0.1, chunk(text("a")), SENT, 0.05, chunk(text("b", "c")), 0.05, *_end()]
    async with playing(*script) as relay:
        await relay(make_counted())
        found = relay.counted
    assert found.total("millrace_chunk_gap_seconds_count", **PAIR) == 1
    assert 0.03 < found.total("millrace_chunk_gap_seconds_sum", **PAIR) < 10
    assert found.total("millrace_chunk_transit_seconds_count") == 3
    assert 0 < found.mean("millrace_chunk_transit_seconds") < 5
    assert found.total("millrace_upstream_ttft_seconds_count", **PAIR) == 1
    assert 0.08 < found.mean("millrace_upstream_ttft_seconds", **PAIR) < 20
    assert 0.02 <= found.mean("millrace_overhead_seconds", stage="request") < 10
    assert 0 < found.mean("millrace_overhead_seconds", stage="first_token") < 5
    assert found.total("millrace_overhead_seconds_count") == 2


async def test_a_new_connection_is_timed_and_one_that_was_kept_is_not() -> None:
    """Once for each connection; an attempt is settled with what it took."""
    async with ScriptedUpstream(complete("a"), complete("b")) as server, Relay(server.url) as relay:
        await relay(make_counted())
        await relay(make_counted())
        found = relay.counted
    assert found.total("millrace_upstream_connect_seconds_count", upstream="up/mill") == 1
    first, second = relay.settled
    assert first.connect_s is not None
    assert 0 < first.connect_s < 5
    assert found.total("millrace_upstream_connect_seconds_sum") == pytest.approx(first.connect_s)
    assert second.connect_s is None


async def test_what_the_chain_takes_is_in_the_transit() -> None:
    """Whatever stands between the two sockets delays a token by so much."""

    def dawdle(_: Sequence[Event]) -> None:
        time.sleep(0.02)

    async with ScriptedUpstream(complete("a")) as server, Relay(server.url, on_send=dawdle) as relay:
        await relay(make_counted())
        assert 0.02 < relay.counted.mean("millrace_chunk_transit_seconds") < 10


@pytest.mark.parametrize("loop", LOOPS)
def test_transit_is_measured_in_microseconds_on_any_loop(loop: str) -> None:
    """The clock of uvloop stands still within a turn."""

    async def run() -> None:
        script: Script = [STREAM + chunk(ROLE), *[step for word in words(20) for step in (0.005, chunk(text(word)))]]
        async with ScriptedUpstream([*script, *_end()]) as server, Relay(server.url) as relay:
            await relay(make_counted())
            found = relay.counted
        assert found.total("millrace_chunk_transit_seconds_bucket", le="0.0005") > 0
        assert 0.000001 < found.mean("millrace_chunk_transit_seconds") < 1
        assert found.mean("millrace_overhead_seconds", stage="request") > 0.02

    _run(run, loop)


async def test_only_the_first_attempt_says_what_came_before_it() -> None:
    """Before the others there was another attempt; and a call of unknown age says nothing."""
    async with ScriptedUpstream() as server, Relay(server.url) as relay:
        await relay(make_counted(attempt=2))
        await relay(make_counted(received_at_s=0.0))
        assert relay.counted.total("millrace_overhead_seconds_count", stage="request") == 0


async def test_an_attempt_that_goes_on_brings_no_first_token_to_its_client() -> None:
    """To the provider it is one."""
    async with ScriptedUpstream() as server, Relay(server.url, host="vllm") as relay:
        await relay(make_counted(attempt=2, continuation=EXACT))
        assert relay.counted.total("millrace_overhead_seconds_count", stage="first_token") == 0
        assert relay.counted.total("millrace_upstream_ttft_seconds_count", **PAIR) == 1


async def test_an_answer_that_comes_whole_has_no_first_token_to_be_timed() -> None:
    """It is as late as its last: routing knows it, and no histogram of first tokens."""
    body = {"id": "c", "model": "m", "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    async with ScriptedUpstream([answer(200, body)]) as server, Relay(server.url) as relay:
        await relay(make_counted(stream=False))
        assert relay.text == "a"
        names = {sample.name for sample in relay.counted.samples if sample.value}
    assert not {name for name in names if name.startswith(("millrace_upstream_ttft", "millrace_chunk"))}


async def test_an_answer_without_a_token_has_no_first_one() -> None:
    """Its end passed through all the same."""
    async with ScriptedUpstream(complete()) as server, Relay(server.url) as relay:
        await relay(make_counted())
        found = relay.counted
    assert found.total("millrace_upstream_ttft_seconds_count") == 0
    assert found.total("millrace_chunk_transit_seconds_count") == 1
    assert found.total("millrace_overhead_seconds_count", stage="first_token") == 0


async def test_attempts_in_flight_are_those_that_are_under_way() -> None:
    """However they end; one that finds no room never was."""
    limits = Limits(max_concurrency=1)
    break_off = asyncio.Event()
    script: Script = [STREAM + chunk(ROLE, text("a")), break_off, "rst"]
    async with ScriptedUpstream(script) as server, Relay(server.url, limits) as relay:
        attempt = asyncio.ensure_future(relay(make_counted()))
        await server.request()
        assert relay.counted.by("upstream", "millrace_upstream_inflight") == {"up/mill": 1}
        with pytest.raises(UpstreamBusy):
            await relay(make_counted())
        assert relay.counted.by("upstream", "millrace_upstream_inflight") == {"up/mill": 1}
        await relay.has_sent.wait()
        break_off.set()
        with pytest.raises(StreamInterrupted):
            await attempt
        assert relay.counted.by("upstream", "millrace_upstream_inflight") == {}


@pytest.mark.parametrize(
    ("headers", "ratios"),
    [
        ({"x_ratelimit_remaining_requests": "25", "x_ratelimit_limit_requests": "100"}, {"requests": 0.25}),
        ({"x_ratelimit_remaining_tokens": "1e3", "x_ratelimit_limit_tokens": "4000"}, {"tokens": 0.25}),
        (
            {
                "anthropic_ratelimit_requests_remaining": "1",
                "anthropic_ratelimit_requests_limit": "4",
                "anthropic_ratelimit_tokens_remaining": "9",
                "anthropic_ratelimit_tokens_limit": "10",
            },
            {"requests": 0.25, "tokens": 0.9},
        ),
        ({"x_ratelimit_remaining_requests": "200", "x_ratelimit_limit_requests": "100"}, {"requests": 1.0}),
        ({"x_ratelimit_remaining_requests": "25"}, {}),
        ({"x_ratelimit_limit_requests": "100"}, {}),
        ({"x_ratelimit_remaining_requests": "25", "x_ratelimit_limit_requests": "0"}, {}),
        ({"x_ratelimit_remaining_requests": "many", "x_ratelimit_limit_requests": "100"}, {}),
        ({"x_ratelimit_remaining_requests": "nan", "x_ratelimit_limit_requests": "inf"}, {}),
    ],
)
@pytest.mark.parametrize("status", [200, 429])
async def test_what_is_left_of_a_providers_limits_is_shown(
    status: int, headers: dict[str, str], ratios: dict[str, float]
) -> None:
    """As it says in its answers, also in one that refuses; what makes no sense is not shown."""
    body = {"id": "c", "model": "m", "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    async with ScriptedUpstream([answer(status, body, **headers)]) as server, Relay(server.url) as relay:
        with suppress(UpstreamError):
            await relay(make_counted(stream=False))
        found = relay.counted.by("resource", "millrace_upstream_ratelimit_remaining_ratio", upstream="up/mill")
    assert found == ratios


async def test_a_limit_that_is_used_up_is_shown_as_nothing() -> None:
    """Zero is a value, and the one that matters."""
    headers = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_limit_requests": "100"}
    async with ScriptedUpstream([answer(429, {}, **headers)]) as server, Relay(server.url) as relay:
        with pytest.raises(UpstreamBusy):
            await relay(make_counted())
        (sample,) = relay.counted.of_name("millrace_upstream_ratelimit_remaining_ratio")
    assert (sample.value, sample.labels) == (0.0, {"upstream": "up/mill", "resource": "requests"})
