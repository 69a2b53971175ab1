"""What a supervisor and its workers say to each other: what is ordered, and what is reported.

The conversation: ``Commission`` -> ``Ready`` or ``Refused``; ``Begin``; then a ``Beat`` a second, ``ShowStreams`` ->
``Streams`` as often as somebody looks, and at last ``Leave`` -> ``Left``, behind which the worker finishes its streams
and ends. Descriptors go along with a message: the slab's and the listening sockets' with ``Commission``, a client's
with ``Adopt`` and ``GiveAway``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

Shown: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""The table of live streams, as ``gateway.telemetry.live`` shows it."""


class _Message(msgspec.Struct, frozen=True, tag=True):
    """Whatever is said."""


# --- by the supervisor


class Commission(_Message, frozen=True):
    """What a worker is to be. The configuration comes as the text it was read from: all workers read the same.

    ``flags`` are those of the command line, which beat it.
    """

    slot: int
    generation: int
    source: str
    text: str
    flags: Mapping[str, str | int | None]


class Begin(_Message, frozen=True):
    """Accept connections."""


class ShowStreams(_Message, frozen=True):
    """Say what is in flight; the answer has the same number."""

    number: int


class Adopt(_Message, frozen=True):
    """Serve a connection that another worker has given away."""


class Leave(_Message, frozen=True):
    """Accept no more connections, finish the streams, and end.

    ``has_successor`` says whether connections that rest are to be given away; if nobody is there to take them, they
    are closed.
    """

    has_successor: bool


class EndNow(_Message, frozen=True):
    """Wait for the streams no longer: tell their clients, and end."""


Order: TypeAlias = Commission | Begin | ShowStreams | Adopt | Leave | EndNow


# --- by a worker


class Refused(_Message, frozen=True):
    """It cannot be what it was to be: a line for each fault."""

    faults: Sequence[str]


class Ready(_Message, frozen=True):
    """It has made all that it needs, and waits for ``Begin``.

    The rest is for the supervisor to show: which configuration this is, on which event loop it runs, whether anybody
    may call without a key, and a model to ask for.
    """

    config_hash: str
    loop: str
    is_open: bool
    model: str


class Beat(_Message, frozen=True):
    """Its event loop goes round."""


class Streams(_Message, frozen=True):
    """What is in flight, and what has ended lately: as an answer, or, with number 0, as the last word of a worker."""

    number: int
    shown: Shown


class GiveAway(_Message, frozen=True):
    """A connection that rests, for another worker to serve."""


class Left(_Message, frozen=True):
    """It accepts no more connections; no request begins in it from now on."""


Report: TypeAlias = Refused | Ready | Beat | Streams | GiveAway | Left
