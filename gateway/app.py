"""The composition root: a checked configuration becomes a running gateway. The one file that knows all parts.

Middlewares are loaded by the import path that the configuration names; nothing else in ``gateway`` knows any of them.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields
from functools import partial
from hashlib import sha256
from importlib import import_module
from ipaddress import ip_address
from typing import cast

import structlog
from aiohttp import web

from gateway import __version__
from gateway.admin import Admin
from gateway.config import Config, MiddlewareConfig, ModelConfig, ProviderConfig, build_options
from gateway.core.call import Route, Target
from gateway.core.errors import ConfigError
from gateway.core.meters import OTHER, Meters
from gateway.core.progress import Slo
from gateway.guard import ConnectionGuard, Gate, OriginRule
from gateway.ledger import LogLedger
from gateway.page import show_page
from gateway.pipeline import Authenticator, Instrumented, Middleware, Telemetry
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions
from gateway.providers.openai import OpenAI
from gateway.server import Server, ServerOptions
from gateway.simulator import Simulator
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.lag import LagSampler
from gateway.telemetry.live import LiveTable
from gateway.telemetry.meters import Meters as SlabMeters
from gateway.telemetry.slab import Slab
from gateway.upstream import ConfiguredProvider, Upstream, make_session
from gateway.watch import Limits

log = structlog.get_logger()

BACKLOG = 4096
"""aiohttp's 128 refuses connections when a thousand clients come at once."""

SIMULATOR_MODEL = "mill"


class Gateway:
    """A gateway that can be started and stopped. Making one checks all that can be checked without a socket.

    Raises ``ConfigError`` for a middleware or provider that cannot be made, and for an address that must not be served.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.middlewares = make_middlewares(config.middleware)
        self.models = model_names(config)
        self.is_open = not any(isinstance(item, Authenticator) and item.requires_key for item in self.middlewares)
        _check_address(config, is_open=self.is_open)
        make_providers(config, simulator_url="")
        self.port = 0
        self.admin_port = 0
        self._slab = Slab.create()
        self._live = LiveTable()
        self._telemetry = make_telemetry(config, self._slab, self._live)
        self._is_ready = False
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Open the sockets and serve; ``port`` and ``admin_port`` are then those that were really opened."""
        server = self.config.server
        note_build(self._telemetry.meters, self.config)
        collector = SlabCollector([self._slab])
        collector.note_started(0, os.getpid())
        admin = Admin(collector, self._live, is_ready=lambda: self._is_ready)
        self.admin_port = await self._listen(admin.make_app(), server.admin_host, server.admin_port)
        session, fresh = make_session(), make_session(keeps_connections=False)
        self._open.push_async_callback(session.close)
        self._open.push_async_callback(fresh.close)
        providers = make_providers(self.config, simulator_url=await self._start_simulator())
        self.port = await self._serve_public(Upstream(providers, session, fresh, meters=self._telemetry.meters))
        if ignored := without_effect(self.config):
            log.warning("configuration_without_effect", keys=ignored)
        self._is_ready = True

    async def stop(self) -> None:
        """Refuse new connections, let live streams run on for ``drain_timeout_s``, then end them.

        Cancelled while it waits, it waits no longer, but closes all there is.
        """
        self._is_ready = False
        await self._open.aclose()

    async def _start_simulator(self) -> str:
        if all(provider.kind != "simulator" for provider in self.config.providers.values()):
            return ""
        simulator = Simulator()
        port = await simulator.start("127.0.0.1", 0)
        self._open.push_async_callback(simulator.stop)
        return f"http://127.0.0.1:{port}/v1"

    async def _serve_public(self, upstream: Upstream) -> int:
        options, meters = self.config.server, self._telemetry.meters
        server = Server(
            middlewares=instrument(self.middlewares, self._telemetry),
            endpoint=upstream,
            route=make_router(self.config),
            models=self.models,
            options=ServerOptions(
                heartbeat_s=options.heartbeat_s,
                body_timeout_s=options.body_timeout_s,
                write_timeout_s=options.write_timeout_s,
            ),
            ledger=LogLedger(),
        )
        guard = ConnectionGuard(header_timeout_s=options.header_timeout_s)
        gate = Gate(OriginRule(is_open=self.is_open, origins=tuple(options.cors_origins)), guard)
        app = web.Application(client_max_size=options.max_body_bytes, middlewares=[gate.handle])
        app.on_response_prepare.append(gate.add_headers)
        app.on_response_prepare.append(partial(_count_response, meters))
        add_routes(app, server)
        buffered = meters.gauge("millrace_stream_buffered_bytes")
        sampler = LagSampler(meters, samples=[lambda: buffered.set(server.buffered_bytes)])
        sampler.start()
        self._open.callback(sampler.stop)

        async def drain() -> None:
            self._live.drain()
            await server.drain(options.drain_timeout_s)

        return await self._listen(app, options.host, options.port, guard=guard, drain=drain)

    async def _listen(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        guard: ConnectionGuard | None = None,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        """Serve ``app`` and return its port; raises ``ConfigError`` when the address cannot be had.

        It is closed in this order: no new connections, no further requests on those there are, the live ones drained.
        """
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        server = cast("web.Server", runner.server)
        try:
            listening = await asyncio.get_running_loop().create_server(
                guard.over(server) if guard else server, host, port, backlog=BACKLOG
            )
        except OSError as error:
            await runner.cleanup()
            if guard is not None:
                guard.close()
            number = error.errno or 0  # negative for a host without an address
            reason = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
            raise ConfigError([f"{self.config.source}: cannot listen on {host}:{port}: {reason}"]) from error
        self._open.push_async_callback(_close, runner, guard)
        if drain is not None:
            self._open.push_async_callback(drain)
        if guard is not None:
            self._open.callback(guard.close_idle)
        self._open.callback(server.pre_shutdown)
        self._open.callback(listening.close)
        return int(listening.sockets[0].getsockname()[1])


async def _close(runner: web.AppRunner, guard: ConnectionGuard | None) -> None:
    try:
        await runner.cleanup()
    finally:
        if guard is not None:
            guard.close()


def add_routes(app: web.Application, server: Server) -> None:
    """Give the public port its paths; a name up to its dot is what metrics call the route."""
    app.router.add_post("/v1/chat/completions", server.chat_completions, name="chat_completions")
    app.router.add_post("/api/chat/stream", server.chat_stream, name="chat_stream")
    app.router.add_get("/v1/models", server.list_models, name="models")
    app.router.add_get("/v1/models/{id:.+}", server.show_model, name="models.one")
    app.router.add_get("/", show_page, name="page")
    app.router.add_get("/page/{name}", show_page, name="page.file")


async def _count_response(meters: Meters, request: web.Request, response: web.StreamResponse) -> None:
    """Count an answer when its status is fixed."""
    route = (request.match_info.route.name or OTHER).partition(".")[0]
    meters.counter("millrace_http_responses_total", route, str(response.status)).inc()


def make_telemetry(config: Config, slab: Slab, live: LiveTable) -> Telemetry:
    """Return what the parts of one worker measure with; it counts in its slab."""
    slo = config.telemetry.slo
    return Telemetry(
        meters=SlabMeters(slab),
        slo=Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, max_gap_s=slo.max_gap_s),
        live=live,
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


def describe(gateway: Gateway) -> Mapping[str, Sequence[str]]:
    """Return the gateway as it would run, for a person to read: its chain, its providers, its models."""
    config = gateway.config
    return {
        "middleware": [repr(middleware) for middleware in gateway.middlewares],
        "providers": [_describe_provider(name, provider) for name, provider in config.providers.items()],
        "models": [_describe_model(name, model) for name, model in config.models.items()],
        **({"without effect in this version": ignored} if (ignored := without_effect(config)) else {}),
    }


def without_effect(config: Config) -> list[str]:
    """Return the keys that are set to something this version does not do yet."""
    ignored = ["server.workers"] if config.server.workers > 1 else []
    return ignored + (["telemetry.otlp_endpoint"] if config.telemetry.otlp_endpoint else [])


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
