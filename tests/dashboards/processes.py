"""``millrace simulate`` and ``millrace serve`` as processes of their own, as an operator runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 30.0


def free_ports(count: int) -> list[int]:
    """Return ports at which nobody listens."""
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Process:
    """A command of ``millrace`` that runs. ``told`` is the first line that it greeted with."""

    def __init__(self, folder: Path, command: str, *arguments: str) -> None:
        self.log = folder / f"{command}.log"
        began_at = self.log.stat().st_size if self.log.exists() else 0
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603, our own
                [sys.executable, "-m", "gateway", command, *arguments],
                cwd=folder,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.told = self._greeting(began_at)

    def _greeting(self, began_at: int) -> str:
        due_at_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < due_at_s:
            lines = self.log.read_bytes()[began_at:].decode().splitlines(keepends=True)
            for line in lines:
                if line.startswith(("simulator:", "page:")) and line.endswith("\n"):
                    return line.split()[-1].rstrip("/")
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.kill()
        raise TimeoutError(self.log.read_text())

    def stop(self) -> None:
        """Ask it to stop."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Return when it has ended, be it by force."""
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(folder: Path, command: str, *arguments: str) -> Iterator[Process]:
    """Run a command until the end of the block."""
    process = Process(folder, command, *arguments)
    try:
        yield process
    finally:
        process.stop()
        process.wait()


@contextmanager
def running_simulator(folder: Path) -> Iterator[str]:
    """Run a simulator until the end of the block; yields its origin."""
    with running(folder, "simulate", "--port", "0") as process:
        yield process.told.removesuffix("/v1")


def write_config(folder: Path, config: Mapping[str, Any]) -> str:
    """Write a configuration; returns the name of its file."""
    (folder / "gateway.yaml").write_text(yaml.safe_dump(dict(config)))
    return "gateway.yaml"
