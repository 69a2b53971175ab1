"""The end of a chain that plays a script: what each attempt sends, and how it ends.

It tells the ledger of each attempt, and the error of what became of it, as the real end of the chain does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from gateway.core.call import Call, Target
from gateway.core.errors import GatewayError, InvalidRequest, UpstreamError
from gateway.core.events import TOKEN_EVENTS, ChoiceFinished, Event, StreamStarted, TextDelta, Usage, UsageReported
from gateway.core.ledger import Settlement
from gateway.ending import result_of
from gateway.pipeline import Send

HANG = "hang"
"""A step that never ends by itself."""

START = StreamStarted("c1", "m", target="openai/gpt")
ANSWER: tuple[list[Event], ...] = (
    [START, TextDelta("Hel")],
    [TextDelta("lo"), ChoiceFinished("stop")],
    [UsageReported(Usage(3, 2))],
)
"""An answer in three reads."""

Step = Sequence[list[Event] | BaseException | str | float]

_SHOWN = (*TOKEN_EVENTS, ChoiceFinished)


def ignore(events: Sequence[Event]) -> None:
    """Take events, and do nothing with them."""


class Recorder:
    """A ledger that keeps what it is told."""

    def __init__(self) -> None:
        self.first_tokens: list[tuple[str, int]] = []
        self.settlements: list[Settlement] = []

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:  # noqa: ARG002, as of any ledger
        """Keep whose it was."""
        self.first_tokens.append((str(target), attempt))

    def settle(self, settlement: Settlement) -> None:
        """Keep it."""
        self.settlements.append(settlement)

    @property
    def ends(self) -> list[tuple[str, int, str, str]]:
        """Each attempt's target, number and end, and the word for what cancelled it."""
        return [(str(one.target), one.attempt, one.result, one.reason) for one in self.settlements]


class ScriptedEndpoint:
    """Plays one script per attempt: lists are sent, an exception is raised, ``HANG`` waits for ever, a number so long.

    ``calls`` are those that reached it, ``cancelled_count`` how many of them were waiting when they were let go. One
    that is ``silent`` tells its ledger nothing, as something would that answers out of a cache.
    """

    def __init__(self, *scripts: Step, clock: Callable[[], float] = time.monotonic, silent: bool = False) -> None:
        self._scripts = list(scripts) or [ANSWER]
        self._clock = clock
        self._silent = silent
        self.calls: list[Call] = []
        self.cancelled_count = 0

    async def __call__(self, call: Call, send: Send) -> None:
        """Play the next script, or the last one again."""
        self.calls.append(call)
        played = _Played(call, send, self._clock, silent=self._silent)
        failure: BaseException | None = None
        try:
            for step in self._scripts[min(len(self.calls), len(self._scripts)) - 1]:
                await self._play(step, played)
        except UpstreamError as error:
            failure = error
            error.target = call.target or error.target
            error.attempt, error.was_sent = call.attempt, played.has_sent
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            played.settle(failure)
            del failure

    async def _play(self, step: list[Event] | BaseException | str | float, played: _Played) -> None:
        await asyncio.sleep(0)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, str):
            await self._hang()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        else:
            played.send(step)

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled_count += 1
            raise


class _Played:
    """One attempt, and what the ledger is told of it."""

    def __init__(self, call: Call, send: Send, clock: Callable[[], float], *, silent: bool) -> None:
        self._call = call
        self._send = send
        self._clock = clock
        self._silent = silent or call.target is None
        self._started_at_s = clock()
        self._first_token_at_s: float | None = None
        self.has_sent = False

    def send(self, events: list[Event]) -> None:
        """Send ``events``; the first that a user could see are the first token."""
        self.has_sent = True
        if self._first_token_at_s is None and any(isinstance(event, _SHOWN) for event in events):
            self._first_token_at_s = self._clock()
            if not self._silent and self._call.target is not None:
                ttft_s = self._first_token_at_s - self._started_at_s
                self._call.ledger.note_first_token(self._call.target, self._call.attempt, ttft_s)
        self._send(events)

    def settle(self, failure: BaseException | None) -> None:
        """Account for the attempt, unless it was never made: declined, or one that its wire cannot express."""
        if self._silent or self._call.target is None or isinstance(failure, InvalidRequest) or _is_declined(failure):
            return
        result, reason = result_of(failure)
        error = failure if isinstance(failure, GatewayError) and result == "failed" else None
        self._call.ledger.settle(
            Settlement(
                request_id=self._call.request_id,
                attempt=self._call.attempt,
                target=self._call.target,
                model=self._call.route.name,
                result=result,
                started_at_s=self._started_at_s,
                ended_at_s=self._clock(),
                first_token_at_s=self._first_token_at_s,
                error_type=error.error_type if error else None,
                code=error.code if error else None,
                http_status=error.upstream_status if isinstance(error, UpstreamError) else None,
                reason=reason,
            )
        )


def _is_declined(failure: BaseException | None) -> bool:
    """Whether a target was not asked at all, because it is known not to go on with an answer."""
    return isinstance(failure, UpstreamError) and failure.refused == "continuation" and failure.upstream_status is None
