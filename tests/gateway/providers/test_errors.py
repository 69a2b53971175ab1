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
    begun_at_s = time.perf_counter()
    clean_message(piece * (64_000 // len(piece)))
    assert time.perf_counter() - begun_at_s < 1


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
        ("Rejected by the content management policy", "content_filter"),
        ("temperature out of range", "bad_request"),
    ],
)
def test_refusal_is_sorted_by_its_words(message: str, error_type: str) -> None:
    """Too much, forbidden, or simply wrong."""
    assert upstream_error(400, ErrorBody(message)).error_type == error_type


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
    error = UpstreamBusy("busy", code="c", retry_after_s=2, retryable=False, upstream_status=503, param="p")
    told = interruption(error)
    assert type(told) is StreamInterrupted
    assert (told.message, told.code, told.param, told.retry_after_s) == ("busy", "c", "p", 2)
    assert (told.retryable, told.error_type, told.upstream_status) == (False, "overloaded", 503)
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
