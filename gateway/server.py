"""The one handler: a client's bytes become a call, the call goes through the pipeline, its events become bytes.

Every request passes the chain, also one that is refused before it reaches a provider: an unreadable body is a call
whose end raises what was wrong with it, so that whoever counts and logs misses nothing, and who shows no key learns
nothing.

``except Exception`` stands here and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web
from msgspec.structs import replace
from multidict import istr

from gateway.connection import known_of, whole_body
from gateway.core.call import Call, Flow, Route
from gateway.core.errors import (
    ClientError,
    ClientGone,
    GatewayError,
    GatewayStopping,
    InternalError,
    RequestTimeout,
    RequestTooLarge,
    Unauthorized,
    UpstreamError,
    unknown_model,
    without_frames,
)
from gateway.core.events import Event, StreamStarted
from gateway.core.ledger import Ledger, NoLedger
from gateway.core.trace import NO_TRACER, Trace, Tracer
from gateway.dialects import DIALECTS
from gateway.dialects.base import Dialect
from gateway.logs import bind_ids, unbind_ids
from gateway.pipeline import DRAINED, Authenticator, Middleware, Next, Send, compose
from gateway.reply import Port, Reply, header_lines
from gateway.stream import ClientStream

log = structlog.get_logger()

END_TIMEOUT_S = 2.0
"""How long calls that are ended by the gateway may take to say so."""

REQUEST_ID = web.RequestKey("request_id", str)

FORWARDED_HEADERS = tuple(
    (name, istr(name))  # which is found without being made small
    for name in ("anthropic-beta", "anthropic-version", "idempotency-key", "openai-beta", "traceparent", "tracestate")
)
_STREAM_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_WHOLE_LINES = header_lines({"content-type": "application/json"})
_AUTHORIZATION = istr("authorization")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the configuration says of the server, as far as a request is concerned."""

    heartbeat_s: float = 15.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Way:
    """What calls to one path have in common: its name, its dialect's name and the dialect, and lines of each head."""

    endpoint: str
    name: str
    dialect: Dialect
    stream_lines: str

    @classmethod
    def of(cls, endpoint: str, name: str) -> _Way:
        """Return the way to an endpoint that speaks a dialect."""
        dialect = DIALECTS[name]
        return cls(endpoint, name, dialect, header_lines({"content-type": dialect.content_type, **_STREAM_HEADERS}))


class Server:
    """Handles requests. ``route`` finds where calls for a model may go, ``models`` lists what may be asked for.

    Answers go out of ``port``. Every attempt that is made for one is settled in ``ledger``. ``tracer`` begins a trace
    of each, which whoever observes the call ends; its ids are on every line that is logged meanwhile, and the client
    is told of them.
    """

    def __init__(
        self,
        *,
        middlewares: Sequence[Middleware],
        endpoint: Next,
        route: Callable[[str], Route],
        models: Sequence[str],
        port: Port,
        options: ServerOptions,
        ledger: Ledger = NoLedger(),  # noqa: B008, it has no state
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._middlewares = middlewares
        self._authenticators = [item for item in middlewares if isinstance(item, Authenticator)]
        self._pipeline = compose(middlewares, endpoint)
        self._route = route
        self._models = tuple(models)
        self._default_model = models[0] if models else ""
        self._port = port
        self._options = options
        self._ledger = ledger
        self._tracer = tracer
        self._started_unix_s = int(time.time())
        self._live: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._streams: set[ClientStream] = set()
        self.chat_completions = partial(self._serve, _Way.of("chat_completions", "openai_chat"))
        """``POST /v1/chat/completions``."""
        self.chat_stream = partial(self._serve, _Way.of("chat_stream", "plain_text"))
        """``POST /api/chat/stream``."""

    @property
    def buffered_bytes(self) -> int:
        """How much was written to clients that their sockets have not taken."""
        return sum(stream.buffered_bytes for stream in self._streams)

    # --- endpoints

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        self._authenticate(_credential(request))
        return web.json_response({"object": "list", "data": [self._model(name) for name in self._models]})

    async def show_model(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models/{id}``; an id may be ``provider/model``."""
        self._authenticate(_credential(request))
        name = request.match_info["id"]
        if not self._route(name).targets:
            raise unknown_model(name)
        return web.json_response(self._model(name))

    def _model(self, name: str) -> Mapping[str, object]:
        owner = name.split("/", 1)[0] if "/" in name else "millrace"
        return {"id": name, "object": "model", "created": self._started_unix_s, "owned_by": owner}

    def _authenticate(self, credential: str | None) -> None:
        for authenticator in self._authenticators:
            authenticator.authenticate(credential)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all live calls have ended, for ``timeout_s`` at most; then end them, and tell their clients.

        Cancelled while it waits, it ends them at once.
        """
        try:
            await self._wait_until_ended(timeout_s)
        finally:
            for task in self._live:
                task.cancel(DRAINED)
            await self._wait_until_ended(END_TIMEOUT_S)

    async def _wait_until_ended(self, timeout_s: float) -> None:
        """Wait until no call is live; some may begin while others end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._live:
                    self._ended = asyncio.get_running_loop().create_future()
                    await self._ended

    # --- a call

    async def _serve(self, way: _Way, request: web.Request) -> web.StreamResponse:
        """Handle a call, and be known as live meanwhile."""
        task, dialect, pipeline = request.task, way.dialect, self._pipeline
        credential, forwarded = _said(request)
        self._live.add(task)
        try:
            call = Call(
                request_id=request[REQUEST_ID],
                endpoint=way.endpoint,
                dialect=way.name,
                model=self._default_model,
                credential=credential,
                headers=forwarded,
                received_at_s=time.monotonic(),
                created_unix_s=int(time.time()),
                ledger=self._ledger,
            )
            try:
                self._authenticate(credential)  # who has no key is refused before a byte of the body is read
                body = whole_body(request)  # which is there for most requests
                if body is None:
                    body = await self._body(request)
                elif len(body) > request.client_max_size:
                    raise _too_large(request)
                call = self._routed(request, dialect.parse(body, call))
                del body  # it may be long
            except ClientError as error:
                pipeline = compose(self._middlewares, _refuse(error))
            trace = self._tracer.begin(call)
            bound = bind_ids(call.request_id, trace.trace_id, trace.span_id)
            try:
                if call.stream:
                    return await self._stream(request, call, trace, way, pipeline)
                return await self._answer(request, _traced(call, trace), dialect, pipeline)
            except GatewayError as error:
                response = error_response(without_frames(error), call.request_id, dialect)
            finally:
                unbind_ids(bound)
            response.headers.update(_trace_headers(trace))
            return response
        finally:
            self._live.discard(task)
            del pipeline  # it may have the error
            del task  # it keeps what it was cancelled with, and by that this frame: nobody would ever clear that up
            if self._ended is not None and not self._live and not self._ended.done():
                self._ended.set_result(None)

    def _routed(self, request: web.Request, call: Call) -> Call:
        """Return a call that was read, with where it may go."""
        if call.stream and request.version < (1, 1):
            raise ClientError("streaming needs HTTP/1.1: without chunks a cut could not be told", status_code=505)
        return replace(call, received_at_s=time.monotonic(), route=self._route(call.model))

    async def _body(self, request: web.Request) -> bytes:
        """Wait for the body."""
        try:
            if (request.content_length or 0) > request.client_max_size:
                raise _too_large(request)
            async with asyncio.timeout(self._options.body_timeout_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise _too_large(request) from error
        except TimeoutError as error:
            raise RequestTimeout(f"the body did not arrive within {self._options.body_timeout_s:g} s") from error
        except (OSError, web.RequestPayloadError) as error:
            raise ClientError("the body broke off or is not what its headers say") from error

    async def _answer(self, request: web.Request, call: Call, dialect: Dialect, pipeline: Next) -> web.StreamResponse:
        """Collect a whole answer and send it."""
        events: list[Event] = []
        try:
            await pipeline(call, events.extend)
        except asyncio.CancelledError as error:
            if error.args == (DRAINED,):
                raise _stopping_at(request) from error
            raise
        except GatewayError:
            raise
        except Exception as error:
            raise _unexpected(error, call) from error
        started = next((event for event in events if type(event) is StreamStarted), None)
        headers = {**_target_headers(started), **_trace_headers(call.trace)}
        return Reply(self._port, call.endpoint, headers, dialect.answer(call, events), lines=_WHOLE_LINES)

    async def _stream(
        self, request: web.Request, call: Call, trace: Trace, way: _Way, pipeline: Next
    ) -> web.StreamResponse:
        """Run the pipeline into the client's socket: when the client leaves, aiohttp cancels it at once."""
        reply = Reply(self._port, call.endpoint, _trace_headers(trace), lines=way.stream_lines)
        options, begin = self._options, partial(_begin, request, reply)
        stream = ClientStream(
            way.dialect.encoder(call), begin, heartbeat_s=options.heartbeat_s, write_timeout_s=options.write_timeout_s
        )
        self._streams.add(stream)
        try:
            try:
                await pipeline(_traced(call, trace, stream), stream.send)
            except GatewayError:
                raise
            except Exception as error:
                raise _unexpected(error, call) from error
            stream.finish()
            if request.protocol.writing_paused:
                with suppress(ConnectionError):
                    await reply.write_eof()
        except asyncio.CancelledError as error:
            if error.args == (DRAINED,):  # it is not the client who has left
                if not stream.is_committed:
                    raise _stopping_at(request) from error
                await stream.fail(_stopping())
            raise
        except GatewayError as error:
            if not stream.is_committed:
                raise  # it can still be told by a status
            reply.force_close()
            await stream.fail(without_frames(error))
        finally:
            stream.close()
            self._streams.discard(stream)
        return reply


def _begin(request: web.Request, reply: Reply, started: StreamStarted | None) -> tuple[asyncio.WriteTransport, bytes]:
    """Return where a stream is written to, and its head; raises ``ClientGone`` when there is nobody to write to."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ClientGone("the client has left")
    head = reply.head(request, _target_headers(started))
    request.writer.output_size += len(head)  # by which aiohttp knows that no other answer can be sent
    return transport, head


def _stopping() -> GatewayStopping:
    return GatewayStopping("the gateway is stopping before the answer is complete")


def _stopping_at(request: web.Request) -> GatewayStopping:
    """Return the same for a request that is answered with it: its task lives on, as if it had not been cancelled."""
    request.task.uncancel()
    return _stopping()


def _too_large(request: web.Request) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {request.client_max_size} bytes")


def _unexpected(error: Exception, call: Call) -> InternalError:
    """Write down what nobody expected, and return what a client is told of it."""
    log.error("call.failed", exc_info=error, request_id=call.request_id, endpoint=call.endpoint)
    return InternalError("the gateway failed; the details are in its log under the request id")


def _refuse(error: ClientError) -> Next:
    async def refuse(call: Call, send: Send) -> None:  # noqa: ARG001, the signature of an endpoint
        raise error

    return refuse


def _traced(call: Call, trace: Trace, flow: Flow | None = None) -> Call:
    """Return the call with its trace and its flow, and with no headers for a provider but those it may be told."""
    return replace(call, trace=trace, headers=trace.headers_for(call.headers), flow=flow or call.flow)


def _trace_headers(trace: Trace) -> dict[str, str]:
    return {"traceparent": trace.told_client} if trace.told_client else {}


def _target_headers(started: StreamStarted | None) -> dict[str, str]:
    if started is None or not started.target:
        return {}
    return {"x-millrace-target": started.target, **started.headers}


def error_response(error: GatewayError, request_id: str, dialect: Dialect = DIALECTS["openai_chat"]) -> web.Response:
    """Return the HTTP error that tells ``error``, in the words of ``dialect``."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, UpstreamError):  # the gateway has tried what could be tried
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    response = web.Response(
        status=error.status_code,
        body=dialect.error_body(error, request_id),
        headers=headers,
        content_type="application/json",
    )
    if isinstance(error, RequestTooLarge | RequestTimeout):
        response.force_close()
    return response


def _said(request: web.Request) -> tuple[str | None, Mapping[str, str]]:
    """Return the client's key and what may go on to a provider, looked for once in a head that comes again."""
    known = known_of(request)
    said: tuple[str | None, Mapping[str, str]] | None = known.get("said")
    if said is None:
        said = known["said"] = _credential(request), _forwarded(request)
    return said


def _forwarded(request: web.Request) -> Mapping[str, str]:
    get = request.headers.get
    return {name: value for name, sought in FORWARDED_HEADERS if (value := get(sought))}


def _credential(request: web.Request) -> str | None:
    """Return the client's key, in whichever of the three forms it came."""
    scheme, _, key = request.headers.get(_AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or request.headers.get("x-goog-api-key") or None
