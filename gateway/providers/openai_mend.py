"""Makes of an odd chat completion what a client of OpenAI's expects: what to change is noted, and changed once.

Whoever reads a document (``openai_completion``) knows what is odd in it; a ``Mender`` is told, and a document with
nothing to mend keeps its bytes. What is right instead is said here: the names of the finish reasons, the numbers of the
calls, the text in a list-valued content. Of bytes, events and the order of a stream this module knows nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from gateway.core.events import FinishReason

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_length": "length",
    "tool_use": "tool_calls",
}
"""Every finish reason that hosts are known to send, and what OpenAI would have said; any other is a ``stop``."""

Identity: TypeAlias = tuple[str, int, str]
"""The ``id``, ``created`` and ``model`` of an answer."""


class CallIndex:
    """Which call of the choice a tool delta belongs to, for wires that number them badly or not at all.

    Mistral has sent calls without an index; Google's compatible endpoint numbers all parallel calls 0.
    """

    __slots__ = ("_by_wire", "_count", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._by_wire: dict[tuple[int, int | str], tuple[int, str]] = {}
        self._count: dict[int, int] = {}

    def place(self, choice: int, wire_index: int | str, call_id: str | None, name: str) -> tuple[int, bool]:
        """Return the index of the call and whether it begins here."""
        known = self._by_wire.get((choice, wire_index))
        if known is not None and not (call_id and name and call_id != known[1]):
            return known[0], False
        call_index = self._count.get(choice, 0)
        self._count[choice] = call_index + 1
        self._by_wire[choice, wire_index] = (call_index, call_id or "")
        return call_index, True

    def make_id(self, choice: int, call_index: int) -> str:
        """Return an id for a call that came without; no other turn of the conversation has the same."""
        return f"call_{self._request_id}_{choice}_{call_index}"


class Mender:
    """Notes what has to be changed in a document, and changes it once at the end, if anything."""

    __slots__ = ("_data", "identity", "missing_roles", "needs_choices", "spoken_finishes", "spoken_roles", "tool_ids")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.identity: Identity | None = None
        self.needs_choices = False
        self.missing_roles: set[int] = set()
        self.spoken_roles: set[int] = set()
        self.spoken_finishes: set[int] = set()
        self.tool_ids: dict[tuple[int, int], tuple[int, str]] = {}

    def result(self) -> bytes:
        """Return the document as a client of OpenAI's expects it: unchanged, if it is."""
        if not self._has_work():
            return self._data
        document = msgspec.json.decode(self._data)
        if self.identity is not None:
            document["id"], document["created"], document["model"] = self.identity
        if document.get("choices") is None:
            document["choices"] = []
        for place, choice in enumerate(document["choices"]):
            if choice.get("index") is None:
                choice["index"] = place
            key = "message" if choice.get("message") and not choice.get("delta") else "delta"
            delta = choice[key] = choice.get(key) or {}
            self._mend_delta(choice["index"], delta)
            if choice["index"] in self.spoken_finishes:
                choice["finish_reason"] = None
            elif choice.get("finish_reason"):
                choice["finish_reason"] = FINISH_REASONS.get(choice["finish_reason"], "stop")
        return msgspec.json.encode(document)

    def _has_work(self) -> bool:
        is_odd = self.needs_choices or self.identity is not None or self.tool_ids
        return bool(is_odd or self.missing_roles or self.spoken_roles or self.spoken_finishes)

    def _mend_delta(self, index: int, delta: dict[str, Any]) -> None:
        if index in self.spoken_roles:
            delta.pop("role", None)
        elif index in self.missing_roles:
            delta["role"] = "assistant"
        if isinstance(delta.get("content"), list):
            text, thinking = split_content(delta["content"])
            delta["content"] = text
            if thinking:
                delta["reasoning_content"] = thinking
        if not delta.get("reasoning_content") and isinstance(delta.get("reasoning"), str) and delta["reasoning"]:
            delta["reasoning_content"] = delta["reasoning"]
        for number, tool in enumerate(delta.get("tool_calls") or []):
            if (index, number) in self.tool_ids:
                tool["index"], call_id = self.tool_ids[index, number]
                if call_id:
                    tool["id"] = call_id
                    tool.setdefault("type", "custom" if "custom" in tool else "function")
            function = tool.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                function["arguments"] = json_text(function["arguments"])


def split_content(parts: list[Any]) -> tuple[str, str]:
    """Return the text and the thinking of a list-valued content (Mistral's, and what copies it)."""
    text: list[str] = []
    thinking: list[str] = []
    for part in parts:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            text.append(part["text"])
        elif isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            thinking.append(inner if isinstance(inner, str) else split_content(inner or [])[0])
    return "".join(text), "".join(thinking)


def json_text(value: object) -> str:
    """Return arguments that came as an object in the form that OpenAI gives them: as text."""
    return msgspec.json.encode(value).decode()
