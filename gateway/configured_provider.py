"""A provider as the configuration has it: within which limits it is asked, and what it has shown of itself since.

It knows what a call may ask of its target before anything is sent: no more at once than the operator allows, and no way
of going on with an answer that the target does not know, or a model has refused.
"""

from __future__ import annotations

import time
from math import inf

from gateway.core.call import Call
from gateway.core.errors import UpstreamBusy, UpstreamError, UpstreamRefused
from gateway.providers.base import Provider
from gateway.watch import Alarm, Limits

MAX_LEARNED_MODELS = 1024


class ConfiguredProvider:
    """A provider with its limits, how many calls are with it now, when it was asked last, and what was learned of it.

    ``takes_anchored`` says whether a model may be asked in words to go on with its answer.
    """

    def __init__(
        self, provider: Provider, limits: Limits, *, proxy: str | None = None, takes_anchored: bool = True
    ) -> None:
        self.provider = provider
        self.limits = limits
        self.proxy = proxy
        self.takes_anchored = takes_anchored
        self.in_flight_count = 0
        self.asked_at_s = -inf
        self.alarm = Alarm()
        self._without_exact: set[str] = set()

    def take(self, call: Call) -> None:
        """Count a call in; raises ``UpstreamError`` for one that the target cannot be asked, or not now."""
        if call.continuation is not None:
            self._check_way(call)
        limit = self.limits.max_concurrency
        if limit and self.in_flight_count >= limit:
            raise UpstreamBusy("the provider's concurrency limit is reached", code="concurrency_limit")
        self.in_flight_count += 1
        self.asked_at_s = time.monotonic()

    def _check_way(self, call: Call) -> None:
        """Raise ``UpstreamRefused`` for a way of going on with an answer that the call's target does not know."""
        continuation = call.continuation
        way = continuation.way if continuation is not None else "restart"
        if way == "exact":
            is_known = call.target_model not in self._without_exact or _has_own_token(call)
            if is_known and self.provider.continues(call):
                return
        elif way == "restart" or self.takes_anchored:
            return
        message = "the target does not go on with an answer that has begun"
        raise UpstreamRefused(message, code="continuation_unsupported", refused="continuation")

    def learn(self, call: Call, error: UpstreamError) -> None:
        """Remember of a model that refused to go on exactly, though its kind should, that it does.

        A token that was refused says nothing of that: it may have expired.
        """
        if call.continuation is None or call.continuation.way != "exact" or error.upstream_status not in (400, 422):
            return
        is_of_model = error.refused == "continuation" and not _has_own_token(call)
        if is_of_model and len(self._without_exact) < MAX_LEARNED_MODELS:
            self._without_exact.add(call.target_model)
        error.refused = "continuation"  # whatever it is that it refused: another way may do


def _has_own_token(call: Call) -> bool:
    """Whether the call's target has left a token itself for going on with the answer."""
    checkpoint = call.continuation.checkpoint if call.continuation else None
    return checkpoint is not None and checkpoint.target == str(call.target)
