"""Mistral's chat completions: OpenAI's shapes with a strict request.

Unknown fields are refused there with a 422, so only those that Mistral documents are sent; ``seed`` is ``random_seed``
and ``max_completion_tokens`` is ``max_tokens``. Usage comes unasked on the last chunk. Reasoning comes as a list-valued
content, which the decoder turns into ``reasoning_content``; the answer of a turn is taken back as plain text.

A partial answer is an assistant's turn with ``prefix``, which Mistral repeats before it goes on.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.core.call import Call
from gateway.providers.openai import OpenAI, Prefill, Wire

_ACCEPTED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "min_tokens",
        "stop",
        "random_seed",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "n",
        "logprobs",
        "top_logprobs",
        "prediction",
        "reasoning_effort",
        "prompt_mode",
        "safe_prompt",
        "guardrails",
        "metadata",
    }
)
_TURN_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", "prefix"})


def _adapt(body: dict[str, Any], call: Call) -> None:  # noqa: ARG001, the signature of Wire.adapt
    body["messages"] = [{key: value for key, value in turn.items() if key in _TURN_KEYS} for turn in body["messages"]]
    if body.get("logprobs") in (False, None):
        body.pop("logprobs", None)
        body.pop("top_logprobs", None)


_WIRE = Wire(
    has_usage_option=False,
    takes_reasoning_back=False,
    accepted=_ACCEPTED,
    renamed={"seed": "random_seed"},
    prefill=Prefill(turn={"prefix": True}, echoes=True),
    adapt=_adapt,
)


class Mistral(OpenAI):
    """A provider that speaks Mistral's dialect of Chat Completions."""

    default_base_url: ClassVar[str] = "https://api.mistral.ai/v1"

    @property
    def wire(self) -> Wire:
        """How Mistral deviates."""
        return _WIRE
