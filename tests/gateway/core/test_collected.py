from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.core.call import OPENAI_CHAT, Call, Route, Source
from gateway.core.collected import SHORT_ANSWER_TOKENS, Collected, may_be_collected
from gateway.core.events import AttemptFailed, Event, StreamStarted, TextDelta

START = StreamStarted("c1", "m")
FAILED = AttemptFailed("openai/a", 1, "server_error", "broken")


def make_call(policy: Any = "continue", **more: Any) -> Call:
    """Return a call for a whole answer, of a route with this policy."""
    return Call(request_id="t", route=Route(name="chat", on_interrupt=policy), **more)


@pytest.mark.parametrize(
    ("limit_tokens", "is_collected"),
    [(None, True), (SHORT_ANSWER_TOKENS + 1, True), (SHORT_ANSWER_TOKENS, False), (1, False)],
)
def test_an_answer_is_asked_for_as_a_stream_if_it_may_be_long(limit_tokens: int | None, *, is_collected: bool) -> None:
    """To have a short one once more costs less than to read every such answer as a stream."""
    assert may_be_collected(make_call(max_output_tokens=limit_tokens)) is is_collected


@pytest.mark.parametrize("policy", ["restart", "error"])
def test_an_answer_that_is_not_to_be_continued_is_asked_for_as_it_is_wanted(policy: str) -> None:
    """A stream would be of no use."""
    assert not may_be_collected(make_call(policy))


def test_audio_is_asked_for_as_it_is_wanted() -> None:
    """It does not come in a stream of events that we know."""
    assert not may_be_collected(make_call(source=Source(OPENAI_CHAT, {"modalities": ["text", "audio"]})))


@pytest.mark.parametrize("modalities", [1, True, {"a": 1}, "audio", None])
def test_modalities_that_are_no_list_are_the_providers_business(modalities: object) -> None:
    """It will say what is wrong with them; here nothing breaks."""
    assert may_be_collected(make_call(source=Source(OPENAI_CHAT, {"modalities": modalities})))


def test_events_are_kept_until_they_are_passed_on_as_they_came() -> None:
    """The same batches, in their order."""
    sent: list[Sequence[Event]] = []
    collected = Collected(sent.append)
    batches: list[list[Event]] = [[START], [TextDelta("a"), TextDelta("b")]]
    for batch in batches:
        collected.send(batch)
    assert sent == []
    collected.pass_on()
    assert all(got is wanted for got, wanted in zip(sent, batches, strict=True))


def test_what_is_only_told_to_who_watches_is_told_at_once() -> None:
    """A log need not wait for the answer; what came with it does."""
    sent: list[Sequence[Event]] = []
    collected = Collected(sent.append)
    collected.send([FAILED])
    collected.send([START, FAILED, TextDelta("a")])
    assert sent == [[FAILED], [FAILED]]
    collected.pass_on()
    assert sent[2:] == [[START, TextDelta("a")]]


def test_what_is_not_gone_on_with_is_forgotten() -> None:
    """The answer is begun anew."""
    sent: list[Sequence[Event]] = []
    collected = Collected(sent.append)
    collected.send([START, TextDelta("a")])
    collected.clear()
    collected.send([TextDelta("b")])
    collected.pass_on()
    assert sent == [[TextDelta("b")]]
