"""One log line per call: what was asked, who answered, how it ended, what it took.

It is written once, whatever ended the call, and it holds nothing of what was said. Times are on the monotonic clock:
TTFT from the last byte of the request to the first token handed on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from gateway.core.call import Call
from gateway.core.errors import ClientError, ClientGone, GatewayError, StreamInterrupted, UpstreamError
from gateway.core.events import TOKEN_EVENTS, Event, StreamStarted, TextDelta, Usage, UsageReported
from gateway.pipeline import DRAINED, Next, Send

log = structlog.get_logger()


class _Account:
    """What one call has come to so far."""

    __slots__ = ("delta_count", "first_at_s", "target", "usage")

    def __init__(self) -> None:
        self.delta_count = 0
        self.first_at_s: float | None = None
        self.target = ""
        self.usage: Usage | None = None

    def add(self, events: Sequence[Event]) -> None:
        """Count what one read brought."""
        for event in events:
            if type(event) is TextDelta or isinstance(event, TOKEN_EVENTS):
                self.delta_count += 1
            elif type(event) is StreamStarted:
                self.target = event.target
            elif type(event) is UsageReported:
                self.usage = event.usage
        if self.first_at_s is None and self.delta_count:
            self.first_at_s = time.monotonic()


@dataclass(frozen=True, slots=True)
class Observe:
    """Logs the outcome of every call."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Hand the call on and watch what comes back."""
        account = _Account()

        def watch(events: Sequence[Event]) -> None:
            send(events)
            account.add(events)

        error: BaseException | None = None
        try:
            await call_next(call, watch)
        except BaseException as caught:
            error = caught
            raise
        finally:
            _log(call, account, error)


def outcome_of(error: BaseException | None) -> str:
    """Return the outcome that ``error`` amounts to; one of a closed set."""
    match error:
        case None:
            return "completed"
        case asyncio.CancelledError(args=(word,)) if word == DRAINED:
            return "drained"
        case ClientGone() | asyncio.CancelledError():
            return "client_aborted"
        case ClientError():
            return "rejected"
        case UpstreamError(code="stall_timeout" | "ttft_timeout"):
            return "stalled"
        case UpstreamError(code="total_timeout"):
            return "deadline"
        case StreamInterrupted(code="stream_truncated"):
            return "truncated"
        case UpstreamError():
            return "upstream_error"
        case _:
            return "gateway_error"


def _log(call: Call, account: _Account, error: BaseException | None) -> None:
    outcome = outcome_of(error)
    usage = account.usage
    fields: dict[str, object] = {
        "request_id": call.request_id,
        "endpoint": call.endpoint,
        "model": call.route.name,
        "target": account.target or None,
        "stream": call.stream,
        "outcome": outcome,
        "duration_s": round(time.monotonic() - call.received_at_s, 6),
        "ttft_s": None if account.first_at_s is None else round(account.first_at_s - call.received_at_s, 6),
        "delta_count": account.delta_count,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "usage_source": None if usage is None else "estimated" if usage.is_estimated else "reported",
    }
    if isinstance(error, GatewayError):
        fields |= {"error_type": error.error_type, "code": error.code, "http_status": error.status_code}
    write = log.info if outcome in ("completed", "client_aborted", "rejected") else log.warning
    write("stream.finished", **fields)
