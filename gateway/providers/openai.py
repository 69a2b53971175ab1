"""OpenAI's Chat Completions, and the request that everybody who copies it understands.

A call that came in OpenAI's own wire goes out as it came: the client's JSON with the model's name, ``stream`` and the
usage option set, and nothing else touched that this model or host accepts. ``Wire`` says in flags where a host does
not: a provider that differs only in those is one line in a table, not a file.

Sampling parameters on a reasoning model, and ``max_tokens`` on one that wants ``max_completion_tokens``, would be
refused by OpenAI with a 400; a route that falls back between models cannot have its client know that, so they are left
out or renamed for the models that are known for it.

OpenAI itself answers a trailing turn of the assistant's with a new one. Hosts that go on with it say so in
``Wire.prefill``, each in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import msgspec

from gateway.core.call import (
    OPENAI_CHAT,
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.events import Event
from gateway.providers.base import Decoder, ProviderOptions, RequestHeaders, UpstreamRequest
from gateway.providers.continued import OpenTurn, Rest, continued, continued_answer, goes_on, messages_with, open_turn
from gateway.providers.errors import read_error_body, retry_after_s, should_retry, upstream_error
from gateway.providers.openai_answer import read_answer
from gateway.providers.openai_stream import OpenAIDecoder

FORWARDED_HEADERS = ("openai-beta", "idempotency-key")
_REASONING_MODEL = re.compile(r"^(?:o\d|gpt-5(?!.*chat))")
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "logit_bias")


def _as_is(body: dict[str, Any], call: Call) -> None:
    """Leave the body as the client sent it."""


def _any_model(_model: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """How a host is asked to go on with a trailing turn of the assistant's, and which of its ``models`` do.

    ``turn`` and ``body`` are the keys that ask for it, ``path`` is what takes the place of ``/v1`` in the address.
    A host that ``echoes`` repeats the turn first. Where it may not end in white space, ``takes_space`` is false.
    """

    turn: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    echoes: bool = False
    takes_space: bool = True
    models: Callable[[str], bool] = _any_model


_TRAILING_TURN = Prefill()
"""Nothing but the turn, as it is: for hosts of which an operator says that they go on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How one host's request differs from what OpenAI documents.

    ``accepted`` lists the only keys a strict host takes; ``adapt`` is for what no flag can say.
    """

    path: str = "/chat/completions"
    key_header: str = "authorization"
    max_tokens_key: str = "max_tokens"
    has_usage_option: bool = True
    has_developer_role: bool = False
    takes_reasoning_back: bool = True
    done_is_end: bool = False
    accepted: frozenset[str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    prefill: Prefill | None = None
    adapt: Callable[[dict[str, Any], Call], None] = _as_is
    untouched_roles: frozenset[str] = field(init=False)
    """Whose turns go out as they came, whatever is in them."""

    def __post_init__(self) -> None:
        developer = {"developer"} if self.has_developer_role else set()
        assistant = {"assistant"} if self.takes_reasoning_back else set()
        object.__setattr__(self, "untouched_roles", frozenset({"system", "user", "tool"} | developer | assistant))

    def open_turn(self, call: Call) -> OpenTurn | None:
        """Return the turn that the host is to go on with, ``None`` where it is to begin one."""
        if call.continuation is None:
            return None
        prefill = self.prefill or _TRAILING_TURN
        return open_turn(call, echoes=prefill.echoes, takes_space=prefill.takes_space)


def _adapt_reasoning_model(body: dict[str, Any], call: Call) -> None:
    if not _REASONING_MODEL.match(call.target_model):
        return
    limit = body.pop("max_tokens", None)
    if limit is not None and body.get("max_completion_tokens") is None:
        body["max_completion_tokens"] = limit
    if body.get("reasoning_effort") != "none":
        for key in _SAMPLING:
            body.pop(key, None)


OPENAI_WIRE = Wire(
    max_tokens_key="max_completion_tokens",
    has_developer_role=True,
    takes_reasoning_back=False,
    adapt=_adapt_reasoning_model,
)


@dataclass(frozen=True)
class OpenAI:
    """A provider that speaks Chat Completions; ``wire`` says how it deviates."""

    options: ProviderOptions
    default_base_url: ClassVar[str] = "https://api.openai.com/v1"

    @property
    def wire(self) -> Wire:
        """How this provider deviates from the others that share its wire."""
        return OPENAI_WIRE

    @cached_property
    def base_url(self) -> str:
        """Where the provider is: as configured, or where it is known to be."""
        return self.options.base_url_or(self.default_base_url)

    def continues(self, call: Call) -> bool:
        """Whether the host goes on with a partial answer of the call's model."""
        prefill = self.wire.prefill
        return goes_on(self.options, call, is_known=prefill is not None and prefill.models(call.target_model))

    def url(self, call: Call) -> str:
        """Return the address that answers ``call``, or goes on with its answer."""
        prefill, base_url = self.wire.prefill, self.base_url
        if prefill is not None and prefill.path and self.wire.open_turn(call) is not None:
            base_url = base_url.removesuffix("/v1").removesuffix(prefill.path) + prefill.path
        return base_url + self.wire.path

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` as a Chat Completions request; raises ``InvalidRequest`` for what it cannot express."""
        url = (call.continuation is None and self._usual_url) or self.url(call)
        return UpstreamRequest(url, self._headers.of(call), msgspec.json.encode(write_body(call, self.wire)))

    def decoder(self, call: Call) -> Decoder:
        """Return a decoder for the stream that answers ``call``."""
        decoder = OpenAIDecoder(call, secret=self.options.api_key, done_is_end=self.wire.done_is_end)
        return decoder if call.continuation is None else continued(decoder, self._rest(call))

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer; raises as a decoder does."""
        events = read_answer(call, body, secret=self.options.api_key)
        return events if call.continuation is None else continued_answer(events, self._rest(call))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error means."""
        said = read_error_body(body, self.options.api_key)
        return upstream_error(status, said, wait_s=retry_after_s(headers), should_retry=should_retry(headers))

    def _rest(self, call: Call) -> Rest | None:
        """Return what passes on no more than the rest of an answer that is to be gone on with."""
        turn = self.wire.open_turn(call)
        return None if turn is None else turn.rest()

    @cached_property
    def _usual_url(self) -> str:
        """The address that answers all calls but those that go on with an answer; empty where they have no such."""
        return self.base_url + self.wire.path

    @cached_property
    def _headers(self) -> RequestHeaders:
        key, key_header = self.options.api_key, self.wire.key_header
        shown = {key_header: f"Bearer {key}" if key_header == "authorization" else key} if key else {}
        return RequestHeaders({**shown, **self.wire.headers}, self.options.headers, forwarded=FORWARDED_HEADERS)


def write_body(call: Call, wire: Wire) -> dict[str, Any]:
    """Return the request's body: the client's own where it spoke this wire, else one written from the call."""
    body = dict(call.source.body) if call.source.wire == OPENAI_CHAT else _parameters(call)
    body["model"] = call.target_model
    turn = None if call.continuation is None else wire.open_turn(call)
    untouched = wire.untouched_roles
    body["messages"] = [
        message.source if message.role in untouched and message.source is not None else _write_message(message, wire)
        for message in (call.messages if turn is None else messages_with(call, turn))
    ]
    _set_max_tokens(body, call, wire)
    if call.stream:
        _set_stream(body, wire)
    else:
        body.pop("stream", None)
        body.pop("stream_options", None)
    if wire.renamed:
        for ours, theirs in wire.renamed.items():
            if ours in body:
                body[theirs] = body.pop(ours)
    if wire.accepted is not None:
        body = {key: value for key, value in body.items() if key in wire.accepted}
    if turn is not None and turn.text and wire.prefill is not None:
        body |= wire.prefill.body
        body["messages"][-1] = {**body["messages"][-1], **wire.prefill.turn}
    if wire.adapt is not _as_is:
        wire.adapt(body, call)
    return body


def _set_max_tokens(body: dict[str, Any], call: Call, wire: Wire) -> None:
    limit = call.max_output_tokens
    has_limit = False
    for key in ("max_completion_tokens", "max_tokens"):
        if key in body and body[key] is not None:
            body[key] = limit
            has_limit = True
    if not has_limit and limit is not None:
        body[wire.max_tokens_key] = limit
    if wire.max_tokens_key == "max_tokens" and "max_completion_tokens" in body:
        limit = body.pop("max_completion_tokens")
        if limit is not None:
            body["max_tokens"] = limit


def _set_stream(body: dict[str, Any], wire: Wire) -> None:
    body["stream"] = True
    if wire.has_usage_option:  # asked for always: the gateway counts, whether the client wants to or not
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)


def _write_message(message: Message, wire: Wire) -> Mapping[str, Any]:
    source = message.source
    written: Mapping[str, Any] = source if source is not None else _message(message)
    if message.role == "developer" and not wire.has_developer_role:
        written = {**written, "role": "system"}
    if message.role == "assistant" and not wire.takes_reasoning_back and not written.keys().isdisjoint(_REASONING_KEYS):
        written = {key: value for key, value in written.items() if key not in _REASONING_KEYS}
    return written


_REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "reasoning_details"})


def _message(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role}
    if all(isinstance(part, TextPart) for part in message.parts):
        written["content"] = message.text if message.parts or not message.tool_calls else None
    else:
        written["content"] = [_write_part(part) for part in message.parts]
    if message.tool_calls:
        written["tool_calls"] = [_write_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        written["tool_call_id"] = message.tool_call_id
    if message.name:
        written["name"] = message.name
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    return written


def _write_part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ImagePart(url, detail):
            return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}
        case AudioPart(data, kind):
            return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
        case FilePart(url, file_id, name):
            named = {"file_data": url, "file_id": file_id, "filename": name}
            return {"type": "file", "file": {key: value for key, value in named.items() if value}}
        case _:
            raise InvalidRequest(f"a part of type {part.type[:64]!r} cannot be sent to this model", param="messages")


def _write_tool_call(call: ToolCall) -> dict[str, Any]:
    if call.is_custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _parameters(call: Call) -> dict[str, Any]:
    """Write the parameters of a call that came in another dialect."""
    sampling = call.sampling
    values: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop": list(call.stop) or None,
        "n": call.choice_count if call.choice_count > 1 else None,
        "logprobs": call.logprobs or None,
        "reasoning_effort": call.reasoning_effort,
        "parallel_tool_calls": call.parallel_tool_calls,
        "tools": [_write_tool(tool) for tool in call.tools] or None,
        "tool_choice": _write_tool_choice(call.tool_choice) if call.tool_choice else None,
        "response_format": _write_format(call.response_format) if call.response_format else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _write_tool(tool: Tool) -> dict[str, Any]:
    named = {"name": tool.name, "description": tool.description}
    if tool.is_custom:
        return {"type": "custom", "custom": {key: value for key, value in named.items() if value}}
    function = {**named, "parameters": tool.parameters, "strict": tool.strict}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _write_tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if not choice.names:
        return choice.mode
    if len(choice.names) == 1 and choice.mode == "required":
        return {"type": "function", "function": {"name": choice.names[0]}}
    tools = [{"type": "function", "function": {"name": name}} for name in choice.names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _write_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.kind != "json_schema":
        return {"type": wanted.kind}
    named = {
        "name": wanted.name,
        "schema": wanted.schema,
        "strict": wanted.strict,
        "description": wanted.description,
    }
    return {"type": "json_schema", "json_schema": {key: value for key, value in named.items() if value is not None}}
