from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.core.errors import UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused
from gateway.providers.google_errors import decode_error, read_error, stream_error


def refusal(status: int, *details: Any, wait_s: float | None = None) -> UpstreamError:
    """Return what an HTTP error with ``details`` means."""
    message = "You exceeded your current quota, please check your plan and billing details. Key fake-key"
    body = {"error": {"code": status, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}
    return read_error(status, decode_error(json.dumps([body]).encode()), wait_s=wait_s, secret="fake-key")


def told(said: object) -> UpstreamError:
    """Return what an error inside a stream means."""
    return stream_error(msgspec.Raw(json.dumps(said).encode()), "fake-key")


def test_busy_minute_says_when_it_passes() -> None:
    """``RetryInfo`` is waited for, though the words of a passing 429 are those of an unpaid bill."""
    error = refusal(429, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.4s"})
    assert isinstance(error, UpstreamBusy)
    assert (error.retry_after_s, error.retryable, error.code) == (34.4, True, "resource_exhausted")
    assert (error.status_code, error.error_type) == (429, "rate_limited")
    assert "fake-key" not in error.message


@pytest.mark.parametrize("details", [[], [3], [{"retryDelay": 3}], [{"retryDelay": "soon"}]])
def test_busy_minute_that_does_not_say_when_it_passes_is_busy_all_the_same(details: list[Any]) -> None:
    """What is no delay is none."""
    error = refusal(429, *details)
    assert isinstance(error, UpstreamBusy)
    assert error.retry_after_s is None


def test_header_wins_over_details() -> None:
    """A ``retry-after`` was written by who answered last."""
    error = refusal(429, {"retryDelay": "34s"}, wait_s=3)
    assert error.retry_after_s == 3


def test_used_up_day_is_final() -> None:
    """A quota for the day does not pass by waiting."""
    error = refusal(429, {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]})
    assert isinstance(error, UpstreamRefused)
    assert (error.retryable, error.code) == (False, "insufficient_quota")


def test_invalid_key_is_a_matter_of_credentials() -> None:
    """Google answers a wrong key with a 400, which is not the caller's."""
    error = refusal(400, {"reason": "API_KEY_INVALID"})
    assert (error.error_type, error.status_code) == ("auth", 502)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"3", b'{"error": 3}', b'{"error": {"details": 3}}'])
def test_error_without_a_readable_body_goes_by_its_status(body: bytes) -> None:
    """A proxy's page says nothing; the status does."""
    error = read_error(503, decode_error(body), wait_s=None, secret=None)
    assert isinstance(error, UpstreamBusy)
    assert error.message == "the provider answered with status 503"


def test_error_as_plain_text_keeps_its_words() -> None:
    """What stands where an object should is still a message."""
    said = decode_error(b'{"error": "no such model"}')
    assert read_error(404, said, wait_s=None, secret=None).message == "no such model"


@pytest.mark.parametrize(
    ("said", "kind", "status"),
    [
        ({"code": 503, "status": "UNAVAILABLE"}, UpstreamBusy, 503),
        ({"code": 429, "status": "UNAVAILABLE"}, UpstreamBusy, 429),
        ({"status": "INVALID_ARGUMENT"}, UpstreamRefused, 400),
        ({"status": "UNAUTHENTICATED"}, UpstreamRefused, 401),
        ({"status": "SOMETHING_NEW"}, UpstreamFailed, 500),
        ({"code": "x"}, UpstreamFailed, 500),
        ({"code": 200}, UpstreamFailed, 500),
        ("no", UpstreamFailed, 500),
        (3, UpstreamFailed, 500),
    ],
)
def test_error_inside_a_stream_has_the_status_that_it_says_or_that_its_name_amounts_to(
    said: object, kind: type[UpstreamError], status: int
) -> None:
    """Where it says neither it is a failure like any other."""
    error = told(said)
    assert type(error) is kind
    assert error.upstream_status == status


@pytest.mark.parametrize("said", [{"code": 499}, {"status": "CANCELLED"}])
def test_cancelled_stream_is_the_failure_of_who_cancelled_it(said: dict[str, Any]) -> None:
    """Nobody here did: another attempt may help."""
    error = told(said)
    assert isinstance(error, UpstreamFailed)
    assert (error.retryable, error.upstream_status) == (True, 499)


def test_secret_is_not_repeated() -> None:
    """Neither from a stream's error."""
    assert "fake-key" not in told({"code": 400, "message": "bad key fake-key"}).message
