"""The ledger in the log: one line for each attempt, with how it ended and what it used.

The line of the whole call is ``middleware.observe``'s; these tell what each attempt at it cost, also those whose answer
nobody saw. They hold nothing of what was said.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import structlog

from gateway.core.call import Target
from gateway.core.ledger import Settlement

log = structlog.get_logger()


class LogLedger:
    """Writes ``attempt.settled``, with only those fields that there is something to say in."""

    __slots__ = ()

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Nothing: it will be in the attempt's line."""

    def settle(self, settlement: Settlement) -> None:
        """Write the attempt's line; that nobody can read the log is no reason for an answer to fail."""
        logger = log.bind()  # structlog's own, and not one that looks for it with every name
        if logger.is_enabled_for(logging.INFO):  # its fields take ten times as long as the question
            with suppress(OSError):
                logger.info("attempt.settled", **_fields(settlement))


def _fields(settled: Settlement) -> dict[str, object]:
    usage, begun_at_s, first_at_s = settled.usage, settled.started_at_s, settled.first_token_at_s
    fields: dict[str, object] = {
        "request_id": settled.request_id,
        "attempt": settled.attempt,
        "target": str(settled.target),
        "model": settled.model,
        "result": settled.result,
        "way": settled.way,
        "reason": settled.reason,
        "error_type": settled.error_type,
        "code": settled.code,
        "http_status": settled.http_status,
        "is_delivered": settled.is_delivered,
        "duration_s": round(settled.ended_at_s - begun_at_s, 6),
        "ttft_s": None if first_at_s is None else round(first_at_s - begun_at_s, 6),
        "connect_s": None if settled.connect_s is None else round(settled.connect_s, 6),
    }
    if usage:
        fields["input_tokens"] = usage.input_tokens
        fields["output_tokens"] = usage.output_tokens
        fields["usage_source"] = "estimated" if usage.is_estimated else "reported"
    return {name: value for name, value in fields.items() if value is not None and value != ""}
