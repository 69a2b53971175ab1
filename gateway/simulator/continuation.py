"""Whether a request asks to go on with a broken answer, and what is said then.

A conversation's full answer depends only on the turns before the partial answer, so an answer that is continued is
byte for byte the uncut one. Four ways of asking are known: a trailing assistant turn that the wire continues
(prefill), one that it repeats first (echo), a last user turn that asks in words (anchored), and a provider's own
token (checkpoint). Knows nothing of wires.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from gateway.simulator.ask import Ask, Turn
from gateway.simulator.script import Obedience

Way = Literal["", "prefill", "echo", "anchored", "checkpoint"]
FullText = Callable[[tuple[Turn, ...]], str]

ANCHOR_CHARS: Final = 40
_SHORTEST_ANCHOR: Final = 12
_LONGEST_ANCHOR: Final = 400
_LONGEST_ECHO: Final = 120
_SHORTEST_QUOTE: Final = 20
_NAMED_NUMBER: Final = re.compile(r"(?<![-\w])(\d{1,4})\s+(?:[\w-]+\s+)?char", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How far the answer had come. `turns` is the conversation without what was added to ask for more."""

    turns: tuple[Turn, ...]
    way: Way = ""
    partial: str = ""
    partial_reasoning: str = ""
    anchor_chars: int = 0


def find_continuation(ask: Ask, full_text: FullText) -> Continuation:
    """Tell what of the request is the conversation and what asks to go on with its answer."""
    turns = ask.turns
    if ask.checkpoint is not None:
        partial = full_text(turns)[: ask.checkpoint.char_count]
        return Continuation(turns=turns, way="checkpoint", partial=partial)
    if ask.trailing != "new" and turns and turns[-1].role == "assistant" and not turns[-1].calls:
        way: Way = "echo" if ask.trailing == "echo" else "prefill"
        last = turns[-1]
        return Continuation(turns=turns[:-1], way=way, partial=last.text, partial_reasoning=last.reasoning)
    return _anchored(turns, full_text) or Continuation(turns=turns)


def obeyed(continuation: Continuation, rest: str, obey: Obedience) -> str:
    """Return the answer to an anchored request: the repeated end of the partial, then the rest."""
    partial, count = continuation.partial, continuation.anchor_chars
    match obey:
        case "exact":
            return _last(partial, count) + rest
        case "repeat_more":
            return _last(partial, 3 * count) + rest
        case "repeat_less":
            return _last(partial, count // 3) + rest
        case "preamble":
            return f"Of course. Here is the rest:\n\n{_last(partial, count)}{rest}"
        case "rephrase":
            return f"In other words, {' '.join(reversed(_last(partial, count).split()))}{rest}"
        case "ignore":
            return rest


def _anchored(turns: tuple[Turn, ...], full_text: FullText) -> Continuation | None:
    if len(turns) < 2 or turns[-1].role != "user":
        return None
    request, before = turns[-1].text, turns[-2]
    if before.role == "assistant" and before.text and not before.calls:
        partial, conversation = before.text, turns[:-2]
        own = full_text(conversation)
        if not (own.startswith(partial) and own != partial) and not _quoted_end(partial, request):
            return None
    else:
        conversation = turns[:-1]
        partial = _quoted_start(full_text(conversation), request)
        if not partial:
            return None
    return Continuation(
        turns=conversation, way="anchored", partial=partial, anchor_chars=_anchor_chars(partial, request)
    )


def _anchor_chars(partial: str, request: str) -> int:
    if named := _NAMED_NUMBER.search(request.replace(partial, "")):
        return int(named[1])
    quoted = len(_quoted_end(partial, request))
    return quoted if 0 < quoted <= _LONGEST_ECHO else ANCHOR_CHARS


def _quoted_end(partial: str, request: str) -> str:
    """Return the longest end of the partial that the request quotes; empty when it quotes none."""
    longest = min(len(partial), _LONGEST_ANCHOR)
    for length in range(longest, min(_SHORTEST_ANCHOR, longest) - 1, -1):
        if length and partial[-length:] in request:
            return partial[-length:]
    return ""


def _quoted_start(own: str, request: str) -> str:
    """Return as much of the beginning of its own answer as the request quotes in one go."""
    at = request.find(own[:_SHORTEST_QUOTE])
    if at < 0 or len(own) < _SHORTEST_QUOTE:
        return ""
    length = _SHORTEST_QUOTE
    while length < len(own) and request[at : at + length + 1] == own[: length + 1]:
        length += 1
    return own[:length]


def _last(text: str, count: int) -> str:
    return text[-count:] if count > 0 else ""
