"""What is measured, one function for each case; each yields its lines of the table as they are known.

Sides are measured in turn, round after round, on processes that were begun for the case: what one case leaves behind on
the heap is not the next one's. Figures are of one worker with the default chain, unless they say otherwise.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.benchmarks.certificates import make_certificates
from tests.benchmarks.machine import cores
from tests.benchmarks.pace import Pace, Reading, Tool, Upstream
from tests.benchmarks.processes import BenchmarkError, free_port, is_listening, is_ready, started, wait_for
from tests.benchmarks.report import Figure, Round, added, compared, median, medians, ratio
from tests.benchmarks.sides import (
    DIRECT,
    GATEWAY,
    KINDS,
    LITELLM,
    PROMPT,
    Side,
    Sides,
    Way,
    has_nginx,
    has_nginx_tls,
)

PACED: Final = Pace()
SLOW: Final = Pace(interval_s=0.2)
"""A thousand streams of it are alive for twenty seconds, and keep nobody busy."""
SHORT: Final = Pace(tokens=16, interval_s=0.0, ttft_s=0.0)
PROMPTED: Final = replace(SHORT, ttft_s=0.02)
LONG_PROMPT: Final = (PROMPT + " ") * (200_000 // (len(PROMPT) + 1))

STREAMS: Final = (100, 600)
MIDDLE_STREAMS: Final = 300
"""Where a ratio of two ways through the gateway is asked for: enough to be exact, too few to fill a core."""
WORKER_STREAMS: Final = 100
"""For each worker: so few that two, the upstream and the load do not wait for each other on two cores."""
LIVE_STREAMS: Final = 1000
SHORT_CONNECTIONS: Final = 100
PROMPT_CONNECTIONS: Final = 4
"""They keep nobody busy, so that what is seen is the time one prompt takes, and not a queue of them."""
REST_STREAMS: Final = 10
PEER_STREAMS: Final = (10, 100)
"""What the slowest carries with ease, and what is little for the others."""

TRANSIT_LIMIT_MS: Final = 50.0
FULL_CORE: Final = 0.85
"""A gateway that was less busy than this was not what kept more tokens from coming."""
WARM_UPS: Final = 60
WORKER_CORES: Final = 4
"""Two workers, the upstream, and the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long, and how often; what is looked for step by step is looked for less closely in a quick run."""

    rounds: int = 3
    seconds: float = 5.0
    ramp_s: float = 2.0
    starts: int = 5
    search_step: float = 1.3
    search_precision: float = 0.05

    @classmethod
    def quick(cls) -> Effort:
        """Return what shows that everything works, with figures that are only hints."""
        return cls(rounds=1, seconds=2.0, ramp_s=1.0, starts=2, search_step=1.6, search_precision=0.2)


class Bench:
    """Measures, says so, and keeps every reading; what several cases look at is measured once."""

    def __init__(self, sides: Sides, effort: Effort, say: Callable[[str], None], peers: Path | None = None) -> None:
        self.sides = sides
        self.effort = effort
        self.peers = peers
        self.rounds: dict[str, list[Round]] = {}
        self.times: dict[str, list[dict[str, float]]] = {}
        self._say = say
        self._sustained: list[Reading] = []

    @property
    def tool(self) -> Tool:
        """The load."""
        return self.sides.tool

    @contextmanager
    def opened(
        self, pace: Pace, *, has_direct: bool = False, has_peers: bool = False
    ) -> Iterator[tuple[Upstream, list[Side]]]:
        """Start an upstream and the sides in front of it."""
        with ExitStack() as stack:
            upstream = stack.enter_context(self.tool.upstream(pace))
            way = Way(upstream=upstream, port=upstream.port)
            sides = [Side(DIRECT, upstream.port)] if has_direct else []
            if has_nginx():
                sides.append(stack.enter_context(self.sides.nginx(way)))
            sides.append(stack.enter_context(self.sides.gateway(way)))
            if has_peers:
                sides.append(stack.enter_context(self.sides.naive(way)))
                if self.peers is not None:
                    sides.append(stack.enter_context(self.sides.litellm(way, self.peers)))
            for side in sides:
                self.warm(upstream, side)
            yield upstream, sides

    def warm(self, upstream: Upstream, side: Side) -> None:
        """Have a side answer once, which some take seconds for."""
        for _ in range(WARM_UPS):
            request = side.request()
            reading = self.tool.load(upstream, port=side.port, request=request, streams=2, seconds=0.5, ramp_s=0.1)
            if reading.tokens:
                return
        raise BenchmarkError(f"nothing came through {side.name}: {reading.first_fault or 'no answer'}")

    def read(
        self,
        upstream: Upstream,
        side: Side,
        *,
        streams: int,
        seconds: float | None = None,
        ramp_s: float | None = None,
        stream: bool = True,
        prompt: str = PROMPT,
    ) -> Reading:
        """Load one side once."""
        reading = self.tool.load(
            upstream,
            port=side.port,
            request=side.request(stream=stream, prompt=prompt),
            streams=streams,
            seconds=seconds or self.effort.seconds,
            ramp_s=ramp_s or min(self.effort.ramp_s, max(0.5, upstream.pace.stream_s)),
            pid=side.process.pid if side.process else None,
        )
        if side.process is not None:
            side.process.check()
        if not reading.tokens:
            raise BenchmarkError(f"nothing came through {side.name}: {reading.first_fault or 'no answer'}")
        return reading

    def compare(
        self,
        name: str,
        upstream: Upstream,
        sides: Sequence[Side],
        *,
        streams: int,
        stream: bool = True,
        prompt: str = PROMPT,
    ) -> list[Round]:
        """Load all sides in turn, round after round."""
        rounds: list[Round] = []
        for _ in range(self.effort.rounds):
            readings: dict[str, Reading] = {}
            for side in sides:
                reading = self.read(upstream, side, streams=streams, stream=stream, prompt=prompt)
                self.say(name, side.name, reading)
                readings[side.name] = reading
            rounds.append(readings)
        self.rounds[name] = rounds
        return rounds

    def say(self, name: str, side: str, reading: Reading) -> None:
        """Tell what one run has seen."""
        spent = f"{reading.us_per_token:7.1f} µs/token  " if reading.spent_s else " " * 18
        self._say(
            f"{name:<22} {side:<14} {reading.streams:5d} streams  {reading.tokens_per_s:7.0f} tokens/s  {spent}"
            f"ttft {reading.ttft_p50_ms:6.2f} / {reading.ttft_p99_ms:6.2f} ms  "
            f"transit {reading.transit_p50_ms:6.3f} / {reading.transit_p99_ms:7.3f} ms"
            + (f"  {reading.faults} FAULTS: {reading.first_fault}" if reading.faults else "")
        )

    def relayed(self, streams: int) -> list[Round]:
        """Relay streams of the same dialect; with few of them also without anything between."""
        name = f"relay, {streams} streams"
        if name not in self.rounds:
            with self.opened(PACED, has_direct=streams == STREAMS[0]) as (upstream, sides):
                self.compare(name, upstream, sides, streams=streams)
        return self.rounds[name]

    def sustained(self, *, workers: int = 1, first: int = 600) -> Reading:
        """Look for the most streams whose tokens still come in time, and return what was read of them."""
        probes: list[Round] = self.rounds.setdefault(f"sustained, workers {workers}", [])
        best: dict[int, Reading] = {}

        def passes(streams: int) -> bool:
            reading = self.read(upstream, side, streams=streams, seconds=min(3.0, self.effort.seconds))
            self.say("sustained", side.name, reading)
            probes.append({GATEWAY: reading})
            is_in_time = not reading.faults and reading.transit_p99_ms <= TRANSIT_LIMIT_MS
            if is_in_time:
                best[streams] = reading
            return is_in_time

        with self.tool.upstream(PACED) as upstream:
            way = Way(upstream=upstream, port=upstream.port)
            with self.sides.gateway(way, workers=workers) as side:
                effort = self.effort
                found = most(
                    lambda streams: mostly(lambda: passes(streams)),
                    first,
                    step=effort.search_step,
                    precision=effort.search_precision,
                )
        if not found:
            raise BenchmarkError("not even one stream came through in time: is the machine busy with something else?")
        if workers == 1:
            self._sustained.append(best[found])
        return best[found]

    @property
    def sustained_readings(self) -> list[Reading]:
        """What was found by now, if nobody has looked yet after a look."""
        if not self._sustained:
            self.sustained()
        return self._sustained


def mostly(passes: Callable[[], bool]) -> bool:
    """Return what two of three looks come to: of two readings of the same streams one p99 may be twice the other's."""
    first, second = passes(), passes()
    return first if first == second else passes()


def most(
    passes: Callable[[int], bool], first: int, *, step: float = 1.3, precision: float = 0.05, ceiling: int = 6000
) -> int:
    """Return the largest number seen to pass, within a share of the smallest seen to fail; 0 if none passes."""
    low, high, here = 0, 0, first
    while True:
        if passes(here):
            low = here
        else:
            high = here
        if low >= ceiling or high == 1 or (low and high and high - low <= max(1, precision * high)):
            return low
        if not high:
            here = min(ceiling, math.ceil(here * step))
        elif not low:
            here = max(1, int(here / step))
        else:
            here = (low + high) // 2


# --- the cases --------------------------------------------------------------------------------------------------------


def relay(bench: Bench) -> Iterator[Figure]:
    """Streams of 100 tokens, 50 each second, client and provider speaking the same."""
    for streams in STREAMS:
        rounds = bench.relayed(streams)
        spent = compared(f"CPU per token, {streams} streams", "µs", rounds, lambda one: one.us_per_token)
        yield without(DIRECT, spent)
        yield replace(
            compared(f"chunk transit p99, {streams} streams", "ms", rounds, lambda one: one.transit_p99_ms), ratio=None
        )


def ttft(bench: Bench) -> Iterator[Figure]:
    """How much later the first token comes than without anything between."""
    rounds = bench.relayed(STREAMS[0])
    yield added(f"TTFT added, p50, {STREAMS[0]} streams", "ms", rounds, lambda one: one.ttft_p50_ms)
    yield added(f"TTFT added, p99, {STREAMS[0]} streams", "ms", rounds, lambda one: one.ttft_p99_ms)


def dialects(bench: Bench) -> Iterator[Figure]:
    """Anthropic's and Gemini's streams for a client that speaks OpenAI, beside those that need no translation."""
    with bench.tool.upstream(PACED) as upstream:
        way = Way(upstream=upstream, port=upstream.port)
        with bench.sides.gateway(way) as gateway:
            sides = [replace(gateway, name=name, model=name) for name in KINDS]
            rounds = bench.compare("dialects", upstream, sides, streams=MIDDLE_STREAMS)
    for name in ("anthropic", "gemini"):
        yield Figure(
            label=f"CPU per token, {name.title()} to OpenAI, {MIDDLE_STREAMS} streams",
            unit="µs",
            values={GATEWAY: median(rounds, name, lambda one: one.us_per_token)},
            ratio=ratio(rounds, name, "openai", lambda one: one.us_per_token),
            against="same dialect",
        )


def short(bench: Bench) -> Iterator[Figure]:
    """Answers of 16 tokens in one piece, as many as can be had."""
    with bench.opened(SHORT) as (upstream, sides):
        rounds = bench.compare("short", upstream, sides, streams=SHORT_CONNECTIONS, stream=False)
    yield compared("CPU per short answer, not streamed", "µs", rounds, lambda one: one.us_per_answer)


def prompts(bench: Bench) -> Iterator[Figure]:
    """Prompts of 200 kB, answered by short streams."""
    with bench.opened(PROMPTED, has_direct=True) as (upstream, sides):
        rounds = bench.compare("prompts", upstream, sides, streams=PROMPT_CONNECTIONS, prompt=LONG_PROMPT)
    yield without(DIRECT, compared("CPU per answer to 200 kB", "µs", rounds, lambda one: one.us_per_answer))
    yield added("TTFT added, p50, 200 kB", "ms", rounds, lambda one: one.ttft_p50_ms)


def sustained(bench: Bench) -> Iterator[Figure]:
    """How many tokens each second go through one core before their transit's p99 passes 50 ms."""
    found = [bench.sustained()]
    while len(found) < bench.effort.rounds:
        found.append(bench.sustained(first=found[-1].streams))
    yield Figure(
        label=f"sustained on one core, transit p99 under {TRANSIT_LIMIT_MS:.0f} ms",
        unit="tokens/s",
        values={GATEWAY: statistics.median(one.tokens_per_s for one in found)},
        note=idle(found, 1),
    )


def idle(found: Sequence[Reading], workers: int) -> str:
    """Return a note if most of the time the workers were not busy when no more came through: then the load was."""
    some = [one.cores for one in found if one.cores < FULL_CORE * workers]
    return (
        f"not the gateway's limit: it had {max(some):.2f} of {workers}.00 cores" if 2 * len(some) > len(found) else ""
    )


def transit(bench: Bench) -> Iterator[Figure]:
    """From the provider's write to the client's read, at rest and with four fifths of what is sustained."""
    busy = int(0.8 * statistics.median(one.streams for one in bench.sustained_readings))
    for name, streams in (("at rest", REST_STREAMS), ("at 80 % load", busy)):
        with bench.opened(PACED) as (upstream, sides):
            rounds = bench.compare(f"transit {name}", upstream, sides, streams=streams)
        for share in ("p50", "p99"):
            values = medians(rounds, lambda one, share=share: float(getattr(one, f"transit_{share}_ms")))  # type: ignore[misc]
            yield Figure(label=f"chunk transit {share} {name}, {streams} streams", unit="ms", values=values)


def memory(bench: Bench) -> Iterator[Figure]:
    """How much more is resident with a thousand streams alive than with none, after a few have been."""
    rounds: list[Round] = []
    for _ in range(bench.effort.rounds):
        with bench.opened(SLOW) as (upstream, sides):
            readings = {}
            for side in sides:
                bench.read(upstream, side, streams=20, seconds=1.0, ramp_s=0.5)
                readings[side.name] = bench.read(upstream, side, streams=LIVE_STREAMS, seconds=2.0, ramp_s=4.0)
                bench.say("memory", side.name, readings[side.name])
            rounds.append(readings)
    bench.rounds["memory"] = rounds
    yield replace(
        compared(f"memory per live stream, of {LIVE_STREAMS}", "KiB", rounds, lambda one: one.kib_per_stream),
        ratio=None,
    )


def tls(bench: Bench) -> Iterator[Figure]:
    """The same as ``relay`` from an upstream behind TLS, which the gateway and nginx both verify."""
    if not has_nginx_tls():
        yield Figure(label="CPU per token, TLS upstream", note="left out: TLS is put before the upstream by nginx")
        return
    certificates = make_certificates(bench.sides.folder)
    with (
        bench.tool.upstream(PACED) as upstream,
        bench.sides.tls(upstream, certificates) as way,
        bench.sides.nginx(way) as nginx,
        bench.sides.gateway(way) as gateway,
    ):
        rounds = bench.compare("tls", upstream, [nginx, gateway], streams=MIDDLE_STREAMS)
    label = f"CPU per token, TLS upstream, {MIDDLE_STREAMS} streams"
    yield compared(label, "µs", rounds, lambda one: one.us_per_token)


def workers(bench: Bench) -> Iterator[Figure]:
    """What a second worker brings.

    Where there are cores enough it is how much more is sustained. Else the load would be the limit, and it is told how
    much less the busier of two workers has to do for each token of twice as many streams than one alone for its own:
    what it would be if each had its core. With the same streams each would be less busy, and find less to do at once.
    """
    if cores() >= WORKER_CORES:
        found = {count: [bench.sustained(workers=count) for _ in range(bench.effort.rounds)] for count in (1, 2)}
        one, two = (statistics.median(reading.tokens_per_s for reading in found[count]) for count in (1, 2))
        yield Figure(
            label="two workers, sustained",
            unit="tokens/s",
            values={GATEWAY: two},
            ratio=two / one,
            against="one worker",
            note=idle(found[2], 2),
        )
        return
    with bench.tool.upstream(PACED) as upstream, ExitStack() as stack:
        way = Way(upstream=upstream, port=upstream.port)
        sides = []
        for count in (1, 2):
            folder = bench.sides.folder / f"workers-{count}"
            folder.mkdir(exist_ok=True)
            side = stack.enter_context(replace(bench.sides, folder=folder).gateway(way, workers=count))
            sides.append(replace(side, name=f"workers {count}"))
        rounds = bench.rounds["workers"] = []
        for _ in range(bench.effort.rounds):
            readings: dict[str, Reading] = {}
            for count, side in enumerate(sides, 1):
                readings[side.name] = bench.read(upstream, side, streams=count * WORKER_STREAMS)
                bench.say("workers", side.name, readings[side.name])
            rounds.append(readings)
    yield Figure(
        label=f"two workers, the busier one's CPU per token, {2 * WORKER_STREAMS} streams",
        unit="µs",
        values={GATEWAY: median(rounds, "workers 2", lambda one: one.busiest_us_per_token)},
        ratio=ratio(rounds, "workers 1", "workers 2", lambda one: one.busiest_us_per_token),
        against=f"one worker's capacity, with {WORKER_STREAMS}",
        note=f"a calculation: {cores()} cores are not enough for two workers and their load",
    )


def start(bench: Bench) -> Iterator[Figure]:
    """From the command to the port and to readiness; what Python itself needs before the first import is taken off."""
    found = [_start(bench) for _ in range(bench.effort.starts)]
    bench.times["start"] = found
    for name, label in (
        ("import_to_listening_s", "`import gateway` to listening"),
        ("listening_s", "process start to listening"),
        ("ready_s", "process start to ready"),
    ):
        yield Figure(label=label, unit="s", values={GATEWAY: statistics.median(one[name] for one in found)})


def _start(bench: Bench) -> dict[str, float]:
    began_at_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare_s = time.monotonic() - began_at_s
    with bench.tool.upstream(PACED) as upstream:
        port, admin_port = free_port(), free_port()
        way = Way(upstream=upstream, port=upstream.port)
        command, environ = bench.sides.gateway_command(way, port, admin_port)
        began_at_s = time.monotonic()
        with started(GATEWAY, command, bench.sides.folder, environ) as process:
            wait_for(process, lambda: is_listening(port), every_s=0.002)
            listening_s = time.monotonic() - began_at_s
            wait_for(process, lambda: is_ready(f"http://127.0.0.1:{admin_port}/readyz"), every_s=0.002)
            ready_s = time.monotonic() - began_at_s
    return {"import_to_listening_s": listening_s - bare_s, "listening_s": listening_s, "ready_s": ready_s}


def peers(bench: Bench) -> Iterator[Figure]:
    """The same for others: a proxy without any logic on the same library, and LiteLLM's."""
    for streams in PEER_STREAMS:
        with bench.opened(PACED, has_direct=True, has_peers=True) as (upstream, sides):
            rounds = bench.compare(f"peers, {streams} streams", upstream, sides, streams=streams)
        label = f"of {streams} streams"
        yield Figure(
            label=f"tokens relayed {label}", unit="tokens/s", values=medians(rounds, lambda one: one.tokens_per_s)
        )
        yield _beside_litellm(f"CPU per token {label}", rounds, lambda one: one.us_per_token)
        yield added(f"TTFT added, p50, {label}", "ms", rounds, lambda one: one.ttft_p50_ms)
        yield Figure(
            label=f"chunk transit p99 {label}", unit="ms", values=medians(rounds, lambda one: one.transit_p99_ms)
        )
    with bench.opened(SHORT, has_peers=True) as (upstream, sides):
        rounds = bench.compare("peers, short", upstream, sides, streams=PEER_STREAMS[0], stream=False)
    yield _beside_litellm(f"CPU per short answer, {PEER_STREAMS[0]} connections", rounds, lambda one: one.us_per_answer)


def _beside_litellm(label: str, rounds: Sequence[Round], read: Callable[[Reading], float]) -> Figure:
    figure = without(DIRECT, compared(label, "µs", rounds, read))
    times = ratio(rounds, LITELLM, GATEWAY, read)
    return replace(figure, note="" if times is None else f"LiteLLM {times:.0f} times the gateway")


def without(side: str, figure: Figure) -> Figure:
    """Return a figure without what it has no meaning for."""
    return replace(figure, values={name: value for name, value in figure.values.items() if name != side})


CASES: Final[Mapping[str, Callable[[Bench], Iterator[Figure]]]] = {
    case.__name__: case
    for case in (relay, ttft, dialects, short, prompts, sustained, transit, memory, tls, workers, start)
}
"""By the names that ``--only`` knows, in the order of the table. What one needs of another it finds itself."""
