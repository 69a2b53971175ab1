"""The simulator's server: sockets and the clock, and nothing that knows a provider.

One task per stream and no other. A token is one write; whatever is due at the same time is written together, and
times count from the beginning of the answer, so that tokens do not drift. A client that leaves cancels its handler
(`handler_cancellation`), which is how that is noticed at once. A connection is reset by closing it with a linger
time of zero after everything sent has left our buffer.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from gateway.simulator.account import Account, Record
from gateway.simulator.ask import Complaint, Incoming
from gateway.simulator.frames import to_json
from gateway.simulator.performance import Performance, perform
from gateway.simulator.plan import End, Send
from gateway.simulator.script import Cut, Script, ScriptError, parse_script, split_model
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import MODELS, Route, base_path, find_route, split_target

_FLUSH_BYTES: Final = 65_536
_MOST_BODY_BYTES: Final = 64 * 1024 * 1024
_BACKLOG: Final = 4096
_SHUTDOWN_S: Final = 0.05  # handlers have been cancelled by then; zero would mean for ever
_DRAIN_POLL_S: Final = 0.001
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_WELCOME: Final = """\
This is Millrace's simulator. It speaks the wires of OpenAI, Anthropic, Gemini, Mistral, Llama and their relatives.

  curl -N {base}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "mill", "stream": true, "messages": [{{"role": "user", "content": "What does a weir do?"}}]}}'

It breaks when told to: ask for the model "mill?cut_after_tokens=20&cut=rst". What it was asked: {base}/_sim/requests
"""


@dataclass(frozen=True, slots=True)
class _Queued:
    script: Script
    path: str = ""


class _CloseDelimited(web.StreamResponse):
    """A response that is over when its connection is: neither chunked nor of a known length."""

    _length_check = False


class Simulator:
    """A provider that can be told how to fail.

    `scripts` are used up one per request, in order; afterwards, and for whatever they leave open, `default` holds.
    A script in the model's name goes before both. Use it with `async with`, or `start` and `stop` it.
    """

    def __init__(self, scripts: Iterable[Script | str] = (), *, default: Script | None = None) -> None:
        self._default = default or Script()
        self._queue: list[_Queued] = []
        self._account = Account()
        self._players: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._runner: web.AppRunner | None = None
        self._origin = ""
        self.enqueue(*scripts)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def requests(self) -> list[Record]:
        """Records of what was asked, oldest first; one that is still being answered is "open"."""
        return list(self._account.records)

    @property
    def origin(self) -> str:
        """Scheme, host and port, once started."""
        return self._origin

    def base_url(self, kind: str = "openai-compatible") -> str:
        """Return the base URL for a provider kind, or for a host such as `groq`; raises `ValueError` for others."""
        return self._origin + base_path(kind)

    def enqueue(self, *scripts: Script | str, path: str = "") -> None:
        """Add scripts for the next requests, or for the next whose path begins with `path`."""
        self._queue += [
            _Queued(one if isinstance(one, Script) else parse_script(one, self._default), path) for one in scripts
        ]

    def clear_scripts(self) -> int:
        """Drop the scripts that were not used; returns how many there were."""
        count = len(self._queue)
        self._queue.clear()
        return count

    def make_app(self) -> web.Application:
        """Return the simulator as an application, to be mounted or served by someone else.

        Serve it with `handler_cancellation=True`, or clients that leave are noticed only when written to.
        """
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.router.add_get("/", self._welcome)
        app.router.add_post("/_sim/scripts", self._post_scripts)
        app.router.add_delete("/_sim/scripts", self._delete_scripts)
        app.router.add_get("/_sim/requests", self._get_requests)
        app.router.add_delete("/_sim/requests", self._delete_requests)
        app.router.add_route("*", "/{anything:.*}", self._handle)
        return app

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port, which the system picks when it is 0."""
        self._is_stopping = False
        self._runner = web.AppRunner(
            self.make_app(), handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        port = int(self._runner.addresses[0][1])
        self._origin = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return port

    async def stop(self) -> None:
        """End every stream and stop listening."""
        self._is_stopping = True
        for player in self._players:
            player.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw_path, raw_query = split_target(request.raw_path)
        body = _decoded(await request.read())
        model = str(body.get("model") or "") if isinstance(body, dict) else ""
        route = find_route(request.method, raw_path, model)
        if route is None:
            return _http(HttpAnswer(404, to_json({"error": {"message": f"No provider has {raw_path}."}})))
        record = self._account.begin(raw_path, time.monotonic())
        headers = {name.lower(): value for name, value in request.headers.items()}
        record.wire, record.headers = route.wire.name, headers
        name, script_text = split_model(route.model or model)
        record.model, record.script = name, script_text
        reply = Reply(f"{id(self):x}.{record.serial}", int(time.time()), name)
        if route.is_models:
            return self._ended(record, HttpAnswer(200, to_json(route.wire.models(MODELS, reply))))
        self._account.keep_body(record, body)
        if not isinstance(body, dict):
            complaint = Complaint(status=400, message="We could not parse the JSON body of your request.")
            return self._ended(record, route.wire.http_error(complaint, reply))
        try:
            script = self._script_for(script_text, raw_path)
        except ScriptError as error:
            complaint = Complaint(status=400, message=str(error), param="model")
            return self._ended(record, route.wire.http_error(complaint, reply))
        reply = Reply(reply.serial, reply.created_s, name, has_usage=not script.no_usage)
        query = dict(parse_qsl(raw_query, keep_blank_values=True))
        incoming = Incoming(raw_path, name, body, headers, query, route.is_stream_path)
        return await self._accompanied(request, route, incoming, script, reply, record)

    def _script_for(self, text: str, path: str) -> Script:
        if text:
            return parse_script(text, self._default)
        for place, queued in enumerate(self._queue):
            if path.startswith(queued.path):
                return self._queue.pop(place).script
        return self._default

    async def _accompanied(
        self, request: web.Request, route: Route, incoming: Incoming, script: Script, reply: Reply, record: Record
    ) -> web.StreamResponse:
        """Answer, and whatever happens note how it ended."""
        task = asyncio.current_task()
        if task is not None:
            self._players.add(task)
            task.add_done_callback(self._players.discard)
        try:
            if script.head_s:
                await asyncio.sleep(script.head_s)
            if script.refuse:
                record.end("refused", time.monotonic())
                response = web.StreamResponse()
                await _hang_up(request, script.refuse)
                return response
            answer = perform(route.wire, incoming, script, reply)
            if isinstance(answer, HttpAnswer):
                return self._ended(record, answer)
            return await self._play(request, answer, record)
        except asyncio.CancelledError:
            record.end("stopped" if self._is_stopping else "client_gone", time.monotonic())
            raise
        except ConnectionError:
            record.end("client_gone", time.monotonic())
            return web.Response(status=499)

    async def _play(self, request: web.Request, performance: Performance, record: Record) -> web.StreamResponse:
        record.status, record.is_stream = 200, performance.is_stream
        record.way, record.is_continuation = performance.way, bool(performance.way)
        response = _stream_response(performance)
        await response.prepare(request)
        pen = _Pen(response, record, performance.split_bytes)
        loop = asyncio.get_running_loop()
        began_at_s = loop.time()
        for step in performance.steps:
            wait_s = began_at_s + step.due_s - loop.time()
            if wait_s > 0:
                await pen.flush()
                await asyncio.sleep(wait_s)
            if isinstance(step, End):
                await pen.flush()
                record.end(step.outcome, time.monotonic())
                if step.how != "clean":
                    await _hang_up(request, step.how)
                break
            await pen.write(step)
        return response

    def _ended(self, record: Record, answer: HttpAnswer) -> web.Response:
        record.status, record.bytes_sent = answer.status, len(answer.body)
        record.end("finished" if answer.status < 400 else "rejected", time.monotonic())
        return _http(answer)

    async def _welcome(self, _request: web.Request) -> web.Response:
        return web.Response(text=_WELCOME.format(base=self._origin))

    async def _post_scripts(self, request: web.Request) -> web.Response:
        entries, faults = _decoded(await request.read()), []
        queued: list[_Queued] = []
        for place, entry in enumerate(entries if isinstance(entries, list) else [None]):
            text, path = (entry, "") if isinstance(entry, str) else _script_and_path(entry)
            if text is None:
                faults.append(f"entry {place}: expected a script, or an object with script and path")
                continue
            try:
                queued.append(_Queued(parse_script(text, self._default), path))
            except ScriptError as error:
                faults += [f"entry {place}: {fault}" for fault in error.faults]
        if faults:
            return _http(HttpAnswer(400, to_json({"errors": faults})))
        self._queue += queued
        return _http(HttpAnswer(200, to_json({"queued": len(self._queue)})))

    async def _delete_scripts(self, _request: web.Request) -> web.Response:
        return _http(HttpAnswer(200, to_json({"dropped": self.clear_scripts()})))

    async def _get_requests(self, request: web.Request) -> web.Response:
        with_body = request.query.get("bodies") == "1"
        records = [record.public(with_body=with_body) for record in self._account.records]
        return _http(HttpAnswer(200, to_json({"requests": records})))

    async def _delete_requests(self, _request: web.Request) -> web.Response:
        return _http(HttpAnswer(200, to_json({"dropped": self._account.clear()})))


class _Pen:
    """Writes a body: gathers what is due together, keeps count, and splits if it is told to."""

    def __init__(self, response: web.StreamResponse, record: Record, split_bytes: int) -> None:
        self._response = response
        self._record = record
        self._split_bytes = split_bytes
        self._pending = bytearray()
        self._pending_tokens = 0

    async def write(self, step: Send) -> None:
        """Take up what is due; it is written when nothing else is."""
        self._pending += step.payload
        self._pending_tokens += step.token_count
        if len(self._pending) >= _FLUSH_BYTES:
            await self.flush()
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what was taken up, as one chunk or as many small ones."""
        payload = bytes(self._pending)
        self._pending.clear()
        size = self._split_bytes or len(payload) or 1
        for at in range(0, len(payload), size):
            await self._response.write(payload[at : at + size])
            if self._split_bytes:
                await asyncio.sleep(0)
        self._record.bytes_sent += len(payload)
        self._record.tokens_sent += self._pending_tokens
        self._pending_tokens = 0


def _stream_response(performance: Performance) -> web.StreamResponse:
    headers = {**performance.headers, "content-type": performance.content_type}
    if performance.is_stream:
        headers["cache-control"] = "no-cache"
    if performance.is_close_delimited:
        response: web.StreamResponse = _CloseDelimited(headers=headers)
        response.force_close()
        return response
    response = web.StreamResponse(headers=headers)
    response.content_length = performance.content_length
    return response


async def _hang_up(request: web.Request, how: Cut) -> None:
    """Close the connection in mid-answer: with FIN, or with RST once all that was sent has left."""
    transport = request.transport
    if transport is None:
        return
    if how == "rst":
        while transport.get_write_buffer_size():
            await asyncio.sleep(_DRAIN_POLL_S)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    else:
        transport.close()


def _http(answer: HttpAnswer) -> web.Response:
    headers = {**answer.headers, "content-type": answer.content_type}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError:
        return None


def _script_and_path(entry: Any) -> tuple[str | None, str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("script"), str):
        return None, ""
    return entry["script"], str(entry.get("path") or "")
