"""How one answer goes and how it breaks, and the compact notation for it.

A script is written like a URL's query: `first_token_s=2&cut_after_tokens=20&cut=rst`. Every field of `Script` is a
key of that notation; a switch may stand alone (`no_end` is `no_end=on`). What each key does is in the
documentation of this package. Knows nothing of wires or of HTTP.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal
from urllib.parse import unquote

Cut = Literal["fin", "rst", "clean"]
Part = Literal["start", "reasoning", "tool", "text", "finish", "usage"]
Obedience = Literal["exact", "rephrase", "preamble", "repeat_more", "repeat_less", "ignore"]

_ON: Final = ("on", "1", "true", "yes", "")
_OFF: Final = ("off", "0", "false", "no")


class ScriptError(ValueError):
    """A script that cannot be read; `faults` has one sentence for each thing wrong with it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


def _seconds(text: str) -> float:
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _switch(text: str) -> bool:
    if text.lower() in _ON:
        return True
    if text.lower() in _OFF:
        return False
    raise ValueError(text)


def _status(text: str) -> int:
    value = int(text)
    if value != 0 and not 400 <= value <= 599:
        raise ValueError(text)
    return value


def _one_of(*choices: str) -> Mapping[str, Any]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return {"read": read, "takes": f"one of {', '.join(choices)}"}


_SECONDS: Final = {"read": _seconds, "takes": "a number of seconds"}
_COUNT: Final = {"read": _count, "takes": "a whole number, 0 or more"}
_SWITCH: Final = {"read": _switch, "takes": "on or off"}
_TEXT: Final = {"read": str, "takes": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How an answer goes and how it breaks. The defaults are an answer that goes well."""

    # Before the first byte.
    status: int = field(default=0, metadata={"read": _status, "takes": "0 or an HTTP error, 400 to 599"})
    retry_after_s: float | None = field(default=None, metadata=_SECONDS)
    error_code: str = field(default="", metadata=_TEXT)
    refuse: Literal["", "fin", "rst"] = field(default="", metadata=_one_of("fin", "rst"))
    head_s: float = field(default=0.0, metadata=_SECONDS)

    # What is said, and how fast.
    first_token_s: float = field(default=0.05, metadata=_SECONDS)
    interval_s: float = field(default=0.02, metadata=_SECONDS)
    token_count: int | None = field(default=None, metadata=_COUNT)
    say: str | None = field(default=None, metadata=_TEXT)
    reasoning: Literal["auto", "on", "off"] = field(default="auto", metadata=_one_of("auto", "on", "off"))
    tools: int | None = field(default=None, metadata=_COUNT)
    lead: bool = field(default=False, metadata=_SWITCH)
    refusal: bool = field(default=False, metadata=_SWITCH)

    # How a continuation is treated.
    obey: Obedience = field(
        default="exact",
        metadata=_one_of("exact", "rephrase", "preamble", "repeat_more", "repeat_less", "ignore"),
    )
    echo: Literal["auto", "on", "off"] = field(default="auto", metadata=_one_of("auto", "on", "off"))
    prefill: Literal["auto", "accept", "reject"] = field(default="auto", metadata=_one_of("auto", "accept", "reject"))
    checkpoint_every: int = field(default=16, metadata=_COUNT)
    hop_after: int | None = field(default=None, metadata=_COUNT)

    # How it breaks once it has begun.
    stall_after: int | None = field(default=None, metadata=_COUNT)
    stall_s: float = field(default=3600.0, metadata=_SECONDS)
    stall_ping_s: float = field(default=0.0, metadata=_SECONDS)
    cut_after_tokens: int | None = field(default=None, metadata=_COUNT)
    cut_after_bytes: int | None = field(default=None, metadata=_COUNT)
    cut_in: Part | Literal[""] = field(
        default="", metadata=_one_of("start", "reasoning", "tool", "text", "finish", "usage")
    )
    half_tool: bool = field(default=False, metadata=_SWITCH)
    cut: Cut = field(default="fin", metadata=_one_of("fin", "rst", "clean"))
    error_after: int | None = field(default=None, metadata=_COUNT)
    error_status: int = field(default=503, metadata={"read": _status, "takes": "an HTTP error, 400 to 599"})
    error_first: bool = field(default=False, metadata=_SWITCH)
    malformed_after: int | None = field(default=None, metadata=_COUNT)
    long_line_after: int | None = field(default=None, metadata=_COUNT)
    split_bytes: int = field(default=0, metadata=_COUNT)
    close_delimited: bool = field(default=False, metadata=_SWITCH)
    no_end: bool = field(default=False, metadata=_SWITCH)
    no_usage: bool = field(default=False, metadata=_SWITCH)
    after_finish: Literal["", "text", "duplicate"] = field(default="", metadata=_one_of("text", "duplicate"))

    @property
    def shapes_body(self) -> bool:
        """Whether the body must be written piece by piece, even if the answer is asked for whole."""
        return (
            self.cut_after_tokens is not None
            or self.cut_after_bytes is not None
            or self.stall_after is not None
            or self.malformed_after is not None
            or self.long_line_after is not None
            or self.cut_in != ""
            or self.split_bytes > 0
            or self.close_delimited
        )


def parse_script(text: str, base: Script | None = None) -> Script:
    """Read the compact notation; keys it does not name are as in `base`. Raises `ScriptError`."""
    readers = {one.name: one.metadata for one in fields(Script)}
    changes: dict[str, Any] = {}
    faults: list[str] = []
    for part in filter(None, text.split("&")):
        key, _, raw = part.partition("=")
        value = unquote(raw)
        if key not in readers:
            faults.append(f"unknown script key {key!r}; known keys: {', '.join(readers)}")
        elif key in changes:
            faults.append(f"script key {key!r} is given twice")
        else:
            _read(readers[key], key, value, changes, faults)
    if faults:
        raise ScriptError(faults)
    return replace(base or Script(), **changes)


def split_model(name: str) -> tuple[str, str]:
    """Split `mill?cut_after_tokens=20` into the model's name and the script behind the question mark."""
    model, _, script = name.partition("?")
    return model, script


def _read(metadata: Mapping[str, Any], key: str, value: str, changes: dict[str, Any], faults: list[str]) -> None:
    read: Callable[[str], Any] = metadata["read"]
    try:
        changes[key] = read(value)
    except ValueError:
        faults.append(f"script key {key!r} takes {metadata['takes']}, not {value!r}")
