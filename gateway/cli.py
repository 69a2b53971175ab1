"""The command ``millrace``: serve, check, simulate, dashboards. Argument parsing, printing, exit codes, nothing else.

Exit codes: 0 done, 2 the configuration or the command line is wrong (one line per fault on standard error).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.config import Config, find_config, load_config, parse_config
from gateway.core.errors import ConfigError

if TYPE_CHECKING:
    from gateway.process.supervisor import Listening


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with its code."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except ConfigError as error:
        sys.stderr.writelines(f"{fault}\n" for fault in error.faults)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millrace", description="A streaming LLM gateway.")
    parser.add_argument("--version", action="version", version=f"millrace {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    serve = commands.add_parser("serve", help="serve the gateway")
    serve.add_argument("--config", metavar="FILE", help="configuration; default: $MILLRACE_CONFIG, ./millrace.yaml")
    serve.add_argument("--host", metavar="H", help="address to listen on")
    serve.add_argument("--port", metavar="P", type=int, help="port to listen on")
    serve.add_argument("--admin-port", metavar="P", type=int, help="port of /healthz, /readyz and /metrics")
    serve.add_argument("--workers", metavar="N", type=int, help="processes that share the port")
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="check the configuration and print what would run")
    check.add_argument("--config", metavar="FILE", help="configuration; default as for serve")
    check.set_defaults(run=_check)
    simulate = commands.add_parser("simulate", help="serve only the provider simulator")
    simulate.add_argument("--host", metavar="H", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    simulate.add_argument("--port", metavar="P", type=int, default=8090, help="port to listen on (8090)")
    simulate.set_defaults(run=_simulate)
    boards = commands.add_parser("dashboards", help="write the Grafana boards and the Prometheus rules")
    boards.add_argument("--out", metavar="DIR", default="dashboards", help="folder to write to (dashboards)")
    boards.set_defaults(run=_dashboards)
    return parser


def _load(path: str | None) -> Config:
    return load_config(path, os.environ, Path.cwd())


def _serve(options: argparse.Namespace) -> int:
    flags = {"host": options.host, "port": options.port, "admin_port": options.admin_port, "workers": options.workers}
    source, text = find_config(options.config, os.environ, Path.cwd())
    config = parse_config(text, source, os.environ).with_overrides(**flags)

    from gateway.process.member import Started  # noqa: PLC0415, a fault in the file is told without importing more

    _allow_many_sockets()
    started = [Started.of() for _ in range(config.server.workers)]  # they import what they need while we do

    from gateway.logs import configure_logs  # noqa: PLC0415
    from gateway.process.supervisor import Settings, Supervisor, WorkerFailed  # noqa: PLC0415

    def read() -> Settings:
        source, text = find_config(options.config, os.environ, Path.cwd())
        config = parse_config(text, source, os.environ).with_overrides(**flags)
        return Settings(config, text, flags)

    configure_logs(level=config.telemetry.log_level, log_format=config.telemetry.log_format)
    supervisor = Supervisor(Settings(config, text, flags), read, started=started)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, supervisor.ask_to_reload)
        starting = asyncio.ensure_future(supervisor.start())
        stopping = asyncio.ensure_future(supervisor.asked_to_stop())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                _greet(starting.result())
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await supervisor.stop()

    try:
        asyncio.run(run())
    except WorkerFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _check(options: argparse.Namespace) -> int:
    from gateway.app import Gateway, describe  # noqa: PLC0415

    config = _load(options.config)
    gateway = Gateway(config)
    print(f"configuration: {config.source}")
    for title, lines in describe(gateway).items():
        print(f"{title}:")
        for line in lines or ["(none)"]:
            print(f"  {line}")
    return 0


def _dashboards(options: argparse.Namespace) -> int:
    import dashboards  # noqa: PLC0415, nobody else needs it

    try:
        written = dashboards.write(Path(options.out))
    except OSError as error:
        raise ConfigError([f"command line: --out: {options.out}: {(error.strerror or str(error)).lower()}"]) from error
    for path in written:
        print(path)
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from gateway.simulator import Simulator  # noqa: PLC0415

    if not 0 <= options.port <= 65535:
        raise ConfigError([f"command line: --port: expected an integer from 0 to 65535, got {options.port}"])

    async def run(stopped: asyncio.Event) -> None:
        simulator = Simulator()
        try:
            port = await simulator.start(options.host, options.port)
        except OSError as error:
            await simulator.stop()
            raise ConfigError([f"command line: cannot listen on {options.host}:{options.port}: {error}"]) from error
        print(f"simulator: http://{options.host}:{port}/v1", flush=True)
        try:
            await stopped.wait()
        finally:
            await simulator.stop()

    _run(run)
    return 0


def _allow_many_sockets() -> None:
    """A stream has two sockets, and the usual limit of 1024 open files would end at five hundred."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _greet(listening: Listening) -> None:
    """Say where the page is, and the one line that streams."""
    server, first = listening.config.server, listening.first
    base = f"http://{f'[{server.host}]' if ':' in server.host else server.host}:{listening.port}"
    message = {"role": "user", "content": "Tell me a story."}
    body = shlex.quote(json.dumps({"model": first.model, "stream": True, "messages": [message]}, ensure_ascii=False))
    key = "" if first.is_open else " -H 'authorization: Bearer YOUR_KEY'"
    print(f"page:   {base}/")
    print(f"admin:  http://{server.admin_host}:{listening.admin_port}/")
    print(f"stream: curl -N {base}/v1/chat/completions -H 'content-type: application/json'{key} -d {body}", flush=True)


def _run(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Run ``work`` on the fastest loop there is; its event is set by SIGTERM or SIGINT, a second one cancels it."""

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        task = asyncio.current_task()

        def stop() -> None:
            if stopped.is_set() and task is not None:
                task.cancel()
            stopped.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        with suppress(asyncio.CancelledError):
            await work(stopped)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(supervised())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415, optional
    except ImportError:
        return None
    return uvloop.new_event_loop
