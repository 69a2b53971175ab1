"""Google's ``generateContent``, at the Gemini API and on Vertex: what a call becomes there.

Where the two vocabularies differ, the mapping takes the nearest thing that is true:

- There is no switch against parallel calls: ``parallel_tool_calls: false`` is a hint that goes unheard. Log
  probabilities and tools that take free text are refused.
- A result is known by its function's name, which an OpenAI client does not send: it is looked up in the turns before.
  Arguments and results must be objects; what is none is put into one.
- Gemini 3 wants its signature back with each call of an earlier turn. A client of another dialect has none, so the
  value goes with it that Google documents for calls which its model did not make.
- ``reasoning_effort`` is a level on Gemini 3 and later, a budget on 2.5, nothing before. What cannot stop thinking gets
  the least it can for ``none``; any other effort asks for the thoughts to be shown.
- ``auto`` among some of the tools is ``VALIDATED``: the mode that leaves the choice to the model and can be restricted.
- A partial answer is a last turn of the model's, which models up to 3.5 Flash go on with and later ones refuse. Where
  the answer brought a continuation token, it goes on from there: the very same request is sent with the token, without
  the partial answer, and with the limit of the whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import msgspec

from gateway.core.call import (
    AudioPart,
    Call,
    FilePart,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    UnknownPart,
)
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.events import Event
from gateway.providers.base import DATA_URI, Decoder, ProviderOptions, RequestHeaders, UpstreamRequest, wanted_format
from gateway.providers.continued import Rest, continued, goes_on, messages_with, open_turn
from gateway.providers.errors import NOT_JSON, retry_after_s
from gateway.providers.google_errors import decode_error, read_error
from gateway.providers.google_stream import GoogleDecoder, checkpoint_of, model_name

FOREIGN_SIGNATURE = "skip_thought_signature_validator"
"""What Google documents as the ``thoughtSignature`` of a call that its model did not make."""

_HAS_VERSION = re.compile(r"/v1(?:alpha1?|beta1?)?$|/publishers/google(?:/|$)")
_GENERATION = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
_LATEST = (99, 0)
"""The generation of a name without a number, such as ``gemini-flash-latest``."""

_LEVELS = {
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "HIGH",
    "max": "HIGH",
    "none": "MINIMAL",
}
_NO_MINIMAL = re.compile(r"gemini-(?:3\.[78]-flash|3(?:\.1)?-pro|4-(?:argon|carbon)|pro-latest)")
_CONTINUED = re.compile(r"gemini-(?:2\.|3-|3\.1-|3\.5-flash(?!-lite)|pro-latest)")
_NO_MEDIUM = re.compile(r"gemini-3-pro")
_BUDGETS = {
    "none": 0,
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 24576,
    "max": 24576,
    "auto": -1,
}
_LEAST_PRO_BUDGET = 128
"""Gemini 2.5 Pro cannot be told not to think."""

_MEDIA_TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif",
    "heic": "image/heic", "heif": "image/heif", "pdf": "application/pdf", "txt": "text/plain", "md": "text/md",
    "csv": "text/csv", "html": "text/html", "json": "application/json", "mp3": "audio/mp3", "wav": "audio/wav",
    "mp4": "video/mp4", "mov": "video/mov", "webm": "video/webm",
}  # fmt: skip


@dataclass(frozen=True)
class Google:
    """The Gemini API, or a Vertex endpoint where ``base_url`` names one."""

    options: ProviderOptions
    default_base_url: ClassVar[str] = "https://generativelanguage.googleapis.com"

    @property
    def base_url(self) -> str:
        """Where the provider is, without a slash at the end."""
        return self.options.base_url_or(self.default_base_url)

    def continues(self, call: Call) -> bool:
        """Whether the call's model goes on from the token that it gave, or else with a last turn of its own."""
        is_known = checkpoint_of(call) is not None or _CONTINUED.match(model_name(call)) is not None
        return goes_on(self.options, call, is_known=is_known)

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` as a ``generateContent`` request; raises ``InvalidRequest`` for what that cannot express."""
        return UpstreamRequest(self._url(call), self._headers.of(call), msgspec.json.encode(_write_body(call)))

    @cached_property
    def _headers(self) -> RequestHeaders:
        key = self.options.api_key
        own = {"authorization": f"Bearer {key}"} if self._is_vertex else {"x-goog-api-key": key or ""}
        return RequestHeaders(own if key else {}, self.options.headers)

    def decoder(self, call: Call) -> Decoder:
        """Return a decoder for the stream that answers ``call``."""
        return continued(GoogleDecoder(call, secret=self.options.api_key), _rest(call))

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer: a stream of one document; raises as a decoder does."""
        decoder = self.decoder(call)
        return [*decoder.feed(body), *decoder.finish()]

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error means."""
        return read_error(status, decode_error(body), wait_s=retry_after_s(headers), secret=self.options.api_key)

    @property
    def _is_vertex(self) -> bool:
        return "aiplatform" in (urlsplit(self.base_url).hostname or "")

    def _url(self, call: Call) -> str:
        base_url = self.base_url
        if not _HAS_VERSION.search(base_url):
            base_url += f"/{self.options.api_version or 'v1beta'}"
        method = ":streamGenerateContent?alt=sse" if call.stream else ":generateContent"
        return f"{base_url}/models/{quote(model_name(call), safe='')}{method}"


def _generation(model: str) -> tuple[int, int]:
    """Return which Gemini a model is, ``(0, 0)`` for one that is none."""
    found = _GENERATION.match(model)
    if found:
        return int(found[1]), int(found[2] or 0)
    return _LATEST if model.startswith("gemini") else (0, 0)


def _rest(call: Call) -> Rest | None:
    checkpoint = checkpoint_of(call)
    if checkpoint is not None and call.continuation is not None:
        return Rest(replayed=call.continuation.text[checkpoint.character_count :])
    turn = open_turn(call)
    return None if turn is None else turn.rest()


def _write_body(call: Call) -> dict[str, Any]:
    checkpoint = checkpoint_of(call)
    if checkpoint is not None and call.continuation is not None:
        own = msgspec.structs.replace(call, continuation=None, max_output_tokens=call.continuation.limit_tokens)
        return {**_write_body(own), "continuationToken": checkpoint.token}
    if call.logprobs:
        raise InvalidRequest("log probabilities cannot be had from this provider", param="logprobs")
    body: dict[str, Any] = {"contents": _write_contents(call)}
    if (system := call.system_text()) and call.conversation():
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if call.tools:
        body["tools"] = [{"functionDeclarations": _write_tools(call)}]
        if call.tool_choice is not None:
            body["toolConfig"] = {"functionCallingConfig": _write_tool_choice(call)}
    if config := _write_config(call):
        body["generationConfig"] = config
    return body


def _write_contents(call: Call) -> list[dict[str, Any]]:
    """Write the turns; those of one side that follow each other become one, as the API wants them to alternate.

    The API refuses a request without any: instructions that stand alone are said by the user.
    """
    alone: dict[str, Any] = {"role": "user", "parts": [{"text": call.system_text()}]}
    contents: list[dict[str, Any]] = [] if call.conversation() else [alone]
    called: dict[str, str] = {}
    is_signed = _generation(model_name(call)) >= (3, 0)
    for number, message in enumerate(messages_with(call, open_turn(call))):
        if message.role in ("system", "developer"):
            continue
        parts = _write_parts(message, f"messages[{number}]", called, is_signed=is_signed)
        role = "model" if message.role == "assistant" else "user"
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents or [alone]


def _write_parts(message: Message, place: str, called: dict[str, str], *, is_signed: bool) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [_write_result(message, place, called)]
    parts = [_write_part(part, f"{place}.content[{number}]") for number, part in enumerate(message.parts)]
    for tool_call in message.tool_calls:
        called[tool_call.id] = tool_call.name
        parts.append(_write_call(tool_call, is_signed=is_signed))
    return parts


def _write_call(call: ToolCall, *, is_signed: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": call.name, "args": _as_object(call.arguments or "{}", "arguments")}
    if call.id:
        function = {"id": call.id, **function}
    part: dict[str, Any] = {"functionCall": function}
    if is_signed:
        part["thoughtSignature"] = FOREIGN_SIGNATURE
    return part


def _write_result(message: Message, place: str, called: Mapping[str, str]) -> dict[str, Any]:
    """The API knows a result by its function's name; OpenAI's clients say only which call it answers."""
    name = called.get(message.tool_call_id) or message.name
    if not name:
        raise InvalidRequest("no earlier turn makes the call that this result answers", param=f"{place}.tool_call_id")
    response: dict[str, Any] = {"name": name, "response": _as_object(message.text, "result")}
    if message.tool_call_id:
        response = {"id": message.tool_call_id, **response}
    return {"functionResponse": response}


def _as_object(text: str, key: str) -> msgspec.Raw | dict[str, str]:
    """Return ``text`` if it is a JSON object, digit for digit, else an object with ``text`` in it."""
    try:
        if isinstance(msgspec.json.decode(text), dict):
            return msgspec.Raw(text.encode())
    except NOT_JSON:
        pass
    return {key: text}


def _write_part(part: Part, place: str) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"text": text}
        case ImagePart(url):
            return _write_media(url, place, default_type="image/jpeg")
        case AudioPart(data, kind):
            return {"inlineData": {"mimeType": f"audio/{kind}", "data": data}}
        case FilePart(url, file_id, name):
            if url:
                return _write_media(url, place, default_type=_media_type(name or ""))
            if file_id and file_id.startswith(("https://", "gs://")):
                return {"fileData": {"fileUri": file_id}}
            raise InvalidRequest("a file must be sent as data or as a URI that Google knows", param=place)
        case UnknownPart(kind):
            raise InvalidRequest(f"a part of type {kind!r} cannot be sent to this provider", param=place)


def _write_media(url: str, place: str, *, default_type: str | None) -> dict[str, Any]:
    if found := DATA_URI.match(url):
        return {"inlineData": {"mimeType": found[1].lower(), "data": url[found.end() :]}}
    if not url.startswith(("https://", "gs://")):
        raise InvalidRequest("expected a data URI in base64, or a URL of https or gs", param=place)
    media_type = _media_type(urlsplit(url).path) or default_type
    named = {"mimeType": media_type} if media_type else {}
    return {"fileData": {**named, "fileUri": url}}


def _media_type(name: str) -> str | None:
    """Return the type that a name's ending stands for: the API wants one, and nothing is fetched to find out."""
    return _MEDIA_TYPES.get(name.rpartition(".")[2].lower())


def _write_tools(call: Call) -> list[dict[str, Any]]:
    declarations = []
    for number, tool in enumerate(call.tools):
        if tool.is_custom:
            raise InvalidRequest("this provider has no tools that take free text", param=f"tools[{number}]")
        named = {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}
        declarations.append({key: value for key, value in named.items() if value is not None})
    return declarations


def _write_tool_choice(call: Call) -> dict[str, Any]:
    choice = call.tool_choice
    if choice is None or choice.mode == "none":
        return {"mode": "NONE"}
    if not choice.names:
        return {"mode": "ANY" if choice.mode == "required" else "AUTO"}
    return {"mode": "ANY" if choice.mode == "required" else "VALIDATED", "allowedFunctionNames": list(choice.names)}


def _write_config(call: Call) -> dict[str, Any]:
    sampling = call.sampling
    values: dict[str, Any] = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": sampling.seed,
        "frequencyPenalty": sampling.frequency_penalty,
        "presencePenalty": sampling.presence_penalty,
        "maxOutputTokens": call.max_output_tokens,
        "stopSequences": list(call.stop) or None,
        "candidateCount": call.choice_count if call.choice_count > 1 else None,
        "thinkingConfig": _write_thinking(call),
    }
    wanted = wanted_format(call)
    if wanted is not None and wanted.kind != "text":
        values["responseMimeType"] = "application/json"
        values["responseJsonSchema"] = wanted.schema
    return {key: value for key, value in values.items() if value is not None}


def _write_thinking(call: Call) -> dict[str, Any] | None:
    model, effort = model_name(call), call.reasoning_effort
    generation = _generation(model)
    if effort is None or generation < (2, 5):
        return None
    if effort not in _BUDGETS:
        raise InvalidRequest(f"expected one of {', '.join(_BUDGETS)}", param="reasoning_effort")
    shown = {"includeThoughts": effort != "none"}
    if generation >= (3, 0):
        level = _level(model, effort)
        return {**shown, "thinkingLevel": level} if level else shown
    budget = _BUDGETS[effort]
    if "pro" in model and budget >= 0:
        budget = max(budget, _LEAST_PRO_BUDGET)
    return {**shown, "thinkingBudget": budget}


def _level(model: str, effort: str) -> str | None:
    """Return the level that the model takes; ``None`` leaves it to the model."""
    level = _LEVELS.get(effort)
    if level == "MINIMAL" and _NO_MINIMAL.match(model):
        return "LOW"
    return "HIGH" if level == "MEDIUM" and _NO_MEDIUM.match(model) else level
