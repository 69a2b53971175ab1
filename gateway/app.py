"""The composition root: a checked configuration becomes a running gateway. The one file that knows all parts.

Middlewares are loaded by the import path that the configuration names; nothing else in ``gateway`` knows any of them.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields
from hashlib import sha256
from importlib import import_module
from ipaddress import ip_address
from typing import cast

import structlog
from aiohttp import web

from gateway import __version__
from gateway.admin import Admin
from gateway.config import Config, MiddlewareConfig, ModelConfig, ProviderConfig, build_options
from gateway.configured_provider import ConfiguredProvider
from gateway.connection import FAULTS as CONNECTION_FAULTS
from gateway.core.call import Route, Target
from gateway.core.errors import ConfigError
from gateway.core.kept import Kept
from gateway.core.meters import Counter, Meters
from gateway.core.progress import Slo
from gateway.exchange import FAULTS
from gateway.guard import LAST_REQUEST_S, ConnectionGuard, Gate, Handler, OriginRule
from gateway.ledger import LogLedger
from gateway.logs import current_writer
from gateway.page import show_page, show_part
from gateway.pipeline import Authenticator, Instrumented, Middleware, Telemetry
from gateway.process.listening import Acceptor, open_sockets
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions
from gateway.providers.openai import OpenAI
from gateway.server import Server, ServerOptions
from gateway.simulator import Simulator
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.drops import DropSampler
from gateway.telemetry.lag import LagSampler
from gateway.telemetry.live import LiveTable
from gateway.telemetry.meters import Meters as SlabMeters
from gateway.telemetry.seeds import seed
from gateway.telemetry.slab import Slab
from gateway.telemetry.spans import Peer
from gateway.telemetry.tracing import Tracer
from gateway.upstream import Upstream, make_session
from gateway.warmth import Warmth
from gateway.watch import Limits

log = structlog.get_logger()

LAST_BYTES_S = 10.0
"""How long the end of an answer may take to reach a slow client when the gateway has nothing else to do."""

SIMULATOR_MODEL = "mill"

BaseHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Gateway:
    """All that serves requests in one process. Making it checks what can be checked without a socket.

    A worker makes one with its ``slab`` and its ``slot``, and calls ``prepare``, ``serve``, ``warm``, ``leave``,
    ``drain`` and ``close``; the sockets and the admin port are its supervisor's. ``start`` and ``stop`` do the rest in
    one process, for programs that have a gateway in them, and for tests; ``warm`` they leave to who wants it.

    Raises ``ConfigError`` for a middleware or provider that cannot be made, and for an address that must not be served.
    """

    def __init__(self, config: Config, *, slab: Slab | None = None, slot: int = 0) -> None:
        self.config = config
        self.middlewares = make_middlewares(config.middleware)
        self.models = model_names(config)
        self.is_open = not any(isinstance(item, Authenticator) and item.requires_key for item in self.middlewares)
        _check_address(config, is_open=self.is_open)
        make_providers(config, simulator_url="")
        self.live = LiveTable()
        self.port = 0
        self.admin_port = 0
        self._slab = slab or Slab.create()
        self._slot = slot
        self._samples: list[Callable[[], None]] = []
        self._telemetry = make_telemetry(config, self._slab, self.live, self._samples)
        self._is_ready = False
        self._open = AsyncExitStack()
        self._server: Server | None = None
        self._guard: ConnectionGuard | None = None
        self._acceptor: Acceptor | None = None
        self._warmth = Warmth([])

    # --- as a worker

    async def prepare(self) -> None:
        """Make all that requests need, and open what providers need."""
        if FAULTS:
            log.warning("exchange.public", faults=list(FAULTS))
        if CONNECTION_FAULTS:
            log.warning("connection.public", faults=list(CONNECTION_FAULTS))
        seed(self._telemetry.meters, model_pairs(self.config), worker=str(self._slot))
        session, fresh = make_session(), make_session(keeps_connections=False)
        self._open.push_async_callback(session.close)
        self._open.push_async_callback(fresh.close)
        providers = make_providers(self.config, simulator_url=await self._start_simulator())
        tracer = make_tracer(self.config, providers)
        tracer.start()
        self._open.push_async_callback(asyncio.to_thread, tracer.shutdown)
        options = self.config.server
        guard = self._guard = ConnectionGuard(header_timeout_s=options.header_timeout_s)
        self._open.callback(guard.close)
        rule = OriginRule(is_open=self.is_open, origins=tuple(options.cors_origins))
        gate = Gate(rule, guard, counter_of_answers(self._telemetry.meters))
        upstream = Upstream(providers, session, fresh, meters=self._telemetry.meters)
        self._warmth = Warmth(upstream.warmed())
        self._open.push_async_callback(self._warmth.stop)
        server = self._server = self._make_server(upstream, tracer, gate)
        await self._speak_http(server, gate)
        self._sample(server, tracer)

    def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections; the sockets are the gateway's own from now on."""
        assert self._guard is not None  # noqa: S101, it has been prepared
        self._acceptor = Acceptor(sockets, self._guard.over(self._http))
        self._acceptor.start()

    def warm(self) -> None:
        """Have a connection to each provider ready from now on, as far as that is to be had."""
        self._warmth.start()

    def adopt(self, connection: socket.socket) -> None:
        """Serve a client that another process has served until now."""
        if self._guard is None or self._acceptor is None or self._guard.is_leaving:
            connection.close()
        else:
            self._acceptor.adopt(connection, self._guard.over(self._http, is_adopted=True))

    async def leave(self, give_away: Callable[[int], None] | None = None) -> None:
        """Accept no more connections; when this returns no request begins on those there are.

        Connections that rest are given to ``give_away``, as descriptors. Where nobody takes them they are closed, and
        so are all behind their answers; who was about to be accepted still is.
        """
        if self._guard is None or self._acceptor is None:
            return
        self.live.drain()
        await self._warmth.stop()
        await self._acceptor.stop(takes_rest=give_away is None)
        self._guard.leave(give_away)
        if give_away is None:
            await self._guard.wait_until_empty(LAST_REQUEST_S)

    async def drain(self) -> None:
        """Wait for the streams, for ``drain_timeout_s`` at most; then end them, and tell their clients.

        Cancelled while it waits, it ends them at once.
        """
        if self._server is not None and self._guard is not None:
            await self._server.drain(self.config.server.drain_timeout_s)
            await self._guard.wait_until_empty(LAST_BYTES_S)

    async def close(self) -> None:
        """Close all that is left."""
        await self._open.aclose()

    # --- in one process

    async def start(self) -> None:
        """Open the sockets and serve; ``port`` and ``admin_port`` are then those that were really opened."""
        server, source = self.config.server, self.config.source
        note_build(self._telemetry.meters, self.config)
        collector = SlabCollector([self._slab])
        collector.note_started(0, os.getpid())
        admin = Admin(collector, self._show_streams, is_ready=lambda: self._is_ready, key=server.admin_key)
        self.admin_port = await admin.start(server.admin_host, server.admin_port, source)
        self._open.push_async_callback(admin.stop)
        listening = open_sockets(server.host, server.port, source)
        self.port = int(listening[0].getsockname()[1])
        try:
            await self.prepare()
        except BaseException:
            for sock in listening:
                sock.close()
            raise
        self.serve(listening)
        self._is_ready = True

    async def stop(self) -> None:
        """Refuse new connections, let live streams run on for ``drain_timeout_s``, then end them.

        Cancelled while it waits, it waits no longer, but closes all there is.
        """
        self._is_ready = False
        try:
            await self.leave()
            await self.drain()
        finally:
            await self.close()

    # --- inside

    async def _show_streams(self) -> Mapping[str, object]:
        return self.live.shown()

    async def _start_simulator(self) -> str:
        if all(provider.kind != "simulator" for provider in self.config.providers.values()):
            return ""
        simulator = Simulator()
        port = await simulator.start("127.0.0.1", 0)
        self._open.push_async_callback(simulator.stop)
        return f"http://127.0.0.1:{port}/v1"

    def _make_server(self, upstream: Upstream, tracer: Tracer, gate: Gate) -> Server:
        options = self.config.server
        return Server(
            middlewares=instrument(self.middlewares, self._telemetry),
            endpoint=upstream,
            route=make_router(self.config),
            models=self.models,
            port=gate,
            options=ServerOptions(
                heartbeat_s=options.heartbeat_s,
                body_timeout_s=options.body_timeout_s,
                write_timeout_s=options.write_timeout_s,
            ),
            ledger=LogLedger(),
            tracer=tracer,
        )

    async def _speak_http(self, server: Server, gate: Gate) -> None:
        """Put the public port's application, and its gate, before ``server``."""
        app = web.Application(client_max_size=self.config.server.max_body_bytes, middlewares=[gate.handle])
        app.on_response_prepare.append(gate.sign)
        add_routes(app, server)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        self._open.push_async_callback(runner.cleanup)
        await runner.setup()
        self._http = cast("web.Server", runner.server)
        application = cast("Handler", self._http.request_handler)
        self._http.request_handler = cast("BaseHandler", gate.before(application, call_paths(server)))

    def _sample(self, server: Server, tracer: Tracer) -> None:
        """Look a few times a second at what is only known by looking."""
        meters, writer = self._telemetry.meters, current_writer()
        buffered = meters.gauge("millrace_stream_buffered_bytes")
        drops = DropSampler(
            meters, lines=lambda: writer.dropped_count if writer else {}, spans=lambda: tracer.dropped_count
        )
        self._samples += [meters.settle, lambda: buffered.set(server.buffered_bytes), drops]
        sampler = LagSampler(meters, worker=str(self._slot), samples=self._samples)
        sampler.start()
        self._open.callback(sampler.stop)


def add_routes(app: web.Application, server: Server) -> None:
    """Give the public port its paths; a name up to its dot is what metrics call the route."""
    for path, (name, handler) in call_paths(server).items():
        app.router.add_post(path, handler, name=name)
    app.router.add_get("/v1/models", server.list_models, name="models")
    app.router.add_get("/v1/models/{id:.+}", server.show_model, name="models.one")
    app.router.add_get("/", show_page, name="page")
    app.router.add_get("/page/{name}", show_part, name="page.part")


def call_paths(server: Server) -> dict[str, tuple[str, Handler]]:
    """Return where calls are posted to, each with the name of its route and what handles it."""
    return {
        "/v1/chat/completions": ("chat_completions", server.chat_completions),
        "/api/chat/stream": ("chat_stream", server.chat_stream),
    }


def counter_of_answers(meters: Meters) -> Callable[[str, int], None]:
    """Return what counts the status of an answer; routes and statuses are few."""
    counters: Kept[tuple[str, int], Counter] = Kept(
        lambda key: meters.counter("millrace_http_responses_total", key[0], str(key[1]))
    )

    def count(route: str, status: int) -> None:
        counters[route, status].inc()

    return count


def make_telemetry(config: Config, slab: Slab, live: LiveTable, samples: list[Callable[[], None]]) -> Telemetry:
    """Return what the parts of one worker measure with; it counts in its slab.

    What is only known by looking is added to ``samples``.
    """
    slo = config.telemetry.slo
    return Telemetry(
        meters=SlabMeters(slab),
        slo=Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, max_gap_s=slo.max_gap_s),
        live=live,
        sample=samples.append,
    )


def make_tracer(config: Config, providers: Mapping[str, ConfiguredProvider]) -> Tracer:
    """Return what traces the calls of one worker; to be started in its process."""
    telemetry = config.telemetry
    peers = {
        name: Peer.of(kind=provider.kind, host=provider.host, base_url=providers[name].provider.base_url)
        for name, provider in config.providers.items()
    }
    return Tracer(
        telemetry.otlp_endpoint,
        headers=telemetry.otlp_headers,
        sample_ratio=telemetry.trace_sample_ratio,
        propagates=telemetry.propagate_to_providers,
        peers=peers,
    )


def instrument(middlewares: Sequence[Middleware], telemetry: Telemetry) -> list[Middleware]:
    """Return the chain as it runs: whoever has something to measure does so with ``telemetry``."""
    return [item.instrumented(telemetry) if isinstance(item, Instrumented) else item for item in middlewares]


def note_build(meters: Meters, config: Config) -> None:
    """Show what runs, and with which configuration."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    meters.gauge("millrace_build_info", __version__, platform.python_version(), loop).set(1)
    meters.gauge("millrace_config_info", config_hash(config)).set(1)
    meters.gauge("millrace_config_generation").set(1)
    meters.gauge("millrace_config_last_reload_success").set(1)


def config_hash(config: Config) -> str:
    """Return what two gateways with the same configuration have in common; no secret goes into it."""
    parts = [getattr(config, item.name) for item in fields(config) if item.name not in ("middleware", "source")]
    chain = [(entry.use, entry.options) for entry in config.middleware]
    return sha256(repr((parts, chain)).encode()).hexdigest()[:12]


def make_middlewares(entries: Sequence[MiddlewareConfig]) -> list[Middleware]:
    """Import and make the middlewares, in their order; raises ``ConfigError`` with every fault."""
    made: list[Middleware] = []
    faults: list[str] = []
    for entry in entries:
        try:
            made.append(cast("Middleware", build_options(_load(entry), entry)))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return made


def _load(entry: MiddlewareConfig) -> type:
    module, _, name = entry.use.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError([entry.fault(f"expected the import path of a middleware: {error}")]) from error
    if not isinstance(found, type) or not any("__call__" in vars(base) for base in found.__mro__):
        raise ConfigError([entry.fault(f"expected a middleware class, got {entry.use}")])
    return found


def make_providers(config: Config, *, simulator_url: str) -> dict[str, ConfiguredProvider]:
    """Make the configured providers; raises ``ConfigError`` with every fault."""
    made: dict[str, ConfiguredProvider] = {}
    faults: list[str] = []
    for name, provider in config.providers.items():
        limits = Limits(
            connect_timeout_s=provider.connect_timeout_s,
            ttft_timeout_s=provider.ttft_timeout_s,
            stall_timeout_s=provider.stall_timeout_s,
            total_timeout_s=provider.total_timeout_s,
            max_concurrency=provider.max_concurrency,
        )
        try:
            speaking = _make_provider(name, provider, simulator_url)
        except ConfigError as error:
            faults += [f"{config.source}: {fault}" for fault in error.faults]
        else:
            made[name] = ConfiguredProvider(
                speaking,
                limits,
                proxy=provider.proxy,
                takes_anchored=provider.continuation in ("auto", "anchored"),
            )
    if faults:
        raise ConfigError(faults)
    return made


def _make_provider(name: str, config: ProviderConfig, simulator_url: str) -> Provider:
    options = ProviderOptions(
        name=name,
        base_url=config.base_url,
        api_key=config.api_key.reveal() if config.api_key else None,
        host=config.host,
        headers={key.lower(): value.reveal() for key, value in config.headers.items()},
        api_version=config.api_version,
        continuation=config.continuation,
    )
    if config.kind == "simulator":
        base_url = config.base_url or simulator_url
        return OpenAI(ProviderOptions(name=name, base_url=base_url, continuation=config.continuation))
    return PROVIDERS[config.kind](options)


def make_router(config: Config) -> Callable[[str], Route]:
    """Return the function that finds where calls for a model may go: nowhere, if nobody has it."""
    routes = {name: _route(name, model) for name, model in config.models.items()}
    known = {str(target) for route in routes.values() for target in route.targets}

    def find(model: str) -> Route:
        route = routes.get(model)
        if route is not None:
            return route
        provider, _, name = model.partition("/")
        if not name or provider not in config.providers:
            return Route()
        return Route(name=model if model in known else "other", targets=(Target(provider, name),))

    return find


def _route(name: str, model: ModelConfig) -> Route:
    return Route(
        name=name,
        targets=tuple(Target(*target.split("/", 1)) for target in model.targets),
        strategy=model.strategy,
        weights=tuple(model.weights or ()),
        on_interrupt=model.on_interrupt,
        hedge_after_s=model.hedge_after_s,
    )


def model_names(config: Config) -> list[str]:
    """Return what a client may ask for by name: the aliases, then every ``provider/model`` behind them."""
    targets = [target for model in config.models.values() for target in model.targets]
    simulators = [name for name, provider in config.providers.items() if provider.kind == "simulator"]
    return list(dict.fromkeys([*config.models, *targets, *(f"{name}/{SIMULATOR_MODEL}" for name in simulators)]))


def model_pairs(config: Config) -> list[tuple[str, str]]:
    """Return every model of the configuration with each of its targets, by the names that metrics call them."""
    return [(name, target) for name, model in config.models.items() for target in model.targets]


def describe(gateway: Gateway) -> Mapping[str, Sequence[str]]:
    """Return the gateway as it would run, for a person to read: its chain, its providers, its models."""
    config = gateway.config
    return {
        "middleware": [repr(middleware) for middleware in gateway.middlewares],
        "providers": [_describe_provider(name, provider) for name, provider in config.providers.items()],
        "models": [_describe_model(name, model) for name, model in config.models.items()],
    }


def _describe_provider(name: str, config: ProviderConfig) -> str:
    where = config.base_url or config.host or "its own address"
    told = [f"{name}: {config.kind} at {where}", "with a key" if config.api_key else "without a key"]
    if config.continuation != "auto":
        told.append(f"continuation: {config.continuation}")
    return ", ".join(told)


def _describe_model(name: str, model: ModelConfig) -> str:
    """Say where calls for a model go, and in the configuration's words what is not as it is by default."""
    options: Sequence[tuple[str, object, object]] = (
        ("strategy", model.strategy, "priority"),
        ("weights", list(model.weights or ()), []),
        ("on_interrupt", model.on_interrupt, "continue"),
        ("hedge_after_s", model.hedge_after_s, None),
    )
    told = ", ".join(f"{key}: {value}" for key, value, default in options if value != default)
    return f"{name} -> {', '.join(model.targets)}" + (f" ({told})" if told else "")


def _check_address(config: Config, *, is_open: bool) -> None:
    if is_open and not is_loopback(config.server.host):
        expected = "expected a loopback address such as 127.0.0.1, because no client keys are configured"
        raise ConfigError([f"{config.source}: server.host: {expected} (middleware.auth.Auth, keys)"])


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
