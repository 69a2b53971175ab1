from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import (
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)
from gateway.providers.errors import (
    MAX_MESSAGE_CHARACTERS,
    ErrorBody,
    clean_message,
    cut_off,
    decode_error_body,
    error_from_json,
    error_in_answer,
    interruption,
    malformed,
    read_error_body,
    retry_after_s,
    should_retry,
    upstream_error,
)


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abc.def",
        "sk-proj-abcdef123456",
        "sk-ant-api03-abcdef",
        "xai-abcdef123456",
        "AIzaSyA1234567890abc",
        "gsk_abcdef123456",
        "sk-pr***************ab12",
        "abc****",
    ],
)
def test_message_shows_nothing_that_looks_like_a_key(secret: str) -> None:
    """A provider that quotes the key does not make us do so."""
    cleaned = clean_message(f"Incorrect API key provided: {secret} (see the docs)")
    assert secret not in cleaned
    assert cleaned == "Incorrect API key provided: [redacted] (see the docs)"


def test_message_shows_no_key_of_a_url_and_no_known_secret() -> None:
    """A key need not look like one to be kept back."""
    assert clean_message("GET /v1?key=hush&alt=sse") == "GET /v1?key=[redacted]&alt=sse"
    assert clean_message("the word is hush", None, "", "hush") == "the word is [redacted]"


def test_message_is_one_short_line() -> None:
    """Somebody else's text cannot fill a log or break a line of it."""
    assert clean_message(" a\n\tb\r\n c ") == "a b c"
    assert clean_message("x " * 1000).endswith("…")
    assert len(clean_message("x " * 1000)) == MAX_MESSAGE_CHARACTERS
    assert clean_message(3) == "3"


@pytest.mark.parametrize("piece", ["a", "-*", "a*", "sk-", "sk-a ", "bearer ", "key=", "AIza"])
def test_long_message_costs_linear_time(piece: str) -> None:
    """A provider's error page of many kilobytes does not hold up every other stream."""
    begun_at_s = time.process_time()
    clean_message(piece * (64_000 // len(piece)))
    assert time.process_time() - begun_at_s < 3


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "inf", "retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 60.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 08:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "today"}, None),
    ],
)
def test_wait_is_read_as_seconds_or_as_a_date(headers: dict[str, str], wait_s: float | None) -> None:
    """Milliseconds come first; a date counts from the answer's own date, else from the clock; nonsense says nothing."""
    assert retry_after_s(headers, now_unix_s=1792567650.0) == wait_s


def test_date_without_any_clock_says_nothing() -> None:
    """There is nothing to compare it with."""
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}) is None


@given(st.text(max_size=40))
def test_any_header_is_read_without_a_foreign_exception(value: str) -> None:
    """What a provider writes there cannot break an attempt."""
    wait_s = retry_after_s({"retry-after": value, "date": value}, now_unix_s=0.0)
    assert wait_s is None or wait_s >= 0


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "error_type"),
    [
        (400, UpstreamRefused, False, "bad_request"),
        (401, UpstreamRefused, False, "auth"),
        (402, UpstreamRefused, False, "auth"),
        (403, UpstreamRefused, False, "auth"),
        (404, UpstreamRefused, False, "bad_request"),
        (408, UpstreamRefused, True, "bad_request"),
        (409, UpstreamRefused, True, "bad_request"),
        (413, UpstreamRefused, False, "bad_request"),
        (422, UpstreamRefused, False, "bad_request"),
        (424, UpstreamRefused, True, "bad_request"),
        (425, UpstreamRefused, True, "bad_request"),
        (429, UpstreamBusy, True, "rate_limited"),
        (499, UpstreamRefused, False, "bad_request"),
        (500, UpstreamFailed, True, "server_error"),
        (503, UpstreamBusy, True, "overloaded"),
        (504, UpstreamFailed, True, "server_error"),
        (529, UpstreamBusy, True, "overloaded"),
    ],
)
def test_status_says_what_kind_of_error_it_is(
    status: int,
    kind: type[UpstreamError],
    retryable: bool,  # noqa: FBT001, a column of the table
    error_type: str,
) -> None:
    """The union of what the providers' own SDKs try again."""
    error = upstream_error(status, ErrorBody("no"))
    assert type(error) is kind
    assert (error.retryable, error.error_type, error.upstream_status) == (retryable, error_type, status)


@pytest.mark.parametrize("word", ["insufficient_quota", "billing_hard_limit", "spend_limit_reached"])
def test_unpaid_bill_does_not_pass_by_waiting(word: str) -> None:
    """A 429 that is about money is final."""
    error = upstream_error(429, ErrorBody("no", code=word), wait_s=3)
    assert isinstance(error, UpstreamRefused)
    assert (error.retryable, error.status_code, error.code, error.error_type) == (False, 429, word, "rate_limited")


def test_credentials_are_the_gateways_own_affair() -> None:
    """The caller's key was right: it is told a bad gateway, and nothing of the provider's words."""
    error = upstream_error(401, ErrorBody("wrong key hush", code="invalid_api_key"))
    assert (error.status_code, error.code) == (502, "upstream_auth")
    assert "hush" not in error.message
    assert "credit" in upstream_error(402, ErrorBody("pay")).message


@pytest.mark.parametrize(
    ("message", "error_type"),
    [
        ("This model's maximum context length is 8192 tokens", "context_length"),
        ("prompt is too long: 250000 tokens", "context_length"),
        ("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000", "context_length"),
        ("Your input exceeds the context window of this model.", "context_length"),
        ("prompt too long; exceeded max context length by 1119046 tokens", "context_length"),
        ("The input token count (1250074) exceeds the maximum number of tokens allowed (1048576).", "context_length"),
        ("too large for model with 32768 maximum context length", "context_length"),
        ("The total length of all messages is too long.", "context_length"),
        ("This model's maximum prompt length is 131072 but the request contains 537812 tokens.", "context_length"),
        ("the request exceeds the available context size, try increasing it", "context_length"),
        ("The decoder prompt is longer than the maximum model length of 8192.", "context_length"),
        ("`inputs` tokens + `max_new_tokens` must be <= 8193", "context_length"),
        ("Number of input tokens exceeds maximum length. Please update the input to try again.", "context_length"),
        ("Input is too long for requested model.", "context_length"),
        ("too many tokens: size limit exceeded by 25836 tokens.", "context_length"),
        ("Please reduce the length of the messages or completion.", "context_length"),
        ("Invalid schema for function 'get_current_weather': In context=(), 'x' is required", "bad_request"),
        ("Invalid 'user': string too long.", "bad_request"),
        ("Rejected by the content management policy", "content_filter"),
        ("temperature out of range", "bad_request"),
    ],
)
def test_refusal_is_sorted_by_its_words(message: str, error_type: str) -> None:
    """Too much, forbidden, or simply wrong."""
    assert upstream_error(400, ErrorBody(message)).error_type == error_type


@pytest.mark.parametrize(
    "said", [ErrorBody("no", code="context_length_exceeded"), ErrorBody("no", type="too_many_prompt_tokens")]
)
def test_too_much_is_known_by_its_code_or_type_too(said: ErrorBody) -> None:
    """Not every host puts it into words."""
    assert upstream_error(400, said).error_type == "context_length"


@pytest.mark.parametrize(
    "message",
    [
        "Your organization must be verified to stream this model.",
        "Unsupported value: 'stream' does not support true with this model. Supported values are: false.",
        "This model does not support streaming.",
        "The model doesn't support streaming",
        "This model doesn't support tool use in streaming mode.",
        "Streaming is not supported for this deployment",
        "Error: streaming is currently not supported",
        "streaming mode is not yet supported",
        "Streaming unsupported",
        "stream=True is not supported",
    ],
)
@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
def test_refusal_to_stream_is_told_apart(status: int, message: str) -> None:
    """The same request may well be answered as a whole."""
    assert upstream_error(status, ErrorBody(message)).refused == "stream"


@pytest.mark.parametrize("param", ["stream", "stream_options"])
@pytest.mark.parametrize("code", ["unsupported_value", "unsupported_parameter"])
def test_refusal_to_stream_is_known_by_its_field_too(param: str, code: str) -> None:
    """Whatever its words are; a field that is only malformed says nothing of the model."""
    assert upstream_error(400, ErrorBody("no", code, param=param)).refused == "stream"
    assert upstream_error(400, ErrorBody("no", "invalid_type", param=param)).refused == "request"
    assert upstream_error(400, ErrorBody("no", code, param="tools")).refused == "request"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, ErrorBody("The 'stream_options' parameter is only allowed when 'stream' is enabled.")),
        (400, ErrorBody("This model only support stream mode, please enable the stream parameter.")),
        (400, ErrorBody("Function call argument streaming is not supported by this model.")),
        (400, ErrorBody("The model does not support streaming audio to it.")),
        (400, ErrorBody("Video streaming is not supported.")),
        (400, ErrorBody("Streaming is not supported", param="input_audio.mode")),
        (400, ErrorBody("Invalid tool name: 'upstream' is not supported")),
        (400, ErrorBody("Could not download the file: the stream was closed.")),
        (404, ErrorBody("The model `streamer` does not exist.")),
        (429, ErrorBody("This model does not support streaming at this rate.")),
        (500, ErrorBody("streaming is not supported")),
    ],
)
def test_error_that_only_mentions_a_stream_is_none_about_it(status: int, said: ErrorBody) -> None:
    """Nor is one that would be the same for a whole answer."""
    assert upstream_error(status, said).refused == "request"


@pytest.mark.parametrize(
    "message",
    [
        "This model does not support assistant message prefill. The conversation must end with a user message.",
        "Pre-filling the `assistant` response is not supported when tools are used.",
        "Requests ending with a model turn are not supported for this model. Please end the request with a user turn.",
        "messages: final assistant content cannot end with trailing whitespace",
        "When `thinking` is enabled, a final `assistant` message must start with a thinking block.",
        "Cannot have 2 or more assistant messages at the end of the list.",
        "Assistant response prefill is incompatible with enable_thinking.",
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
        "The `prefix` of an assistant message is a beta feature",
        "The last message must not be from the assistant",
        "The last message must have the role user",
        "continuation_token is not supported by models/gemini-3-pro.",
        "The continuation token is invalid or has expired.",
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_refusal_to_go_on_with_an_answer_is_told_apart(status: int, message: str) -> None:
    """In another form the rest may still be had."""
    assert upstream_error(status, ErrorBody(message)).refused == "continuation"
    assert (
        upstream_error(400, ErrorBody("Unrecognized field", param="continue_final_message")).refused == "continuation"
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "messages[3].role: expected one of system, user, assistant"),
        (400, "An assistant message with 'tool_calls' must be followed by tool messages"),
        (400, "Invalid schema for function 'assistant': 'prefixes' is not allowed"),
        (401, "no prefill without a key"),
        (429, "too much prefill"),
        (500, "prefill failed"),
        (503, "the prefill workers are busy"),
    ],
)
def test_error_about_something_else_is_no_refusal_to_go_on(status: int, message: str) -> None:
    """A busy prefill worker may not be so in a second."""
    assert upstream_error(status, ErrorBody(message)).refused == "request"


def test_words_that_a_host_quotes_say_what_its_provider_refused() -> None:
    """They are heard and not shown, and do not make a bill of a busy provider."""
    raw = '{"error": {"message": "Your organization must be verified to stream this model; see your billing details."}}'
    body = {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}}
    said = read_error_body(json.dumps(body).encode())
    error = upstream_error(400, said)
    assert (error.refused, error.message) == ("stream", "Provider returned error")
    assert "verified" not in repr(said)
    assert isinstance(upstream_error(429, said), UpstreamBusy)
    assert read_error_body(b'{"error": {"message": "no", "metadata": {"raw": 1}}}') == ErrorBody("no")


def test_words_of_the_provider_are_kept() -> None:
    """Message, code, field, wait and its own opinion on trying again."""
    said = ErrorBody("no", code="c", type="t", param="messages[0]")
    error = upstream_error(400, said, wait_s=2, should_retry=True)
    assert (error.message, error.code, error.param, error.retry_after_s) == ("no", "c", "messages[0]", 2)
    assert error.retryable
    assert upstream_error(400, ErrorBody("no", type="t")).code == "t"
    assert upstream_error(503, said, wait_s=2).retry_after_s == 2
    assert not upstream_error(500, said, should_retry=False).retryable
    assert upstream_error(418, said).status_code == 502
    assert upstream_error(500, ErrorBody()).message == "the provider answered with status 500"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"error": {"message": "no", "type": "t", "param": "p", "code": "c"}},
            ErrorBody("no", "c", "t", "p"),
        ),
        ([{"error": {"message": "no", "status": "BAD", "code": 400}}], ErrorBody("no", "", "BAD")),
        ({"error": {"message": "no", "code": "503"}}, ErrorBody("no")),
        ({"message": "no", "type": "t", "code": 3051}, ErrorBody("no", "", "t")),
        ({"message": "no", "code": "error.3051-b"}, ErrorBody("no", "error.3051-b")),
        ({"error": "no\nway"}, ErrorBody("no way")),
        ({"detail": "no", "code": True}, ErrorBody("no")),
        ({"msg": "no", "code": "two words"}, ErrorBody("no")),
        ({"message": {"deep": 1}, "param": 3}, ErrorBody()),
        ({"error": {"message": "key hush"}}, ErrorBody("key [redacted]")),
        ([], ErrorBody()),
        ("no", ErrorBody("no")),
        (3, ErrorBody()),
        (None, ErrorBody()),
    ],
)
def test_error_bodies_of_all_shapes_are_read(document: Any, said: ErrorBody) -> None:
    """Nested, flat, as text, in an array, or nothing to be read at all."""
    assert read_error_body(json.dumps(document).encode(), "hush") == said
    if not isinstance(document, list):
        assert error_from_json(document, "hush") == said


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (400, b'{"error": {"message": "no", "code": 400}}', "upstream_refused"),
        (400, b'{"error": {"message": "no", "code": 400, "status": "BAD"}}', "BAD"),
        (429, b'{"error": {"message": "no", "code": "429"}}', "upstream_busy"),
        (503, b'{"error": {"message": "no", "code": 503}}', "upstream_busy"),
        (502, b'{"error": {"message": "no", "code": 502}}', "upstream_failed"),
        (500, b'{"error": {"message": "no", "code": 0}}', "upstream_failed"),
    ],
)
def test_number_is_no_code(status: int, said: bytes, code: str) -> None:
    """It says the status once more; a client has a word, the provider's or else that of the kind of error."""
    assert upstream_error(status, read_error_body(said)).code == code


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": "\xff"}', b"[" * 100_000])
def test_body_that_is_no_json_says_nothing(body: bytes) -> None:
    """A proxy's page is no error of the provider's."""
    assert read_error_body(body) == ErrorBody()


@given(st.binary(max_size=60))
def test_any_body_is_read_without_a_foreign_exception(body: bytes) -> None:
    """An error is never in the way of an error."""
    assert isinstance(read_error_body(body), ErrorBody)


def test_cut_and_foreign_bytes_are_told_apart() -> None:
    """Both are interruptions worth another attempt."""
    cut, foreign = cut_off(), malformed("something else")
    assert (cut.code, cut.error_type, cut.retryable) == ("stream_truncated", "reset", True)
    assert (foreign.code, foreign.error_type, foreign.retryable) == ("malformed_stream", "protocol", True)
    assert foreign.message == "the provider sent something else"


def test_error_after_the_start_is_an_interruption() -> None:
    """It keeps all that it says; what is one already stays the same."""
    error = UpstreamBusy(
        "busy", code="c", retry_after_s=2, retryable=False, upstream_status=503, param="p", refused="continuation"
    )
    told = interruption(error)
    assert type(told) is StreamInterrupted
    assert (told.message, told.code, told.param, told.retry_after_s) == ("busy", "c", "p", 2)
    assert (told.retryable, told.error_type, told.upstream_status) == (False, "overloaded", 503)
    assert told.refused == "continuation"
    assert interruption(told) is told


@pytest.mark.parametrize(
    ("word", "expected"), [("true", True), ("false", False), ("True", True), ("", None), ("maybe", None), (None, None)]
)
def test_providers_word_on_a_retry_is_heard(word: str | None, expected: bool | None) -> None:  # noqa: FBT001
    """Where there is none, or one that nobody knows, the status decides."""
    assert should_retry({} if word is None else {"x-should-retry": word}) is expected


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'[{"a": 1}]', {"a": 1}),
        (b"[]", []),
        (b"<html>", None),
        (b'"\xff"', None),
        (b"", None),
    ],
)
def test_body_of_an_error_is_decoded_if_it_can_be(body: bytes, document: object) -> None:
    """Google sends it as the one item of an array; a proxy in between sends what it likes."""
    assert decode_error_body(body) == document


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"status_code": 429, "code": "slow_down"}, 429),
        ({"code": "503"}, 503),
        ({"code": 200}, 500),
        ({"status": 400}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "\u0664\u0660\u0664"}, 500),
        ("Busy", 500),
        (None, 500),
    ],
)
def test_error_inside_an_answer_has_the_status_that_it_names(said: object, status: int) -> None:
    """Without one it is the provider's own failure."""
    assert error_in_answer(said).upstream_status == status
