"""The next target, when one cannot answer: before the first token, in the order of the configuration.

What was delivered decides. While the client has seen nothing, an error that another target may not share moves the call
on; afterwards it is passed on, because a second answer from the start would be a duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from gateway.core.call import Call
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.pipeline import Next, Send

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tries the targets of a call's route until one answers; raises the last error when none does."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Relay the first target's answer that begins."""
        targets = call.route.targets
        if not targets:  # an unknown model, or a request that was refused before: the end of the chain says which
            return await call_next(call, send)
        attempt = call.attempt
        for number, target in enumerate(targets, start=1):
            try:
                return await call_next(replace(call, target=target, attempt=attempt), send)
            except (UpstreamError, InvalidRequest) as error:
                attempt = _next_attempt(attempt, error)
                if number == len(targets) or not _is_worth_another(error):
                    raise
                log.warning(
                    "target_failed",
                    request_id=call.request_id,
                    target=str(target),
                    error_type=error.error_type,
                    code=error.code,
                )
        return None


def _next_attempt(attempt: int, error: UpstreamError | InvalidRequest) -> int:
    """Attempts are counted over all targets, with those that were made at one of them."""
    return (max(attempt, error.attempt) if isinstance(error, UpstreamError) else attempt) + 1


def _is_worth_another(error: UpstreamError | InvalidRequest) -> bool:
    """Whether another target may do what this one did not: all but a request that a provider called wrong.

    An ``InvalidRequest`` behind a target says that its wire cannot express the request; another's may.
    """
    if isinstance(error, InvalidRequest):
        return True
    if error.was_sent:
        return False
    return error.retryable or error.error_type in ("auth", "rate_limited") or error.upstream_status == 404
