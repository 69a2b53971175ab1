"""Whether the gateway is still the same after a long day: ``make soak``.

A gateway with two workers and its default chain, under streams of which a share is cut, stalled, told an error, kept
waiting or refused by the provider, or left by its client, while the configuration is loaded anew again and again.
Every few seconds it is looked at what its processes hold. Nothing of that may grow once it is warm, and at the end the
books must balance: what was begun has ended, each end has its line in the log, and no client was told that a part
was all.

A reload replaces the workers, so that the numbers rise and fall with it. The lowest of each window of time, in which
the old ones have gone, stand for that window; a leak raises those too. A worker that is replaced takes its leak with it
before that can be seen: so nothing is loaded in the second half of a long time, which is looked at for itself. That
sees 31 kB for each client that leaves as 35 MB; ``--reload-s 0`` has all of the time for it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from gateway.simulator import Script, Simulator
from tests.eventually import eventually
from tests.exposition import Exposition
from tests.faults.test_workers import PATH, Client, Fleet, running
from tests.raw_client import chat, exchange, request

ROOT: Final = Path(__file__).parents[2]
STREAM_TIMEOUT_S: Final = 90.0
SETTLING_S: Final = 60.0
MEGABYTE: Final = 1_000_000
MINUTES_FOR_BOTH: Final = 10.0
"""It takes so long to see what reloads lose, and what a worker does that stays."""

FAULTS: Final = (
    "cut_after_tokens={at}",
    "cut_after_tokens={at}&cut=rst",
    "cut_after_tokens={at}&cut=clean",
    "cut_in=start&cut=rst",
    "cut_in=finish",
    "stall_after={at}",
    "stall_after=0",
    "error_after={at}",
    "error_first",
    "error_after={at}&error_status=529",
    "first_token_s=1.5",
    "head_s=1",
    "malformed_after={at}",
    "no_end",
    "refuse=rst",
    "status=429&retry_after_s=0.2",
    "status=429",
    "status=503",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked, and how much of it goes wrong.

    With the defaults some 50 requests begin in a second; a fault may meet a call's first attempt or a later one.
    """

    stream_count: int = 200
    duration_s: float = 900.0
    warm_up_s: float = 60.0
    reload_s: float = 30.0
    still_s: float = 0.0
    """How long there are no reloads at the end: what a worker loses of each call is seen only in one that stays."""
    look_s: float = 3.0
    token_count: int = 40
    interval_s: float = 0.1
    faulty: float = 0.2
    left: float = 0.1
    seed: int = 20

    @property
    def window_s(self) -> float:
        """How long a time one lowest number stands for."""
        return self.reload_s or 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What the gateway's processes held at one moment; ``own`` is the supervisor alone, the only one that stays."""

    at_s: float
    processes: int
    threads: int
    descriptors: int
    resident_mb: float
    own_descriptors: int
    own_resident_mb: float
    series: int
    active: int


@dataclass(frozen=True, slots=True)
class Bound:
    """How much the lowest numbers may rise, by their straight line, over the second half of the time.

    The larger of a share of their mean and of a fixed amount: small numbers are more restless than large ones.
    """

    share: float
    amount: float
    why: str


BOUNDS: Final[Mapping[str, Bound]] = {
    "processes": Bound(0.0, 0.9, "one that is left behind stays for good"),
    "threads": Bound(0.0, 3.0, "a pool of the supervisor's grows by a few when many look at once"),
    "descriptors": Bound(0.05, 15.0, "two for each stream, and how many are between two requests is chance"),
    "own_descriptors": Bound(0.0, 4.0, "the supervisor holds a channel and a slab for each worker, and no stream"),
    "resident_mb": Bound(
        0.05, 8.0, "a third of a kilobyte for each of 23 000 streams in seven minutes shows, without reloads"
    ),
    "own_resident_mb": Bound(0.0, 4.0, "256 kB for each reload would be twice as much"),
    "series": Bound(0.05, 0.0, "labels are closed sets, but a rare pair of fault and target may come late"),
}


@dataclass(slots=True)
class Told:
    """What the clients were told, by kind, and whatever may not be, in words."""

    endings: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    reloads: int = 0
    attempts: dict[str, float] = field(default_factory=dict)
    """What the gateway counted meanwhile, by result: whether there were any faults to speak of."""

    @property
    def asked(self) -> int:
        """How many requests were made."""
        return self.endings.total()


@dataclass(slots=True)
class Report:
    """What was seen, and what of it is wrong; the first look and the last are at rest, before all and after all."""

    looks: list[Look]
    told: Told
    grown: list[str]
    broken: list[str]

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        return [*self.told.wrongs, *self.grown, *self.broken]


# --- the provider, a process of its own -------------------------------------------------------------------------------


async def serve_simulator(token_count: int, interval_s: float) -> None:
    """Serve at this pace whatever no queued script says otherwise of."""
    default = Script(first_token_s=0.05, token_count=token_count, interval_s=interval_s)
    async with Simulator(default=default) as simulator:
        print(simulator.origin, flush=True)  # noqa: T201, it is what the parent waits for
        await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def simulating(load: Load) -> AsyncIterator[str]:
    """Run it; yields its origin."""
    call = f"serve_simulator({load.token_count}, {load.interval_s})"
    code = f"import asyncio; from tests.benchmarks.soak import serve_simulator; asyncio.run({call})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    try:
        yield (await asyncio.wait_for(process.stdout.readline(), STREAM_TIMEOUT_S)).decode().strip()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def config_of(simulator: str) -> dict[str, Any]:
    """Return a configuration with the default chain, over two providers that say the same."""
    provider = {
        "kind": "openai-compatible",
        "api_key": "fake",
        "base_url": f"{simulator}/hosts/vllm/v1",
        "ttft_timeout_s": 2,
        "stall_timeout_s": 2,
    }
    return {
        "server": {"port": 0, "admin_port": 0, "workers": 2, "drain_timeout_s": 60},
        "providers": {"one": provider, "two": provider},
        "models": {"chat": {"targets": ["one/mill", "two/mill"]}},
    }


# --- the clients ------------------------------------------------------------------------------------------------------


async def ask(fleet: Fleet, request_id: str, *, leave_after_s: float | None = None) -> Client | None:
    """Ask for one stream and wait for its end, whatever it is, unless the client leaves before: then ``None``."""
    loop = asyncio.get_running_loop()
    data = request(PATH, chat(), connection="close", x_request_id=request_id)
    port = int(fleet.url.rpartition(":")[2])
    transport, client = await loop.create_connection(lambda: Client(data), "127.0.0.1", port)
    try:
        async with asyncio.timeout(STREAM_TIMEOUT_S if leave_after_s is None else leave_after_s):
            await asyncio.shield(client.is_over)
    except TimeoutError:
        if leave_after_s is None:
            raise
        return None
    finally:
        transport.abort()
    return client


def ending_of(client: Client, expected: str) -> tuple[str, str]:
    """Return what a client was told, and what is wrong with that, if anything is."""
    try:
        answer = client.answer
    except (IndexError, ValueError):
        return "nothing", "closed without an answer"
    if answer.status != 200:
        is_told = answer.is_whole and b'{"error":' in answer.body
        return f"http {answer.status}", "" if is_told else "the error is not whole"
    if client.is_complete:
        return "completed", "" if client.said == expected else "told to be whole, and it is not what was said"
    if answer.is_whole or b"[DONE]" in answer.body or b'data: {"error":' not in answer.body:
        return "cut", f"neither an end nor an error: {answer.body[-100:]!r}"
    is_begun = expected.startswith(client.said)
    return "told an error", "" if is_begun else "what came before the error is not what was said"


@dataclass(frozen=True, slots=True)
class Soak:
    """A load on a gateway, and what its clients are told."""

    fleet: Fleet
    simulator: str
    load: Load
    expected: str
    until_s: float
    told: Told = field(default_factory=Told)

    async def visit(self, number: int) -> None:
        """Ask for one stream after another; some of the time a fault is laid out for whoever comes next."""
        load, told = self.load, self.told
        dice = random.Random(load.seed * 10_000 + number)  # noqa: S311, no secret
        turn = 0
        while time.monotonic() < self.until_s:
            turn += 1
            if dice.random() < load.faulty:
                script = dice.choice(FAULTS).format(at=dice.randrange(1, load.token_count))
                await exchange(self.simulator, request("/_sim/scripts", [script]), timeout_s=STREAM_TIMEOUT_S)
            leaves = dice.random() < load.left
            leave_after_s = dice.uniform(0, 1.2) * load.token_count * load.interval_s if leaves else None
            try:
                client = await ask(self.fleet, f"soak-{number}-{turn}", leave_after_s=leave_after_s)
            except (OSError, TimeoutError) as error:
                ending, wrong = "failed", repr(error)
            else:
                ending, wrong = ending_of(client, self.expected) if client is not None else ("left", "")
            told.endings[ending] += 1
            if wrong:
                told.wrongs.append(f"soak-{number}-{turn}: {wrong}")

    async def reload(self) -> None:
        """Load the configuration anew, again and again."""
        until_s = self.until_s - self.load.still_s
        while self.load.reload_s and time.monotonic() + self.load.reload_s < until_s:
            await asyncio.sleep(self.load.reload_s)
            done = await self.fleet.reload()
            self.told.reloads += 1
            if done.status != 200:
                self.told.wrongs.append(f"reload {self.told.reloads}: {done.body!r}")

    async def look(self, began_at_s: float, *, shows: bool) -> list[Look]:
        """Look every few seconds at what the gateway holds."""
        looks: list[Look] = []
        while time.monotonic() < self.until_s:
            looks.append(look_at(self.fleet.process.pid, await self.fleet.scrape(), time.monotonic() - began_at_s))
            if shows:
                show(looks[-1])
            await asyncio.sleep(self.load.look_s)
        return looks


# --- what is looked at ------------------------------------------------------------------------------------------------


def processes_of(pid: int) -> list[int]:
    """Return a process and all that came from it; one that has ended and was not waited for is still there."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat_of(int(entry.name))[1])
    found = [pid]
    for parent in found:
        found.extend(child for child, its in parents.items() if its == parent)
    return found


def _stat_of(pid: int) -> list[str]:
    """Return what the kernel tells of a process, behind its name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def held_by(pid: int) -> tuple[int, int, float]:
    """Return how many threads and descriptors a process has, and its resident memory in MB; nothing if it is gone."""
    with suppress(OSError):
        stat = _stat_of(pid)
        descriptors = sum(1 for _ in os.scandir(f"/proc/{pid}/fd"))
        return int(stat[17]), descriptors, int(stat[21]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
    return 0, 0, 0.0


def look_at(pid: int, found: Exposition, at_s: float) -> Look:
    """Look at the gateway whose supervisor this is."""
    pids = processes_of(pid)
    held = [held_by(one) for one in pids]
    return Look(
        at_s=round(at_s, 1),
        processes=len(pids),
        threads=sum(threads for threads, _, _ in held),
        descriptors=sum(descriptors for _, descriptors, _ in held),
        resident_mb=round(sum(resident_mb for _, _, resident_mb in held), 1),
        own_descriptors=held[0][1],
        own_resident_mb=round(held[0][2], 1),
        series=len(found.series),
        active=int(found.total("millrace_streams_active")),
    )


def growth(looks: Sequence[Look], name: str, window_s: float) -> tuple[float, float]:
    """Return by how much a number rose over the second half of the looks, and its mean, by its lowest in each window.

    Raises ``ValueError`` where there are fewer than two windows to draw a line through.
    """
    half_s = (looks[0].at_s + looks[-1].at_s) / 2
    lowest: dict[int, float] = {}
    for look in looks:
        if look.at_s >= half_s:
            window, value = int((look.at_s - half_s) / window_s), float(getattr(look, name))
            lowest[window] = min(value, lowest.get(window, value))
    line = statistics.linear_regression(list(lowest), list(lowest.values()))
    return line.slope * (max(lowest) - min(lowest)), statistics.fmean(lowest.values())


def grown(looks: Sequence[Look], load: Load, *, slack: float = 1.0) -> list[str]:
    """Return what has grown beyond its bound, or so many times that, in words."""
    warm = [look for look in looks if look.at_s >= load.warm_up_s]
    found = []
    for name, bound in BOUNDS.items():
        risen, mean = growth(warm, name, load.window_s)
        most = slack * max(bound.share * mean, bound.amount)
        if risen > most:
            found.append(f"{name} grew by {risen:.1f} from about {mean:.1f}, more than {most:.1f}: {bound.why}")
    return found


def parts(looks: Sequence[Look], load: Load) -> list[Sequence[Look]]:
    """Return the looks with reloads and those without, each to be asked for itself whether anything has grown."""
    if not load.still_s:
        return [looks]
    still_at_s = load.duration_s - load.still_s
    return [
        [look for look in looks if look.at_s < still_at_s],
        [look for look in looks if look.at_s >= still_at_s],
    ]


def broken_laws(found: Exposition, events: Sequence[Mapping[str, Any]], told: Told) -> list[str]:
    """Return the laws of conservation that do not hold, in words; the first request was asked before the others."""
    finished = [event for event in events if event.get("event") == "stream.finished"]
    settled = sum(event.get("event") == "attempt.settled" for event in events)
    outcomes = found.by("outcome", "millrace_requests_total")
    began = int(found.total("millrace_requests_started_total"))
    asked, left = 1 + told.asked, told.endings["left"] + told.endings["failed"]
    pairs = {
        "begun = ended + active": (began, sum(outcomes.values()) + found.total("millrace_streams_active")),
        "active = 0": (found.total("millrace_streams_active"), 0),
        "lines of each end = ends counted": (Counter(event["outcome"] for event in finished), outcomes),
        "attempts settled = attempts counted": (settled, found.total("millrace_upstream_attempts_total")),
        "attempts settled = attempts of the calls": (settled, sum(event["attempts"] for event in finished)),
        "ends completed = clients that had all, or had left": (
            min(max(int(outcomes.get("completed", 0)), 1 + told.endings["completed"]), asked),
            int(outcomes.get("completed", 0)),
        ),
        "begun = asked, but for clients that left": (min(max(began, asked - left), asked), began),
        "lines dropped = 0": (found.total("millrace_log_records_dropped_total"), 0),
        "workers replaced = 0": (found.total("millrace_worker_restarts_total"), 0),
        "loaded = 1 + reloads": (found.total("millrace_config_generation"), 1 + told.reloads),
    }
    return [f"{law}: {one} and {other}" for law, (one, other) in pairs.items() if one != other]


# --- the whole --------------------------------------------------------------------------------------------------------


async def soak(load: Load, folder: Path, *, slack: float = 1.0, shows: bool = False) -> Report:
    """Run it all; a bound on growth may be exceeded by ``slack`` times where the machine is busy and the time short."""
    async with simulating(load) as simulator, running(folder, config_of(simulator)) as fleet:
        began_at_s = time.monotonic()
        first = await ask(fleet, "soak-first")
        assert first is not None
        assert first.is_complete
        at_rest = look_at(fleet.process.pid, await fleet.scrape(), 0.0)
        run = Soak(fleet, simulator, load, first.said, began_at_s + load.duration_s)
        if shows:
            print(" ".join(f"{one.name:>15}" for one in fields(Look)))  # noqa: T201
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(run.look(began_at_s, shows=shows))
            tasks.create_task(run.reload())
            for number in range(load.stream_count):
                tasks.create_task(run.visit(number))
        looks = looking.result()
        broken = await settled(run, at_rest)
        last = look_at(fleet.process.pid, await fleet.scrape(), time.monotonic() - began_at_s)
        if shows:
            show(last)
    found = [one for part in parts(looks, load) for one in grown(part, load, slack=slack)]
    return Report([at_rest, *looks, last], run.told, found, broken)


async def settled(run: Soak, at_rest: Look) -> list[str]:
    """Wait until the books balance and the processes are those of the beginning; return what is not so in the end."""
    broken: list[str] = []

    async def look() -> bool:
        found = await run.fleet.scrape()
        run.told.attempts.update(found.by("result", "millrace_upstream_attempts_total"))
        broken[:] = broken_laws(found, run.fleet.events, run.told)
        now = look_at(run.fleet.process.pid, found, 0.0)
        for name, allowed in {"processes": 0, "own_descriptors": 2}.items():
            before, after = getattr(at_rest, name), getattr(now, name)
            if after > before + allowed:
                broken.append(f"{name} at rest: {before} before, {after} after")
        return not broken

    with suppress(TimeoutError):
        await eventually(look, timeout_s=SETTLING_S, every_s=1.0)
    return broken


def show(look: Look) -> None:
    """Print a line of the table."""
    print(" ".join(f"{getattr(look, one.name):>15}" for one in fields(look)), flush=True)  # noqa: T201


def main() -> int:
    """Soak, print what was seen, and return 1 if any of it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="how long, the warm-up included")
    parser.add_argument("--streams", type=int, default=200, help="how many at once")
    parser.add_argument("--reload-s", type=float, default=30.0, help="seconds from reload to reload; 0 for none")
    options = parser.parse_args()
    duration_s = 60 * options.minutes
    load = Load(
        stream_count=options.streams,
        duration_s=duration_s,
        warm_up_s=min(60.0, duration_s / 5),
        reload_s=options.reload_s,
        still_s=duration_s / 2 if options.reload_s and options.minutes >= MINUTES_FOR_BOTH else 0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(soak(load, Path(folder), shows=True))
    warm = [look for look in report.looks[1:-1] if look.at_s >= load.warm_up_s]
    for name, bound in BOUNDS.items():
        risen, mean = growth(warm, name, load.window_s)
        most = max(bound.share * mean, bound.amount)
        print(f"{name:>15}: {risen:+8.1f} over the second half, about {mean:.1f}; at most {most:+.1f}: {bound.why}")  # noqa: T201
    print(f"{report.told.asked} asked, {report.told.reloads} reloads: {dict(report.told.endings.most_common())}")  # noqa: T201
    print(f"attempts: {report.told.attempts}")  # noqa: T201
    for fault in report.faults:
        print(f"wrong: {fault}")  # noqa: T201
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
