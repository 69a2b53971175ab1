"""The pieces a body is made of, each tagged with its moment in the answer.

A wire turns a scene into frames; the plan decides when each is sent and where the body breaks.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

to_json: Final = msgspec.json.Encoder().encode


class Moment(Enum):
    """What a frame is in the course of an answer, whatever its wire calls it."""

    START = "start"
    REASONING = "reasoning"
    TEXT = "text"
    TOOL = "tool"
    FINISH = "finish"
    USAGE = "usage"
    END = "end"


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes that belong together, usually one event, and the number of tokens they carry."""

    moment: Moment
    payload: bytes
    token_count: int = 0


def data_line(value: Any, line_end: bytes = b"\n") -> bytes:
    """Return a server-sent event that has only data."""
    return b"data: " + to_json(value) + line_end + line_end


def named_event(name: str, value: Any) -> bytes:
    """Return a server-sent event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + to_json(value) + b"\n\n"
