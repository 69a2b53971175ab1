from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

import pytest
from msgspec import structs

from gateway.core.call import Call
from gateway.core.errors import ClientGone, Unauthorized, UpstreamFailed
from gateway.core.events import Event, TextDelta
from gateway.pipeline import Authenticator, Instrumented, Middleware, Next, Send, Telemetry, compose

CALL = Call(request_id="r1")


@dataclass(frozen=True)
class Note:
    """A middleware that notes when it is passed, both ways."""

    name: str
    notes: list[str]

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:
        """Note the call, its events and its end."""

        def noted(events: Sequence[Event]) -> None:
            self.notes.append(f"{self.name} sends")
            send(events)

        self.notes.append(f"{self.name} calls")
        await call_next(call, noted)
        self.notes.append(f"{self.name} returns")


async def say_hello(call: Call, send: Send) -> None:
    """Answer with one word and the number of the attempt."""
    send([TextDelta(f"hello {call.attempt}")])


def test_chain_without_middlewares_is_the_endpoint() -> None:
    """Nothing is put around what nothing is to be put around."""
    assert compose([], say_hello) is say_hello


async def test_first_middleware_is_the_outermost() -> None:
    """Calls go inwards in the order of the list, events and returns go outwards."""
    notes: list[str] = []
    sent: list[Event] = []
    await compose([Note("a", notes), Note("b", notes)], say_hello)(CALL, sent.extend)
    assert notes == ["a calls", "b calls", "b sends", "a sends", "b returns", "a returns"]
    assert sent == [TextDelta("hello 1")]


async def test_chain_serves_any_number_of_calls() -> None:
    """It is made once and keeps nothing of a call."""
    sent: list[Event] = []
    chain = compose([Note("a", [])], say_hello)
    await chain(CALL, sent.extend)
    await chain(structs.replace(CALL, attempt=2), sent.extend)
    assert sent == [TextDelta("hello 1"), TextDelta("hello 2")]


async def test_middleware_that_decides_need_not_go_on() -> None:
    """What it refuses reaches nobody behind it."""
    notes: list[str] = []
    sent: list[Event] = []

    async def refuse(call: Call, send: Send, call_next: Next) -> None:  # noqa: ARG001, the signature of a middleware
        raise Unauthorized("no key")

    with pytest.raises(Unauthorized):
        await compose([Note("a", notes), refuse, Note("b", notes)], say_hello)(CALL, sent.extend)
    assert (notes, sent) == (["a calls"], [])


async def test_middleware_may_try_again_with_a_new_call() -> None:
    """The next attempt is another call through what is behind it."""
    attempts: list[int] = []

    async def fail_once(call: Call, send: Send) -> None:
        attempts.append(call.attempt)
        if call.attempt == 1:
            raise UpstreamFailed("try again")
        await say_hello(call, send)

    async def retry(call: Call, send: Send, call_next: Next) -> None:
        try:
            await call_next(call, send)
        except UpstreamFailed:
            await call_next(structs.replace(call, attempt=2), send)

    sent: list[Event] = []
    await compose([retry], fail_once)(CALL, sent.extend)
    assert (attempts, sent) == ([1, 2], [TextDelta("hello 2")])


async def test_error_of_send_goes_all_the_way_out() -> None:
    """A client that has left ends the call where it is."""

    def leave(events: Sequence[Event]) -> None:  # noqa: ARG001, the signature of send
        raise ClientGone("gone")

    with pytest.raises(ClientGone):
        await compose([Note("a", []), Note("b", [])], say_hello)(CALL, leave)


def test_middleware_that_knows_the_clients_is_found() -> None:
    """The server asks it before a byte of the body is read."""

    class Door:
        requires_key = True

        def authenticate(self, credential: str | None) -> str | None:
            return credential

        def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
            return call_next(call, send)

    middlewares: list[Middleware] = [Note("a", []), Door()]
    assert [isinstance(one, Authenticator) for one in middlewares] == [False, True]


def test_middleware_that_measures_is_found() -> None:
    """Whoever makes the chain asks it for one that does."""

    class Counted:
        def instrumented(self, telemetry: Telemetry) -> Middleware:  # noqa: ARG002, the signature
            return self

        def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
            return call_next(call, send)

    middlewares: list[Middleware] = [Note("a", []), Counted()]
    assert [isinstance(one, Instrumented) for one in middlewares] == [False, True]


def test_what_is_told_to_no_telemetry_is_forgotten() -> None:
    """A chain of one's own needs none."""

    class Stream:
        def shown(self) -> dict[str, object]:
            return {}

        def drain(self) -> None:
            pass

    telemetry, stream = Telemetry(), Stream()
    telemetry.live.begin(stream)
    telemetry.live.end(stream, stream)
    telemetry.meters.counter("millrace_spans_dropped_total").inc()
    assert (telemetry.slo.ttft_s, telemetry.slo.tpot_s, telemetry.slo.max_gap_s) == (2.0, 0.1, 2.0)
