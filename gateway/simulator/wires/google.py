"""Gemini's generateContent: CRLF frames or a JSON array, running usage, and no end marker.

`gemini-4-argon*` hands out continuation tokens at checkpoints; the answer goes on from one, so whatever text came
after it is said again, and the token limit is for all hops together.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from gateway.simulator.ask import Ask, Checkpoint, Complaint, Incoming, Tool, Trailing, Turn, invalid
from gateway.simulator.frames import Frame, Moment, data_line, to_json
from gateway.simulator.scene import Answer, Scene, identify
from gateway.simulator.schema import ANY_OBJECT
from gateway.simulator.script import Script
from gateway.simulator.wires.base import (
    FIRST_SERVER_ERROR,
    HttpAnswer,
    Reply,
    chosen_tool,
    decided,
    interleaved,
    listed,
)

_FINISH: Final = {"length": "MAX_TOKENS", "refusal": "SAFETY"}
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MESSAGES: Final = {
    401: "API key not valid. Please pass a valid API key.",
    404: "models/{model} is not found for API version v1beta, or is not supported for generateContent. Call "
    "ModelService.ListModels to see the list of available models and their supported methods.",
    429: "Resource exhausted. Please try again later.",
    500: "An internal error has occurred. Please retry.",
    503: "The model is overloaded. Please try again later.",
}
_NO_MODEL_TURN: Final = (
    "Requests ending with a model turn are not supported for this model. Please end the request with a user turn."
)
_ACCEPTS_MODEL_TURN: Final = re.compile(r"gemini-(2\.|3-|3\.1-|3\.5-flash(?!-lite)|pro-latest)")
_WITH_CHECKPOINTS: Final = "gemini-4-argon"


class GoogleWire:
    """generateContent and streamGenerateContent."""

    name = "google"

    def parse(self, incoming: Incoming, script: Script) -> Ask:
        """Read the request; a last turn that is the model's is continued by older models only."""
        body = incoming.body
        turns = tuple(_turns(body))
        tools = tuple(_tools(body))
        calling = _inner(body, "toolConfig", "functionCallingConfig")
        config = _inner(body, "generationConfig")
        checkpoint = _read_token(incoming.model, turns, body.get("continuationToken"))
        is_stream = incoming.is_stream_path
        return Ask(
            model=incoming.model,
            turns=turns,
            is_stream=is_stream,
            tools=tools,
            tool_choice=_tool_choice(calling, tools),
            answer_schema=_schema(config),
            max_tokens=config.get("maxOutputTokens"),
            stop=tuple(str(one) for one in listed(config.get("stopSequences"))),
            choice_count=int(config.get("candidateCount") or 1),
            wants_reasoning=_inner(config, "thinkingConfig").get("includeThoughts") is True,
            trailing=_trailing(incoming.model, turns, script),
            rethinks=checkpoint is None,
            checkpoint=checkpoint,
            is_array=is_stream and incoming.query.get("alt") != "sse",
            checkpoint_every=script.checkpoint_every if incoming.model.startswith(_WITH_CHECKPOINTS) else 0,
            hop_after=script.hop_after,
        )

    def stream(self, ask: Ask, scene: Scene, reply: Reply) -> Iterator[Frame]:
        """Yield one response object after another, each with the usage so far."""
        frames = _Stream(ask, scene, reply).frames()
        if ask.is_array:
            return _as_array(frames)
        return (Frame(moment, data_line(value, b"\r\n"), count) for moment, value, count in frames)

    def whole(self, ask: Ask, scene: Scene, reply: Reply) -> bytes:
        """Return one response object."""
        return _pretty(_Stream(ask, scene, reply).whole())

    def http_error(self, complaint: Complaint, reply: Reply) -> HttpAnswer:
        """Return the error; when to come back is in its details, since there is no `retry-after`."""
        return HttpAnswer(complaint.status, _pretty(_error(complaint, reply)), self.headers(reply))

    def error_event(self, complaint: Complaint, ask: Ask, reply: Reply) -> bytes:
        """Return a frame that is an error and no response."""
        error = _error(complaint, reply)
        if ask.is_array:
            return b",\r\n" + _pretty(error) + b"]"
        return data_line(error, b"\r\n")

    def ping(self, ask: Ask, reply: Reply) -> bytes:
        """Return a response without text, as there are no comments here: they break Google's own SDKs."""
        return self._text(ask, reply, "")

    def late_text(self, ask: Ask, reply: Reply) -> bytes:
        """Return a response with text."""
        return self._text(ask, reply, " (and one thing more)")

    def headers(self, _reply: Reply) -> Mapping[str, str]:
        """Return what every answer has."""
        return {"x-content-type-options": "nosniff", "server": "scaffolding on HTTPServer2"}

    def content_type(self, ask: Ask) -> str:
        """Return the type of an event stream or of a JSON array."""
        return "application/json; charset=UTF-8" if ask.is_array else "text/event-stream"

    def models(self, names: Sequence[str], _reply: Reply) -> Any:
        """Return the list as Google shows it."""
        methods = ["generateContent", "countTokens"]
        models = [
            {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods} for name in names
        ]
        return {"models": models}

    def _text(self, ask: Ask, reply: Reply, text: str) -> bytes:
        one = _Stream(ask, Scene(identity="", answers=(), prompt_tokens=0), reply)
        value = one.response(0, [{"text": text}])
        return b",\r\n" + _pretty(value) if ask.is_array else data_line(value, b"\r\n")


_Said = tuple[Moment, dict[str, Any], int]


class _Stream:
    """One answer being written, with what was used so far."""

    def __init__(self, ask: Ask, scene: Scene, reply: Reply) -> None:
        self._ask = ask
        self._scene = scene
        self._reply = reply
        self._candidate_tokens = 0
        self._thought_tokens = 0

    def frames(self) -> Iterator[_Said]:
        """Yield response objects, each with its moment and its tokens."""
        if any(answer.ending == "refusal" for answer in self._scene.answers):
            yield Moment.FINISH, self._blocked(), 0
            return
        answers = enumerate(self._scene.answers)
        yield from interleaved([self._candidate(place, answer) for place, answer in answers])

    def whole(self) -> dict[str, Any]:
        """Return one response object with everything in it."""
        if any(answer.ending == "refusal" for answer in self._scene.answers):
            return self._blocked()
        self._thought_tokens = self._scene.reasoning_tokens
        self._candidate_tokens = self._scene.output_tokens - self._thought_tokens
        candidates = []
        for place, answer in enumerate(self._scene.answers):
            parts: list[dict[str, Any]] = []
            if answer.reasoning:
                parts.append({"text": "".join(answer.reasoning), "thought": True})
            if answer.text or not answer.calls:
                parts.append({"text": answer.echo + "".join(answer.text)})
            parts += self._call_parts(answer)
            finish = _FINISH.get(answer.ending, "STOP")
            candidates += self.response(place, parts, finishReason=finish)["candidates"]
        return {**self.response(0, []), "candidates": candidates}

    def response(self, place: int, parts: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """Return one response object."""
        candidate = {"content": {"parts": parts, "role": "model"}, **fields, "index": place}
        return {"candidates": [candidate], **self._envelope()}

    def _candidate(self, place: int, answer: Answer) -> Iterator[_Said]:
        for token in answer.reasoning:
            self._thought_tokens += 1
            yield Moment.REASONING, self.response(place, [{"text": token, "thought": True}]), 1
        if answer.echo:
            yield Moment.TEXT, self.response(place, [{"text": answer.echo}]), 0
        chars = answer.chars_before
        for said, token in enumerate(answer.text, start=1):
            self._candidate_tokens += 1
            chars += len(token)
            tokens = answer.tokens_before + len(answer.reasoning) + said
            ends_hop = self._ask.hop_after == said and self._ask.checkpoint_every > 0
            fields = {}
            if ends_hop or (self._ask.checkpoint_every and tokens % self._ask.checkpoint_every == 0):
                fields["continuationToken"] = _token(self._scene.identity, chars, tokens)
            yield Moment.TEXT, self.response(place, [{"text": token}], **fields), 1
            if ends_hop:
                yield Moment.FINISH, self.response(place, [{"text": ""}], finishReason="CONTINUATION", **fields), 0
                return
        for call, part in zip(answer.calls, self._call_parts(answer), strict=False):
            self._candidate_tokens += len(call.arguments)
            yield Moment.TOOL, self.response(place, [part]), len(call.arguments)
        last = {"text": ""}
        if answer.reasoning and not answer.calls:
            last["thoughtSignature"] = self._signature()
        yield Moment.FINISH, self.response(place, [last], finishReason=_FINISH.get(answer.ending, "STOP")), 0

    def _call_parts(self, answer: Answer) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [
            {"functionCall": {"name": call.name, "args": json.loads(call.json)}}
            for call in answer.calls
            if call.is_whole
        ]
        if parts:
            parts[0]["thoughtSignature"] = self._signature()
        return parts

    def _blocked(self) -> dict[str, Any]:
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **self._envelope()}

    def _signature(self) -> str:
        return base64.b64encode(bytes.fromhex(self._reply.id(64, "signature"))).decode()

    def _envelope(self) -> dict[str, Any]:
        tail = {"modelVersion": self._reply.model, "responseId": self._reply.id(23)}
        if not self._reply.has_usage:
            return tail
        prompt = self._scene.prompt_tokens
        usage: dict[str, Any] = {"promptTokenCount": prompt}
        if self._candidate_tokens:
            usage["candidatesTokenCount"] = self._candidate_tokens
        usage["totalTokenCount"] = prompt + self._candidate_tokens + self._thought_tokens
        usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": prompt}]
        if self._thought_tokens:
            usage["thoughtsTokenCount"] = self._thought_tokens
        return {"usageMetadata": usage, **tail}


def _as_array(frames: Iterator[_Said]) -> Iterator[Frame]:
    opening = b"["
    for moment, value, count in frames:
        yield Frame(moment, opening + _pretty(value), count)
        opening = b",\r\n"
    yield Frame(Moment.END, b"]")


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(to_json(value), indent=2) + b"\n"


def _turns(body: Mapping[str, Any]) -> Iterator[Turn]:
    if system := _texts(_inner(body, "systemInstruction").get("parts")):
        yield Turn("system", system)
    contents = listed(body.get("contents"))
    if not contents:
        raise invalid("* GenerateContentRequest.contents: contents is not specified")
    for place, content in enumerate(contents):
        role = content.get("role", "user") if isinstance(content, dict) else None
        if role not in ("user", "model", "function"):
            raise invalid(f"* GenerateContentRequest.contents[{place}].role: Please use a valid role: user, model.")
        yield from _read_content(role, content.get("parts"))


def _read_content(role: str, parts: Any) -> Iterator[Turn]:
    known = [part for part in listed(parts) if isinstance(part, dict)]
    results = [part["functionResponse"] for part in known if "functionResponse" in part]
    for result in results:
        yield Turn("tool", json.dumps(result.get("response"), ensure_ascii=False))
    text = _texts([part for part in known if not part.get("thought")])
    if role == "model":
        calls = tuple(str(part["functionCall"].get("name")) for part in known if "functionCall" in part)
        yield Turn("assistant", text, reasoning=_texts([p for p in known if p.get("thought")]), calls=calls)
    elif text or not results:
        yield Turn("user", text)


def _texts(parts: Any) -> str:
    return "".join(str(part.get("text") or "") for part in listed(parts) if isinstance(part, dict))


def _inner(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return an object inside objects; an empty one where there is none. Both spellings of a name are read."""
    found: Any = body
    for name in path:
        snake = re.sub("([A-Z])", r"_\1", name).lower()
        found = found.get(name, found.get(snake)) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _tools(body: Mapping[str, Any]) -> Iterator[Tool]:
    for tool in listed(body.get("tools")):
        declared = tool.get("functionDeclarations") if isinstance(tool, dict) else None
        for function in listed(declared):
            parameters = function.get("parametersJsonSchema") or function.get("parameters")
            yield Tool(str(function.get("name")), parameters)


def _tool_choice(calling: Mapping[str, Any], tools: tuple[Tool, ...]) -> Literal["auto", "none", "required"] | Tool:
    mode, allowed = str(calling.get("mode", "AUTO")).upper(), listed(calling.get("allowedFunctionNames"))
    if mode == "NONE":
        return "none"
    if mode != "ANY":
        return "auto"
    return chosen_tool(tools, allowed[0]) if len(allowed) == 1 else "required"


def _schema(config: Mapping[str, Any]) -> Any:
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    return (schema or ANY_OBJECT) if config.get("responseMimeType") == "application/json" else None


def _trailing(model: str, turns: tuple[Turn, ...], script: Script) -> Trailing:
    if turns[-1].role != "assistant" or turns[-1].calls:
        return "new"
    if script.prefill != "accept" and not _ACCEPTS_MODEL_TURN.search(model):
        raise invalid(_NO_MODEL_TURN)
    return decided("continue", script, invalid(_NO_MODEL_TURN))


def _token(identity: str, chars: int, tokens: int) -> str:
    return base64.urlsafe_b64encode(f"{identity[:16]}.{chars}.{tokens}".encode()).decode()


def _read_token(model: str, turns: tuple[Turn, ...], token: Any) -> Checkpoint | None:
    if token is None:
        return None
    if not model.startswith(_WITH_CHECKPOINTS):
        raise invalid(f"continuation_token is not supported by models/{model}.")
    try:
        identity, chars, tokens = base64.urlsafe_b64decode(str(token)).decode("ascii").split(".")
        checkpoint = Checkpoint(char_count=int(chars), token_count=int(tokens))
    except (ValueError, binascii.Error):
        raise invalid("The continuation token is invalid or has expired.") from None
    if identity != identify(turns)[:16]:
        raise invalid("The continuation token does not belong to this request.")
    return checkpoint


def _error(complaint: Complaint, reply: Reply) -> dict[str, Any]:
    status = complaint.status
    name = _STATUSES.get(status, "INTERNAL" if status >= FIRST_SERVER_ERROR else "INVALID_ARGUMENT")
    message = complaint.message or _MESSAGES.get(status, "The request could not be processed.")
    error: dict[str, Any] = {"code": status, "message": message.replace("{model}", reply.model), "status": name}
    details: list[dict[str, Any]] = []
    if complaint.code:
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": complaint.code})
    if complaint.retry_after_s is not None:
        delay = f"{complaint.retry_after_s:g}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    if details:
        error["details"] = details
    return {"error": error}
