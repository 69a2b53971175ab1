"""OpenAI's wire as the tests of its readers and of its mending write it, and what they make of the answer."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.call import Call, Message, Target, TextPart
from gateway.core.continuation import Continuation, Way
from gateway.core.events import Event, StreamStarted, Usage, UsageReported
from gateway.core.transcript import Transcript
from gateway.providers.openai_stream import OpenAIDecoder

CALL = Call(
    request_id="t",
    stream=True,
    model="chat",
    target=Target("openai", "gpt"),
    created_unix_s=7,
    messages=(Message(role="user", parts=(TextPart("four" * 4),)),),
)
IDENTITY = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
DONE = b"data: [DONE]\n\n"
START = StreamStarted("c1", "m", 5, target="openai/gpt")
ESTIMATE = UsageReported(Usage(4, 1, is_estimated=True))
"""Of the 16 characters that are asked, and an answer of up to four."""
KNOWN = StreamStarted("first", "model-1", 3, target="other/model")


def known(started: StreamStarted, way: Way = "restart", **fields: Any) -> Call:
    """Return a call whose client knows the answer by ``started``."""
    return msgspec.structs.replace(CALL, continuation=Continuation(way=way, started=started), **fields)


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **fields: Any) -> Any:
    """Return a chunk of one choice, as OpenAI sends it."""
    return {**IDENTITY, "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **fields}


def text(piece: str, index: int = 0) -> Any:
    """Return a chunk of text."""
    return chunk({"content": piece}, index=index)


def tools(*calls: dict[str, Any], index: int = 0) -> Any:
    """Return a chunk of tool calls."""
    return chunk({"tool_calls": list(calls)}, index=index)


def piece(index: int | None, arguments: Any, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Return a piece of a tool call; what is ``None`` is left out."""
    function = {"name": name, "arguments": arguments}
    call = {"index": index, "id": call_id, "type": "function" if call_id else None}
    kept = {key: value for key, value in call.items() if value is not None}
    return {**kept, "function": {key: value for key, value in function.items() if value is not None}}


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk(finish="stop")
END = chunk(finish="tool_calls")


def sse(*documents: Any) -> bytes:
    """Return documents as a provider sends them; bytes are an event's data as they are."""
    data = [item if isinstance(item, bytes) else msgspec.json.encode(item) for item in documents]
    return b"".join(b"data: %b\n\n" % item for item in data)


def bare(events: list[Event]) -> list[Event]:
    """Return events without their frames."""
    return [msgspec.structs.replace(event, frame=None) for event in events]


def decode(*documents: Any, call: Call = CALL) -> list[Event]:
    """Return the events of a whole stream that ends with ``[DONE]``, without their frames."""
    decoder = OpenAIDecoder(call)
    return bare([*decoder.feed(sse(*documents) + DONE), *decoder.finish()])


def frames(*documents: Any) -> list[bytes]:
    """Return the frames that come out of documents, each once."""
    events = OpenAIDecoder(CALL).feed(sse(*documents))
    return list({id(event.frame): event.frame.data for event in events if event.frame}.values())


def mended(*documents: Any) -> Any:
    """Return the frame of the last document, decoded."""
    return msgspec.json.decode(frames(*documents)[-1])


def calls_of(*documents: Any, choice: int = 0) -> list[tuple[str, str, str]]:
    """Return id, name and arguments of the calls that documents amount to."""
    transcript = Transcript()
    transcript.add(decode(*documents))
    found = sorted(transcript.choice(choice).tool_calls.items())
    assert [index for index, _ in found] == list(range(len(found)))
    return [(tool.id, tool.name, tool.arguments) for _, tool in found]
