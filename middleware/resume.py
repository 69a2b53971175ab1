"""Tries the same target again while nothing of its answer was delivered.

Only what may pass is tried again: ``retryable`` says so. The waiting is full jitter, so that clients which failed
together do not come back together (AWS Architecture Blog, "Exponential Backoff And Jitter"); a provider that named a
time is taken at its word, or given up at once when that is longer than anybody waits.

An answer that breaks after its first token is not begun again: its error is passed on, and the client is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from gateway.core.call import Call
from gateway.core.errors import UpstreamError
from gateway.pipeline import Next, Send
from gateway.schema import Range

MAX_WAIT_S = 60.0
_backoff = wait_random_exponential(multiplier=0.25, max=8)


@dataclass(frozen=True, slots=True)
class Resume:
    """Retries an attempt that failed before its first token, up to ``max_attempts`` in all."""

    max_attempts: Annotated[int, Range(1, 10)] = 3

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Relay the first attempt that begins; raises the last error when none does."""
        try:
            return await call_next(call, send)
        except UpstreamError as error:
            first = error
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_worth_waiting),
            stop=stop_after_attempt(self.max_attempts),
            wait=_wait,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                number = attempt.retry_state.attempt_number
                if number == 1:  # made above: what does not fail pays nothing for what would happen if it did
                    raise first
                await call_next(replace(call, attempt=call.attempt + number - 1), send)
        return None


def _is_worth_waiting(error: BaseException) -> bool:
    """Whether the same attempt may do better later: nobody has seen any of it, and it is not too long until then."""
    if not isinstance(error, UpstreamError) or error.was_sent:
        return False
    return error.retryable and (error.retry_after_s or 0.0) <= MAX_WAIT_S


def _wait(state: RetryCallState) -> float:
    """As long as the provider asked for, else full jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, UpstreamError) else None
    return asked_s if asked_s is not None else _backoff(state)
