"""The one client: opens a provider's answer, feeds what is read to its decoder, sends the events on.

One attempt is one call of ``Upstream``. It returns when the provider's own end marker was seen, and raises otherwise:
whatever aiohttp, a socket or a clock has to say is translated (``gateway.ending``) and travels no further. Whatever
ended it, it is settled once in the call's ledger.

Nothing is sent before the first event that a user could see. A role, a ping or an empty delta is held back until then,
so that an attempt which dies before its first token leaves no trace, whoever tries again.

aiohttp's defaults that would hurt a stream are switched off: 100 connections in all, 300 seconds in all, redirects,
proxies from the environment, cookies, 256 KiB of read-ahead per stream (567 KiB were seen behind one slow reader).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Final

import aiohttp
from msgspec import Struct, structs

from gateway.configured_provider import ConfiguredProvider
from gateway.core.call import Call, Route, Target
from gateway.core.errors import (
    GatewayError,
    UpstreamError,
    UpstreamFailed,
    unknown_model,
    without_frames,
)
from gateway.core.events import (
    TOKEN_EVENTS,
    ChoiceFinished,
    Event,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    Usage,
    UsageReported,
)
from gateway.core.kept import Kept
from gateway.core.ledger import Settlement
from gateway.core.meters import NO_METERS, Gauge, Meters, upstream_label
from gateway.ending import late, let_go, result_of, translated
from gateway.exchange import Answer, Connector, ask, connection_times, relay, warm
from gateway.pipeline import Send
from gateway.providers.base import Decoder, with_usage
from gateway.providers.errors import malformed
from gateway.warmth import Warmed
from gateway.watch import Watch

READ_AHEAD_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
HEADERS: Final = {"user-agent": "millrace", "accept-encoding": "identity"}
"""What every provider is told; a compressed stream would come in lumps."""

SHOWN_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "openai-processing-ms", "openai-version")
"""Headers of a provider's answer that its client may see; all others stay here."""

_RATE_LIMITS = (
    ("requests", "x-ratelimit-remaining-requests", "x-ratelimit-limit-requests"),
    ("tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-limit-tokens"),
    ("requests", "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-limit"),
    ("tokens", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-limit"),
)
"""What is limited, and the headers that say how much of it is left, and of how much."""

MAX_GAUGED_TARGETS = 1024

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_TOKENS: Final = frozenset(TOKEN_EVENTS)


class _Warmed:
    """A provider to which a connection is to be ready in a session."""

    def __init__(self, upstream: ConfiguredProvider, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session

    @property
    def asked_at_s(self) -> float:
        """When it was asked last."""
        return self._upstream.asked_at_s

    async def warm(self) -> None:
        """Make a connection, unless one is kept."""
        await warm(self._session, self._upstream.provider.base_url, self._upstream.limits.connect_timeout_s)


def make_session(*, keeps_connections: bool = True) -> aiohttp.ClientSession:
    """Return a session made for long streams; to be called inside the loop that will use it.

    A connection is kept for less than a minute, which is what the impatient among providers' fronts keep one for. One
    that its provider closes is dropped at once, and one that dies under a request is replaced by a fresh one.
    """
    keeping = {"keepalive_timeout": 55.0} if keeps_connections else {"force_close": True}
    return aiohttp.ClientSession(
        connector=Connector(headers=HEADERS, read_ahead_bytes=READ_AHEAD_BYTES, limit=0, ttl_dns_cache=10, **keeping),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=READ_AHEAD_BYTES,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        trace_configs=[connection_times()],
    )


class _Gauged:
    """What is counted of the attempts at one target for one model, and of all."""

    __slots__ = ("connect", "first_token", "gap", "in_flight", "left", "request", "transit", "ttft")

    def __init__(self, meters: Meters, model: str, upstream: str) -> None:
        """Bind what is counted, once for all attempts."""
        self.in_flight = meters.gauge("millrace_upstream_inflight", upstream)
        self.connect = meters.histogram("millrace_upstream_connect_seconds", upstream)
        self.ttft = meters.histogram("millrace_upstream_ttft_seconds", upstream, model)
        self.gap = meters.histogram("millrace_chunk_gap_seconds", model, upstream)
        self.transit = meters.histogram("millrace_chunk_transit_seconds")
        self.request = meters.histogram("millrace_overhead_seconds", "request")
        self.first_token = meters.histogram("millrace_overhead_seconds", "first_token")
        self.left: Mapping[str, Gauge] = Kept(
            partial(meters.gauge, "millrace_upstream_ratelimit_remaining_ratio", upstream)
        )

    def settle(self) -> None:
        """Count what was gathered of the tokens of a stream that has ended."""
        self.gap.settle()
        self.transit.settle()

    def note_limits(self, headers: Mapping[str, str]) -> None:
        """Show what the provider says is left of its limits."""
        for resource, remaining, limit in _RATE_LIMITS:
            if remaining in headers:
                ratio = _ratio(headers[remaining], headers.get(limit, ""))
                if ratio is not None:
                    self.left[resource].set(ratio)


class Upstream:
    """The endpoint of the chain: one attempt at the call's target.

    ``fresh`` is a session that keeps no connections, for who was failed by one that had been kept. ``meters`` are told
    how fast providers are, and what the gateway adds to that.
    """

    def __init__(
        self,
        providers: Mapping[str, ConfiguredProvider],
        session: aiohttp.ClientSession,
        fresh: aiohttp.ClientSession | None = None,
        *,
        meters: Meters = NO_METERS,
    ) -> None:
        self._providers = providers
        self._session = session
        self._fresh = fresh or session
        self._meters = meters
        self._gauged: dict[tuple[str, str], _Gauged] = {}
        self._configured: dict[
            tuple[str, Target], _Gauged
        ] = {}  # the same, for the targets that have a label of their own

    async def __call__(self, call: Call, send: Send) -> None:
        """Relay the target's answer to ``send``; raises ``UpstreamError`` for every end that is not its own."""
        target = call.target
        if target is None:  # a chain in which nobody chooses has its route's first
            if not call.route.targets:
                raise unknown_model(call.model)
            target = call.route.targets[0]
            call = structs.replace(call, target=target)
        upstream = self._providers[target.provider]
        gauged = self._configured.get((call.route.name, target)) or self._gauge(call.route, target)
        asked_at_s = call.received_at_s or None
        watch = Watch(
            upstream.limits, is_stream=call.stream, flow=call.flow, asked_at_s=asked_at_s, alarm=upstream.alarm
        )
        attempt = _Attempt(call, target, send, upstream, gauged, watch)
        failure: BaseException | None = None
        try:
            upstream.take(call)
            gauged.in_flight.inc()
            try:
                await attempt.run(self._fresh if call.is_fresh else self._session)
            finally:
                upstream.in_flight_count -= 1
                gauged.in_flight.inc(-1)
        except UpstreamError as error:
            failure = error
            error.target, error.attempt, error.was_sent = target, call.attempt, attempt.has_sent
            upstream.learn(call, error)
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            attempt.settle(failure)
            del failure  # its traceback has this frame, which would keep it, and it the call

    def warmed(self) -> list[Warmed]:
        """Return the providers to which a connection may be ready before it is wanted: not those behind a proxy."""
        return [_Warmed(item, self._session) for item in self._providers.values() if item.proxy is None]

    def _gauge(self, route: Route, target: Target) -> _Gauged:
        upstream = upstream_label(route, target)
        found = self._gauged.get((route.name, upstream))
        if found is None:
            found = self._gauged[route.name, upstream] = _Gauged(self._meters, route.name, upstream)
        if upstream == str(target) and len(self._configured) < MAX_GAUGED_TARGETS:
            self._configured[route.name, target] = found
        return found


class _Attempt(Struct, eq=False):
    """One request to one provider, from the connection to the last event."""

    _call: Call
    _target: Target
    _send: Send
    _upstream: ConfiguredProvider
    _gauged: _Gauged
    _watch: Watch
    has_sent: bool = False
    _is_whole: bool = False
    _started_at_s: float | None = None
    _connect_s: float | None = None
    _first_token_at_s: float | None = None
    _usage: Usage | None = None
    _decoder: Decoder | None = None
    _held: list[Event] = []
    _headers: Mapping[str, str] = _NO_HEADERS

    def __repr__(self) -> str:
        """Return what may be seen of an attempt: nothing that was said."""
        return f"_Attempt({self._call!r})"

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Make the request and relay its answer; a connection that is left before the last byte is cut."""
        call, upstream = self._call, self._upstream
        answer: Answer | None = None
        try:
            with self._watch:
                try:
                    request = upstream.provider.request(call)
                    self._note_begin()
                    answer = await ask(
                        session,
                        request.url,
                        request.headers,
                        request.body,
                        connect_timeout_s=upstream.limits.connect_timeout_s,
                        note_connect=self._note_connect,
                        proxy=upstream.proxy,
                    )
                    headers = answer.headers
                    shown = _shown(headers)
                    if shown:  # what is left of limits is
                        self._gauged.note_limits(shown)
                    if answer.status >= 300:
                        raise self._refusal(answer, await answer.read(MAX_ERROR_BYTES))
                    self._headers = shown
                    if call.stream and not _is_json(headers):
                        await self._relay(answer)
                    else:  # an answer that is not a stream, whether one was asked for or not
                        self._take_whole(await answer.read(MAX_ANSWER_BYTES + 1))
                except (aiohttp.ClientError, OSError) as error:
                    told = translated(error)
                    if told is None:
                        raise
                    try:
                        raise told from without_frames(error)  # the answer has it, too, and they have the answer
                    finally:
                        del told  # and it this frame
                finally:
                    if answer is not None:
                        let_go(answer, is_whole=self._is_whole)
        except TimeoutError as error:
            self._end_late(error)

    def _note_begin(self) -> None:
        """The request is about to be written; until that of the first attempt all time was the gateway's own."""
        now_s = self._started_at_s = time.monotonic()
        call = self._call
        if call.attempt == 1 and call.received_at_s:
            self._gauged.request.observe(now_s - call.received_at_s)

    def _note_connect(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._gauged.connect.observe(connect_s)

    def _refusal(self, answer: Answer, body: bytes) -> UpstreamError:
        status = answer.status
        if status < 400:
            message = f"the provider answered with a redirect ({status})"
            return UpstreamFailed(message, code="upstream_redirect", retryable=False, upstream_status=status)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return self._upstream.provider.error(status, headers, body)

    async def _relay(self, answer: Answer) -> None:
        """Relay a stream. How the transport ended does not matter, only whether the answer was whole by then."""
        decoder = self._decoder = self._upstream.provider.decoder(self._call)
        try:
            await relay(answer.content, self._taking(decoder), self._call.flow, note_pause=self._watch.note_pause)
        except (aiohttp.ClientError, OSError) as error:
            without_frames(error)  # the answer keeps it, and its frames keep the answer
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
        limit = self._watch.expired or "total"
        raise late(limit, self._upstream.limits, has_begun=self.has_sent) from error

    def _taking(self, decoder: Decoder) -> Callable[[bytes, float], bool]:
        """Return a function that passes on what one read brought, and says whether the answer is complete.

        It is called for every token: what it needs is looked up once, and it is one function, not one within another.
        """
        feed, send, watch, monotonic = decoder.feed, self._send, self._watch, time.monotonic
        gather_gap, gather_transit = self._gauged.gap.gather, self._gauged.transit.gather
        has_sent = self.has_sent

        def take(data: bytes, arrived_at_s: float) -> bool:
            nonlocal has_sent
            events = feed(data)
            if events:
                if has_sent and (type(events[0]) is TextDelta or type(events[0]) is ReasoningDelta):  # nearly always
                    before_s, watch.progress_at_s = watch.progress_at_s, arrived_at_s
                    if before_s is not None:
                        gather_gap(arrived_at_s - before_s)
                    send(events)
                    gather_transit(monotonic() - arrived_at_s)
                    return decoder.is_complete
                self._pass_on(events, arrived_at_s)
                has_sent = self.has_sent
            if decoder.is_replaying:  # what the client has already is a sign of life, if nothing new
                watch.note_progress(arrived_at_s)
            return decoder.is_complete

        return take

    def _pass_on(self, events: list[Event], arrived_at_s: float) -> None:
        """Send ``events``, or hold them back while there is nothing to see.

        What is noted of them is noted behind, whatever became of them: the provider has said it. Before, that was a
        tenth of what the first token took.
        """
        gauged, is_first = self._gauged, not self.has_sent
        has_tokens = not _TOKENS.isdisjoint(map(type, events))
        is_progress = has_tokens or ChoiceFinished in map(type, events)
        if is_first and not is_progress:
            self._held += events
            return
        try:
            if is_first:
                self._flush(events)
            else:
                self._send(events)
            transit_s = time.monotonic() - arrived_at_s
            gauged.transit.observe(transit_s)
            if is_first and has_tokens and self._call.continuation is None:
                gauged.first_token.observe(transit_s)
        finally:
            if is_progress:
                gap_s = self._watch.note_progress(arrived_at_s)
                if has_tokens:
                    gauged.gap.observe(gap_s)
            if is_first and has_tokens:
                gauged.ttft.observe(arrived_at_s - (self._started_at_s or arrived_at_s))

    def _flush(self, events: Sequence[Event]) -> None:
        """Send what was held back and ``events``; the start gets the headers that a client may see."""
        if self._held:
            events = [*self._held, *events]
            self._held.clear()
        if self._headers:
            events = [
                structs.replace(event, headers=self._headers) if type(event) is StreamStarted else event
                for event in events
            ]
        if self.has_sent:
            self._send(events)
            return
        self.has_sent = True
        now_s = self._first_token_at_s = time.monotonic()
        try:
            self._send(events)
        finally:
            call = self._call
            call.ledger.note_first_token(self._target, call.attempt, now_s - (self._started_at_s or now_s))

    def _take_whole(self, body: bytes) -> None:
        """Pass on an answer that is not a stream."""
        if len(body) > MAX_ANSWER_BYTES:
            raise malformed(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        events = with_usage(self._call, self._upstream.provider.answer(self._call, body))
        for event in reversed(events):
            if type(event) is UsageReported:
                self._usage = event.usage
                break
        self._flush(events)

    def settle(self, failure: BaseException | None) -> None:
        """Account for the attempt, now that it has ended; one whose request was never sent is none."""
        if self._started_at_s is None:
            return
        call, decoder, continuation = self._call, self._decoder, self._call.continuation
        if decoder is not None:
            self._gauged.settle()
        result, reason = result_of(failure)
        settlement = Settlement(  # of more than 15 names Python would make a dictionary, in five times as long
            request_id=call.request_id,
            attempt=call.attempt,
            target=self._target,
            model=call.route.name,
            result=result,
            started_at_s=self._started_at_s,
            ended_at_s=time.monotonic(),
            first_token_at_s=self._first_token_at_s,
            connect_s=self._connect_s,
            way=None if continuation is None else continuation.way,
            usage=self._usage if decoder is None else decoder.usage,
            is_delivered=self.has_sent,
            reason=reason,
        )
        if result == "failed" and isinstance(failure, GatewayError):
            settlement = structs.replace(
                settlement,
                error_type=failure.error_type,
                code=failure.code,
                http_status=failure.upstream_status if isinstance(failure, UpstreamError) else None,
            )
        call.ledger.settle(settlement)


def _ratio(remaining: str, limit: str) -> float | None:
    """Return how much of a limit is left; ``None`` if what the provider says makes no sense."""
    try:
        left, whole = float(remaining), float(limit)
    except ValueError:
        return None
    if not (0.0 < whole < inf and -inf < left < inf):
        return None
    ratio = left / whole
    return 1.0 if ratio > 1.0 else max(0.0, ratio)


def _shown(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {shown: value for name, value in headers.items() if (shown := _SHOWN_NAMES[name])}


def _shown_name(name: str) -> str:
    """Return what a header is called when it is shown; nothing for one that is not."""
    lower = name.lower()
    return lower if lower.startswith(SHOWN_PREFIXES) else ""


_SHOWN_NAMES = Kept(_shown_name, most=1024)
"""Real answers have 20 to 25 headers, with the same names each time."""


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
