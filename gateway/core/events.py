"""What can happen in a token stream, whatever the provider's wire.

Providers turn bytes into these events, dialects turn them into bytes again, middlewares look at them in between. The
union ``Event`` is closed: a provider's speciality that is none of them travels as ``ProviderExtra``.

An event carries the ``Frame`` it came in: the provider's JSON, byte for byte. A dialect that speaks its wire writes a
frame through unchanged when all ``event_count`` events of it arrive, so that an untouched event costs no second
encoding and loses no field. Whoever alters an event drops its frame (``msgspec.structs.replace(event, frame=None)``).

Events are ``msgspec.Struct`` and not dataclasses: frozen ones are made in about 0.1 µs instead of 1 µs, and with
``gc=False`` a long stream gives the collector nothing to walk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]

OPENAI_CHUNK = "openai.chat.completion.chunk"
OPENAI_ANSWER = "openai.chat.completion"


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One JSON document of a provider's answer, as it came.

    ``wire`` names its format (``OPENAI_CHUNK`` …); ``event_count`` is how many events were read from it.
    """

    data: bytes
    wire: str
    event_count: int


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer. Input includes what came from a cache, output includes reasoning."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    reasoning_tokens: int = 0
    is_estimated: bool = False


class StreamStarted(msgspec.Struct, frozen=True, gc=False):
    """The provider has begun to answer. ``created_unix_s`` is 0 and ``id`` empty where its wire has none.

    ``target`` is ``provider/model`` of the attempt, ``headers`` the answer's headers that a client may see.
    """

    id: str
    model: str
    created_unix_s: int = 0
    target: str = ""
    headers: Mapping[str, str] = {}
    frame: Frame | None = None


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the visible answer; never empty."""

    text: str
    index: int = 0
    frame: Frame | None = None


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the reasoning that the provider shows; never empty."""

    text: str
    index: int = 0
    frame: Frame | None = None


class RefusalDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the words with which the model declines; never empty."""

    text: str
    index: int = 0
    frame: Frame | None = None


class ToolCallStarted(msgspec.Struct, frozen=True, gc=False):
    """The model begins a call that the client is to answer.

    ``call_index`` counts the calls of one choice from 0. ``kind`` is ``custom`` where the input is free text instead of
    JSON, ``legacy`` for OpenAI's old ``function_call``.
    """

    call_index: int
    id: str
    name: str
    kind: Literal["function", "custom", "legacy"] = "function"
    index: int = 0
    frame: Frame | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the arguments of a call that has started; the pieces concatenate to JSON."""

    call_index: int
    arguments: str
    index: int = 0
    frame: Frame | None = None


class UsageReported(msgspec.Struct, frozen=True, gc=False):
    """What the attempt has used so far; the last report counts."""

    usage: Usage
    frame: Frame | None = None


class ChoiceFinished(msgspec.Struct, frozen=True, gc=False):
    """The provider's own word that one choice is whole, in its own (``native_reason``) and in OpenAI's terms."""

    reason: FinishReason
    native_reason: str = ""
    index: int = 0
    frame: Frame | None = None


class ProviderExtra(msgspec.Struct, frozen=True, gc=False):
    """Something that only a client of the provider's own dialect can make use of."""

    frame: Frame | None = None


class CheckpointReached(msgspec.Struct, frozen=True, gc=False):
    """The provider's own token for going on from here, should the stream break: all text so far is behind it."""

    token: str
    index: int = 0
    frame: Frame | None = None


class AttemptFailed(msgspec.Struct, frozen=True, gc=False):
    """An attempt has failed, and another is about to be made. ``error_type`` and ``code`` are those of its error.

    ``has_delivered`` says whether the client has seen any of the answer by then.
    """

    target: str
    attempt: int
    error_type: str
    code: str
    has_delivered: bool = False
    frame: Frame | None = None


class StreamContinued(msgspec.Struct, frozen=True, gc=False):
    """A seam: what comes next is from another attempt. ``character_count`` is how much text lies before it."""

    target: str
    from_target: str
    way: Literal["restart", "exact", "anchored"]
    attempt: int
    character_count: int
    frame: Frame | None = None


Delta: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallStarted | ToolCallDelta
"""A piece of the answer: what a user could see."""

Note: TypeAlias = CheckpointReached | AttemptFailed | StreamContinued
"""What the gateway itself, and who watches it, wants to know."""

Event: TypeAlias = StreamStarted | Delta | UsageReported | ChoiceFinished | ProviderExtra | Note

TOKEN_EVENTS = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallStarted, ToolCallDelta)
"""What counts as progress: a ping, a role or an empty delta is none of them."""
