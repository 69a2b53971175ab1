from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.core.call import (
    Message,
    ResponseFormat,
    Route,
    Sampling,
    Source,
    Target,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.events import Usage
from gateway.core.trace import Facts
from gateway.telemetry.export import MAX_CHARACTERS
from gateway.telemetry.spans import MAX_NOTES, Peer
from tests.gateway.telemetry.traced import (
    FIRST,
    SAMPLED,
    SECOND,
    SPAN_ID,
    TRACE_ID,
    MakeTracer,
    attributes,
    call,
    is_error,
    server_and_call,
    settlement,
)
from tests.otlp import Collector

CANARY = "canary-7f3a"


def test_a_call_is_a_tree_of_spans(collector: Collector, make_tracer: MakeTracer) -> None:
    """The request, the call below it, and below that every attempt, each where and when it was."""
    tracer = make_tracer()
    began_ns, asked = time.time_ns(), call()
    trace = tracer.begin(asked)
    trace.note("failover", {"target": "openai/gpt-5-mini", "attempt": 1, "error_type": "overloaded"})
    broken = settlement(result="failed", error_type="overloaded", http_status=503, usage=None, is_delivered=False)
    trace.attempt(broken)
    trace.note("first_token", {"target": "claude/claude-haiku-4-5"})
    good = settlement(attempt=2, target=SECOND, way="restart")
    trace.attempt(good)
    trace.end("completed", finish_reasons=["stop"], ttft_s=0.5, http_status=200)
    ended_ns = time.time_ns()
    tracer.shutdown()

    server, logical = server_and_call(collector)
    attempts = [span for span in collector.spans() if span.parent_span_id == logical.span_id]
    assert len(collector.spans()) == 4
    assert {span.trace_id.hex() for span in collector.spans()} == {trace.trace_id}
    assert len({span.span_id for span in collector.spans()}) == 4
    assert server.span_id.hex() == trace.span_id
    assert server.parent_span_id == b""
    assert trace.traceparent == f"00-{trace.trace_id}-{logical.span_id.hex()}-01"
    assert [(span.name, Span.SpanKind.Name(span.kind)) for span in (server, logical, *attempts)] == [
        ("POST /v1/chat/completions", "SPAN_KIND_SERVER"),
        ("chat chat", "SPAN_KIND_CLIENT"),
        ("chat gpt-5-mini", "SPAN_KIND_CLIENT"),
        ("chat claude-haiku-4-5", "SPAN_KIND_CLIENT"),
    ]
    assert [is_error(span) for span in (server, logical, *attempts)] == [False, False, True, False]

    assert began_ns - 2_000_000 < server.start_time_unix_nano <= ended_ns
    assert server.start_time_unix_nano == logical.start_time_unix_nano
    assert server.start_time_unix_nano <= server.end_time_unix_nano == logical.end_time_unix_nano < ended_ns + 2_000_000
    for span, settled in zip(attempts, (broken, good), strict=True):
        since_s = (span.start_time_unix_nano - server.start_time_unix_nano) / 1e9
        assert since_s == pytest.approx(settled.started_at_s - asked.received_at_s, abs=1e-5)
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(2.0, abs=1e-5)

    assert [(event.name, attributes(event)) for event in logical.events] == [
        (
            "failover",
            {
                "millrace.target": "openai/gpt-5-mini",
                "millrace.attempt": 1,
                "millrace.error_type": "overloaded",
            },
        ),
        ("first_token", {"millrace.target": "claude/claude-haiku-4-5"}),
    ]
    times = [event.time_unix_nano for event in logical.events]
    assert logical.start_time_unix_nano <= times[0] <= times[1] <= logical.end_time_unix_nano


def test_the_attributes_are_the_conventions(collector: Collector, make_tracer: MakeTracer) -> None:
    """By name and by type, and what no convention knows is under ours."""
    tracer = make_tracer()
    trace = tracer.begin(
        call(
            choice_count=2,
            max_output_tokens=300,
            sampling=Sampling(
                temperature=0.5, top_p=0.9, top_k=40, seed=7, frequency_penalty=0.1, presence_penalty=0.2
            ),
            reasoning_effort="high",
            response_format=ResponseFormat(kind="json_schema"),
        )
    )
    usage = Usage(100, 50, 40, 25, 30, is_estimated=True)
    trace.attempt(settlement(usage=usage, code="c", way="exact", started_at_s=1.0, first_token_at_s=1.25))
    trace.end(
        "completed",
        usage=usage,
        finish_reasons=["stop", "length"],
        response_id="chatcmpl-1",
        response_model="gpt-5-mini-2026",
        ttft_s=0.25,
        http_status=200,
    )
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "millrace.request_id": "r1",
        "millrace.outcome": "completed",
    }
    assert attributes(logical) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.output.type": "json",
        "gen_ai.request.model": "chat",
        "gen_ai.request.stream": True,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 300,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.request.reasoning.level": "high",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.cache_write.input_tokens": 25,
        "gen_ai.usage.reasoning.output_tokens": 30,
        "server.address": "api.openai.com",
        "server.port": 443,
        "millrace.outcome": "completed",
        "millrace.attempt_count": 1,
        "millrace.target": "openai/gpt-5-mini",
        "millrace.usage.is_estimated": True,
    }
    attempt = next(span for span in collector.spans() if span.parent_span_id == logical.span_id)
    assert attributes(attempt) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "server.address": "api.openai.com",
        "server.port": 443,
        "millrace.attempt": 1,
        "millrace.target": "openai/gpt-5-mini",
        "millrace.result": "completed",
        "millrace.code": "c",
        "millrace.way": "exact",
        "millrace.is_delivered": True,
        "millrace.usage.input_tokens": 100,
        "millrace.usage.output_tokens": 50,
        "millrace.usage.cache_read.input_tokens": 40,
        "millrace.usage.cache_write.input_tokens": 25,
        "millrace.usage.reasoning.output_tokens": 30,
        "millrace.usage.is_estimated": True,
    }


def test_a_call_that_is_no_stream_says_nothing_of_chunks(collector: Collector, make_tracer: MakeTracer) -> None:
    """An attribute that is not there says what its absence means."""
    tracer = make_tracer()
    trace = tracer.begin(call(stream=False, endpoint="of-another-version"))
    trace.attempt(settlement(target=Target("elsewhere", "m")))
    trace.end("completed", ttft_s=0.25)
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert (server.name, logical.name) == ("POST", "chat chat")
    found = {name: value for span in collector.spans() for name, value in attributes(span).items()}
    left_out = ("gen_ai.request.stream", "gen_ai.response.time_to_first_chunk", "http.route", "server.address")
    assert not found.keys() & set(left_out)
    assert found["gen_ai.provider.name"] == "unknown"


def test_the_callers_trace_is_continued(collector: Collector, make_tracer: MakeTracer) -> None:
    """The request is below the caller's span, and what the caller's vendor wants to be told again is."""
    tracer = make_tracer(sample_ratio=0.0)
    trace = tracer.begin(call(headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-03", "tracestate": "vendor=1"}))
    trace.end("completed", http_status=200)
    tracer.shutdown()
    server, logical = server_and_call(collector)
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert server.span_id.hex() == trace.span_id != SPAN_ID
    assert (server.trace_state, logical.trace_state) == ("vendor=1", "vendor=1")
    assert (server.flags & 0x200, logical.flags & 0x200) == (0x200, 0)
    assert trace.traceparent == f"00-{TRACE_ID}-{logical.span_id.hex()}-03"
    assert trace.tracestate == "vendor=1"


@pytest.mark.parametrize(
    ("outcome", "facts", "errors"),
    [
        ("completed", Facts(http_status=200), (None, None)),
        ("client_aborted", Facts(http_status=200), (None, None)),
        ("client_aborted", Facts(), (None, None)),
        ("upstream_error", Facts(http_status=502, error_type="server_error"), ("server_error", "server_error")),
        ("upstream_error", Facts(http_status=400, error_type="bad_request"), (None, "bad_request")),
        ("truncated", Facts(http_status=200, error_type="reset"), ("reset", "reset")),
        ("stalled", Facts(http_status=504, error_type="read_timeout"), ("read_timeout", "read_timeout")),
        ("deadline", Facts(http_status=200), ("deadline", "deadline")),
        ("gateway_error", Facts(http_status=500, error_type="_OTHER"), ("_OTHER", "_OTHER")),
        ("drained", Facts(http_status=200), ("drained", "drained")),
        ("drained", Facts(), ("drained", "drained")),
    ],
)
def test_a_span_is_an_error_when_what_it_stands_for_failed(
    collector: Collector, make_tracer: MakeTracer, outcome: str, facts: Facts, errors: tuple[str | None, str | None]
) -> None:
    """The request by its status or its broken stream, the call by its end; what its client did is no error."""
    tracer = make_tracer()
    tracer.begin(call()).end(outcome, **facts)
    tracer.shutdown()
    for span, error in zip(server_and_call(collector), errors, strict=True):
        assert is_error(span) == (error is not None)
        assert attributes(span).get("error.type") == error
        assert attributes(span)["millrace.outcome"] == outcome


def test_a_call_that_nobody_was_found_for_is_with_nobody(collector: Collector, make_tracer: MakeTracer) -> None:
    """Then the operation is all that there is to say."""
    tracer = make_tracer()
    tracer.begin(call(route=Route())).end("gateway_error", http_status=500)
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert logical.name == "chat"
    assert not {"gen_ai.provider.name", "gen_ai.request.model"} & attributes(logical).keys()


def test_a_tracestate_that_is_none_is_left_out(
    collector: Collector, make_tracer: MakeTracer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody is told of it either."""
    tracer = make_tracer()
    tracer.begin(call(headers={"traceparent": SAMPLED, "tracestate": CANARY})).end("completed")
    tracer.shutdown()
    assert [span.trace_state for span in collector.spans()] == ["", ""]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [401, 404])
def test_a_request_that_is_refused_at_the_door_is_no_call(
    collector: Collector, make_tracer: MakeTracer, status: int
) -> None:
    """There is the request, which is no error of ours, and no call of any model."""
    tracer = make_tracer()
    trace = tracer.begin(call(route=Route(), model=CANARY))
    trace.end("rejected", http_status=status, error_type="auth")
    tracer.shutdown()
    (server,) = collector.spans()
    assert server.kind == Span.SPAN_KIND_SERVER
    assert not is_error(server)
    assert attributes(server)["http.response.status_code"] == status
    assert "error.type" not in attributes(server)


def test_an_attempt_that_was_given_up_has_not_failed(collector: Collector, make_tracer: MakeTracer) -> None:
    """It says for what reason; one that failed says how, in a word of a closed set."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.attempt(settlement(result="cancelled", reason="hedge_lost"))
    trace.attempt(settlement(attempt=2, result="failed", error_type="rate_limited", http_status=429))
    trace.attempt(settlement(attempt=3, result="failed"))
    tracer.shutdown()
    given_up, limited, unknown = collector.spans()
    assert not is_error(given_up)
    assert attributes(given_up).items() >= {"millrace.result": "cancelled", "millrace.reason": "hedge_lost"}.items()
    assert "error.type" not in attributes(given_up)
    assert is_error(limited)
    assert attributes(limited).items() >= {"error.type": "rate_limited", "http.response.status_code": 429}.items()
    assert attributes(unknown)["error.type"] == "_OTHER"


def test_a_choice_without_an_end_has_the_reason_error(collector: Collector, make_tracer: MakeTracer) -> None:
    """One reason for each choice, in their order."""
    tracer = make_tracer()
    tracer.begin(call(choice_count=3)).end("truncated", finish_reasons=["stop"], http_status=200)
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert attributes(logical)["gen_ai.response.finish_reasons"] == ["stop", "error", "error"]


def test_the_call_is_with_whom_its_answer_is_from(collector: Collector, make_tracer: MakeTracer) -> None:
    """The last who brought any of it; before anybody did, who was asked first."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.attempt(settlement(result="failed"))
    trace.attempt(settlement(attempt=2, target=SECOND))
    trace.attempt(settlement(attempt=3, result="cancelled", is_delivered=False))
    trace.end("completed")
    tracer.shutdown()
    _, logical = server_and_call(collector)
    expected = {"gen_ai.provider.name": "anthropic", "server.address": "127.0.0.1", "server.port": 9000}
    assert attributes(logical).items() >= {**expected, "millrace.attempt_count": 3}.items()


def test_a_call_ends_once_and_its_attempts_when_they_do(collector: Collector, make_tracer: MakeTracer) -> None:
    """A second end changes nothing, a late attempt is told all the same."""
    tracer = make_tracer()
    trace = tracer.begin(call())
    trace.end("completed", http_status=200)
    trace.end("gateway_error", http_status=500)
    trace.attempt(settlement())
    tracer.shutdown()
    assert len(collector.spans()) == 3
    server, logical = server_and_call(collector)
    assert attributes(server)["millrace.outcome"] == attributes(logical)["millrace.outcome"] == "completed"


def test_a_call_is_worth_only_so_many_notes(collector: Collector, make_tracer: MakeTracer) -> None:
    """A stream that stalls for ever fills no memory, and a name is as long as names are."""
    tracer = make_tracer()
    trace = tracer.begin(call(model="m" * 1000, route=Route(targets=(FIRST,))))
    for _ in range(MAX_NOTES + 10):
        trace.note("stall", {"phase": "x" * 1000})
    trace.end("completed")
    tracer.shutdown()
    _, logical = server_and_call(collector)
    assert len(logical.events) == MAX_NOTES
    assert len(attributes(logical.events[0])["millrace.phase"]) == MAX_CHARACTERS
    assert logical.name == "chat " + "m" * (MAX_CHARACTERS - 5)
    assert attributes(logical)["gen_ai.request.model"] == "m" * MAX_CHARACTERS


def test_nothing_of_what_was_said_is_exported(collector: Collector, make_tracer: MakeTracer) -> None:
    """No message, answer, tool, stop, key or header of the client's, nor a model that nobody has."""
    tracer = make_tracer()
    said: dict[str, Any] = {
        "route": Route(),
        "model": CANARY,
        "credential": CANARY,
        "client_id": CANARY,
        "headers": {"traceparent": SAMPLED, "idempotency-key": CANARY},
        "messages": (
            Message(role="user", parts=(TextPart(CANARY),), name=CANARY, source={"content": CANARY}),
            Message(role="assistant", tool_calls=(ToolCall(CANARY, CANARY, CANARY),), reasoning=CANARY),
        ),
        "tools": (Tool(name=CANARY, description=CANARY, parameters={CANARY: CANARY}),),
        "response_format": ResponseFormat(kind="json_schema", name=CANARY, schema={CANARY: CANARY}),
        "reasoning_effort": CANARY,
        "stop": (CANARY,),
        "source": Source("openai.chat", {"messages": CANARY}),
    }
    for outcome in ("completed", "rejected", "gateway_error"):
        trace = tracer.begin(call(**said))
        trace.note("first_token")
        trace.attempt(settlement(result="failed"))
        trace.end(outcome, usage=Usage(1, 2), http_status=200)
    tracer.shutdown()
    assert len(collector.spans()) == 9
    assert CANARY.encode() not in b"".join(body for _, _, body in collector.requests)


def test_a_fact_that_is_not_known_is_left_out(collector: Collector, make_tracer: MakeTracer) -> None:
    """Whether it is not given, or given as nothing."""
    facts: Sequence[Facts] = ({}, {"usage": None, "response_id": "", "finish_reasons": (), "ttft_s": None})
    tracer = make_tracer()
    for fact in facts:
        tracer.begin(call()).end("completed", **fact)
    tracer.shutdown()
    first, second = [attributes(span) for span in collector.spans() if span.kind == Span.SPAN_KIND_CLIENT]
    assert first == second


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"kind": "openai", "base_url": "https://api.openai.com/v1"}, Peer("openai", "api.openai.com", 443)),
        ({"kind": "openai-compatible", "host": "vllm", "base_url": "http://[::1]:8000/v1"}, Peer("vllm", "::1", 8000)),
        ({"kind": "simulator"}, Peer("simulator", None, None)),
    ],
)
def test_a_peer_is_where_its_url_says(options: Any, peer: Peer) -> None:
    """Name, address and port; the port of the scheme where none is given."""
    assert Peer.of(**options) == peer
