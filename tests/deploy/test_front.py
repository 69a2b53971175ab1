"""The configurations of what stands in front: read, checked by the programs themselves, and tried with them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from aiohttp import web

from gateway.config import ProviderConfig, ServerConfig
from gateway.guard import KEEP_ALIVE_S
from tests.raw_client import Answer, RawClient, chat, parse, request
from tests.scripted_upstream import (
    DONE,
    END,
    PING,
    ROLE,
    STREAM,
    Script,
    ScriptedUpstream,
    answer,
    chunk,
    complete,
    event,
    text,
    texts_of,
)

FOLDER = Path(__file__).parents[2] / "deploy" / "front"
PATH = "/v1/chat/completions"
TIMEOUT_S: Final = 30.0
WHOLE_S = ProviderConfig("openai").total_timeout_s
SERVER = ServerConfig()


@dataclass(frozen=True, slots=True)
class Front:
    """A program that stands in front: its file, how it is run, and what in the file is not as it is here."""

    program: str
    file: str
    check: tuple[str, ...]
    run: tuple[str, ...]
    changes: Mapping[str, str]

    @property
    def found(self) -> str | None:
        """Where the program is."""
        return shutil.which(self.program, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

    @property
    def text(self) -> str:
        """The file as it is shipped."""
        return (FOLDER / self.file).read_text("utf-8")

    def adjusted(self, folder: Path, *, gateway: int, admin: int) -> Path:
        """Write the file into a folder, listening there, with its gateway on a port of this machine."""
        made = self.text
        for shipped, here in self.changes.items():
            assert made.count(shipped) == 1, shipped
            made = made.replace(shipped, here.format(folder=folder, gateway=gateway, admin=admin))
        path = folder / self.file
        path.write_text(made, "utf-8")
        return path

    def command(self, arguments: tuple[str, ...], path: Path) -> list[str]:
        """Return what runs it."""
        assert self.found
        return [self.found, *(argument.format(path=path, folder=path.parent) for argument in arguments)]


_TEMPORARY = "".join(f" {kind}_temp_path {{folder}}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
NGINX = Front(
    "nginx",
    "nginx.conf",
    ("-t", "-p", "{folder}", "-c", "{path}"),
    ("-p", "{folder}", "-c", "{path}", "-g", "daemon off;"),
    {
        "pid /run/nginx.pid": "pid {folder}/nginx.pid",
        "access_log /dev/stdout": "access_log {folder}/access.log",
        "http {\n": "http {{" + _TEMPORARY + " uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n",
        "listen 8000 ": "listen unix:{folder}/front ",
        # two of them, or there is nobody to try next
        "server 127.0.0.1:8080 ": "server 127.0.0.1:{gateway}; server 127.0.0.1:{gateway} ",
    },
)
HAPROXY = Front(
    "haproxy",
    "haproxy.cfg",
    ("-c", "-f", "{path}"),
    ("-db", "-q", "-f", "{path}"),
    {
        "bind :8000 ": "bind {folder}/front ",
        "gateway1 127.0.0.1:8080": "gateway1 127.0.0.1:{gateway}",
        "port 8081": "port {admin}",
        " inter 2s fastinter 500ms": " inter 200ms fastinter 200ms",
        "timeout check 2s": "timeout check 30s",
    },
)
FRONTS = [
    pytest.param(front, id=front.program, marks=pytest.mark.skipif(front.found is None, reason=reason))
    for front, reason in (
        (NGINX, "nginx is not installed (Debian's nginx-light)"),
        (HAPROXY, "HAProxy is not installed (Debian's haproxy)"),
    )
]
every_front = pytest.mark.parametrize("front", FRONTS)


# --- as they are written


def nginx_directives() -> dict[str, list[str]]:
    """Return the values of each directive of nginx."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"#.*", "", NGINX.text).splitlines():
        if directive := re.match(r"\s*(\w+)\s+(.+);\s*$", line):
            found.setdefault(directive[1], []).append(directive[2])
    return found


def seconds(value: str) -> float:
    """Return a time as all three write it."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", value).groups()  # type: ignore[union-attr]  # else the test fails
    return float(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def test_nginx_holds_nothing_back() -> None:
    """Neither in a buffer nor in a compressor."""
    found = nginx_directives()
    assert (found["proxy_buffering"], found["gzip"], found["proxy_cache"]) == (["off"], ["off"], ["off"])
    assert (found["proxy_http_version"], found["tcp_nodelay"]) == (["1.1"], ["on"])
    assert "Connection ''" in found["proxy_set_header"] or 'Connection ""' in found["proxy_set_header"]


def test_nginx_waits_longer_than_the_gateway() -> None:
    """For an answer as long as it may take, with a kept connection less than the gateway keeps it."""
    found = nginx_directives()
    assert seconds(found["proxy_read_timeout"][0]) > WHOLE_S > SERVER.heartbeat_s
    assert 0 < seconds(found["keepalive_timeout"][0]) < KEEP_ALIVE_S
    assert seconds(found["worker_shutdown_timeout"][0]) > SERVER.drain_timeout_s
    assert seconds(found["send_timeout"][0]) > SERVER.heartbeat_s


def test_nginx_takes_what_the_gateway_takes_and_keeps_it_off_the_disk() -> None:
    """A body that is too large is refused by the gateway, in OpenAI's words."""
    found = nginx_directives()
    (most,), (buffered,) = found["client_max_body_size"], found["client_body_buffer_size"]
    assert int(most.removesuffix("m")) * 1024 * 1024 > SERVER.max_body_bytes
    assert most == buffered


def test_nginx_sends_no_post_twice() -> None:
    """Only what never reached a gateway is tried at another."""
    assert nginx_directives()["proxy_next_upstream"] == ["error"]


def haproxy_lines() -> list[str]:
    """Return what HAProxy reads."""
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in HAPROXY.text.splitlines()) if line]


def test_haproxy_waits_longer_than_the_gateway() -> None:
    """For an answer as long as it may take; for the rest of a request not long."""
    found = dict(re.findall(r"^timeout (\S+) (\S+)$", "\n".join(haproxy_lines()), re.MULTILINE))
    assert seconds(found["server"]) > WHOLE_S
    assert seconds(found["client"]) > 2 * SERVER.heartbeat_s
    assert seconds(found["http-request"]) <= SERVER.header_timeout_s
    assert f"hard-stop-after {SERVER.drain_timeout_s + 20:.0f}s" in haproxy_lines()


def test_haproxy_holds_nothing_back_and_sends_no_post_twice() -> None:
    """Nor does it keep a request going for a client that has left, or cut the streams of a gateway that drains."""
    lines = haproxy_lines()
    assert {"option http-no-delay", "option abortonclose", "retry-on conn-failure", "balance leastconn"} <= set(lines)
    assert not [line for line in lines if re.match("compression|filter|on-marked-down", line)]
    assert {"option httpchk", "http-check send meth GET uri /readyz", "http-check expect status 200"} <= set(lines)


ENVOY = yaml.safe_load((FOLDER / "envoy.yaml").read_text("utf-8"))


def envoy_types(node: Any) -> Iterator[str]:
    """Yield the types of all extensions."""
    if isinstance(node, dict):
        yield from ([node["@type"]] if "@type" in node else [])
        for value in node.values():
            yield from envoy_types(value)
    elif isinstance(node, list):
        for value in node:
            yield from envoy_types(value)


def envoy_manager() -> Any:
    """Return the filter that knows HTTP."""
    (listener,) = ENVOY["static_resources"]["listeners"]
    ((manager,),) = (chain["filters"] for chain in listener["filter_chains"])
    return manager["typed_config"]


def envoy_route() -> Any:
    """Return the one route."""
    (host,) = envoy_manager()["route_config"]["virtual_hosts"]
    (route,) = host["routes"]
    return route["route"]


def test_envoy_is_whole() -> None:
    """What names a cluster names one that there is; each extension has a type, and the router is the last filter."""
    (cluster,) = ENVOY["static_resources"]["clusters"]
    assert envoy_route()["cluster"] == cluster["name"] == cluster["load_assignment"]["cluster_name"]
    types = list(envoy_types(ENVOY))
    assert len(types) == FOLDER.joinpath("envoy.yaml").read_text("utf-8").count('"@type"')
    assert all(re.fullmatch(r"type\.googleapis\.com/envoy(\.\w+)+\.v3\.\w+", name) for name in types)
    assert envoy_manager()["http_filters"][-1]["typed_config"]["@type"].endswith("router.v3.Router")


def test_envoy_waits_longer_than_the_gateway() -> None:
    """Its own defaults are 15 s for a whole answer and 5 minutes for a silence."""
    assert envoy_route()["timeout"] == "0s"
    assert seconds(envoy_manager()["stream_idle_timeout"]) > WHOLE_S
    assert seconds(envoy_manager()["request_headers_timeout"]) <= SERVER.header_timeout_s
    (cluster,) = ENVOY["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert seconds(options["common_http_protocol_options"]["idle_timeout"]) < KEEP_ALIVE_S


def test_envoy_holds_nothing_back_and_sends_no_post_twice() -> None:
    """The router is alone, and only a connection that could not be made is tried again."""
    assert [item["name"] for item in envoy_manager()["http_filters"]] == ["envoy.filters.http.router"]
    assert envoy_route()["retry_policy"]["retry_on"] == "connect-failure"


def test_envoy_asks_the_admin_port_whether_a_gateway_is_ready_and_lets_its_streams_be() -> None:
    """And has no limit of 1024 streams."""
    (cluster,) = ENVOY["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    assert check["http_health_check"]["path"] == "/readyz"
    ((endpoint,),) = (item["lb_endpoints"] for item in cluster["load_assignment"]["endpoints"])
    assert endpoint["endpoint"]["health_check_config"]["port_value"] == SERVER.admin_port
    assert endpoint["endpoint"]["address"]["socket_address"]["port_value"] == SERVER.port
    assert "close_connections_on_host_health_failure" not in cluster
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    assert min(limits["max_connections"], limits["max_requests"], limits["max_pending_requests"]) >= 10_000


# --- as the programs see them


@every_front
def test_the_program_takes_its_configuration(front: Front, tmp_path: Path) -> None:
    """And says nothing against it."""
    path = front.adjusted(tmp_path, gateway=8080, admin=8081)
    done = subprocess.run(  # noqa: S603, our own
        front.command(front.check, path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\[(warn|WARNING|emerg|ALERT)\]", done.stderr), done.stderr


# --- in front of something


class Ready:
    """The admin port of a gateway, which says whether it is ready."""

    def __init__(self) -> None:
        self.is_ready = True
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer ``/readyz``."""
        return web.Response(status=200 if self.is_ready and request.path == "/readyz" else 503)


@asynccontextmanager
async def behind(front: Front, folder: Path, *scripts: Script) -> AsyncIterator[tuple[ScriptedUpstream, Ready]]:
    """Run a front over a gateway that is scripted."""
    ready = Ready()
    app = web.Application()
    app.router.add_get("/{path:.*}", ready.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ready.port = runner.addresses[0][1]
    try:
        async with ScriptedUpstream(*scripts) as gateway:
            path = front.adjusted(folder, gateway=gateway.port, admin=ready.port)
            process = await asyncio.create_subprocess_exec(
                *front.command(front.run, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                yield gateway, ready
            finally:
                process.terminate()
                await process.wait()
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[RawClient]:
    """Connect to a front, as soon as it listens."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(folder / "front")
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.02)
            else:
                break
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def asked(folder: Path, body: object = None) -> Answer:
    """Make a call and return what came until the connection was closed."""
    async with connected(folder) as client:
        with suppress(ConnectionError):  # who refuses need not read all of it
            await client.send(request(PATH, body or chat(), connection="close"))
        return parse(await client.read_all(timeout_s=TIMEOUT_S))


@every_front
async def test_what_is_there_is_sent_at_once_and_who_leaves_is_noticed(front: Front, tmp_path: Path) -> None:
    """Each piece arrives while the gateway is silent behind it; heartbeats, too; the gateway hears of the end."""
    pieces = [chunk(text("one")), chunk(PING), chunk(text("two"))]
    async with behind(front, tmp_path, [STREAM + pieces[0], 0.01, pieces[1], 0.01, pieces[2], "stall"]) as (gateway, _):
        async with connected(tmp_path) as client:
            await client.send(request(PATH, chat(), accept_encoding="gzip"))
            seen = await client.read_until(b'"two"', timeout_s=TIMEOUT_S)
            client.abort()
        received = await gateway.request()
        async with asyncio.timeout(TIMEOUT_S):
            await received.gone.wait()
    assert b'"one"' in seen
    assert b": ping\n\n" in seen
    assert b"content-encoding" not in seen.lower()


@every_front
async def test_a_stream_that_was_cut_does_not_look_whole(front: Front, tmp_path: Path) -> None:
    """The error event comes through, and the end without the last chunk is the client's end, too."""
    error = event({"error": {"message": "cut", "type": "server_error", "code": None, "param": None}})
    async with behind(front, tmp_path, [STREAM + chunk(ROLE, text("one"), error), "fin"]):
        cut = await asked(tmp_path)
    assert (cut.status, cut.is_whole) == (200, False)
    assert cut.body.endswith(error)


@every_front
async def test_a_post_is_never_sent_twice(front: Front, tmp_path: Path) -> None:
    """Neither over a fresh connection that dies nor over a kept one; the first may have cost something."""
    async with behind(front, tmp_path, ["fin"], complete("one"), ["fin"]) as (gateway, _):
        assert (await asked(tmp_path)).status == 502
        assert (await asked(tmp_path)).is_whole
        async with connected(tmp_path) as client:
            await client.send(request(PATH, chat(), connection="close"))
            last = await client.read_all(timeout_s=TIMEOUT_S)
        assert last == b"" or parse(last).status == 502
        assert len(gateway.requests) == 3


@every_front
async def test_a_large_request_comes_through_whole(front: Front, tmp_path: Path) -> None:
    """As large as the gateway takes it."""
    body = chat("x" * (SERVER.max_body_bytes - 200))
    async with behind(front, tmp_path, [answer(200, {"ok": True})]) as (gateway, _):
        assert (await asked(tmp_path, body)).status == 200
        assert gateway.requests[0].json == body


@pytest.mark.skipif(HAPROXY.found is None, reason="HAProxy is not installed (Debian's haproxy)")
async def test_haproxy_sends_nothing_new_to_a_gateway_that_drains_and_lets_its_streams_end(tmp_path: Path) -> None:
    """It is told by the admin port; what lives goes on to its own end."""
    script: Script = [STREAM + chunk(text("one")), "stall"]
    running = behind(HAPROXY, tmp_path, script, complete("other"))
    async with running as (gateway, ready), connected(tmp_path) as client:
        await client.send(request(PATH, chat(), connection="close"))
        await client.read_until(b'"one"', timeout_s=TIMEOUT_S)
        (living,) = gateway._connections
        ready.is_ready = False
        async with asyncio.timeout(TIMEOUT_S):
            while (await asked(tmp_path)).status != 503:  # noqa: ASYNC110, HAProxy tells nobody
                await asyncio.sleep(0.05)
        living._transport.write(chunk(text("two"), DONE) + END)
        finished = parse(await client.read_all(timeout_s=TIMEOUT_S))
    assert finished.is_whole
    assert list(texts_of(finished.body)) == ["one", "two"]
