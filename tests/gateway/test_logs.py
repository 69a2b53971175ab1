import asyncio
import fcntl
import gc
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import pytest
import structlog

from gateway.core.errors import UpstreamFailed
from gateway.logs import (
    LEVELS,
    MAX_CHAIN,
    MAX_CHARACTERS,
    MAX_FRAMES,
    MAX_ITEMS,
    MAX_MESSAGE_CHARACTERS,
    LibraryHandler,
    LogWriter,
    bind_ids,
    clean,
    clean_words,
    configure_logs,
    current_writer,
    show_exception,
    unbind_ids,
)
from gateway.schema import Secret

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    """Leave structlog and the standard library's logging as they were found."""
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LibraryHandler)]:
        root.removeHandler(handler)


class Log:
    """A log that is set up to go to a file, and what it says."""

    def __init__(self, path: Path, *, level: str = "info", log_format: str = "json") -> None:
        self.path = path
        self.writer = configure_logs(
            level=level, log_format=log_format, fd=os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        )

    @property
    def text(self) -> str:
        """All that was written."""
        assert self.writer.flush(10)
        return self.path.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Each line, decoded."""
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def line(self) -> dict[str, Any]:
        """The only line."""
        (line,) = self.lines
        return line

    @property
    def fields(self) -> dict[str, Any]:
        """What the only line says, but for what every line does."""
        return {name: value for name, value in self.line.items() if name not in ("timestamp", "level", "event")}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log of JSON in a file."""
    return Log(tmp_path / "log")


@pytest.fixture
def words(tmp_path: Path) -> Log:
    """A log for a person, in a file."""
    return Log(tmp_path / "words", log_format="console")


# --- what a line says


def test_a_line_is_one_json_object_with_time_level_event_and_fields(log: Log) -> None:
    """Whatever its values hold, a line stays a line, and begins with what it is looked through for."""
    structlog.get_logger().info("stream.finished", words="two\nlines", value=1.5, much=2**70, name="日本", none=None)
    assert log.text.count("\n") == 1
    found = log.line
    assert list(found) == ["timestamp", "level", "event", "words", "value", "much", "name", "none"]
    assert found["event"] == "stream.finished"
    assert found["level"] == "info"
    assert log.fields == {"words": "two\nlines", "value": 1.5, "much": 2**70, "name": "日本", "none": None}


def test_the_time_is_in_utc_and_goes_on(log: Log) -> None:
    """Also over the end of a second."""
    begin = datetime.now(UTC)
    for _ in range(3):
        structlog.get_logger().info("tick")
        time.sleep(0.36)
    times = [datetime.fromisoformat(line["timestamp"]) for line in log.lines]
    assert all(line["timestamp"].endswith("Z") for line in log.lines)
    assert times == sorted(times)
    assert begin.replace(microsecond=0) <= times[0] <= times[-1] <= datetime.now(UTC)
    assert 0.7 < (times[-1] - times[0]).total_seconds() < 30


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
def test_lines_below_the_level_are_not_written(level: str, written: list[str], tmp_path: Path) -> None:
    """``telemetry.log_level`` is a lower bound."""
    log = Log(tmp_path / "log", level=level)
    logger = structlog.get_logger()
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, name)(name)
    assert [(line["event"], line["level"]) for line in log.lines] == [(name, name) for name in written]


def test_what_is_bound_of_the_call_is_on_every_line(log: Log) -> None:
    """A line has the ids of the call that it was logged in, unless it names others; nothing else that may be bound."""
    ids = {"request_id": "r1", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}
    logger = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(**ids, prompt="secret", other="b"):
        logger.info("a")
        logger.info("b", request_id="r2")
        logging.getLogger("library").error("c")
    logger.info("d")
    first, second, third, last = log.lines
    assert first.items() >= ids.items()
    assert second.items() >= {**ids, "request_id": "r2"}.items()
    assert third.items() >= ids.items()
    assert not last.keys() & ids.keys()
    assert not [line for line in log.lines if line.keys() & {"prompt", "other"}]


def test_ids_are_bound_as_structlog_would_and_let_go_of(log: Log) -> None:
    """Those that were bound outside are back afterwards."""
    logger = structlog.get_logger()
    outer = bind_ids("r1", "t1", "s1")
    inner = bind_ids("r2")
    logger.info("inner")
    assert structlog.contextvars.get_contextvars() == {"request_id": "r2", "trace_id": "t1", "span_id": "s1"}
    unbind_ids(inner)
    logger.info("outer")
    unbind_ids(outer)
    logger.info("none")
    assert structlog.contextvars.get_contextvars() == {}
    found = [(line.get("request_id"), line.get("trace_id")) for line in log.lines]
    assert found == [("r2", "t1"), ("r1", "t1"), (None, None)]


def test_ids_that_are_let_go_of_elsewhere_are_no_error() -> None:
    """The garbage of a loop that was closed ends in no context of its own."""
    unbind_ids(copy_context().run(bind_ids, "r1", "t1", "s1"))
    assert structlog.contextvars.get_contextvars() == {}


def test_half_characters_do_no_harm(log: Log, tmp_path: Path) -> None:
    """A header that was not UTF-8 can be logged all the same."""
    structlog.get_logger().info("odd", name="a\udcffb", parts=["\ud800", 1], more={"\udc80": 2})
    assert log.fields == {"name": "a?b", "parts": ["?", 1], "more": {"?": 2}}
    words = Log(tmp_path / "words", log_format="console")
    structlog.get_logger().info("odd", name="a\udcffb")
    assert "name=a\\udcffb" in words.text


# --- what a line does not say


def test_fields_for_secrets_and_for_what_was_said_are_left_out(log: Log) -> None:
    """At any depth, however they are written."""
    said = {"prompt": "canary", "messages": ["canary"], "authorization": "canary", "headers": {"x": "canary"}}
    nested = {"Authorization": "canary", "X-Api-Key": "canary", "kept": {"Content": "canary", "kept": [{"body": "b"}]}}
    structlog.get_logger().info("odd", **said, nested=nested, kept="yes")
    assert "canary" not in log.text
    assert log.fields == {"nested": {"kept": {"kept": [{}]}}, "kept": "yes"}


class _Opaque:
    def __repr__(self) -> str:
        return "canary"


def test_of_an_object_only_the_type_is_shown(log: Log) -> None:
    """Whoever wrote its ``__repr__`` did not think of this log."""
    structlog.get_logger().info(
        "odd",
        hidden=Secret("canary"),
        inside=[Secret("canary"), _Opaque(), b"canary", True, 2, None],
        found=_Opaque(),
        kinds={str: ("a", {3})},
        error=ValueError("went wrong"),
        some={"a": frozenset([1])},
    )
    assert "canary" not in log.text
    assert log.fields == {
        "hidden": "[redacted]",
        "inside": ["[redacted]", "<_Opaque>", "<6 bytes>", True, 2, None],
        "found": "<_Opaque>",
        "kinds": {"<class 'str'>": ["a", [3]]},
        "error": "ValueError: went wrong",
        "some": {"a": [1]},
    }


def test_what_is_large_is_cut(log: Log) -> None:
    """Text, lists, mappings, and what is nested in itself."""
    deep: list[object] = []
    deep.append(deep)
    structlog.get_logger().info(
        "odd", words="a" * 9000, many=list(range(9000)), named={str(number): 1 for number in range(9000)}, deep=deep
    )
    found = log.fields
    assert found["words"] == "a" * (MAX_CHARACTERS - 1) + "…"
    assert found["many"] == list(range(MAX_ITEMS))
    assert len(found["named"]) == MAX_ITEMS
    assert found["deep"] == [[[["<list>"]]]]


@pytest.mark.parametrize(
    "key",
    [
        "sk-canary",
        "sk-proj-canary_canary",
        "sk-ant-api03-canary",
        "gsk_canary1",
        "xai-canary",
        "AIzaSyCanary-canary",
        "hf_canaryCANARY12345",
        "mr_canary_0123456789abcdef",
        "api-canary-0123456789",
        "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOjF9.canary",
        "Bearer canary",
        "bearer  canary.canary",
        "https://host/path?a=1&key=canary",
        "sk-can*****ary",
        "canary-ca***",
    ],
)
@pytest.mark.parametrize("around", ["{}", "the key {}, it says", "'{}'", "x" * 70 + " {}"])
def test_what_looks_like_a_key_is_cut_out(key: str, around: str) -> None:
    """Alone or within a text, short or long."""
    found = clean(around.format(key))
    assert "[redacted]" in found
    assert "canary" not in found.lower()
    assert "ary" not in found


@pytest.mark.parametrize(
    "word",
    [
        *("completed", "chat_completions", "stream_truncated", "insufficient_quota", "invalid_api_key"),
        *("openai/gpt-5-mini", "anthropic/claude-haiku-4-5-20251001", "hf/org/model-7b-instruct-2025", "risk-model-1"),
        *("req_8f14e45fceea167a5a36dedd", "0af7651916cd43dd8448eb211c80319c", "a=b", "api_key_invalid", "key"),
    ],
)
def test_what_does_not_look_like_a_key_stays(word: str) -> None:
    """The names and codes of models, targets and errors."""
    assert clean(word) == word
    assert clean(f"{word} {'x' * 70} {word}") == f"{word} {'x' * 70} {word}"


# --- exceptions


def raised(make: Callable[[], object]) -> Exception:
    """Return the exception that a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, any
        make()
    return caught.value


def _fail(said: str = "canary") -> None:
    local = f"{said} local"
    raise ValueError(f"cannot read {local!r}")


@pytest.mark.parametrize("form", ["true", "error", "tuple"])
def test_a_traceback_is_part_of_its_line(form: str, log: Log) -> None:
    """An error of ours is found where everything else is, with the code and without what it worked on."""
    logger = structlog.get_logger()
    try:
        _fail()
    except ValueError as error:
        info = {"true": True, "error": error, "tuple": (type(error), error, error.__traceback__)}
        logger.exception("internal_error", exc_info=info[form])
    assert log.line["level"] == "error"
    shown = log.line["exception"]
    assert shown.startswith("Traceback (most recent call last):\n")
    assert f'File "{__file__}", line' in shown
    assert "in _fail\n    raise ValueError(" in shown
    assert shown.endswith("\nValueError: cannot read '…'")
    assert "canary local" not in log.text
    assert "exc_info" not in log.line


@pytest.mark.parametrize("nothing", [True, (None, None, None), None, False])
def test_no_exception_is_none(nothing: object, log: Log) -> None:
    """Nothing is shown of an exception that there is not."""
    structlog.get_logger().error("odd", exc_info=nothing)
    assert log.fields == {}


def test_what_an_exception_came_from_is_shown_first() -> None:
    """As Python prints it; what was suppressed stays so."""

    def cause() -> None:
        try:
            _fail()
        except ValueError as error:
            raise KeyError("second") from error

    def context() -> None:
        try:
            cause()
        except KeyError:
            raise OSError("third")  # noqa: B904, as some do

    def suppressed() -> None:
        try:
            _fail()
        except ValueError:
            raise OSError("alone") from None

    shown = show_exception(raised(context))
    places = [
        "ValueError: cannot read",
        "The above exception was the direct cause of the following exception:\n\nTraceback",
        "KeyError: 'second'",
        "During handling of the above exception, another exception occurred:\n\nTraceback",
        "OSError: third",
    ]
    assert [shown.index(place) for place in places] == sorted(shown.index(place) for place in places)
    assert "ValueError: " not in show_exception(raised(suppressed))


def test_what_goes_round_or_on_for_ever_has_an_end() -> None:
    """Chains, and the frames of a recursion."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert show_exception(first).count("ValueError") == 2
    chained: BaseException = ValueError("0")
    for number in range(1, 30):
        latest = ValueError(str(number))
        latest.__cause__ = chained
        chained = latest
    assert show_exception(chained).count("ValueError") == MAX_CHAIN

    def deeper(number: int) -> int:
        return 1 + deeper(number + 1) if number % 2 else deeper(number + 1) + 1

    assert show_exception(raised(lambda: deeper(0))).count("in deeper") <= MAX_FRAMES


def test_the_exceptions_of_a_group_are_shown() -> None:
    """Each with its own traceback."""
    group = ExceptionGroup("two", [raised(_fail), KeyError("b")])
    shown = show_exception(group)
    assert shown.startswith("ExceptionGroup: two (2 sub-exceptions)\n--- 1 of 2\nTraceback")
    assert shown.endswith("ValueError: cannot read '…'\n--- 2 of 2\nKeyError: 'b'")


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("canary")


def test_an_exception_that_cannot_be_told_is_told_of() -> None:
    """A second failure does not hide the first."""
    assert show_exception(_Mute()) == f"{__name__}._Mute: <no message can be made>"


def test_of_a_providers_error_only_the_code_is_shown() -> None:
    """Its message is the provider's, who may quote what it was asked."""
    error = UpstreamFailed("I will not say: canary", code="server_error")
    assert show_exception(error) == "gateway.core.errors.UpstreamFailed: server_error"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("invalid literal for int() with base 10: 'mine'", "invalid literal for int() with base 10: 'mine'"),
        ("[Errno 2] No such file or directory: '/etc/x'", "[Errno 2] No such file or directory: '/etc/x'"),
        ("cannot read 'the whole prompt' here", "cannot read '…' here"),
        ('cannot read "it\'s a prompt" here', 'cannot read "…" here'),
        ("cannot read 'it\\'s a prompt' here", "cannot read '…' here"),
        ("got b'two words'", "got '…'"),
        (f"got '{'a' * 65}'", "got '…'"),
        ("got 'what is cut off", "got '…'"),
        ("it can't do what it isn't told", "it can't do what it isn't told"),
        ("400, message:\n  Invalid character in chunk size:\n\n    b'x y'\n      ^", None),
        ("key sk-canary in\nuse", "key [redacted] in use"),
        ("\x1b[31mred\x07", "?[31mred?"),
    ],
)
def test_the_words_of_others_quote_nothing(words: str, kept: str | None) -> None:
    """One word may be a name; more is what somebody said."""
    assert clean_words(words) == (kept or "400, message: Invalid character in chunk size:")


def test_the_words_of_others_are_short() -> None:
    """However long they go on."""
    assert clean_words("word " * 1000) == ("word " * 1000)[: MAX_MESSAGE_CHARACTERS - 1] + "…"


@pytest.mark.parametrize(
    "words",
    [
        *("k-" + "a" * 5000, "key-" * 2000, "k-" + "***a" * 2000, "eyJ" * 3000, "bearer " * 1000, "k-" + "é" * 5000),
        *(
            "'" * 5000,
            "'\"" * 2500,
            "' 'a" * 2000,
            "'" + "\\" * 1001 + "'x'y",
            "'" + "\\a" * 2000,
            "b'" * 2000,
            "[ '" * 2000,
        ),
    ],
)
def test_no_text_takes_long_to_clean(words: str) -> None:
    """Whoever chooses a text must not be able to stop the loop with it."""
    begin_s = time.process_time()
    clean(words)
    clean_words(words)
    assert time.process_time() - begin_s < 0.5


# --- for a person


def test_the_console_format_is_for_a_person(words: Log) -> None:
    """Words instead of JSON, without colours where there is no terminal."""
    structlog.get_logger().info("stream.finished", outcome="completed", targets=["a/b"], ttft_s=0.5, prompt="canary")
    assert re.fullmatch(
        r"\S+Z \[info     \] stream\.finished +outcome=completed targets=\['a/b'\] ttft_s=0\.5\n", words.text
    )


def test_the_console_format_shows_the_traceback_below(words: Log) -> None:
    """As Python prints it, and without anybody's values."""
    try:
        _fail()
    except ValueError:
        structlog.get_logger().exception("internal_error")
    head, *more = words.text.splitlines()
    assert "internal_error" in head
    assert more[0] == "Traceback (most recent call last):"
    assert more[-1] == "ValueError: cannot read '…'"


def test_nothing_moves_the_cursor_or_looks_like_another_line(words: Log) -> None:
    """What comes from outside cannot write a line of its own."""
    structlog.get_logger().info("odd\nline", model="\x1b[2J", other=["\x1b[2J"])
    assert words.text.count("\n") == 1
    assert "\x1b" not in words.text
    assert "odd\\nline" in words.text
    assert "model=\\x1b[2J" in words.text


def test_a_terminal_gets_colours() -> None:
    """There they help."""
    reading, writing = pty.openpty()
    try:
        writer = configure_logs(level="info", log_format="console", fd=writing)
        structlog.get_logger().info("stream.finished", outcome="completed")
        assert writer.flush(10)
        assert b"\x1b[" in os.read(reading, 4096)
    finally:
        os.close(reading)
        os.close(writing)


# --- libraries


def test_libraries_log_through_the_same_pipe_from_warning_up(tmp_path: Path) -> None:
    """The name of the logger, and what it says; no more at any level of ours, and once."""
    Log(tmp_path / "before")
    log = Log(tmp_path / "log", level="debug")
    library = logging.getLogger("urllib3.connectionpool")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        library.log(level, "said %s to sk-canary-123", level)
    found = [(line["level"], line["event"], line["logger"], line["message"]) for line in log.lines]
    said = "said {} to [redacted]"
    assert found == [
        ("warning", "library.message", "urllib3.connectionpool", said.format(30)),
        ("error", "library.message", "urllib3.connectionpool", said.format(40)),
        ("error", "library.message", "urllib3.connectionpool", said.format(50)),
    ]


def test_the_exception_of_a_library_is_shown_like_ours(log: Log) -> None:
    """With its frames and without its values."""
    try:
        _fail()
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    assert log.line["message"] == "Error handling request"
    assert log.line["exception"].endswith("ValueError: cannot read '…'")


def test_a_record_that_does_not_fit_together_is_logged_as_it_is(log: Log) -> None:
    """Its arguments do not go with its words."""
    LibraryHandler().handle(logging.LogRecord("odd", logging.WARNING, "", 0, "%d of them", ("canary",), None))
    assert log.line["message"] == "%d of them"


def test_a_record_that_cannot_be_logged_is_lost_silently(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """The standard library would print it, with its arguments."""
    LibraryHandler().handleError(logging.LogRecord("odd", logging.WARNING, "", 0, "%s", ("canary",), None))
    assert capsys.readouterr() == ("", "")
    assert log.text == ""


async def test_an_exception_that_nobody_awaited_is_an_error(log: Log) -> None:
    """It is told when the task is collected: which it was, where it failed, and nothing of what it worked on."""

    async def forgotten() -> None:
        _fail("a canary that was")

    lost = asyncio.ensure_future(forgotten())
    await asyncio.wait([lost])
    del lost
    gc.collect()
    assert log.line["level"] == "error"
    assert log.line["logger"] == "asyncio"
    assert log.line["message"] == "Task exception was never retrieved"
    assert log.line["task"].endswith("forgotten")
    assert "in _fail" in log.line["exception"]
    assert log.line["exception"].endswith("ValueError: cannot read '…'")
    assert "canary that was" not in log.text.replace('_fail(\\"a canary that was\\")', "")


# --- the way to the file


class Pipe:
    """A pipe of one page, which nobody reads until ``read`` does."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        self._is_read = False

    def read(self) -> Callable[[], bytes]:
        """Read all that comes from now on; returns how to close the pipe and get what came."""
        pieces: list[bytes] = []

        def read() -> None:
            while data := os.read(self.reading, 65536):
                pieces.append(data)

        thread = Thread(target=read)
        thread.start()

        def close() -> bytes:
            self.close("writing")
            thread.join(10)
            return b"".join(pieces)

        return close

    def close(self, *ends: Literal["reading", "writing"]) -> None:
        """Close the ends named."""
        for end in ends:
            os.close(getattr(self, end))
            setattr(self, end, -1)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe."""
    pipe = Pipe()
    yield pipe
    for fd in (pipe.reading, pipe.writing):
        if fd >= 0:
            os.close(fd)


def fill(writer: LogWriter) -> None:
    """Log until the pipe is full and the thread waits for it, with a batch in its hand."""
    for _ in range(81):
        writer.info(b"x" * 99 + b"\n")
    end_s = time.monotonic() + 30
    while writer._waiting_bytes > 100 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert writer._waiting_bytes == 100


def line(name: str, number: int, size: int = 100) -> bytes:
    """Return a line of so many bytes."""
    return f"{name} {number} ".encode().ljust(size - 1, b".") + b"\n"


def names(written: bytes) -> list[str]:
    """Return the level and number of the lines that ``line`` made."""
    return [" ".join(text.split()[:2]) for text in written.decode().splitlines() if not text.startswith("x")]


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(pipe: Pipe) -> None:
    """Ten thousand lines are logged in an instant; what finds room is written when it is read again, in order."""
    writer = LogWriter(pipe.writing, max_waiting_bytes=10_000)
    fill(writer)
    begin_s = time.perf_counter()
    for number in range(10_000):
        writer.info(line("info", number))
    assert time.perf_counter() - begin_s < 10
    assert not writer.flush(0.05)
    close = pipe.read()
    assert writer.flush(10)
    found = names(close())
    assert found == [f"info {number}" for number in range(len(found))]
    assert 0 < len(found) <= 100
    assert writer.dropped_count == {"debug": 0, "info": 10_000 - len(found), "warning": 0, "error": 0}


def test_lower_levels_make_room_for_higher_ones(pipe: Pipe) -> None:
    """No warning is lost while a line of a lower level waits, no error while a warning does; all of it is bounded."""
    writer = LogWriter(pipe.writing, max_waiting_bytes=10_000)
    fill(writer)
    put: Mapping[str, Callable[[bytes], None]] = {level: getattr(writer, level) for level in LEVELS}
    for number in range(100):  # more than there is room for, beside what is left of filling the pipe
        put["debug" if number % 2 else "info"](line("low", number))
    for number in range(80):
        put["warning"](line("warning", number))
    for number in range(60):
        put["error"](line("error", number))
    put["warning"](line("late", 0))
    put["info"](line("late", 1))
    before = writer.dropped_count
    assert before["error"] == 0
    assert before["warning"] > 0
    close = pipe.read()
    assert writer.flush(10)
    found = names(close())
    assert [name for name in found if name.startswith("error")] == [f"error {number}" for number in range(60)]
    warnings = [name for name in found if name.startswith("warning")]
    assert warnings == [f"warning {number}" for number in range(len(warnings))]
    assert "late 1" not in found
    assert not [name for name in found if name.startswith("low")]
    assert found == [*warnings, *(name for name in found if not name.startswith("warning"))]
    assert writer.dropped_count == before


def test_a_critical_line_is_an_error(pipe: Pipe) -> None:
    """The metric knows four levels."""
    writer = LogWriter(pipe.writing, max_waiting_bytes=10)
    writer.critical(b"x" * 11)
    assert writer.dropped_count == {"debug": 0, "info": 0, "warning": 0, "error": 1}


def test_a_line_longer_than_the_pipe_is_written_whole(pipe: Pipe) -> None:
    """In as many pieces as it takes."""
    writer = LogWriter(pipe.writing)
    close = pipe.read()
    lines = [line("long", 0, 20_000), line("short", 1), line("long", 2, 70_000)]
    for text in lines:
        writer.info(text)
    assert writer.flush(10)
    assert close() == b"".join(lines)


def test_a_pipe_that_does_not_wait_is_waited_for(pipe: Pipe) -> None:
    """Whoever has the same pipe may have made it so; no line is lost or torn by it."""
    os.set_blocking(pipe.writing, False)
    writer = LogWriter(pipe.writing)
    for number in range(500):
        writer.info(line("info", number))
    time.sleep(0.1)
    assert not writer.flush(0.05)
    close = pipe.read()
    assert writer.flush(10)
    assert names(close()) == [f"info {number}" for number in range(500)]


def test_a_pipe_that_was_closed_is_no_error(pipe: Pipe) -> None:
    """Lines are lost and counted, and whoever logs does not notice."""
    writer = LogWriter(pipe.writing)
    pipe.close("reading")
    writer.warning(line("warning", 0))
    assert writer.flush(10)
    writer.info(line("info", 1))
    assert writer.flush(10)
    assert writer.dropped_count == {"debug": 0, "info": 1, "warning": 1, "error": 0}


def test_nothing_to_flush_is_flushed() -> None:
    """No thread is started for it."""
    assert LogWriter(-1).flush(0)


def test_lost_lines_are_told_of_once_for_a_while(pipe: Pipe) -> None:
    """As soon as anybody reads again."""
    told: list[Mapping[str, int]] = []
    writer = LogWriter(pipe.writing, max_waiting_bytes=10_000, tell=told.append)
    fill(writer)
    for number in range(200):
        writer.info(line("info", number))
    assert told == []
    close = pipe.read()
    assert writer.flush(10)
    assert told == [writer.dropped_count]
    writer.info(b"x" * 10_001)
    writer.info(line("info", 0))
    assert writer.flush(10)
    assert len(told) == 1
    close()


def test_that_lines_were_lost_is_a_line(log: Log) -> None:
    """A warning, with the numbers that the metric has."""
    log.writer.info(b"x" * 5_000_000)
    structlog.get_logger().info("next")
    assert log.writer.flush(10)
    assert [found["event"] for found in log.lines] == ["next", "logs.dropped"]
    counts = {"debug": 0, "info": 1, "warning": 0, "error": 0}
    assert log.lines[1].items() >= {"level": "warning", "dropped_count": 1, "dropped_counts": counts}.items()


def test_a_thread_that_cannot_be_started_is_no_error(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written when the next line finds that it can."""
    writer = LogWriter(pipe.writing)

    def refuse(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        writer.info(line("info", 0))
        assert not writer.flush(0)
    close = pipe.read()
    writer.info(line("info", 1))
    assert writer.flush(10)
    assert names(close()) == ["info 0", "info 1"]


def test_many_threads_may_log(pipe: Pipe) -> None:
    """Every line is written once, and those of each thread in their order."""
    writer = LogWriter(pipe.writing)
    close = pipe.read()
    threads = [
        Thread(target=lambda name=name: [writer.info(line(name, number)) for number in range(300)])
        for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(10)
    found = names(close())
    for name in ("a", "b", "c"):
        assert [text for text in found if text.startswith(name)] == [f"{name} {number}" for number in range(300)]


def test_who_writes_the_log_can_be_asked_for(log: Log) -> None:
    """Metrics read there what was lost."""
    assert current_writer() is log.writer
    structlog.reset_defaults()
    assert current_writer() is None


# --- processes


def script(text: str, *, stdout: int | None = subprocess.PIPE, through: str = "") -> "subprocess.Popen[bytes]":
    """Run Python with what these tests need at hand; ``through`` is how a shell is to start it."""
    begin = "import os, sys, time, structlog\nfrom gateway.logs import configure_logs\n"
    command = [sys.executable, "-c", begin + text]
    if through:
        command = ["sh", "-c", through, *command]
    return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)  # noqa: S603


SET_UP = "writer = configure_logs(level='info', log_format='json')\nlog = structlog.get_logger()\n"


def test_what_waits_at_the_end_is_written() -> None:
    """Standard output is where lines go, and ``atexit`` is late enough for the last."""
    process = script(SET_UP + "for number in range(1000): log.info('tick', number=number)")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert [json.loads(text)["number"] for text in out.splitlines()] == list(range(1000))


def test_the_end_does_not_wait_for_ever(pipe: Pipe) -> None:
    """For a second, when nobody reads."""
    process = script(
        SET_UP + "for number in range(1000): log.info('tick')\nsys.stderr.write('%r' % time.monotonic())",
        stdout=pipe.writing,
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert 0.9 < time.monotonic() - float(err) < 20


def test_a_forked_process_has_a_log_of_its_own() -> None:
    """It does not repeat the lines of the other, nor count what that one lost, and starts a thread for its own."""
    process = script(
        "import gateway.logs\ngateway.logs.LINGER_S = 0.5\n" + SET_UP + "writer.info(b'x' * 5_000_000)\n"
        "log.info('before')\n"
        "child = os.fork()\n"
        "name = 'parent' if child else 'child'\n"
        "log.info(name, lost_count=writer.dropped_count['info'])\n"
        "if not child:\n    writer.flush(5)\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    found = {(line["event"], line.get("lost_count")) for line in map(json.loads, out.splitlines())}
    assert found == {("before", None), ("parent", 1), ("child", 0), ("logs.dropped", None)}
    assert len(out.splitlines()) == 4


def test_without_a_standard_output_lines_go_nowhere() -> None:
    """And not into whatever is the first to be opened in its place."""
    process = script(
        "opened = os.open('/tmp', os.O_RDONLY)\nassert opened == 1\n"
        + SET_UP
        + "log.info('tick')\nassert writer.flush()\nassert not sum(writer.dropped_count.values())\n",
        through='exec "$0" "$@" >&-',
    )
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
