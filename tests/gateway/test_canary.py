"""Nobody reads what was said, or a key, but who said it and whom it was said to.

Three birds are planted wherever a client, an operator or a provider can put a word: a secret, a prompt and an answer.
Then all that the gateway tells of its work is searched for them: its log in both formats and from ``debug`` up, what it
prints, its errors in HTTP and in streams, its headers, its metrics, its list of streams and its traces.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from gateway.config import DEFAULT_MIDDLEWARE
from gateway.core.call import Call
from gateway.logs import LibraryHandler, configure_logs
from gateway.pipeline import Next, Send
from gateway.simulator import Script
from tests.conftest import QUICK, MakeGateway, Running
from tests.otlp import Collector
from tests.raw_client import Answer, connected, exchange, parse, request
from tests.scripted_upstream import DONE, END, ROLE, STREAM, ScriptedUpstream, Step, answer, chunk, text
from tests.scripted_upstream import openai_chunk as delta

PATH: Final = "/v1/chat/completions"

SECRET, PROMPT, ANSWER = "kestrel", "linnet", "siskin"
CLIENT_KEY: Final = "mr_kestrel_0123456789abcdef"
PROVIDER_KEY: Final = "0123456789kestrel"
"""A key that looks like nothing in particular."""

SAID: Final = f"the {ANSWER} sings "
QUIET: Final = Script(
    first_token_s=QUICK.first_token_s, interval_s=QUICK.interval_s, say=SAID * 12, tools=0, reasoning="off"
)

HEADERS: Final = {
    "authorization": f"Bearer {CLIENT_KEY}",
    "cookie": f"session={SECRET}",
    "user_agent": f"{SECRET}/1.0",
    "referer": f"https://example.com/?{SECRET}",
    "x_forwarded_for": SECRET,
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": f"{SECRET}={SECRET}",
    "baggage": f"user={SECRET}",
    "idempotency_key": SECRET,
    "openai_beta": SECRET,
    "anthropic_beta": SECRET,
    "content_type": f"application/json; {SECRET}={SECRET}",
    "x_request_id": "request-1",
}

PLAIN: Final[Mapping[str, Any]] = {
    "model": "chat",
    "stream": True,
    "messages": [
        {"role": "system", "content": f"You are a {PROMPT}."},
        {"role": "user", "content": f"What does the {PROMPT} say?", "name": PROMPT},
    ],
    "metadata": {PROMPT: PROMPT},
    "user": f"{PROMPT}@example.com",
    "safety_identifier": PROMPT,
    "prompt_cache_key": PROMPT,
    "stop": [f"{PROMPT} stops"],
}
CALLED: Final = {"name": f"{PROMPT}_call", "arguments": json.dumps({PROMPT: PROMPT})}
FULL: Final[Mapping[str, Any]] = {
    **PLAIN,
    "messages": [
        *PLAIN["messages"],
        {"role": "assistant", "tool_calls": [{"id": f"call_{PROMPT}", "type": "function", "function": CALLED}]},
        {"role": "tool", "tool_call_id": f"call_{PROMPT}", "content": f"a {PROMPT}'s result"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": f"{PROMPT}_call",
                "description": PROMPT,
                "parameters": {"type": "object", "properties": {PROMPT: {"type": "string"}}},
            },
        }
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": f"{PROMPT}_schema", "schema": {"type": "object", "title": PROMPT}},
    },
    f"{PROMPT}_unknown": PROMPT,
}


def asked(body: object = PLAIN, path: str = PATH, **headers: str | None) -> bytes:
    """Return a request with a bird in every place."""
    named: dict[str, str | None] = {**HEADERS, **headers}
    return request(f"{path}?{SECRET}={SECRET}", body, method="POST", version="1.1", **named)


QUOTED: Final = f"cannot use {CLIENT_KEY} or {PROVIDER_KEY} for “What does the {PROMPT} say?”"
"""What a provider may say of what it was sent."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A middleware with a fault, which quotes in its errors whatever it can get hold of."""

    async def __call__(self, call: Call, send: Send, call_next: Next) -> None:  # noqa: ARG002, the signature
        """Fail."""
        said = f"{call.messages!r} {call.headers!r}"
        try:
            dict[str, str]()[said]
        except KeyError as error:
            raise ValueError(f"cannot use {json.dumps(said)}\n\n{said}") from error


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, what becomes of it, and what the log has to say of it, so that it is known to have happened.

    ``scripts`` are the simulator's; ``steps`` those of a provider whose every byte is scripted. ``echoes`` may be told
    to the client in an error: they are its own words, or a provider's.
    """

    says: str
    requests: Sequence[bytes] = (asked(),)
    scripts: Sequence[Script] = ()
    steps: Sequence[Step] = ()
    middleware: Sequence[str] = ()
    echoes: Sequence[str] = ()
    count: int = field(default=1, kw_only=True)


def event(document: object) -> bytes:
    """Return an event of a provider's that holds anything."""
    return b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"


def broken(**script: Any) -> Script:
    """Return an answer that breaks."""
    named = {name: getattr(QUIET, name) for name in ("first_token_s", "interval_s", "say", "tools", "reasoning")}
    return Script(**{**named, **script})


ERROR: Final = {
    "error": {"message": QUOTED, "type": f"{PROMPT} type", "code": f"{PROMPT} code", "param": f"{PROMPT} param"}
}
BEGIN: Final = STREAM + chunk(ROLE, text(f"the {ANSWER} "))
HALF_TOOL: Final = delta(
    {"tool_calls": [{"index": 0, "id": ANSWER, "type": "function", "function": {"name": ANSWER, "arguments": ANSWER}}]}
)
WRONG: Final[Mapping[str, Any]] = {
    "messages": PROMPT,
    "stream": PROMPT,
    "temperature": PROMPT,
    "response_format": PROMPT,
    "tools": [PROMPT],
    "tool_choice": PROMPT,
    "stop": {PROMPT: PROMPT},
    "n": PROMPT,
    "max_tokens": PROMPT,
    "stream_options": PROMPT,
    "user": {PROMPT: PROMPT},
    "metadata": PROMPT,
}

CASES: Final[Mapping[str, Case]] = {
    "whole stream": Case("completed", [asked(FULL)]),
    "whole answer": Case("completed", [asked({**FULL, "stream": False})]),
    "plain text": Case("completed", [asked({"message": f"a {PROMPT}"}, "/api/chat/stream")]),
    "keys elsewhere": Case(
        "completed",
        [
            asked(authorization=None, x_api_key=CLIENT_KEY),
            asked(authorization=None, x_goog_api_key=CLIENT_KEY),
        ],
        count=2,
    ),
    "resumed": Case("resumed 1", scripts=[broken(cut_after_tokens=9)]),
    "failed over": Case("target.failed", scripts=[broken(status=500), broken(status=500), broken(status=500)]),
    "failed over in the middle": Case(
        "target.failed", scripts=[broken(cut_after_tokens=9), *[broken(status=503) for _ in range(3)]]
    ),
    "refused by all": Case("upstream_error", scripts=[broken(status=400)] * 2),
    "refused": Case("upstream_error", steps=[answer(400, ERROR)], echoes=[PROMPT]),
    "refused plainly": Case("upstream_error", steps=[answer(422, QUOTED.encode())], echoes=[PROMPT]),
    "wrong provider key": Case("upstream_error", steps=[answer(401, ERROR)]),
    "busy": Case("upstream_error", steps=[answer(429, ERROR, retry_after="0", x_reason=SECRET)], echoes=[PROMPT]),
    "failing": Case("upstream_error", steps=[answer(500, f"<html>{QUOTED}</html>".encode())], echoes=[PROMPT]),
    "redirected": Case(
        "upstream_error", steps=[answer(302, b"", location=f"https://example.com/?key={SECRET}&{PROMPT}")]
    ),
    "not HTTP": Case("upstream_error", steps=[f"{SECRET} {PROMPT} {ANSWER}\r\n\r\n".encode(), "fin"]),
    "bad head": Case(
        "upstream_error", steps=[f"HTTP/1.1 200 OK\r\n{SECRET} {PROMPT} {ANSWER}\r\n\r\n".encode(), "fin"]
    ),
    "bad chunk": Case("upstream_error", steps=[STREAM, f"{SECRET} {PROMPT} {ANSWER}\r\n".encode(), "fin"]),
    "bad chunk later": Case("upstream_error", steps=[BEGIN, f"{SECRET} {PROMPT} {ANSWER}\r\n".encode(), "fin"]),
    "not JSON": Case("upstream_error", steps=[BEGIN + chunk(event(f"{SECRET} {PROMPT} {ANSWER}".encode())), "fin"]),
    "not an event": Case("upstream_error", steps=[BEGIN + chunk(event({"choices": f"{SECRET} {PROMPT} {ANSWER}"}))]),
    "error in the stream": Case("upstream_error", steps=[BEGIN + chunk(event(ERROR)) + END], echoes=[PROMPT]),
    "error at once": Case("upstream_error", steps=[STREAM + chunk(event(ERROR)) + END], echoes=[PROMPT]),
    "cut": Case("truncated", steps=[BEGIN + END]),
    "cut in a tool call": Case("truncated", steps=[STREAM + chunk(ROLE, HALF_TOOL) + END]),
    "odd end": Case("stream.finished", steps=[BEGIN + chunk(delta({}, f"{ANSWER} reason"), DONE) + END]),
    "unknown client key": Case(
        "rejected", [asked(authorization=f"Bearer {CLIENT_KEY}x"), asked(authorization=None)], count=2
    ),
    "not a body": Case("rejected", [asked(f"{PROMPT} {PROMPT}".encode()), asked(b'{"' + PROMPT.encode())], count=2),
    "wrong fields": Case(
        "stream.finished", [asked({**PLAIN, name: value}) for name, value in WRONG.items()], count=len(WRONG)
    ),
    "wrong messages": Case(
        "rejected",
        [
            asked({**PLAIN, "messages": [{"role": PROMPT, "content": PROMPT}]}),
            asked({**PLAIN, "messages": [{"role": "user", "content": [{"type": PROMPT, PROMPT: PROMPT}]}]}),
            asked({**PLAIN, "messages": [{"role": "user", "content": {PROMPT: PROMPT}}]}),
        ],
        echoes=[PROMPT],
        count=3,
    ),
    "unknown model": Case("rejected", [asked({**PLAIN, "model": f"{PROMPT} {CLIENT_KEY}"})], echoes=[PROMPT, SECRET]),
    "key for a model": Case("stream.finished", [asked({**PLAIN, "model": f"first/{CLIENT_KEY}"})], echoes=[SECRET]),
    "fault of ours": Case("call.failed", middleware=["tests.gateway.test_canary.Broken"]),
}


# --- what is searched


class Log:
    """The log of this process, from ``debug`` up."""

    def __init__(self, path: Path, log_format: str) -> None:
        self._path = path
        self._is_json = log_format == "json"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._writer = configure_logs(level="debug", log_format=log_format, fd=fd)

    @property
    def text(self) -> str:
        """All that it says."""
        assert self._writer.flush(10)
        return self._path.read_text()

    def says(self, words: str) -> bool:
        """Return whether an event, a value, or a name and its value are in it."""
        name, _, value = words.partition(" ")
        if value:
            return (f'"{name}":{value}' if self._is_json else f"{name}={value}") in self.text
        return name in self.text

    async def wait(self, count: int) -> None:
        """Wait until so many calls have been told of."""
        async with asyncio.timeout(10):
            while self.text.count("stream.finished") < count:  # noqa: ASYNC110, a test may poll
                await asyncio.sleep(0.01)


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A log in either format, for all modules; each has a logger that keeps what it was first used with.

    A middleware that is imported later, by the chain that names it, would keep this one.
    """
    for entry in DEFAULT_MIDDLEWARE:
        import_module(entry.use.rpartition(".")[0])
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("gateway", "middleware") and hasattr(module, "log"):
            monkeypatch.setattr(module, "log", structlog.get_logger())
    yield Log(tmp_path / "log", request.param)
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LibraryHandler)]:
        root.removeHandler(handler)


def config(collector: Collector, middleware: Sequence[str] = (), base_url: str | None = None) -> dict[str, Any]:
    """Return a configuration with secrets in it: over two simulated providers, or over the one that is scripted."""
    wires = {"first": "openai", "second": "anthropic"} if base_url is None else {"first": "openai"}
    more = {} if base_url is None else {"base_url": base_url}
    models = {"first": "gpt-5-mini", "second": "claude-haiku-4-5"}
    return {
        "providers": {
            name: {"kind": kind, "api_key": "${PROVIDER_KEY}", "headers": {"x-team": f"{SECRET}-team"}, **more}
            for name, kind in wires.items()
        },
        "models": {"chat": {"targets": [f"{name}/{models[name]}" for name in wires]}},
        "middleware": [
            {"use": "middleware.observe.Observe"},
            {
                "use": "middleware.auth.Auth",
                "keys": [{"id": "web", "sha256": sha256(CLIENT_KEY.encode()).hexdigest()}],
            },
            {"use": "middleware.fallback.Fallback"},
            {"use": "middleware.resume.Resume", "max_attempts": 2},
            *({"use": use} for use in middleware),
        ],
        "telemetry": {"otlp_endpoint": collector.url, "otlp_headers": {"x-key": SECRET}},
    }


async def run(case: Case, make_gateway: MakeGateway, collector: Collector) -> tuple[Running, list[Answer]]:
    """Ask what the case asks; returns the gateway and its answers."""
    environ = {"PROVIDER_KEY": PROVIDER_KEY}
    if not case.steps:
        document = config(collector, case.middleware)
        running = await make_gateway(config=document, environ=environ, scripts=case.scripts, default=QUIET)
        return running, [await exchange(running.url, data) for data in case.requests]
    async with ScriptedUpstream(case.steps) as upstream:
        document = config(collector, case.middleware, upstream.url)
        running = await make_gateway(config=document, environ=environ)
        return running, [await exchange(running.url, data) for data in case.requests]


def errors_in(found: Answer) -> str:
    """Return what an answer tells of an error."""
    if found.status >= 400:
        return found.body.decode()
    return "\n".join(line for line in found.body.decode().splitlines() if '"error"' in line)


def check_answer(found: Answer, echoes: Sequence[str]) -> None:
    """See that an answer quotes nothing."""
    head, told = str(dict(found.headers)), errors_in(found)
    for bird in (SECRET, PROMPT, ANSWER):
        if bird not in echoes:
            assert bird not in head
            assert bird not in told
    if SECRET not in echoes:
        assert SECRET not in found.body.decode()


async def shown_to_operators(running: Running) -> str:
    """Return all that the admin port tells."""
    shown = ""
    for path in ("/metrics", "/admin/streams"):
        found = await exchange(running.admin_url, request(path, method="GET", connection="close"))
        assert found.status == 200
        shown += found.body.decode()
    return shown


def traced(collector: Collector) -> str:
    """Return all that the collector was sent, but for what the caller's own tracing says to it."""
    batches = collector.batches()
    for span in (
        span for batch in batches for one in batch.resource_spans for scope in one.scope_spans for span in scope.spans
    ):
        span.ClearField("trace_state")
    return "".join(map(str, batches))


# --- tests


@pytest.mark.parametrize("name", CASES)
async def test_no_bird_is_told(
    name: str, log: Log, make_gateway: MakeGateway, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever happens to a call, it is told what happened, and not in whose words."""
    case = CASES[name]
    running, answers = await run(case, make_gateway, collector)
    await log.wait(case.count)
    assert log.says(case.says), log.text
    shown = await shown_to_operators(running)
    await running.gateway.stop()
    spans = traced(collector)
    assert "millrace.outcome" in spans or not log.says("attempt.settled")
    for found in answers:
        check_answer(found, case.echoes)
    for bird in (SECRET, PROMPT, ANSWER):
        for told in (log.text, *capfd.readouterr()):
            assert bird not in told
        assert bird not in shown
        assert bird not in spans


async def test_no_bird_is_in_the_list_of_streams_in_flight(
    make_gateway: MakeGateway, log: Log, collector: Collector
) -> None:
    """A stream that is watched while it runs, and then left by its client."""
    stalled = broken(stall_after=9)
    running = await make_gateway(config=config(collector), environ={"PROVIDER_KEY": PROVIDER_KEY}, default=stalled)
    async with connected(running.url) as client:
        await client.send(asked(FULL))
        head = parse(await client.read_until(ANSWER.encode()))
        shown = await shown_to_operators(running)
    await log.wait(1)
    assert log.says("client_aborted")
    check_answer(head, [])
    for bird in (SECRET, PROMPT, ANSWER):
        assert bird not in shown + log.text


async def test_no_bird_is_told_when_the_gateway_stops(
    make_gateway: MakeGateway, log: Log, collector: Collector
) -> None:
    """Its clients are told why, and no more."""
    stalled = broken(stall_after=9)
    running = await make_gateway(config=config(collector), environ={"PROVIDER_KEY": PROVIDER_KEY}, default=stalled)
    async with connected(running.url) as client:
        await client.send(asked())
        await client.read_until(ANSWER.encode())
        await running.gateway.stop()
        found = parse(await client.read_all())
    await log.wait(1)
    assert log.says("drained")
    assert "gateway_stopping" in errors_in(found)
    check_answer(found, [])
    for bird in (SECRET, PROMPT, ANSWER):
        assert bird not in log.text + traced(collector)


async def test_no_bird_is_told_of_what_is_not_http(make_gateway: MakeGateway, log: Log, collector: Collector) -> None:
    """A request that cannot be read is refused without being shown."""
    running = await make_gateway(config=config(collector), environ={"PROVIDER_KEY": PROVIDER_KEY})
    birds = f"{SECRET} {PROMPT}"
    for data in (
        f"{birds}\r\n\r\n",
        f"POST {PATH} HTTP/1.1\r\n{birds}\r\n\r\n",
        f"POST {PATH} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{birds}\r\n",
        f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {birds}\r\n\r\n",
        f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-encoding: {birds}\r\ncontent-length: 2\r\n\r\n{{}}",
        f"GET /{SECRET}/{PROMPT}?{SECRET} HTTP/1.1\r\nhost: {SECRET}\r\norigin: http://{SECRET}\r\n\r\n",
    ):
        found = await exchange(running.url, data.encode())
        assert found.status >= 400
        check_answer(found, [])
    await running.gateway.stop()
    for bird in (SECRET, PROMPT):
        assert bird not in log.text
