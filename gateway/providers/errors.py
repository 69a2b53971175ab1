"""What a provider's errors mean: read their many shapes, clean their words, say whether another attempt may help.

A provider's message helps the caller to mend the request, so it is passed on; but it is somebody else's text: one line,
short, and without anything that looks like a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Literal, TypeAlias

import msgspec

from gateway.core.errors import (
    ErrorType,
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
)

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding bytes raises which are not JSON, or not of the type that is asked for."""

FINAL_CODES = re.compile(
    r"insufficient_quota|billing|credit|balance|spend_limit|quota_exceeded_for_month", re.IGNORECASE
)
"""A 429 with one of these will not pass by waiting."""

_CONTEXT = re.compile(
    r"context[_ ](?:length|limit|size|window)|maximum context|maximum (?:model|prompt) length|input token count"
    r"|(?:input|prompt|length of all messages) (?:is )?too long|too[_ ]many[_ ](?:\w+[_ ])?tokens"
    r"|exceeds (?:the )?maximum (?:length|number of tokens)|inputs` tokens \+ `max_new_tokens`"
    r"|reduce the length of the (?:messages|prompt)",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content_filter|content_policy|content management policy|safety|moderation", re.IGNORECASE)

Refused: TypeAlias = Literal["request", "stream", "continuation"]

_NO_STREAM = re.compile(
    r"n[o’']t support streaming\b(?! (?:argument|audio|file|function|image|input|tool|video))"
    r"|n[o’']t support \w[\w ]{0,40} in streaming\b"
    r"|(?<!argument )(?<!audio )(?<!file )(?<!image )(?<!input )(?<!video )\bstream(?:ing|(?:ing)? mode|ed responses)"
    r" (?:is |are )?(?:currently )?(?:not|un)(?: yet)? ?(?:available|enabled|supported)\b"
    r"|stream['`\"]? ?(?:does not support true|[:=] ?true (?:is )?(?:not|un) ?supported)|verified to stream\b",
    re.IGNORECASE,
)
"""That a model gives whole answers only, and not that something else cannot be streamed to it or from it."""

_NO_CONTINUATION = re.compile(
    r"pre-?fill|ending with a model turn|final .?assistant.? (?:content|message)|must end with a user (?:message|turn)"
    r"|\blast role\b|\blast message\b.{0,60}\b(?:assistant|role|user)\b|2 or more assistant messages"
    r"|\bprefix\b.{0,80}\bassistant\b|\bassistant\b.{0,80}\bprefix\b"
    r"|continue_final_message|add_generation_prompt|continuation[_ ]?token",
    re.IGNORECASE,
)
"""That an answer cannot be gone on with: by this model, or in the way in which it was asked for."""

_MAX_QUOTED_CHARACTERS = 4000
_SECRET = re.compile(
    r"(?i)bearer\s+\S+|\b(?:sk|pk|rk|gsk|xai|key|api|AIza|tgp|hf|r8|fw|nvapi|csk|pplx|mr|LLM)[-_][\w\-.*]{6,}|AIza[\w\-]{10,}"
    r"|(?<=key=)[^\s&]+|(?<![\w\-])[\w\-]{3,}\*{3,}[\w\-]*"
)
MAX_MESSAGE_CHARACTERS = 400


def clean_message(text: object, *secrets: str | None) -> str:
    """Return a provider's words as one short line without anything that looks like a key."""
    line = " ".join(str(text).split())
    for secret in secrets:
        if secret:
            line = line.replace(secret, "[redacted]")
    line = _SECRET.sub("[redacted]", line)
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def retry_after_s(headers: Mapping[str, str], *, now_unix_s: float | None = None) -> float | None:
    """Return for how long the provider asks to wait: ``retry-after-ms``, then ``retry-after`` as seconds or a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        wait_s: float | None
        try:
            wait_s = float(value) / scale
        except ValueError:
            wait_s = _seconds_until(value, headers.get("date"), now_unix_s)
        if wait_s is not None and isfinite(wait_s):
            return max(0.0, wait_s)
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Return the provider's own word on whether another attempt may help, where it gives one."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())


def _seconds_until(value: str, date: str | None, now_unix_s: float | None) -> float | None:
    """A date is compared with the answer's own ``date``, so that no clock needs to be right."""
    try:
        then = parsedate_to_datetime(value).timestamp()
        now = parsedate_to_datetime(date).timestamp() if date else now_unix_s
    except (TypeError, ValueError, OverflowError):
        return None
    return None if now is None else max(0.0, then - now)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What all providers' error bodies say in one way or another.

    ``quoted`` is what a host in between has put beside its own words of the provider's behind it. It is never shown.
    """

    message: str = ""
    code: str = ""
    type: str = ""
    param: str | None = None
    quoted: str = field(default="", repr=False)

    @property
    def words(self) -> str:
        """All that tells what the error is about."""
        return f"{self.code} {self.type} {self.message} {self.quoted}"


def upstream_error(
    status: int, said: ErrorBody, *, wait_s: float | None = None, should_retry: bool | None = None
) -> UpstreamError:
    """Return the error for an HTTP status, or for an error event that corresponds to one.

    Which statuses are worth another attempt is the union of what the providers' own SDKs do: 408, 409, 424, 425, 429
    without a word of quota or billing, and everything from 500 up.
    """
    message = said.message or f"the provider answered with status {status}"
    retryable = should_retry if should_retry is not None else status in (408, 409, 424, 425, 429) or status >= 500
    if status == 429 and FINAL_CODES.search(f"{said.code} {said.type} {said.message}"):
        return UpstreamRefused(
            message, status_code=429, code=said.code or "insufficient_quota", retryable=False,
            error_type="rate_limited", upstream_status=status,
        )  # fmt: skip
    if status in (429, 503, 529):
        error_type: ErrorType = "rate_limited" if status == 429 else "overloaded"
        return UpstreamBusy(
            message, status_code=429 if status == 429 else 503, code=said.code or None, retry_after_s=wait_s,
            retryable=retryable, error_type=error_type, upstream_status=status,
        )  # fmt: skip
    if status in (401, 402, 403):
        return UpstreamRefused(
            "the provider did not accept the gateway's credentials" if status != 402
            else "the provider's account has no credit",
            status_code=502, code="upstream_auth", retryable=False, error_type="auth", upstream_status=status,
        )  # fmt: skip
    if status >= 500:
        return UpstreamFailed(
            message, status_code=504 if status == 504 else 502, code=said.code or None, retry_after_s=wait_s,
            retryable=retryable, upstream_status=status, refused=_refused(status, said),
        )  # fmt: skip
    return UpstreamRefused(
        message, status_code=status if status in (400, 404, 408, 409, 413, 415, 422) else 502,
        code=said.code or said.type or None, param=said.param, retry_after_s=wait_s, retryable=retryable,
        error_type=_refusal_type(said), upstream_status=status, refused=_refused(status, said),
    )  # fmt: skip


def _refused(status: int, said: ErrorBody) -> Refused:
    """Return what exactly will not be done; an error that names another field than ``stream`` is about that one."""
    if status in (400, 404, 405, 422, 501) and said.param in (None, "stream", "stream_options"):
        is_option = said.param is not None and said.code in ("unsupported_parameter", "unsupported_value")
        if is_option or _NO_STREAM.search(said.words):
            return "stream"
    if status in (400, 422) and _NO_CONTINUATION.search(f"{said.param} {said.words}"):
        return "continuation"
    return "request"


def _refusal_type(said: ErrorBody) -> ErrorType:
    if _CONTEXT.search(said.words):
        return "context_length"
    return "content_filter" if _FILTER.search(said.words) else "bad_request"


def read_error_body(body: bytes, *secrets: str | None) -> ErrorBody:
    """Read the error shapes that the OpenAI family uses: ``{"error": {…}}``, ``{"error": "…"}``, or flat."""
    return error_from_json(decode_error_body(body), *secrets)


def decode_error_body(body: bytes) -> Any:
    """Return the document in the body of an HTTP error; some send it as the one item of an array."""
    document = decode_or_none(body)
    return document[0] if isinstance(document, list) and document else document


def decode_or_none(document: bytes | msgspec.Raw) -> Any:
    """Return what is in a document, ``None`` if it is not JSON."""
    try:
        return msgspec.json.decode(document)
    except NOT_JSON:
        return None


def error_from_json(document: Any, *secrets: str | None) -> ErrorBody:
    """Read an error out of decoded JSON, whatever its shape."""
    if isinstance(document, Mapping) and isinstance(document.get("error"), Mapping | str):
        inner = document["error"]
    else:
        inner = document
    if isinstance(inner, str):
        return ErrorBody(clean_message(inner, *secrets))
    if not isinstance(inner, Mapping):
        return ErrorBody()
    message = inner.get("message") or inner.get("detail") or inner.get("msg") or ""
    return ErrorBody(
        clean_message(message, *secrets) if isinstance(message, str) else "",
        _word(inner.get("code"), secrets),
        _word(inner.get("type") or inner.get("status"), secrets),
        _param(inner.get("param"), secrets),
        _quoted(inner.get("metadata")),
    )


def _quoted(metadata: object) -> str:
    """OpenRouter says no more than that its provider has failed, and keeps that one's words apart."""
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    return raw[:_MAX_QUOTED_CHARACTERS] if isinstance(raw, str) else ""


def error_in_answer(said: object, *secrets: str | None) -> UpstreamError:
    """Return the error that stands where an answer of the OpenAI family should, in spite of a status of 200."""
    return upstream_error(_status_of(said), error_from_json({"error": said}, *secrets))


def _status_of(error: object) -> int:
    """An error inside a 200 says its status in ``code`` or ``status_code``, or it is a server error."""
    if isinstance(error, dict):
        for key in ("status_code", "code", "status"):
            value = error.get(key)
            if isinstance(value, str) and value.isascii() and value.isdigit():
                value = int(value[:4])
            if isinstance(value, int) and 400 <= value < 600:
                return value
        if error.get("type") == "invalid_request_error":
            return 400
    return 500


def _word(value: object, secrets: Sequence[str | None]) -> str:
    """A code is a word; a number is the status once more, and anything longer is no code."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.\-]{0,63}", value)
    return value if is_word and clean_message(value, *secrets) == value else ""


def _param(value: object, secrets: Sequence[str | None]) -> str | None:
    """A parameter is a path such as ``messages[0].content``."""
    is_path = isinstance(value, str) and re.fullmatch(r"[\w.\-\[\]]{1,128}", value)
    return value if is_path and clean_message(value, *secrets) == value else None


MALFORMED = "malformed_stream"


def cut_off() -> StreamInterrupted:
    """Return the error for an end of bytes without the provider's end marker."""
    return StreamInterrupted("the provider's stream ended before the answer did", code="stream_truncated")


def malformed(what: str) -> StreamInterrupted:
    """Return the error for bytes that are not the provider's wire; ``what`` quotes nothing of them."""
    return StreamInterrupted(f"the provider sent {what}", code=MALFORMED, error_type="protocol", retryable=True)


def interruption(error: UpstreamError) -> StreamInterrupted:
    """Return ``error``, which came after the stream had begun, as the interruption that it is."""
    if isinstance(error, StreamInterrupted):
        return error
    return StreamInterrupted(
        error.message,
        code=error.code,
        param=error.param,
        retry_after_s=error.retry_after_s,
        retryable=error.retryable,
        error_type=error.error_type,
        upstream_status=error.upstream_status,
        refused=error.refused,
    )
