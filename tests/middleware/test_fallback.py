from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.core.call import Call, Message, Route, Target, TextPart
from gateway.core.errors import (
    ClientGone,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.events import Event, StreamStarted, TextDelta
from middleware.fallback import Fallback
from tests.middleware.scripted_endpoint import ANSWER, START, ScriptedEndpoint, ignore

A, B, C = Target("openai", "a"), Target("anthropic", "b"), Target("llama", "c")


def make_call(*targets: Target, attempt: int = 1) -> Call:
    """Return a call whose route has these targets."""
    turn = Message(role="user", parts=(TextPart("the secret plan"),))
    return Call(
        request_id="t",
        model="chat",
        route=Route(name="chat", targets=targets),
        attempt=attempt,
        credential="the secret key",
        messages=(turn,),
    )


async def run(endpoint: ScriptedEndpoint, *targets: Target) -> list[Any]:
    """Return the batches that a call is answered with."""
    sent: list[Any] = []
    await Fallback()(make_call(*targets), sent.append, endpoint)
    return sent


def tried(endpoint: ScriptedEndpoint) -> list[str]:
    """Return the targets that were tried, in their order."""
    return [str(call.target) for call in endpoint.calls]


async def test_a_call_goes_to_the_first_target() -> None:
    """And to no other when that one answers."""
    endpoint = ScriptedEndpoint()
    assert await run(endpoint, A, B) == list(ANSWER)
    assert tried(endpoint) == ["openai/a"]


@pytest.mark.parametrize(
    "error",
    [
        UpstreamBusy("busy"),
        UpstreamFailed("broken"),
        UpstreamUnreachable("gone"),
        UpstreamTimeout("slow"),
        StreamInterrupted("cut"),
        UpstreamRefused("no credit", error_type="auth"),
        UpstreamRefused("no quota", error_type="rate_limited", retryable=False),
    ],
)
async def test_a_target_that_cannot_is_followed_by_the_next(error: UpstreamError) -> None:
    """Also when its key or its quota is the reason, which another target does not share."""
    endpoint = ScriptedEndpoint([error], ANSWER)
    assert await run(endpoint, A, B, C) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]


async def test_targets_are_tried_in_their_order_until_the_last() -> None:
    """Whose error is the one that is told."""
    errors = [UpstreamFailed(word) for word in ("first", "second", "third")]
    endpoint = ScriptedEndpoint(*([error] for error in errors))
    with pytest.raises(UpstreamFailed, match="third"):
        await run(endpoint, A, B, C)
    assert tried(endpoint) == ["openai/a", "anthropic/b", "llama/c"]


async def test_a_target_that_is_listed_twice_is_tried_twice() -> None:
    """What is last is a matter of place, not of name."""
    endpoint = ScriptedEndpoint([UpstreamFailed("once")], [UpstreamFailed("twice")], ANSWER)
    assert await run(endpoint, A, B, A) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b", "openai/a"]


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("this wire has no audio"), UpstreamRefused("no such model", upstream_status=404)],
)
async def test_what_one_target_cannot_do_is_asked_of_the_next(error: GatewayError) -> None:
    """A wire that cannot express the request, or a provider without the model, says nothing of the others."""
    endpoint = ScriptedEndpoint([error], ANSWER)
    assert await run(endpoint, A, B) == list(ANSWER)
    assert tried(endpoint) == ["openai/a", "anthropic/b"]


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("bad request"),
        UpstreamRefused("too long", error_type="context_length"),
        ClientGone("left"),
    ],
)
async def test_a_request_that_is_wrong_everywhere_is_not_sent_elsewhere(error: GatewayError) -> None:
    """Nor is one that nobody waits for."""
    endpoint = ScriptedEndpoint([error])
    with pytest.raises(type(error)) as raised:
        await run(endpoint, A, B)
    assert raised.value is error
    assert tried(endpoint) == ["openai/a"]


@pytest.mark.parametrize("sent", [[START], [TextDelta("a")]])
async def test_an_answer_that_was_delivered_in_part_is_not_begun_again(sent: list[Any]) -> None:
    """A second one from the start would be a duplicate."""
    endpoint = ScriptedEndpoint([sent, StreamInterrupted("cut")], ANSWER)
    with pytest.raises(StreamInterrupted):
        await run(endpoint, A, B)
    assert tried(endpoint) == ["openai/a"]


async def test_every_attempt_has_a_number_of_its_own() -> None:
    """Counted on from those that were made on the target before."""
    failed, failed_later = UpstreamFailed("once"), UpstreamFailed("thrice")
    failed_later.attempt = 4
    endpoint = ScriptedEndpoint([failed], [failed_later], ANSWER)
    await Fallback()(make_call(A, B, C), ignore, endpoint)
    assert [call.attempt for call in endpoint.calls] == [1, 2, 5]


async def test_a_call_without_targets_is_told_by_the_end_of_the_chain() -> None:
    """An unknown model, or what was wrong before it could be looked up."""
    endpoint = ScriptedEndpoint([UnknownModel("no such model")])
    with pytest.raises(UnknownModel):
        await run(endpoint)
    assert tried(endpoint) == ["None"]


async def test_a_target_that_failed_is_logged_without_a_word_of_the_call() -> None:
    """Which, and why; the last one is told by its error."""
    endpoint = ScriptedEndpoint([UpstreamBusy("busy with the secret plan", code="overloaded")], ANSWER)
    with capture_logs() as logs:
        await run(endpoint, A, B)
    assert logs == [
        {
            "event": "target_failed",
            "log_level": "warning",
            "request_id": "t",
            "target": "openai/a",
            "error_type": "overloaded",
            "code": "overloaded",
        }
    ]


async def test_what_is_sent_is_passed_on_as_it_is() -> None:
    """The same batches, not copies of them."""
    batch: list[Event] = [StreamStarted("a", "m"), TextDelta("b")]
    [sent] = await run(ScriptedEndpoint([batch]), A)
    assert sent is batch
