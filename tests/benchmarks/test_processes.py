"""Nothing is left running, and an end that was not meant to be is told."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.processes import (
    BenchmarkError,
    free_port,
    is_listening,
    is_ready,
    started,
    wait_for,
)
from tests.eventually import eventually


def test_an_early_end_is_told_with_the_last_words(tmp_path: Path) -> None:
    """Also while somebody waits for it to be ready."""
    code = "import sys; print('first'); sys.exit('the port is taken')"
    with (
        started("side", [sys.executable, "-c", code], tmp_path) as process,
        pytest.raises(BenchmarkError, match="side ended with code 1: the port is taken"),
    ):
        wait_for(process, lambda: False)


async def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    """Even when it leaves its children behind."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    with started("side", [sys.executable, "-c", code], tmp_path) as process:
        process.check()
        child = int(await eventually(lambda: process.log.read_text().strip()))
    assert process.popen.poll() is not None
    command = Path(f"/proc/{child}/cmdline")
    await eventually(lambda: not command.exists() or not command.read_bytes())


async def test_the_processor_time_is_that_of_the_process(tmp_path: Path) -> None:
    """It rises while that works."""
    with started("side", [sys.executable, "-c", "while True: pass"], tmp_path) as process:
        before_s = process.spent_s
        await eventually(lambda: process.spent_s > before_s + 0.05)


async def test_a_port_and_a_page_are_there_when_they_are(tmp_path: Path) -> None:
    """And not before; a page that is not there is not ready."""
    port = free_port()
    assert not is_listening(port)
    assert not is_ready(f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with started("side", command, tmp_path) as process:
        wait_for(process, lambda: is_listening(port))
        assert is_ready(f"http://127.0.0.1:{port}/")
        assert not is_ready(f"http://127.0.0.1:{port}/nothing")


def test_who_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr("tests.benchmarks.processes.START_TIMEOUT_S", 0.1)
    began_at_s = time.monotonic()
    with (
        started("side", ["sleep", "600"], tmp_path) as process,
        pytest.raises(BenchmarkError, match="side did not answer"),
    ):
        wait_for(process, lambda: False)
    assert time.monotonic() - began_at_s < 60
