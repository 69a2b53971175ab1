"""The simulator's server: which script a request gets, what is kept of it, and how it is told to fail over HTTP.

One task per stream and no other. A client that leaves cancels its handler (`handler_cancellation`), which is how
that is noticed at once.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from gateway.simulator.account import Account, Record
from gateway.simulator.ask import Incoming, Rejected, invalid
from gateway.simulator.frames import to_json
from gateway.simulator.performance import Performance, perform
from gateway.simulator.player import hang_up, http_response, play
from gateway.simulator.script import Script, ScriptError, parse_script, split_model
from gateway.simulator.wires.base import HttpAnswer, Reply
from gateway.simulator.wires.routes import MODELS, base_path, find_route, split_target

_MOST_BODY_BYTES: Final = 64 * 1024 * 1024
_BACKLOG: Final = 4096
_SHUTDOWN_S: Final = 0.05  # handlers have been cancelled by then; zero would mean for ever

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
        path, query = split_target(request.raw_path)
        body = _decoded(await request.read())
        model = str(body.get("model") or "") if isinstance(body, dict) else ""
        route = find_route(request.method, path, model)
        if route is None:
            return http_response(HttpAnswer(404, to_json({"error": {"message": f"No provider has {path}."}})))
        if route.is_models:
            listing = route.wire.models(MODELS, Reply("models", int(time.time()), ""))
            return http_response(HttpAnswer(200, to_json(listing)))
        record = self._account.begin(path, time.monotonic())
        record.wire = route.wire.name
        record.headers = {name.lower(): value for name, value in request.headers.items()}
        record.model, record.script = split_model(route.model or model)
        reply = Reply(f"{id(self):x}.{record.serial}", int(time.time()), record.model)
        self._account.keep_body(record, body)
        try:
            script = self._script_for(record)
            incoming = _incoming(record, query, is_stream_path=route.is_stream_path)
        except Rejected as rejected:
            return _ended(record, route.wire.http_error(rejected.complaint, reply))
        return await self._accompanied(request, record, script, lambda: perform(route.wire, incoming, script, reply))

    def _script_for(self, record: Record) -> Script:
        if record.script:
            try:
                return parse_script(record.script, self._default)
            except ScriptError as error:
                raise invalid(str(error), param="model") from error
        for place, queued in enumerate(self._queue):
            if record.path.startswith(queued.path):
                return self._queue.pop(place).script
        return self._default

    async def _accompanied(
        self, request: web.Request, record: Record, script: Script, answer: Callable[[], HttpAnswer | Performance]
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
                await hang_up(request, script.refuse)
                return web.Response(status=499)
            played = answer()
            if isinstance(played, HttpAnswer):
                return _ended(record, played)
            return await play(request, played, record)
        except asyncio.CancelledError:
            record.end("stopped" if self._is_stopping else "client_gone", time.monotonic())
            raise
        except ConnectionError:
            record.end("client_gone", time.monotonic())
            return web.Response(status=499)

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
            return http_response(HttpAnswer(400, to_json({"errors": faults})))
        self._queue += queued
        return http_response(HttpAnswer(200, to_json({"queued": len(self._queue)})))

    async def _delete_scripts(self, _request: web.Request) -> web.Response:
        return http_response(HttpAnswer(200, to_json({"dropped": self.clear_scripts()})))

    async def _get_requests(self, request: web.Request) -> web.Response:
        with_body = request.query.get("bodies") == "1"
        records = [record.public(with_body=with_body) for record in self._account.records]
        return http_response(HttpAnswer(200, to_json({"requests": records})))

    async def _delete_requests(self, _request: web.Request) -> web.Response:
        return http_response(HttpAnswer(200, to_json({"dropped": self._account.clear()})))


def _ended(record: Record, answer: HttpAnswer) -> web.Response:
    record.status, record.bytes_sent = answer.status, len(answer.body)
    record.end("finished" if answer.status < 400 else "rejected", time.monotonic())
    return http_response(answer)


def _incoming(record: Record, query: str, *, is_stream_path: bool) -> Incoming:
    if not isinstance(record.body, dict):
        raise invalid("We could not parse the JSON body of your request.")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    return Incoming(record.path, record.model, record.body, record.headers, parameters, is_stream_path)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError:
        return None


def _script_and_path(entry: Any) -> tuple[str | None, str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("script"), str):
        return None, ""
    return entry["script"], str(entry.get("path") or "")
