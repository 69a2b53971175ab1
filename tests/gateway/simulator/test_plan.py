"""Frames and a script become steps: when each is due and where the body breaks."""

import json
from dataclasses import replace

import pytest

from gateway.simulator.frames import Frame, Moment, data_line
from gateway.simulator.plan import LONG_LINE_BYTES, End, Extras, Send, make_plan
from gateway.simulator.script import Script

EXTRAS = Extras(ping=b"<ping>", error=b"<error>", late_text=b"<late>")
FRAMES = [
    Frame(Moment.START, b"<start>"),
    Frame(Moment.REASONING, b"<r1>", 1),
    Frame(Moment.REASONING, b"<r2>", 1),
    Frame(Moment.TEXT, b"<t1>", 1),
    Frame(Moment.TEXT, b"<t2>", 1),
    Frame(Moment.TEXT, b"<t3>", 1),
    Frame(Moment.TOOL, b"<call>"),
    Frame(Moment.TOOL, b"<a1>", 1),
    Frame(Moment.TOOL, b"<a2>", 1),
    Frame(Moment.FINISH, b"<finish>"),
    Frame(Moment.USAGE, b"<usage>"),
    Frame(Moment.END, b"<end>"),
]
WHOLE = "".join(frame.payload.decode() for frame in FRAMES)
QUICK = Script(first_token_s=0, interval_s=0)


def played(script: Script, frames: list[Frame] | None = None) -> tuple[str, End]:
    """Return all bytes and the end."""
    *sends, end = make_plan(frames or FRAMES, script, EXTRAS)
    assert isinstance(end, End)
    return "".join(send.payload.decode() for send in sends if isinstance(send, Send)), end


def due(script: Script) -> dict[str, float]:
    """Return when each payload is due; of equal ones the last."""
    return {step.payload.decode(): step.due_s for step in make_plan(FRAMES, script, EXTRAS) if isinstance(step, Send)}


def test_without_a_fault_everything_is_sent_and_ends_cleanly() -> None:
    """All frames in order, and a proper end."""
    assert played(QUICK) == (WHOLE, End(0, "clean", "finished"))


def test_tokens_are_due_at_a_steady_pace_after_the_first() -> None:
    """The head is at once, the first token after its delay, the rest by interval, the end with the last token."""
    times = due(Script(first_token_s=1, interval_s=0.5))
    assert times["<start>"] == 0
    assert [times[name] for name in ("<r1>", "<r2>", "<t1>", "<a2>", "<end>")] == [1, 1.5, 2, 4, 4]


def test_a_piece_of_many_tokens_is_due_when_the_last_of_them_is() -> None:
    """A whole tool call takes as long as its tokens."""
    call = Frame(Moment.TOOL, b"<whole call>", 10)
    send = next(make_plan([call], Script(first_token_s=1, interval_s=0.5), EXTRAS))
    assert send == Send(5.5, b"<whole call>", 10)


def test_a_stall_delays_what_comes_after_and_pings_in_the_meantime() -> None:
    """After two tokens nothing but pings for ten seconds."""
    script = replace(QUICK, stall_after=2, stall_s=10, stall_ping_s=4)
    steps = [(step.due_s, step.payload) for step in make_plan(FRAMES, script, EXTRAS) if isinstance(step, Send)]
    assert steps[2:6] == [(0, b"<r2>"), (4, b"<ping>"), (8, b"<ping>"), (10, b"<t1>")]


def test_a_stall_before_the_first_token_sends_the_head_first() -> None:
    """`stall_after=0` is a provider that has taken the request and says nothing."""
    times = due(replace(QUICK, stall_after=0, stall_s=5))
    assert times["<start>"] == 0
    assert times["<r1>"] == 5


@pytest.mark.parametrize("how", ["fin", "rst", "clean"])
@pytest.mark.parametrize(("count", "last"), [(0, "<start>"), (1, "<r1>"), (4, "<t2>"), (7, "<a2>")])
def test_a_cut_after_tokens_sends_exactly_those(how: str, count: int, last: str) -> None:
    """What ends the body is as the script says."""
    text, end = played(replace(QUICK, cut_after_tokens=count, cut=how))  # type: ignore[arg-type] # a parameter
    assert text == WHOLE[: WHOLE.index(last) + len(last)]
    assert (end.how, end.outcome) == (how, "cut")


def test_a_cut_beyond_the_last_token_never_comes() -> None:
    """The answer is over before."""
    assert played(replace(QUICK, cut_after_tokens=8))[1].outcome == "finished"


@pytest.mark.parametrize("count", range(len(WHOLE) + 1))
def test_a_cut_after_bytes_sends_exactly_those(count: int) -> None:
    """Also in the middle of an event."""
    text, end = played(replace(QUICK, cut_after_bytes=count))
    assert text == WHOLE[:count]
    assert end.outcome == "cut"


@pytest.mark.parametrize(
    ("part", "last"),
    [
        ("start", "<start>"),
        ("reasoning", "<r1>"),
        ("text", "<t1>"),
        ("tool", "<call>"),
        ("finish", "<finish>"),
        ("usage", "<usage>"),
    ],
)
def test_a_cut_in_a_moment_keeps_what_came_before(part: str, last: str) -> None:
    """Half of what is said, or all up to and with the finish or the usage."""
    text, end = played(replace(QUICK, cut_in=part))  # type: ignore[arg-type] # a parameter
    assert text == WHOLE[: WHOLE.index(last) + len(last)]
    assert (end.how, end.outcome) == ("fin", "cut")


def test_a_cut_in_a_moment_that_never_comes_cuts_nothing() -> None:
    """An answer without tools cannot break in one."""
    frames = [frame for frame in FRAMES if frame.moment is not Moment.TOOL]
    assert played(replace(QUICK, cut_in="tool"), frames)[1].outcome == "finished"
    assert played(replace(QUICK, half_tool=True), frames)[1].outcome == "finished"


def test_a_moment_in_one_piece_is_cut_inside_it() -> None:
    """Where a wire sends a call whole, the cut is in its bytes."""
    frames = [Frame(Moment.START, b"<start>"), Frame(Moment.TOOL, b"<whole call>", 8), Frame(Moment.END, b"<end>")]
    assert played(replace(QUICK, cut_in="tool"), frames)[0] == "<start><whole"
    assert played(replace(QUICK, half_tool=True), frames)[0] == "<start><whole"


def test_half_a_tool_call_lacks_the_last_of_its_arguments() -> None:
    """All but the last piece is sent, in whole events."""
    assert played(replace(QUICK, half_tool=True))[0] == WHOLE[: WHOLE.index("<a2>")]


def test_an_error_comes_after_so_many_tokens_and_ends_the_body() -> None:
    """Or first of all, before even the start."""
    text, end = played(replace(QUICK, error_after=3))
    assert text == WHOLE[: WHOLE.index("<t2>")] + "<error>"
    assert (end.how, end.outcome) == ("clean", "error_event")
    assert played(replace(QUICK, error_first=True))[0] == "<error>"


def test_without_an_end_marker_the_finish_is_what_is_missing() -> None:
    """`no_end` drops the marker; on a wire that has none, the finish and all after it."""
    assert played(replace(QUICK, no_end=True)) == (WHOLE.removesuffix("<end>"), End(0, "clean", "finished"))
    assert played(replace(QUICK, no_end=True), FRAMES[:-1])[0] == WHOLE[: WHOLE.index("<finish>")]


def test_something_can_come_after_the_finish() -> None:
    """Text, or the finish again."""
    assert "<finish><late><usage>" in played(replace(QUICK, after_finish="text"))[0]
    assert "<finish><finish><usage>" in played(replace(QUICK, after_finish="duplicate"))[0]


def test_a_malformed_event_has_its_end_but_not_its_json() -> None:
    """One event is broken, all others are whole."""
    frames = [Frame(Moment.TEXT, data_line({"text": token}), 1) for token in "abc"]
    text, _ = played(replace(QUICK, malformed_after=1), frames)
    first, broken, last = text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: ")) == {"text": "a"}
    assert json.loads(last.removeprefix("data: ")) == {"text": "c"}
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken.removeprefix("data: "))


def test_a_long_line_is_still_json() -> None:
    """More than a megabyte of white space inside the object changes nothing else."""
    frames = [Frame(Moment.TEXT, data_line({"text": token}), 1) for token in "abc"]
    text, _ = played(replace(QUICK, long_line_after=1), frames)
    line = text.split("\n\n")[1]
    assert len(line) > LONG_LINE_BYTES
    assert json.loads(line.removeprefix("data: ")) == {"text": "b"}
