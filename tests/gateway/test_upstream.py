import asyncio
import socket
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import uvloop

from gateway.core.call import OPENAI_CHAT, Call, Flow, Message, Source, Target, TextPart
from gateway.core.errors import (
    ClientGone,
    StreamInterrupted,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import ChoiceFinished, Event, StreamStarted, TextDelta, UsageReported
from gateway.providers.base import ProviderOptions
from gateway.providers.compatible import OpenAICompatible
from gateway.upstream import ConfiguredProvider, Upstream, make_session
from gateway.watch import Limits
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
SHORT = Limits(connect_timeout_s=0.3, ttft_timeout_s=0.3, stall_timeout_s=0.3, total_timeout_s=5)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Relay:
    """An ``Upstream`` over one provider, and what it has sent so far."""

    url: str
    limits: Limits = PATIENT
    events: list[Event] = field(default_factory=list)
    batches: list[list[Event]] = field(default_factory=list)
    session: aiohttp.ClientSession | None = None
    on_send: Callable[[Sequence[Event]], None] | None = None

    async def __aenter__(self) -> Self:
        self.session = self.session or make_session()
        options = ProviderOptions(name="up", base_url=self.url, api_key=KEY)
        self.provider = ConfiguredProvider(OpenAICompatible(options), self.limits)
        self.upstream = Upstream({"up": self.provider}, self.session)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.session is not None
        await self.session.close()

    def send(self, events: Sequence[Event]) -> None:
        """Keep what comes."""
        self.events += events
        self.batches.append(list(events))
        if self.on_send is not None:
            self.on_send(events)

    async def __call__(self, call: Call | None = None) -> None:
        """Make one attempt."""
        await self.upstream(call or make_call(), self.send)

    @property
    def text(self) -> str:
        """The text sent so far."""
        return "".join(one.text for one in self.events if isinstance(one, TextDelta))


def make_call(*, stream: bool = True, flow: Flow | None = None, content: str = "Hello") -> Call:
    """Return a call for the one target there is."""
    body: Mapping[str, Any] = {"model": "up/mill", "stream": stream, "messages": [{"role": "user", "content": content}]}
    call = Call(
        request_id="req_1",
        model="up/mill",
        target=Target("up", "mill"),
        stream=stream,
        messages=(Message(role="user", parts=(TextPart(content),), source=body["messages"][0]),),
        source=Source(OPENAI_CHAT, body),
    )
    return replace(call, flow=flow) if flow else call


async def fail(*script: Any, limits: Limits = SHORT, stream: bool = True) -> tuple[UpstreamError, Relay]:
    """Play the script to one attempt and return the error that it ends with."""
    async with ScriptedUpstream(list(script)) as server, Relay(server.url, limits) as relay:
        with pytest.raises(UpstreamError) as caught:
            await relay(make_call(stream=stream))
    return caught.value, relay


async def succeed(*script: Any, limits: Limits = SHORT, stream: bool = True) -> Relay:
    """Play the script to one attempt that ends well."""
    async with ScriptedUpstream(list(script)) as server, Relay(server.url, limits) as relay:
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
    async with Relay(f"http://127.0.0.1:{free_port()}/v1", SHORT) as relay:
        with pytest.raises(UpstreamUnreachable) as caught:
            await relay()
    assert caught.value.error_type == "connect"
    assert caught.value.retryable


async def test_an_unknown_host_name_is_unreachable() -> None:
    """Its error says that it is the name."""
    async with Relay("http://no-such-host.invalid/v1", Limits(connect_timeout_s=5)) as relay:
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
            limits = replace(SHORT, ttft_timeout_s=5)
            async with asyncio.timeout(5), Relay(f"http://127.0.0.1:{port}/v1", limits) as relay:
                with pytest.raises(UpstreamTimeout) as caught:
                    await relay()
        finally:
            for filler in fillers:
                filler.close()
    assert caught.value.code == "connect_timeout"
    assert caught.value.retryable


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
    error, _ = await fail("stall")
    assert isinstance(error, UpstreamTimeout)
    assert error.code == "ttft_timeout"
    assert error.status_code == 504
    assert error.retryable


async def test_pings_and_roles_are_no_first_token() -> None:
    """A provider that only pings is as late as one that is silent."""
    pings: list[Any] = [step for _ in range(60) for step in (chunk(PING, openai_chunk({"role": "assistant"})), 0.02)]
    error, relay = await fail(STREAM + chunk(ROLE), *pings)
    assert isinstance(error, UpstreamTimeout)
    assert error.code == "ttft_timeout"
    assert relay.batches == []


async def test_a_stream_that_stops_runs_into_the_stall_timeout() -> None:
    """What was sent stays sent; the attempt is an interruption."""
    error, relay = await fail(STREAM + chunk(ROLE, text("a")), "stall")
    assert isinstance(error, StreamInterrupted)
    assert error.code == "stall_timeout"
    assert relay.text == "a"


async def test_pings_and_empty_deltas_do_not_hide_a_stall() -> None:
    """Only tokens are progress."""
    pings: list[Any] = [step for _ in range(60) for step in (chunk(PING, openai_chunk({"content": ""})), 0.02)]
    error, relay = await fail(STREAM + chunk(ROLE, text("a")), *pings)
    assert error.code == "stall_timeout"
    assert relay.text == "a"


async def test_a_slow_stream_that_goes_on_is_not_stalled() -> None:
    """Every token starts the limit anew."""
    limits = replace(SHORT, ttft_timeout_s=1, stall_timeout_s=0.4)
    steps: list[Any] = [step for word in words(6) for step in (0.15, chunk(text(word)))]
    relay = await succeed(STREAM + chunk(ROLE), *steps, *_end(), limits=limits)
    assert relay.text == "".join(words(6))


async def test_an_answer_that_never_ends_runs_into_the_total_timeout() -> None:
    """However lively it is."""
    steps: list[Any] = [step for word in words(100) for step in (chunk(text(word)), 0.02)]
    error, relay = await fail(STREAM + chunk(ROLE), *steps, limits=replace(SHORT, total_timeout_s=0.5))
    assert isinstance(error, StreamInterrupted)
    assert error.code == "total_timeout"
    assert relay.text.startswith("w0 w1 ")


async def test_a_whole_answer_is_watched_by_its_total_only() -> None:
    """It has no tokens: what is slow to a stream is not slow to it."""
    message = {"role": "assistant", "content": "late"}
    document = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    relay = await succeed(0.6, answer(200, document), stream=False)
    assert relay.text == "late"
    error, _ = await fail("stall", stream=False, limits=replace(SHORT, total_timeout_s=0.3))
    assert error.code == "total_timeout"


async def test_a_provider_that_stalls_behind_a_whole_answer_has_still_answered() -> None:
    """The finish was there; waiting in vain for what may follow it makes no error of it."""
    relay = await succeed(STREAM + chunk(ROLE, text("a"), FINISH), "stall")
    assert relay.text == "a"
    assert sum(isinstance(one, UsageReported) for one in relay.events) == 1


# --- how a body ends


@pytest.mark.parametrize("head", [STREAM, CLOSE_DELIMITED], ids=["chunked", "close-delimited"])
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("rest", [b"", openai_chunk({"content": "half"})[:40]], ids=["between", "mid-event"])
async def test_a_cut_stream_is_an_interruption_however_its_socket_closed(head: bytes, how: str, rest: bytes) -> None:
    """Without the provider's own end there is no end, and half an event is not passed on."""
    framed = chunk if head is STREAM else _bare
    error, relay = await fail(head + framed(ROLE, text("a", "b"), rest), 0.05, how)
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
    relay = await succeed(STREAM + chunk(ROLE, text("a"), end), 0.05, how)
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


async def test_a_connection_whose_last_chunk_is_a_little_late_is_used_again() -> None:
    """The end of the body often comes in a packet of its own."""
    script: Script = [STREAM + chunk(ROLE, text("a"), FINISH, DONE), 0.05, END]
    async with ScriptedUpstream(script) as server, Relay(server.url) as relay:
        await relay()
        await asyncio.sleep(0.2)
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
        await asyncio.wait_for(server.requests[0].gone.wait(), 1)


async def test_a_provider_that_talks_on_behind_its_end_is_hung_up_on() -> None:
    """A connection whose body does not end is given up, and no second call waits for it."""
    endless: list[Any] = [STREAM + chunk(ROLE, text("a"), FINISH, DONE), *[chunk(PING), 0.05] * 200]
    async with ScriptedUpstream(endless) as server, Relay(server.url) as relay:
        await relay()
        await asyncio.wait_for(server.requests[0].gone.wait(), 3)


async def test_more_than_a_hundred_calls_run_at_once() -> None:
    """The pool has no limit of its own."""
    script: Script = [0.3, *complete("Hello")]
    async with ScriptedUpstream(script) as server, Relay(server.url) as relay:
        await asyncio.gather(*(relay() for _ in range(150)))
        assert server.connection_count == 150


async def test_a_call_over_the_concurrency_limit_is_refused_at_once() -> None:
    """``max_concurrency`` calls are with the provider; the next one may go elsewhere, and later here again."""
    async with ScriptedUpstream([0.2, *complete("Hello")]) as server:
        async with Relay(server.url, Limits(max_concurrency=1)) as relay:
            first = asyncio.ensure_future(relay())
            await server.request()
            with pytest.raises(UpstreamBusy) as caught:
                await relay()
            await first
            await relay()
        assert len(server.requests) == 2
    assert caught.value.code == "concurrency_limit"


async def test_a_call_without_a_target_is_a_call_for_an_unknown_model() -> None:
    """Nobody in the chain knew where to."""
    async with Relay("http://127.0.0.1:9/v1") as relay:
        with pytest.raises(UnknownModel):
            await relay(replace(make_call(), target=None))


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
        await asyncio.sleep(0.5)
        assert flow.is_paused
        paused_at = received.bytes_sent
        await asyncio.sleep(0.3)
        assert received.bytes_sent == paused_at, "nothing flows while the client is paused"
        assert paused_at < 3_000_000, "most of it is in the kernel's buffers, whose size the kernel chooses"
        flow.go_on()
        await attempt
    assert relay.text == "".join(many)


async def test_a_provider_is_not_blamed_for_a_client_that_reads_slowly() -> None:
    """While the client is waited for, no stall counts."""
    flow = SlowFlow()
    script: Script = [STREAM + chunk(ROLE, text("a")), 0.05, chunk(text("b")), *_end()]
    async with ScriptedUpstream(script) as server, Relay(server.url, SHORT) as relay:
        flow.stop()
        attempt = asyncio.ensure_future(relay(make_call(flow=flow)))
        await asyncio.sleep(1.0)
        flow.go_on()
        await attempt
    assert relay.text == "ab"


async def test_a_stall_behind_a_slow_client_is_still_a_stall() -> None:
    """The limit begins anew when the client has caught up."""
    flow = SlowFlow()
    async with (
        ScriptedUpstream([STREAM + chunk(ROLE, text("a")), "stall"]) as server,
        Relay(server.url, SHORT) as relay,
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
        await asyncio.wait_for(server.requests[0].gone.wait(), 1)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("transport", ["plain", "tls"])
@pytest.mark.parametrize("moment", ["before the headers", "before the first token", "mid-stream"])
def test_a_cancelled_attempt_is_gone_from_the_provider_within_a_second(
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
            await asyncio.sleep(0.1)
            assert (relay.text == "a") is (moment == "mid-stream")
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            await asyncio.wait_for(received.gone.wait(), 1)

    _run(cancel, loop)


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
def test_a_timeout_is_gone_from_the_provider_within_a_second(loop: str) -> None:
    """An attempt that was given up leaves nothing running."""

    async def time_out() -> None:
        script: Script = [STREAM + chunk(ROLE, text("a")), "stall"]
        async with ScriptedUpstream(script) as server, Relay(server.url, SHORT) as relay:
            with pytest.raises(StreamInterrupted):
                await relay()
            await asyncio.wait_for(server.requests[0].gone.wait(), 1)

    _run(time_out, loop)


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
