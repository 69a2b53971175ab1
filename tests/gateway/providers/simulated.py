"""Providers of the tables with the simulator behind them: requests in, answers out, without a socket between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from gateway.core.call import Call
from gateway.core.errors import UpstreamError
from gateway.core.events import Event
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions, UpstreamRequest
from gateway.providers.compatible import HOSTS
from gateway.simulator.ask import Incoming
from gateway.simulator.performance import perform
from gateway.simulator.plan import Send
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import WIRES, base_path, find_route, split_target

NAMES = frozenset({*PROVIDERS, *HOSTS} & {*WIRES, "openai-compatible"})
"""The kinds and hosts whose wires the simulator speaks."""


@dataclass(frozen=True)
class Played:
    """What the simulator made of a request; ``way`` is how it went on with an answer, if it did."""

    status: int
    body: bytes
    way: str = ""
    headers: Mapping[str, str] | None = None


def make_provider(name: str, **options: Any) -> Provider:
    """Return a provider by its kind, or by the name of its host, where the simulator is."""
    kind = name if name in PROVIDERS else "openai-compatible"
    host = name if name in HOSTS else None
    url = f"http://simulator{base_path(name)}"
    return PROVIDERS[kind](ProviderOptions(name=name, base_url=url, api_key="fake", host=host, **options))


def play(request: UpstreamRequest, script: Script, serial: str = "1") -> Played:
    """Return what the simulator answers; another ``serial`` gives the answer another id."""
    address = urlsplit(request.url)
    path, query = split_target(f"{address.path}?{address.query}" if address.query else address.path)
    body = msgspec.json.decode(request.body)
    route = find_route("POST", path, str(body.get("model") or ""))
    assert route is not None, path
    model = route.model or body["model"]
    incoming = Incoming(path, model, body, request.headers, dict(parse_qsl(query)), route.is_stream_path)
    played = perform(route.wire, incoming, script, Reply(serial, 1_700_000_000 + len(serial), model))
    if isinstance(played, HttpAnswer):
        return Played(played.status, played.body, headers=played.headers)
    return Played(200, b"".join(step.payload for step in played.steps if isinstance(step, Send)), played.way)


def read(provider: Provider, call: Call, played: Played, *, size: int = 100_000) -> list[Event]:
    """Return the events of an answer, however it was asked for; a stream is fed in pieces of ``size`` bytes."""
    if played.status != 200:
        raise provider.error(played.status, played.headers or {}, played.body)
    if not call.stream:
        return provider.answer(call, played.body)
    decoder = provider.decoder(call)
    pieces = [played.body[at : at + size] for at in range(0, len(played.body), size)]
    return [*(event for piece in pieces for event in decoder.feed(piece)), *decoder.finish()]


def ask(provider: Provider, call: Call, script: Script, *, serial: str = "1", size: int = 100_000) -> list[Event]:
    """Return the events of the answer to ``call``; raises ``UpstreamError`` as the provider does."""
    return read(provider, call, play(provider.request(call), script, serial), size=size)


def refusal(provider: Provider, call: Call, script: Script) -> UpstreamError:
    """Return the error that the simulator answers ``call`` with."""
    played = play(provider.request(call), script)
    assert played.status >= 400, played
    return provider.error(played.status, played.headers or {}, played.body)
