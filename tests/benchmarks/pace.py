"""The load of the benchmarks: the program in ``pacing/`` is compiled and run, and what it saw is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from tests.benchmarks.processes import BenchmarkError, Process, started, wait_for

SOURCES: Final = sorted(Path(__file__).with_name("pacing").glob("*.c"))
COMPILERS: Final = ("cc", "gcc", "clang")
SLACK_S: Final = 30.0
"""How much longer than it should a load may take before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the upstream answers: so many tokens, the first after ``ttft_s``, each next one ``interval_s`` later.

    They come together with those of all streams that are due in the same ``step_s``, as engines make them. What a token
    costs depends on how many come at once, up to a fifth: this is the step of other loads, whose figures ours are to be
    held against.
    """

    tokens: int = 100
    interval_s: float = 0.02
    ttft_s: float = 0.02
    step_s: float = 0.001

    @property
    def stream_s(self) -> float:
        """How long an answer takes."""
        return self.ttft_s + self.tokens * self.interval_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one run of the load saw; ``spent_s`` is the processor time of the side that was measured."""

    seconds: float
    tokens: int
    answers: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    transit_p50_ms: float
    transit_p99_ms: float
    lost: int
    doubled: int
    reordered: int
    truncated: int
    refused: int
    broken: int
    first_fault: str
    spent_s: float
    busiest_s: float
    resident_before_kib: int
    resident_after_kib: int
    load_cores: float
    upstream_cores: float = 0.0
    streams: int = 0

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read what the program printed."""
        found: dict[str, Any] = json.loads(line)
        needed = {field.name for field in fields(cls)} - {"upstream_cores", "streams"}
        if found.keys() != needed:
            raise BenchmarkError(f"pace told other things than were expected: {sorted(found.keys() ^ needed)}")
        return cls(**found)

    @property
    def faults(self) -> int:
        """How many tokens or answers were not as they should be."""
        return self.lost + self.doubled + self.reordered + self.truncated + self.refused + self.broken

    @property
    def tokens_per_s(self) -> float:
        """How many tokens came through."""
        return self.tokens / self.seconds

    @property
    def answers_per_s(self) -> float:
        """How many answers came to their end."""
        return self.answers / self.seconds

    @property
    def us_per_token(self) -> float:
        """Microseconds of processor time for each token; 0 if there was none."""
        return 1e6 * self.spent_s / self.tokens if self.tokens else 0.0

    @property
    def us_per_answer(self) -> float:
        """Microseconds of processor time for each answer; 0 if there was none."""
        return 1e6 * self.spent_s / self.answers if self.answers else 0.0

    @property
    def busiest_us_per_token(self) -> float:
        """The same of the one process that did most of the work."""
        return 1e6 * self.busiest_s / self.tokens if self.tokens else 0.0

    @property
    def cores(self) -> float:
        """How many cores the measured side kept busy."""
        return self.spent_s / self.seconds

    @property
    def kib_per_stream(self) -> float:
        """How much more memory there was at the end than before, for each stream."""
        return (self.resident_after_kib - self.resident_before_kib) / self.streams if self.streams else 0.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """The paced provider, listening on a port."""

    port: int
    process: Process
    pace: Pace


@dataclass(frozen=True, slots=True)
class Tool:
    """The compiled program."""

    path: Path

    @contextmanager
    def upstream(self, pace: Pace, *options: str) -> Iterator[Upstream]:
        """Run an upstream meanwhile."""
        command: list[str | Path] = [
            *(self.path, "upstream", "--tokens", str(pace.tokens)),
            *("--interval-us", f"{pace.interval_s * 1e6:.0f}", "--ttft-us", f"{pace.ttft_s * 1e6:.0f}"),
            *("--step-us", f"{pace.step_s * 1e6:.0f}", *options),
        ]
        folder = Path(tempfile.mkdtemp(dir=self.path.parent))
        with started("upstream", command, folder) as process:
            wait_for(process, lambda: process.log.read_text().endswith("\n"))
            yield Upstream(int(process.log.read_text()), process, pace)

    def tethered(self, command: Sequence[str | Path]) -> list[str | Path]:
        """Return the command of a process that ends with this one, even if this one is killed."""
        return [self.path, "tether", *command]

    def load(
        self,
        upstream: Upstream,
        *,
        port: int,
        request: bytes,
        streams: int,
        seconds: float,
        ramp_s: float,
        pid: int | None = None,
    ) -> Reading:
        """Load a port and return what was seen of it, and of the process ``pid`` with its descendants."""
        file = self.path.parent / "request"
        file.write_bytes(request)
        command = [
            *(self.path, "load", "--port", str(port), "--request", file, "--streams", str(streams)),
            *("--tokens", str(upstream.pace.tokens), "--seconds", str(seconds), "--ramp-ms", f"{ramp_s * 1000:.0f}"),
            *(("--pid", str(pid)) if pid else ()),
        ]
        before_s = upstream.process.spent_s
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=ramp_s + seconds + SLACK_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the load did not end within {ramp_s + seconds + SLACK_S:.0f} s") from None
        if done.returncode:
            raise BenchmarkError(f"the load ended with code {done.returncode}: {done.stderr.strip()}")
        upstream.process.check()
        cores = (upstream.process.spent_s - before_s) / (ramp_s + seconds)
        return replace(Reading.parse(done.stdout), upstream_cores=round(cores, 4), streams=streams)


def compiler() -> str:
    """Return the C compiler of this machine; ``BenchmarkError`` if there is none."""
    for name in COMPILERS:
        if shutil.which(name):
            return name
    raise BenchmarkError("the load of the benchmark is written in C, and there is no cc, gcc or clang here")


def build(folder: Path) -> Tool:
    """Compile the program into a folder."""
    path = folder / "pace"
    command = [compiler(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(path), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the load cannot be compiled: {next(iter(done.stderr.splitlines()), '')}")
    return Tool(path)
