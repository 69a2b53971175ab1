"""Keeps workers running, replaces those that fail, and answers for all of them on the admin port.

It opens the listening sockets, starts a process for each slot, and relays nothing: clients talk with workers, whose
slabs it reads. So whatever becomes of a worker, ``/metrics``, ``/healthz``, ``/readyz`` and ``/admin/streams`` answer.

- A worker that ends is replaced: at once if it had served, later and later if it does not get that far. One whose event
  loop has said nothing for ten seconds is killed first. What it has counted is kept.
- A reload reads the configuration again and starts a new generation of workers beside the old one. Only when all of
  them are ready do they begin to accept, and the old ones leave: they keep to the configuration, and the keys, that
  their streams began with, but no request begins in them any more, so that a key that was revoked is refused at once.
  If anything is wrong with the new configuration nothing changes.
- Told to stop, it is not ready any more; after ``drain_delay_s``, in which load balancers notice, the sockets are
  closed, and the workers have ``drain_timeout_s`` to finish their streams. Told again, nobody waits.

Workers know nothing of each other: breakers, budgets and what was learned of a model are each one's own.

The supervisor's clock is ticks, not seconds: while it was stopped itself, nobody is to blame for not having been heard.
"""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from gateway import __version__
from gateway.admin import Admin
from gateway.config import Config
from gateway.core.errors import ConfigError
from gateway.process.listening import open_sockets
from gateway.process.member import WORKER, Member, Started
from gateway.process.messages import Commission, Ready, Refused
from gateway.telemetry.collector import SlabCollector
from gateway.telemetry.live import KEPT_COUNT
from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab

log = structlog.get_logger()

TICK_S: Final = 1.0
QUIET_TICKS: Final = 4
"""A worker that has said nothing for longer does not make the gateway ready."""
HUNG_TICKS: Final = 10
START_TICKS: Final = 60
"""After so many ticks without a word a worker is given up: one that serves, and one that has not got that far."""

STEADY_S: Final = 10.0
FIRST_WAIT_S: Final = 0.25
MOST_WAIT_S: Final = 30.0
"""A worker that has served for ``STEADY_S`` is replaced at once. If the next one does not, the wait doubles."""

ASK_S: Final = 1.0
"""How long a worker may take to say what is in flight."""

LEAVE_S: Final = 5.0
"""How long a reload waits for the old workers to say that no request begins in them any more."""

LAST_BYTES_S: Final = 12.0
END_S: Final = 5.0
"""How long workers may take to tell clients of an end, and to end themselves behind all that."""

NOT_NEEDED: Final = "not needed any more"
NEEDS_RESTART: Final = ("host", "port", "admin_host", "admin_port", "admin_key")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration; and for workers, which read it themselves, its text and what the command line says beside it."""

    config: Config
    text: str
    flags: Mapping[str, str | int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the gateway is, and what it is like, when the first worker accepts connections."""

    config: Config
    port: int
    admin_port: int
    first: Ready


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a reload: the generation that serves now, and the faults of the one that does not."""

    generation: int
    faults: Sequence[str] = ()
    needs_restart: Sequence[str] = ()


class WorkerFailed(Exception):
    """A worker has ended before it was ready, and has not said why."""


class Supervisor:
    """Runs the workers of a configuration. ``read`` returns it as it is now; it raises ``ConfigError`` for a wrong one.

    ``command`` is the program of a worker; those of ``started`` need not be started any more.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        *,
        command: Sequence[str] = WORKER,
        started: Iterable[Started] = (),
    ) -> None:
        self._read = read
        self._command = command
        self._started = list(started)
        self._settings = self._first_settings = settings
        self._generation = 1
        self._slab = Slab.create()
        self._meters = Meters(self._slab)
        self._collector = SlabCollector(supervisor=self._slab)
        self._places: dict[Member, int] = {}
        self._current: dict[int, Member] = {}
        self._failures: dict[int, int] = {}
        self._waits: dict[int, asyncio.TimerHandle] = {}
        self._recent: Sequence[Mapping[str, Any]] = []
        self._turn = 0
        self._reloading = asyncio.Lock()
        self._has_begun = False
        self._is_stopping = False
        self._is_draining = False
        self._stop_asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._listening: list[socket.socket] = []
        self._admin = Admin(
            self._collector,
            self.streams,
            is_ready=lambda: self.is_ready,
            reload=self.reload,
            key=self._settings.config.server.admin_key,
        )
        self._ticking: asyncio.TimerHandle | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._config_hash = ""

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome, and there is somebody to serve them."""
        serving = (member for member in self._current.values() if member.state == "serving")
        return not self._is_stopping and any(member.silent_ticks <= QUIET_TICKS for member in serving)

    @property
    def members(self) -> list[Member]:
        """All worker processes there are, also those that leave."""
        return list(self._places)

    # --- living

    async def start(self) -> Listening:
        """Open the sockets and begin to serve; returns when the first worker does.

        Raises ``ConfigError`` for an address that cannot be had and for what a worker finds wrong, ``WorkerFailed`` for
        one that does not get that far. ``stop`` is needed all the same.
        """
        server = self._settings.config.server
        self._listening = open_sockets(server.host, server.port, self._settings.config.source)
        admin_port = await self._admin.start(server.admin_host, server.admin_port, self._settings.config.source)
        self._collector.keep_slots(server.workers)
        for slot in range(server.workers):
            self._current[slot] = self._spawn(slot, self._settings, self._generation)
        self._tick()
        first = await self._first_ready()
        self._note_config(first)
        build = self._meters.gauge("millrace_build_info", __version__, platform.python_version(), first.loop)
        build.set(1)
        self._has_begun = True
        for member in self._current.values():
            if member.state == "ready":
                self._begin(member)
            else:
                self._in_background(self._introduce(member))
        port = self._listening[0].getsockname()[1]
        log.info("gateway.listening", host=server.host, port=port, workers=server.workers)
        return Listening(self._settings.config, port, admin_port, first)

    async def stop(self) -> None:
        """Let the workers finish their streams, and end them; returns when there is none left."""
        self._is_stopping = True
        server = self._settings.config.server
        if self._has_begun:
            log.info("gateway.draining", delay_s=server.drain_delay_s, timeout_s=server.drain_timeout_s)
            await self._unless_hurried(server.drain_delay_s)
        self._is_draining = True
        for wait in self._waits.values():
            wait.cancel()
        self._close_listening()
        for member in self.members:
            if member.state in ("starting", "ready"):
                member.kill(NOT_NEEDED)
            elif member.state == "serving":
                member.leave(has_successor=False)
        await self._unless_hurried(server.drain_timeout_s + LAST_BYTES_S + END_S, until=self._all_ended())
        for member in self.members:
            member.end()
        await _finished(self._all_ended(), END_S)
        for member in self.members:
            member.kill("it does not end")
        await self._all_ended()
        await self._close()
        if self._has_begun:
            log.info("gateway.stopped")

    def ask_to_stop(self) -> None:
        """Have it stop; asked again, streams are ended now, and nothing else is waited for either."""
        if self._stop_asked.is_set():
            self._hurried.set()
        self._stop_asked.set()

    async def asked_to_stop(self) -> None:
        """Wait until somebody asks."""
        await self._stop_asked.wait()

    def ask_to_reload(self) -> None:
        """Have it reload, without waiting for what becomes of it: the log tells."""
        self._in_background(self.reload())

    async def reload(self) -> Reloaded:
        """Have new workers serve what the configuration says now, or change nothing if there is a fault in it.

        Who does not wait for it does not break it off.
        """
        return await asyncio.shield(asyncio.ensure_future(self._reload()))

    async def _reload(self) -> Reloaded:
        async with self._reloading:
            if not self._may_reload():
                return self._rejected(["the gateway has not begun yet, or is stopping"])
            try:
                settings = self._read()
                fresh = await self._start_generation(settings)
            except ConfigError as error:
                return self._rejected(error.faults)
            except (OSError, WorkerFailed) as error:
                return self._rejected([str(error)])
            if not self._may_reload():
                for member in fresh:
                    member.kill(NOT_NEEDED)
                return self._rejected(["the gateway is stopping"])
            await self._hand_over(settings, fresh)
            needs_restart = self._needing_restart(settings)
            log.info("config.reloaded", generation=self._generation, needs_restart=needs_restart)
            return Reloaded(self._generation, needs_restart=needs_restart)

    def _may_reload(self) -> bool:
        return self._has_begun and not self._is_stopping

    def _rejected(self, faults: Sequence[str]) -> Reloaded:
        log.error("config.rejected", faults=faults, generation=self._generation)
        self._meters.gauge("millrace_config_last_reload_success").set(0)
        return Reloaded(self._generation, faults=faults)

    async def streams(self) -> Mapping[str, Any]:
        """Return what is in flight in all workers, and what has ended lately.

        Of one that does not answer in time it is what it said last, and it is told that it did not.
        """
        members = sorted(self._places, key=lambda member: (member.generation, member.slot))
        members = [member for member in members if member.state in ("serving", "leaving")]
        answers = await asyncio.gather(*(member.streams(ASK_S) for member in members))
        in_flight: list[Mapping[str, Any]] = []
        recent = list(self._recent)
        workers = []
        for member, answer in zip(members, answers, strict=True):
            in_flight += _of(member, "in_flight")
            recent += _of(member, "recent")
            state = {"pid": member.pid, "state": member.state, "has_answered": answer is not None}
            workers.append({"worker": member.slot, "generation": member.generation, **state})
        return {"in_flight": in_flight, "recent": _latest(recent), "workers": workers}

    # --- a generation of workers

    def _spawn(self, slot: int, settings: Settings, generation: int) -> Member:
        commission = Commission(slot, generation, settings.config.source, settings.text, settings.flags)
        member = Member(
            commission,
            self._listening,
            started=self._started.pop() if self._started else Started.of(self._command),
            on_end=self._note_end,
            on_left=self._note_left,
            on_give_away=self._give_away,
        )
        self._places[member] = self._collector.admit(slot, member.slab)
        return member

    async def _first_ready(self) -> Ready:
        """Return what the first worker says that has something to say."""
        waiting = {member.ready: member for member in self._current.values()}
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return _ready(waiting[next(iter(done))])

    async def _start_generation(self, settings: Settings) -> list[Member]:
        """Return new workers, all ready; raises what is wrong with the first that is not, and then none is left."""
        slots = range(settings.config.server.workers)
        fresh = [self._spawn(slot, settings, self._generation + 1) for slot in slots]
        waiting = {member.ready: member for member in fresh}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for ready in done:
                    _ready(waiting.pop(ready))
        except BaseException:
            for member in fresh:
                member.kill(NOT_NEEDED)
            raise
        return fresh

    async def _hand_over(self, settings: Settings, fresh: Sequence[Member]) -> None:
        """Let new workers accept, and the old ones leave; returns when no request begins in those any more."""
        old = list(self._current.values())
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()
        self._failures.clear()
        self._settings = settings
        self._generation += 1
        self._current = {member.slot: member for member in fresh}
        self._collector.keep_slots(len(fresh))
        for member in fresh:
            self._begin(member)
        for member in old:
            if member.state == "serving":
                self._collector.note_leaving(self._places[member])
                member.leave(has_successor=True)
            else:
                member.kill(NOT_NEEDED)
        self._note_config(_ready(fresh[0]))
        await _finished(asyncio.gather(*(member.left for member in old)), LEAVE_S)

    def _needing_restart(self, settings: Settings) -> list[str]:
        """Return the keys that say something else than when the sockets were opened."""
        first, now = self._first_settings.config.server, settings.config.server
        return [f"server.{key}" for key in NEEDS_RESTART if getattr(first, key) != getattr(now, key)]

    def _note_config(self, ready: Ready) -> None:
        if self._config_hash:
            self._meters.gauge("millrace_config_info", self._config_hash).set(0)
        self._config_hash = ready.config_hash
        self._meters.gauge("millrace_config_info", self._config_hash).set(1)
        self._meters.gauge("millrace_config_generation").set(self._generation)
        self._meters.gauge("millrace_config_last_reload_success").set(1)

    # --- a worker

    async def _introduce(self, member: Member) -> None:
        """Let a worker accept connections when it is ready."""
        said = await member.ready
        if isinstance(said, Refused):
            log.error("worker.refused", worker=member.slot, generation=member.generation, faults=said.faults)
        if isinstance(said, Ready) and self._current.get(member.slot) is member and not self._is_draining:
            self._begin(member)

    def _begin(self, member: Member) -> None:
        self._collector.note_started(self._places[member], member.pid)
        member.begin()
        log.info("worker.started", worker=member.slot, generation=member.generation, pid=member.pid)

    def _note_end(self, member: Member) -> None:
        """A process has ended, and is still there to be looked at."""
        self._collector.dismiss(self._places.pop(member))
        self._recent = _latest([*self._recent, *_of(member, "recent")])
        if self._has_begun:
            self._log_end(member)
        if self._current.get(member.slot) is member:
            del self._current[member.slot]
            self._replace(member.slot, self._wait_s(member))

    def _log_end(self, member: Member) -> None:
        is_expected = member.reason == NOT_NEEDED or (member.state == "leaving" and not member.exit_code)
        write = log.info if is_expected else log.error
        reason = {"reason": member.reason} if member.reason else {}
        write(
            "worker.exited",
            worker=member.slot,
            generation=member.generation,
            pid=member.pid,
            ended_by=member.describe_end(),
            **reason,
        )

    def _note_left(self, member: Member) -> None:
        """A worker accepts nothing more; if nobody has told it to leave, somebody else did, and it is replaced."""
        if self._current.get(member.slot) is member and not self._is_draining:
            del self._current[member.slot]
            self._collector.note_leaving(self._places[member])
            self._replace(member.slot, 0.0)

    def _wait_s(self, member: Member) -> float:
        """Return how long the slot of a worker that has ended is to stay empty."""
        loop = asyncio.get_running_loop()
        has_served = member.began_at_s > 0
        is_steady = has_served and loop.time() - member.began_at_s >= STEADY_S
        failures = 0 if is_steady else self._failures.get(member.slot, 0) + 1
        self._failures[member.slot] = failures
        if failures == 0 or (failures == 1 and has_served):
            return 0.0
        return min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 1))

    def _replace(self, slot: int, wait_s: float) -> None:
        if not self._is_draining:
            self._meters.counter("millrace_worker_restarts_total", str(slot)).inc()
            self._waits[slot] = asyncio.get_running_loop().call_later(wait_s, self._fill, slot)

    def _fill(self, slot: int) -> None:
        self._waits.pop(slot, None)
        if self._is_draining or slot in self._current or slot >= self._settings.config.server.workers:
            return
        try:
            member = self._current[slot] = self._spawn(slot, self._settings, self._generation)
        except OSError as error:
            log.error("worker.cannot_start", worker=slot, reason=str(error))  # noqa: TRY400, its traceback says nothing
            self._waits[slot] = asyncio.get_running_loop().call_later(MOST_WAIT_S, self._fill, slot)
        else:
            self._in_background(self._introduce(member))

    def _give_away(self, connection: int) -> None:
        """Hand a connection to a worker that serves; it ends if there is none."""
        serving = [member for member in self._current.values() if member.state == "serving"]
        if serving:
            self._turn += 1
            serving[self._turn % len(serving)].adopt(connection)

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        for member in self.members:
            member.silent_ticks += 1
            if member.silent_ticks > (START_TICKS if member.state == "starting" else HUNG_TICKS):
                if not member.reason:
                    log.error("worker.hung", worker=member.slot, generation=member.generation, pid=member.pid)
                member.kill("it did not answer")

    # --- the admin port, and the end

    def _close_listening(self) -> None:
        for sock in self._listening:
            sock.close()
        self._listening = []

    async def _close(self) -> None:
        for started in self._started:
            started.dismiss()
        if self._ticking is not None:
            self._ticking.cancel()
        await self._admin.stop()
        if self._work:
            await asyncio.wait(self._work)

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _all_ended(self) -> None:
        while self._places:
            await asyncio.wait([member.ended for member in self.members])

    async def _unless_hurried(self, timeout_s: float, until: Coroutine[None, None, None] | None = None) -> None:
        """Wait for so long at most, and no longer than ``until``."""
        waits = {asyncio.ensure_future(self._hurried.wait())} | ({asyncio.ensure_future(until)} if until else set())
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _ready(member: Member) -> Ready:
    """Return what a worker said when it was ready; raises what it was refused for, or that it has ended."""
    match member.ready.result():
        case Refused(faults):
            raise ConfigError(list(faults))
        case None:
            raise WorkerFailed(f"a worker ended before it was ready: {member.describe_end()}")
        case ready:
            return ready


async def _finished(work: Awaitable[object], timeout_s: float) -> None:
    """Wait for something, for so long at most."""
    with suppress(TimeoutError):
        await asyncio.wait_for(work, timeout_s)


def _of(member: Member, name: str) -> list[Mapping[str, Any]]:
    """Return what a worker has said last of its streams, with whose they are."""
    own = {"worker": member.slot, "generation": member.generation}
    return [{**stream, **own} for stream in member.shown.get(name, ())]


def _latest(streams: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those that have ended last, the last one first."""
    return sorted(streams, key=lambda stream: float(stream["ended_at_s"]), reverse=True)[:KEPT_COUNT]
