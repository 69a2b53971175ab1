"""The next target, when one cannot: refused, busy, too slow, broken before its answer began or in the middle of it.

Which target is first, and what an error says of asking another, is decided in ``gateway.core.routing``. One whose
breaker is open is passed over, but never all of them: the last hope is asked even so. A provider that does not stream
is asked for the whole answer. Once something was delivered, another target only goes on with it (``Call.delivered``),
and what it may not go on with ends in the error.

An answer wanted whole is asked for as a stream, so that it, too, can be continued; where it cannot, it is asked for
once more, since nobody has seen any of it (``gateway.core.collected``).

Hedging: where a route has ``hedge_after_s``, a second target is raced against a first that has no token by then. The
first token wins, the loser is let go at once, and it is paid for out of a budget of its own besides that of retries.

A breaker is shown when its state has changed, a pace when it was measured, and both a few times a second: to show them
at each of the three steps of a call was half of what the call cost here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, get_args

import structlog
from msgspec import structs

from gateway.core.budget import Budget, Budgets
from gateway.core.call import Call, Route, Target
from gateway.core.collected import Collected, may_be_collected
from gateway.core.errors import InvalidRequest, UpstreamError, without_frames
from gateway.core.events import AttemptFailed, Event
from gateway.core.health import Breaker, HealthBoard, State, TargetHealth
from gateway.core.ledger import Ledger, Settlement
from gateway.core.meters import NO_METERS, Meters, upstream_label
from gateway.core.routing import FAILURES, TargetOrder, is_worth_another, tells_more
from gateway.core.transcript import Transcript
from gateway.pipeline import HEDGE_LOST, Next, Send, Telemetry
from gateway.schema import Range

log = structlog.get_logger()

RESUME_PRICE, HEDGE_PRICE = 2.0, 1.0

HEDGE_WINDOW_S = 300.0
"""A share of two in a hundred needs a while to come to one."""

ATTEMPTS_PER_LANE = 100
"""The attempts of a second target are numbered from so many on: nobody makes as many one after the other."""

_STATES: Final[tuple[State, ...]] = get_args(State)

Percent = Annotated[float, Range(0, 100, unit="per cent")]


@dataclass(frozen=True, slots=True)
class Fallback:
    """Relays the answer of the first target that gives one; raises the last error when none does.

    ``retry_percent`` of the recent requests of a target, and ``retry_floor_per_s`` besides, may be made again, be it as
    a retry, a resume or a hedge; ``hedge_percent`` of all requests may be hedged. A breaker opens after
    ``breaker_failures`` failures in a row, for ``breaker_open_s`` at first.
    """

    retry_percent: Percent = 10.0
    retry_floor_per_s: Annotated[float, Range(0)] = 3.0
    hedge_percent: Percent = 2.0
    breaker_failures: Annotated[int, Range(1, 1000)] = 5
    breaker_open_s: Annotated[float, Range(0.001, 300, unit="seconds")] = 15.0
    _clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    _random: random.Random = field(default_factory=random.Random, repr=False, compare=False)
    _meters: Meters = field(default=NO_METERS, repr=False, compare=False)
    _board: HealthBoard = field(init=False, repr=False, compare=False)
    _order: TargetOrder = field(init=False, repr=False, compare=False)
    _shown: dict[str, State] = field(init=False, repr=False, compare=False)
    _budgets: Budgets = field(init=False, repr=False, compare=False)
    _hedges: Budget = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make what all calls share."""
        board = HealthBoard(failures=self.breaker_failures, open_s=self.breaker_open_s)
        budgets = Budgets(percent=self.retry_percent, floor_per_s=self.retry_floor_per_s)
        hedges = Budget(self.hedge_percent, 0.0, HEDGE_WINDOW_S)
        object.__setattr__(self, "_board", board)
        object.__setattr__(self, "_order", TargetOrder(board, self._clock, self._random))
        object.__setattr__(self, "_shown", {})
        object.__setattr__(self, "_budgets", budgets)
        object.__setattr__(self, "_hedges", hedges)

    def instrumented(self, telemetry: Telemetry) -> Fallback:
        """Return one that shows how each target is doing, and counts races."""
        shown = replace(self, _meters=telemetry.meters)
        telemetry.sample(shown.look)
        return shown

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Relay one whole answer, from as many targets as it takes."""
        if not call.route.targets:  # an unknown model, or a request that was refused before: the end of the chain says
            return call_next(call, send)
        if call.stream or not may_be_collected(call):
            return _Tour(self, call, self._order.of(call.route)).run(send, call_next)
        return self._collect(structs.replace(call, stream=True), send, call_next)

    async def _collect(self, call: Call, send: Send, call_next: Next) -> None:
        """Relay a whole answer out of a stream; what broke off and cannot be continued is asked for again, once."""
        collected = Collected(send)
        tour = _Tour(self, call, self._order.of(call.route))
        try:
            await tour.run(collected.send, call_next)
        except UpstreamError as error:
            if not error.was_sent or not is_worth_another(error) or not self.may_pay(tour.target, RESUME_PRICE):
                raise
            tour.note(error, send)
            collected.clear()
            again = _Tour(self, call, self._order.of(call.route))
            again.attempt = tour.attempt
            again.put_last(error.target)
            await again.run(collected.send, call_next)
        collected.pass_on()

    def admit(self, route: Route, upstream: str) -> tuple[Breaker, float] | None:
        """Return a target's breaker, and when it let a request through, which is now one that budgets are made of.

        In case that nothing is asked, and so nothing settled, that is to be given back to it.
        """
        now_s = self._clock()
        health = self._board.of(upstream)
        breaker = health.breaker
        if not breaker.admit(now_s):
            return None
        self._budgets.note_request(upstream, now_s)
        if breaker.open_until_s or health.shown != "closed":  # it may be half open by now
            self._show(route, upstream, health, now_s)
        return breaker, now_s

    def is_open(self, target: Target) -> bool:
        """Whether the target's breaker would say no."""
        return self._board.of(str(target)).breaker.is_open(self._clock())

    def may_pay(self, target: Target, price: float) -> bool:
        """Take the price of an extra attempt, because of ``target``, out of the budget; say if there was so much."""
        return self._budgets.take(str(target), price, self._clock())

    @property
    def budgets(self) -> Budgets:
        """What extra attempts are paid from."""
        return self._budgets

    def note_first_token(self, route: Route, upstream: str, ttft_s: float | None) -> None:
        """Learn from an attempt's first token: how soon it came, where that says something."""
        now_s = self._clock()
        health = self._board.of(upstream)
        if ttft_s is None:
            health.breaker.note_first_token(now_s)
        else:
            health.note_first_token(ttft_s, now_s)
        if health.breaker.open_until_s or health.shown != "closed":
            self._show(route, upstream, health, now_s)

    def note(self, route: Route, upstream: str, settlement: Settlement) -> None:
        """Learn from an attempt that has ended."""
        now_s = self._clock()
        health = self._board.of(upstream)
        health.note(settlement, now_s)
        if health.breaker.open_until_s or health.shown != "closed":
            self._show(route, upstream, health, now_s)

    def look(self) -> None:
        """Show again what was shown.

        A breaker that was open long enough is half open without anybody's doing, and a pace is less with time.
        """
        now_s = self._clock()
        for upstream in self._shown:
            health = self._board.of(upstream)
            state = health.breaker.state(now_s)
            self._tell(upstream, health, state, now_s)
            if self._shown[upstream] != state:
                self._show_state(upstream, health, state)
            self._show_pace(upstream, health, now_s)

    def _show(self, route: Route, upstream: str, health: TargetHealth, now_s: float) -> None:
        """Show the breaker of a target that the configuration names, and tell the log, if its state has changed."""
        state = health.breaker.state(now_s)
        if state != health.told:
            self._tell(upstream, health, state, now_s)
        if self._shown.get(upstream) == state:
            health.shown = state  # it was forgotten in between
        elif upstream_label(route, upstream) == upstream:
            self._show_state(upstream, health, state)

    def _show_state(self, upstream: str, health: TargetHealth, state: State) -> None:
        self._shown[upstream] = health.shown = state
        for one in _STATES:
            self._meters.gauge("millrace_upstream_state", upstream, one).set(float(one == state))

    def _show_pace(self, upstream: str, health: TargetHealth, now_s: float) -> None:
        ttft_s = health.pace.ttft_s(now_s)
        if ttft_s is not None:
            self._meters.gauge("millrace_upstream_ttft_ewma_seconds", upstream).set(ttft_s)

    def _tell(self, upstream: str, health: TargetHealth, state: State, now_s: float) -> None:
        """Tell the log that a breaker is in another state than it was told last."""
        if state == health.told:
            return
        health.told = state
        if state == "open":
            log.warning("breaker.opened", target=upstream, open_s=round(health.breaker.open_until_s - now_s, 3))
        else:
            log.info("breaker.closed" if state == "closed" else "breaker.half_opened", target=upstream)

    def count_race(self, route: Route, *, is_won: bool) -> None:
        """Count a race, by whether it was worth it: whether the second target had the first token."""
        self._meters.counter("millrace_hedges_total", route.name, "won" if is_won else "lost").inc()

    def may_hedge(self, target: Target) -> bool:
        """Whether the share of hedges and the budget both allow one more."""
        return self._hedges.take(1.0, self._clock()) and self.may_pay(target, HEDGE_PRICE)

    def note_hedgeable(self) -> None:
        """Put in the share of a request that could be hedged."""
        self._hedges.note_request(self._clock())


class _Tour:
    """One call's way through its targets. ``attempt`` is the number of the next attempt, ``target`` was asked last.

    It is the ledger of its attempts: breakers and paces learn from them.
    """

    __slots__ = (
        "_admitted", "_call", "_left", "_name", "_named", "_options", "_race_count", "_route", "attempt", "target",
    )  # fmt: skip

    def __init__(self, options: Fallback, call: Call, order: list[Target]) -> None:
        self._options = options
        self._call = call
        self._route = call.route
        self._left = order
        self._admitted: list[tuple[Breaker, float]] = []
        self._race_count = 0
        self._named: Target | None = None
        self._name = ""
        self.attempt = call.attempt
        self.target = order[0]

    async def run(self, send: Send, call_next: Next) -> None:
        """Ask one target after the other; raises the error that tells most when none gives the whole answer."""
        told: UpstreamError | InvalidRequest | None = None
        delivered: Transcript | None = self._call.delivered
        target: Target | None = self._left[0]  # where no breaker lets us through, the first is asked even so
        target = self._next() or target
        while target is not None:
            self.target = target
            try:
                return await self._ask(target, delivered, send, call_next)
            except FAILURES as error:
                without_frames(error)  # it would keep ours, and that keeps the error
                told = error if told is None or tells_more(error) else told
                delivered = self._after(error, delivered)
                if not is_worth_another(error) or not self._may_move_on(error):
                    break
                self.note(error, send)
            finally:
                if self._admitted:
                    self._release()
            target = self._next()
        assert told is not None  # noqa: S101, one is asked in any case
        try:
            raise told
        finally:
            del told

    def note(self, error: UpstreamError | InvalidRequest, send: Send) -> None:
        """Tell who watches that a target has failed, and that there will be another attempt.

        An error that is told from one of another attempt was told itself, when that was to be made and was declined.
        """
        log.warning(
            "target.failed",
            request_id=self._call.request_id,
            target=str(self.target),
            error_type=error.error_type,
            code=error.code,
        )
        if isinstance(error.__cause__, UpstreamError):
            return
        attempt, was_sent = 0, False
        if isinstance(error, UpstreamError):
            is_declined = error.refused == "continuation" and error.upstream_status is None
            attempt, was_sent = 0 if is_declined else error.attempt, error.was_sent
        send([AttemptFailed(str(self.target), attempt, error.error_type, error.code, was_sent)])

    def put_last(self, target: Target | None) -> None:
        """Ask the others first: of this target it is known by now that it breaks off."""
        self._left.sort(key=lambda other: other == target)

    def take_second(self) -> tuple[Target, int] | None:
        """Return a target to race against the one that is being asked, and the number of its first attempt.

        It is then no longer one of those left; ``None`` where there is none, or it cannot be paid for.
        """
        second = next((other for other in self._left if not self._options.is_open(other)), None)
        if second is None or not self._options.may_hedge(self.target) or not self._is_admitted(second):
            return None
        self._left.remove(second)
        self._race_count += 1
        return second, self.attempt + ATTEMPTS_PER_LANE * self._race_count

    def give_back(self, target: Target) -> None:
        """A target was only slower: it is the last of those that may still go on with the answer."""
        self._left.append(target)

    # --- the ledger of the attempts

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        """Learn from it, and pass it on. Of an answer that is asked for whole its time says nothing."""
        pace_s = ttft_s if self._call.stream else None
        self._options.note_first_token(self._route, self._name_of(target), pace_s)
        self._call.ledger.note_first_token(target, attempt, ttft_s)

    def settle(self, settlement: Settlement) -> None:
        """Learn from an attempt, and pass it on."""
        self._options.note(self._route, self._name_of(settlement.target), settlement)
        self._call.ledger.settle(settlement)

    def _name_of(self, target: Target) -> str:
        """Return what the target is called: asked for at each step of an attempt, it is made once."""
        if target is not self._named:
            self._named, self._name = target, str(target)
        return self._name

    # --- inside

    def _next(self) -> Target | None:
        """Return the next target whose breaker lets us through."""
        while self._left:
            target = self._left.pop(0)
            if self._is_admitted(target):
                return target
        return None

    def _is_admitted(self, target: Target) -> bool:
        admitted = self._options.admit(self._route, self._name_of(target))
        if admitted is None:
            return False
        if admitted[0].open_until_s:  # it is a probe
            self._admitted.append(admitted)
        return True

    def _release(self) -> None:
        for breaker, admitted_at_s in self._admitted:
            breaker.release(admitted_at_s)
        self._admitted.clear()

    def _other_count(self) -> int:
        """Return how many of the targets left would be let through."""
        return sum(not self._options.is_open(other) for other in self._left)

    def _ask(self, target: Target, delivered: Transcript | None, send: Send, call_next: Next) -> Awaitable[None]:
        hedge_after_s = self._route.hedge_after_s
        call = structs.replace(
            self._call,
            target=target,
            attempt=self.attempt,
            other_targets=self._other_count() if self._left else 0,
            delivered=delivered,
            ledger=self,
            budgets=self._options.budgets,
        )
        if hedge_after_s is not None and delivered is None and call.other_targets:
            return _Race(self._options, self, call, send, call_next).run(hedge_after_s)
        return _relay(call, send, call_next) if call.stream else call_next(call, send)

    def _after(self, error: UpstreamError | InvalidRequest, delivered: Transcript | None) -> Transcript | None:
        """Note what an attempt left behind; attempts are counted over all targets.

        An error that is told from one of another attempt, see ``note``, is not that of the last.
        """
        attempts = [one.attempt for one in (error, error.__cause__) if isinstance(one, UpstreamError)]
        self.attempt = max([self.attempt, *attempts]) + 1
        if not isinstance(error, UpstreamError):
            return delivered
        self.target = error.target or self.target
        return error.delivered or delivered

    def _may_move_on(self, error: UpstreamError | InvalidRequest) -> bool:
        """To ask another target from the start is free; to have it go on with what was delivered is a resume."""
        if not self._other_count():
            return False
        if not isinstance(error, UpstreamError) or not error.was_sent:
            return True
        if error.delivered is None:
            return False
        return error.refused == "continuation" or self._options.may_pay(self.target, RESUME_PRICE)


async def _relay(call: Call, send: Send, call_next: Next) -> None:
    """Have a target answer: in one piece, where it does not stream."""
    try:
        return await call_next(call, send)
    except UpstreamError as error:
        if error.refused != "stream" or not call.stream:
            raise
        attempt = max(call.attempt, error.attempt) + 1
    return await call_next(structs.replace(call, stream=False, attempt=attempt), send)


class _Race:
    """Two targets for one answer; the one with the first token has the client."""

    def __init__(self, options: Fallback, tour: _Tour, call: Call, send: Send, call_next: Next) -> None:
        self._options = options
        self._tour = tour
        self._call = call
        self._send = send
        self._call_next = call_next
        self._lanes: list[asyncio.Task[None]] = []
        self._targets: list[Target] = []
        self._winner: int | None = None

    async def run(self, hedge_after_s: float) -> None:
        """Relay the winner's answer; raises its error, or the first's when neither had a token."""
        self._options.note_hedgeable()
        try:
            first = self._start(self._call, self._tour.target)
            await asyncio.wait([first], timeout=hedge_after_s)
            if not first.done() and self._winner is None:
                self._hedge()
            await self._finish()
        except asyncio.CancelledError as error:
            self._stop(*error.args)
            raise
        finally:
            self._stop(HEDGE_LOST)
            if len(self._lanes) > 1:
                self._options.count_race(self._call.route, is_won=self._winner == 1)
            try:
                await asyncio.gather(*self._lanes, return_exceptions=True)
            finally:
                self._lanes.clear()  # their errors would keep us, and we them

    def _hedge(self) -> None:
        taken = self._tour.take_second()
        if taken is None:
            return
        second, attempt = taken
        log.info("call.hedged", request_id=self._call.request_id, target=str(self._tour.target), second=str(second))
        others = max(0, self._call.other_targets - 1)
        self._start(structs.replace(self._call, target=second, attempt=attempt, other_targets=others), second)

    async def _finish(self) -> None:
        """Wait for the winner, or until both have failed."""
        left = set(self._lanes)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for lane in done:
                if lane.cancelled():
                    continue
                if self._winner == self._lanes.index(lane) or not isinstance(lane.exception(), FAILURES):
                    return lane.result()
        return self._lanes[0].result()

    def _start(self, call: Call, target: Target) -> asyncio.Task[None]:
        number = len(self._lanes)

        def send(events: Sequence[Event]) -> None:
            if self._winner is None and not all(isinstance(event, AttemptFailed) for event in events):
                self._win(number)  # there is one start: of an answer, too, that nobody accounts for
            if self._winner is None or self._winner == number:
                self._send(events)

        ledger = _Finishing(call.ledger, lambda: self._win(number))
        lane = asyncio.create_task(_relay(structs.replace(call, ledger=ledger), send, self._call_next))
        self._lanes.append(lane)
        self._targets.append(target)
        return lane

    def _win(self, number: int) -> None:
        if self._winner is not None:
            return
        self._winner = number
        for place, lane in enumerate(self._lanes):
            if place != number and not lane.done():
                lane.cancel(HEDGE_LOST)
                self._tour.give_back(self._targets[place])

    def _stop(self, *words: object) -> None:
        for lane in self._lanes:
            if not lane.done() and not lane.cancelling():
                lane.cancel(*words)


class _Finishing:
    """The ledger of one lane of a race: its first token is the finish."""

    __slots__ = ("_ledger", "_win")

    def __init__(self, ledger: Ledger, win: Callable[[], None]) -> None:
        self._ledger = ledger
        self._win = win

    def note_first_token(self, target: Target, attempt: int, ttft_s: float) -> None:
        self._win()
        self._ledger.note_first_token(target, attempt, ttft_s)

    def settle(self, settlement: Settlement) -> None:
        self._ledger.settle(settlement)
