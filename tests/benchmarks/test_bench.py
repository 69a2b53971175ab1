"""The command, and one short run of it from the beginning to the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.bench import measured, parse, told_of
from tests.benchmarks.cases import CASES, Bench
from tests.benchmarks.pace import compiler
from tests.benchmarks.processes import BenchmarkError
from tests.benchmarks.report import Figure
from tests.benchmarks.sides import ROOT, has_nginx
from tests.eventually import eventually

TIMEOUT_S: Final = 120.0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a run, in which all that it starts names this folder."""
    try:
        compiler()
    except BenchmarkError as error:
        pytest.skip(str(error))
    return {**os.environ, "TMPDIR": str(tmp_path)}


def left_behind(folder: Path) -> list[str]:
    """Return the commands of all processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


async def begun(environ: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    """Start the benchmark."""
    command = [sys.executable, "-m", "tests.benchmarks.bench", *words]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe)


async def test_a_short_run_loses_nothing_and_has_figures(tmp_path: Path, environ: dict[str, str]) -> None:
    """A table on the terminal, all readings in the file, and nothing left running."""
    out = tmp_path / "found.json"
    process = await begun(environ, "--only", "prompts", "--rounds", "1", "--seconds", "0.5", "--out", str(out))
    async with asyncio.timeout(TIMEOUT_S):
        told, errors = (one.decode() for one in await process.communicate())
    assert process.returncode == 0, told + errors
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["faults"] == ""
    assert "faults among" in told
    first, second = found["figures"]["prompts"]
    assert first["values"]["gateway"] > 0
    assert second["values"].keys() == first["values"].keys() == {"gateway", *(["nginx"] if has_nginx() else [])}
    assert (first["ratio"] is not None) == has_nginx()
    assert f"| {first['label']}" in told
    assert len(found["rounds"]["prompts"]) == 1
    assert found["rounds"]["prompts"][0]["gateway"]["tokens"] > 0
    assert found["machine"]["cores"] >= 1
    assert found["settings"]["rounds"] == 1
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_all_that_was_started_ends_with_it(
    tmp_path: Path, environ: dict[str, str], number: signal.Signals, code: int
) -> None:
    """Whoever asks."""
    process = await begun(environ, "--only", "prompts", "--seconds", "600", "--out", str(tmp_path / "found.json"))
    try:
        await eventually(lambda: any(" load " in one for one in left_behind(tmp_path)), timeout_s=60, every_s=0.1)
        process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_S):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "found.json").exists()


def test_the_defaults_are_all_cases_and_with_peers_only_those() -> None:
    """The order is that of the table."""
    assert list(parse([]).cases) == list(CASES)
    assert parse(["--only", "short,relay", "--rounds", "7"]).cases == ["short", "relay"]
    assert parse(["--rounds", "7", "--seconds", "1.5"]).effort.rounds == 7
    assert parse(["--quick"]).effort.rounds == 1
    assert parse(["--quick", "--seconds", "9"]).effort.seconds == 9


def test_peers_need_an_environment(tmp_path: Path) -> None:
    """Then their case is the only one, unless others are named."""
    with pytest.raises(SystemExit):
        parse(["--peers", str(tmp_path)])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "litellm").touch()
    assert parse(["--peers", str(tmp_path)]).cases == ["peers"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "relay,speed"], "--only: 'speed' is none of relay,"),
        (["--rounds", "0"], "--rounds: invalid"),
        (["--seconds", "-1"], "--seconds: invalid"),
        (["--event-loop", "trio"], "--event-loop: invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the word at fault."""
    with pytest.raises(SystemExit) as raised:
        parse(words)
    assert raised.value.code == 2
    assert told in capsys.readouterr().err


def test_a_case_that_fails_is_a_line_of_the_table() -> None:
    """What it had found before stays, and the others go on."""

    def broken(_: Bench) -> Iterator[Figure]:
        yield Figure(label="first")
        raise BenchmarkError("nginx ended with code 1")

    said: list[str] = []
    found = list(measured(broken, None, said.append))  # type: ignore[arg-type]  # it is not looked at
    assert [(one.label, one.note) for one in found] == [("first", ""), ("broken", "failed: nginx ended with code 1")]
    assert said == ["broken: nginx ended with code 1"]


def test_where_and_how_is_told_in_one_line() -> None:
    """As it stands under the table in a document."""
    names = ("processor", "system", "python", "aiohttp", "uvloop", "nginx", "date")
    line = told_of(
        {"cores": 2, "revision": "", **dict.fromkeys(names, "x")}, {"rounds": 3, "seconds": 5.0, "event_loop": "auto"}
    )
    assert "2 cores" in line
    assert "revision unknown" in line
    assert "3 rounds of 5 s" in line
    assert "\n" not in line
