"""What the simulator says, and how it is cut into tokens.

The prose is in `prose/`, one short piece to a file. Which piece answers a conversation is decided by a hash of
the conversation alone, so the same question gets the same answer from every wire, on every machine, in every
process. Knows nothing of providers, wires or scripts.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from itertools import count, islice
from typing import Final

_TOKEN: Final = re.compile(r" ?\w{1,6}| ?[^\w\s]{1,3}|\s+")
_JOINERS: Final = frozenset("\u200d\u200c")
_SKIN_TONES: Final = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS: Final = range(0x1F1E6, 0x1F200)
_JAMO_TAILS: Final = range(0x1160, 0x1200)


@cache
def pieces(folder: str = "prose") -> tuple[str, ...]:
    """Every piece of prose in a folder, in the order of the file names."""
    shelf = files(__package__) / folder
    names = sorted(entry.name for entry in shelf.iterdir() if entry.name.endswith(".md"))
    return tuple((shelf / name).read_text(encoding="utf-8").strip() for name in names)


def digest(*parts: str) -> str:
    """Return 64 hex digits that depend on the parts and on where each ends, and on nothing else."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def number(seed: str, below: int) -> int:
    """Return a number from 0 to `below - 1`, always the same for a seed."""
    return int(digest(seed)[:12], 16) % below


def piece_for(seed: str) -> str:
    """Return the piece of prose that answers the conversation with this seed."""
    return pieces()[number(seed, len(pieces()))]


def reasoning_for(seed: str) -> str:
    """Return the reasoning that goes before the answer with this seed."""
    thoughts = pieces("prose/reasoning")
    return thoughts[number("reasoning" + seed, len(thoughts))]


def endless_text(seed: str) -> Iterator[str]:
    """Yield the answer's tokens without end: the seed's own piece first, then the pieces that follow it."""
    shelf = pieces()
    first = number(seed, len(shelf))
    for place in count(first):
        yield from piece_tokens(place % len(shelf))
        yield "\n\n"


def text_of_length(seed: str, token_count: int) -> str:
    """Return the first `token_count` tokens of the seed's endless text."""
    return "".join(islice(endless_text(seed), token_count))


@lru_cache(maxsize=256)
def piece_tokens(place: int) -> tuple[str, ...]:
    """Return the tokens of one piece; the pieces are few and asked for all the time."""
    return tuple(tokenize(pieces()[place]))


def tokenize(text: str) -> list[str]:
    """Cut a text into tokens of about four characters which, put together again, are the text.

    No token begins inside a grapheme: accents, emoji joined by ZWJ, skin tones and flags stay whole.
    """
    raw = _TOKEN.findall(text)
    return raw if text.isascii() else list(_whole_graphemes(raw))


def _whole_graphemes(raw: list[str]) -> Iterator[str]:
    held = ""
    for token in raw:
        if held and not _splits_grapheme(held, token):
            yield held
            held = ""
        held += token
    if held:
        yield held


def _splits_grapheme(left: str, right: str) -> bool:
    first = ord(right[0])
    if right[0] in _JOINERS or left[-1] in _JOINERS or unicodedata.category(right[0]).startswith("M"):
        return True
    if first in _FLAG_LETTERS:
        flags = len(left) - len(left.rstrip("".join(map(chr, _FLAG_LETTERS))))
        return flags % 2 == 1
    return first in _SKIN_TONES or first in _JAMO_TAILS
