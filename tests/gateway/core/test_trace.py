from __future__ import annotations

import pytest

from gateway.core.call import Call
from gateway.core.trace import NO_TRACE, NO_TRACER, Caller, Trace, read_traceparent

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (SAMPLED, 1),
        (UNSAMPLED, 0),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", 3),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", 3),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01", 1),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings", 1),
    ],
)
def test_a_traceparent_is_read(header: str, flags: int) -> None:
    """The ids, and the flags that have a meaning; of a later version what this one knows."""
    assert read_traceparent(header) == Caller(TRACE_ID, SPAN_ID, flags)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        SAMPLED.upper(),
        SAMPLED + "\n",
        SAMPLED + "-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.more",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    """As if there was none."""
    assert read_traceparent(header) is None


def trace(flags: int | None = 1, tracestate: str | None = None, *, propagates: bool = True) -> Trace:
    """Return a trace of which nothing is recorded."""
    return Trace(TRACE_ID, SPAN_ID, flags, tracestate, propagates=propagates)


def test_a_call_that_nobody_traces_has_no_ids() -> None:
    """And none go into a log, to a client or to a provider; it can be told all the same."""
    assert NO_TRACER.begin(Call(request_id="r")) is NO_TRACE is Call(request_id="r").trace
    assert NO_TRACE.log_fields == {}
    assert NO_TRACE.told_client is NO_TRACE.exemplar_trace_id is None
    NO_TRACE.note("first_token")
    NO_TRACE.end("completed")


@pytest.mark.parametrize(("flags", "is_sampled"), [(None, False), (0, False), (1, True), (2, False), (3, True)])
def test_an_example_can_only_be_a_trace_that_is_kept(flags: int | None, *, is_sampled: bool) -> None:
    """The lowest flag says so."""
    assert trace(flags).is_sampled is is_sampled
    assert trace(flags).exemplar_trace_id == (TRACE_ID if is_sampled else None)


def test_the_client_is_told_of_a_trace_that_somebody_has_decided_on() -> None:
    """Of one that nobody could look up, not even that it exists; in the log it ties lines together."""
    assert trace().told_client == SAMPLED
    assert trace(None).told_client is None
    assert trace(None).log_fields == {"trace_id": TRACE_ID, "span_id": SPAN_ID}


def test_a_provider_is_told_only_where_that_is_wanted() -> None:
    """Whatever the client sent, and beside all else that may go on."""
    given = {"traceparent": "the caller's", "tracestate": "a=b", "openai-beta": "x"}
    assert trace(propagates=False).headers_for(given) == {"openai-beta": "x"}
    assert trace(tracestate="a=b").headers_for(given) == {
        "openai-beta": "x",
        "traceparent": SAMPLED,
        "tracestate": "a=b",
    }
    assert NO_TRACE.headers_for({"openai-beta": "x"}) == {"openai-beta": "x"}
