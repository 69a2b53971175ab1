"""Anthropic's Messages: named events, content blocks, signatures, and prefill up to Claude 4.5."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from gateway.simulator.ask import Ask, Complaint, Incoming, Tool, Trailing, Turn, invalid
from gateway.simulator.frames import Frame, Moment, named_event, to_json
from gateway.simulator.scene import Answer, Scene
from gateway.simulator.schema import ANY_OBJECT
from gateway.simulator.script import Script
from gateway.simulator.text import number
from gateway.simulator.wires.base import (
    BUSY,
    FIRST_SERVER_ERROR,
    OVERLOADED,
    UNAVAILABLE,
    HttpAnswer,
    Reply,
    chosen_tool,
    decided,
    listed,
    part_texts,
)
from gateway.simulator.wires.hosts import NO_PREFILL_CLAUDE, accepts_prefill_claude

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES: Final = {
    401: "invalid x-api-key",
    404: "model: {model}",
    429: "This request would exceed your organization's rate limit of 30,000 input tokens per minute.",
    500: "Internal server error",
    529: "Overloaded",
}
_WITHOUT_SAMPLING: Final = "2026-10-21"
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_REFUSES_SAMPLING: Final = re.compile(r"(opus-4-[78]|(opus|sonnet)-5|haiku-5-5|fable-5|mythos-)")
_TRAILING_SPACE: Final = "messages: final assistant content cannot end with trailing whitespace"
_PREFILL_WHILE_THINKING: Final = (
    "messages.{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `text`. When `thinking` "
    "is enabled, a final `assistant` message must start with a thinking block."
)
_REFUSED: Final = {"type": "refusal", "category": None, "explanation": None}
_PING: Final = named_event("ping", {"type": "ping"})


class AnthropicWire:
    """Messages, as `api.anthropic.com` speaks them."""

    name = "anthropic"

    def parse(self, incoming: Incoming, script: Script) -> Ask:
        """Read the request and refuse what the API refuses."""
        body = incoming.body
        _check(incoming)
        tools = tuple(
            Tool(str(tool.get("name")), tool.get("input_schema"))
            for tool in listed(body.get("tools"))
            if isinstance(tool, dict) and "input_schema" in tool
        )
        choice = body.get("tool_choice") or {}
        turns = tuple(_turns(body))
        thinking = (body.get("thinking") or {}).get("type")
        return Ask(
            model=incoming.model,
            turns=turns,
            is_stream=body.get("stream") is True,
            tools=tools,
            tool_choice=_tool_choice(choice, tools),
            is_parallel=not choice.get("disable_parallel_tool_use"),
            answer_schema=_schema(body),
            max_tokens=int(body["max_tokens"]),
            stop=tuple(str(one) for one in listed(body.get("stop_sequences"))),
            wants_reasoning=thinking in ("enabled", "adaptive", "between_tools"),
            trailing=_trailing(incoming.model, turns, str(thinking), script),
        )

    def stream(self, _ask: Ask, scene: Scene, reply: Reply) -> Iterator[Frame]:
        """Yield `message_start`, the blocks, `message_delta` and `message_stop`."""
        answer = scene.answers[0]
        usage = {**_input_usage(scene), "output_tokens": 1, "service_tier": "standard"}
        message = {**_message(reply), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event(Moment.START, "message_start", message=message)
        yield Frame(Moment.START, _PING)
        for index, block in enumerate(_blocks(answer, reply)):
            yield from _with_index(block, index)
        delta: dict[str, Any] = {"stop_reason": _stop_reason(answer), "stop_sequence": answer.stop_sequence}
        if answer.ending == "refusal":
            delta["stop_details"] = _REFUSED
        if reply.has_usage:
            yield _event(Moment.FINISH, "message_delta", delta=delta, usage=_usage(scene))
        else:
            yield _event(Moment.FINISH, "message_delta", delta=delta)
        yield _event(Moment.END, "message_stop")

    def whole(self, _ask: Ask, scene: Scene, reply: Reply) -> bytes:
        """Return a message."""
        answer = scene.answers[0]
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            thinking = {"type": "thinking", "thinking": "".join(answer.reasoning), "signature": _signature(reply)}
            content.append(thinking)
        if answer.text or not answer.calls:
            content.append({"type": "text", "text": answer.echo + "".join(answer.text)})
        for at, call in enumerate(answer.calls):
            if call.is_whole:
                block = _tool_block(at, call.name, reply)
                content.append({**block, "input": json.loads(call.json)})
        message = {
            **_message(reply),
            "content": content,
            "stop_reason": _stop_reason(answer),
            "stop_sequence": answer.stop_sequence,
        }
        if answer.ending == "refusal":
            message["stop_details"] = _REFUSED
        return to_json({**message, "usage": _usage(scene)} if reply.has_usage else message)

    def http_error(self, complaint: Complaint, reply: Reply) -> HttpAnswer:
        """Return the error body, with `retry-after` and what the SDKs should make of it."""
        headers = dict(self.headers(reply))
        may_help = complaint.status in (408, 409, BUSY) or complaint.status >= FIRST_SERVER_ERROR
        headers["x-should-retry"] = "true" if may_help and not complaint.code else "false"
        if complaint.retry_after_s is not None:
            headers["retry-after"] = f"{complaint.retry_after_s:g}"
        body = {**_error(complaint, reply), "request_id": headers["request-id"]}
        return HttpAnswer(complaint.status, to_json(body), headers)

    def error_event(self, complaint: Complaint, _ask: Ask, reply: Reply) -> bytes:
        """Return `event: error`; a busy service is an overloaded one here."""
        if complaint.status == UNAVAILABLE:
            complaint = replace(complaint, status=OVERLOADED)
        return named_event("error", _error(complaint, reply))

    def ping(self, _ask: Ask, _reply: Reply) -> bytes:
        """Return `event: ping`."""
        return _PING

    def late_text(self, _ask: Ask, _reply: Reply) -> bytes:
        """Return a text delta."""
        delta = {"type": "text_delta", "text": " (and one thing more)"}
        return _event(Moment.TEXT, "content_block_delta", index=0, delta=delta).payload

    def headers(self, reply: Reply) -> Mapping[str, str]:
        """Return the request id and how much may still be asked."""
        return {
            "request-id": "req_" + reply.id(24, "request"),
            "anthropic-ratelimit-requests-limit": "4000",
            "anthropic-ratelimit-requests-remaining": "3999",
        }

    def content_type(self, _ask: Ask) -> str:
        """Return the type of an event stream."""
        return "text/event-stream; charset=utf-8"

    def models(self, names: Sequence[str], _reply: Reply) -> Any:
        """Return the list as Anthropic shows it."""
        models = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in names
        ]
        ids: list[str | None] = [*names] or [None]
        return {"data": models, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def _check(incoming: Incoming) -> None:
    body, version = incoming.body, incoming.headers.get("anthropic-version")
    if not version:
        raise invalid("anthropic-version: header is required")
    if not incoming.model:
        raise invalid("model: Field required")
    if not isinstance(body.get("max_tokens"), int):
        raise invalid("max_tokens: Field required")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise invalid("messages: Field required")
    for name in _SAMPLING:
        if name in body and version == _WITHOUT_SAMPLING:
            raise invalid(f"{name}: Extra inputs are not permitted")
        if name in body and _REFUSES_SAMPLING.search(incoming.model):
            raise invalid(f"`{name}` is not supported for this model.")


def _trailing(model: str, turns: tuple[Turn, ...], thinking: str, script: Script) -> Trailing:
    last = turns[-1]
    if last.role != "assistant" or last.calls:
        return "new"
    if script.prefill != "accept" and not accepts_prefill_claude(model):
        raise invalid(NO_PREFILL_CLAUDE)
    trailing = decided("continue", script, invalid(NO_PREFILL_CLAUDE))
    if last.text != last.text.rstrip():
        raise invalid(_TRAILING_SPACE)
    if thinking == "enabled":
        raise invalid(_PREFILL_WHILE_THINKING.format(place=len(turns) - 1))
    return trailing


def _turns(body: Mapping[str, Any]) -> Iterator[Turn]:
    if system := part_texts(body.get("system")):
        yield Turn("system", system)
    for place, message in enumerate(body["messages"]):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise invalid(f"messages.{place}.role: Input should be 'user' or 'assistant'")
        is_last = place == len(body["messages"]) - 1
        if not message.get("content") and not (is_last and role == "assistant"):
            raise invalid(
                f"messages.{place}: all messages must have non-empty content except for the optional final "
                "assistant message"
            )
        yield from _read_message(role, message.get("content"))


def _read_message(role: Literal["user", "assistant", "system"], content: Any) -> Iterator[Turn]:
    blocks = [block for block in listed(content) if isinstance(block, dict)]
    for block in blocks:
        if block.get("type") == "tool_result":
            yield Turn("tool", part_texts(block.get("content")))
    calls = tuple(str(block.get("name")) for block in blocks if block.get("type") == "tool_use")
    reasoning = "".join(part_texts(block.get("thinking")) for block in blocks if block.get("type") == "thinking")
    text = content if isinstance(content, str) else part_texts([b for b in blocks if b.get("type") == "text"])
    if text or not any(block.get("type") == "tool_result" for block in blocks):
        yield Turn(role, text, reasoning=reasoning, calls=calls)


def _tool_choice(choice: Mapping[str, Any], tools: tuple[Tool, ...]) -> Literal["auto", "none", "required"] | Tool:
    match choice.get("type"):
        case "tool":
            return chosen_tool(tools, choice.get("name"))
        case "any":
            return "required"
        case "none":
            return "none"
    return "auto"


def _schema(body: Mapping[str, Any]) -> Any:
    format_ = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return (format_.get("schema") or ANY_OBJECT) if format_.get("type") == "json_schema" else None


def _message(reply: Reply) -> dict[str, Any]:
    return {"model": reply.model, "id": "msg_" + reply.id(24), "type": "message", "role": "assistant"}


def _blocks(answer: Answer, reply: Reply) -> Iterator[list[tuple[Moment, str, dict[str, Any], int]]]:
    """Yield each content block as its start, its deltas and its stop, without the index."""
    if answer.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": token} for token in answer.reasoning]
        signed = [{"type": "signature_delta", "signature": _signature(reply)}]
        yield _block(Moment.REASONING, {"type": "thinking", "thinking": "", "signature": ""}, deltas, signed)
    if answer.text or answer.echo or not (answer.calls or answer.reasoning):
        echo = [{"type": "text_delta", "text": answer.echo}] if answer.echo else []
        deltas = [{"type": "text_delta", "text": token} for token in answer.text]
        yield _block(Moment.TEXT, {"type": "text", "text": ""}, deltas, first=echo)
    for at, call in enumerate(answer.calls):
        deltas = [{"type": "input_json_delta", "partial_json": token} for token in call.arguments]
        first = [{"type": "input_json_delta", "partial_json": ""}]
        yield _block(Moment.TOOL, _tool_block(at, call.name, reply), deltas, first=first)


def _block(
    moment: Moment,
    start: dict[str, Any],
    deltas: Sequence[dict[str, Any]],
    last: Sequence[dict[str, Any]] = (),
    *,
    first: Sequence[dict[str, Any]] = (),
) -> list[tuple[Moment, str, dict[str, Any], int]]:
    opening = [(moment, "content_block_start", {"content_block": start}, 0)]
    untold = [(moment, "content_block_delta", {"delta": delta}, 0) for delta in first]
    told = [(moment, "content_block_delta", {"delta": delta}, 1) for delta in deltas]
    after = [(moment, "content_block_delta", {"delta": delta}, 0) for delta in last]
    return [*opening, *untold, *told, *after, (moment, "content_block_stop", {}, 0)]


def _with_index(block: Sequence[tuple[Moment, str, dict[str, Any], int]], index: int) -> Iterator[Frame]:
    for moment, name, fields, token_count in block:
        yield _event(moment, name, token_count, index=index, **fields)


def _event(moment: Moment, name: str, token_count: int = 0, **fields: Any) -> Frame:
    return Frame(moment, named_event(name, {"type": name, **fields}), token_count)


def _tool_block(at: int, name: str, reply: Reply) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_" + reply.id(24, f"call{at}"), "name": name, "input": {}}


def _signature(reply: Reply) -> str:
    return "".join(reply.id(64, f"signature{part}") for part in range(1 + number(reply.serial, 3)))


def _stop_reason(answer: Answer) -> str:
    return _STOP_REASONS.get(answer.ending, answer.ending)


def _input_usage(scene: Scene) -> dict[str, Any]:
    return {"input_tokens": scene.prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _usage(scene: Scene) -> dict[str, Any]:
    usage = {**_input_usage(scene), "output_tokens": scene.output_tokens}
    if scene.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": scene.reasoning_tokens}
    return usage


def _error(complaint: Complaint, reply: Reply) -> dict[str, Any]:
    status = complaint.status
    kind = _TYPES.get(status, "api_error" if status >= FIRST_SERVER_ERROR else "invalid_request_error")
    message = complaint.message or _MESSAGES.get(status, kind.replace("_", " "))
    details = {"error_code": complaint.code} if complaint.code else None
    error = {"details": details, "type": kind, "message": message.replace("{model}", reply.model)}
    return {"type": "error", "error": error}
