"""OpenAI's chat completions, and the hosts that speak them with an accent (see `hosts`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.simulator.ask import Ask, Complaint, Incoming, Trailing, invalid
from gateway.simulator.frames import Frame, Moment, data_line, named_event, to_json
from gateway.simulator.scene import Answer, Scene
from gateway.simulator.script import Script
from gateway.simulator.text import number
from gateway.simulator.wires.base import (
    BUSY,
    FIRST_SERVER_ERROR,
    HttpAnswer,
    Reply,
    decided,
    interleaved,
    schema_of_format,
)
from gateway.simulator.wires.chat import read_stop, read_tool_choice, read_tools, read_turns
from gateway.simulator.wires.hosts import Host

DONE: Final = b"data: [DONE]\n\n"

_FINISH: Final = {"length": "length", "tool_calls": "tool_calls", "refusal": "stop", "stop_sequence": "stop"}
_SAFE: Final = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_MOST_CHOICES: Final = 128
_MOST_ALTERNATIVES: Final = 20
_PADDING: Final = "millraceheadracetailrace"
_MESSAGES: Final = {
    401: "Incorrect API key provided: wrong-key. You can find your API key at https://example.org/api-keys.",
    404: "The model `{model}` does not exist or you do not have access to it.",
    429: "Rate limit reached for `{model}` on requests per min (RPM). Please try again later.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
}
_CODES: Final = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_QUOTA: Final = "You exceeded your current quota, please check your plan and billing details."


@dataclass(frozen=True, slots=True)
class OpenAIWire:
    """Chat completions as one host writes them."""

    host: Host

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    def parse(self, incoming: Incoming, script: Script) -> Ask:
        """Read the request; whether it is continued depends on the host, the model and its switches."""
        body = incoming.body
        if not incoming.model:
            raise invalid("you must provide a model parameter")
        if int(body.get("n") or 1) not in range(1, _MOST_CHOICES + 1):
            raise invalid(f"Invalid 'n': expected a value from 1 to {_MOST_CHOICES}.", param="n")
        turns, tools = read_turns(body), read_tools(body)
        trailing: Trailing = "new"
        if turns[-1].role == "assistant" and not turns[-1].calls:
            host_trailing = self.host.continues(incoming.model, body, incoming.path)
            trailing = decided(
                host_trailing, script, invalid("Assistant response prefill is not supported by this model.")
            )
        options = body.get("stream_options") or {}
        return Ask(
            model=incoming.model,
            turns=turns,
            is_stream=body.get("stream") is True,
            tools=tools,
            tool_choice=read_tool_choice(body.get("tool_choice"), tools),
            is_parallel=body.get("parallel_tool_calls") is not False,
            answer_schema=schema_of_format(body.get("response_format")),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=read_stop(body.get("stop")),
            choice_count=int(body.get("n") or 1),
            top_logprobs=int(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
            wants_reasoning=_wants_reasoning(body),
            wants_usage=self.host.has_unasked_usage or options.get("include_usage") is True,
            trailing=trailing,
        )

    def stream(self, ask: Ask, scene: Scene, reply: Reply) -> Iterator[Frame]:
        """Yield chunks: role, reasoning, text, tool calls, finish, usage, `[DONE]`."""
        return _Stream(self.host, ask, scene, reply).frames()

    def whole(self, ask: Ask, scene: Scene, reply: Reply) -> bytes:
        """Return a `chat.completion`."""
        one = _Stream(self.host, ask, scene, reply)
        body = one.envelope("chat.completion")
        body["choices"] = [one.choice(place, answer) for place, answer in enumerate(scene.answers)]
        if reply.has_usage:
            body["usage"] = one.usage()
        return to_json(body)

    def http_error(self, complaint: Complaint, reply: Reply) -> HttpAnswer:
        """Return the error in this host's shape, with its rate-limit headers."""
        status = complaint.status
        if status == 404:
            status = self.host.unknown_model_status
        headers = dict(self.headers(reply))
        if complaint.retry_after_s is not None:
            headers["retry-after"] = f"{complaint.retry_after_s:g}"
        return HttpAnswer(status, to_json({"error": self._error(complaint, reply)}), headers)

    def error_event(self, complaint: Complaint, ask: Ask, reply: Reply) -> bytes:
        """Return a frame with a top-level `error`, and `[DONE]` where the host still sends it."""
        error = self._error(complaint, reply)
        if self.host.errors == "code_first":
            one = _Stream(self.host, ask, Scene(identity="", answers=(), prompt_tokens=0), reply)
            chunk = one.chunk(0, {"content": ""}, finish="error")
            payload = data_line({**chunk, "error": error})
        elif self.host.has_named_error:
            payload = named_event("error", {"error": error})
        else:
            payload = data_line({"error": error})
        return payload + (DONE if self.host.ends_error_with_done else b"")

    def ping(self, ask: Ask, reply: Reply) -> bytes:
        """Return the host's comment, or an empty delta, which is no progress either."""
        return self.host.comment or self._delta(ask, reply, "")

    def late_text(self, ask: Ask, reply: Reply) -> bytes:
        """Return a chunk with text."""
        return self._delta(ask, reply, " (and one thing more)")

    def headers(self, reply: Reply) -> Mapping[str, str]:
        """Return the request id and how much may still be asked."""
        return {
            self.host.request_id_header: "req_" + reply.id(32, "request"),
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
            "x-ratelimit-reset-requests": "6ms",
        }

    def content_type(self, _ask: Ask) -> str:
        """Return the type of an event stream."""
        return "text/event-stream; charset=utf-8"

    def models(self, names: Sequence[str], reply: Reply) -> Any:
        """Return the list as OpenAI shows it."""
        models = [{"id": name, "object": "model", "created": reply.created_s, "owned_by": "millrace"} for name in names]
        return {"object": "list", "data": models}

    def _delta(self, ask: Ask, reply: Reply, text: str) -> bytes:
        scene = Scene(identity="", answers=(), prompt_tokens=0)
        return data_line(_Stream(self.host, ask, scene, reply).chunk(0, {"content": text}))

    def _error(self, complaint: Complaint, reply: Reply) -> dict[str, Any]:
        status = complaint.status
        code = complaint.code or _CODES.get(status)
        message = complaint.message or (_QUOTA if code == "insufficient_quota" else _MESSAGES.get(status, ""))
        message = message.replace("{model}", reply.model) or "The request could not be processed."
        kind = "server_error" if status >= FIRST_SERVER_ERROR else "invalid_request_error"
        if status == BUSY:
            kind = "insufficient_quota" if code == "insufficient_quota" else "requests"
        match self.host.errors:
            case "code_first":
                return {"code": status, "message": message, "metadata": {"error_type": complaint.code or kind}}
            case "azure":
                return {"code": complaint.code or str(status), "message": message}
            case "named":
                return {"message": message, "type": complaint.code or kind, "code": status}
            case "plain":
                return {"message": message, "type": complaint.code or "api_error", "param": None, "code": None}
            case "openai":
                return {"message": message, "type": kind, "param": complaint.param, "code": code}


class _Stream:
    """One answer being written: everything that its chunks share."""

    def __init__(self, host: Host, ask: Ask, scene: Scene, reply: Reply) -> None:
        self._host = host
        self._ask = ask
        self._scene = scene
        self._reply = reply
        self._has_usage = reply.has_usage and ask.wants_usage
        self._said = 0

    def frames(self) -> Iterator[Frame]:
        if self._host.greeting:
            yield Frame(Moment.START, self._host.greeting)
        if self._host.has_prompt_filter:
            yield Frame(Moment.START, data_line(_prompt_filter()))
        answers = enumerate(self._scene.answers)
        yield from interleaved([self._choice_frames(place, answer) for place, answer in answers])
        if self._has_usage and "extra" in self._host.usage:
            yield Frame(Moment.USAGE, data_line(self._usage_chunk()))
        yield Frame(Moment.END, DONE)

    def _choice_frames(self, place: int, answer: Answer) -> Iterator[Frame]:
        host, is_refusal = self._host, answer.ending == "refusal"
        if host.role == "chunk":
            content = None if is_refusal or (answer.calls and not answer.text) else host.role_content
            delta: dict[str, Any] = {"role": "assistant", "content": content}
            if is_refusal:
                delta["refusal"] = ""
            yield Frame(Moment.START, self._line(place, delta, has_logprobs=True))
        has_nulls = host.has_null_fields and answer.reasoning
        nulls = dict.fromkeys(("content", *host.reasoning_fields)) if has_nulls else {}
        if answer.echo:
            yield Frame(Moment.TEXT, self._line(place, {"content": answer.echo}))
        for token in answer.reasoning if host.reasoning_fields else ():
            delta = {**nulls, **dict.fromkeys(host.reasoning_fields, token)}
            yield Frame(Moment.REASONING, self._line(place, delta), 1)
        for token in answer.text:
            delta = {**nulls, "refusal" if is_refusal else "content": token}
            yield Frame(Moment.TEXT, self._line(place, delta, has_logprobs=True, token=token), 1)
        for at, call in enumerate(answer.calls):
            yield from self._call_frames(place, at, call.name, call.arguments)
        yield Frame(Moment.FINISH, data_line(self._finish_chunk(place, answer)))

    def _call_frames(self, place: int, at: int, name: str, arguments: tuple[str, ...]) -> Iterator[Frame]:
        opening = {"index": at, "id": self.call_id(place, at), "type": "function"}
        if self._host.has_whole_calls:
            call = {**opening, "function": {"name": name, "arguments": "".join(arguments)}}
            yield Frame(Moment.TOOL, self._line(place, {"tool_calls": [call]}), len(arguments))
            return
        call = {**opening, "function": {"name": name, "arguments": ""}}
        yield Frame(Moment.TOOL, self._line(place, {"tool_calls": [call]}))
        for token in arguments:
            call = {"index": at, "function": {"arguments": token}}
            yield Frame(Moment.TOOL, self._line(place, {"tool_calls": [call]}), 1)

    def _line(
        self, place: int, delta: dict[str, Any], *, has_logprobs: bool = False, token: str | None = None
    ) -> bytes:
        chunk = self.chunk(place, delta)
        if has_logprobs and self._ask.top_logprobs is not None:
            chunk["choices"][0]["logprobs"] = self._logprobs((token,) if token is not None else ())
        return data_line(chunk)

    def chunk(self, place: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        if self._host.role == "every" or (self._host.role == "first" and self._said == 0):
            delta = {"role": "assistant", "content": "", **delta}
        self._said += 1
        chunk = self.envelope("chat.completion.chunk")
        choice = {"index": place, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self._host.has_prompt_filter:
            choice["content_filter_results"] = _SAFE if delta.get("content") else {}
        chunk["choices"] = [choice]
        if "every" in self._host.usage and self._has_usage:
            chunk["usage"] = self.usage(min(self._said, self._scene.output_tokens))
        elif self._host.has_null_usage and self._ask.wants_usage:
            chunk["usage"] = None
        if self._host.has_obfuscation:
            chunk["obfuscation"] = _PADDING[: 4 + self._said % 12]
        if "x_groq" in self._host.usage and self._said == 1:
            chunk["x_groq"] = {"id": "req_" + self._reply.id(26, "groq")}
        return chunk

    def _finish_chunk(self, place: int, answer: Answer) -> dict[str, Any]:
        delta = {"content": ""} if self._host.role == "every" else {}
        chunk = self.chunk(place, delta, _FINISH.get(answer.ending, self._host.stop))
        if place == len(self._scene.answers) - 1:
            if self._has_usage and "finish" in self._host.usage:
                chunk["usage"] = self.usage()
            if self._has_usage and "x_groq" in self._host.usage:
                chunk["x_groq"] = {"id": "req_" + self._reply.id(26, "groq"), "usage": self.usage()}
            if "timings" in self._host.usage:
                chunk["timings"] = {"prompt_n": self._scene.prompt_tokens, "predicted_n": self._scene.output_tokens}
        return chunk

    def _usage_chunk(self) -> dict[str, Any]:
        chunk = self.chunk(0, {})
        if not self._host.has_usage_choice:
            chunk["choices"] = []
        chunk["usage"] = self.usage()
        return chunk

    def envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._host.id_prefix + self._reply.id(29),
            "object": kind,
            "created": self._reply.created_s,
            "model": self._reply.model,
            "system_fingerprint": self._host.fingerprint,
            **self._host.extra,
        }

    def choice(self, place: int, answer: Answer) -> dict[str, Any]:
        text, is_refusal = answer.echo + "".join(answer.text), answer.ending == "refusal"
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if is_refusal or (answer.calls and not text) else text,
            "refusal": text if is_refusal else None,
        }
        if answer.reasoning:
            message |= dict.fromkeys(self._host.reasoning_fields, "".join(answer.reasoning))
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": self.call_id(place, at),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.json},
                }
                for at, call in enumerate(answer.calls)
            ]
        logprobs = self._logprobs(answer.text) if self._ask.top_logprobs is not None else None
        finish = _FINISH.get(answer.ending, self._host.stop)
        return {"index": place, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def usage(self, output_tokens: int | None = None) -> dict[str, Any]:
        output = self._scene.output_tokens if output_tokens is None else output_tokens
        return {
            "prompt_tokens": self._scene.prompt_tokens,
            "completion_tokens": output,
            "total_tokens": self._scene.prompt_tokens + output,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self._scene.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def call_id(self, place: int, at: int) -> str:
        return "call_" + self._reply.id(24, f"call{place}.{at}")

    def _logprobs(self, tokens: Sequence[str]) -> dict[str, Any]:
        return {"content": [_logprob(token, self._ask.top_logprobs or 0) for token in tokens], "refusal": None}


def _wants_reasoning(body: Mapping[str, Any]) -> bool:
    effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
    thinking = (body.get("thinking") or {}).get("type")
    return effort not in (None, "none") or thinking in ("enabled", "adaptive")


def _logprob(token: str, alternatives: int) -> dict[str, Any]:
    sure = -(1 + number(token, 900)) / 1000
    others = [_alternative(token, place, sure) for place in range(min(alternatives, _MOST_ALTERNATIVES))]
    return {**_alternative(token, 0, sure), "top_logprobs": others}


def _alternative(token: str, place: int, sure: float) -> dict[str, Any]:
    text = token if place == 0 else token.swapcase() + "s" * (place - 1)
    return {"token": text, "logprob": sure - 1.5 * place, "bytes": list(text.encode())}


def _prompt_filter() -> dict[str, Any]:
    results = [{"prompt_index": 0, "content_filter_results": _SAFE}]
    return {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": results}
