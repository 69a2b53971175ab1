from __future__ import annotations

import pytest

from gateway.core.call import Call, Target
from gateway.core.ledger import Ledger, NoLedger, Settlement

SETTLEMENT = Settlement(
    request_id="r", attempt=1, target=Target("a", "m"), model="m", result="completed", started_at_s=1.0, ended_at_s=2.0
)


class Recorder:
    """A ledger in the middle of the chain: does its bit, and tells the outer one."""

    def __init__(self, outer: Ledger) -> None:
        self._outer = outer
        self.told: list[object] = []

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Take it down and pass it on."""
        self.told.append((str(target), attempt, ttft_s))
        self._outer.note_first_token(target, attempt, ttft_s)

    def settle(self, settlement: Settlement) -> None:
        """Take it down and pass it on."""
        self.told.append(settlement)
        self._outer.settle(settlement)


def test_a_settlement_says_no_more_than_is_known() -> None:
    """What did not happen has no value: no token, no usage, no error, nothing delivered."""
    assert (SETTLEMENT.first_token_at_s, SETTLEMENT.usage, SETTLEMENT.way) == (None, None, None)
    assert (SETTLEMENT.error_type, SETTLEMENT.code, SETTLEMENT.http_status, SETTLEMENT.reason) == (None, None, None, "")
    assert not SETTLEMENT.is_delivered


def test_a_settlement_is_final() -> None:
    """Whoever is told of it sees the same."""
    with pytest.raises(AttributeError, match="immutable"):
        SETTLEMENT.result = "failed"  # type: ignore[misc]  # that this fails is the point


def test_a_ledger_can_stand_between() -> None:
    """Each in the chain is told everything, once."""
    outer = Recorder(NoLedger())
    inner = Recorder(outer)
    call = Call(request_id="r", ledger=inner)
    call.ledger.note_first_token(SETTLEMENT.target, 1, 0.5)
    call.ledger.settle(SETTLEMENT)
    assert inner.told == outer.told == [("a/m", 1, 0.5), SETTLEMENT]


def test_nobody_need_account_for_a_call() -> None:
    """Then what is settled is forgotten."""
    call = Call(request_id="r")
    call.ledger.note_first_token(SETTLEMENT.target, 1, 0.5)
    call.ledger.settle(SETTLEMENT)
    assert isinstance(call.ledger, NoLedger)
