"""Reads a stream of OpenAI's Chat Completions as OpenAI and everybody else writes it.

It is one of data-only server-sent events, each a ``chat.completion.chunk``, ended by ``[DONE]``. It is complete when
every choice has its ``finish_reason``; ``[DONE]`` alone proves nothing, because engines send it behind an error too.

What one chunk says is read by ``openai_completion``. Here is what it takes to read one after the other: the identity
and the roles that were said, the calls that were begun, the choices that have finished. Most chunks of a stream are
ordinary, and nearly all are like the last but for their text: both are read on a way of their own, see
``openai_template``.

An answer that goes on with one which the client knows already keeps that one's role too: its start is an event without
a frame, for there is nothing in it that the client has not got.
"""

from __future__ import annotations

from gateway.core.call import Call
from gateway.core.events import (
    OPENAI_CHUNK,
    ChoiceFinished,
    Event,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    StreamStarted,
    TextDelta,
    UsageReported,
)
from gateway.core.sse import ServerSentEvent
from gateway.providers.base import EventDecoder, framed, started
from gateway.providers.errors import NOT_JSON, malformed
from gateway.providers.openai_completion import (
    Choice,
    Chunk,
    decode_chunk,
    identity_of,
    known_identity,
    numbered,
    raise_error,
    read_choice,
    usage_of,
)
from gateway.providers.openai_mend import FINISH_REASONS, CallIndex, Identity, Mender
from gateway.providers.openai_template import TextTemplate, decode_text

_LF = ord("\n")


class OpenAIDecoder(EventDecoder):
    """Reads a stream of chunks.

    ``done_is_end`` is for hosts that send no finish reason at all: there ``[DONE]`` has to do.
    """

    def __init__(self, call: Call, *, secret: str | None = None, done_is_end: bool = False) -> None:
        super().__init__(call, secret=secret)
        self._done_is_end = done_is_end
        self._known = known_identity(call)
        self._identity: Identity | None = None
        self._early: list[bytes] = []
        self._calls = CallIndex(call.request_id)
        self._opened: set[int] = set()
        self._finished: set[int] = set()
        self._template = TextTemplate()
        self._ready: TextTemplate | None = None
        self._example: tuple[bytes, str, int, type[TextDelta | ReasoningDelta]] | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes; nearly all are like the last but for their text.

        A read of such events alone, mostly of one, is told in one call instead of seven. It is legal if the choice was
        open behind the last read that was decoded in full, and begins an event if that one did not end within one.
        """
        template = self._ready
        if template is None:
            template = self._make_ready()
        if (
            template is not None
            and data[template.front] == template.event_head
            and data[template.back] == template.event_tail
        ):
            written = data[template.inside]
            try:
                if _LF not in written:
                    text = decode_text(written)
                    if text:
                        self._character_count += len(text)
                        return [template.kind(text, template.index, Frame(data[6:-2], OPENAI_CHUNK, 1))]
                elif told := self._several(template, written):
                    return told
            except NOT_JSON:
                pass
        self._ready = None
        return EventDecoder.feed(self, data)

    def _make_ready(self) -> TextTemplate | None:
        """Return the template for a read that may be like the last, if it is in place for one.

        It is made of what was read before only now, as nobody has to wait for it then: behind a first token it would
        be a tenth of what that takes.
        """
        if self._example is not None:
            self._learn()
        template = self._template
        is_ready = template.event_head and not self.is_complete and self._lifecycle.is_open(template.index)
        self._ready = template if is_ready and self._sse.is_between_events else None
        return self._ready

    def _learn(self) -> None:
        example, self._example = self._example, None
        if example is not None:
            self._template.learn(*example)

    def _several(self, template: TextTemplate, written: bytes) -> list[Event]:
        """Return the events of a read of several; none if one of them has no text. Raises for what is not as others."""
        events: list[Event] = []
        character_count = 0
        kind, index, before, behind = template.kind, template.index, template.before, template.behind
        for piece in written.split(template.event_between):
            text = decode_text(piece)
            if not text:
                return []
            character_count += len(text)
            events.append(kind(text, index, Frame(before + piece + behind, OPENAI_CHUNK, 1)))
        self._character_count += character_count
        return events

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        data = message.data
        if self._has_ended:
            return
        if self._example is not None:
            self._learn()
        if learned := self._template.text_of(data):
            events.append(self._template.kind(learned, self._template.index, Frame(data, OPENAI_CHUNK, 1)))
            return
        if data.startswith(b"[DONE]"):
            self._has_ended = True
            return
        if _LF in data:  # of several data lines; in JSON a line break is only ever space between two tokens
            data = data.replace(b"\n", b" ")
        try:
            chunk = decode_chunk(data)
            plain = self._plain(chunk, data)
            if plain is None:
                self._read_chunk(chunk, data, events)
            else:
                events.append(plain)
        except NOT_JSON as error:
            raise malformed("a chunk that is not a chat completion chunk") from error

    def _is_whole(self) -> bool:
        if self._has_ended and self._done_is_end:
            return self._lifecycle.has_started
        expected = 1 if self._has_ended else self._call.choice_count
        return self._lifecycle.finished_count >= expected

    def _plain(self, chunk: Chunk, data: bytes) -> Event | None:
        """Return the event of a chunk that is nothing but a role to begin with, a text, a finish or the last usage.

        An ordinary stream has no others; the text may be one of reasoning. What is more, or has to be mended, is read
        in full (``None``), which takes three times as long.
        """
        choices = chunk.choices
        if choices is None or len(choices) > 1 or chunk.object == "error" or chunk.error or chunk.x_groq is not None:
            return None
        is_named = (chunk.id, chunk.created, chunk.model) == self._identity
        if not choices:
            usage = usage_of(chunk) if is_named else None
            return UsageReported(usage, Frame(data, OPENAI_CHUNK, 1)) if usage is not None else None
        choice = choices[0]
        index, delta = choice.index, choice.delta
        if (
            delta is None
            or delta.reasoning
            or delta.refusal
            or delta.tool_calls
            or delta.function_call is not None
            or chunk.usage
        ):
            return None
        content, is_going_on = delta.content, is_named and index in self._opened and not delta.role
        if type(content) is list:
            return None
        text = content or delta.reasoning_content
        if text:
            is_mixed = (content and delta.reasoning_content) or choice.finish_reason is not None
            if is_mixed or not is_going_on or type(text) is not str or index is None:
                return None
            kind = TextDelta if content else ReasoningDelta
            self._example = data, text, index, kind
            return kind(text, index, Frame(data, OPENAI_CHUNK, 1))
        if index is None:
            return None
        if is_going_on:
            return self._plain_finish(choice.finish_reason, index, data)
        return self._plain_start(chunk, index, data) if delta.role and choice.finish_reason is None else None

    def _plain_start(self, chunk: Chunk, index: int, data: bytes) -> StreamStarted | None:
        """Begin a stream that is not known yet and names itself in full."""
        answer_id, created_unix_s, model = chunk.id, chunk.created, chunk.model
        if self._identity is not None or self._known is not None or self._early:
            return None
        if not answer_id or not created_unix_s or type(created_unix_s) is not int or not model:
            return None
        self._identity = answer_id, created_unix_s, model
        self._opened.add(index)
        target = str(self._call.target or "")
        return StreamStarted(answer_id, model, created_unix_s, target, frame=Frame(data, OPENAI_CHUNK, 1))

    def _plain_finish(self, reason: str | None, index: int, data: bytes) -> ChoiceFinished | None:
        """Finish a choice that has not, for a reason that is one of OpenAI's."""
        said = FINISH_REASONS.get(reason or "")
        if said is None or said != reason or index in self._finished:
            return None
        self._finished.add(index)
        return ChoiceFinished(said, said, index, Frame(data, OPENAI_CHUNK, 1))

    def _read_chunk(self, chunk: Chunk, data: bytes, events: list[Event]) -> None:
        raise_error(chunk, data, self._secret)
        found: list[Event] = []
        mender = Mender(data)
        choices = chunk.choices or []
        is_known_start = False
        if self._identity is None:
            if not choices and not chunk.id:  # Azure's word on the prompt; it has no identity yet
                self._early.append(data)
                return
            is_known_start = self._known is not None
            self._start(chunk, events if is_known_start else found, mender)
            events.extend(self._early_extras())
        elif (chunk.id, chunk.created, chunk.model) != self._identity:
            mender.identity = self._identity
        if chunk.choices is None:
            mender.needs_choices = True
        for index, choice in numbered(choices, mender):
            self._note_once(index, choice, mender)
            read_choice(choice, choice.delta, self._calls, found, mender)
        if (usage := usage_of(chunk)) is not None:
            found.append(UsageReported(usage))
        if found or not is_known_start:
            events.extend(framed(found, mender.result(), OPENAI_CHUNK))

    def _note_once(self, index: int, choice: Choice, mender: Mender) -> None:
        """See to it that a client hears the role, and the finish, of a choice once.

        Hosts repeat the one on every chunk (OpenAI's own helper then makes it "assistantassistant"), the other on the
        chunk with the usage.
        """
        has_role = choice.delta is not None and bool(choice.delta.role)
        if index not in self._opened:
            self._opened.add(index)
            if not has_role:
                mender.missing_roles.add(index)
        elif has_role:
            mender.spoken_roles.add(index)
        if choice.finish_reason and index in self._finished:
            choice.finish_reason = None
            mender.spoken_finishes.add(index)
        elif choice.finish_reason:
            self._finished.add(index)

    def _start(self, chunk: Chunk, found: list[Event], mender: Mender) -> None:
        """The first chunk with a choice, or at least a name, gives the stream its identity, if it is not known."""
        if self._known is not None:
            self._opened.add(0)
            self._early.clear()
        self._identity = identity = self._known or identity_of(chunk, self._call)
        if identity != (chunk.id, chunk.created, chunk.model):
            mender.identity = identity
        answer_id, created_unix_s, model = identity
        found.append(started(self._call, answer_id, model, created_unix_s))

    def _early_extras(self) -> list[Event]:
        extras: list[Event] = []
        for data in self._early:
            mender = Mender(data)
            mender.identity = self._identity
            extras.append(ProviderExtra(Frame(mender.result(), OPENAI_CHUNK, 1)))
        self._early.clear()
        return extras
