"""Mistral's chat completions: thinking as list content, whole tool calls, usage with the finish, echoed prefix."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.simulator.ask import Ask, Complaint, Incoming, Rejected, Trailing, invalid
from gateway.simulator.frames import Frame, Moment, data_line, to_json
from gateway.simulator.scene import Answer, Scene
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply, decided, interleaved, schema_of_format
from gateway.simulator.wires.chat import read_stop, read_tool_choice, read_tools, read_turns
from gateway.simulator.wires.openai import DONE

_FINISH: Final = {"length": "length", "tool_calls": "tool_calls"}
_NOT_HERE: Final = ("max_completion_tokens", "seed")
_KINDS: Final = {
    400: ("invalid_request_error", "1000"),
    402: ("insufficient_quota", "2100"),
    404: ("invalid_model", "1500"),
    429: ("rate_limited", "1300"),
    500: ("internal_server_error", "3000"),
    503: ("unreachable_backend", "1100"),
}
_MESSAGES: Final = {
    404: "Invalid model: {model}",
    429: "Rate limit exceeded",
    500: "Internal server error",
    503: "Internal server error",
}
_UNPROCESSABLE: Final = 422
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_WRONG_ORDER: Final = "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"


class MistralWire:
    """Chat completions, as `api.mistral.ai` speaks them."""

    name = "mistral"

    def parse(self, incoming: Incoming, script: Script) -> Ask:
        """Read the request; a last assistant turn must have `prefix`, and comes back first in the answer."""
        body = incoming.body
        for name in _NOT_HERE:
            if name in body:
                raise invalid("Extra inputs are not permitted", param=name, status=_UNPROCESSABLE)
        try:
            turns = read_turns(body)
        except Rejected as rejected:
            raise invalid("Field required", param="messages", status=_UNPROCESSABLE) from rejected
        tools = read_tools(body)
        return Ask(
            model=incoming.model,
            turns=turns,
            is_stream=body.get("stream") is True,
            tools=tools,
            tool_choice=read_tool_choice(body.get("tool_choice"), tools),
            is_parallel=body.get("parallel_tool_calls") is not False,
            answer_schema=schema_of_format(body.get("response_format")),
            max_tokens=body.get("max_tokens"),
            stop=read_stop(body.get("stop")),
            choice_count=int(body.get("n") or 1),
            wants_reasoning=incoming.model.startswith("magistral")
            or body.get("reasoning_effort") not in (None, "none")
            or body.get("prompt_mode") == "reasoning",
            trailing=_trailing(body["messages"][-1], script),
        )

    def stream(self, _ask: Ask, scene: Scene, reply: Reply) -> Iterator[Frame]:
        """Yield chunks; the last has the finish, the usage and, if any, all tool calls at once."""
        last = len(scene.answers) - 1
        yield from interleaved(
            [
                _choice_frames(scene, reply, place, has_usage=reply.has_usage and place == last)
                for place in range(last + 1)
            ]
        )
        yield Frame(Moment.END, DONE)

    def whole(self, _ask: Ask, scene: Scene, reply: Reply) -> bytes:
        """Return a `chat.completion`."""
        choices = [
            {"index": place, "finish_reason": _finish(answer), "message": _message(answer, reply)}
            for place, answer in enumerate(scene.answers)
        ]
        body = {**_envelope(reply, "chat.completion"), "choices": choices}
        return to_json({**body, "usage": _usage(scene)} if reply.has_usage else body)

    def http_error(self, complaint: Complaint, reply: Reply) -> HttpAnswer:
        """Return one of the three shapes: `detail` as text, `detail` as a list, or an error object."""
        headers = dict(self.headers(reply))
        if complaint.retry_after_s is not None:
            headers["retry-after"] = f"{complaint.retry_after_s:g}"
        if complaint.status == _UNAUTHORIZED:
            return HttpAnswer(_UNAUTHORIZED, to_json({"detail": complaint.message or "Invalid API Key"}), headers)
        if complaint.status == _UNPROCESSABLE:
            kind = "missing" if complaint.message == "Field required" else "extra_forbidden"
            detail = {"type": kind, "loc": ["body", complaint.param], "msg": complaint.message}
            return HttpAnswer(_UNPROCESSABLE, to_json({"detail": [detail]}), headers)
        status = 400 if complaint.status == _NOT_FOUND else complaint.status
        return HttpAnswer(status, to_json({**_error(complaint, reply), "raw_status_code": status}), headers)

    def error_event(self, complaint: Complaint, _ask: Ask, reply: Reply) -> bytes:
        """Return a frame that is an error object; no form is documented."""
        return data_line(_error(complaint, reply))

    def ping(self, _ask: Ask, reply: Reply) -> bytes:
        """Return a chunk without text."""
        return data_line(_chunk(reply, 0, {"content": ""}))

    def late_text(self, _ask: Ask, reply: Reply) -> bytes:
        """Return a chunk with text."""
        return data_line(_chunk(reply, 0, {"content": " (and one thing more)"}))

    def headers(self, reply: Reply) -> Mapping[str, str]:
        """Return the request id and how much may still be asked."""
        return {"mistral-correlation-id": reply.id(32, "request"), "x-ratelimit-remaining-req-minute": "59"}

    def content_type(self, _ask: Ask) -> str:
        """Return the type of an event stream."""
        return "text/event-stream; charset=utf-8"

    def models(self, names: Sequence[str], reply: Reply) -> Any:
        """Return the list as Mistral shows it."""
        can = {"completion_chat": True, "function_calling": True, "vision": True}
        models = [
            {"id": name, "object": "model", "created": reply.created_s, "owned_by": "millrace", "capabilities": can}
            for name in names
        ]
        return {"object": "list", "data": models}


def _trailing(last: Mapping[str, Any], script: Script) -> Trailing:
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return "new"
    rejection = invalid(_WRONG_ORDER, code="3230")
    if last.get("prefix") is not True and script.prefill != "accept":
        raise rejection
    return decided("echo", script, rejection)


def _choice_frames(scene: Scene, reply: Reply, place: int, *, has_usage: bool) -> Iterator[Frame]:
    answer = scene.answers[place]
    yield Frame(Moment.START, data_line(_chunk(reply, place, {"role": "assistant", "content": ""})))
    if answer.echo:
        yield Frame(Moment.TEXT, data_line(_chunk(reply, place, {"content": answer.echo})))
    for token in answer.reasoning:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": token}]}
        yield Frame(Moment.REASONING, data_line(_chunk(reply, place, {"content": [thinking]})), 1)
    for token in answer.text:
        yield Frame(Moment.TEXT, data_line(_chunk(reply, place, {"content": token})), 1)
    calls = _calls(answer, reply)
    delta = {"tool_calls": calls} if calls else {"content": ""}
    chunk = _chunk(reply, place, delta, _finish(answer))
    if has_usage:
        chunk["usage"] = _usage(scene)
    said = sum(len(call.arguments) for call in answer.calls)
    yield Frame(Moment.TOOL if calls else Moment.FINISH, data_line(chunk), said)


def _chunk(reply: Reply, place: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": place, "delta": delta, "finish_reason": finish}
    return {**_envelope(reply, "chat.completion.chunk"), "choices": [choice]}


def _envelope(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id(32), "object": kind, "created": reply.created_s, "model": reply.model}


def _message(answer: Answer, reply: Reply) -> dict[str, Any]:
    content: Any = answer.echo + "".join(answer.text)
    if answer.reasoning:
        thought = [{"type": "text", "text": "".join(answer.reasoning)}]
        content = [{"type": "thinking", "thinking": thought, "closed": True}, {"type": "text", "text": content}]
    return {"role": "assistant", "tool_calls": _calls(answer, reply) or None, "content": content}


def _calls(answer: Answer, reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": reply.id(9, f"call{at}"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.json},
            "index": at,
        }
        for at, call in enumerate(answer.calls)
    ]


def _usage(scene: Scene) -> dict[str, Any]:
    prompt, output = scene.prompt_tokens, scene.output_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}


def _finish(answer: Answer) -> str:
    return _FINISH.get(answer.ending, "stop")


def _error(complaint: Complaint, reply: Reply) -> dict[str, Any]:
    kind, code = _KINDS.get(complaint.status, ("invalid_request_error", "1000"))
    message = complaint.message or _MESSAGES.get(complaint.status, "The request could not be processed.")
    return {
        "object": "error",
        "message": message.replace("{model}", reply.model),
        "type": "invalid_request_message_order" if message == _WRONG_ORDER else kind,
        "param": complaint.param,
        "code": complaint.code or code,
    }
