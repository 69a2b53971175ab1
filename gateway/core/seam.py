"""Where one attempt's text ends and another's goes on: no character doubled, none lost, or an honest error.

A trim takes the text of a later attempt piece by piece and returns what of it is new. While it cannot know yet it
returns nothing and holds the text back; where what comes does not fit what the client has, it raises, and the attempt
has failed: text that looks right and is not would be worse. How the text is cut into pieces makes no difference.

- ``EchoTrim``: providers that repeat the partial answer before they go on (Mistral's ``prefix``).
- ``SpaceTrim``: providers that refuse white space at the end of a partial answer, and say it again or do not.
- ``ReplayTrim``: providers that go on from a checkpoint, and say again what came behind it.
- ``AnchorTrim``: models that were asked in words to repeat the end of their answer and to go on.
- ``DropTrim``: an answer of which the client has as many tokens as it wanted.
- ``StopTrim``: a stop sequence of the client's that begins before the seam and ends behind it.

What cannot be known: an answer that begins with the anchor, or with more of what was delivered, is taken to do as it
was asked, even if it is the rest that says the same once more; and all behind the seam, comments and a closing fence
too, is the model's own. Where less than ``LEAST_ANCHOR_CHARACTERS`` were delivered, an answer that begins with exactly
those is accepted as it is: then the client has that answer, and no other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Protocol

from gateway.core.errors import StreamInterrupted

ANCHOR_CHARACTERS = 40
MAX_ANCHOR_CHARACTERS = 400
LEAST_ANCHOR_CHARACTERS = 12
"""A shorter end may stand anywhere by accident: it counts only where the answer begins with it."""

MAX_PREAMBLE_CHARACTERS = 300
SEAM_NOT_FOUND = "seam_not_found"
_LOOK_AHEAD_CHARACTERS = 40
_WORD_CHARACTERS = 20

_ASSENT = "(?:absolutely|certainly|got it|of course|okay|ok|sure|understood)"
_PREAMBLE_LINE = re.compile(
    rf"{_ASSENT}\W*|"
    r"(?=.*\b(?:continu|going on|go on|left off|pick|remain|rest\b|resum))"
    rf"(?:{_ASSENT}|continuing|going on|here|i will|i['’]ll|let me|picking up|resuming)\b.*[.:!…]",
    re.IGNORECASE,
)
"""What a model says, in English, before it goes on. Any other line may be the text, come to the same words again."""


class Trim(Protocol):
    """Takes text, returns what of it is new."""

    def take(self, text: str) -> str:
        """Return what of ``text``, and of what was held back, may go on; raises ``StreamInterrupted``."""

    def finish(self) -> str:
        """Return what is held back, now that the answer is whole; raises ``StreamInterrupted``."""


def seam_not_found() -> StreamInterrupted:
    """Return the error for an attempt whose text does not go on where the client's ends."""
    message = "the provider's answer does not go on where the one before it broke off"
    return StreamInterrupted(message, code=SEAM_NOT_FOUND, retryable=False, error_type="protocol")


class EchoTrim:
    """Drops a repetition of the whole ``delivered`` text in front of what is new.

    Where an echo is not ``expected``, only a text of some length that does not repeat itself is taken for one: an
    answer that says the same thing over and over may well go on as it began.
    """

    __slots__ = ("_echo", "_is_done", "_is_expected")

    def __init__(self, delivered: str, *, expected: bool) -> None:
        self._echo = _Repetition(delivered)
        self._is_expected = expected
        self._is_done = not delivered

    def take(self, text: str) -> str:
        """Return what of ``text`` is new; raises where it is the answer from its start, in other words."""
        if self._is_done:
            return text
        rest = self._echo.take(text)
        return self._judged(rest) if rest or self._echo.is_whole else ""

    def finish(self) -> str:
        """Return an answer that is no more than a beginning of what was delivered, unless an echo was broken off."""
        return "" if self._is_done or not self._echo.length else self._judged("")

    def _judged(self, rest: str) -> str:
        self._is_done = True
        said, is_whole = self._echo.said, self._echo.is_whole
        if self._is_expected:
            is_echo = is_whole or not rest or len(said) >= ANCHOR_CHARACTERS // 2
        else:
            is_echo = len(said) >= ANCHOR_CHARACTERS and not _has_period(said)
        if is_echo and not is_whole:
            raise seam_not_found()
        return rest if is_echo else said + rest


class SpaceTrim:
    """Drops white space that was delivered, but not shown to the provider, if it is said again."""

    __slots__ = ("_again", "_is_done")

    def __init__(self, space: str) -> None:
        self._again = _Repetition(space)
        self._is_done = False

    def take(self, text: str) -> str:
        """Return ``text`` behind what is in both."""
        if self._is_done:
            return text
        rest = self._again.take(text)
        self._is_done = bool(rest)
        return rest

    def finish(self) -> str:
        """Nothing is ever held back."""
        return ""


class ReplayTrim:
    """Drops what is said once more since the checkpoint, and fails where it is said differently."""

    __slots__ = ("_again",)

    def __init__(self, replayed: str) -> None:
        self._again = _Repetition(replayed)

    def take(self, text: str) -> str:
        """Return ``text`` behind what was delivered."""
        if self._again.is_whole:
            return text
        rest = self._again.take(text)
        if rest and not self._again.is_whole:
            raise seam_not_found()
        return rest

    def finish(self) -> str:
        """Nothing is held back, but the answer may have ended before all was said again."""
        if not self._again.is_whole:
            raise seam_not_found()
        return ""


class AnchorTrim:
    """Finds ``anchor``, the end of the ``delivered`` text, in an answer that was asked to repeat it, and cuts there.

    Before it may stand more of the delivered text, and before that lines in which an assistant says that it goes on.
    What comes in other words, on the same line, in a code fence, or repeats less than was asked, has not been found.
    Neither has an anchor behind which it soon comes again, or the text's beginning does: the first was a quotation.
    """

    __slots__ = ("_again", "_anchor", "_beginning", "_delivered", "_has_preamble", "_held", "_is_done", "_is_found")

    def __init__(self, delivered: str, anchor: str) -> None:
        self._delivered = delivered
        self._anchor = anchor
        text = delivered.lstrip()
        self._again = _Repetition(text)
        self._beginning = text[:ANCHOR_CHARACTERS]
        self._held = ""
        self._has_preamble = False
        self._is_found = False
        self._is_done = False

    def take(self, text: str) -> str:
        """Return what stands behind the anchor, once it was found and enough has come to know that it is the seam."""
        if self._is_done:
            return text
        if self._is_found:
            self._held += text
        else:
            self._search(text)
        return self._released() if self._is_found else ""

    def finish(self) -> str:
        """Return what is held back behind the anchor; raises if it never came, or if nothing came behind a preamble."""
        if self._is_done:
            return ""
        if not self._is_found or (self._has_preamble and not _has_word(self._held)):
            raise seam_not_found()
        self._is_done = True
        return self._held

    def _search(self, text: str) -> None:
        """Leave in ``_held`` what is behind the anchor; while there is none, what came so far."""
        again, anchor = self._again, self._anchor
        if not self._held:  # so far it says all of the delivered text again, which may be long
            rest = again.take(text if again.length else text.lstrip())
            if again.is_whole:
                self._held, self._is_found = rest, True
            if again.is_whole or not rest:
                return
            text = again.said + rest
        held = self._held = self._held + text
        is_short = len(anchor) < LEAST_ANCHOR_CHARACTERS
        most = len(anchor) if is_short else MAX_PREAMBLE_CHARACTERS + 4 * len(anchor)
        at = held.find(anchor, 0, most)
        if at >= 0:
            before = held[:at]
            self._has_preamble = not self._is_delivered(before)
            if self._has_preamble and not self._is_preamble(before):
                raise seam_not_found()
            self._held, self._is_found = held[at + len(anchor) :], True
        elif len(held) >= most:
            raise seam_not_found()

    def _is_delivered(self, before: str) -> bool:
        return self._delivered.endswith(before, 0, len(self._delivered) - len(self._anchor))

    def _is_preamble(self, before: str) -> bool:
        """Whether it is an assistant's words on lines of their own, and then no more than delivered text."""
        ends = [place for place, character in enumerate(before, 1) if character == "\n"]
        return any(self._is_delivered(before[end:]) and self._is_harmless(before[:end]) for end in ends)

    def _is_harmless(self, preamble: str) -> bool:
        lines = [line for line in map(str.strip, preamble.split("\n")) if line]
        return len(preamble) <= MAX_PREAMBLE_CHARACTERS and all(
            _PREAMBLE_LINE.fullmatch(line) and line not in self._delivered for line in lines
        )

    def _released(self) -> str:
        """Look on whether what was said is said again, farther where a line ends with the anchor: so do quotations."""
        held, anchor = self._held, self._anchor
        if len(anchor) >= LEAST_ANCHOR_CHARACTERS:
            line, end_of_line, _ = held[:_LOOK_AHEAD_CHARACTERS].partition("\n")
            is_quoted = not _has_word(line)
            if is_quoted and self._has_preamble and (end_of_line or len(held) >= _LOOK_AHEAD_CHARACTERS):
                raise seam_not_found()
            more = MAX_PREAMBLE_CHARACTERS if is_quoted or self._has_preamble else _LOOK_AHEAD_CHARACTERS
            ahead = held[: len(anchor) + more]
            if anchor in ahead or self._beginning in ahead:
                raise seam_not_found()
            if len(held) < len(anchor) + more:
                return ""
        self._is_done = True
        return held


class StopTrim:
    """Finds a stop sequence that began in the ``delivered`` text, where the provider could not see it any more."""

    __slots__ = ("_begun", "_held", "_is_done", "is_stopped")

    def __init__(self, delivered: str, stops: Sequence[str]) -> None:
        self._begun = [(stop, length) for stop in stops for length in _overlaps(delivered, stop)]
        self._held: list[str] = []
        self._is_done = not self._begun
        self.is_stopped = False

    def take(self, text: str) -> str:
        """Return ``text`` when no stop sequence can go on in it; nothing once one has ended."""
        if self._is_done:
            return "" if self.is_stopped else text
        self._held.append(text)
        if any(len(stop) - at <= len(text) and text.startswith(stop[at:]) for stop, at in self._begun):
            self.is_stopped = self._is_done = True
            return ""
        self._begun = [(stop, at + len(text)) for stop, at in self._begun if stop.startswith(text, at)]
        return "" if self._begun else self.finish()

    def finish(self) -> str:
        """Return what was held back for a stop sequence that did not come."""
        held = "" if self._is_done else "".join(self._held)
        self._is_done = True
        return held


class _Repetition:
    """How far a text that comes in pieces says ``known`` again; what is the same need not be kept."""

    __slots__ = ("_known", "length")

    def __init__(self, known: str) -> None:
        self._known = known
        self.length = 0

    @property
    def said(self) -> str:
        """What is the same in both."""
        return self._known[: self.length]

    @property
    def is_whole(self) -> bool:
        """Whether all was said again."""
        return self.length == len(self._known)

    def take(self, text: str) -> str:
        """Return ``text`` from where it is not the same any more; not to be called again behind a difference."""
        known, length = self._known, self.length
        if known.startswith(text, length):
            self.length += len(text)
            return ""
        most = min(len(text), len(known) - length)
        same = next((place for place in range(most) if text[place] != known[length + place]), most)
        self.length += same
        return text[same:]


class DropTrim:
    """Drops all text: the client has as much as it wanted, and is only to be told how the answer ends."""

    __slots__ = ()

    def take(self, text: str) -> str:  # noqa: ARG002, the signature of a trim
        """Return nothing."""
        return ""

    def finish(self) -> str:
        """Return nothing."""
        return ""


def choose_anchor(delivered: str, count: int = ANCHOR_CHARACTERS) -> str | None:
    """Return the end of the text that a model is asked to repeat: about ``count`` characters, from a word's start.

    It stands in the text only once, so that an answer which repeats more of it can be cut at one place only, and does
    not itself say one thing over and over, so that an answer which repeats less does not begin with it. Returns
    ``None`` for a text that is blank, or repeats itself so long that no end of it is such.
    """
    text = delivered.lstrip()
    if not text:
        return None
    for length in range(count, MAX_ANCHOR_CHARACTERS + 1, count):
        start = _word_start(text, max(0, len(text) - length))
        anchor = text[start:]
        if text.find(anchor) == start and (len(anchor) < LEAST_ANCHOR_CHARACTERS or not _has_period(anchor)):
            return anchor
    return None


def _word_start(text: str, place: int) -> int:
    """Return where the word at or before ``place`` begins; where words are long, at least no character is cut in two.

    The text itself begins with a word.
    """
    while text[place].isspace():
        place -= 1
    for start in range(place, max(-1, place - _WORD_CHARACTERS), -1):
        if start == 0 or (text[start - 1].isspace() and not _joins(text[start - 1], text[start])):
            return start
    while place > 0 and _joins(text[place - 1], text[place]):
        place -= 1
    return place


def _joins(before: str, after: str) -> bool:
    """Whether two characters may be one to who reads them: marks, joiners, flags, skin tones, parts of Hangul."""
    return (
        unicodedata.category(after) in ("Mn", "Me", "Mc", "Cf")
        or before == "\u200d"
        or "\U0001f1e6" <= after <= "\U0001f1ff"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or "\u1160" <= after <= "\u11ff"
    )


def _has_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def _has_period(text: str) -> bool:
    """Whether the text is a shorter one over and over, the last time perhaps in part."""
    return 2 * _borders(text)[-1] >= len(text)


def _overlaps(one: str, other: str) -> Iterator[int]:
    """Yield of how many characters the end of ``one`` may be the beginning of ``other``, but not all of it."""
    most = min(len(one), len(other) - 1)
    if most < 1:
        return
    borders = _borders(other[:most] + one[-most:])
    length = borders[-1]
    while length:
        if length <= most:
            yield length
        length = borders[length - 1]


def _borders(text: str) -> list[int]:
    """Return for each beginning of a text the length of the longest shorter one that ends it (Knuth, Morris, Pratt)."""
    borders = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = borders[length - 1]
        if text[place] == text[length]:
            length += 1
        borders[place] = length
    return borders
