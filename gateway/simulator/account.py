"""The simulator's own account of what it was asked and what it sent, for tests and for `GET /_sim/requests`."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Outcome = Literal["open", "finished", "cut", "error_event", "rejected", "refused", "client_gone", "stopped"]

_KEPT_RECORDS: Final = 10_000
_KEPT_BODIES: Final = 1_000


@dataclass(slots=True)
class Record:
    """One request. `tokens_sent` and `bytes_sent` count what was written of the body, pings included."""

    serial: int
    path: str
    started_at_s: float
    wire: str = ""
    model: str = ""
    script: str = ""
    is_stream: bool = False
    is_continuation: bool = False
    way: str = ""
    status: int = 0
    tokens_sent: int = 0
    bytes_sent: int = 0
    outcome: Outcome = "open"
    ended_at_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Any = field(default=None, repr=False)

    def end(self, outcome: Outcome, at_s: float) -> None:
        """Note how it ended; only the first end counts."""
        if self.outcome == "open":
            self.outcome = outcome
            self.ended_at_s = at_s

    def public(self, *, with_body: bool) -> dict[str, Any]:
        """Return what may be shown: never a header, and the request's body only if asked for."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name not in ("headers", "body")}
        return {**shown, "body": self.body} if with_body else shown


class Account:
    """The last requests, oldest first; bounded, and bodies more tightly than the rest."""

    def __init__(self) -> None:
        self.records: deque[Record] = deque(maxlen=_KEPT_RECORDS)
        self._with_bodies: deque[Record] = deque()
        self._serial = 0

    def begin(self, path: str, at_s: float) -> Record:
        """Open a record."""
        self._serial += 1
        record = Record(self._serial, path, at_s)
        self.records.append(record)
        return record

    def keep_body(self, record: Record, body: Any) -> None:
        """Remember what was asked, until a thousand others have been."""
        record.body = body
        self._with_bodies.append(record)
        if len(self._with_bodies) > _KEPT_BODIES:
            self._with_bodies.popleft().body = None

    def clear(self) -> int:
        """Forget all records; returns how many there were."""
        count = len(self.records)
        self.records.clear()
        self._with_bodies.clear()
        return count
