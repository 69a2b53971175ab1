"""What an attempt is told of an answer that has begun already: what the client has of it, and how to ask for the rest.

There are three ways. ``restart``: nothing that a user wants to keep was delivered, the request is made again and only
the identity of the answer is kept. ``exact``: the target goes on behind the last character of ``text``, as its provider
lets it be asked; what comes back through that provider's decoder is the rest and nothing else. ``anchored``: the
target has been asked in words, in ``Call.messages``, to repeat the end of ``text`` and to go on; whoever asked finds
that end and cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.core.events import StreamStarted

Way = Literal["restart", "exact", "anchored"]

ANSWER_CONTINUES = "answer_continues"
"""The code of the error with which a provider ends its turn before the answer, and leaves a token for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A provider's own token for going on: all before ``character_count`` of the text is behind it."""

    target: str
    token: str = field(repr=False)
    character_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How far an answer has come. ``started`` is what the client knows the stream by, ``None`` before it knows any.

    ``text`` is what it has of the choice that this attempt is for. ``limit_tokens`` is the client's own limit for the
    whole answer, which some providers want unreduced.
    """

    way: Way
    started: StreamStarted | None = None
    text: str = field(default="", repr=False)
    checkpoint: Checkpoint | None = None
    limit_tokens: int | None = None
