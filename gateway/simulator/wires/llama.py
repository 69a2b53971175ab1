"""The Llama API's own stream events: start, progress, complete, metrics, and nothing after them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.simulator.ask import Ask, Complaint, Incoming, invalid
from gateway.simulator.frames import Frame, Moment, data_line, to_json
from gateway.simulator.scene import Answer, Scene
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply, decided, schema_of_format
from gateway.simulator.wires.chat import read_tool_choice, read_tools, read_turns

_STOP_REASONS: Final = {"length": "length", "tool_calls": "tool_calls"}
_TITLES: Final = {
    400: ("Bad request", "The request is not valid"),
    401: ("Unauthorized", "Invalid API key"),
    404: ("Not found", "The model {model} does not exist"),
    429: ("Too many requests", "Rate limit exceeded"),
    500: ("Internal server error", "An internal error has occurred"),
    503: ("Service unavailable", "The service is temporarily unavailable"),
}
_NO_PREFILL: Final = "The last message must not be from the assistant"


class LlamaWire:
    """Chat completions, as `api.llama.com/v1` spoke them."""

    name = "llama"

    def parse(self, incoming: Incoming, script: Script) -> Ask:
        """Read the request; a last assistant turn begins a new message."""
        body = incoming.body
        if not incoming.model:
            raise invalid("model: field required", param="model")
        turns, tools = read_turns(body), read_tools(body)
        is_prefill = turns[-1].role == "assistant" and not turns[-1].calls
        return Ask(
            model=incoming.model,
            turns=turns,
            is_stream=body.get("stream") is True,
            tools=tools,
            tool_choice=read_tool_choice(body.get("tool_choice"), tools),
            answer_schema=schema_of_format(body.get("response_format")),
            max_tokens=body.get("max_completion_tokens"),
            trailing=decided("new", script, invalid(_NO_PREFILL)) if is_prefill else "new",
        )

    def stream(self, _ask: Ask, scene: Scene, reply: Reply) -> Iterator[Frame]:
        """Yield events; `complete` is the end marker and the metrics come after it."""
        answer = scene.answers[0]
        yield Frame(Moment.START, _text_event(reply, "start", ""))
        if answer.echo:
            yield Frame(Moment.TEXT, _text_event(reply, "progress", answer.echo))
        for token in answer.text:
            yield Frame(Moment.TEXT, _text_event(reply, "progress", token), 1)
        for at, call in enumerate(answer.calls):
            delta = {"type": "tool_call", **_call(reply, at, call.name, call.json)}
            yield Frame(Moment.TOOL, _event(reply, "progress", delta), len(call.arguments))
        yield Frame(Moment.FINISH, _text_event(reply, "complete", "", stop_reason=_stop_reason(answer)))
        if reply.has_usage:
            yield Frame(Moment.USAGE, _text_event(reply, "metrics", "", metrics=_metrics(scene)))

    def whole(self, _ask: Ask, scene: Scene, reply: Reply) -> bytes:
        """Return a `completion_message`."""
        answer = scene.answers[0]
        message: dict[str, Any] = {
            "role": "assistant",
            "stop_reason": _stop_reason(answer),
            "content": {"type": "text", "text": answer.echo + "".join(answer.text)},
        }
        if answer.calls:
            message["tool_calls"] = [_call(reply, at, call.name, call.json) for at, call in enumerate(answer.calls)]
        body: dict[str, Any] = {"id": reply.id(14), "completion_message": message}
        return to_json({**body, "metrics": _metrics(scene)} if reply.has_usage else body)

    def http_error(self, complaint: Complaint, reply: Reply) -> HttpAnswer:
        """Return a problem with title, detail and status."""
        headers = dict(self.headers(reply))
        if complaint.retry_after_s is not None:
            headers["retry-after"] = f"{complaint.retry_after_s:g}"
        return HttpAnswer(complaint.status, to_json(_error(complaint, reply)), headers)

    def error_event(self, complaint: Complaint, _ask: Ask, reply: Reply) -> bytes:
        """Return a frame that is the HTTP error's body; no form is documented."""
        return data_line(_error(complaint, reply))

    def ping(self, _ask: Ask, reply: Reply) -> bytes:
        """Return progress without text."""
        return _text_event(reply, "progress", "")

    def late_text(self, _ask: Ask, reply: Reply) -> bytes:
        """Return progress with text."""
        return _text_event(reply, "progress", " (and one thing more)")

    def headers(self, reply: Reply) -> Mapping[str, str]:
        """Return the request id."""
        return {"x-request-id": reply.id(32, "request")}

    def content_type(self, _ask: Ask) -> str:
        """Return the type of an event stream."""
        return "text/event-stream"

    def models(self, names: Sequence[str], reply: Reply) -> Any:
        """Return the list as the Llama API shows it."""
        models = [{"id": name, "object": "model", "created": reply.created_s, "owned_by": "millrace"} for name in names]
        return {"data": models}


def _event(reply: Reply, kind: str, delta: dict[str, Any], **fields: Any) -> bytes:
    return data_line({"id": reply.id(14), "event": {"event_type": kind, "delta": delta, **fields}})


def _text_event(reply: Reply, kind: str, text: str, **fields: Any) -> bytes:
    return _event(reply, kind, {"type": "text", "text": text}, **fields)


def _call(reply: Reply, at: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_" + reply.id(16, f"call{at}"), "function": {"name": name, "arguments": arguments}}


def _stop_reason(answer: Answer) -> str:
    return _STOP_REASONS.get(answer.ending, "stop")


def _metrics(scene: Scene) -> list[dict[str, Any]]:
    counts = {
        "num_completion_tokens": scene.output_tokens,
        "num_prompt_tokens": scene.prompt_tokens,
        "num_total_tokens": scene.prompt_tokens + scene.output_tokens,
    }
    return [{"metric": name, "value": count, "unit": "tokens"} for name, count in counts.items()]


def _error(complaint: Complaint, reply: Reply) -> dict[str, Any]:
    title, detail = _TITLES.get(complaint.status, ("Error", "The request could not be processed"))
    detail = (complaint.message or detail).replace("{model}", reply.model)
    return {"title": complaint.code or title, "detail": detail, "status": complaint.status}
