from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.core.call import Target
from gateway.core.events import Usage
from gateway.core.ledger import Ledger, Settlement
from gateway.ledger import LogLedger
from gateway.logs import configure_logs

TARGET = Target("mistral", "large")


@pytest.fixture(autouse=True)
def _defaults_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave structlog as it was found; a module's logger keeps what it was first used with, so it gets a new one."""
    monkeypatch.setattr("gateway.ledger.log", structlog.get_logger())
    yield
    structlog.reset_defaults()


def make_settlement(result: Any = "completed", **fields: Any) -> Settlement:
    """Return the settlement of an attempt that was begun at 10 s and ended at 12.5 s."""
    plain = {"request_id": "r1", "attempt": 2, "target": TARGET, "model": "chat", "started_at_s": 10.0}
    return Settlement(**{**plain, "ended_at_s": 12.5, "result": result, **fields})


def lines(*settlements: Settlement) -> list[Any]:
    """Return what is logged of them."""
    ledger: Ledger = LogLedger()
    with capture_logs() as logs:
        for settlement in settlements:
            ledger.settle(settlement)
    return list(logs)


def test_a_completed_attempt_is_one_line_with_what_it_used() -> None:
    """Its times are durations, to the microsecond."""
    settlement = make_settlement(
        first_token_at_s=10.12345678, way="exact", usage=Usage(100, 20), is_delivered=True, http_status=200
    )
    assert lines(settlement) == [
        {
            "event": "attempt.settled",
            "log_level": "info",
            "request_id": "r1",
            "attempt": 2,
            "target": "mistral/large",
            "model": "chat",
            "result": "completed",
            "way": "exact",
            "http_status": 200,
            "is_delivered": True,
            "duration_s": 2.5,
            "ttft_s": 0.123457,
            "input_tokens": 100,
            "output_tokens": 20,
            "usage_source": "reported",
        }
    ]


def test_what_is_not_known_is_left_out() -> None:
    """Nothing was generated, nothing went wrong; that nothing was delivered is said."""
    (line,) = lines(make_settlement("cancelled", reason="hedge_lost"))
    assert line == {
        "event": "attempt.settled",
        "log_level": "info",
        "request_id": "r1",
        "attempt": 2,
        "target": "mistral/large",
        "model": "chat",
        "result": "cancelled",
        "reason": "hedge_lost",
        "is_delivered": False,
        "duration_s": 2.5,
    }


def test_a_failed_attempt_says_how() -> None:
    """With the labels of its error, on the same level: the line of the call is the one to be alarmed by."""
    (line,) = lines(make_settlement("failed", error_type="overloaded", code="upstream_busy", http_status=503))
    assert (line["error_type"], line["code"], line["http_status"]) == ("overloaded", "upstream_busy", 503)
    assert line["log_level"] == "info"


def test_an_estimate_says_that_it_is_one() -> None:
    """Also one of nothing: zero tokens are known, and not left out."""
    (line,) = lines(make_settlement("failed", usage=Usage(0, 0, is_estimated=True)))
    assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (0, 0, "estimated")


def test_a_first_token_is_no_line() -> None:
    """It is told when the attempt is settled."""
    with capture_logs() as logs:
        LogLedger().note_first_token(TARGET, 1, 0.5)
    assert logs == []


def test_a_line_that_the_level_leaves_out_is_not_even_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At ``warning`` the log costs a call nothing."""
    logger = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger("warning"))
    monkeypatch.setattr("gateway.ledger.log", logger)
    made: list[Settlement] = []

    def make(settled: Settlement) -> dict[str, object]:
        made.append(settled)
        return {}

    monkeypatch.setattr("gateway.ledger._fields", make)
    assert (lines(make_settlement()), made) == ([], [])
    monkeypatch.setattr("gateway.ledger.log", structlog.get_logger())
    assert (len(lines(make_settlement())), len(made)) == (1, 1)


def test_the_line_is_written_as_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """All its values are plain ones."""
    writer = configure_logs(level="info", log_format="json")
    LogLedger().settle(make_settlement(usage=Usage(1, 2)))
    assert writer.flush()
    (line,) = capfdbinary.readouterr().out.splitlines()
    assert json.loads(line)["target"] == "mistral/large"


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    """A full disk takes no answer down: a ledger never raises."""
    written = []

    class FullDisk:
        """A logger whose every line fails."""

        def info(self, line: bytes) -> None:
            written.append(line)
            raise OSError(28, "no space left on device")

    configure_logs(level="info", log_format="json")
    structlog.configure(logger_factory=FullDisk, cache_logger_on_first_use=False)
    LogLedger().settle(make_settlement())
    assert len(written) == 1
