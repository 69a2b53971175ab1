import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import main
from tests.eventually import TIMEOUT_S, eventually
from tests.raw_client import chat, connected, exchange, parse, request
from tests.scripted_upstream import (
    DONE,
    END,
    FINISH,
    ROLE,
    STREAM,
    Script,
    ScriptedUpstream,
    answer,
    chunk,
    config_over,
    text,
    texts_of,
    words,
)

ROOT = Path(__file__).parents[2]
PATH = "/v1/chat/completions"
PROVIDER_KEY = "sk-canary-0123456789abcdef"
CLIENT_KEY = "mr_canary_0123456789abcdef"
PROMPT = "canary prompt that nobody must read"


class Command:
    """A running ``millrace``, and all that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""

    async def line(self, start: str) -> str:
        """Return the first printed line that starts so."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"ended after {self.out!r}"
                self.out += line
                if line.startswith(start):
                    return line.rstrip("\n")

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and return exit code, standard output and standard error."""
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, self.out + out.decode(), err.decode()


@asynccontextmanager
async def millrace(
    *arguments: str, cwd: Path, config: Mapping[str, Any] | None = None, **environ: str
) -> AsyncIterator[Command]:
    """Run the command with an environment of its own, in an empty folder or with ``config`` as its file."""
    if config is not None:
        (cwd / "millrace.yaml").write_text(yaml.safe_dump(dict(config)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror",
        "-m",
        "gateway",
        *arguments,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def run(*arguments: str, cwd: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-Werror", "-m", "gateway", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@asynccontextmanager
async def serving(
    cwd: Path, config: Mapping[str, Any] | None = None, **environ: str
) -> AsyncIterator[tuple[Command, str]]:
    """Run ``millrace serve`` on free ports; yields the command and the gateway's address."""
    async with millrace("serve", "--port", "0", "--admin-port", "0", cwd=cwd, config=config, **environ) as command:
        page = await command.line("page:")
        yield command, page.split()[1].rstrip("/")


# --- check


def test_check_prints_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source, chain, providers and models; exit code 0."""
    file = tmp_path / "my.yaml"
    file.write_text(
        "providers: {up: {kind: openai, api_key: sk-canary-1}}\nmodels: {chat: {targets: [up/gpt-5-mini]}}\n"
        "middleware: [{use: middleware.resume.Resume, max_attempts: 2}]\n"
    )
    with pytest.raises(SystemExit) as caught:
        main(["check", "--config", str(file)])
    assert caught.value.code == 0
    found = capsys.readouterr()
    assert found.out.splitlines() == [
        f"configuration: {file}",
        "middleware:",
        "  Resume(max_attempts=2, anchor_characters=40)",
        "providers:",
        "  up: openai at its own address, with a key",
        "models:",
        "  chat -> up/gpt-5-mini",
    ]
    assert found.err == ""


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("server: {prot: 1, port: 99999}\nmodels: {chat: {targets: [nobody/x]}}", ["prot", "port", "targets"]),
        ("middleware:\n- use: middleware.nope.Nope\n- {use: middleware.auth.Auth, keyz: []}", ["[0].use", "[1].keyz"]),
        (
            "providers: {a: {kind: openai-compatible, host: nope}, b: {kind: openai-compatible, host: no}}",
            ["a.h", "b.h"],
        ),
        ("server: {host: 0.0.0.0}", ["server.host"]),
        ("providers: {a: {kind: openai, api_key: '${NOT_SET}'}}", ["a.api_key"]),
        ("{", [""]),
    ],
)
def test_check_tells_every_fault_on_a_line_of_its_own(
    text: str, keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, key and what was expected, on standard error; exit code 2, and nothing else is printed."""
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["check", "--config", str(file)])
    assert caught.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert len(lines) == len(keys)
    for line, key in zip(lines, keys, strict=True):
        assert line.startswith(str(file))
        assert key in line


def test_the_commands_say_what_they_take(tmp_path: Path) -> None:
    """``--help`` and ``--version`` answer, an unknown command is exit code 2."""
    assert "serve" in run("--help", cwd=tmp_path).stdout
    assert run("--version", cwd=tmp_path).stdout.startswith("millrace ")
    for arguments in ((), ("sevre",), ("serve", "--port", "x")):
        found = run(*arguments, cwd=tmp_path)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr


def test_dashboards_writes_boards_and_rules_and_says_where(tmp_path: Path) -> None:
    """A folder that cannot be written is one line."""
    found = run("dashboards", "--out", "boards", cwd=tmp_path)
    assert found.returncode == 0
    names = {Path(line).relative_to("boards").as_posix() for line in found.stdout.splitlines()}
    assert {"grafana/overview.json", "prometheus/alerts.yaml", "runbook.md"} <= names
    assert all((tmp_path / "boards" / name).is_file() for name in names)
    (tmp_path / "taken").write_text("")
    _refused(run("dashboards", "--out", "taken", cwd=tmp_path), "--out", "taken")


# --- serve that does not


def _refused(found: "subprocess.CompletedProcess[str]", *said: str) -> None:
    """Check that the command ended with exit code 2 and one line."""
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    for words_of_it in said:
        assert words_of_it in line


def test_serve_refuses_an_address_beyond_this_machine_without_client_keys(tmp_path: Path) -> None:
    """One line that says what to do."""
    _refused(run("serve", "--host", "0.0.0.0", cwd=tmp_path), "server.host", "middleware.auth.Auth")  # noqa: S104


def test_a_worker_that_crashes_before_it_serves_is_one_line(tmp_path: Path) -> None:
    """And no configuration that is wrong: who starts the gateway may try again. Nothing is left running."""
    (tmp_path / "crashing.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "millrace.yaml").write_text("middleware: [{use: crashing.Crash}]\n")
    found = run("serve", "--port", "0", "--admin-port", "0", "--workers", "2", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "a worker ended before it was ready: exit code 7\n"


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """For the gateway, its admin port and the simulator."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _refused(run("serve", "--port", port, "--admin-port", "0", cwd=tmp_path), port, "in use")
        _refused(run("serve", "--port", "0", "--admin-port", port, cwd=tmp_path), port, "in use")
        _refused(run("simulate", "--port", port, cwd=tmp_path), port, "in use")


def test_a_port_that_is_none_is_one_line(tmp_path: Path) -> None:
    """Said of the flag, not of a socket."""
    _refused(run("serve", "--port", "99999", cwd=tmp_path), "--port")
    _refused(run("simulate", "--port", "99999", cwd=tmp_path), "99999")


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """Named, as it was given."""
    _refused(run("serve", "--config", "nope.yaml", cwd=tmp_path), "nope.yaml", "no such file")


# --- serve that does


async def test_serve_without_anything_streams_from_the_simulator_by_the_line_it_prints(tmp_path: Path) -> None:
    """A page, and one line for a shell; SIGTERM ends it with exit code 0 and no word on standard error."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on the path")
    async with millrace("serve", "--port", "0", "--admin-port", "0", cwd=tmp_path) as command:
        page = await command.line("page:")
        line = await command.line("stream: curl -N ")
        assert re.fullmatch(r"page: +http://127\.0\.0\.1:\d+/", page)
        found = await exchange(page.split()[1], request("/", method="GET"))
        assert found.headers["content-type"].startswith("text/html")
        shell = await asyncio.create_subprocess_shell(
            line.removeprefix("stream: ") + " --silent --show-error --max-time 30", stdout=subprocess.PIPE
        )
        out, _ = await shell.communicate()
        assert shell.returncode == 0
        assert len(list(texts_of(out))) > 10
        assert out.endswith(DONE)
        code, _, err = await command.end()
    assert code == 0
    assert err == ""


async def test_the_printed_line_names_the_key_and_the_model_as_a_shell_needs_them(tmp_path: Path) -> None:
    """A quote in a name ends no argument."""
    keys = [{"id": "web", "sha256": sha256(CLIENT_KEY.encode()).hexdigest()}]
    async with ScriptedUpstream() as upstream:
        config = config_over(
            upstream,
            models={'it\'s "mine"': {"targets": ["up/mill"]}},
            middleware=[{"use": "middleware.auth.Auth", "keys": keys}, {"use": "middleware.fallback.Fallback"}],
        )
        async with millrace("serve", "--port", "0", "--admin-port", "0", cwd=tmp_path, config=config) as command:
            line = (await command.line("stream: curl -N ")).removeprefix("stream: curl")
            assert "YOUR_KEY" in line
            shell = await asyncio.create_subprocess_shell(
                "curl --silent --max-time 10" + line.replace("YOUR_KEY", CLIENT_KEY), stdout=subprocess.PIPE
            )
            out, _ = await shell.communicate()
    assert list(texts_of(out)) == ["Hello"]


async def test_simulate_serves_only_the_simulator(tmp_path: Path) -> None:
    """At the address it prints, until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        async with millrace("simulate", "--port", "0", cwd=tmp_path) as command:
            line = await command.line("simulator: ")
            body = chat(model="mill?token_count=3&interval_s=0")
            found = await exchange(line.split()[1], request(PATH, body))
            assert len(list(texts_of(found.body))) == 3
            code, _, err = await command.end(number)
        assert (code, err) == (0, "")


async def test_a_stream_in_flight_is_finished_after_sigterm(tmp_path: Path) -> None:
    """Then the process ends, with exit code 0; its log has one line of the attempt and one of the stream."""
    go_on = asyncio.Event()
    script: Script = [STREAM + chunk(ROLE, text("a")), go_on, chunk(text("b"), FINISH, DONE) + END]
    async with (
        ScriptedUpstream(script) as upstream,
        serving(tmp_path, config_over(upstream)) as (command, url),
        connected(url) as client,
    ):
        await client.send(request(PATH, chat()))
        await client.read_until(b'"a"')
        ending = asyncio.ensure_future(command.end())
        await eventually(lambda: _is_refused(url))
        go_on.set()
        found = parse(await client.read_until(b"\r\n0\r\n\r\n"))
        code, out, err = await ending
    assert found.body.endswith(DONE)
    assert code == 0
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    ends = [(line["event"], line.get("result") or line.get("outcome")) for line in lines if "model" in line]
    assert ends == [("attempt.settled", "completed"), ("stream.finished", "completed")]
    of_processes = [line["event"] for line in lines if "model" not in line]
    assert sorted(of_processes[:2]) == ["gateway.listening", "worker.started"]
    assert of_processes[2:] == ["gateway.draining", "worker.exited", "gateway.stopped"]


async def _is_refused(url: str) -> bool:
    try:
        async with connected(url):
            return False
    except ConnectionRefusedError:
        return True


async def test_a_second_signal_does_not_wait_for_the_streams(tmp_path: Path) -> None:
    """Who asks twice is in a hurry; what is cut is not told as whole."""
    async with (
        ScriptedUpstream([STREAM + chunk(ROLE, text("a")), "stall"]) as upstream,
        serving(tmp_path, config_over(upstream)) as (command, url),
        connected(url) as client,
    ):
        await client.send(request(PATH, chat()))
        await client.read_until(b'"a"')
        command.process.send_signal(signal.SIGTERM)
        await eventually(lambda: _is_refused(url))
        await asyncio.sleep(0.3)
        assert command.process.returncode is None
        code, _, err = await command.end()
        found = parse(await client.read_all())
    assert code == 0
    assert "Traceback" not in err
    assert not found.is_whole


async def test_a_client_that_leaves_is_noticed_on_the_loop_that_is_served_with(tmp_path: Path) -> None:
    """During the prefill and in mid-stream, at once."""
    scripts: list[Script] = [["stall"], [STREAM + chunk(ROLE, text("a")), "stall"]]
    async with ScriptedUpstream(*scripts) as upstream, serving(tmp_path, config_over(upstream)) as (_, url):
        for number in range(2):
            async with connected(url) as client:
                await client.send(request(PATH, chat()))
                received = await upstream.request(number)
                if number == 1:
                    await client.read_until(b'"a"')
                client.abort()
                await asyncio.wait_for(received.gone.wait(), 10)


async def test_a_slow_client_gets_everything_on_the_loop_that_is_served_with(tmp_path: Path) -> None:
    """The provider waits for it again and again, and nothing is lost on the way."""
    many = [f"{number:06d}" + "x" * 994 for number in range(4000)]
    pieces = [chunk(text(*many[at : at + 50])) for at in range(0, len(many), 50)]
    script: Script = [STREAM + chunk(ROLE), *pieces, chunk(FINISH, DONE) + END]
    async with (
        ScriptedUpstream(script, has_small_buffers=True) as upstream,
        serving(tmp_path, config_over(upstream)) as (_, url),
        connected(url, limit=4096) as client,
    ):
        await client.send(request(PATH, chat(), connection="close"))
        seen: list[bytes] = []
        while data := await asyncio.wait_for(client.reader.read(65536), TIMEOUT_S):
            seen.append(data)
            await asyncio.sleep(0.05 if len(seen) < 40 else 0)
    found = parse(b"".join(seen))
    assert found.is_whole
    assert list(texts_of(found.body)) == many


async def test_no_secret_is_printed_or_told(tmp_path: Path) -> None:
    """Neither keys nor prompts nor answers: not in the log, not in errors, whatever the provider echoes."""
    keys = [{"id": "web", "sha256": sha256(CLIENT_KEY.encode()).hexdigest()}]
    said = {"error": {"message": f"bad key {PROVIDER_KEY}, client {CLIENT_KEY}", "code": "bad"}}
    scripts = [
        [answer(400, said)],
        [answer(500, said)],
        [STREAM + chunk(ROLE, text("canary answer"), b"data: " + json.dumps(said).encode() + b"\n\n")],
        [STREAM + chunk(ROLE, text("canary answer"), b"data: {" + PROVIDER_KEY.encode() + b"\n\n")],
        [STREAM + chunk(ROLE, text("fine"), FINISH, DONE) + END],
    ]
    async with ScriptedUpstream(*scripts) as upstream:
        config = config_over(upstream, telemetry={"log_level": "debug"})
        config["middleware"][1]["keys"] = keys
        config["providers"]["up"]["api_key"] = "${PROVIDER_KEY}"
        told = b""
        async with serving(tmp_path, config, PROVIDER_KEY=PROVIDER_KEY) as (command, url):
            for _ in scripts:
                found = await exchange(url, request(PATH, chat(PROMPT), x_api_key=CLIENT_KEY))
                told += found.body
            for key in (CLIENT_KEY + "x", PROVIDER_KEY):
                told += (await exchange(url, request(PATH, chat(PROMPT), x_api_key=key))).body
            told += (await exchange(url, request(PATH, PROMPT.encode(), x_api_key=CLIENT_KEY))).body
            told += (await exchange(url, f"POST {PATH} HTTP/1.1\r\nx-api-key {CLIENT_KEY}\r\n\r\n".encode())).body
            code, out, err = await command.end()
    assert code == 0
    assert err == ""
    assert out.count('"event":"stream.finished"') == len(scripts) + 3
    told = told.replace(b"canary answer", b"")
    assert "canary" not in told.decode() + out + err


# --- a thousand streams


@asynccontextmanager
async def pacer(token_count: int, interval_s: float) -> AsyncIterator[str]:
    """Run a provider in a process of its own; yields its base URL."""
    code = f"import asyncio; from tests.scripted_upstream import pace; asyncio.run(pace({token_count}, {interval_s}))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}/v1"
    finally:
        process.kill()
        await process.communicate()


class Collector(asyncio.Protocol):
    """A client that costs next to nothing: sends its request, keeps what comes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pieces: list[bytes] = []
        self.is_closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.is_closed.set_result(exc)


def _itself(collector: Collector) -> Collector:
    return collector


async def test_a_thousand_streams_on_one_worker_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    """A hundred tokens each, at fifty tokens a second, all at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 4096:
        pytest.skip(f"only {most} open files are allowed here, a thousand streams need four thousand")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    async with pacer(100, 0.02) as url, ScriptedUpstream() as unused:
        config = config_over(unused, telemetry={"log_level": "error"})
        config["providers"]["up"]["base_url"] = url
        async with serving(tmp_path, config) as (command, gateway_url):
            data, port = request(PATH, chat(), connection="close"), int(gateway_url.rpartition(":")[2])
            clients = [Collector(data) for _ in range(1000)]
            await asyncio.gather(*(loop.create_connection(partial(_itself, one), "127.0.0.1", port) for one in clients))
            await asyncio.wait_for(asyncio.gather(*(one.is_closed for one in clients)), 60)
            code, _, err = await command.end()
    assert (code, err) == (0, "")
    expected = words(100)
    for one in clients:
        found = parse(b"".join(one.pieces))
        assert found.is_whole
        assert found.body.endswith(DONE)
        assert list(texts_of(found.body)) == expected
