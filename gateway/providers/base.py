"""What a provider is to the rest of the gateway: a call becomes a request, bytes become events. No I/O.

A provider's file says four things about its wire: how a request is written, how a stream and a whole answer are read,
what its errors mean, and by which rule its stream counts as complete. The last one is the point of the whole gateway:
an end of bytes without the provider's own end marker is an interruption, however cleanly the socket closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from gateway.core.call import Call, ResponseFormat
from gateway.core.errors import InvalidRequest, UpstreamError
from gateway.core.events import (
    Event,
    Frame,
    ProviderExtra,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.core.sse import ServerSentEvent, SSEDecoder
from gateway.core.trace import HEADERS as TRACE_HEADERS
from gateway.providers.errors import MALFORMED, cut_off, interruption

DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]+)*?;base64,", re.IGNORECASE)
"""What a ``data:`` URI in base64 begins with; the first group is its media type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """What the configuration says of one provider, as far as its wire is concerned.

    ``continuation`` is the operator's word on partial answers: ``exact`` says that the provider goes on with one, which
    may be known of it or not, ``anchored`` and ``off`` that it shall not be asked to.
    """

    name: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    api_version: str | None = None
    continuation: Literal["auto", "exact", "anchored", "off"] = "auto"

    def base_url_or(self, default: str) -> str:
        """Return where the provider is, without a slash at the end: as configured, or where it is known to be."""
        return (self.base_url or default).rstrip("/")


class UpstreamRequest(msgspec.Struct, frozen=True):
    """A request as it goes to the provider: always a POST of JSON."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        """Return what may be seen of it: no key, and nothing that is said."""
        return f"UpstreamRequest(url={self.url!r})"


class Decoder(Protocol):
    """Reads one stream.

    ``feed`` and ``finish`` raise ``UpstreamError`` for what the provider calls an error, and ``StreamInterrupted`` for
    bytes that are not its wire.
    """

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes, in legal order."""

    def finish(self) -> list[Event]:
        """Take the end of the bytes; raises ``StreamInterrupted`` when the stream was not complete."""

    @property
    def is_complete(self) -> bool:
        """Whether the provider's own end marker was seen, so that nothing more needs to be read."""

    @property
    def usage(self) -> Usage | None:
        """What the attempt is known to have used so far; an estimate that says so where the provider has not told."""

    @property
    def is_replaying(self) -> bool:
        """Whether the last read brought text that is not told, or not yet: a sign of life, though nothing is new."""


class Provider(Protocol):
    """One configured provider.

    Asked to go on exactly (``Call.continuation``), what it reads, in pieces or as a whole, is what is new and no more.
    """

    @property
    def base_url(self) -> str:
        """Where the provider is, without a slash at the end."""

    def continues(self, call: Call) -> bool:
        """Whether the call's target goes on with a partial answer exactly."""

    def request(self, call: Call) -> UpstreamRequest:
        """Write ``call`` in the provider's wire; raises ``InvalidRequest`` for what it cannot express."""

    def decoder(self, call: Call) -> Decoder:
        """Return a decoder for the stream that answers ``call``."""

    def answer(self, call: Call, body: bytes) -> list[Event]:
        """Read a whole answer; raises as a decoder does."""

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Say what an HTTP error of the provider means."""


class EventDecoder:
    """What all decoders of server-sent events share: legal order, the end rule, usage where none was reported.

    A wire's decoder says how one event is read (``_read``) and when the stream is whole (``_is_whole``). An error that
    comes in one read behind good events does not take them along: they are returned first, and the error is raised by
    ``finish``, which the caller reaches at once because ``is_complete`` says that nothing more needs to be read.
    """

    is_replaying = False
    is_complete = False
    """Whether the provider's own end marker, or its error, was seen; no property, as it is read once per token."""

    def __init__(self, call: Call, *, secret: str | None = None) -> None:
        self._call = call
        self._secret = secret
        self._sse = SSEDecoder()
        self._lifecycle = Lifecycle()
        self._failure: UpstreamError | None = None
        self._has_ended = False
        self._character_count = 0
        self._reported: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """The last usage that was reported, else an estimate; ``None`` while nothing was said."""
        if self._reported is None and self._character_count:
            return self._estimate()
        return self._reported

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes, in legal order."""
        events: list[Event] = []
        if self._failure is None:
            try:
                for message in self._sse.feed(data):
                    self._read(message, events)
            except UpstreamError as error:
                self._failure = self._as_interruption(error, events)
            self.is_complete = self._has_ended or self._failure is not None
        return self._admit(events) if events else events

    def finish(self) -> list[Event]:
        """Take the end of the bytes; raises ``StreamInterrupted`` when the stream was not complete."""
        events: list[Event] = []
        if self._failure is None:
            self._read_rest(events)
        if self._failure is not None:
            raise self._failure
        if events:
            events = self._admit(events)
        if not self._is_whole():
            raise cut_off()
        if self._reported is not None:
            return events
        estimate = self._estimate()
        if self._character_count:  # of an answer in which nothing was said it is only told
            self._reported = estimate
        return [*events, UsageReported(estimate)]

    def _read_rest(self, events: list[Event]) -> None:
        """Read what came without its blank line: an event that is whole, or half of one, which is nothing."""
        try:
            for message in self._sse.finish():
                self._read(message, events)
        except UpstreamError as error:
            if error.code != MALFORMED:
                self._failure = self._as_interruption(error, events)
        self.is_complete = self._has_ended or self._failure is not None

    def _read(self, message: ServerSentEvent, events: list[Event]) -> None:
        """Append what ``message`` says to ``events``; raises ``UpstreamError`` for an error or a foreign wire."""
        raise NotImplementedError

    def _is_whole(self) -> bool:
        """Whether the provider has said that the answer is whole."""
        raise NotImplementedError

    def _as_interruption(self, error: UpstreamError, events: list[Event]) -> UpstreamError:
        """An error before the start is that of an attempt that never began; later it is an interruption."""
        has_started = self._lifecycle.has_started or bool(events)
        return interruption(error) if has_started else error

    def _admit(self, events: list[Event]) -> list[Event]:
        """Keep what is legal, and count what an estimate of the usage would need."""
        event, last = events[0], events[-1]
        if (
            len(events) <= 2
            and (type(event) is TextDelta or type(event) is ReasoningDelta)  # as nearly all of a stream is
            and self._lifecycle.is_open(event.index)
        ):
            if event is last:
                self._character_count += len(event.text)
                return events
            if type(last) is UsageReported:  # some tell the running total with each text
                self._character_count += len(event.text)
                self._reported = last.usage
                return events
        admitted = self._lifecycle.admit(events)
        for event in admitted:
            if type(event) is TextDelta:
                self._character_count += len(event.text)
            elif type(event) is UsageReported:
                self._reported = event.usage
            else:
                self._character_count += _length(event)
        return admitted

    def _estimate(self) -> Usage:
        """Return the usage by lengths, for a provider that reported none."""
        return _estimate(self._call, self._character_count)


class RequestHeaders:
    """The headers of a provider's requests: what each one is, what is wanted back, whose it is.

    To a call that brings none of its own the same ones are handed out each time, read-only, so that whoever writes
    them can keep them written. Of a call's own those go on that are ``forwarded``, and which trace it belongs to.
    ``configured`` ones win over all others.
    """

    __slots__ = ("_configured", "_forwarded", "_of_stream", "_of_whole", "_own")

    def __init__(
        self, own: Mapping[str, str], configured: Mapping[str, str], *, forwarded: tuple[str, ...] = ()
    ) -> None:
        self._own = own
        self._configured = configured
        self._forwarded = (*TRACE_HEADERS, *forwarded)
        self._of_stream = MappingProxyType(self._write("text/event-stream", {}))
        self._of_whole = MappingProxyType(self._write("application/json", {}))

    def of(self, call: Call) -> Mapping[str, str]:
        """Return the headers of the request that is written for ``call``."""
        plain = self._of_stream if call.stream else self._of_whole
        said = call.headers
        if not said:
            return plain
        forwarded = {name: said[name] for name in self._forwarded if name in said}
        return self._write("text/event-stream" if call.stream else "application/json", forwarded)

    def _write(self, accept: str, forwarded: Mapping[str, str]) -> dict[str, str]:
        content = {"content-type": "application/json", "accept": accept}
        return {**content, **forwarded, **self._own, **self._configured}


def started(call: Call, answer_id: str, model: str | None = None, created_unix_s: int = 0) -> StreamStarted:
    """Return the start of the answer to ``call``, by its target's own name of the model where no other is given."""
    return StreamStarted(answer_id, model or call.target_model, created_unix_s, target=str(call.target or ""))


def framed(events: list[Event], data: bytes, wire: str) -> list[Event]:
    """Give all events of one document its frame; one that says nothing we understand is an extra."""
    if not events:
        return [ProviderExtra(Frame(data, wire, 1))]
    frame = Frame(data, wire, len(events))
    return [msgspec.structs.replace(event, frame=frame) for event in events]


def wanted_format(call: Call) -> ResponseFormat | None:
    """Return the form that the answer must have, for a wire that is not OpenAI's.

    Raises ``InvalidRequest`` for one that only OpenAI's wire, or a host that shares it, can express.
    """
    wanted = call.response_format
    if wanted is not None and wanted.kind == "other":
        message = f"response_format: {wanted.name[:64]!r} cannot be asked of {call.target}"
        raise InvalidRequest(message, param="response_format")
    return wanted


def with_usage(call: Call, events: list[Event]) -> list[Event]:
    """Return the events of a whole answer, with an estimate of its usage where the provider reported none."""
    if type(events[-1]) is UsageReported or any(type(event) is UsageReported for event in events):
        return events
    return [*events, UsageReported(_estimate(call, sum(map(_length, events))))]


def _length(event: Event) -> int:
    kind = type(event)  # of a ``match`` each class takes ten times as long, as it does of all that have a metaclass
    if kind is TextDelta or kind is ReasoningDelta or kind is RefusalDelta:
        return len(event.text)  # type: ignore[union-attr]  # it is one of these
    return len(event.arguments) if type(event) is ToolCallDelta else 0


def _estimate(call: Call, character_count: int) -> Usage:
    prompt_characters = sum(len(message.text) for message in call.messages)
    if call.continuation is not None and call.continuation.way == "exact":
        prompt_characters += len(call.continuation.text)
    return Usage(estimate_tokens(prompt_characters), estimate_tokens(character_count), is_estimated=True)


def estimate_tokens(character_count: int) -> int:
    """Return about how many tokens a text has: four characters each, as the providers' own rule of thumb says."""
    return -(-character_count // 4)
