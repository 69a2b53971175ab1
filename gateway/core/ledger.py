"""One ledger: every attempt is settled exactly once, whatever ended it, with what it used.

The ledger travels down the chain in ``Call.ledger``, as ``send`` does: a middleware that wants to know of the attempts
below it (to open a breaker, to count, to bill) hands on one of its own, which does its bit and tells the outer one. The
end of the chain is the only one who settles. A ledger returns at once, never raises, and is never told per token.

An attempt that was never made is not in it: one for which there was no room, or whose wire could not express it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from gateway.core.continuation import Way
from gateway.core.errors import ErrorType
from gateway.core.events import Usage

if TYPE_CHECKING:
    from gateway.core.call import Target

Result = Literal["completed", "failed", "cancelled"]


class Settlement(Struct, frozen=True, kw_only=True):
    """What one attempt came to. Times are on the monotonic clock.

    ``connect_s`` is what a new connection took, ``None`` where one was kept. ``usage`` is what the provider reported,
    or an estimate that says so; ``None`` where nothing was generated as far as anybody knows. ``reason`` is a word for
    what cancelled it: ``client_gone``, ``drained``, ``hedge_lost``, or ``enough`` when whoever tried had all that was
    wanted. ``is_delivered`` says whether any of it was passed on.
    """

    request_id: str
    attempt: int
    target: Target
    model: str
    result: Result
    started_at_s: float
    ended_at_s: float
    first_token_at_s: float | None = None
    connect_s: float | None = None
    way: Way | None = None
    usage: Usage | None = None
    is_delivered: bool = False
    error_type: ErrorType | None = None
    code: str | None = None
    http_status: int | None = None
    reason: str = ""


class Ledger(Protocol):
    """Where attempts are accounted for."""

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """An attempt has brought its first token, so many seconds after its request was begun."""

    def settle(self, settlement: Settlement) -> None:
        """An attempt has ended."""


class NoLedger:
    """The ledger of a call that nobody accounts for."""

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Forget it."""

    def settle(self, settlement: Settlement) -> None:
        """Forget it."""
