import asyncio
import platform
import socket
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from gateway import __version__
from gateway.app import (
    Gateway,
    config_hash,
    describe,
    instrument,
    is_loopback,
    make_middlewares,
    make_providers,
    make_router,
    model_names,
)
from gateway.config import Config, MiddlewareConfig, parse_config
from gateway.core.call import Call, Target
from gateway.core.continuation import Continuation
from gateway.core.errors import ConfigError
from gateway.guard import LAST_REQUEST_S
from gateway.pipeline import Middleware, Next, Send, Telemetry
from middleware import resume
from tests.clock import Clock
from tests.conftest import MakeGateway, over
from tests.eventually import TIMEOUT_S, eventually
from tests.exposition import OPENMETRICS, scrape
from tests.raw_client import chat, connected, exchange, parse, request
from tests.scripted_upstream import (
    DONE,
    END,
    FINISH,
    ROLE,
    STREAM,
    Script,
    ScriptedUpstream,
    chunk,
    complete,
    config_over,
    text,
    texts_of,
)

PATH = "/v1/chat/completions"
KEYED = [{"use": "middleware.auth.Auth", "keys": [{"id": "web", "sha256": sha256(b"key").hexdigest()}]}]


def config_of(document: Mapping[str, Any]) -> Config:
    """Return the configuration that the document is."""
    return parse_config(yaml.safe_dump(dict(document)), "test.yaml", {})


TWO = config_of(
    {
        "providers": {
            "one": {"kind": "openai", "api_key": "sk-canary-1", "continuation": "off"},
            "two": {"kind": "openai-compatible", "base_url": "http://127.0.0.1:9/v1"},
            "sim": {"kind": "simulator"},
        },
        "models": {
            "chat": {"targets": ["one/gpt-5-mini", "two/org/deep/model"], "on_interrupt": "restart"},
            "mine": {"targets": ["one/gpt-5-mini"]},
            "spread": {"targets": ["one/a", "two/b"], "strategy": "weighted", "weights": [3, 1], "hedge_after_s": 0.5},
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
    assert (route.strategy, route.weights, route.hedge_after_s) == ("priority", (), None)


def test_a_route_has_the_strategy_the_weights_and_the_hedge_of_the_configuration() -> None:
    """What the chain is to do with several targets is asked for by name of the model."""
    route = make_router(TWO)("spread")
    assert (route.strategy, route.weights, route.hedge_after_s) == ("weighted", (3.0, 1.0), 0.5)
    assert route.on_interrupt == "continue"


# --- providers


@pytest.mark.parametrize("kind", ["openai-compatible", "simulator"])
@pytest.mark.parametrize(
    ("word", "is_exact", "is_anchored"),
    [("auto", False, True), ("exact", True, False), ("anchored", False, True), ("off", False, False)],
)
def test_a_provider_goes_on_with_an_answer_as_its_operator_says(
    kind: str, word: str, *, is_exact: bool, is_anchored: bool
) -> None:
    """Of a host that nothing is known of, only the operator can say that it goes on exactly."""
    document = {"up": {"kind": kind, "base_url": "http://127.0.0.1:9/v1", "continuation": word}}
    provider = make_providers(config_of({"providers": document}), simulator_url="")["up"]
    call = Call(request_id="r", target=Target("up", "m"), continuation=Continuation(way="exact", text="a"))
    assert provider.provider.continues(call) is is_exact
    assert provider.takes_anchored is is_anchored


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
    targets = ["one/gpt-5-mini", "two/org/deep/model", "one/a", "two/b"]
    assert model_names(TWO) == ["chat", "mine", "spread", *targets, "sim/mill"]


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
    assert [repr(one) for one in made] == ["Resume(max_attempts=5, anchor_characters=40)", "Tagged(tag='a')"]


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
    """Chain, providers and models, with what is not as it is by default."""
    shown = describe(Gateway(TWO))
    observe, auth, fallback, resume = shown["middleware"]
    assert (observe, auth) == ("Observe()", "Auth(keys=())")
    assert fallback.startswith(
        "Fallback(retry_percent=10.0, retry_floor_per_s=3.0, hedge_percent=2.0, breaker_failures=5,"
    )
    assert resume == "Resume(max_attempts=3, anchor_characters=40)"
    assert shown["providers"] == [
        "one: openai at its own address, with a key, continuation: off",
        "sim: simulator at its own address, without a key",
        "two: openai-compatible at http://127.0.0.1:9/v1, without a key",
    ]
    assert shown["models"] == [
        "chat -> one/gpt-5-mini, two/org/deep/model (on_interrupt: restart)",
        "mine -> one/gpt-5-mini",
        "spread -> one/a, two/b (strategy: weighted, weights: [3.0, 1.0], hedge_after_s: 0.5)",
    ]
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


# --- attempts, as the default chain makes them


def over_scripted(*upstreams: ScriptedUpstream, **provider: Any) -> dict[str, Any]:
    """Return a configuration over these providers with the default chain, and these options of each provider."""
    document = config_over(*upstreams)
    del document["middleware"]
    for options in document["providers"].values():
        options.update(provider)
    return document


async def test_a_kept_connection_that_has_died_is_replaced_at_once(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider closed it just when the next request was written: that one is made on a fresh connection.

    Nobody waits for that, and the connection is not one of those that are kept.
    """
    monkeypatch.setattr(resume, "_backoff", lambda _: 3600.0)
    async with ScriptedUpstream(complete("first"), ["fin"], complete("second"), complete("third")) as upstream:
        gateway = await make_gateway(config=over_scripted(upstream))
        with capture_logs() as logs:
            bodies = [(await exchange(gateway.url, request(PATH, chat()))).body for _ in range(3)]
        assert [received.connection for received in upstream.requests] == [1, 1, 2, 3]
    assert ["".join(texts_of(body)) for body in bodies] == ["first", "second", "third"]
    settled = [line for line in logs if line["event"] == "attempt.settled"]
    assert [(line["attempt"], line["result"]) for line in settled] == [
        (1, "completed"),
        (1, "failed"),
        (2, "completed"),
        (1, "completed"),
    ]


async def test_the_total_timeout_counts_over_all_attempts(clock: Clock, make_gateway: MakeGateway) -> None:
    """It is the client's time, whoever uses it up: the second attempt gets what the first has left of it."""
    async with ScriptedUpstream(["stall"]) as one, ScriptedUpstream(["stall"]) as two:
        config = over_scripted(one, two, ttft_timeout_s=100, total_timeout_s=150)
        gateway = await make_gateway(config={**config, "server": {"heartbeat_s": 900}})
        asking = asyncio.ensure_future(exchange(gateway.url, request(PATH, chat()), timeout_s=900))
        await one.request()
        await clock.pass_by(110)
        await two.request()
        await clock.pass_by(50)
        found = await asyncio.wait_for(asking, TIMEOUT_S)
        assert (len(one.requests), len(two.requests)) == (1, 1)
    assert found.status == 504
    assert found.error["code"] == "total_timeout"
    assert found.headers["x-should-retry"] == "false"


async def test_an_answer_that_broke_off_is_gone_on_with_by_the_next_target(make_gateway: MakeGateway) -> None:
    """The client gets one whole answer; the seam is told in a comment, in the log, and in the ledger."""
    begun, again = "It was a dark and ", "stormy night, and the rain fell in torrents"
    break_off = asyncio.Event()
    async with (
        ScriptedUpstream([STREAM + chunk(ROLE, text(begun, again)), break_off, "rst"]) as broken,
        ScriptedUpstream(complete(again, ", except at times, ", "when it did not.")) as good,
    ):
        gateway = await make_gateway(config={**over_scripted(broken, good), "middleware": QUICK_CHAIN})
        with capture_logs() as logs:
            async with connected(gateway.url) as client:
                await client.send(request(PATH, chat()))
                await client.read_until(again.encode())
                break_off.set()
                found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
    assert found.is_whole
    assert found.body.endswith(DONE)
    assert "".join(texts_of(found.body)) == begun + again + ", except at times, when it did not."
    assert b": millrace continued up1/mill from up/mill, anchored, attempt 2, after 61 characters\n" in found.body
    assert found.headers["x-millrace-target"] == "up/mill"
    settled = [line for line in logs if line["event"] == "attempt.settled"]
    assert [(line["target"], line["result"], line.get("way")) for line in settled] == [
        ("up/mill", "failed", None),
        ("up1/mill", "completed", "anchored"),
    ]
    (finished,) = [line for line in logs if line["event"] == "stream.finished"]
    assert finished["targets"] == ["up/mill", "up1/mill"]
    assert (finished["outcome"], finished["attempts"], finished["resumed"]) == ("completed", 2, 1)


QUICK_CHAIN = [
    {"use": "middleware.observe.Observe"},
    {"use": "middleware.fallback.Fallback"},
    {"use": "middleware.resume.Resume", "max_attempts": 1},
]
"""With it no target is asked twice."""


# --- living and dying


async def test_an_aiohttp_that_is_not_as_expected_is_told_of(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything goes on, only slower: somebody should know why."""
    monkeypatch.setattr("gateway.app.FAULTS", ("BaseConnector._get",))
    monkeypatch.setattr("gateway.app.CONNECTION_FAULTS", ("RequestHandler.start",))
    with capture_logs() as logs:
        await make_gateway("openai")
    assert [line["faults"] for line in logs if line["event"] == "exchange.public"] == [["BaseConnector._get"]]
    assert [line["faults"] for line in logs if line["event"] == "connection.public"] == [["RequestHandler.start"]]


async def test_the_admin_port_says_alive_and_ready(make_gateway: MakeGateway) -> None:
    """And the public port does not speak of it."""
    gateway = await make_gateway("openai")
    for path in ("/healthz", "/readyz"):
        assert (await exchange(gateway.admin_url, request(path, method="GET"))).status == 200
        assert (await exchange(gateway.url, request(path, method="GET"))).status == 404
    assert (await exchange(gateway.admin_url, request("/v1/models", method="GET"))).status == 404


async def test_a_stream_in_flight_is_finished_while_the_gateway_drains(make_gateway: MakeGateway) -> None:
    """Meanwhile it is alive but not ready, and takes no new connection."""
    go_on = asyncio.Event()
    script: Script = [STREAM + chunk(ROLE, text("a")), go_on, chunk(text("b"), FINISH, DONE) + END]
    async with ScriptedUpstream(script) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 60}))
        async with connected(gateway.url) as client, connected(gateway.url) as idle:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            stopping = asyncio.ensure_future(gateway.gateway.stop())
            assert await idle.read_all() == b""
            assert (await exchange(gateway.admin_url, request("/healthz", method="GET"))).status == 200
            assert (await exchange(gateway.admin_url, request("/readyz", method="GET"))).status == 503
            with pytest.raises(ConnectionRefusedError):
                await exchange(gateway.url, request("/v1/models", method="GET"))
            go_on.set()
            found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
            assert found.body.endswith(DONE)
            await asyncio.wait_for(stopping, TIMEOUT_S)
    with pytest.raises(ConnectionRefusedError):
        await exchange(gateway.admin_url, request("/healthz", method="GET"))


async def test_a_gateway_that_leaves_keeps_no_connection_ready_any_more(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its providers would have connections from it for as long as its last stream takes."""
    gateway = (await make_gateway("openai")).gateway
    looks = []

    async def look(seconds: float) -> None:
        looks.append(seconds)
        await sleep(0)

    sleep = asyncio.sleep
    monkeypatch.setattr(gateway._warmth, "_sleep", look)
    gateway.warm()
    await eventually(lambda: len(looks) > 3)
    await gateway.leave()
    seen = len(looks)
    for _ in range(10):
        await sleep(0)
    assert len(looks) == seen


async def test_a_call_that_begins_while_the_gateway_drains_has_the_same_time_as_the_others(
    make_gateway: MakeGateway,
) -> None:
    """It was on its way when the gateway was told to stop; it is not cut when those before it have ended."""
    gates = asyncio.Event(), asyncio.Event()
    scripts: list[Script] = [
        [STREAM + chunk(ROLE, text("a")), gate, chunk(text("b"), FINISH, DONE) + END] for gate in gates
    ]
    ask = request(PATH, chat())
    async with ScriptedUpstream(*scripts) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 60}))
        async with connected(gateway.url) as first, connected(gateway.url) as second:
            await first.send(ask)
            await first.read_until(b'"a"')
            await second.send(ask[:20])
            await asyncio.sleep(0.1)
            stopping = asyncio.ensure_future(gateway.gateway.stop())
            await asyncio.sleep(2 * LAST_REQUEST_S)
            await second.send(ask[20:])
            await second.read_until(b'"a"')
            for client, gate in zip((first, second), gates, strict=True):
                gate.set()
                assert parse(await client.read_until(b"\r\n0\r\n\r\n")).body.endswith(DONE)
            await asyncio.wait_for(stopping, TIMEOUT_S)


async def test_streams_that_a_stopping_gateway_waits_for_are_draining(make_gateway: MakeGateway) -> None:
    """Whoever looks sees how many are left; when they have ended there are none."""
    go_on = asyncio.Event()
    script: Script = [STREAM + chunk(ROLE, text("a")), go_on, chunk(text("b"), FINISH, DONE) + END]
    async with ScriptedUpstream(script) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 60}))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            name = "millrace_streams_active"
            assert (await scrape(gateway.admin_url)).by("phase", name) == {"decode": 1}
            stopping = asyncio.ensure_future(gateway.gateway.stop())
            await eventually(lambda: not gateway.gateway._is_ready)
            assert (await scrape(gateway.admin_url)).by("phase", name) == {"draining": 1}
            shown = (await exchange(gateway.admin_url, request("/admin/streams", method="GET"))).json
            assert [one["phase"] for one in shown["in_flight"]] == ["draining"]
            go_on.set()
            await client.read_until(b"\r\n0\r\n\r\n")
            await asyncio.wait_for(stopping, TIMEOUT_S)


async def test_a_stream_that_outlasts_the_drain_is_cut_and_not_ended(make_gateway: MakeGateway) -> None:
    """Its client is told, must not take it for whole, and its provider is freed."""
    with capture_logs() as logs:
        await _outlast_the_drain(make_gateway)
    assert [line["outcome"] for line in logs if line["event"] == "stream.finished"] == ["drained"]
    settled = [(line["result"], line["reason"]) for line in logs if line["event"] == "attempt.settled"]
    assert settled == [("cancelled", "drained")]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_that_outlasts_the_drain_before_its_first_token_is_told_by_a_status(
    make_gateway: MakeGateway, *, stream: bool
) -> None:
    """Streamed or not; and it is not its client who has left, in log and ledger."""
    with capture_logs() as logs:
        async with ScriptedUpstream([STREAM + chunk(ROLE), "stall"]) as upstream:
            gateway = await make_gateway(config={**over_scripted(upstream), "server": {"drain_timeout_s": 0.2}})
            async with connected(gateway.url) as client:
                await client.send(request(PATH, chat(stream=stream)))
                await upstream.request()
                await asyncio.wait_for(gateway.gateway.stop(), TIMEOUT_S)
                told = await client.read_all()
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"gateway_stopping"' in told
    assert [line["outcome"] for line in logs if line["event"] == "stream.finished"] == ["drained"]
    settled = [(line["result"], line["reason"]) for line in logs if line["event"] == "attempt.settled"]
    assert settled == [("cancelled", "drained")]


async def _outlast_the_drain(make_gateway: MakeGateway) -> None:
    async with ScriptedUpstream([STREAM + chunk(ROLE, text("a")), "stall"]) as upstream:
        gateway = await make_gateway(config=config_over(upstream, server={"drain_timeout_s": 0.2}))
        async with connected(gateway.url) as client:
            await client.send(request(PATH, chat()))
            await client.read_until(b'"a"')
            await asyncio.wait_for(gateway.gateway.stop(), TIMEOUT_S)
            found = parse(await client.read_all())
        await asyncio.wait_for(upstream.requests[0].gone.wait(), TIMEOUT_S)
    assert not found.is_whole
    assert b'"code":"gateway_stopping"' in found.body
    assert b"[DONE]" not in found.body


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


# --- what can be seen


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_a_gateway_says_what_it_is_before_anybody_has_called(accept: str, make_gateway: MakeGateway) -> None:
    """Version, Python, loop and configuration; the one worker serves."""
    gateway = await make_gateway("openai")
    found = await scrape(gateway.admin_url, accept)
    (build,) = found.of_name("millrace_build_info")
    assert build.labels == {"version": __version__, "python": platform.python_version(), "loop": "asyncio"}
    (config,) = found.of_name("millrace_config_info")
    assert config.labels == {"hash": config_hash(gateway.gateway.config)}
    assert found.total("millrace_config_generation") == found.total("millrace_config_last_reload_success") == 1
    assert found.by("worker", "millrace_worker_up") == {"0": 1}
    assert found.total("millrace_worker_resident_memory_bytes", worker="0") > 1_000_000


async def test_every_answer_is_counted_by_its_route_and_status(make_gateway: MakeGateway) -> None:
    """A name of the program for each path, and one for all that there are not: scanners make no series."""
    async with ScriptedUpstream() as upstream:
        gateway = await make_gateway(config=config_over(upstream))
        await exchange(gateway.url, request(PATH, chat()))
        await exchange(gateway.url, request(PATH, b"{"))
        await exchange(gateway.url, request("/api/chat/stream", {"message": "Hello"}))
        for path in ("/", "/page/base.css", "/v1/models", "/v1/models/chat", "/v1/models/no/such", "/.env", "/a", "/b"):
            await exchange(gateway.url, request(path, method="GET"))
        found = await scrape(gateway.admin_url)
    name = "millrace_http_responses_total"
    assert found.by("code", name, route="chat_completions") == {"200": 1, "400": 1}
    assert found.by("code", name, route="chat_stream") == {"200": 1}
    assert found.by("code", name, route="models") == {"200": 2, "404": 1}
    assert found.by("code", name, route="page") == {"200": 2}
    assert found.by("code", name, route="other") == {"404": 3}


async def test_two_gateways_in_one_process_count_for_themselves(make_gateway: MakeGateway) -> None:
    """Nothing is shared that anybody could have asked for by name."""
    one, two = await make_gateway("openai"), await make_gateway("openai")
    await exchange(one.url, request(PATH, chat()))
    assert (await scrape(one.admin_url)).total("millrace_requests_total") == 1
    assert (await scrape(two.admin_url)).total("millrace_requests_total") == 0


def test_a_hash_is_that_of_the_configuration_and_of_no_secret() -> None:
    """Two gateways that agree have the same, whatever their keys; any other option makes another."""
    chain = [{"use": "middleware.resume.Resume", "max_attempts": 3}]
    document = {"providers": {"up": {"kind": "openai", "api_key": "sk-canary-1"}}, "middleware": chain}
    other_key = {**document, "providers": {"up": {"kind": "openai", "api_key": "sk-canary-2"}}}
    other_option = {**document, "middleware": [{"use": "middleware.resume.Resume", "max_attempts": 4}]}
    other_limit = {**document, "providers": {"up": {"kind": "openai", "api_key": "sk-canary-1", "stall_timeout_s": 9}}}
    known = config_hash(config_of(document))
    assert known == config_hash(config_of(document)) == config_hash(config_of(other_key))
    assert len({known, config_hash(config_of(other_option)), config_hash(config_of(other_limit))}) == 3


@dataclass(frozen=True)
class Measuring:
    """A middleware that has something to measure."""

    telemetry: Telemetry | None = None

    def instrumented(self, telemetry: Telemetry) -> Middleware:
        """Return one that does."""
        return Measuring(telemetry)

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Hand everything on."""
        return call_next(call, send)


def test_a_middleware_that_measures_is_told_with_what() -> None:
    """The others are as they were, and all are in their order."""
    tagged, telemetry = Tagged(), Telemetry()
    assert instrument([tagged, Measuring()], telemetry) == [tagged, Measuring(telemetry)]
