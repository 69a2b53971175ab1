"""Says what Google means by an error, whether it is the body of an HTTP error or an item of a stream.

Both are ``{"error": {…}}`` with a name, mostly a number, and ``details``, in which stands what the words leave open.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.core.errors import UpstreamBusy, UpstreamError, UpstreamRefused
from gateway.providers.errors import ErrorBody, clean_message, decode_error_body, decode_or_none, upstream_error

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

_DELAY = re.compile(r"(\d{1,6}(?:\.\d+)?)s")
_STATUS_NAME = re.compile(r"[A-Z_]{1,64}")


def decode_error(body: bytes) -> dict[str, Any]:
    """Return what the body of an HTTP error says: ``{"error": {…}}``, or the same as the one item of an array."""
    document = decode_error_body(body)
    return _as_error(document.get("error") if isinstance(document, dict) else None)


def _as_error(said: object) -> dict[str, Any]:
    if isinstance(said, dict):
        return said
    return {"message": said} if isinstance(said, str) else {}


def stream_error(said: msgspec.Raw, secret: str | None) -> UpstreamError:
    """Say what an error inside a stream means, as it would have been told with its HTTP status.

    Nobody here cancels a stream and then reads on: a ``CANCELLED`` inside one is Google's own failure.
    """
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
