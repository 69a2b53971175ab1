"""Reads a Chat Completions request into a ``Call``, and says in one line what is wrong with one that is not.

Only what the gateway itself needs is checked: the shapes of messages, tools and the parameters that another provider's
wire has to express. What it does not know is left in ``Call.source`` for a provider that does. Ranges are the
provider's to judge.

A hostile body costs little: its depth and its counts are bounded before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

import msgspec
from msgspec.structs import replace

from gateway.core.call import (
    OPENAI_CHAT,
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Role,
    Sampling,
    Source,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UnknownPart,
)
from gateway.core.errors import InvalidRequest

MAX_DEPTH = 64
"""Of nested JSON. The deepest schemas in use have about 20 levels."""
MAX_MESSAGES = 2000
MAX_TOOLS = 256
MAX_CHOICES = 128

SHORT_BYTES = 1024
"""Up to here brackets are counted in less time than they are looked for."""

_T = TypeVar("_T")
_ROLES = (*get_args(Role), "function")
_PLAIN_ROLES = get_args(Role)


def read_request(body: bytes, call: Call) -> Call:
    """Fill in ``call`` from a request's body; raises ``InvalidRequest`` that names the parameter.

    Most requests have few parameters, and what is not there is not looked for.
    """
    document = read_json(body)
    fields = _Fields(document)
    model, stream = document.get("model"), document.get("stream")
    found: dict[str, Any] = {
        "source": Source(OPENAI_CHAT, document),
        "model": model if type(model) is str and model else _model(fields),
        "stream": stream if type(stream) is bool else fields.boolean("stream") or False,
    }
    if "stream_options" in document:
        found["include_usage"] = _include_usage(fields)
    found["messages"] = _messages(fields)
    present = [key for key in document if key in _PARAMETERS]
    if len(present) > 1:
        present.sort(key=_ORDER.__getitem__)
    for key in present:
        name, read = _PARAMETERS[key]
        if name not in found:
            found[name] = read(fields)
    return replace(call, **found)


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object that ``body`` is; raises ``InvalidRequest`` when it is none, or too deep."""
    try:
        document = msgspec.json.decode(body)
    except RecursionError as error:
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {_reason(error)}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(document)}")
    has_many = body.count(b"{") + body.count(b"[") > MAX_DEPTH if len(body) <= SHORT_BYTES else _has_many(body)
    if has_many and _is_deeper(document, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
    return document


def _reason(error: Exception) -> str:
    """Only msgspec's own words and positions: a Unicode error would quote the body."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _has_many(body: bytes) -> bool:
    """Whether there are so many brackets that they could be too deep.

    To look for some takes a long prompt a thirtieth of the time in which all are counted.
    """
    count = 0
    for bracket in (b"{", b"["):
        place = body.find(bracket)
        while place >= 0:
            count += 1
            if count > MAX_DEPTH:
                return True
            place = body.find(bracket, place + 1)
    return False


def _is_deeper(value: object, levels: int) -> bool:
    layer: list[object] = [value]
    for _ in range(levels):
        layer = [child for node in layer for child in _children(node)]
        if not layer:
            return False
    return any(isinstance(node, dict | list) for node in layer)


def _children(node: object) -> Sequence[object]:
    if isinstance(node, dict):
        return [child for child in node.values() if isinstance(child, dict | list)]
    return [child for child in node if isinstance(child, dict | list)] if isinstance(node, list) else ()


class _Fields:
    """Reads typed values out of a JSON object; ``None`` and absent are the same, as in OpenAI's API."""

    __slots__ = ("_path", "document")

    def __init__(self, document: Mapping[str, Any], path: str = "") -> None:
        self.document = document
        self._path = path

    def get(self, key: str, default: object = None) -> Any:
        return self.document.get(key, default)

    def string(self, key: str) -> str | None:
        return self._get(key, str, "a string")

    def boolean(self, key: str) -> bool | None:
        return self._get(key, bool, "true or false")

    def integer(self, key: str) -> int | None:
        return self._get(key, int, "an integer")

    def number(self, key: str) -> float | None:
        value = self.document.get(key)
        if type(value) is not int:
            return self._get(key, float, "a number")
        try:
            return float(value)
        except OverflowError as error:
            raise wrong(self._path + key, "a number that a float can hold", value) from error

    def mapping(self, key: str) -> dict[str, Any] | None:
        return self._get(key, dict, "an object")

    def array(self, key: str) -> list[Any] | None:
        return self._get(key, list, "an array")

    def _get(self, key: str, kind: type[_T], expected: str) -> _T | None:
        value = self.document.get(key)
        if value is not None and type(value) is not kind:
            raise wrong(self._path + key, expected, value)
        return value


def wrong(param: str, expected: str, value: object) -> InvalidRequest:
    """Return the error for a value of the wrong kind; the value itself is not quoted."""
    return InvalidRequest(f"{param}: expected {expected}, got {_kind(value)}", param=param)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "something else")


def _include_usage(fields: _Fields) -> bool:
    return _Fields(fields.mapping("stream_options") or {}, "stream_options.").boolean("include_usage") or False


def _sampling(fields: _Fields) -> Sampling:
    document = fields.document
    return Sampling(
        temperature=fields.number("temperature") if "temperature" in document else None,
        top_p=fields.number("top_p") if "top_p" in document else None,
        top_k=fields.integer("top_k") if "top_k" in document else None,
        seed=fields.integer("seed") if "seed" in document else None,
        frequency_penalty=fields.number("frequency_penalty") if "frequency_penalty" in document else None,
        presence_penalty=fields.number("presence_penalty") if "presence_penalty" in document else None,
    )


def _model(fields: _Fields) -> str:
    model = fields.string("model")
    if not model:
        raise InvalidRequest("model: expected the name of a model", param="model")
    return model


def _max_tokens(fields: _Fields) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        value = fields.integer(key) if key in fields.document else None
        if value is not None:
            if value < 1:
                raise InvalidRequest(f"{key}: expected at least 1", param=key)
            return value
    return None


def _logprobs(fields: _Fields) -> bool:
    """Some hosts take how many, as the older completions did."""
    wanted = fields.get("logprobs")
    if not isinstance(wanted, bool | int | None):
        raise wrong("logprobs", "true or false", wanted)
    return bool(wanted)


def _choice_count(fields: _Fields) -> int:
    count = fields.integer("n")
    if count is not None and not 1 <= count <= MAX_CHOICES:
        raise InvalidRequest(f"n: expected 1 to {MAX_CHOICES}", param="n")
    return count or 1


def _stop(fields: _Fields) -> tuple[str, ...]:
    stop = fields.get("stop")
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        raise wrong("stop", "a string or an array of strings", stop)
    return tuple(stop)


def _messages(fields: _Fields) -> tuple[Message, ...]:
    messages = fields.document.get("messages")
    if type(messages) is not list:
        messages = fields.array("messages")
    if not messages:
        raise InvalidRequest("messages: expected a non-empty array of messages", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages: expected at most {MAX_MESSAGES} messages", param="messages")
    read: list[Message] = []
    role: Any
    for message in messages:
        if type(message) is dict and len(message) == 2:  # nearly all of a conversation
            role, content = message.get("role"), message.get("content")
            if type(content) is str and role in _PLAIN_ROLES:
                read.append(Message(role=role, parts=(TextPart(content),), source=message))
                continue
        read.append(_message(message, len(read)))
    return tuple(read)


def _message(message: object, number: int) -> Message:
    if not isinstance(message, dict):
        raise wrong(f"messages[{number}]", "an object", message)
    path = f"messages[{number}]"
    fields = _Fields(message, f"{path}.")
    role, content = fields.string("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidRequest(f"{path}.role: expected one of {', '.join(_ROLES)}", param=f"{path}.role")
    calls = fields.array("tool_calls") or []
    legacy = fields.mapping("function_call")
    tool_calls = [_tool_call(call, f"{path}.tool_calls[{number}]") for number, call in enumerate(calls)]
    if legacy is not None:
        tool_calls.append(_legacy_call(legacy, f"{path}.function_call."))
    if content is None and role != "assistant":
        raise wrong(f"{path}.content", "a string or an array of parts", content)
    return Message(
        role="tool" if role == "function" else cast("Role", role),
        parts=_parts(content, f"{path}.content"),
        tool_calls=tuple(tool_calls),
        tool_call_id=fields.string("tool_call_id") or ((fields.string("name") or "") if role == "function" else ""),
        name=fields.string("name"),
        reasoning=fields.string("reasoning_content"),
        source=message,
    )


def _parts(content: object, path: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        raise wrong(path, "a string or an array of parts", content)
    return tuple(_part(part, f"{path}[{number}]") for number, part in enumerate(content))


def _part(part: object, path: str) -> Part:
    if not isinstance(part, dict):
        raise wrong(path, "an object", part)
    fields = _Fields(part, f"{path}.")
    kind = fields.string("type")
    match kind:
        case "text":
            return TextPart(_required(fields, "text", f"{path}.text"))
        case "refusal":
            return TextPart(_required(fields, "refusal", f"{path}.refusal"))
        case "image_url":
            return _image(part, path)
        case "input_audio":
            audio = _Fields(fields.mapping("input_audio") or {}, f"{path}.input_audio.")
            data = _required(audio, "data", f"{path}.input_audio.data")
            return AudioPart(data, audio.string("format") or "wav")
        case "file":
            file = _Fields(fields.mapping("file") or {}, f"{path}.file.")
            return FilePart(file.string("file_data"), file.string("file_id"), file.string("filename"))
        case None:
            raise InvalidRequest(f"{path}.type: expected the kind of the part", param=f"{path}.type")
        case _:
            return UnknownPart(kind)


def _image(part: Mapping[str, Any], path: str) -> ImagePart:
    image = part.get("image_url")
    if isinstance(image, str):  # some hosts take the address alone
        return ImagePart(image)
    fields = _Fields(_Fields(part, f"{path}.").mapping("image_url") or {}, f"{path}.image_url.")
    return ImagePart(_required(fields, "url", f"{path}.image_url.url"), fields.string("detail"))


def _required(fields: _Fields, key: str, param: str) -> str:
    value = fields.string(key)
    if value is None:
        raise wrong(param, "a string", value)
    return value


def _tool_call(call: object, path: str) -> ToolCall:
    if not isinstance(call, dict):
        raise wrong(path, "an object", call)
    fields = _Fields(call, f"{path}.")
    is_custom = fields.string("type") == "custom"
    key, text = ("custom", "input") if is_custom else ("function", "arguments")
    inner = _Fields(fields.mapping(key) or {}, f"{path}.{key}.")
    name = _required(inner, "name", f"{path}.{key}.name")
    return ToolCall(fields.string("id") or "", name, inner.string(text) or "", is_custom)


def _legacy_call(call: Mapping[str, Any], path: str) -> ToolCall:
    fields = _Fields(call, path)
    name = _required(fields, "name", f"{path}name")
    return ToolCall(name, name, fields.string("arguments") or "")


def _tools(fields: _Fields) -> tuple[Tool, ...]:
    tools = fields.array("tools") or []
    functions = fields.array("functions") or []
    if len(tools) + len(functions) > MAX_TOOLS:
        raise InvalidRequest(f"tools: expected at most {MAX_TOOLS} tools", param="tools")
    read = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    return (*read, *(_function(item, f"functions[{number}]", None) for number, item in enumerate(functions)))


def _tool(tool: object, path: str) -> Tool:
    if not isinstance(tool, dict):
        raise wrong(path, "an object", tool)
    fields = _Fields(tool, f"{path}.")
    kind = fields.string("type") or "function"
    if kind not in ("function", "custom"):  # a host's own, such as a search that it runs itself
        return Tool(name=kind, is_custom=True, source=tool)
    if kind == "custom":
        custom = _Fields(fields.mapping("custom") or {}, f"{path}.custom.")
        name = _required(custom, "name", f"{path}.custom.name")
        return Tool(name=name, description=custom.string("description"), is_custom=True, source=tool)
    return _function(tool.get("function"), f"{path}.function", tool)


def _function(function: object, path: str, source: Mapping[str, Any] | None) -> Tool:
    if not isinstance(function, dict):
        raise wrong(path, "an object", function)
    fields = _Fields(function, f"{path}.")
    return Tool(
        name=_required(fields, "name", f"{path}.name"),
        description=fields.string("description"),
        parameters=fields.mapping("parameters"),
        strict=fields.boolean("strict"),
        source=source,
    )


def _tool_choice(fields: _Fields) -> ToolChoice | None:
    choice = fields.get("tool_choice", fields.get("function_call"))
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case "any":
            return ToolChoice("required")
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]}}:
            return ToolChoice(mode, tuple(_tool_name(tool) for tool in tools))
        case {"type": "function" | "custom"} | {"name": str()}:
            return ToolChoice("required", (_tool_name(choice),))
        case _:
            expected = "none, auto, required, or an object that names a function"
            raise InvalidRequest(f"tool_choice: expected {expected}", param="tool_choice")


def _tool_name(choice: object) -> str:
    match choice:
        case {"function": {"name": str(name)}} | {"custom": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise InvalidRequest("tool_choice: expected the name of a function", param="tool_choice")


def _response_format(fields: _Fields) -> ResponseFormat | None:
    wanted = fields.mapping("response_format")
    match wanted:
        case None:
            return None
        case {"type": "text" | "json_object" as kind}:
            return ResponseFormat(kind=kind)
        case {"type": "json_schema", "json_schema": dict(schema)}:
            inner = _Fields(schema, "response_format.json_schema.")
            return ResponseFormat(
                kind="json_schema",
                name=inner.string("name") or "answer",
                schema=inner.mapping("schema"),
                strict=inner.boolean("strict"),
                description=inner.string("description"),
            )
        case {"type": str(name)} if name not in ("text", "json_object", "json_schema"):
            return ResponseFormat(kind="other", name=name)
        case _:
            expected = "an object of type text, json_object or json_schema"
            raise InvalidRequest(f"response_format: expected {expected}", param="response_format")


_PARAMETERS: dict[str, tuple[str, Callable[[_Fields], object]]] = {
    "tools": ("tools", _tools),
    "functions": ("tools", _tools),
    "tool_choice": ("tool_choice", _tool_choice),
    "function_call": ("tool_choice", _tool_choice),
    "parallel_tool_calls": ("parallel_tool_calls", lambda fields: fields.boolean("parallel_tool_calls")),
    "response_format": ("response_format", _response_format),
    "max_completion_tokens": ("max_output_tokens", _max_tokens),
    "max_tokens": ("max_output_tokens", _max_tokens),
    "stop": ("stop", _stop),
    "temperature": ("sampling", _sampling),
    "top_p": ("sampling", _sampling),
    "top_k": ("sampling", _sampling),
    "seed": ("sampling", _sampling),
    "frequency_penalty": ("sampling", _sampling),
    "presence_penalty": ("sampling", _sampling),
    "reasoning_effort": ("reasoning_effort", lambda fields: fields.string("reasoning_effort")),
    "n": ("choice_count", _choice_count),
    "logprobs": ("logprobs", _logprobs),
}
"""What a request may leave out: each parameter with the field of the call that it goes into, and what reads it."""

_ORDER = {key: place for place, key in enumerate(_PARAMETERS)}
"""In which they are read, so that of several that are wrong it is always the same one that is named."""
