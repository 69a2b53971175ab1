"""Retry with resume: an attempt that fails is made again, an answer that breaks off goes on where it broke.

While the client has seen nothing, the same request is made once more: after full jitter, so that clients which failed
together do not come back together (AWS Architecture Blog, "Exponential Backoff And Jitter"), or after the time that the
provider named. A connection that turned out to be dead is replaced at once by a fresh one.

Once something was delivered the answer is continued (``gateway.core.plan`` says how) and joined to what the client has
(``gateway.core.delivery``), or the client is told that it is not whole. Every further attempt is paid for out of a
budget: when that is empty, the first error is the last.

What does not fail pays for the transcript alone: one write for each token, no timer and no task. An answer that is
asked for whole, and comes in one piece, does not even pay for that: it was two thirds of what such an answer cost here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from msgspec.structs import replace
from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_random_exponential

from gateway.core.budget import Budgets
from gateway.core.call import Call
from gateway.core.continuation import ANSWER_CONTINUES, Continuation
from gateway.core.delivery import AnswerComplete, Attempt, Delivery
from gateway.core.errors import ErrorType, InvalidRequest, UpstreamError, UpstreamRefused, without_frames
from gateway.core.events import AttemptFailed, Event, ToolCallDelta, ToolCallStarted
from gateway.core.plan import Plan, holds_calls, may_go_on, plans
from gateway.core.seam import ANCHOR_CHARACTERS, SEAM_NOT_FOUND, seam_not_found
from gateway.pipeline import Next, Send
from gateway.schema import Range

MAX_WAIT_S = 60.0
RETRY_PRICE, RESUME_PRICE = 1.0, 2.0
"""A resume draws double: its prompt has the answer so far, too."""

MAX_IDLE_HOPS = 3
"""A provider that ends its turn with a token for going on is taken at its word so often without a new character."""

_ELSEWHERE: frozenset[ErrorType] = frozenset({"connect", "dns", "tls", "overloaded", "rate_limited", "read_timeout"})
"""Errors that will still be there in half a second: where there is another target, that is asked instead."""

_TOOL_CALLS: frozenset[type] = frozenset({ToolCallStarted, ToolCallDelta})

_backoff = wait_random_exponential(multiplier=0.25, max=8)


@dataclass(frozen=True, slots=True)
class Resume:
    """Retries and continues at one target, in up to ``max_attempts`` attempts in all.

    ``anchor_characters`` is how much of its answer a model is asked to repeat that can only be asked.
    """

    max_attempts: Annotated[int, Range(1, 10)] = 3
    anchor_characters: Annotated[int, Range(20, 200)] = ANCHOR_CHARACTERS
    _clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    _budgets: Budgets = field(default_factory=Budgets, init=False, repr=False, compare=False)

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Relay one whole answer, in as many attempts as it takes; raises the last error when it cannot be had."""
        if call.budgets is None:
            self._budgets.note_request(str(call.target), self._clock())
        if call.stream or call.delivered is not None:
            delivery = Delivery(send, holds_calls=holds_calls(call), transcript=call.delivered)
            return self._relay(call, delivery, send, call_next)
        return self._relay_whole(call, send, call_next)

    async def _relay_whole(self, call: Call, send: Send, call_next: Next) -> None:
        """Relay an answer that is asked for whole."""
        piece = _Piece(call, send)
        first: UpstreamError | None = None
        try:
            await call_next(call, piece.send)
            piece.finish()
        except UpstreamError as error:
            first = error
        if first is not None:
            try:
                await self._relay(call, piece.delivery, send, call_next, first)
            finally:
                del first  # its traceback has this frame

    async def _relay(
        self, call: Call, delivery: Delivery, send: Send, call_next: Next, first: UpstreamError | None = None
    ) -> None:
        """Relay an answer; ``first`` is what its first attempt ended with, if that was made."""
        try:
            if call.delivered is None and first is None:
                try:
                    await call_next(call, delivery.send)
                    delivery.finish()
                except UpstreamError as error:
                    first = error
            if first is not None and not delivery.open_choices(call.choice_count):
                first = None  # of an answer whose end was told it does not matter what comes behind
            if first is not None or call.delivered is not None:
                await _Rest(self, call, delivery, send, call_next).complete(first)
        except UpstreamError as error:
            delivery.settle()
            first, transcript = None, delivery.transcript
            error.was_sent = transcript.is_visible
            has_begun = error.was_sent or transcript.started is not None
            error.delivered = transcript if has_begun and may_go_on(call, transcript) else None
            raise without_frames(error)  # noqa: B904, it is the same

    def may_pay(self, call: Call, price: float) -> bool:
        """Take the price of another attempt out of the budget, if there is so much in it."""
        return (call.budgets or self._budgets).take(str(call.target), price, self._clock())


class _Piece:
    """An answer that is asked for whole. As long as all of it is one batch, that is passed on as it came.

    So a delivery would do, but for tool calls, which it may hold back. It is made when it is wanted: for those, for a
    second batch, or for an attempt that fails.
    """

    __slots__ = ("_batch", "_call", "_delivery", "_send")

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._batch: Sequence[Event] | None = None
        self._delivery: Delivery | None = None

    @property
    def delivery(self) -> Delivery:
        """What has become of the answer by now."""
        if self._delivery is None:
            has_told, send = self._batch is None, self._send

            def pass_on(events: Sequence[Event]) -> None:
                if has_told:
                    send(events)

            self._delivery = Delivery(pass_on, holds_calls=holds_calls(self._call))
            if self._batch is not None:  # it was passed on before
                self._delivery.send(self._batch)
                has_told = True
        return self._delivery

    def send(self, events: Sequence[Event]) -> None:
        """Pass on what one read brought."""
        if self._batch is None and self._delivery is None and _TOOL_CALLS.isdisjoint(map(type, events)):
            self._batch = events
            self._send(events)
        else:
            self.delivery.send(events)

    def finish(self) -> None:
        """The attempt is complete."""
        if self._delivery is not None:
            self._delivery.finish()


class _Rest:
    """What there is to do for an answer behind its first attempt, or behind those at other targets."""

    def __init__(self, options: Resume, call: Call, delivery: Delivery, send: Send, call_next: Next) -> None:
        self._options = options
        self._call = call
        self._delivery = delivery
        self._send = send
        self._call_next = call_next
        self._number = call.attempt
        self._error: UpstreamError | None = None

    async def complete(self, error: UpstreamError | None) -> None:
        """Make further attempts until the answer is whole; ``error`` is what the one before ended with.

        Where that is a planned end, nothing has failed, and going on is the first attempt at the rest.
        """
        retrying = AsyncRetrying(
            retry=self._is_worth_another,
            stop=stop_after_attempt(self._options.max_attempts),
            wait=_wait,
            before_sleep=self._note,
            reraise=True,
        )
        if error is not None:
            self._number += 1
            if error.code == ANSWER_CONTINUES and self._delivery.transcript.is_visible:
                error = None
        try:
            async for attempt in retrying:
                with attempt:
                    if error is not None and attempt.retry_state.attempt_number == 1:
                        raise error  # made above: what does not fail pays nothing for what would happen if it did
                    await self._go_on()
        except UpstreamError as last:
            if last.refused == "continuation" and self._error is not None:
                raise self._error from without_frames(last)  # that it cannot be continued here is not what went wrong
            raise
        finally:  # tenacity keeps itself alive in a cycle, and with it us, the call and all of its answer
            attempt.retry_state.set_result(None)
            del attempt.retry_state.retry_object
            retrying.iter_state.reset()
            del self._call, self._call_next, self._delivery, self._error, self._send

    def _is_worth_another(self, state: RetryCallState) -> bool:
        """Whether the same target is asked again: it may help, it may be, and it is paid for."""
        error = _error_of(state)
        if error is None or not error.retryable or state.attempt_number >= self._options.max_attempts:
            return False
        call, transcript = self._call, self._delivery.transcript
        if (error.retry_after_s or 0.0) > MAX_WAIT_S or not may_go_on(call, transcript):
            return False
        if call.other_targets and error.error_type in _ELSEWHERE:
            return False
        return self._options.may_pay(call, RESUME_PRICE if transcript.is_visible else RETRY_PRICE)

    def _note(self, state: RetryCallState) -> None:
        """Tell who watches that an attempt has failed, and that there will be another."""
        error = _error_of(state)
        if error is not None:
            self._error = without_frames(error)
            is_visible = self._delivery.transcript.is_visible
            target = str(error.target or self._call.target)
            self._send([AttemptFailed(target, error.attempt, error.error_type, error.code, is_visible)])

    async def _go_on(self) -> None:
        """Make one more attempt at all that is not finished; raises its error."""
        call, delivery = self._call, self._delivery
        is_open = len(delivery.open_choices(call.choice_count)) == call.choice_count
        if is_open and not delivery.transcript.is_visible:
            try:
                return await self._begin_again()
            except UpstreamError as error:
                if error.code != ANSWER_CONTINUES or not delivery.transcript.is_visible:
                    raise
        for index in delivery.open_choices(call.choice_count):
            await self._continue(index)
        return None

    async def _begin_again(self) -> None:
        call, started = self._call, self._delivery.transcript.started
        continuation = Continuation(way="restart", started=started) if started else None
        await self._make(
            replace(call, continuation=continuation), Attempt(target=str(call.target), number=self._number)
        )

    async def _continue(self, index: int) -> None:
        """Go on with one choice in the first way that the target knows; raises why it could not."""
        transcript = self._delivery.transcript
        choice = transcript.choice(index)
        refusal: UpstreamError | None = None
        idle_count = 0
        while idle_count < MAX_IDLE_HOPS:
            before = choice.character_count
            for plan in plans(self._call, transcript, index, anchor_characters=self._options.anchor_characters):
                try:
                    return await self._carry_out(plan, index)
                except UpstreamError as error:
                    refusal = without_frames(error)
                    if error.code == ANSWER_CONTINUES:
                        break  # a planned end: on with its token
                    if choice.character_count > before or not self._is_other_way_worth_it(plan, error):
                        raise  # the other way was planned for what was delivered before
            else:
                break
            idle_count = 0 if choice.character_count > before else idle_count + 1
        raise refusal or seam_not_found()

    def _is_other_way_worth_it(self, plan: Plan, error: UpstreamError) -> bool:
        """Whether what cannot be done exactly may be asked for in words."""
        if not may_go_on(self._call, self._delivery.transcript):
            return False
        if error.refused == "continuation":
            return True
        is_mismatch = plan.way == "exact" and error.code == SEAM_NOT_FOUND
        return is_mismatch and self._options.may_pay(self._call, RESUME_PRICE)

    async def _carry_out(self, plan: Plan, index: int) -> None:
        attempt = Attempt(
            target=str(self._call.target),
            number=self._number,
            way=plan.way,
            index=index,
            is_alone=self._call.choice_count > 1,
            added_tokens=plan.added_tokens,
            repeated_tokens=plan.repeated_tokens,
            trims=plan.trims,
            check=plan.check,
        )
        with suppress(AnswerComplete):
            await self._make(plan.call, attempt)

    async def _make(self, call: Call, attempt: Attempt) -> None:
        """Make one attempt; one that a target declined to make has no number."""
        self._delivery.begin(attempt)
        self._number += 1
        is_fresh = self._error is not None and self._error.error_type == "reset"
        try:
            await self._call_next(replace(call, attempt=attempt.number, is_fresh=is_fresh), self._delivery.send)
            self._delivery.finish()
        except InvalidRequest as error:  # its wire cannot express what those before could
            if not self._delivery.transcript.is_visible:
                raise
            self._number -= 1
            raise UpstreamRefused(error.message, code=error.code, refused="continuation") from error
        except UpstreamError as error:
            if not self._is_open(attempt):
                return
            if error.refused == "continuation" and error.upstream_status is None:
                self._number -= 1
            raise

    def _is_open(self, attempt: Attempt) -> bool:
        """Whether the end of what an attempt is for has not been told."""
        still_open = self._delivery.open_choices(self._call.choice_count)
        return attempt.index in still_open if attempt.is_alone else bool(still_open)


def _wait(state: RetryCallState) -> float:
    """As long as the provider asked for, else full jitter; what another connection may mend is not waited for."""
    error = _error_of(state)
    if error is None:
        return 0.0
    if error.retry_after_s is not None:
        return error.retry_after_s
    is_stale = error.error_type == "reset" and not error.was_sent and state.attempt_number == 1
    return 0.0 if is_stale else _backoff(state)


def _error_of(state: RetryCallState) -> UpstreamError | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, UpstreamError) else None
