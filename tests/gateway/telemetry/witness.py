"""A simulator that knows whose request each one was, so that what a gateway tells of a call can be held against it.

Whoever asks names the call in its prompt ("ticket-17"), which reaches every provider's wire as it is. A script may have
several parts, with a semicolon between: the first request of a call gets the first of them, the next one the next, and
all that follow the last.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import yaml

from gateway.app import Gateway
from gateway.config import parse_config
from gateway.simulator import Record, Script, Simulator, parse_script
from gateway.telemetry.slab import Slab
from tests.conftest import pointed_at

_TICKET: Final = re.compile(r"ticket-\d+")


class Witness(Simulator):
    """Keeps the records of each call by its ticket, and tells when a call has been asked for the first time."""

    def __init__(self, default: Script) -> None:
        super().__init__(default=default)
        self._base = default
        self._made: Counter[tuple[str, str]] = Counter()
        self._asked: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.tickets: dict[int, str] = {}

    async def asked(self, ticket: str, *, timeout_s: float = 60.0) -> bool:
        """Wait until a request for the call has come; returns whether one has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._asked[ticket].wait()
        return False

    def by_ticket(self) -> Mapping[str, Sequence[Record]]:
        """Return the records of all calls, each in the order in which its requests came."""
        found: defaultdict[str, list[Record]] = defaultdict(list)
        for record in self.requests:
            found[self.tickets[record.serial]].append(record)
        return found

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being answered."""
        return all(record.outcome != "open" for record in self.requests)

    def _script_for(self, record: Record) -> Script:
        ticket = ticket_of(record.body)
        self.tickets[record.serial] = ticket
        self._asked[ticket].set()
        parts = record.script.split(";")
        number = self._made[ticket, record.script]
        self._made[ticket, record.script] += 1
        return parse_script(parts[min(number, len(parts) - 1)], self._base)


def ticket_of(body: Any) -> str:
    """Return the name of the call that a request's body is for."""
    found = _TICKET.search(json.dumps(body))
    assert found is not None, body
    return found[0]


@dataclass(slots=True)
class Watched:
    """A gateway over a witness."""

    gateway: Gateway
    witness: Witness
    slab: Slab
    url: str
    admin_url: str

    @property
    def is_quiet(self) -> bool:
        """Whether no call is in flight and nobody is being answered."""
        return not self.gateway.live.shown()["in_flight"] and self.witness.is_quiet

    async def calm(self) -> None:
        """Wait until it is quiet."""
        async with asyncio.timeout(60):
            while not self.is_quiet:  # noqa: ASYNC110, a test may poll
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(config: Mapping[str, Any], default: Script) -> AsyncIterator[Watched]:
    """Run a gateway whose providers are a witness."""
    async with AsyncExitStack() as stack:
        witness = await stack.enter_async_context(Witness(default))
        text = yaml.safe_dump(pointed_at(witness, config))
        slab = Slab.create()
        gateway = Gateway(parse_config(text, "test.yaml", {}), slab=slab)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        yield Watched(
            gateway,
            witness,
            slab,
            url=f"http://127.0.0.1:{gateway.port}",
            admin_url=f"http://127.0.0.1:{gateway.admin_port}",
        )
