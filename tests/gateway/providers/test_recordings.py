"""Every recorded answer of a provider decodes to what a correct client must get out of it.

The recordings are not part of this repository: they are read from ``MILLRACE_WIRE_DIR``, or from ``shared/wire`` beside
the repository, and the module is skipped where there are none. Their ``expected`` was computed by a script that shares
nothing with the gateway.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.core.call import Call
from gateway.core.errors import StreamInterrupted, UpstreamError
from gateway.core.events import ChoiceFinished, Event, Usage
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import ChoiceTranscript, ToolCallTranscript, Transcript
from gateway.providers import PROVIDERS
from gateway.providers.base import Provider, ProviderOptions

BYTEWISE_BYTES = 32 * 1024
"""Streams up to this size are fed byte by byte, larger ones in pieces of one to seven bytes."""

ROOT = Path(__file__).parents[3]
WIRE = Path(os.environ.get("MILLRACE_WIRE_DIR") or ROOT.parent / "shared" / "wire")
if not (WIRE / "MANIFEST.tsv").is_file():
    pytest.skip(f"no recordings at {WIRE}; MILLRACE_WIRE_DIR says where they are", allow_module_level=True)

KINDS = {
    "anthropic_messages": "anthropic",
    "gemini_generate_content": "google",
    "llama_chat": "llama",
    "openai_chat": "openai-compatible",
}
"""Which provider reads an API, ..."""

OWN_KINDS = {("openai", "openai_chat"): "openai", ("mistral", "openai_chat"): "mistral"}
"""... but for those who have one of their own, ..."""

HOSTS = {
    "azure-openai": "azure",
    "llamacpp": "llama.cpp",
    "vercel-gateway": "vercel",
    "anthropic": None,  # its endpoint in OpenAI's shapes is not a host of the table
}
"""... and what the host is called where the recordings have another name for it."""


@dataclass(frozen=True)
class Case:
    """One recording: what was asked, what came back, and what is to be got out of it."""

    name: str
    meta: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def body(self) -> bytes:
        """The answer's body, byte for byte."""
        return (WIRE / self.name / str(self.meta["response_file"])).read_bytes()

    @property
    def api(self) -> str:
        """The wire that it is in."""
        return str(self.meta["api"])

    @property
    def expected(self) -> dict[str, Any]:
        """What a correct client must arrive at."""
        return dict(self.meta["expected"])

    @property
    def rng(self) -> random.Random:
        """Random numbers, the same ones in every run."""
        return random.Random(self.name)  # noqa: S311, nothing is to be kept secret

    @property
    def call(self) -> Call:
        """A call that asks for as many choices as were asked for."""
        asked = json.loads((WIRE / self.name / "request.json").read_bytes())
        return Call(request_id="t", stream=self.meta["framing"] != "json", choice_count=asked.get("n") or 1)

    @property
    def provider(self) -> Provider:
        """The provider that reads it."""
        directory = self.name.partition("/")[0]
        kind = OWN_KINDS.get((directory, self.api), KINDS[self.api])
        host = HOSTS.get(directory, directory) if kind == "openai-compatible" else None
        return PROVIDERS[kind](ProviderOptions(name="recorded", base_url="http://127.0.0.1/v1", host=host))


def _cases() -> Iterator[Case]:
    for path in sorted(WIRE.glob("*/*/meta.json")):
        meta = json.loads(path.read_bytes())
        if meta["api"] in KINDS:
            yield Case(path.parent.relative_to(WIRE).as_posix(), meta)


CASES = list(_cases())
STREAMS = [case for case in CASES if case.meta["http_status"] == 200 and case.meta["framing"] != "json"]
ANSWERS = [case for case in CASES if case.meta["http_status"] == 200 and case.meta["framing"] == "json"]
ERRORS = [case for case in CASES if case.meta["http_status"] != 200]
SSE_STREAMS = [case for case in STREAMS if case.meta["framing"] == "sse"]
ARRAY_STREAMS = [case for case in STREAMS if case.meta["framing"] == "json-array"]

DONE_IS_END = {
    "snowflake/chat-text-usage-claude-sonnet-4-6-86e8cb": "a host that sends no finish reason: [DONE] has to do",
}
UNFINISHED = {
    "litellm-proxy/chat-n-choices-gpt-3.5-turbo-95bd6a": "the second of two choices never ends: an interruption",
}
FINAL_ERRORS = {
    "openai/chat-error-429-gpt-4o-2024-08-06-819cd6": "insufficient_quota does not pass by waiting",
}
"""The exceptions, each with its reason."""


@dataclass
class Outcome:
    """What came out of a decoder, and how that ended."""

    events: list[Event]
    error: UpstreamError | None

    @property
    def transcript(self) -> Transcript:
        """The events folded."""
        transcript = Transcript()
        transcript.add(self.events)
        return transcript


def decode(case: Case, pieces: Iterable[bytes]) -> Outcome:
    """Feed ``pieces`` to the case's decoder as the gateway does: until it is complete, then the end."""
    decoder = case.provider.decoder(case.call)
    events: list[Event] = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.finish()
    except UpstreamError as error:
        return Outcome(events, error)
    return Outcome(events, None)


def read(case: Case) -> Outcome:
    """Read a whole answer."""
    try:
        return Outcome(case.provider.answer(case.call, case.body), None)
    except UpstreamError as error:
        return Outcome([], error)


def split(body: bytes, rng: random.Random, largest: int) -> Iterator[bytes]:
    """Return ``body`` in pieces of one to ``largest`` bytes."""
    start = 0
    while start < len(body):
        end = start + rng.randint(1, largest)
        yield body[start:end]
        start = end


def check(case: Case, outcome: Outcome) -> None:
    """Compare an outcome with what is expected, field by field."""
    expected, transcript = case.expected, outcome.transcript
    has_error = expected.get("error") is not None or case.name in UNFINISHED
    assert (outcome.error is not None) == has_error, outcome.error
    for wanted in expected.get("choices") or [{"index": 0}]:
        first = expected if wanted["index"] == 0 else {}
        check_choice(case, transcript.choice(wanted["index"]), {**first, **wanted})
    reasoning = "".join(choice.reasoning for _, choice in sorted(transcript.choices.items()))
    assert reasoning == expected.get("reasoning", "")  # given for all choices together
    if not has_error or transcript.usage is not None:
        check_usage(case, transcript.usage)
    assert Lifecycle().admit(outcome.events) == outcome.events
    counts = Counter(id(event.frame) for event in outcome.events if event.frame is not None)
    frames = [event.frame for event in outcome.events if event.frame is not None]
    assert all(counts[id(frame)] <= frame.event_count for frame in frames)


def check_choice(case: Case, got: ChoiceTranscript, wanted: dict[str, Any]) -> None:
    """Compare one choice."""
    assert got.text == (wanted.get("text") or "")
    assert got.refusal == (wanted.get("refusal") or "")
    if case.expected.get("error") is None or got.native_reason:
        assert got.native_reason == str(wanted["finish_reason"] or "")
    calls = [call for _, call in sorted(got.tool_calls.items())]
    wanted_calls = wanted.get("tool_calls") or []
    assert [call.name for call in calls] == [call["name"] for call in wanted_calls]
    for call, wanted_call in zip(calls, wanted_calls, strict=True):
        check_call(case, call, wanted_call)


def check_call(case: Case, got: ToolCallTranscript, wanted: dict[str, Any]) -> None:
    """Compare one call. Anthropic's empty arguments become the object that its block started with."""
    if "id" in wanted:
        assert got.id == wanted["id"]
    raw = wanted.get("arguments_raw")
    if raw == "" and case.api == "anthropic_messages":
        raw = "{}"
    if raw is not None:
        assert got.arguments == raw
    if not isinstance(wanted["arguments"], str):
        assert json.loads(got.arguments or "{}") == wanted["arguments"]


def check_usage(case: Case, got: Usage | None) -> None:
    """Compare the usage in the core's terms: input with what came from a cache, output with reasoning."""
    wanted = case.expected["usage"]
    if wanted["input_tokens"] is None and wanted["output_tokens"] is None:
        assert got is None or got.is_estimated
        return
    assert got is not None
    assert not got.is_estimated
    read, write = wanted.get("cache_read_tokens") or 0, wanted.get("cache_write_tokens") or 0
    thoughts = wanted.get("reasoning_tokens") or 0
    left_out = {  # what the provider's own numbers do not count
        "anthropic_messages": (read + write, 0),
        "gemini_generate_content": (last_number(case.body, "toolUsePromptTokenCount"), thoughts),
        "openai_chat": (0, thoughts if counts_reasoning_apart(case) else 0),
    }.get(case.api, (0, 0))
    assert got.input_tokens == (wanted["input_tokens"] or 0) + left_out[0]
    assert got.output_tokens == (wanted["output_tokens"] or 0) + left_out[1]
    assert (got.cached_input_tokens, got.cache_write_input_tokens) == (read, write)
    if "reasoning_tokens" in wanted:
        assert got.reasoning_tokens == thoughts


def last_number(body: bytes, key: str) -> int:
    """Return the number that the last report has under ``key``, 0 where none has."""
    reports = re.findall(rf'"{key}": ?(\d+)'.encode(), body)
    return int(reports[-1]) if reports else 0


def counts_reasoning_apart(case: Case) -> bool:
    """Whether the reasoning comes on top of ``completion_tokens``, as the total shows (xAI)."""
    usage = case.expected["usage"]
    thoughts = usage.get("reasoning_tokens") or 0
    completion = usage["output_tokens"] or 0
    total = last_number(case.body, "total_tokens")
    return thoughts > 0 and total == (usage["input_tokens"] or 0) + completion + thoughts


def blocks(body: bytes) -> list[bytes]:
    """Return the complete server-sent events of ``body``, each with the blank line that ends it."""
    ends = [match.end() for match in re.finditer(rb"\r\n\r\n|\n\n|\r\r", body)]
    return [body[start:end] for start, end in pairwise([0, *ends])]


def documents(block: bytes) -> Iterator[dict[str, Any]]:
    """Return the JSON objects in an event's data."""
    data = b"".join(re.findall(rb"^data: ?(.*?)\r?$", block, re.MULTILINE))
    if data.startswith(b"{"):
        yield json.loads(data)


def complete_at(case: Case, events: list[bytes]) -> int | None:
    """Return how many events make the stream complete by the rule of its API, ``None`` if all do not."""
    open_choices = set(range(case.call.choice_count))
    for count, event in enumerate(events, 1):
        if case.name in DONE_IS_END and b"[DONE]" in event:
            return count
        for document in documents(event):
            open_choices -= set(FINISHED[case.api](document))
        if not open_choices:
            return count
    return None


def finished_openai(document: dict[str, Any]) -> Iterator[int]:
    """A choice of Chat Completions is whole with its ``finish_reason``."""
    for choice in document.get("choices") or []:
        if choice.get("finish_reason"):
            yield choice.get("index") or 0


def finished_anthropic(document: dict[str, Any]) -> Iterator[int]:
    """An answer of Messages is whole with ``message_stop``."""
    if document.get("type") == "message_stop":
        yield 0


def finished_gemini(document: dict[str, Any]) -> Iterator[int]:
    """A candidate is whole with its ``finishReason``; a blocked prompt has none."""
    for candidate in document.get("candidates") or []:
        if candidate.get("finishReason"):
            yield candidate.get("index") or 0
    if (document.get("promptFeedback") or {}).get("blockReason"):
        yield 0


def finished_llama(document: dict[str, Any]) -> Iterator[int]:
    """An answer of the Llama API is whole with its ``stop_reason``."""
    if (document.get("event") or {}).get("stop_reason"):
        yield 0


FINISHED: dict[str, Callable[[dict[str, Any]], Iterator[int]]] = {
    "anthropic_messages": finished_anthropic,
    "gemini_generate_content": finished_gemini,
    "llama_chat": finished_llama,
    "openai_chat": finished_openai,
}


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_read_at_once_decodes_to_what_was_said(case: Case) -> None:
    """Also what came in the same read as an error is delivered before the error is raised."""
    check(case, decode(case, [case.body]))


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_read_byte_by_byte_decodes_to_the_same(case: Case) -> None:
    """No split of the bytes makes a difference: not inside a line end, a character or an escape."""
    body = case.body
    largest = 1 if len(body) <= BYTEWISE_BYTES else 7
    check(case, decode(case, split(body, case.rng, largest)))


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_read_in_pieces_of_any_size_decodes_to_the_same(case: Case) -> None:
    """The sizes are random, from a few bytes to many events at once."""
    rng = case.rng
    for largest in (64, 1024, 16384):
        check(case, decode(case, split(case.body, rng, largest)))


@pytest.mark.parametrize("case", SSE_STREAMS, ids=str)
def test_a_stream_cut_between_events_is_finished_only_when_the_provider_said_so(case: Case) -> None:
    """Every cut before the rule of its API is fulfilled is an interruption, none after it is."""
    events = blocks(case.body)
    needed = complete_at(case, events)
    for count in range(len(events)):
        outcome = decode(case, [b"".join(events[:count])])
        if needed is None or count < needed:
            assert isinstance(outcome.error, StreamInterrupted), count
        elif case.expected.get("error") is None:
            assert outcome.error is None, count


@pytest.mark.parametrize("case", SSE_STREAMS, ids=str)
def test_a_stream_cut_inside_an_event_is_never_finished_by_it(case: Case) -> None:
    """Half an event counts for nothing: the cut is told as one inside the event before it would be."""
    events = blocks(case.body)
    needed = complete_at(case, events)
    rng = case.rng
    for count in rng.sample(range(len(events)), min(8, len(events))):
        if needed is None or count < needed:
            half = events[count][: rng.randrange(len(events[count]) // 2)]
            assert isinstance(decode(case, [b"".join(events[:count]), half]).error, StreamInterrupted)


@pytest.mark.parametrize("case", ARRAY_STREAMS, ids=str)
def test_a_json_array_cut_anywhere_before_its_finish_is_interrupted(case: Case) -> None:
    """Gemini's stream without ``alt=sse`` has no events to be cut between."""
    body = case.body
    for end in range(0, body.index(b"finishReason"), 5):
        assert isinstance(decode(case, [body[:end]]).error, StreamInterrupted), end


@pytest.mark.parametrize("case", ANSWERS, ids=str)
def test_a_whole_answer_reads_as_what_was_said(case: Case) -> None:
    """Its events share one frame."""
    outcome = read(case)
    check(case, outcome)
    if case.expected.get("error") is None:
        assert any(isinstance(event, ChoiceFinished) for event in outcome.events)
        assert len({id(event.frame) for event in outcome.events}) == 1


@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_an_http_error_says_whether_another_attempt_may_help(case: Case) -> None:
    """Its message is one line, its status the provider's, and only what may pass is retryable."""
    status = case.meta["http_status"]
    headers = case.meta["response_headers"]
    error = case.provider.error(status, headers, case.body)
    assert error.upstream_status == status
    assert error.message
    assert "\n" not in error.message
    is_passing = status in (408, 409, 429) or status >= 500
    assert error.retryable == (is_passing and case.name not in FINAL_ERRORS)
    wait_ms = headers.get("retry-after-ms")
    if wait_ms is not None:
        assert error.retry_after_s == float(wait_ms) / 1000
    elif "retry-after" in headers:
        assert error.retry_after_s == float(headers["retry-after"])
    assert error.error_type == {401: "auth", 403: "auth", 429: "rate_limited", 500: "server_error"}.get(
        status, error.error_type
    )
