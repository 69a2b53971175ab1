"""A gateway with one model for each row of the table, over a simulator that breaks as the row says.

Every row has targets of its own, which nothing but their name sets apart: ``mill?r12`` is the model ``mill`` to the
provider's wire, and the script called ``r12`` to the simulator. So rows share a gateway and a simulator and run side by
side, and what the gateway learns of one target says nothing of another.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

import pytest
import yaml
from aiohttp import web

from gateway.app import Gateway
from gateway.config import parse_config
from gateway.core.call import Call
from gateway.core.errors import UpstreamUnreachable
from gateway.pipeline import Next, Send
from gateway.simulator import Record, Script, Simulator, parse_script
from gateway.simulator.performance import Performance
from gateway.simulator.plan import End, Step
from gateway.simulator.plan import Send as Write
from gateway.simulator.wires.base import HttpAnswer
from tests.conftest import MODELS, pointed_at
from tests.faults.matrix import JSON_TEXT, TEXT, Break, Deed, Moment, Row

GOOD: Final = Script(first_token_s=0.001, interval_s=0)
"""How an answer goes that does not break. Of every three rows one gets it token by token, the others in few reads."""

SLOWER_S: Final = 0.0002

NEXT_EXACT: Final = ("vllm", "mistral", "anthropic", "google")
NEXT_ANCHORED: Final = ("openai", "meta", "claude")
"""The second targets, in the order in which rows get them."""

HASTY: Final = {"ttft_timeout_s": 2.5, "stall_timeout_s": 2.5}
DEADLINE: Final = {"total_timeout_s": 12.0}
"""The only limit of an answer in one piece, where it is asked for so, or while nothing of it has come."""
_PLACE: Final = "127.0.0.1"


class BreakingSimulator(Simulator):
    """A simulator whose scripts have names, and that also breaks in ways which no script says.

    ``deeds`` are used up one per request; the last one stays.
    """

    def __init__(self) -> None:
        super().__init__(default=GOOD)
        self.deeds: dict[str, list[tuple[Script, Break | None]]] = {}
        self._breaks: dict[int, Break] = {}

    def plan(self, name: str, *deeds: Deed, base: Script) -> None:
        """Say what the target called ``name`` does to its requests."""
        self.deeds[name] = [
            (base, deed) if isinstance(deed, Break) else (parse_script(deed, base), None) for deed in deeds
        ]

    async def listen(self, listening: socket.socket) -> None:
        """Serve on one more socket."""
        assert self._runner is not None
        await web.SockSite(self._runner, listening).start()

    def asked(self, name: str) -> list[Record]:
        """Return what was asked of a target."""
        return [record for record in self.requests if record.script == name]

    def _script_for(self, record: Record) -> Script:
        deeds = self.deeds[record.script]
        script, damage = deeds.pop(0) if len(deeds) > 1 else deeds[0]
        if damage is not None:
            self._breaks[record.serial] = damage
        return script

    async def _accompanied(
        self, request: web.Request, record: Record, script: Script, answer: Callable[[], HttpAnswer | Performance]
    ) -> web.StreamResponse:
        damage = self._breaks.pop(record.serial, None)

        def broken() -> HttpAnswer | Performance:
            played = answer()
            if damage is None or isinstance(played, HttpAnswer):
                return played
            return replace(played, steps=_broken(played.steps, damage), content_length=None)

        return await super()._accompanied(request, record, script, broken)


def _broken(steps: Iterator[Step], damage: Break) -> Iterator[Step]:
    """Play ``steps`` up to the event that is to be damaged."""
    said = 0
    is_done = False
    for step in steps:
        if not isinstance(step, Write) or is_done:
            yield step
            continue
        is_there = damage.token_count is None or said + step.token_count > damage.token_count
        said += step.token_count
        if is_there and (damage.how != "character" or not step.payload.isascii()):
            is_done = True
            yield replace(step, payload=_damaged(step.payload, damage))
            if damage.how != "malformed":
                yield End(step.due_s, "fin", "cut")
                return
        else:
            yield step
    assert is_done, "the answer has no such place"


def _damaged(payload: bytes, damage: Break) -> bytes:
    if damage.how == "character":
        inside = next(place for place, byte in enumerate(payload) if byte >= 0xC0) + 1
        return payload[:inside]
    half = payload[: len(payload) // 2]
    return half if damage.how == "half" else half.rstrip() + payload[len(payload.rstrip()) :]


@dataclass(frozen=True, slots=True)
class Doorman:
    """A middleware at the end of the chain: when a provider cannot be reached, its door is opened for the next time."""

    doors: ClassVar[dict[str, asyncio.Event]] = {}

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Make the attempt; one that finds a closed door opens it."""
        try:
            await call_next(call, send)
        except UpstreamUnreachable:
            if call.target is not None and (door := self.doors.get(call.target.provider)) is not None:
                door.set()
                await asyncio.sleep(0.01)  # until somebody listens there
            raise


@dataclass(slots=True)
class Bench:
    """The gateway, the simulator behind it, and the rows by the names of their models."""

    names: dict[Row, str] = field(default_factory=dict)
    simulator: BreakingSimulator = field(default_factory=BreakingSimulator)
    url: str = ""
    is_in_one_piece: bool = False
    """Whether answers will be asked for so."""
    _exit: AsyncExitStack = field(default_factory=AsyncExitStack)
    _providers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _models: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lookups: dict[str, list[bool]] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def over(
        cls, rows: Iterable[Row], patch: pytest.MonkeyPatch, *, is_in_one_piece: bool
    ) -> AsyncIterator[Self]:
        """Run a gateway over a simulator for these rows."""
        bench = cls(is_in_one_piece=is_in_one_piece)
        async with bench._exit:
            await bench._exit.enter_async_context(bench.simulator)
            for number, row in enumerate(rows):
                bench.names[row] = f"r{number}"
                bench._add(row, f"r{number}")
            bench._patch_names(patch)
            gateway = Gateway(parse_config(yaml.safe_dump(bench._config()), "faults.yaml", {}))
            bench._exit.push_async_callback(gateway.stop)
            await gateway.start()
            bench.url = f"http://{_PLACE}:{gateway.port}"
            yield bench

    def _config(self) -> dict[str, Any]:
        chain = ["observe.Observe", "auth.Auth", "fallback.Fallback", "resume.Resume"]
        uses = [*(f"middleware.{name}" for name in chain), "tests.faults.bench.Doorman"]
        models, middleware = self._models, [{"use": use} for use in uses]
        return pointed_at(self.simulator, {"providers": self._providers, "models": models, "middleware": middleware})

    def first_target(self, row: Row) -> str:
        """Return the name of the row's first target."""
        return str(self._models[self.names[row]]["targets"][0])

    def recovering_target(self, row: Row) -> str:
        """Return the name of the target that is to bring the answer home."""
        return str(self._models[self.names[row]]["targets"][0 if row.recovery == "same" else -1])

    def recovery_ways(self, row: Row) -> list[str]:
        """Return in which ways the recovering target was asked, as the simulator understood it."""
        name = self.names[row]
        return [record.way for record in self.simulator.asked(name if row.recovery == "same" else f"{name}n")]

    def _add(self, row: Row, name: str) -> None:
        fault, base = row.fault, _base(row.moment, int(name[1:]))
        deed = fault.deeds[row.moment]
        provider = self._provider_of(row, name, deed)
        targets = [f"{provider}/{MODELS.get(row.wire, 'mill')}?{name}"]
        if deed in ("refused", "dns"):
            self.simulator.plan(name, "", base=base)
        else:
            self.simulator.plan(name, deed, "" if row.recovery == "same" else fault.later, base=base)
        if row.has_next:
            second, model = _next_of(row, int(name[1:]))
            self._providers.setdefault(second, _provider(second))
            targets.append(f"{second}/{model}?{name}n")
            self.simulator.plan(f"{name}n", fault.later if row.recovery == "dead" else "", base=base)
        self._models[name] = {"targets": targets, "on_interrupt": row.policy}

    def _provider_of(self, row: Row, name: str, deed: Deed) -> str:
        """Return the provider of a row's first target: in a hurry, or behind a door of its own, if it must be."""
        provider, own = _provider(row.wire), f"{row.wire}-{name}"
        path = self.simulator.base_url(row.wire).removeprefix(self.simulator.origin)
        if deed == "refused":
            port = self._closed_door(own, opens=row.recovery == "same")
            self._providers[own] = {**provider, "base_url": f"http://{_PLACE}:{port}{path}"}
            return own
        if deed == "dns":
            host = f"{name}.faults.invalid"
            self._lookups[host] = [False, row.recovery == "same"]
            origin = self.simulator.origin.replace(_PLACE, host)
            self._providers[own] = {**provider, "base_url": f"{origin}{path}"}
            return own
        own = f"{row.wire}-hasty" if row.fault.is_hasty else row.wire
        self._providers.setdefault(own, {**provider, **(self._limits if row.fault.is_hasty else {})})
        return own

    @property
    def _limits(self) -> dict[str, float]:
        return {**HASTY, **(DEADLINE if self.is_in_one_piece else {})}

    def _closed_door(self, provider: str, *, opens: bool) -> int:
        """Return a port at which nobody listens, or not before somebody has been there."""
        door = socket.socket()
        door.bind((_PLACE, 0))
        if not opens:
            self._exit.callback(door.close)
        else:
            Doorman.doors[provider] = asyncio.Event()
            self._exit.callback(Doorman.doors.pop, provider)
            opening = asyncio.ensure_future(self._open(door, Doorman.doors[provider]))
            self._exit.push_async_callback(_ended, opening)
        return int(door.getsockname()[1])

    async def _open(self, door: socket.socket, wanted: asyncio.Event) -> None:
        try:
            await wanted.wait()
        except asyncio.CancelledError:
            door.close()
            raise
        await self.simulator.listen(door)

    def _patch_names(self, patch: pytest.MonkeyPatch) -> None:
        """Answer for the names that rows have made up, and let the system answer for all others."""
        real, lookups = socket.getaddrinfo, self._lookups

        def look_up(host: Any, *args: Any, **options: Any) -> Any:
            if host not in lookups:
                return real(host, *args, **options)
            answers = lookups[host]
            if not (answers.pop(0) if len(answers) > 1 else answers[0]):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return real(_PLACE, *args, **options)

        patch.setattr(socket, "getaddrinfo", look_up)


async def _ended(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _base(moment: Moment, number: int) -> Script:
    """Return what is said, and how, where nothing breaks."""
    base = GOOD if number % 3 else replace(GOOD, interval_s=SLOWER_S)
    match moment:
        case "tool":
            return base
        case "json":
            return replace(base, say=JSON_TEXT)
        case "reasoning":
            return replace(base, say=TEXT, reasoning="on")
        case _:
            return replace(base, say=TEXT)


def _provider(name: str) -> dict[str, Any]:
    if name == "claude":
        return {"kind": "anthropic"}
    return {"kind": name} if name in MODELS else {"kind": "openai-compatible", "host": name}


def _next_of(row: Row, number: int) -> tuple[str, str]:
    """Return provider and model of the second target: another provider than the first."""
    can: tuple[str, ...] = NEXT_ANCHORED if row.recovery == "anchored" else NEXT_EXACT
    others = [name for name in can if name != row.wire]
    name = others[number // 3 % len(others)]
    return name, "claude-sonnet-4-6" if name == "claude" else MODELS.get(name, "mill")
