"""What no provider should send in OpenAI's name, and some do: errors, odd values in any place, and anything at all."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from gateway.core.errors import UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused
from tests.gateway.providers.openai_chunks import (
    IDENTITY,
    chunk,
)

FAILURES: Final[list[tuple[Any, type[UpstreamError], str]]] = [
    ({"error": {"message": "Busy", "type": "server_error", "code": None}}, UpstreamFailed, "upstream_failed"),
    ({"error": {"message": "Busy", "code": 503}}, UpstreamBusy, "upstream_busy"),
    ({"error": {"message": "Busy", "code": "429"}}, UpstreamBusy, "upstream_busy"),
    ({"error": {"message": "Busy", "status_code": 429, "code": "slow_down"}}, UpstreamBusy, "slow_down"),
    ({"error": {"message": "Busy", "type": "invalid_request_error"}}, UpstreamRefused, "invalid_request_error"),
    ({"error": "Busy"}, UpstreamFailed, "upstream_failed"),
    ({**IDENTITY, "choices": [], "x_groq": {"error": "Busy"}}, UpstreamFailed, "upstream_failed"),
    (
        {**chunk({"content": ""}, "error"), "error": {"message": "Busy", "code": 502, "metadata": {}}},
        UpstreamFailed,
        "upstream_failed",
    ),
    ({"object": "error", "message": "Busy", "type": "rate_limited", "code": 429}, UpstreamBusy, "upstream_busy"),
]
"""Errors inside a 200, and as what each is raised. All say ``Busy``."""

_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
ODD: Final[list[Any]] = [
    *(None, "", "x", "error", "eos", "length", "chat.completion.chunk", True, False, 0, 1, -1, 7, 1.0, 2.5, 1 << 70),
    *([], [None], ["x"], [{}], {}, {"x": 1}, {"message": "x"}, {"name": "f", "arguments": "{}"}, {"prompt_tokens": 1}),
    *({"content": "b"}, {"content": "b", "reasoning_content": "c"}, [{"id": "t", "function": {"name": "f"}}]),
    *([_CHOICE] * 2, [_CHOICE, {**_CHOICE, "index": 1}]),
]
"""What may stand where something else is expected."""
MISSING: Final = object()
"""Nothing stands there."""


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of a document with another value in one place, or without it."""
    key, *rest = place
    copied = document.copy()
    if rest:
        copied[key] = changed(document[key], tuple(rest), value)
    elif value is MISSING:
        copied.pop(key, None)
    else:
        copied[key] = value
    return copied


_WORDS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
_KEYS = st.sampled_from(
    ["id", "choices", "index", "delta", "message", "content", "usage", "error", "type", "text", "thinking"]
)
TREES: Final = st.recursive(
    _WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=20
)
"""Any JSON, with keys that mean something."""
_CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "index": st.none() | st.integers(-1, 2),
            "id": st.none() | st.sampled_from(["", "a", "b"]),
            "function": st.none()
            | st.fixed_dictionaries(
                {},
                optional={
                    "name": st.none() | st.sampled_from(["", "f", "g"]),
                    "arguments": st.none()
                    | st.text(max_size=3)
                    | st.dictionaries(st.text(max_size=2), _WORDS, max_size=2),
                },
            ),
            "custom": st.none() | st.fixed_dictionaries({"name": st.text(max_size=2), "input": st.text(max_size=2)}),
        },
    ),
    max_size=3,
)
_DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.none() | st.just("assistant"),
        "content": st.none() | st.text(max_size=4) | st.lists(TREES, max_size=2),
        "reasoning": TREES,
        "reasoning_content": st.none() | st.text(max_size=3),
        "tool_calls": st.none() | _CALLS,
        "function_call": st.none()
        | st.fixed_dictionaries({"name": st.text(max_size=2), "arguments": st.text(max_size=2)}),
    },
)
_CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "index": st.none() | st.integers(0, 2),
        "delta": st.none() | _DELTAS,
        "message": st.none() | _DELTAS,
        "finish_reason": st.sampled_from([None, None, None, "stop", "eos", "error", ""]),
    },
)
CHUNKS: Final = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from([None, "", "c1", "c2"]),
        "created": st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "model": st.sampled_from([None, "", "m"]),
        "choices": st.none() | st.lists(_CHOICES, max_size=2),
        "usage": TREES,
        "error": st.sampled_from([None, None, {}, "Busy"]),
        "x_groq": st.none() | st.fixed_dictionaries({"usage": TREES}),
        "x_extra": TREES,
    },
)
"""Documents with all that a chunk or a whole answer may have, in any shape and in any combination."""
