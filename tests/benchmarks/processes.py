"""The processes of a benchmark: begun, watched, and ended together with it, whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

START_TIMEOUT_S: Final = 60.0
"""LiteLLM takes a quarter of a minute on a quiet machine."""
END_TIMEOUT_S: Final = 10.0


class BenchmarkError(Exception):
    """What keeps a benchmark from being run, in one line."""


@dataclass(frozen=True, slots=True)
class Process:
    """A program that runs, and where its last words are."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its number."""
        return self.popen.pid

    @property
    def spent_s(self) -> float:
        """The processor time of it alone so far, to the nanosecond where ``/proc`` counts in hundredths of a second.

        This is what ``clock_getcpuclockid`` returns, which Python does not have.
        """
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            self.check()
            raise

    def check(self) -> None:
        """Raise ``BenchmarkError`` if it has ended."""
        code = self.popen.poll()
        if code is not None:
            words = self.log.read_text(errors="replace").strip().splitlines() or ["without a word"]
            raise BenchmarkError(f"{self.name} ended with code {code}: {words[-1]}")


@contextmanager
def started(
    name: str, command: Sequence[str | Path], folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run a program meanwhile.

    In a session of its own: a Ctrl-C is for the benchmark, which then ends what it has begun, in its order.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as words:
        popen = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield Process(name, popen, log)
    finally:
        end(popen)


def end(popen: subprocess.Popen[bytes]) -> None:
    """End a process and all of its session."""
    with suppress(ProcessLookupError):
        popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        popen.wait(END_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(process: Process, is_there: Callable[[], bool], every_s: float = 0.02) -> None:
    """Return when it is there; ``BenchmarkError`` if the process ends before, or takes all too long."""
    give_up_at_s = time.monotonic() + START_TIMEOUT_S
    while not is_there():
        process.check()
        if time.monotonic() > give_up_at_s:
            raise BenchmarkError(f"{process.name} did not answer within {START_TIMEOUT_S:.0f} s")
        time.sleep(every_s)


def is_listening(port: int) -> bool:
    """Return whether a port of this machine takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_ready(url: str) -> bool:
    """Return whether a page of this machine can be had."""
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310, it is http, and ours
            return bool(answer.status == 200)
    except HTTPError as error:
        error.close()
        return False
    except OSError:
        return False
