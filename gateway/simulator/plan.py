"""When each byte is sent and where the body breaks: frames and a script in, timed steps out.

The steps are an iterator, so what is never sent is never made. Knows neither wires nor sockets nor a clock;
`due_s` counts from the moment the response head was sent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from gateway.simulator.frames import Frame, Moment
from gateway.simulator.script import Cut, Script

LONG_LINE_BYTES: Final = 1_100_000

_SAID: Final = {"reasoning": Moment.REASONING, "tool": Moment.TOOL, "text": Moment.TEXT}
_PASSED: Final = {
    "start": (Moment.START,),
    "finish": (Moment.START, Moment.REASONING, Moment.TEXT, Moment.TOOL, Moment.FINISH),
    "usage": tuple(moment for moment in Moment if moment is not Moment.END),
}


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes when they are due."""

    due_s: float
    payload: bytes
    token_count: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The body is over: whole, cut off, or closed after the provider's own error."""

    due_s: float
    how: Cut
    outcome: Literal["finished", "cut", "error_event"]


Step = Send | End


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What only the wire can write: its ping, its error event, and text that comes when all is said."""

    ping: bytes
    error: bytes
    late_text: bytes


def make_plan(frames: Iterable[Frame], script: Script, extras: Extras) -> Iterator[Step]:
    """Yield what to send and when, ending with exactly one `End`."""
    kept: Iterable[Frame] = frames
    is_cut = False
    if script.no_end:
        kept = _without_end(list(kept))
    if script.after_finish:
        kept = _with_late_frame(list(kept), script, extras)
    if script.half_tool:
        kept, is_cut = _cut_in_arguments(list(kept))
    if script.cut_in:
        kept, is_cut = _cut_in(list(kept), script.cut_in)
    if script.malformed_after is not None or script.long_line_after is not None:
        kept = _damaged(kept, script)
    steps = _timed(kept, script, extras, last="cut" if is_cut else "finished")
    return _cut_at_byte(steps, script) if script.cut_after_bytes is not None else steps


def _timed(frames: Iterable[Frame], script: Script, extras: Extras, last: Literal["cut", "finished"]) -> Iterator[Step]:
    if script.error_first:
        yield Send(script.first_token_s, extras.error)
        yield End(script.first_token_s, "clean", "error_event")
        return
    said, due_s, stalled_s = 0, 0.0, 0.0
    for frame in frames:
        if frame.moment is not Moment.START:
            ahead = said + frame.token_count
            if not stalled_s and _is_past(script.stall_after, said, ahead):
                yield from _pings(due_s, script, extras)
                stalled_s = script.stall_s
                due_s += stalled_s
            if _is_past(script.error_after, said, ahead):
                yield Send(due_s, extras.error)
                yield End(due_s, "clean", "error_event")
                return
            if _is_past(script.cut_after_tokens, said, ahead):
                yield End(due_s, script.cut, "cut")
                return
            due_s = max(due_s, script.first_token_s + max(0, ahead - 1) * script.interval_s + stalled_s)
        yield Send(due_s, frame.payload, frame.token_count)
        said += frame.token_count
    yield End(due_s, script.cut if last == "cut" else "clean", last)


def _is_past(limit: int | None, said: int, ahead: int) -> bool:
    """Whether the frame that takes the count from `said` to `ahead` lies beyond the limit."""
    return limit is not None and (said >= limit or ahead > limit)


def _pings(from_s: float, script: Script, extras: Extras) -> Iterator[Step]:
    if script.stall_ping_s > 0:
        for count in range(1, int(script.stall_s / script.stall_ping_s) + 1):
            yield Send(from_s + count * script.stall_ping_s, extras.ping)


def _cut_at_byte(steps: Iterator[Step], script: Script) -> Iterator[Step]:
    left = script.cut_after_bytes or 0
    for step in steps:
        if isinstance(step, Send):
            if len(step.payload) >= left:
                yield Send(step.due_s, step.payload[:left])
                yield End(step.due_s, script.cut, "cut")
                return
            left -= len(step.payload)
        yield step


def _without_end(frames: list[Frame]) -> Iterator[Frame]:
    """Drop the end marker; on a wire without one, the frame that says that the answer is finished."""
    has_marker = any(frame.moment is Moment.END for frame in frames)
    dropped = Moment.END if has_marker else Moment.FINISH
    for frame in frames:
        if frame.moment is dropped:
            return
        yield frame


def _with_late_frame(frames: list[Frame], script: Script, extras: Extras) -> Iterator[Frame]:
    finishes = [place for place, frame in enumerate(frames) if frame.moment is Moment.FINISH]
    for place, frame in enumerate(frames):
        yield frame
        if finishes and place == finishes[-1]:
            yield Frame(Moment.FINISH, extras.late_text if script.after_finish == "text" else frame.payload)


def _cut_in_arguments(frames: list[Frame]) -> tuple[list[Frame], bool]:
    """Stop before the last piece of tool arguments, or inside it where a call comes in one piece."""
    pieces = [place for place, frame in enumerate(frames) if frame.moment is Moment.TOOL and frame.token_count]
    if not pieces:
        return frames, False
    last = frames[pieces[-1]]
    return frames[: pieces[-1]] + ([_halved(last)] if last.token_count > 1 else []), True


def _cut_in(frames: list[Frame], part: str) -> tuple[list[Frame], bool]:
    """Stop half-way through what is said in a moment, or when a moment is over; if it comes at all."""
    if part not in _SAID:
        return [frame for frame in frames if frame.moment in _PASSED[part]], True
    places = [place for place, frame in enumerate(frames) if frame.moment is _SAID[part]]
    if not places:
        return frames, False
    if len(places) == 1:
        return [*frames[: places[0]], _halved(frames[places[0]])], True
    return frames[: places[len(places) // 2]], True


def _halved(frame: Frame) -> Frame:
    return replace(frame, payload=frame.payload[: len(frame.payload) // 2])


def _damaged(frames: Iterable[Frame], script: Script) -> Iterator[Frame]:
    said = 0
    damages = [
        (limit, damage)
        for limit, damage in ((script.malformed_after, _malformed), (script.long_line_after, _long))
        if limit is not None
    ]
    for frame in frames:
        due = [one for one in damages if frame.token_count and _is_past(one[0], said, said + frame.token_count)]
        said += frame.token_count
        damages = [one for one in damages if one not in due]
        yield replace(frame, payload=due[0][1](frame.payload)) if due else frame


def _malformed(payload: bytes) -> bytes:
    """Lose the second half of an event's JSON, but not the event's end."""
    body = payload.rstrip()
    return body[: len(body) // 2 + 4] + payload[len(body) :]


def _long(payload: bytes) -> bytes:
    """Pad an event's JSON with white space, which is legal, to one line of more than a megabyte."""
    at = payload.rindex(b"}")
    return payload[:at] + b" " * LONG_LINE_BYTES + payload[at:]
