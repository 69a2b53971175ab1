"""Anthropic's Messages API: what a call becomes there, and what its errors mean.

Where the two vocabularies differ, the mapping takes the nearest thing that is true:

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
- A partial answer is an open assistant turn, which models up to Claude 4.5 go on with and later ones refuse. It may not
  end in white space: that is not sent, and not told again where the model says it once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    Role,
    TextPart,
    Tool,
    ToolCall,
    UnknownPart,
)
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.events import Event
from gateway.providers.anthropic_stream import AnthropicDecoder, read_answer, read_error
from gateway.providers.base import DATA_URI, Decoder, ProviderOptions, RequestHeaders, UpstreamRequest, wanted_format
from gateway.providers.continued import OpenTurn, Rest, continued, continued_answer, goes_on, messages_with, open_turn
from gateway.providers.errors import decode_or_none, retry_after_s, should_retry, upstream_error

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

_LAST_CONTINUED = (4, 5)
"""Every later Claude wants the last turn to be the user's."""

_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:-(\d{1,2}))?(?!\d)")
_NOT_IN_IDS = re.compile(r"[^\w-]", re.ASCII)

_Block: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Anthropic:
    """Anthropic's own API, or a host that speaks it."""

    options: ProviderOptions
    default_base_url: ClassVar[str] = "https://api.anthropic.com"

    @property
    def base_url(self) -> str:
        """Where the provider is, without a slash at the end."""
        return self.options.base_url_or(self.default_base_url)

    def continues(self, call: Call) -> bool:
        """Whether the call's model goes on with an open assistant turn."""
        return goes_on(self.options, call, is_known=takes_open_turn(call.target_model))

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` as a Messages request; raises ``InvalidRequest`` for what that cannot express."""
        base_url = self.base_url.removesuffix("/v1")
        body = msgspec.json.encode(_write_body(call, accepts_sampling=self._version < _NO_SAMPLING_VERSION))
        return UpstreamRequest(f"{base_url}/v1/messages", self._headers.of(call), body)

    @property
    def _version(self) -> str:
        return self.options.api_version or DEFAULT_API_VERSION

    @cached_property
    def _headers(self) -> RequestHeaders:
        key = self.options.api_key
        shown = {"anthropic-version": self._version, **({"x-api-key": key} if key else {})}
        return RequestHeaders(shown, self.options.headers, forwarded=("anthropic-beta",))

    def decoder(self, call: Call) -> Decoder:
        """Return a decoder for the stream that answers ``call``."""
        return continued(AnthropicDecoder(call, secret=self.options.api_key), _rest(call))

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer; raises as a decoder does."""
        return continued_answer(read_answer(call, body, secret=self.options.api_key), _rest(call))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error means; a spend limit (``error.details.error_code``) does not pass by waiting."""
        said = read_error(decode_or_none(body), self.options.api_key)
        return upstream_error(status, said, wait_s=retry_after_s(headers), should_retry=should_retry(headers))


def takes_open_turn(model: str) -> bool:
    """Return whether a model is a Claude that goes on with an open assistant turn."""
    return (0, 0) < _version(_family(model)) <= _LAST_CONTINUED


def _open_turn(call: Call) -> OpenTurn | None:
    return open_turn(call, takes_space=False)


def _rest(call: Call) -> Rest | None:
    turn = _open_turn(call)
    return None if turn is None else turn.rest()


def _write_body(call: Call, *, accepts_sampling: bool) -> Json:
    if call.choice_count > 1:
        raise InvalidRequest("Anthropic gives one choice per request", param="n")
    if call.logprobs:
        raise InvalidRequest("Anthropic gives no log probabilities", param="logprobs")
    model = call.target_model
    family = _family(model)
    messages = messages_with(call, _open_turn(call))
    thought = _thought(call, family, last_role=messages[-1].role if messages else "user")
    body: dict[str, Any] = {"model": model, "max_tokens": thought.max_tokens, "messages": _turns(messages)}
    user = call.source.body.get("user")
    optional = {
        "system": _system(call),
        "stream": call.stream,
        "stop_sequences": call.stop,
        "tools": _tools(call),
        "tool_choice": _tool_choice(call, family),
        "thinking": thought.thinking,
        "output_config": _output_config(call, thought),
        "metadata": {"user_id": user} if isinstance(user, str) else None,
    }
    body |= {key: value for key, value in optional.items() if value}
    if accepts_sampling and not thought.is_on and not _refuses_sampling(family):
        body |= _sampling(call)
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


def _refuses_sampling(family: str) -> bool:
    """By 5.5 every family has stopped taking sampling parameters; some did before."""
    return family.startswith(_NO_SAMPLING) or _version(family) >= (5, 5)


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


def _turns(messages: Sequence[Message]) -> list[_Block]:
    """Return the conversation in turns that alternate, none of them empty."""
    turns: list[_Block] = []
    for i, message in enumerate(messages):
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
    match = DATA_URI.match(url)
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
    """Return the tools the model may call: those that a choice names, unless ``tool_choice`` itself can say it."""
    choice = call.tool_choice
    names = () if choice is None or (choice.mode == "required" and len(choice.names) == 1) else choice.names
    tools = []
    for i, tool in enumerate(call.tools):
        if tool.is_custom:
            raise InvalidRequest("Anthropic has no custom tools", param=f"tools[{i}]")
        if not names or tool.name in names:
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
    mode, names = (call.tool_choice.mode, call.tool_choice.names) if call.tool_choice else (None, ())
    if mode == "required" and not call.tools:
        raise InvalidRequest("a tool is required but none is offered", param="tool_choice")
    if mode == "required" and family.startswith(_NO_FORCED_TOOLS):
        raise InvalidRequest("the model does not support forced tool use", param="tool_choice")
    if not call.tools:
        return {}
    if mode == "none":
        return {"type": "none"}
    written: dict[str, Any] = {}
    if mode == "required":
        written = {"type": "tool", "name": names[0]} if len(names) == 1 else {"type": "any"}
    elif mode == "auto" or call.parallel_tool_calls is False:
        written = {"type": "auto"}
    if call.parallel_tool_calls is False:
        written["disable_parallel_tool_use"] = True
    return written


@dataclass(frozen=True, slots=True)
class _Thought:
    """How a model is to think, and how many tokens that and the answer may take."""

    max_tokens: int
    thinking: Json | None = None
    effort: str | None = None

    @property
    def is_on(self) -> bool:
        return self.thinking is not None and self.thinking["type"] != "disabled"


def _thought(call: Call, family: str, *, last_role: Role) -> _Thought:
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
    wanted = wanted_format(call)
    if wanted is not None and wanted.kind == "json_schema":
        config["format"] = {"type": "json_schema", "schema": wanted.schema or {"type": "object"}}
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
