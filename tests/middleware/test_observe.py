from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.core.call import Call, Message, Route, TextPart
from gateway.core.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    StreamInterrupted,
    Unauthorized,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.core.events import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallStarted, Usage, UsageReported
from middleware.observe import Observe, outcome_of
from tests.middleware.scripted_endpoint import ANSWER, HANG, START, ScriptedEndpoint, Step, ignore


def make_call() -> Call:
    """Return a call that has just been received, and holds what nobody may write down."""
    return Call(
        request_id="r1",
        endpoint="chat_completions",
        model="secret-model",
        route=Route(name="chat"),
        credential="secret-key",
        received_at_s=time.monotonic(),
        stream=True,
        messages=(Message(role="user", parts=(TextPart("secret-prompt"),)),),
    )


async def observe(*steps: list[Any] | BaseException | str) -> dict[str, Any]:
    """Return the one line that a call is logged as, however it ends."""
    script: Step = steps or ANSWER
    with capture_logs() as logs:
        try:
            await Observe()(make_call(), ignore, ScriptedEndpoint(script))
        except BaseException as error:  # noqa: BLE001, whatever ends a call is what is tested
            assert error is script[-1]  # noqa: PT017, same
    [line] = logs
    return dict(line)


async def test_a_call_that_is_complete_is_one_line() -> None:
    """What was asked, who answered, what it took."""
    line = await observe()
    assert 0 <= line.pop("ttft_s") <= line.pop("duration_s") < 10
    assert line == {
        "event": "stream.finished",
        "log_level": "info",
        "request_id": "r1",
        "endpoint": "chat_completions",
        "model": "chat",
        "target": "openai/gpt",
        "stream": True,
        "outcome": "completed",
        "delta_count": 2,
        "input_tokens": 3,
        "output_tokens": 2,
        "usage_source": "reported",
    }


async def test_a_call_that_failed_says_how() -> None:
    """What is worth a look is a warning."""
    line = await observe([START], UpstreamBusy("busy", code="overloaded"))
    assert {key: line[key] for key in ("log_level", "outcome", "error_type", "code", "http_status")} == {
        "log_level": "warning",
        "outcome": "upstream_error",
        "error_type": "overloaded",
        "code": "overloaded",
        "http_status": 503,
    }


async def test_what_did_not_happen_is_null() -> None:
    """A refused call has no target, no first token and no usage."""
    line = await observe(Unauthorized("no"))
    names = ("target", "ttft_s", "input_tokens", "output_tokens", "usage_source")
    assert {line[name] for name in names} == {None}
    assert (line["delta_count"], line["log_level"]) == (0, "info")


async def test_nothing_that_was_said_is_written_down() -> None:
    """Nor the key, nor a model's name that only the client knows, nor a provider's words."""
    words = [TextDelta("secret-answer"), ReasoningDelta("secret-thought"), ToolCallStarted(0, "a", "secret-tool")]
    for end in (UpstreamFailed("secret-words"), RuntimeError("secret-fault"), InvalidRequest("secret-fault")):
        assert "secret" not in str(await observe([START, *words], end))


async def test_every_token_event_is_a_delta() -> None:
    """A role, usage and the finish are none."""
    tokens = [TextDelta("a"), ReasoningDelta("b"), ToolCallStarted(0, "a", "f"), ToolCallDelta(0, "{}")]
    assert (await observe([START, *tokens], *ANSWER[1:]))["delta_count"] == 5


async def test_an_estimate_is_called_one_and_the_last_report_counts() -> None:
    """Money is counted by it."""
    line = await observe([START, UsageReported(Usage(1, 1))], [UsageReported(Usage(5, 4, is_estimated=True))])
    assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (5, 4, "estimated")


async def test_the_first_token_is_timed_once_when_it_is_handed_on() -> None:
    """Not when the stream starts, and not when it ends."""

    async def slow(call: Call, send: Any) -> None:
        for batch in ([START], [TextDelta("a")], [TextDelta("b")]):
            await asyncio.sleep(0.02)
            send(batch)
        assert call.request_id == "r1"

    with capture_logs() as logs:
        await Observe()(make_call(), ignore, slow)
    [line] = logs
    assert 0.03 < line["ttft_s"] < line["duration_s"] - 0.01


async def test_a_batch_that_nobody_took_is_not_counted() -> None:
    """The client left before it."""

    def gone(events: object) -> None:
        raise ClientGone(f"left before {len(str(events))} bytes")

    with capture_logs() as logs, pytest.raises(ClientGone):
        await Observe()(make_call(), gone, ScriptedEndpoint())
    assert (logs[0]["delta_count"], logs[0]["outcome"]) == (0, "client_aborted")


async def test_a_call_that_is_cancelled_is_logged_before_it_is_gone() -> None:
    """With what it had come to."""
    endpoint = ScriptedEndpoint([ANSWER[0], HANG])
    with capture_logs() as logs:
        work = asyncio.ensure_future(Observe()(make_call(), ignore, endpoint))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert [(line["outcome"], line["delta_count"]) for line in logs] == [("client_aborted", 1)]
    assert endpoint.cancelled_count == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "completed"),
        (ClientGone("left"), "client_aborted"),
        (asyncio.CancelledError(), "client_aborted"),
        (asyncio.CancelledError("drained"), "drained"),
        (Unauthorized("no"), "rejected"),
        (InvalidRequest("no"), "rejected"),
        (UpstreamTimeout("slow", code="ttft_timeout"), "stalled"),
        (StreamInterrupted("slow", code="stall_timeout"), "stalled"),
        (UpstreamTimeout("slow", code="total_timeout"), "deadline"),
        (StreamInterrupted("slow", code="total_timeout"), "deadline"),
        (StreamInterrupted("cut", code="stream_truncated"), "truncated"),
        (StreamInterrupted("busy", code="overloaded"), "upstream_error"),
        (UpstreamTimeout("slow", code="connect_timeout"), "upstream_error"),
        (UpstreamFailed("broken"), "upstream_error"),
        (InternalError("ours"), "gateway_error"),
        (RuntimeError("ours"), "gateway_error"),
    ],
)
def test_every_end_has_an_outcome(error: BaseException | None, outcome: str) -> None:
    """One of a closed set."""
    assert outcome_of(error) == outcome
