"""The chain without sockets: thousands of broken answers in the time that a server takes for a hundred.

Everything a byte of an answer passes through is the real thing: the simulator's wires write it, the providers' requests
ask for it and their decoders read it, fallback and resume join the attempts, and the dialect writes what the client
gets. Only the transport is left out: an answer comes in pieces of a given size, and it ends where it is cut.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import structs

from gateway.configured_provider import ConfiguredProvider
from gateway.core.call import Call, Route, Target
from gateway.core.errors import UpstreamError
from gateway.core.events import TOKEN_EVENTS, ChoiceFinished, Event, TextDelta
from gateway.dialects import DIALECTS
from gateway.pipeline import Send, compose
from gateway.providers.base import Provider, UpstreamRequest
from gateway.simulator.script import Script
from gateway.watch import Limits
from middleware.fallback import Fallback
from middleware.resume import Resume
from tests.conftest import MODELS
from tests.gateway.providers.simulated import Played, make_provider, play, read

_SHOWN: Final = (*TOKEN_EVENTS, ChoiceFinished)
SPECIAL: Final = {"claude": ("anthropic", "claude-sonnet-4-6"), "argon": ("google", "gemini-4-argon")}
"""Names for models that are not as the others of their kind: one takes no partial answer, one goes on from tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What becomes of one attempt: what the provider says, and after how many bytes of the body it breaks off."""

    script: Script
    cut_after_bytes: int | None = None
    piece_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class Made:
    """An attempt that was made: the call, and the whole answer of which it got the beginning."""

    call: Call
    provider: Provider
    played: Played

    @property
    def way(self) -> str:
        """How the simulator understood that it was to go on with an answer; empty where it was not."""
        return self.played.way

    @property
    def delivered(self) -> str:
        """What the client had of the text before."""
        continuation = self.call.continuation
        return continuation.text if continuation is not None else ""

    @property
    def said(self) -> str:
        """The text of the answer, uncut and with all that it repeats; nothing where it was an error."""
        if self.played.status != 200:
            return ""
        events = read(self.provider, structs.replace(self.call, continuation=None), self.played)
        return "".join(event.text for event in events if isinstance(event, TextDelta))


@dataclass(slots=True)
class Received:
    """What the client got: the bytes of its stream, and whether they have an end."""

    body: bytes
    error: UpstreamError | None
    attempts: list["Made"]

    @property
    def is_whole(self) -> bool:
        """Whether the client was told that this is all."""
        return self.error is None

    @property
    def text(self) -> str:
        """The text as the client reads it."""
        return "".join(choice.delta.content or "" for chunk in _chunks(self.body) for choice in chunk.choices)

    @property
    def usage(self) -> tuple[int, int]:
        """The tokens of the prompt and of the answer, as the client is told."""
        (usage,) = [chunk.usage for chunk in _chunks(self.body) if chunk.usage is not None]
        return usage.prompt_tokens, usage.completion_tokens


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_read_chunk: Final = msgspec.json.Decoder(_Chunk).decode


def _chunks(body: bytes) -> Iterator[_Chunk]:
    return (_read_chunk(line[6:]) for line in body.split(b"\n") if line.startswith(b'data: {"'))


class Providers:
    """The end of the chain: the targets of one route, and what becomes of the attempts at each, in their order.

    A target is the name of a provider's kind or of a host, or one of ``SPECIAL``.
    """

    def __init__(self, plays: Mapping[str, Sequence[Attempt]], *, prompt: str = "What does a weir do?") -> None:
        self._plays = {name: list(attempts) for name, attempts in plays.items()}
        self._known = {name: _provider(name) for name in plays}
        self.targets = tuple(Target(name, _model(name)) for name in plays)
        self.made: list[Made] = []
        self.prompt = prompt

    async def __call__(self, call: Call, send: Send) -> None:
        """Make an attempt as ``gateway.upstream`` does, out of memory."""
        assert call.target is not None
        known = self._known[call.target.provider]
        relayed = _Relayed(call, send)
        try:
            known.take(call)
            known.in_flight_count -= 1
            attempt = self._next(call.target.provider)
            played = performed(known.provider.request(call), attempt.script)
            self.made.append(Made(call, known.provider, played))
            relayed.relay(known, attempt, played)
        except UpstreamError as error:
            error.target, error.attempt, error.was_sent = call.target, call.attempt, relayed.has_sent
            known.learn(call, error)
            raise
        await asyncio.sleep(0)

    def _next(self, name: str) -> Attempt:
        attempts = self._plays[name]
        return attempts.pop(0) if len(attempts) > 1 else attempts[0]

    async def receive(self, **asked: Any) -> Received:
        """Ask as a client does, and take what comes."""
        dialect = DIALECTS["openai_chat"]
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": self.prompt}], **asked}
        call = dialect.parse(json.dumps(body).encode(), Call(request_id="r", dialect="openai_chat", created_unix_s=1))
        call = structs.replace(call, route=Route(name="chat", targets=self.targets))
        encoder = dialect.encoder(call)
        written: list[bytes] = []
        chain = compose([Fallback(), Resume()], self)
        try:
            await chain(call, lambda events: written.append(encoder.encode(events)))
        except UpstreamError as error:
            return Received(b"".join(written), error, self.made)
        return Received(b"".join([*written, encoder.finish()]), None, self.made)


class _Relayed:
    """One answer on its way; what nobody could see is held back until there is something to see."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._held: list[Event] = []
        self.has_sent = False

    def relay(self, known: ConfiguredProvider, attempt: Attempt, played: Played) -> None:
        provider, call = known.provider, self._call
        if played.status != 200:
            raise provider.error(played.status, played.headers or {}, played.body)
        body = played.body if attempt.cut_after_bytes is None else played.body[: attempt.cut_after_bytes]
        decoder = provider.decoder(call)
        for at in range(0, len(body), attempt.piece_bytes):
            self._pass_on(decoder.feed(body[at : at + attempt.piece_bytes]))
            if decoder.is_complete:
                break
        self._flush(decoder.finish())

    def _pass_on(self, events: list[Event]) -> None:
        if self.has_sent:
            if events:
                self._send(events)
        elif any(isinstance(event, _SHOWN) for event in events):
            self._flush(events)
        else:
            self._held += events

    def _flush(self, events: list[Event]) -> None:
        batch = [*self._held, *events]
        self._held.clear()
        if batch:
            self.has_sent = True
            self._send(batch)


@lru_cache(maxsize=65_536)
def _performed(url: str, body: bytes, headers: tuple[tuple[str, str], ...], script: Script) -> Played:
    return play(UpstreamRequest(url, dict(headers), body), script)


def performed(request: UpstreamRequest, script: Script) -> Played:
    """Return what the simulator answers; the same request is answered the same way, so once is enough."""
    return _performed(request.url, request.body, tuple(request.headers.items()), script)


def _provider(name: str) -> ConfiguredProvider:
    kind, _ = SPECIAL.get(name, (name, ""))
    return ConfiguredProvider(make_provider(kind), Limits())


def _model(name: str) -> str:
    _, model = SPECIAL.get(name, ("", MODELS.get(name, "mill")))
    return model
