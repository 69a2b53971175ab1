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

Function calls are read by ``google_calls``, errors by ``google_errors``. Images, code that Google runs and its results,
and calls of its own tools are nothing that a client could answer: ``ProviderExtra``.

A chunk that is like the last but for its text and its usage is read by these alone, see ``google_template``: that takes
half of the instructions. Several of them in one read are read so too, in less than half of the time.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from gateway.core.call import Call
from gateway.core.continuation import ANSWER_CONTINUES, Checkpoint
from gateway.core.errors import StreamInterrupted, UpstreamError
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
    Usage,
    UsageReported,
)
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import EventDecoder, started
from gateway.providers.errors import NOT_JSON, malformed
from gateway.providers.google_calls import CallReader, FunctionCall
from gateway.providers.google_errors import stream_error
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


class _Part(msgspec.Struct, rename="camel", gc=False):
    text: str | None = None
    thought: bool | None = None
    function_call: FunctionCall | None = None


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
        self._calls = CallReader()
        self._tries_left = MAX_TRIES
        self._template: ChunkTemplate | None = None
        self._index = 0
        self._ready: ChunkTemplate | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes, in legal order; nearly all reads are of events like the last.

        Such a read is legal if the candidate was open behind the last that was decoded in full, and begins an event if
        that one did not end within one.
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
        for index in self._calls.open_indices():
            finish = self._finishes.get(index)
            if finish is not None and finish.reason in ("stop", "tool_calls"):
                raise malformed("a function call without its end")
        if isinstance(self._sse, JSONStreamDecoder) and self._sse.is_open:
            return False
        if self._paused:
            raise _answer_continues()
        return bool(self._finishes) and all(self._finishes.values())

    def _told(self, template: ChunkTemplate, data: bytes) -> list[Event]:
        """Return the events of a read that is like the last, or several like it; none if it is something else."""
        inside = data[template.inside]
        written, _, totals = inside.partition(template.between)
        if _LF in inside or _CR in inside:
            return self._several(template, inside, data[template.document])
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

    def _several(self, template: ChunkTemplate, inside: bytes, documents: bytes) -> list[Event]:
        """Return the events of a read of several; none if one of them is not like the last."""
        said: list[tuple[str, _Usage]] = []
        try:
            for piece in inside.split(template.event_between):
                written, _, totals = piece.partition(template.between)
                text = decode_text(written)
                if not text or _LF in piece or _CR in piece:
                    return []
                said.append((text, _decode_usage(totals)))
        except NOT_JSON:
            return []
        events: list[Event] = []
        for (text, total), document in zip(said, documents.split(template.document_between), strict=True):
            self._character_count += len(text)
            usage = self._new_usage(total)
            frame = Frame(document, GENERATE_CONTENT, 1 if usage is None else 2)
            events.append(TextDelta(text, self._index, frame))
            if usage is not None:
                self._reported = usage
                events.append(UsageReported(usage, frame))
        return events

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
                raise stream_error(chunk.error, self._secret)
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
                found += self._calls.read(part.function_call, index, self._id or self._call.request_id)
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
        if reason == "stop" and self._calls.has_called(index):
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
