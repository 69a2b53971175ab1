"""Reads Google's ``generateContent``: candidates of parts, and no end marker at all.

A stream is whole when every candidate that was seen has a terminal ``finishReason``, or the prompt was blocked, and its
bytes have ended. A finish is held back until then: older models put ``STOP`` on every chunk, and an error may still
come. What is said behind a finish in a chunk without one is dropped, as everywhere. It is a stream of server-sent
events, or a JSON array where something on the way has lost the ``alt=sse``.

``usageMetadata`` is a running total on nearly every chunk. Each new value is reported, so that a stream that is cut, or
left by its client, keeps what it is known to have cost.

A ``continuationToken`` is a checkpoint: from it, and for the same request, the answer can be gone on with. It counts
where it came first, behind the text of its chunk. ``CONTINUATION`` says that the provider's turn is over and the answer
is not; it ends the stream with an error of its own. A request that shows a partial answer is not the client's: the
tokens that it brings are no good for any other, and are not told.

A ``functionCall`` has no id on most models: it gets one made of the answer's own. It arrives whole and is told in one
delta; where Vertex sends the arguments in pieces, each with its JSONPath, they are put together first. Images, code
that Google runs and its results, and calls of its own tools are nothing that a client could answer: ``ProviderExtra``.

A chunk that is like the last but for its text and its usage is read by these alone, see ``google_template``: that takes
half of the instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec

from gateway.core.call import Call
from gateway.core.continuation import ANSWER_CONTINUES, Checkpoint
from gateway.core.errors import StreamInterrupted, UpstreamBusy, UpstreamError, UpstreamRefused
from gateway.core.events import (
    CheckpointReached,
    ChoiceFinished,
    Event,
    FinishReason,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import EventDecoder, started
from gateway.providers.errors import (
    NOT_JSON,
    ErrorBody,
    clean_message,
    decode_error_body,
    decode_or_none,
    malformed,
    upstream_error,
)
from gateway.providers.google_template import ChunkTemplate, learn
from gateway.providers.json_stream import JSONStreamDecoder
from gateway.providers.openai_template import MAX_TRIES, decode_text

GENERATE_CONTENT = "google.generate_content"
"""The wire of a ``GenerateContentResponse``: a chunk and a whole answer have the same shape."""

_FINISH_REASONS: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "1": "stop",  # the same as numbers, for who asks for enum-encoding=int
    "2": "length",
    "3": "content_filter",
    "4": "content_filter",
}
_PAUSED = "CONTINUATION"
_NOT_AN_END = frozenset({"", "0", _PAUSED, "FINISH_REASON_UNSPECIFIED"})
_FAILED = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MALFORMED_RESPONSE",
        "LANGUAGE",
        "NO_IMAGE",
        "MISSING_THOUGHT_SIGNATURE",
    }
)
"""Finish reasons that say that there is no answer; the same question may well get one."""

_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""The HTTP status that an error without a number would have had."""

_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,6})\]|\[(["'])((?:(?!\3)[^\\]|\\.)*)\3\]""")
_MAX_STEPS = 64
_DELAY = re.compile(r"(\d{1,6}(?:\.\d+)?)s")
_STATUS_NAME = re.compile(r"[A-Z_]{1,64}")


class _PartialArgument(msgspec.Struct, rename="camel", gc=False):
    json_path: str = ""
    string_value: str | None = None
    number_value: int | float | None = None
    bool_value: bool | None = None
    will_continue: bool | None = None


class _FunctionCall(msgspec.Struct, rename="camel", gc=False):
    id: str | None = None
    name: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"null")
    partial_args: list[_PartialArgument] | None = None
    will_continue: bool | None = None


class _Part(msgspec.Struct, rename="camel", gc=False):
    text: str | None = None
    thought: bool | None = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel", gc=False):
    index: int | None = None
    content: _Content | None = None
    finish_reason: str | int | None = None
    continuation_token: str | None = None


class _Feedback(msgspec.Struct, rename="camel", gc=False):
    block_reason: str | int | None = None


class _Usage(msgspec.Struct, rename="camel", gc=False):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


_NO_ERROR = msgspec.Raw(b"null")


class _Chunk(msgspec.Struct, rename="camel", gc=False):
    candidates: list[_Candidate] | None = None
    usage_metadata: _Usage | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str | None = None
    response_id: str | None = None
    create_time: str | None = None
    error: msgspec.Raw = _NO_ERROR


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_chunks = msgspec.json.Decoder(list[_Chunk]).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_LF, _CR = b"\n\r"


@dataclass(slots=True)
class _OpenCall:
    """A call whose arguments come in pieces."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class GoogleDecoder(EventDecoder):
    """Reads a stream of ``GenerateContentResponse``: server-sent events or, by its first byte, a JSON array."""

    def __init__(self, call: Call, *, secret: str | None = None) -> None:
        super().__init__(call, secret=secret)
        self._is_framing_known = False
        self._id: str | None = None
        self._usage: Usage | None = None
        self._finishes: dict[int, ChoiceFinished | None] = {}
        self._paused: set[int] = set()
        self._tokens: dict[int, str] = {}
        self._tells_tokens = _is_own_request(call)
        self._call_counts: dict[int, int] = {}
        self._open_calls: dict[int, _OpenCall] = {}
        self._tries_left = MAX_TRIES
        self._template: ChunkTemplate | None = None
        self._index = 0
        self._ready: ChunkTemplate | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes, in legal order; nearly all reads are one event like the last.

        Such a one is legal if the candidate was open behind the last read that was decoded in full, and begins an event
        if that one did not end within one.
        """
        template = self._ready
        if template is not None and data.startswith(template.head) and data.endswith(template.tail):
            told = self._told(template, data)
            if told:
                return told
        if not self._is_framing_known and (begun := data.lstrip()):
            self._is_framing_known = True
            if begun.startswith((b"[", b"{")):
                self._sse = JSONStreamDecoder()
        events = EventDecoder.feed(self, data)
        if self._tries_left and events and type(events[0]) is TextDelta:
            self._learn(data, events[0], len(events))
        is_open = not self.is_complete and self._lifecycle.is_open(self._index)
        is_ready = is_open and self._finishes.get(self._index) is None and self._sse.is_between_events
        self._ready = self._template if is_ready else None
        return events

    def finish(self) -> list[Event]:
        """Take the end of the bytes, which alone makes a finish final."""
        events = super().finish()
        return [*events, *self._admit([finish for finish in self._finishes.values() if finish])]

    def _is_whole(self) -> bool:
        """Every candidate must have ended, and the array; one that stops in a call without ending that has not."""
        for index in self._open_calls:
            finish = self._finishes.get(index)
            if finish is not None and finish.reason in ("stop", "tool_calls"):
                raise malformed("a function call without its end")
        if isinstance(self._sse, JSONStreamDecoder) and self._sse.is_open:
            return False
        if self._paused:
            raise _answer_continues()
        return bool(self._finishes) and all(self._finishes.values())

    def _told(self, template: ChunkTemplate, data: bytes) -> list[Event]:
        """Return the events of a read that is one event like the last; none if it is something else."""
        inside = data[template.inside]
        written, _, totals = inside.partition(template.between)
        if _LF in inside or _CR in inside:
            return []
        try:
            text = decode_text(written)
            said = _decode_usage(totals)
        except NOT_JSON:
            return []
        if not text:
            return []
        self._character_count += len(text)
        usage = self._new_usage(said)
        if usage is None:
            return [TextDelta(text, self._index, Frame(data[template.document], GENERATE_CONTENT, 1))]
        self._reported = usage
        frame = Frame(data[template.document], GENERATE_CONTENT, 2)
        return [TextDelta(text, self._index, frame), UsageReported(usage, frame)]

    def _learn(self, data: bytes, event: TextDelta, count: int) -> None:
        """Take a read of one chunk, with one text and perhaps a new usage, as what the next will be like."""
        frame = event.frame
        if frame is None or not frame.event_count == count <= 2:
            return
        self._tries_left -= 1
        template = learn(data, frame.data, event.text)
        if template is not None and _has_values_in_place(template):
            self._template, self._index = template, event.index

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        data = message.data
        try:
            chunks = _decode_chunks(data) if data.startswith(b"[") else [_decode_chunk(data)]
        except NOT_JSON as error:
            raise malformed("a chunk that is not a GenerateContentResponse") from error
        for chunk in chunks:
            if chunk.error is not _NO_ERROR and bytes(chunk.error) != b"null":
                raise _stream_error(chunk.error, self._secret)
            if not self._read_plain_text(chunk, data, events):
                self._read_chunk(chunk, data, events)

    def _read_plain_text(self, chunk: _Chunk, data: bytes, events: list[Event]) -> bool:
        """Read a chunk that has one piece of text and perhaps a new total, as nearly all of a stream; say if it was."""
        candidates = chunk.candidates
        if candidates is None or len(candidates) != 1 or chunk.prompt_feedback is not None or self._id is None:
            return False
        candidate = candidates[0]
        content = candidate.content
        if content is None or content.parts is None or len(content.parts) != 1 or candidate.finish_reason is not None:
            return False
        if candidate.continuation_token is not None:
            return False
        part = content.parts[0]
        if not part.text or part.thought or part.function_call is not None:
            return False
        index = candidate.index or 0
        if self._finishes.setdefault(index, None) is not None:
            return False
        usage = None if chunk.usage_metadata is None else self._new_usage(chunk.usage_metadata)
        frame = Frame(data, GENERATE_CONTENT, 1 if usage is None else 2)
        events.append(TextDelta(part.text, index, frame))
        if usage is not None:
            events.append(UsageReported(usage, frame))
        return True

    def _read_chunk(self, chunk: _Chunk, data: bytes, events: list[Event]) -> None:
        found: list[Event] = [self._started(chunk)] if self._id is None else []
        finishes: list[ChoiceFinished] = []
        has_extra = False
        failure: UpstreamError | None = None
        for candidate in chunk.candidates or ():
            has_extra |= self._read_parts(candidate, found)
            if candidate.finish_reason is not None:
                failure = self._read_finish(candidate, finishes) or failure
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            native = f"blockReason:{chunk.prompt_feedback.block_reason}"
            finishes.append(ChoiceFinished("content_filter", native))
        if chunk.usage_metadata is not None and (usage := self._new_usage(chunk.usage_metadata)) is not None:
            found.append(UsageReported(usage))
        if has_extra or not (found or finishes):
            found.append(ProviderExtra())
        frame = Frame(data, GENERATE_CONTENT, len(found) + len(finishes))
        events.extend([msgspec.structs.replace(event, frame=frame) for event in found])
        for finish in finishes:
            self._finishes[finish.index] = msgspec.structs.replace(finish, frame=frame)
        events.extend(self._checkpoints(chunk))
        if failure is not None:
            raise failure

    def _checkpoints(self, chunk: _Chunk) -> list[Event]:
        """Return the tokens that are new; no dialect writes them, so they have no part in the chunk's frame."""
        found: list[Event] = []
        for candidate in chunk.candidates or ():
            index, token = candidate.index or 0, candidate.continuation_token
            if token and self._tells_tokens and token != self._tokens.get(index):
                self._tokens[index] = token
                found.append(CheckpointReached(token, index))
        return found

    def _started(self, chunk: _Chunk) -> StreamStarted:
        self._id = chunk.response_id or ""
        model = chunk.model_version or model_name(self._call)
        return started(self._call, self._id, model, _unix_s(chunk.create_time))

    def _read_parts(self, candidate: _Candidate, found: list[Event]) -> bool:
        """Append what a candidate says; return whether there are parts that only Google's own clients know."""
        index = candidate.index or 0
        parts = (candidate.content and candidate.content.parts) or []
        if self._finishes.setdefault(index, None) is not None and candidate.finish_reason is None:
            self._lifecycle.dropped_count += sum(bool(part.text or part.function_call) for part in parts)
            return bool(parts)
        has_extra = False
        for part in parts:
            if part.function_call is not None:
                self._read_call(part.function_call, index, found)
            elif part.text is None:
                has_extra = True
            elif part.text:
                found.append(ReasoningDelta(part.text, index) if part.thought else TextDelta(part.text, index))
        return has_extra

    def _read_finish(self, candidate: _Candidate, finishes: list[ChoiceFinished]) -> UpstreamError | None:
        """Note how a candidate ends; return the error that some ends are."""
        index, native = candidate.index or 0, str(candidate.finish_reason)
        self._paused.discard(index)
        if native in _NOT_AN_END:
            self._finishes[index] = None
            if native == _PAUSED:
                self._paused.add(index)
            return None
        if native in _FAILED:
            return StreamInterrupted(
                f"the provider ended its answer with {native}", code=native.lower(), error_type="protocol"
            )
        reason = _FINISH_REASONS.get(native) or ("content_filter" if native.startswith("IMAGE_") else "stop")
        if reason == "stop" and self._call_counts.get(index):
            reason = "tool_calls"
        finishes.append(ChoiceFinished(reason, native, index))
        return None

    def _new_usage(self, said: _Usage) -> Usage | None:
        """Return the running total if there is one, and it is another than before."""
        prompt, candidates, thoughts = said.prompt_token_count, said.candidates_token_count, said.thoughts_token_count
        if not prompt and not candidates:
            return None
        usage = Usage(
            (prompt or 0) + (said.tool_use_prompt_token_count or 0),
            (candidates or 0) + (thoughts or 0),
            said.cached_content_token_count or 0,
            0,
            thoughts or 0,
        )
        if usage == self._usage:
            return None
        self._usage = usage
        return usage

    def _read_call(self, said: _FunctionCall, index: int, found: list[Event]) -> None:
        """A call is whole at once, or opened by its name and closed by a piece that does not say it will continue."""
        begun = self._open_calls.get(index)
        pieces = said.partial_args or []
        is_open = bool(said.will_continue) or any(piece.will_continue for piece in pieces)
        if said.name:
            if begun is not None:
                raise malformed("a function call inside another")
            if not pieces and not is_open:
                self._tell_call(said.id, said.name, _compact(bytes(said.args)), index, found)
                return
            begun = self._open_calls[index] = _OpenCall(said.id or "", said.name)
        elif begun is None:
            if pieces or is_open or bytes(said.args) not in (b"null", b"{}"):
                raise malformed("a function call without a name")
            return
        for piece in pieces:
            _place(begun.arguments, piece)
        if not is_open:
            del self._open_calls[index]
            self._tell_call(begun.id, begun.name, _encode(begun.arguments), index, found)

    def _tell_call(self, call_id: str | None, name: str, arguments: str, index: int, found: list[Event]) -> None:
        call_index = self._call_counts.get(index, 0)
        self._call_counts[index] = call_index + 1
        if not call_id:
            number = sum(self._call_counts.values()) - 1
            call_id = f"call_{self._id or self._call.request_id}_{number}"
        found.append(ToolCallStarted(call_index, call_id, name, index=index))
        found.append(ToolCallDelta(call_index, arguments, index))


def _has_values_in_place(template: ChunkTemplate) -> bool:
    """Try whether what stands in the two places is read as the text and the usage."""
    text, usage = "\u00e4\n", _Usage(1, 2, 3, 4, 5)
    event = template.event_with(msgspec.json.encode(text), msgspec.json.encode(usage))
    chunk = _decode_chunk(event[template.document])
    match chunk.candidates:
        case [_Candidate(content=_Content(parts=[_Part(text=found), *_]))]:
            return (found, chunk.usage_metadata) == (text, usage)
        case _:
            return False


def checkpoint_of(call: Call) -> Checkpoint | None:
    """Return the checkpoint that ``call`` is to go on from, which is its very target's own."""
    continuation = call.continuation
    if continuation is None or continuation.way != "exact" or continuation.checkpoint is None:
        return None
    return continuation.checkpoint if continuation.checkpoint.target == str(call.target) else None


def _is_own_request(call: Call) -> bool:
    """Whether what is sent is the client's own request, with nothing of an answer behind it."""
    way = call.continuation.way if call.continuation is not None else "restart"
    return way == "restart" or checkpoint_of(call) is not None


def _answer_continues() -> StreamInterrupted:
    message = "the provider has ended its turn before the answer"
    return StreamInterrupted(message, code=ANSWER_CONTINUES, retryable=True, error_type="_OTHER")


def model_name(call: Call) -> str:
    """Return the model's own name, as it stands in the path."""
    return call.target_model.removeprefix("models/")


def _unix_s(time: str | None) -> int:
    """Vertex dates its answers; the Gemini API does not."""
    try:
        return int(datetime.fromisoformat(time).timestamp()) if time else 0
    except (ValueError, OverflowError):
        return 0


def _compact(arguments: bytes) -> str:
    """Return arguments without the white space between them; none at all are an empty object."""
    if arguments == b"null":
        return "{}"
    try:
        text = msgspec.json.format(arguments, indent=-1).decode()
    except NOT_JSON as error:
        raise malformed("function arguments that are not JSON") from error
    if not text.startswith("{"):
        raise malformed("function arguments that are not an object")
    return text


def _encode(arguments: dict[str, Any]) -> str:
    return msgspec.json.encode(arguments).decode()


def _place(arguments: dict[str, Any], piece: _PartialArgument) -> None:
    """Put one piece where its path says; text goes on where there is text."""
    steps = _steps(piece.json_path)
    container: Any = arguments
    for step, following in pairwise(steps):
        inner = _get(container, step)
        if inner is None:
            inner = _set(container, step, [] if isinstance(following, int) else {})
        container = inner
    known = _get(container, steps[-1])
    value: Any = piece.number_value if piece.bool_value is None else piece.bool_value
    if piece.string_value is not None:
        value = known + piece.string_value if isinstance(known, str) else piece.string_value
    _set(container, steps[-1], value)


def _steps(path: str) -> list[str | int]:
    """Take a JSONPath such as ``$.rooms[0].name`` apart."""
    steps: list[str | int] = []
    position = 1
    while path.startswith("$") and position < len(path) and len(steps) < _MAX_STEPS:
        found = _STEP.match(path, position)
        if found is None:
            break
        plain, number, _, quoted = found.groups()
        steps.append(int(number) if number else plain or re.sub(r"\\(.)", r"\1", quoted))
        position = found.end()
    if not steps or position < len(path):
        raise malformed("a function argument with a path that is none")
    return steps


def _get(container: Any, step: str | int) -> Any:
    if isinstance(container, dict) and isinstance(step, str):
        return container.get(step)
    if isinstance(container, list) and isinstance(step, int) and step <= len(container):
        return container[step] if step < len(container) else None
    raise malformed("function arguments that do not fit together")


def _set(container: Any, step: str | int, value: Any) -> Any:
    """Set what ``_get`` has looked for, and return it."""
    if isinstance(container, list) and step == len(container):
        container.append(value)
    else:
        container[step] = value
    return value


def decode_error(body: bytes) -> dict[str, Any]:
    """Return what the body of an HTTP error says: ``{"error": {…}}``, or the same as the one item of an array."""
    document = decode_error_body(body)
    return _as_error(document.get("error") if isinstance(document, dict) else None)


def _as_error(said: object) -> dict[str, Any]:
    if isinstance(said, dict):
        return said
    return {"message": said} if isinstance(said, str) else {}


def _stream_error(said: msgspec.Raw, secret: str | None) -> UpstreamError:
    """Nobody here cancels a stream and then reads on: a ``CANCELLED`` inside one is Google's own failure."""
    error = _as_error(decode_or_none(said))
    status = error.get("code")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = _STATUSES.get(str(error.get("status")), 500)
    told = read_error(500 if status == 499 else status, error, wait_s=None, secret=secret)
    told.upstream_status = status
    return told


def read_error(status: int, said: dict[str, Any], *, wait_s: float | None, secret: str | None) -> UpstreamError:
    """Say what an error means.

    A 429 is told in the same words, billing among them, whether it passes in seconds or with the day: ``details`` says.
    """
    message = clean_message(said.get("message") or f"the provider answered with status {status}", secret)
    name = str(said.get("status"))
    code = name.lower() if _STATUS_NAME.fullmatch(name) else ""
    details = said.get("details")
    details = [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
    wait_s = _delay_s(details) if wait_s is None else wait_s
    if status == 400 and any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        status = 401
    if status != 429:
        return upstream_error(status, ErrorBody(message, code), wait_s=wait_s)
    if any("PerDay" in str(detail.get("violations")) for detail in details):
        return UpstreamRefused(
            message, status_code=429, code="insufficient_quota", error_type="rate_limited", upstream_status=429
        )
    return UpstreamBusy(
        message, status_code=429, code=code or None, retry_after_s=wait_s, error_type="rate_limited",
        upstream_status=429,
    )  # fmt: skip


def _delay_s(details: list[dict[str, Any]]) -> float | None:
    """Return for how long ``RetryInfo`` asks to wait."""
    for detail in details:
        if found := _DELAY.fullmatch(str(detail.get("retryDelay"))):
            return float(found[1])
    return None
