from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from gateway.core import errors
from gateway.core.errors import (
    ClientError,
    ClientGone,
    ConfigError,
    GatewayError,
    InternalError,
    InvalidRequest,
    RateLimited,
    StreamInterrupted,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
    without_frames,
)
from gateway.core.events import TextDelta
from gateway.core.transcript import Transcript


def classes(root: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """Return ``root`` and all classes below it."""
    yield root
    for kind in root.__subclasses__():
        yield from classes(kind)


ALL = sorted(classes(GatewayError), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL)
def test_error_has_all_that_a_client_may_be_told(kind: type[GatewayError]) -> None:
    """A message, a code, a type and a status that fits whose fault it is."""
    error = kind("it broke")
    assert (str(error), error.message, error.param, error.retry_after_s) == ("it broke", "it broke", None, None)
    assert error.code.replace("_", "").isalpha()
    assert error.type.endswith("_error")
    assert 400 <= error.status_code < 500 if issubclass(kind, ClientError | ClientGone) else error.status_code >= 500


@pytest.mark.parametrize("kind", ALL)
def test_module_draws_every_error(kind: type[GatewayError]) -> None:
    """The tree in the module's docstring is the tree."""
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, ClientError)])
def test_callers_fault_is_never_retried(kind: type[GatewayError]) -> None:
    """The same request would fail again."""
    assert not kind("no").retryable


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        (UpstreamRefused, False),
        (UpstreamBusy, True),
        (UpstreamFailed, True),
        (UpstreamUnreachable, True),
        (UpstreamTimeout, True),
        (StreamInterrupted, True),
        (InternalError, False),
        (ClientGone, False),
    ],
)
def test_class_says_whether_another_attempt_may_help(kind: type[GatewayError], retryable: bool) -> None:  # noqa: FBT001, a column of the table
    """Retry and fallback look at nothing else."""
    assert kind("no").retryable is retryable


def test_details_replace_what_the_class_says() -> None:
    """Code and status may be more exact than the class."""
    error = InvalidRequest("no", code="context_length", param="messages[0]", status_code=413)
    assert (error.code, error.param, error.status_code) == ("context_length", "messages[0]", 413)
    assert (InvalidRequest.code, InvalidRequest.status_code) == ("invalid_request", 400)
    assert RateLimited("slow down", retry_after_s=2.5).retry_after_s == 2.5
    assert UnknownModel("what?").status_code == 404


def test_upstream_error_says_what_the_provider_did() -> None:
    """Whether to retry, the label, and the provider's own status may come with the instance."""
    error = UpstreamError(
        "no",
        code="c",
        param="p",
        status_code=503,
        retry_after_s=1,
        retryable=True,
        error_type="tls",
        upstream_status=418,
    )
    assert (error.retryable, error.error_type, error.upstream_status) == (True, "tls", 418)
    assert (error.code, error.param, error.status_code, error.retry_after_s) == ("c", "p", 503, 1)
    assert (error.target, error.attempt) == (None, 0)
    assert not UpstreamError.retryable
    assert StreamInterrupted("cut", retryable=False).retryable is False


@pytest.mark.parametrize("refused", ["request", "stream", "continuation"])
def test_refusal_says_what_exactly_is_refused(refused: Literal["request", "stream", "continuation"]) -> None:
    """In another form the same request may be answered."""
    assert UpstreamRefused("no", refused=refused).refused == refused


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, UpstreamError)])
def test_upstream_error_begins_with_nothing_delivered(kind: type[UpstreamError]) -> None:
    """All that was asked is refused, and nobody has seen anything, until it is said otherwise."""
    error = kind("no")
    assert (error.refused, error.was_sent, error.delivered) == ("request", False, None)


def test_what_was_delivered_goes_with_the_one_error() -> None:
    """It is filled in behind the raise; other errors know nothing of it, and neither do its words."""
    transcript = Transcript()
    transcript.add([TextDelta("hush")])
    error = StreamInterrupted("cut")
    error.delivered, error.was_sent = transcript, True
    assert (StreamInterrupted("cut").delivered, StreamInterrupted("cut").was_sent) == (None, False)
    assert "hush" not in f"{error!s}{error!r}"


def test_configuration_error_has_one_line_for_each_fault() -> None:
    """All that is wrong is told at once; it is no error of a call."""
    error = ConfigError(["a.yaml:1: server: expected a mapping", "a.yaml:2: models: unknown"])
    assert str(error).splitlines() == error.faults
    assert not isinstance(error, GatewayError)


def test_an_error_without_frames_has_none_and_nor_have_its_causes() -> None:
    """One that is caused by itself, by way of another, has an end as well."""
    first, second, last = OSError(), ValueError(), InternalError("the last")
    with pytest.raises(InternalError) as caught:
        _fail(first, second, last)
    assert caught.value is last
    assert None not in {first.__traceback__, second.__traceback__, last.__traceback__}
    assert without_frames(last) is last
    assert {first.__traceback__, second.__traceback__, last.__traceback__} == {None}
    first.__cause__ = last
    assert without_frames(last) is last


def _fail(first: Exception, second: Exception, last: Exception) -> None:
    try:
        try:
            raise first
        except OSError:
            raise second  # noqa: B904, without a cause: while the first is handled
    except ValueError as error:
        raise last from error
