import asyncio
import socket
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from gateway.app import (
    Gateway,
    describe,
    is_loopback,
    make_middlewares,
    make_router,
    model_names,
    without_effect,
)
from gateway.config import Config, MiddlewareConfig, parse_config
from gateway.core.call import Call, Target
from gateway.core.errors import ConfigError
from gateway.pipeline import Next, Send
from tests.conftest import MakeGateway, over
from tests.raw_client import chat, connected, exchange, parse, request
from tests.scripted_upstream import DONE, END, FINISH, ROLE, STREAM, Script, ScriptedUpstream, chunk, config_over, text

PATH = "/v1/chat/completions"
KEYED = [{"use": "middleware.auth.Auth", "keys": [{"id": "web", "sha256": sha256(b"key").hexdigest()}]}]


def config_of(document: Mapping[str, Any]) -> Config:
    """Return the configuration that the document is."""
    return parse_config(yaml.safe_dump(dict(document)), "test.yaml", {})


TWO = config_of(
    {
        "providers": {
            "one": {"kind": "openai", "api_key": "sk-canary-1"},
            "two": {"kind": "openai-compatible", "base_url": "http://127.0.0.1:9/v1"},
            "sim": {"kind": "simulator"},
        },
        "models": {
            "chat": {"targets": ["one/gpt-5-mini", "two/org/deep/model"], "on_interrupt": "restart"},
            "mine": {"targets": ["one/gpt-5-mini"]},
        },
    }
)


# --- models and routes


def test_an_alias_has_the_route_of_the_configuration() -> None:
    """Targets in their order; a model's own name may have slashes."""
    route = make_router(TWO)("chat")
    assert route.name == "chat"
    assert route.targets == (Target("one", "gpt-5-mini"), Target("two", "org/deep/model"))
    assert route.on_interrupt == "restart"


@pytest.mark.parametrize(
    ("model", "name", "target"),
    [
        ("one/gpt-5-mini", "one/gpt-5-mini", Target("one", "gpt-5-mini")),
        ("one/another", "other", Target("one", "another")),
        ("two/org/deep/model", "two/org/deep/model", Target("two", "org/deep/model")),
    ],
)
def test_a_provider_and_model_need_no_entry(model: str, name: str, target: Target) -> None:
    """Metrics call what the configuration does not name ``other``: labels come from a closed set."""
    route = make_router(TWO)(model)
    assert route.name == name
    assert route.targets == (target,)


@pytest.mark.parametrize("model", ["", "nope", "/", "one/", "/gpt", "nobody/gpt", "ONE/gpt"])
def test_an_unknown_model_has_no_target(model: str) -> None:
    """There is nowhere to go."""
    assert make_router(TWO)(model).targets == ()


def test_the_names_are_the_aliases_then_the_targets_each_once() -> None:
    """And the simulator's own model, so that there is something to try."""
    assert model_names(TWO) == ["chat", "mine", "one/gpt-5-mini", "two/org/deep/model", "sim/mill"]


# --- middlewares


@dataclass(frozen=True)
class Tagged:
    """A middleware of somebody else's."""

    tag: str = "none"

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Hand everything on."""
        return call_next(call, send)


@dataclass(frozen=True)
class NotOne:
    """Something that cannot be called."""


def test_a_middleware_is_found_by_its_import_path_and_made_from_its_options() -> None:
    """One that lives in another package is added the same way."""
    text = (
        "middleware: [{use: middleware.resume.Resume, max_attempts: 5}, {use: tests.gateway.test_app.Tagged, tag: a}]"
    )
    made = make_middlewares(parse_config(text, "test.yaml", {}).middleware)
    assert [repr(one) for one in made] == ["Resume(max_attempts=5)", "Tagged(tag='a')"]


@pytest.mark.parametrize("use", ["tests.gateway.test_app.NotOne", "tests.gateway.test_app.config_of", "os.sep"])
def test_what_is_no_middleware_class_is_refused_at_the_start(use: str) -> None:
    """And not when the first request comes."""
    with pytest.raises(ConfigError, match="expected a middleware class"):
        make_middlewares([MiddlewareConfig(use)])


def test_all_faults_of_the_chain_are_told_at_once() -> None:
    """Each with its line, its key and what was expected."""
    text = """\
middleware:
  - use: middleware.nope.Nope
  - use: middleware.auth.Nope
  - use: os.path
  - use: middleware.resume.Resume
    max_attempts: 0
    depth: 1
"""
    with pytest.raises(ConfigError) as caught:
        make_middlewares(parse_config(text, "m.yaml", {}).middleware)
    found = caught.value.faults
    assert [fault.partition(": expected")[0] for fault in found[:3]] == [
        "m.yaml:2: middleware[0].use",
        "m.yaml:3: middleware[1].use",
        "m.yaml:4: middleware[2].use",
    ]
    assert any("middleware[3].max_attempts" in fault for fault in found)
    assert any("middleware[3].depth" in fault for fault in found)


def test_the_description_shows_all_that_runs_and_no_secret() -> None:
    """Chain, providers and models."""
    shown = describe(Gateway(TWO))
    assert shown["middleware"] == ["Observe()", "Auth(keys=())", "Fallback()", "Resume(max_attempts=3)"]
    assert shown["models"] == ["chat -> one/gpt-5-mini, two/org/deep/model", "mine -> one/gpt-5-mini"]
    assert "canary" not in str(shown)


# --- the address


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.org", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine_only(host: str, *, expected: bool) -> None:
    """Whatever is not surely so is not."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104
def test_any_other_address_is_refused_without_client_keys(host: str) -> None:
    """The fault says what to do about it; with keys there is none."""
    document = {**over("simulator"), "server": {"host": host}}
    with pytest.raises(ConfigError) as caught:
        Gateway(config_of(document))
    (fault,) = caught.value.faults
    assert fault.startswith("test.yaml: server.host: expected a loopback address")
    assert not Gateway(config_of({**document, "middleware": KEYED})).is_open


async def test_a_port_in_use_is_one_clear_fault(make_gateway: MakeGateway) -> None:
    """Whichever of the two ports; and what was opened before is closed again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key in ("port", "admin_port"):
            with pytest.raises(ConfigError) as caught:
                await make_gateway(config={**over("openai"), "server": {key: port}})
            assert caught.value.faults == [f"test.yaml: cannot listen on 127.0.0.1:{port}: address already in use"]


async def test_a_host_without_an_address_is_one_clear_fault(make_gateway: MakeGateway) -> None:
    """The name is told."""
    config = {**over("openai"), "server": {"host": "no-such-host.invalid"}, "middleware": KEYED}
    with pytest.raises(ConfigError) as caught:
        await make_gateway(config=config)
    (fault,) = caught.value.faults
    assert fault.startswith("test.yaml: cannot listen on no-such-host.invalid:0: ")


# --- living and dying


async def test_the_admin_port_says_alive_and_ready(make_gateway: MakeGateway) -> None:
    """And the public port does not speak of it."""
    gateway = await make_gateway("openai")
    for path in ("/healthz", "/readyz"):
        assert (await exchange(gateway.admin_url, request(path, method="GET"))).status == 200
        assert (await exchange(gateway.url, request(path, method="GET"))).status == 404
    assert (await exchange(gateway.admin_url, request("/v1/models", method="GET"))).status == 404


async def test_a_stream_in_flight_is_finished_while_the_gateway_drains(make_gateway: MakeGateway) -> None:
    """Meanwhile it is alive but not ready, and takes no new connection."""
    script: Script = [STREAM + chunk(ROLE, text("a")), 0.5, chunk(text("b"), FINISH, DONE) + END]
    async with ScriptedUpstream(script) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 10}))
        async with connected(gateway.url) as client, connected(gateway.url) as idle:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            stopping = asyncio.ensure_future(gateway.gateway.stop())
            await asyncio.sleep(0.1)
            assert await idle.read_all(timeout_s=1) == b""
            assert (await exchange(gateway.admin_url, request("/healthz", method="GET"))).status == 200
            assert (await exchange(gateway.admin_url, request("/readyz", method="GET"))).status == 503
            with pytest.raises(ConnectionRefusedError):
                await exchange(gateway.url, request("/v1/models", method="GET"))
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
            assert found.body.endswith(DONE)
            await asyncio.wait_for(stopping, 3)
    with pytest.raises(ConnectionRefusedError):
        await exchange(gateway.admin_url, request("/healthz", method="GET"))


async def test_a_stream_that_outlasts_the_drain_is_cut_and_not_ended(make_gateway: MakeGateway) -> None:
    """Its client is told, must not take it for whole, and its provider is freed."""
    with capture_logs() as logs:
        await _outlast_the_drain(make_gateway)
    assert [line["outcome"] for line in logs if line["event"] == "stream.finished"] == ["drained"]


async def _outlast_the_drain(make_gateway: MakeGateway) -> None:
    async with ScriptedUpstream([STREAM + chunk(ROLE, text("a")), "stall"]) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 0.2}))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            await asyncio.wait_for(gateway.gateway.stop(), 5)
            found = parse(await client.read_all())
        await asyncio.wait_for(upstream.requests[0].gone.wait(), 1)
    assert not found.is_whole
    assert b'"code":"gateway_stopping"' in found.body
    assert b"[DONE]" not in found.body


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ("server: {workers: 2}", "server.workers"),
        ("telemetry: {otlp_endpoint: 'http://127.0.0.1:4318'}", "telemetry.otlp_endpoint"),
        ("models: {a: {targets: [sim/mill], strategy: fastest}}", "models.a.strategy"),
        ("models: {a: {targets: [sim/mill], hedge_after_s: 1}}", "models.a.hedge_after_s"),
    ],
)
def test_what_has_no_effect_yet_is_said(changed: str, key: str) -> None:
    """A key that is accepted but does nothing must not be believed in."""
    assert without_effect(parse_config(changed, "test.yaml", {})) == [key]
    assert without_effect(parse_config("", "test.yaml", {})) == []


async def test_a_gateway_without_a_provider_serves_the_simulator() -> None:
    """The first stream works without any account."""
    running = Gateway(parse_config("server: {port: 0, admin_port: 0}", "test.yaml", {}))
    await running.start()
    try:
        body = chat(model="sim/mill?token_count=3&interval_s=0")
        found = await exchange(f"http://127.0.0.1:{running.port}", request(PATH, body))
    finally:
        await running.stop()
    assert found.headers["x-millrace-target"].startswith("sim/mill")
    assert found.body.endswith(DONE)
