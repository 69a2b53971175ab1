"""The load notices what it is there for, and measures what another one measures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.pace import COMPILERS, Pace, Reading, Tool, Upstream, build, compiler
from tests.benchmarks.processes import BenchmarkError, free_port, is_listening, started, wait_for
from tests.benchmarks.sides import KEY, Side, Sides, Way
from tests.eventually import eventually

FAST: Final = Pace(tokens=12, interval_s=0.001, ttft_s=0.001)
OTHER: Final = os.environ.get("MILLRACE_OTHER_LOAD")
TRIES: Final = 20


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """The compiled program."""
    try:
        compiler()
    except BenchmarkError as error:
        pytest.skip(str(error))
    return build(tmp_path_factory.mktemp("pace"))


@pytest.fixture
def upstream(tool: Tool) -> Iterator[Upstream]:
    """A paced provider without faults."""
    with tool.upstream(FAST) as upstream:
        yield upstream


def load(tool: Tool, upstream: Upstream, side: Side | None = None) -> Reading:
    """Load a side, by default the upstream itself, until something was seen: a machine may be busy with other tests."""
    side = side or Side("direct", upstream.port)
    pid = side.process.pid if side.process else upstream.process.pid
    for _ in range(TRIES):
        reading = tool.load(
            upstream, port=side.port, request=side.request(), streams=4, seconds=0.4, ramp_s=0.1, pid=pid
        )
        if reading.faults or (reading.tokens and reading.answers):
            break
    return reading


def test_what_is_whole_is_counted_and_timed(tool: Tool, upstream: Upstream) -> None:
    """Every figure has something in it, and nothing is at fault."""
    reading = load(tool, upstream)
    assert reading.first_fault == ""
    assert reading.faults == 0
    assert reading.tokens >= reading.answers > 0
    assert 1 <= reading.ttft_p50_ms <= reading.ttft_p99_ms
    assert 0 < reading.transit_p50_ms <= reading.transit_p99_ms
    assert reading.spent_s >= reading.busiest_s > 0
    assert reading.resident_after_kib >= reading.resident_before_kib > 0
    assert reading.load_cores > 0
    assert reading.upstream_cores > 0
    assert reading.streams == 4


def test_a_whole_answer_has_the_tokens_too(tool: Tool, upstream: Upstream) -> None:
    """Asked for without a stream."""
    request = Side("direct", upstream.port).request(stream=False)
    reading = tool.load(upstream, port=upstream.port, request=request, streams=2, seconds=0.4, ramp_s=0.1)
    assert reading.faults == 0
    assert reading.answers > 0


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ("lost", "lost"),
        ("doubled", "doubled"),
        ("swapped", "reordered"),
        ("cut", "truncated"),
        ("ended", "truncated"),
        ("status", "refused"),
    ],
)
def test_each_fault_is_noticed_and_called_by_its_name(tool: Tool, fault: str, counter: str) -> None:
    """The provider breaks every stream in the same way, and nothing between mends it."""
    with tool.upstream(FAST, "--fault", fault) as upstream:
        reading = load(tool, upstream)
    assert getattr(reading, counter) > 0
    assert reading.faults == getattr(reading, counter), "it is taken for nothing else"
    assert reading.first_fault


def test_where_nobody_listens_that_is_counted_too(tool: Tool, upstream: Upstream) -> None:
    """And the load ends when it should."""
    reading = load(tool, upstream, Side("nobody", free_port()))
    assert reading.broken > 0
    assert "refused" in reading.first_fault


async def test_tokens_behind_the_first_come_with_the_steps(tool: Tool) -> None:
    """Those of all streams, whenever these have begun; what is late is late for all."""
    step_s, streams = 0.1, 8
    pace = Pace(tokens=5, interval_s=step_s, ttft_s=0.0, step_s=step_s)
    with tool.upstream(pace) as upstream:
        request = Side("direct", upstream.port).request()

        async def later_times_s(number: int) -> list[float]:
            await asyncio.sleep(number / streams * step_s)
            reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
            writer.write(request)
            answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 30)
            writer.close()
            return [int(time) / 1e9 for time in re.findall(rb"@(\d+);", answer)[1:]]

        found = await asyncio.gather(*map(later_times_s, range(streams)))
    late_s = [time_s % step_s for times_s in found for time_s in times_s]
    assert len(late_s) == streams * (pace.tokens - 1)
    assert statistics.median(late_s) < step_s / 4  # of streams that keep their own time it is half a step


def test_an_upstream_that_died_is_told_in_one_line(tool: Tool, upstream: Upstream) -> None:
    """Instead of figures of nothing."""
    upstream.process.popen.kill()
    upstream.process.popen.wait()
    with pytest.raises(BenchmarkError, match="upstream ended with code -9"):
        load(tool, upstream)


def test_the_wires_of_all_dialects_are_understood_by_the_gateway(tool: Tool, tmp_path: Path) -> None:
    """Each token of each comes through once and in order, and the streams are complete."""
    with (
        tool.upstream(FAST) as upstream,
        Sides(tool, tmp_path).gateway(Way(upstream=upstream, port=upstream.port)) as side,
    ):
        for model in ("openai", "anthropic", "gemini"):
            reading = load(tool, upstream, Side(model, side.port, side.process, model))
            assert reading.first_fault == "", model
            assert reading.answers > 0, model
            assert reading.spent_s > 0, model


def test_wrong_options_are_refused_in_one_line(tool: Tool) -> None:
    """With what was expected."""
    for words, told in (
        (["upstream", "--fault", "flood"], "pace: --fault: expected lost, doubled, swapped, cut, ended or status\n"),
        (["load"], "pace: load: expected --port and --request\n"),
        ([], "pace: expected upstream, load or tether; see the head of main.c\n"),
    ):
        done = subprocess.run([tool.path, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, told)


TETHERING: Final = """
import subprocess, sys, time
print(subprocess.Popen([sys.argv[1], "tether", "sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


async def test_what_is_tethered_ends_with_who_started_it(tool: Tool, tmp_path: Path) -> None:
    """Even with one that was killed, and could end nothing itself."""
    with started("parent", [sys.executable, "-c", TETHERING, tool.path], tmp_path) as parent:
        pid = int(await eventually(lambda: parent.log.read_text().strip()))
        command = Path(f"/proc/{pid}/cmdline")
        await eventually(lambda: command.read_bytes().startswith(b"sleep"))  # before that it is not tethered yet
        os.kill(parent.pid, signal.SIGKILL)
        await eventually(lambda: not command.exists() or not command.read_bytes())


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is started."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match=COMPILERS[0]):
        build(tmp_path)


def test_a_reading_with_other_fields_is_refused() -> None:
    """The program and its reader are of one version."""
    with pytest.raises(BenchmarkError, match="seconds"):
        Reading.parse("{}")


@pytest.mark.skipif(not OTHER, reason="MILLRACE_OTHER_LOAD names no source of another load to compare with")
def test_the_figures_agree_with_those_of_another_load(tool: Tool, tmp_path: Path) -> None:
    """Within a tenth; on a machine that does nothing else.

    The other one is a C program with ``upstream PORT`` and ``load PORT key=value ...`` whose tokens look like ours. It
    is compared with its own upstream; only the first token is that of our upstream for both, as providers may differ in
    when they begin.
    """
    path = tmp_path / "other"
    subprocess.run([compiler(), "-O2", "-o", path, str(OTHER)], check=True)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with ExitStack() as stack:
        near = stack.enter_context(tool.upstream(Pace()))
        far = _other_upstream(stack, path, tmp_path)
        sides = []
        for name, upstream in (("near", near), ("far", far)):
            (tmp_path / name).mkdir()
            way = Way(upstream=upstream, port=upstream.port)
            sides.append(stack.enter_context(Sides(tool, tmp_path / name).gateway(way)))
        before, behind = sides
        for _ in range(5):
            one = tool.load(
                near, port=before.port, request=before.request(), streams=100, seconds=5, ramp_s=2, pid=_pid(before)
            )
            other, first = _other_load(path, behind), _other_load(path, before)
            ours.append({"cpu": one.us_per_token, "transit": one.transit_p50_ms, "ttft": one.ttft_p50_ms})
            theirs.append(
                {
                    "cpu": other["gateway"]["cpu_us_per_token"],
                    "transit": other["token_transit_ms"]["p50"],
                    "ttft": first["ttft_ms"]["p50"],
                }
            )
    for name in ("cpu", "transit", "ttft"):
        mine, others = (statistics.median(one[name] for one in some) for some in (ours, theirs))
        assert mine == pytest.approx(others, rel=0.1), (name, ours, theirs)


def _pid(side: Side) -> int:
    assert side.process is not None
    return side.process.pid


def _other_upstream(stack: ExitStack, path: Path, folder: Path) -> Upstream:
    port, options = free_port(), ("tokens=100", "interval_us=20000", "ttft_us=20000")
    process = stack.enter_context(started("other", [path, "upstream", str(port), *options], folder))
    wait_for(process, lambda: is_listening(port))
    return Upstream(port, process, Pace())


def _other_load(path: Path, side: Side) -> dict[str, Any]:
    """With a ramp that has its streams, which begin evenly, come at all moments of the interval, as ours do.

    Where they keep step, or come in a part of it, there is less to wake up for: that saves a sixth of the CPU.
    """
    options = ("streams=100", "seconds=5", "rampms=2020", f"pid={_pid(side)}", f"model={side.model}")
    command: list[str | Path] = [path, "load", str(side.port), *options, f"header=Authorization: Bearer {KEY}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
