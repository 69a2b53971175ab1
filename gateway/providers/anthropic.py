"""Anthropic's Messages API: named events, content blocks, ``message_stop`` as the one sign of a whole answer.

Where the two vocabularies differ, the mapping takes the nearest thing that is true and says so here:

- ``max_tokens`` is required; a call without a limit gets ``DEFAULT_MAX_TOKENS`` (4096 for the first Claude 3 models,
  which refuse more), and room for its thinking on top.
- ``temperature`` above 1 becomes 1, the most there is. Newer models refuse ``temperature`` and ``top_p`` together, so
  that of the two which is at its neutral 1 is left out, else ``top_p``. Models and API versions that refuse sampling
  parameters, and thinking models, get none. ``seed`` and the penalties are hints without an equal and are left out.
- ``json_object`` has no equal either: the system text asks for a single JSON object and nothing else.
- ``reasoning_effort`` is an effort with adaptive thinking on Claude 4.6 and later, a thinking budget on 3.7 to 4.5,
  nothing before. ``none`` switches thinking off; models that always think get the least effort instead.
  Thinking is left off where the API would refuse it: with a forced tool, with an open assistant turn, and (budgets) in
  the middle of a tool loop, whose thinking blocks an OpenAI client cannot send back.
- ``pause_turn`` means that a loop of the provider's own tools reached its limit: the answer is not whole, so its finish
  reason is ``length`` and not ``stop``.
- A call without arguments has the ``input`` of its block's start as arguments: ``{}``.

Blocks of tools that the provider runs itself are not calls the client could answer; they, citations and signatures make
no events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import msgspec

from gateway.core.call import (
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Json,
    Message,
    Part,
    TextPart,
    Tool,
    ToolCall,
    UnknownPart,
)
from gateway.core.errors import InvalidRequest, StreamInterrupted, UpstreamError
from gateway.core.events import (
    ChoiceFinished,
    Event,
    FinishReason,
    Frame,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.sse import SSEDecoder, ServerSentEvent
from gateway.providers.base import EventDecoder, ProviderOptions, UpstreamRequest, estimate_tokens
from gateway.providers.errors import (
    ErrorBody,
    cut_off,
    error_from_json,
    malformed,
    retry_after_s,
    upstream_error,
)

ANTHROPIC_EVENT = "anthropic.message.event"
ANTHROPIC_ANSWER = "anthropic.message"

DEFAULT_API_VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 8192
MIN_THINKING_TOKENS = 1024

_NO_SAMPLING_VERSION = "2026-10-21"
"""From this ``anthropic-version`` on there is no ``temperature``, ``top_p`` or ``top_k``."""

_NO_SAMPLING = (
    "claude-opus-4-7", "claude-opus-4-8", "claude-opus-5", "claude-sonnet-5", "claude-haiku-5-5",
    "claude-fable-5", "claude-mythos",
)  # fmt: skip
_NO_FORCED_TOOLS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-fable-5-1", "claude-mythos-5-1")
_ALWAYS_THINKING = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-fable-5", "claude-mythos-5")
_THINKING_BETWEEN_TOOLS = ("claude-sonnet-5-5",)
_SMALL_ANSWERS = ("claude-3-haiku", "claude-3-opus", "claude-3-sonnet")

_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 20480, "max": 20480}
"""With ``DEFAULT_MAX_TOKENS`` on top these stay under 32000, the least that a thinking model allows."""

_JSON_OBJECT = "Answer with a single JSON object and nothing else: no text around it and no code fence."

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status that an error inside a stream would have had."""

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:-(\d{1,2}))?(?!\d)")
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]+)*?;base64,", re.IGNORECASE)
_NOT_IN_IDS = re.compile(r"[^\w-]", re.ASCII)

_Block: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Anthropic:
    """Anthropic's own API, or a host that speaks it."""

    options: ProviderOptions
    default_base_url: ClassVar[str] = "https://api.anthropic.com"

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` as a Messages request; raises ``InvalidRequest`` for what that cannot express."""
        base_url = (self.options.base_url or self.default_base_url).rstrip("/").removesuffix("/v1")
        version = self.options.api_version or DEFAULT_API_VERSION
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if call.stream else "application/json",
            "anthropic-version": version,
        }
        if self.options.api_key:
            headers["x-api-key"] = self.options.api_key
        if beta := call.headers.get("anthropic-beta"):
            headers["anthropic-beta"] = beta
        body = msgspec.json.encode(_body(call, accepts_sampling=version < _NO_SAMPLING_VERSION))
        return UpstreamRequest(f"{base_url}/v1/messages", {**headers, **self.options.headers}, body)

    def decoder(self, call: Call) -> AnthropicDecoder:
        """Return a decoder for the stream that answers ``call``."""
        return AnthropicDecoder(call, api_key=self.options.api_key)

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer; raises ``UpstreamError`` when it is an error, or not an answer that has ended."""
        return AnthropicDecoder(call, api_key=self.options.api_key).read_answer(body)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error means; a spend limit (``error.details.error_code``) does not pass by waiting."""
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = None
        should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
        said = _error_body(document, self.options.api_key)
        return upstream_error(status, said, wait_s=retry_after_s(headers), should_retry=should_retry)


# --- the request


def _body(call: Call, *, accepts_sampling: bool) -> Json:
    if call.choice_count > 1:
        raise InvalidRequest("Anthropic gives one choice per request", param="n")
    if call.logprobs:
        raise InvalidRequest("Anthropic gives no log probabilities", param="logprobs")
    model = call.target.model if call.target else call.model
    family = _family(model)
    thought = _thought(call, family)
    body: dict[str, Any] = {"model": model, "max_tokens": thought.max_tokens, "messages": _turns(call)}
    if system := _system(call):
        body["system"] = system
    if call.stream:
        body["stream"] = True
    if call.stop:
        body["stop_sequences"] = call.stop
    if tools := _tools(call):
        body["tools"] = tools
    if choice := _tool_choice(call, family):
        body["tool_choice"] = choice
    if thought.thinking:
        body["thinking"] = thought.thinking
    if config := _output_config(call, thought):
        body["output_config"] = config
    if accepts_sampling and not thought.is_on and not family.startswith(_NO_SAMPLING) and _version(family) < (5, 5):
        body |= _sampling(call)
    if isinstance(user := call.source.body.get("user"), str):
        body["metadata"] = {"user_id": user}
    return body


def _family(model: str) -> str:
    """Return a model's name without what hosts put around it: ``us.anthropic.claude-…``, dots, ``@``."""
    name = re.sub(r"[.@]", "-", model.lower())
    _, found, rest = name.partition("claude-")
    return found + rest


def _version(family: str) -> tuple[int, int]:
    """Return a model's version: a Claude without a number counts as the newest, another vendor's model as none."""
    match = _VERSION.match(family)
    if match is None:
        return (99, 0) if family else (0, 0)
    return int(match[1]), int(match[2] or 0)


def _system(call: Call) -> str:
    for i, message in enumerate(call.messages):
        if message.role in ("system", "developer"):
            for j, part in enumerate(message.parts):
                if not isinstance(part, TextPart):
                    raise InvalidRequest("Anthropic's system prompt is text", param=f"messages[{i}].content[{j}]")
    text = call.system_text()
    if call.response_format is not None and call.response_format.kind == "json_object":
        return f"{text}\n\n{_JSON_OBJECT}" if text else _JSON_OBJECT
    return text


def _turns(call: Call) -> list[_Block]:
    """Return the conversation in turns that alternate, none of them empty."""
    turns: list[_Block] = []
    for i, message in enumerate(call.messages):
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, f"messages[{i}]")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise InvalidRequest("Anthropic needs at least one message that is not empty", param="messages")
    for turn in turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")  # the API wants results first
    last = turns[-1]
    if last["role"] == "assistant" and last["content"][-1]["type"] == "text":
        last["content"][-1]["text"] = last["content"][-1]["text"].rstrip()  # an open turn may not end in whitespace
    return turns


def _blocks(message: Message, path: str) -> list[_Block]:
    if message.role == "tool":
        return [_tool_result(message, path)]
    blocks = _content(message.parts, path)
    for j, block in enumerate(blocks):
        if message.role == "assistant" and block["type"] != "text":
            raise InvalidRequest("an assistant's turn is text and tool calls", param=f"{path}.content[{j}]")
    return blocks + [_tool_use(tool_call, f"{path}.tool_calls[{j}]") for j, tool_call in enumerate(message.tool_calls)]


def _content(parts: Iterable[Part], path: str) -> list[_Block]:
    blocks = [_part(part, f"{path}.content[{j}]") for j, part in enumerate(parts)]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]  # blank text is refused


def _part(part: Part, path: str) -> _Block:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url):
            return {"type": "image", "source": _file_source(url, "image/", path)}
        case FilePart(url=str(url), name=name):
            return {"type": "document", "source": _file_source(url, "application/pdf", path)} | _title(name)
        case FilePart(file_id=str(file_id), name=name):
            return {"type": "document", "source": {"type": "file", "file_id": file_id}} | _title(name)
        case FilePart():
            raise InvalidRequest("a file needs its data, a URL or an id", param=path)
        case AudioPart():
            raise InvalidRequest("Anthropic takes no audio", param=path)
        case UnknownPart(type=kind):
            raise InvalidRequest(f"Anthropic has no equal of a part of type {kind!r}", param=path)


def _title(name: str | None) -> _Block:
    return {"title": name} if name else {}


def _file_source(url: str, media_type: str, path: str) -> _Block:
    """Return where a picture or document is to be read; ``media_type`` is what its type must begin with."""
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    match = _DATA_URI.match(url)
    if match is None or not match[1].lower().startswith(media_type):
        expected = f"an https URL or a base64 data URI of {media_type.rstrip('/')}"
        raise InvalidRequest(f"Anthropic takes {expected} here", param=path)
    return {"type": "base64", "media_type": match[1].lower(), "data": url[match.end() :]}


def _tool_use(tool_call: ToolCall, path: str) -> _Block:
    if tool_call.is_custom:
        raise InvalidRequest("Anthropic has no custom tools", param=path)
    return {
        "type": "tool_use",
        "id": _id(tool_call.id, f"{path}.id"),
        "name": tool_call.name,
        "input": _arguments(tool_call.arguments, path),
    }


def _arguments(text: str, path: str) -> msgspec.Raw:
    """Return ``text`` as the JSON object that it must be, unchanged."""
    try:
        raw = text.encode() if text.strip() else b"{}"
        is_object = isinstance(msgspec.json.decode(raw), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequest("the arguments of a tool call must be a JSON object", param=path)
    return msgspec.Raw(raw)


def _tool_result(message: Message, path: str) -> _Block:
    block: _Block = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id, f"{path}.tool_call_id")}
    content = _content(message.parts, path)
    if content:
        is_text = all(inner["type"] == "text" for inner in content)
        block["content"] = message.text if is_text else content
    return block


def _id(value: str, path: str) -> str:
    """Return a call's id in the letters that Anthropic allows; other providers' ids may have more."""
    if not value:
        raise InvalidRequest("a tool call and its result are matched by an id", param=path)
    return _NOT_IN_IDS.sub("_", value)


def _tools(call: Call) -> list[Json]:
    """Return the tools the model may call; a choice of one forced tool is left to ``tool_choice``."""
    names = call.tool_choice.names if call.tool_choice else ()
    is_restricted = len(names) > 1 or (names and call.tool_choice is not None and call.tool_choice.mode == "auto")
    tools = []
    for i, tool in enumerate(call.tools):
        if tool.is_custom:
            raise InvalidRequest("Anthropic has no custom tools", param=f"tools[{i}]")
        if not is_restricted or tool.name in names:
            tools.append(_tool(tool))
    return tools


def _tool(tool: Tool) -> Json:
    schema = {"type": "object", **(tool.parameters or {"properties": {}})}
    written: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description:
        written["description"] = tool.description
    if tool.strict is not None:
        written["strict"] = tool.strict
    return written


def _tool_choice(call: Call, family: str) -> Json:
    choice = call.tool_choice
    is_forced = choice is not None and choice.mode == "required"
    if is_forced and not call.tools:
        raise InvalidRequest("a tool is required but none is offered", param="tool_choice")
    if is_forced and family.startswith(_NO_FORCED_TOOLS):
        raise InvalidRequest("the model does not support forced tool use", param="tool_choice")
    if not call.tools:
        return {}
    if choice is not None and choice.mode == "none":
        return {"type": "none"}
    written: dict[str, Any] = {"type": "auto"}
    if is_forced and choice is not None:
        written = {"type": "tool", "name": choice.names[0]} if len(choice.names) == 1 else {"type": "any"}
    if call.parallel_tool_calls is False:
        written["disable_parallel_tool_use"] = True
    return written if choice is not None or len(written) > 1 else {}


@dataclass(frozen=True, slots=True)
class _Thought:
    """How a model is to think, and how many tokens that and the answer may take."""

    max_tokens: int
    thinking: Json | None = None
    effort: str | None = None

    @property
    def is_on(self) -> bool:
        return self.thinking is not None and self.thinking["type"] != "disabled"


def _thought(call: Call, family: str) -> _Thought:
    max_tokens = call.max_output_tokens
    if max_tokens is None:
        max_tokens = 4096 if family.startswith(_SMALL_ANSWERS) else DEFAULT_MAX_TOKENS
    effort = call.reasoning_effort
    if effort is not None and effort != "none" and effort not in _EFFORTS:
        raise InvalidRequest(f"reasoning_effort is one of none, {', '.join(_EFFORTS)}", param="reasoning_effort")
    version = _version(family)
    if effort is None or version < (3, 7):
        return _Thought(max_tokens)
    if effort == "none":
        return _without_thinking(max_tokens, family)
    last_role = call.messages[-1].role if call.messages else "user"
    is_refused = last_role == "assistant" or (call.tool_choice is not None and call.tool_choice.mode == "required")
    if version > (4, 5):
        native = "high" if effort == "xhigh" and version == (4, 6) else _EFFORTS[effort]
        return _Thought(max_tokens, None if is_refused else {"type": "adaptive"}, native)
    if is_refused or last_role == "tool":
        return _Thought(max_tokens)
    return _with_budget(max_tokens, _BUDGETS[effort], is_limited=call.max_output_tokens is not None)


def _without_thinking(max_tokens: int, family: str) -> _Thought:
    if family.startswith(_THINKING_BETWEEN_TOOLS):
        return _Thought(max_tokens, {"type": "between_tools"})
    if family.startswith(_ALWAYS_THINKING):
        return _Thought(max_tokens, effort="low")
    return _Thought(max_tokens, {"type": "disabled"})


def _with_budget(max_tokens: int, budget: int, *, is_limited: bool) -> _Thought:
    """Keep at least half of a given limit for the answer; a limit too small for any thinking gets none."""
    if is_limited:
        budget = max(MIN_THINKING_TOKENS, min(budget, max_tokens // 2))
    else:
        max_tokens += budget
    if budget >= max_tokens:
        return _Thought(max_tokens)
    return _Thought(max_tokens, {"type": "enabled", "budget_tokens": budget})


def _output_config(call: Call, thought: _Thought) -> Json:
    config: dict[str, Any] = {}
    if thought.effort:
        config["effort"] = thought.effort
    if call.response_format is not None and call.response_format.kind == "json_schema":
        config["format"] = {"type": "json_schema", "schema": call.response_format.schema or {"type": "object"}}
    return config


def _sampling(call: Call) -> dict[str, float]:
    sampling = call.sampling
    temperature, top_p = sampling.temperature, sampling.top_p
    if temperature is not None and top_p is not None:
        temperature, top_p = (None, top_p) if temperature == 1 else (temperature, None)
    written: dict[str, float] = {}
    if temperature is not None:
        written["temperature"] = min(temperature, 1.0)
    if top_p is not None:
        written["top_p"] = top_p
    if sampling.top_k is not None:
        written["top_k"] = sampling.top_k
    return written


# --- the answer


class _OutputDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Running totals: a later report replaces what it names."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def update(self, later: _Usage) -> None:
        for name in self.__struct_fields__:
            if (value := getattr(later, name)) is not None:
                setattr(self, name, value)

    def total(self) -> Usage:
        cached, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        return Usage(
            (self.input_tokens or 0) + cached + written,
            self.output_tokens or 0,
            cached_input_tokens=cached,
            cache_write_input_tokens=written,
            reasoning_tokens=(self.output_tokens_details or _OutputDetails()).thinking_tokens or 0,
        )


class _ContentBlock(msgspec.Struct, gc=False):
    type: str
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw()

    def arguments(self) -> str:
        """Return the input as it is written, ``{}`` where there is none."""
        return str(self.input, "utf-8") if self.input not in (b"", b"null") else "{}"


class _Answer(msgspec.Struct, gc=False):
    """A whole message, or what ``message_start`` says of one."""

    id: str | None = None
    model: str | None = None
    content: list[_ContentBlock] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _StreamEvent(msgspec.Struct, gc=False):
    """All events in one: the type says which of the fields count."""

    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: _ContentBlock | None = None
    message: _Answer | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Typed(msgspec.Struct, gc=False):
    type: str = ""
    error: msgspec.Raw = msgspec.Raw()


_EVENT_TYPES = frozenset(
    {
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "error",
    }
)  # fmt: skip
_DECODE_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_decode_event = msgspec.json.Decoder(_StreamEvent).decode
_decode_typed = msgspec.json.Decoder(_Typed).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class _OpenCall(msgspec.Struct, gc=False):
    """A call whose arguments may still come; ``unsent`` is the input of its start until a piece replaces it."""

    call_index: int
    block_index: int
    unsent: str


class AnthropicDecoder(EventDecoder):
    """Reads one stream; complete when ``message_stop`` was seen.

    What a read brought before an error in it is returned, and the error raised by whichever method is called next.
    """

    def __init__(self, call: Call, *, api_key: str | None = None) -> None:
        super().__init__(call)
        self._sse = SSEDecoder()
        self._api_key = api_key
        self._is_complete = False
        self._failure: UpstreamError | None = None
        self._usage: _Usage | None = None
        self._is_usage_final = False
        self._has_started = False
        self._has_finished = False
        self._call_count = 0
        self._open_call: _OpenCall | None = None

    @property
    def is_complete(self) -> bool:
        """Whether ``message_stop`` was seen."""
        return self._is_complete

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes, in legal order."""
        if self._failure is not None:
            raise self._failure
        return self._read_all(self._sse.feed(data))

    def finish(self) -> list[Event]:
        """Take the end of the bytes; raises ``StreamInterrupted`` unless ``message_stop`` was seen."""
        if self._failure is not None:
            raise self._failure
        rest = [] if self._is_complete else self._sse.finish()
        if rest and not _is_json(rest[0].data):
            raise cut_off()  # half an event is what a cut leaves, and no fault of its own
        events = self._read_all(rest)
        if self._failure is not None:
            raise self._failure
        if not self._is_complete:
            raise cut_off()
        return events

    def read_answer(self, body: bytes) -> list[Event]:
        """Read a whole answer instead of a stream; its events share one frame."""
        try:
            typed = _decode_typed(body)
            if typed.type == "error" or typed.error:
                raise self._error(body)
            answer = _decode_answer(body)
            events = self._answer_events(answer)
        except _DECODE_FAULTS as fault:
            raise malformed("an answer that is not its format") from fault
        frame = Frame(body, ANTHROPIC_ANSWER, len(events))
        return self._admit([msgspec.structs.replace(event, frame=frame) for event in events])

    def _read_all(self, documents: list[ServerSentEvent]) -> list[Event]:
        events: list[Event] = []
        try:
            for document in documents:
                if self._is_complete:
                    break
                data = document.data
                event = _event(data)
                delta = event.delta
                if delta is not None and delta.type == "text_delta":  # nearly all of a stream
                    if delta.text:
                        events.append(TextDelta(delta.text, 0, Frame(data, ANTHROPIC_EVENT, 1)))
                else:
                    events += self._read(event, data)
        except UpstreamError as failure:
            if not events:
                raise
            self._failure = failure
        return self._admit(events)

    def _read(self, event: _StreamEvent, data: bytes) -> list[Event]:
        """Return what one document means, all of it in one frame."""
        events = self._meaning(event, data)
        if not events:
            return events
        frame = Frame(data, ANTHROPIC_EVENT, len(events))
        return [msgspec.structs.replace(event, frame=frame) for event in events]

    def _meaning(self, event: _StreamEvent, data: bytes) -> list[Event]:
        match event.type:
            case "content_block_delta":
                return self._block_delta(event.index, event.delta or _Delta())
            case "content_block_start" if event.content_block is not None:
                return self._block_start(event.index, event.content_block)
            case "message_start":
                return self._message_start(event.message or _Answer())
            case "message_delta":
                return self._message_delta(event)
            case "message_stop":
                return self._message_stop()
            case "error":
                raise self._error(data)
            case "" if event.error:  # some hosts in between send their errors in OpenAI's shape
                raise self._error(data)
            case "":
                raise malformed("an event without a type")
            case _:  # content_block_stop, ping, and what is not invented yet
                return []

    def _message_start(self, message: _Answer) -> list[Event]:
        self._has_started = True
        started = StreamStarted(message.id or "", message.model or "")
        return [started, *self._use(message.usage)]

    def _block_start(self, index: int, block: _ContentBlock) -> list[Event]:
        events = self._settle_call()
        match block.type:
            case "text" if block.text:
                events.append(TextDelta(block.text))
            case "thinking" if block.thinking:
                events.append(ReasoningDelta(block.thinking))
            case "tool_use":
                events.append(ToolCallStarted(self._call_count, block.id or "", block.name or ""))
                self._open_call = _OpenCall(self._call_count, index, block.arguments())
                self._call_count += 1
            case _:
                pass
        return events

    def _block_delta(self, index: int, delta: _Delta) -> list[Event]:
        if delta.type == "thinking_delta" and delta.thinking:
            return [ReasoningDelta(delta.thinking)]
        if delta.type == "input_json_delta" and delta.partial_json:
            call = self._open_call
            if call is not None and call.block_index == index:
                call.unsent = ""
                return [ToolCallDelta(call.call_index, delta.partial_json)]
        return []

    def _message_delta(self, event: _StreamEvent) -> list[Event]:
        native = event.delta.stop_reason if event.delta else None
        events: list[Event] = []
        if native is not None:
            if _FINISH_REASONS.get(native) != "length":  # a call cut off before its arguments has none
                events += self._settle_call()
            events.append(ChoiceFinished(_FINISH_REASONS.get(native, "stop"), native))
            self._has_finished = True
        self._is_usage_final = self._is_usage_final or event.usage is not None
        return events + self._use(event.usage)

    def _message_stop(self) -> list[Event]:
        """The provider's word that the answer is whole; it stands for the reason, too, where that is missing."""
        if not self._has_started:
            raise malformed("the end of an answer that never began")
        self._is_complete = True
        events = self._settle_call() if not self._has_finished else []
        if not self._has_finished:
            events.append(ChoiceFinished("tool_calls" if self._call_count else "stop"))
        if not self._is_usage_final:
            events.append(UsageReported(self._guessed_usage()))
        return events

    def _settle_call(self) -> list[Event]:
        """Return the arguments of a call that came without any piece of them."""
        call, self._open_call = self._open_call, None
        return [ToolCallDelta(call.call_index, call.unsent)] if call is not None and call.unsent else []

    def _use(self, usage: _Usage | None) -> list[Event]:
        if usage is None:
            return []
        if self._usage is None:
            self._usage = usage
        else:
            self._usage.update(usage)
        return [UsageReported(self._usage.total())]

    def _guessed_usage(self) -> Usage:
        """The input as it was reported, or an estimate; the output by its length."""
        reported = self._usage.total() if self._usage else None
        prompt = sum(len(message.text) for message in self._call.messages)
        return Usage(
            reported.input_tokens if reported else estimate_tokens(prompt),
            estimate_tokens(self._character_count),
            cached_input_tokens=reported.cached_input_tokens if reported else 0,
            cache_write_input_tokens=reported.cache_write_input_tokens if reported else 0,
            is_estimated=True,
        )

    def _answer_events(self, answer: _Answer) -> list[Event]:
        if answer.content is None or answer.stop_reason is None:
            raise malformed("an answer without an end")
        events = self._message_start(answer)
        for index, block in enumerate(answer.content):
            events += self._block_start(index, block)
        events += self._message_delta(_StreamEvent(delta=_Delta(stop_reason=answer.stop_reason)))
        return events if answer.usage else events + self._estimated_usage()

    def _error(self, data: bytes) -> UpstreamError:
        """Return what an error inside an answer means; one after the start has interrupted it."""
        said = _error_body(msgspec.json.decode(data), self._api_key)
        error = upstream_error(_STATUSES.get(said.type, 500), said)
        if not self._has_started:
            return error
        return StreamInterrupted(
            error.message, code=error.code, retryable=error.retryable, error_type=error.error_type,
            retry_after_s=error.retry_after_s, upstream_status=error.upstream_status,
        )  # fmt: skip


def _event(data: bytes) -> _StreamEvent:
    """Decode one document. A type that is not known may have any shape, a known one only its own."""
    try:
        return _decode_event(data)
    except _DECODE_FAULTS as fault:
        try:
            kind = _decode_typed(data).type
        except _DECODE_FAULTS:
            kind = ""
        if not kind or kind in _EVENT_TYPES:
            raise malformed("an event that is not its format") from fault
        return _StreamEvent(kind)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except _DECODE_FAULTS:
        return False
    return True


def _error_body(document: object, api_key: str | None) -> ErrorBody:
    """Read Anthropic's error shape; its machine code, where there is one, is in ``details``."""
    said = error_from_json(document, api_key)
    match document:
        case {"error": {"details": {"error_code": str(code)}}}:
            return ErrorBody(said.message, code, said.type, said.param)
        case _:
            return said
