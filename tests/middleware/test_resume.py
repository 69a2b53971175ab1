from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.core.call import Call
from gateway.core.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import TextDelta
from middleware.resume import MAX_WAIT_S, Resume
from tests.middleware.scripted_endpoint import ANSWER, START, ScriptedEndpoint, ignore

CALL = Call(request_id="t")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts; no time passes."""
    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        if delay_s:
            waited.append(delay_s)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def run(endpoint: ScriptedEndpoint, *, max_attempts: int = 3, call: Call = CALL) -> list[Any]:
    """Return the batches that a call is answered with."""
    sent: list[Any] = []
    await Resume(max_attempts=max_attempts)(call, sent.append, endpoint)
    return sent


async def test_an_answer_that_begins_needs_one_attempt(waits: list[float]) -> None:
    """And no waiting."""
    endpoint = ScriptedEndpoint()
    assert await run(endpoint) == list(ANSWER)
    assert [call.attempt for call in endpoint.calls] == [1]
    assert waits == []


@pytest.mark.parametrize(
    "error", [UpstreamBusy("busy"), UpstreamFailed("broken"), UpstreamUnreachable("gone"), UpstreamTimeout("slow")]
)
async def test_what_may_pass_is_tried_again(error: UpstreamError, waits: list[float]) -> None:
    """After a pause of random length, which doubles at most."""
    endpoint = ScriptedEndpoint([error], [error], ANSWER)
    assert await run(endpoint) == list(ANSWER)
    assert [call.attempt for call in endpoint.calls] == [1, 2, 3]
    assert len(waits) == 2
    assert all(0 <= wait_s <= most_s for wait_s, most_s in zip(waits, (0.25, 0.5), strict=True))


@pytest.mark.usefixtures("waits")
async def test_attempts_are_counted_on_from_those_before() -> None:
    """Another middleware may have made some."""
    endpoint = ScriptedEndpoint([UpstreamFailed("broken")], ANSWER)
    await run(endpoint, call=Call(request_id="t", attempt=4))
    assert [call.attempt for call in endpoint.calls] == [4, 5]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
async def test_attempts_are_bounded_and_the_last_error_is_told(max_attempts: int) -> None:
    """As it is, not wrapped in anything."""
    errors = [UpstreamFailed(str(number)) for number in range(1, 6)]
    endpoint = ScriptedEndpoint(*([error] for error in errors))
    with pytest.raises(UpstreamFailed) as raised:
        await run(endpoint, max_attempts=max_attempts)
    assert raised.value is errors[max_attempts - 1]
    assert len(endpoint.calls) == max_attempts


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("no"),
        UpstreamFailed("told not to", retryable=False),
        InvalidRequest("wrong"),
        ClientGone("left"),
        InternalError("ours"),
        RuntimeError("a fault of ours"),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(error: Exception, waits: list[float]) -> None:
    """Whoever's fault it is."""
    endpoint = ScriptedEndpoint([error])
    with pytest.raises(type(error)) as raised:
        await run(endpoint)
    assert raised.value is error
    assert (len(endpoint.calls), waits) == (1, [])


@pytest.mark.parametrize("sent", [[START], [TextDelta("a")]])
async def test_an_answer_that_was_delivered_in_part_is_not_begun_again(sent: list[Any], waits: list[float]) -> None:
    """Its error is passed on, and the client is told."""
    endpoint = ScriptedEndpoint([sent, StreamInterrupted("cut")], ANSWER)
    with pytest.raises(StreamInterrupted):
        await run(endpoint)
    assert (len(endpoint.calls), waits) == (1, [])


@pytest.mark.parametrize(("asked_s", "expected"), [(3.0, [3.0]), (0.0, []), (MAX_WAIT_S, [MAX_WAIT_S])])
async def test_a_provider_that_names_a_time_is_taken_at_its_word(
    asked_s: float, expected: list[float], waits: list[float]
) -> None:
    """Neither earlier nor later."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=asked_s)], ANSWER)
    assert await run(endpoint) == list(ANSWER)
    assert waits == expected


async def test_a_time_longer_than_anybody_waits_is_given_up_at_once(waits: list[float]) -> None:
    """The client is told it instead."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=MAX_WAIT_S + 0.1)], ANSWER)
    with pytest.raises(UpstreamBusy) as raised:
        await run(endpoint)
    assert raised.value.retry_after_s == MAX_WAIT_S + 0.1
    assert (len(endpoint.calls), waits) == (1, [])


async def test_a_call_that_is_cancelled_while_it_waits_is_let_go() -> None:
    """The client has left: no further attempt is made."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy", retry_after_s=30.0)], ANSWER)
    work = asyncio.ensure_future(Resume()(CALL, ignore, endpoint))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(endpoint.calls) == 1
