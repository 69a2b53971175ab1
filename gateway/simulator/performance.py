"""From one request to what is sent back and when: an HTTP answer, or a body to be played step by step.

Holds what all wires share - keys, unknown models, the faults that come before the first byte. Pure: bytes and times
out, no socket.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.simulator.ask import Ask, Complaint, Incoming, Rejected
from gateway.simulator.frames import Frame, Moment
from gateway.simulator.plan import Extras, Step, make_plan
from gateway.simulator.scene import Scene, stage
from gateway.simulator.script import Script
from gateway.simulator.wires.base import HttpAnswer, Reply, Wire

WRONG_KEY: Final = "wrong-key"
NO_SUCH_MODEL: Final = "no-such-model"

_KEY_HEADERS: Final = ("x-api-key", "x-goog-api-key", "api-key")
_BAD_KEY: Final = Complaint(status=401)
_NO_MODEL: Final = Complaint(status=404)
_BROKE: Final = Complaint(status=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """A body to be played. Without a `content_length` it is chunked, or ends with the connection."""

    steps: Iterator[Step]
    content_type: str
    way: str
    is_stream: bool
    headers: Mapping[str, str] = field(default_factory=dict)
    content_length: int | None = None
    is_close_delimited: bool = False
    split_bytes: int = 0


def perform(wire: Wire, incoming: Incoming, script: Script, reply: Reply) -> HttpAnswer | Performance:
    """Answer a request as its provider would, or as the script wants it to go wrong."""
    reply = replace(reply, has_usage=not script.no_usage)
    try:
        _check(incoming, script)
        ask = wire.parse(incoming, script)
        scene = stage(ask, script)
    except Rejected as rejected:
        return wire.http_error(rejected.complaint, reply)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:  # a field is odd
        message = f"The request could not be read: {type(error).__name__}: {error}"
        return wire.http_error(Complaint(status=400, message=message), reply)
    return _streamed(wire, ask, scene, script, reply) if ask.is_stream else _whole(wire, ask, scene, script, reply)


def _check(incoming: Incoming, script: Script) -> None:
    if script.status:
        raise Rejected(Complaint(status=script.status, code=script.error_code, retry_after_s=script.retry_after_s))
    if WRONG_KEY in _keys(incoming):
        raise Rejected(_BAD_KEY)
    if incoming.model.startswith(NO_SUCH_MODEL):
        raise Rejected(_NO_MODEL)


def _keys(incoming: Incoming) -> Iterator[str]:
    yield incoming.headers.get("authorization", "").removeprefix("Bearer ").strip()
    yield incoming.query.get("key", "")
    for name in _KEY_HEADERS:
        yield incoming.headers.get(name, "")


def _streamed(wire: Wire, ask: Ask, scene: Scene, script: Script, reply: Reply) -> Performance:
    failure = Complaint(status=script.error_status, code=script.error_code)
    extras = Extras(
        ping=wire.ping(ask, reply),
        error=wire.error_event(failure, ask, reply),
        late_text=wire.late_text(ask, reply),
    )
    return Performance(
        steps=make_plan(wire.stream(ask, scene, reply), script, extras),
        content_type=wire.content_type(ask),
        way=scene.way,
        is_stream=True,
        headers=wire.headers(reply),
        is_close_delimited=script.close_delimited,
        split_bytes=script.split_bytes,
    )


def _whole(wire: Wire, ask: Ask, scene: Scene, script: Script, reply: Reply) -> HttpAnswer | Performance:
    if script.error_after is not None and not script.error_first:
        return wire.http_error(_BROKE, reply)
    body = wire.whole(ask, scene, reply)
    if script.error_first:
        body = wire.http_error(Complaint(status=script.error_status, code=script.error_code), reply).body
    frames = [Frame(Moment.TEXT, body, scene.output_tokens)]
    nothing = Extras(ping=b" ", error=body, late_text=b"")
    return Performance(
        steps=make_plan(frames, script, nothing),
        content_type="application/json",
        way=scene.way,
        is_stream=False,
        headers=wire.headers(reply),
        content_length=None if script.shapes_body else len(body),
        is_close_delimited=script.close_delimited,
        split_bytes=script.split_bytes,
    )
