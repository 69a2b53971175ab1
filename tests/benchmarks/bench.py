"""What the gateway adds to a token stream, beside nginx where it is installed: ``make bench``.

A paced upstream writes tokens that carry their number and the moment of their writing; clients read them through the
gateway with its default chain, check that none is lost, doubled or out of order, and take their times. Processor time
is that of the gateway's processes alone, so that busy clients do not distort it. nginx relays the same bytes unread, in
turn with the gateway: the ratio of both carries over to another machine, and holds when this one's speed drifts. Each
figure is the median of the rounds, each ratio the median of the rounds' ratios.

Prints a table, which is Markdown, and writes ``benchmark.json`` with every reading. Ends with code 1 if a token was
lost, doubled or out of order, if an answer was not whole, or if a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from tests.benchmarks.cases import CASES, Bench, Effort, peers
from tests.benchmarks.machine import machine
from tests.benchmarks.pace import build
from tests.benchmarks.processes import BenchmarkError
from tests.benchmarks.report import Figure, faults_of, table
from tests.benchmarks.sides import Sides, has_nginx

ALL: Final = {**CASES, peers.__name__: peers}
SETTINGS: Final = ("MILLRACE_PUBLIC_PATH", "PYTHONMALLOC", "PYTHONOPTIMIZE", "MALLOC_ARENA_MAX")
"""Variables that change what is measured; of the gateway's own there may be secrets among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    cases: Sequence[str]
    effort: Effort
    out: Path
    event_loop: str = "auto"
    peers: Path | None = None


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description="ARGS of make bench and make bench-peers.")
    names = ", ".join(CASES)
    parser.add_argument("--only", metavar="CASES", help=f"some of {names}, with commas between")
    parser.add_argument("--rounds", type=_count, help="how often each side is measured (3)")
    parser.add_argument("--seconds", type=_seconds, help="how long each time (5)")
    parser.add_argument("--quick", action="store_true", help="once, and shortly: to see that it works")
    loops = ("auto", "asyncio", "uvloop")
    parser.add_argument("--event-loop", choices=loops, default="auto", help="the gateway's event loop")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="where to write all readings")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="an environment with LiteLLM to compare with")
    options = parser.parse_args(arguments)
    effort = Effort.quick() if options.quick else Effort()
    asked = {name: getattr(options, name) for name in ("rounds", "seconds") if getattr(options, name) is not None}
    default = [peers.__name__] if options.peers else [*CASES]
    cases = options.only.split(",") if options.only else default
    unknown = [name for name in cases if name not in ALL]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {names}, {peers.__name__}")
    if options.peers and not (options.peers / "bin" / "litellm").is_file():
        parser.error(f"--peers: there is no bin/litellm in {options.peers}")
    return Options(
        cases=cases,
        effort=Effort(**{**asdict(effort), **asked}),
        out=options.out,
        event_loop=options.event_loop,
        peers=options.peers,
    )


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < 3600:
        raise ValueError
    return value


def run(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, print the table, write the file, and return what was written."""
    found: dict[str, Any] = {"machine": machine(), "settings": settings(options)}
    began_at_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = Path(folder)
        sides = Sides(build(place), place, options.event_loop)
        bench = Bench(sides, options.effort, say, options.peers)
        if not has_nginx():
            say("there is no nginx here, so that its column is empty")
        figures = {name: list(measured(ALL[name], bench, say)) for name in options.cases}
    rounds = [one for some in bench.rounds.values() for one in some]
    tokens = sum(reading.tokens for one in rounds for reading in one.values())
    found |= {
        "seconds": round(time.monotonic() - began_at_s, 1),
        "tokens": tokens,
        "faults": faults_of(rounds),
        "figures": {name: [asdict(figure) for figure in some] for name, some in figures.items()},
        "rounds": {
            name: [{side: asdict(reading) for side, reading in one.items()} for one in some]
            for name, some in bench.rounds.items()
        },
        "times": bench.times,
    }
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    say(f"\n{table([figure for some in figures.values() for figure in some])}\n")
    say(told_of(found["machine"], found["settings"]))
    say(f"faults among {tokens} tokens: {found['faults'] or 'none'}")
    say(f"{found['seconds']:.0f} s; all readings are in {options.out}")
    return found


def measured(case: Callable[[Bench], Iterator[Figure]], bench: Bench, say: Callable[[str], None]) -> Iterator[Figure]:
    """Yield the figures of a case; one that cannot be had is a line that says why, and the others go on."""
    try:
        yield from case(bench)
    except BenchmarkError as error:
        say(f"{case.__name__}: {error}")
        yield Figure(label=case.__name__, note=f"failed: {error}")


def settings(options: Options) -> dict[str, Any]:
    """Return with what it was measured."""
    return {
        "cases": list(options.cases),
        **asdict(options.effort),
        "workers": 1,
        "event_loop": options.event_loop,
        "chain": "Observe, Auth, Fallback, Resume",
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def told_of(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return one line about where and how."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"aiohttp {machine['aiohttp']}, uvloop {machine['uvloop']}, nginx {machine['nginx']}, "
        f"revision {machine['revision'] or 'unknown'}, {machine['date']}; "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s, event loop {settings['event_loop']}"
    )


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(128 + number)


def main() -> None:
    """Run, and tell what keeps it from running in one line."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _end)  # so that it ends what it has begun
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
    try:
        found = run(options, lambda line: print(line, flush=True))  # noqa: T201
    except BenchmarkError as error:
        sys.exit(f"make bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    failed = any(one["note"].startswith("failed") for some in found["figures"].values() for one in some)
    sys.exit(1 if found["faults"] or failed else 0)


if __name__ == "__main__":
    main()
