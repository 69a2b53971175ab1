"""Reads a whole ``chat.completion``: nearly all in one go, and what is odd as ``openai_completion`` reads a chunk.

The events of an answer share one frame, which is its body, as it came or mended. The start of one that goes on with an
answer which the client knows already is apart from it. Of streams this module knows nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gateway.core.call import Call
from gateway.core.events import (
    OPENAI_ANSWER,
    ChoiceFinished,
    Event,
    FinishReason,
    Frame,
    StreamStarted,
    TextDelta,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.providers.base import framed, started
from gateway.providers.errors import NOT_JSON, malformed
from gateway.providers.openai_completion import (
    ReportedUsage,
    counted,
    decode_chunk,
    identity_of,
    known_identity,
    numbered,
    raise_error,
    read_choice,
    usage_of,
)
from gateway.providers.openai_mend import CallIndex, Mender

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Nothing = Literal[""] | None


class _PlainMessage(msgspec.Struct, gc=False):
    content: _Text
    role: str | None = None
    reasoning_content: _Nothing = None
    reasoning: _Nothing = None
    refusal: _Nothing = None
    tool_calls: Annotated[list[None], msgspec.Meta(max_length=0)] | None = None
    function_call: None = None


class _PlainChoice(msgspec.Struct, gc=False):
    index: Literal[0]
    message: _PlainMessage
    finish_reason: FinishReason
    delta: None = None


class _PlainUsage(ReportedUsage, kw_only=True, gc=False):
    prompt_tokens: int
    completion_tokens: int


class _PlainGroq(msgspec.Struct, gc=False):
    usage: None = None
    error: None = None


class _PlainAnswer(msgspec.Struct, gc=False):
    """An answer of one choice that is nothing but text, as OpenAI writes it: nothing in it has to be mended or sorted.

    Nearly all whole answers are one, and are read in a third of the time. Whatever is not of this type, to the last
    word, is read as if nobody had looked.
    """

    id: _Text
    created: Annotated[int, msgspec.Meta(ge=1)]
    model: _Text
    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1, max_length=1)]
    object: Literal["chat.completion"] | None = None
    usage: _PlainUsage | None = None
    error: None = None
    x_groq: _PlainGroq | None = None


_decode_plain_answer = msgspec.json.Decoder(_PlainAnswer).decode


def read_answer(call: Call, body: bytes, *, secret: str | None = None) -> list[Event]:
    """Read a whole ``chat.completion``; raises as the decoder does."""
    if call.continuation is None:
        try:
            return _read_plain_answer(call, body)
        except NOT_JSON:
            pass
    try:
        return _read_answer(call, body, secret)
    except NOT_JSON as error:
        raise malformed("an answer that is not a chat completion") from error


def _read_plain_answer(call: Call, body: bytes) -> list[Event]:
    answer = _decode_plain_answer(body)
    [choice], usage = answer.choices, answer.usage
    reason = choice.finish_reason
    frame = Frame(body, OPENAI_ANSWER, 3 if usage is None else 4)
    events: list[Event] = [
        StreamStarted(answer.id, answer.model, answer.created, str(call.target or ""), frame=frame),
        TextDelta(choice.message.content, 0, frame),
        ChoiceFinished(reason, reason, 0, frame),
    ]
    if usage is not None:
        events.append(UsageReported(counted(usage), frame))
    return events


def _read_answer(call: Call, body: bytes, secret: str | None) -> list[Event]:
    answer = decode_chunk(body)
    raise_error(answer, body, secret)
    if not answer.choices:
        raise malformed("a chat completion without choices")
    known = known_identity(call)
    identity = answer_id, created_unix_s, model = known or identity_of(answer, call)
    mender = Mender(body)
    if identity != (answer.id, answer.created, answer.model):
        mender.identity = identity
    start = started(call, answer_id, model, created_unix_s)
    events: list[Event] = [] if known else [start]
    calls = CallIndex(call.request_id)
    for _, choice in numbered(answer.choices, mender):
        read_choice(choice, choice.message, calls, events, mender)
    if (usage := usage_of(answer)) is not None:
        events.append(UsageReported(usage))
    told = framed(events, mender.result(), OPENAI_ANSWER)
    return Lifecycle().admit([start, *told] if known else told)
