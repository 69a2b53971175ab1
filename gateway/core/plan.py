"""How to go on with an answer that broke off: whether it may be, and the ways there are, the best first.

*Exactly*, where the target takes a partial answer and goes on with it: its provider knows how to ask, and its decoder
returns nothing but the rest. Else *anchored*: the model is asked, in the user's voice, to repeat its last words and to
go on from there. Which of them a target takes is not known here; it says so when it is asked.

Not continued is what could not be joined truthfully: a tool call of which the client has a part, a refusal, audio. Text
in a given form (JSON), with log probabilities or beside other choices is continued exactly or not at all, and JSON must
in the end be JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from gateway.core.call import Call, Message, Source, TextPart
from gateway.core.continuation import Continuation, Way
from gateway.core.delivery import CHARACTERS_PER_TOKEN, delivered_tokens, text_tokens
from gateway.core.seam import (
    ANCHOR_CHARACTERS,
    AnchorTrim,
    DropTrim,
    SpaceTrim,
    StopTrim,
    Trim,
    choose_anchor,
    seam_not_found,
)
from gateway.core.transcript import ChoiceTranscript, Transcript

MESSAGE_TOKENS = 4
"""What a turn costs beside its words."""

ASK = (
    "Your last answer was cut off by a technical fault before it was complete. Please do not start again, do not"
    " apologise and do not comment on this. First repeat the last {count} characters of it, exactly as they are, and"
    " then go straight on from there, without a gap, to its end. These are the last {count} characters:\n{anchor}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to go on: the call to make, and how what comes back is joined to what the client has.

    ``added_tokens`` is how much longer the prompt is than the client's own, ``repeated_tokens`` how much of the answer
    the provider says once more.
    """

    call: Call
    way: Way
    trims: Sequence[Trim] = ()
    added_tokens: int = 0
    repeated_tokens: int = 0
    check: Callable[[str], None] | None = field(default=None, repr=False)


def holds_calls(call: Call) -> bool:
    """Whether tool calls are held back until they are whole: wherever the call may have to be made again."""
    return call.route.on_interrupt != "error" or len(call.route.targets) != 1


def may_go_on(call: Call, transcript: Transcript) -> bool:
    """Whether the answer may still become whole, after what was delivered of it, as its route has it."""
    if not transcript.is_visible:
        return True
    policy = call.route.on_interrupt
    choices = transcript.choices.values()
    if any(choice.tool_calls and choice.finish_reason is None for choice in choices):
        return False
    if any(choice.refusal for choice in choices) or policy == "error":
        return False
    has_text = any(choice.character_count for choice in choices)
    return policy == "continue" and not is_spoken(call) if has_text else True


def is_spoken(call: Call) -> bool:
    """Whether the answer is audio, of which the transcript has only the words."""
    modalities = call.source.body.get("modalities")
    return isinstance(modalities, list) and "audio" in modalities


def plans(
    call: Call, transcript: Transcript, index: int = 0, *, anchor_characters: int = ANCHOR_CHARACTERS
) -> Iterator[Plan]:
    """Yield the ways to go on with one choice of an answer, the best first."""
    choice = transcript.choice(index)
    text = choice.text
    known = Continuation(way="restart", started=transcript.started, limit_tokens=call.max_output_tokens)
    alone = _for_one_choice(call)
    if not text.strip():
        trims = (SpaceTrim(text),) if text else ()
        yield Plan(call=msgspec.structs.replace(alone, continuation=known), way="restart", trims=trims)
        return
    delivered = delivered_tokens(choice)
    limit = call.max_output_tokens and max(1, call.max_output_tokens - delivered)
    exact = replace(known, way="exact", text=text, checkpoint=choice.checkpoint)
    has_token = choice.checkpoint is not None and choice.checkpoint.target == str(call.target)
    behind = text[choice.checkpoint.character_count :] if choice.checkpoint is not None and has_token else ""
    yield Plan(
        call=msgspec.structs.replace(alone, continuation=exact, max_output_tokens=limit),
        way="exact",
        trims=_last_trims(call, text, delivered),
        added_tokens=0 if has_token else text_tokens(choice) + MESSAGE_TOKENS,
        repeated_tokens=_tokens(behind, choice) if behind else 0,
        check=_check_json if _wants_json(call) else None,
    )
    if _has_form(call) or call.logprobs or call.choice_count > 1:
        return
    anchor = choose_anchor(text, anchor_characters)
    if anchor is not None:
        yield _anchored(alone, choice, anchor, replace(known, way="anchored", text=text), limit)


def _anchored(call: Call, choice: ChoiceTranscript, anchor: str, continuation: Continuation, limit: int | None) -> Plan:
    text = choice.text
    request = ASK.format(count=len(anchor), anchor=anchor)
    turns = (
        Message(role="assistant", parts=(TextPart(text),)),
        Message(role="user", parts=(TextPart(request),)),
    )
    return Plan(
        call=msgspec.structs.replace(
            call,
            messages=(*call.messages, *turns),
            continuation=continuation,
            max_output_tokens=limit and limit + _tokens(anchor, choice) + 1,
        ),
        way="anchored",
        trims=(AnchorTrim(text, anchor), *_last_trims(call, text, delivered_tokens(choice))),
        added_tokens=text_tokens(choice) + len(request) // CHARACTERS_PER_TOKEN + 2 * MESSAGE_TOKENS,
    )


def _last_trims(call: Call, text: str, delivered: int) -> tuple[Trim, ...]:
    """Return what keeps to the client's own limits behind the seam: its stop sequences, and its number of tokens."""
    trims: list[Trim] = [StopTrim(text, call.stop)] if call.stop else []
    if call.max_output_tokens is not None and delivered >= call.max_output_tokens:
        trims.append(DropTrim())
    return tuple(trims)


def _tokens(part: str, choice: ChoiceTranscript) -> int:
    """Return about how many tokens a part of the answer has, and one for where it is cut."""
    of_text = delivered_tokens(choice) - choice.reasoning_delta_count
    return -(-len(part) * of_text // max(1, choice.character_count)) + 1


def _for_one_choice(call: Call) -> Call:
    """Return the call for one choice of it; what is asked beside others is continued alone."""
    if call.choice_count == 1:
        return call
    body = {key: value for key, value in call.source.body.items() if key != "n"}
    return msgspec.structs.replace(call, choice_count=1, source=Source(call.source.wire, body))


def _has_form(call: Call) -> bool:
    """Whether the answer must have a form, which only who knows it can go on with; not every one is JSON."""
    return call.response_format is not None and call.response_format.kind != "text"


def _wants_json(call: Call) -> bool:
    return call.response_format is not None and call.response_format.kind in ("json_object", "json_schema")


def _check_json(text: str) -> None:
    """Raise where text that was to be JSON is none: the two parts of it do not belong together."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise seam_not_found() from None
