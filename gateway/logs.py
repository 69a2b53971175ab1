"""How the gateway's own log lines are written: structlog, one JSON object a line, or words for a person.

A line is made where its event is logged, and handed over. One thread writes the lines to standard output, some at a
time, so that a pipe which nobody reads stalls only that thread. What waits is bounded; where there is no room, lines of
a lower level make room for one of a higher, and every line that is lost is counted. The thread is started by the first
line, in the process that logs it: what waits at a fork is written by the parent alone. At the end of the process the
lines that are left have a second to be written.

Several workers share one standard output. Each writes whole lines, and what it writes at once stays together: in a file
always, in a pipe if it is no more than ``PIPE_BUF``. A longer line, such as one with a traceback, can be parted by
another worker's only while the pipe is full.

What is written is looked at first, whoever logs it. Fields that by their name may hold a key or what was said are left
out; what looks like a key is cut out of any text, and long text is cut; of an object nothing is shown but its type. Of
an exception there is its traceback, with the code and without any values, and its message as far as it quotes nothing.
This is the second net: what has to stay secret should not be logged in the first place.

Libraries log through the same pipe, from ``WARNING`` up, and the standard library's logging is for them alone: for our
own lines it would cost twice as much.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from traceback import StackSummary, walk_tb
from typing import Final, TypeAlias

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from gateway.core.errors import UpstreamError
from gateway.schema import Secret

LEVELS: Final = ("debug", "info", "warning", "error")
"""The levels that lines are counted by, the lowest first. What is critical is counted as an error."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Some ten thousand lines: those of several seconds under full load."""

LINGER_S = 0.01
"""How long the thread lets lines gather before it writes, so that it is not woken for each of them."""

FLUSH_S = 1.0
"""How long the end of the process may wait for whoever reads."""

QUIET_S = 60.0
"""How long nothing more is logged of lines that were lost."""

USUAL_CHARACTERS = 64
MAX_CHARACTERS = 2000
MAX_MESSAGE_CHARACTERS = 400
MAX_QUOTED_CHARACTERS = 64
MAX_FRAMES = 40
MAX_CHAIN = 8
MAX_ITEMS = 50
MAX_DEPTH = 4


def configure_logs(*, level: str, log_format: str, fd: int | None = None) -> LogWriter:
    """Set up structlog for the process; ``level`` and ``log_format`` as the configuration has them.

    Lines go to ``fd``, or to standard output. Whoever ends the process without its ``atexit`` flushes what is returned.
    """
    if fd is None:
        fd = 1 if sys.__stdout__ is not None else os.open(os.devnull, os.O_WRONLY)  # 1 may be anybody's by now
    writer = LogWriter(fd, tell=_tell_lost)
    processors: list[Processor] = [safe_fields]
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(
            colors=os.isatty(fd), exception_formatter=structlog.dev.plain_traceback
        )
        processors += [_without_control, renderer, _to_bytes]
    else:
        processors.append(_to_json)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=writer,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(LibraryHandler(logging.WARNING))
    atexit.register(writer.flush)
    return writer


def current_writer() -> LogWriter | None:
    """Return who writes the log of this process, if it was set up here."""
    writer = structlog.get_config()["logger_factory"]
    return writer if isinstance(writer, LogWriter) else None


def _tell_lost(lost: Mapping[str, int]) -> None:
    structlog.get_logger().warning("logs.dropped", dropped_count=sum(lost.values()), dropped_counts=dict(lost))


# --- what a line says -------------------------------------------------------------------------------------------------


DENIED: Final = frozenset(
    {
        *("api_key", "apikey", "authorization", "cookie", "cookies", "credential", "credentials", "key", "password"),
        *("proxy_authorization", "secret", "secrets", "set_cookie", "token", "x_api_key", "x_goog_api_key"),
        *("headers", "query", "query_string", "raw"),
        *("answer", "arguments", "body", "chunk", "content", "contents", "data", "delta", "document", "input"),
        *("instructions", "messages", "metadata", "output", "payload", "prompt", "reasoning", "refusal", "request"),
        *("response", "system", "text", "tools", "transcript", "user"),
    }
)
"""Fields that are never written, in lower case and with underscores."""

BOUND: Final = ("request_id", "trace_id", "span_id")
"""What is on every line that is logged while it is bound in structlog's context variables."""

_BOUND_VARIABLES: Final = {name: ContextVar[str](f"structlog_{name}") for name in BOUND}
"""They are structlog's by their names: whoever merges its context variables into a line finds these, too."""

_bind_request, _bind_trace, _bind_span = (variable.set for variable in _BOUND_VARIABLES.values())

REDACTED = "[redacted]"

_KEY = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|tgp|r8|nvapi|csk|pplx)[-_][\w\-.*]{6,}"
    r"|\b(?:api|fw|hf|key|mr|LLM)[-_](?=[\w\-.*]{0,64}\d)[\w\-.*]{12,}|AIza[\w\-]{10,}|\beyJ[\w\-]{10,}\.[\w\-.]+"
    r"|[Bb]earer\s+[^\s,;]+|[?&]key=[^\s&]+|(?<![\w\-])[\w\-]{3,}\*{3,}[\w\-]*"
)
"""What looks like a key: what ``gateway.providers.errors`` takes for one, but for words that are ours."""

_SIGN = re.compile(r"[-_](?<=[kpri8xwfyM].)|AIza|eyJ|earer\s|key=|\*{3}")
"""What is in every text that has a key in it, and is found ten times as fast."""

_BARE = "AIza"
"""The only beginning of a key that may be followed by nothing but letters and digits."""

_QUOTED = re.compile(r"(?<!\w)b?(['\"])((?:\\.|(?!\1)[^\\]|\\$)*)(?:\1(?!\w)|$)")
_TASK = re.compile(r"\bcoro=<([\w.<>]+)\(")
_PLAIN = frozenset({int, float, bool, type(None)})


def safe_fields(_: object, method_name: str, event_dict: EventDict) -> EventDict:
    """Return the line's fields as they may be written: time, level and event first."""
    found: EventDict = {"timestamp": _now(), "level": method_name, "event": ""}
    exc_info = event_dict.pop("exc_info", None)
    for name, value in event_dict.items():
        kind = type(value)
        if kind in _PLAIN:
            found[name] = value
        elif kind is str:  # a word or an id is most of what there is, and no key: ``clean`` without the call
            is_plain = value.isalnum() and len(value) <= USUAL_CHARACTERS and _BARE not in value
            found[name] = value if is_plain else clean(value)
        else:
            found[name] = _safe(value)
    if not DENIED.isdisjoint(found):
        found = {name: value for name, value in found.items() if name not in DENIED}
    missing = [name for name in BOUND if name not in found]
    if missing:
        bound = structlog.contextvars.get_contextvars()
        for name in missing:
            if name in bound:
                found[name] = _safe(bound[name])
    if exc_info and (error := _error_of(exc_info)) is not None:
        found["exception"] = show_exception(error)
    return found


def bind_ids(request_id: str, trace_id: str = "", span_id: str = "") -> tuple[Token[str], ...]:
    """Put a call's ids on every line that is logged from now on, until ``unbind_ids`` is told what is returned.

    What structlog has for this looks through all context variables and is a generator: it takes three times as long,
    for every request, of which most log nothing more than their end. A context to be entered takes half as long again.
    """
    if trace_id:
        return _bind_request(request_id), _bind_trace(trace_id), _bind_span(span_id)
    return (_bind_request(request_id),)


def unbind_ids(bound: tuple[Token[str], ...]) -> None:
    """Leave all as it was found."""
    try:
        for token in bound[::-1]:
            token.var.reset(token)
    except ValueError:  # a call that is given up with its loop ends outside of its own context
        pass


def clean(text: str) -> str:
    """Return a text without what looks like a key, and no more of it than its beginning."""
    if len(text) <= USUAL_CHARACTERS:
        return text if text.isalnum() and _BARE not in text else _clean_usual(text)
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS - 1] + "…"
    return _KEY.sub(REDACTED, text) if _SIGN.search(text) else text


@lru_cache(1024)
def _clean_usual(text: str) -> str:
    """Do the same to a text as short as most, of which a few come over and over again."""
    return _KEY.sub(REDACTED, text) if _SIGN.search(text) else text


def _safe(value: object, depth: int = 0) -> object:
    """Return a value that may be written in place of any other."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is str:
        return clean(value)  # type: ignore[arg-type]  # it is one
    if isinstance(value, list | dict) and depth < MAX_DEPTH:
        return _safe_items(value, depth + 1) if isinstance(value, list) else _safe_mapping(value, depth + 1)
    return _safe_rarity(value, depth)


def _safe_items(value: Collection[object], depth: int) -> list[object]:
    return [_safe(item, depth) for item in list(value)[:MAX_ITEMS]]


def _safe_mapping(value: Mapping[object, object], depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in list(value.items())[:MAX_ITEMS]:
        name = _name_in_mapping(str(key))
        if name is not None:
            found[name] = item if type(item) in _PLAIN else _safe(item, depth)
    return found


def _safe_rarity(value: object, depth: int) -> object:
    match value:
        case str():
            return clean(str(value))
        case bool() | int() | float():
            return value
        case Secret():
            return REDACTED
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case BaseException():
            return f"{_name_of(type(value))}: {_message_of(value)}"
        case tuple() | set() | frozenset() if depth < MAX_DEPTH:
            return _safe_items(value, depth + 1)
        case Mapping() if depth < MAX_DEPTH:
            return _safe_mapping(value, depth + 1)
        case _:
            return f"<{type(value).__name__}>"


@lru_cache(256)
def _name_in_mapping(name: str) -> str | None:
    """Return the name of an item as it may be written; ``None`` if the item may not."""
    cleaned = clean(name)
    return None if cleaned.lower().replace("-", "_") in DENIED else cleaned


def _second(unix_s: int) -> tuple[int, str]:
    return unix_s, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(unix_s))


_this_second = _second(0)


def _now() -> str:
    """Return the time in UTC; most of it is the same for a whole second, and takes ten times as long to make."""
    global _this_second  # noqa: PLW0603, it is replaced as a whole
    unix_s = time.time()
    second, text = _this_second
    if int(unix_s) != second:
        second, text = _this_second = _second(int(unix_s))
    return f"{text}{int((unix_s - second) * 1e6):06d}Z"


# --- exceptions


_CAUSED = "\n\nThe above exception was the direct cause of the following exception:\n"
_MET = "\n\nDuring handling of the above exception, another exception occurred:\n"


def show_exception(error: BaseException) -> str:
    """Return an exception as Python prints it, those it came from first, but without what its messages quote."""
    shown: list[str] = []
    seen: set[int] = set()
    link, current = "", error
    while id(current) not in seen and len(seen) < MAX_CHAIN:
        seen.add(id(current))
        shown.append("".join(_one_exception(current)) + link)
        if current.__cause__ is not None:
            link, current = _CAUSED, current.__cause__
        elif current.__context__ is not None and not current.__suppress_context__:
            link, current = _MET, current.__context__
    return "\n".join(reversed(shown))


def _one_exception(error: BaseException) -> Iterator[str]:
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from StackSummary.extract(walk_tb(error.__traceback__), limit=-MAX_FRAMES, capture_locals=False).format()
    yield f"{_name_of(type(error))}: {_message_of(error)}"
    if isinstance(error, BaseExceptionGroup):
        for number, inner in enumerate(error.exceptions[:MAX_CHAIN], start=1):
            yield f"\n--- {number} of {len(error.exceptions)}\n"
            yield from _one_exception(inner)


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message_of(error: BaseException) -> str:
    """Return what an exception says. What a provider has said is not ours to write down: only its code is."""
    if isinstance(error, UpstreamError):
        return clean(error.code)
    try:
        return clean_words(str(error))
    except Exception:  # noqa: BLE001, it is somebody else's method, and we are telling of a failure as it is
        return "<no message can be made>"


def clean_words(text: str) -> str:
    """Return words that were made by others as one short line that quotes nothing.

    A quotation is what stands between quotation marks and is more than a word, or very long, and what stands below an
    empty line: that is where HTTP's parser shows what it could not read.
    """
    line = " ".join(text[:MAX_CHARACTERS].partition("\n\n")[0].split())
    line = clean(_QUOTED.sub(_short_quotation, line))
    if not line.isprintable():
        line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def _short_quotation(found: re.Match[str]) -> str:
    is_word = len(found[2]) <= MAX_QUOTED_CHARACTERS and not any(map(str.isspace, found[2]))
    return found[0] if is_word else f"{found[1]}…{found[1]}"


def _error_of(exc_info: object) -> BaseException | None:
    """Return the exception in any of the forms in which it may be logged."""
    match exc_info:
        case BaseException() as error:
            return error
        case (_, BaseException() as error, _):
            return error
        case _:
            return sys.exc_info()[1]


# --- how it looks


def _to_json(_: object, __: str, fields: EventDict) -> bytes:
    try:
        return msgspec.json.encode(fields) + b"\n"
    except UnicodeEncodeError:  # half a character, from a header that was not UTF-8
        return msgspec.json.encode(_without_halves(fields)) + b"\n"


def _without_halves(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_without_halves(name): _without_halves(item) for name, item in value.items()}
        case list():
            return [_without_halves(item) for item in value]
        case _:
            return value


def _without_control(_: object, __: str, fields: EventDict) -> EventDict:
    """Escape what would move the cursor, or begin a line that looks like another."""
    for name, value in fields.items():
        if type(value) is str and name != "exception" and not value.isprintable():
            fields[name] = repr(value)[1:-1]
    return fields


def _to_bytes(_: object, __: str, line: object) -> bytes:
    return f"{line}\n".encode("utf-8", "replace")


# --- the lines of libraries -------------------------------------------------------------------------------------------


class LibraryHandler(logging.Handler):
    """Logs what libraries log: ``library.message``, with their logger's name and the first line of what they say.

    The lines below the first are for objects that asyncio shows with all that is in them. Of these, which coroutine
    a task was running is kept.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001, the arguments do not go with the words, which is no reason to lose them
            message = str(record.msg)
        first, _, rest = message.partition("\n")
        fields: dict[str, object] = {"logger": record.name, "message": clean_words(first)}
        if found := _TASK.search(rest):
            fields["task"] = found[1]
        log = structlog.get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write("library.message", **fields, exc_info=record.exc_info)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the standard library's name
        """Say nothing: it would be said with the record's arguments, and on standard error."""


# --- the way to the file ----------------------------------------------------------------------------------------------

_Lines: TypeAlias = deque[tuple[int, bytes]]
"""Lines of one level, in their order, each with its number among all."""


def _first_number(waiting: tuple[str, _Lines]) -> int:
    return waiting[1][0][0]


class LogWriter:
    """Lines that wait, and the thread that writes them to ``fd``, which nobody else is kept waiting for.

    It is what structlog makes loggers with, and those loggers: their methods are the levels, and take a line. ``tell``
    is called in the thread when lines were lost
    and others can be written again, with how many there have been.
    """

    def __init__(
        self,
        fd: int,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        linger_s: float = LINGER_S,
        tell: Callable[[Mapping[str, int]], None] | None = None,
    ) -> None:
        self._fd = fd
        self._max_waiting_bytes = max_waiting_bytes
        self._linger_s = linger_s
        self._tell = tell
        self.debug, self.info, self.warning, self.error = (partial(self._put, level) for level in LEVELS)
        self.critical = self.error
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def __call__(self, *_: object) -> LogWriter:
        """Return itself, as the logger that structlog asks for."""
        return self

    @property
    def dropped_count(self) -> Mapping[str, int]:
        """How many lines were lost in this process, by level."""
        return dict(self._dropped)

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until all that was logged is written, for so long at most; returns whether it was."""
        if self._thread is None:
            return not self._waiting_bytes
        done: SimpleQueue[None] = SimpleQueue()
        self._wake.put(done)
        try:
            done.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def _begin(self) -> None:
        """Be empty: at first, and in a process that was forked off, whose lines the other one has."""
        # A lock that its holder may take again: collecting garbage may log, at any moment.
        self._lock = RLock()
        self._waiting: dict[str, _Lines] = {level: deque() for level in LEVELS}
        self._waiting_bytes = 0
        self._number = 0
        self._dropped = dict.fromkeys(LEVELS, 0)
        self._told_count = 0
        self._told_at_s = -QUIET_S
        self._thread: Thread | None = None
        self._is_awake = False
        self._wake: SimpleQueue[SimpleQueue[None] | None] = SimpleQueue()

    def _put(self, level: str, line: bytes) -> None:
        size = len(line)
        with self._lock:
            if self._waiting_bytes + size > self._max_waiting_bytes and not self._make_room(level, size):
                self._dropped[level] += 1
                return
            self._number += 1
            self._waiting[level].append((self._number, line))
            self._waiting_bytes += size
            if self._thread is None:
                self._start()
        if not self._is_awake:
            self._is_awake = True
            self._wake.put(None)

    def _make_room(self, level: str, size: int) -> bool:
        """Give up lines of lower levels, the lowest first and of those the last; returns whether there is room now."""
        for lower in LEVELS[: LEVELS.index(level)]:
            lines = self._waiting[lower]
            while lines:
                self._waiting_bytes -= len(lines.pop()[1])
                self._dropped[lower] += 1
                if self._waiting_bytes + size <= self._max_waiting_bytes:
                    return True
        return False

    def _start(self) -> None:
        thread = Thread(target=self._run, name="millrace-log", daemon=True)
        with suppress(RuntimeError):  # the interpreter is about to end, or there is no thread to be had
            thread.start()
            self._thread = thread

    # --- in the thread

    def _run(self) -> None:
        while True:
            done = self._wake.get()
            if done is None:
                time.sleep(self._linger_s)
            self._is_awake = False  # whoever logs from here on wakes us again
            is_written = True
            while some := self._take():
                is_written = self._write(some)
            if is_written:
                self._tell_lost()
            if done is not None:
                done.put(None)

    def _take(self) -> list[tuple[str, bytes]]:
        """Take the next lines, as many as a pipe takes in one piece, or a single longer one."""
        taken: list[tuple[str, bytes]] = []
        size = 0
        with self._lock:
            filled = [(level, lines) for level, lines in self._waiting.items() if lines]
            while filled:
                level, lines = filled[0] if len(filled) == 1 else min(filled, key=_first_number)
                line = lines[0][1]
                size += len(line)
                if taken and size > select.PIPE_BUF:
                    break
                lines.popleft()
                self._waiting_bytes -= len(line)
                taken.append((level, line))
                if not lines:
                    filled.remove((level, lines))
        return taken

    def _write(self, taken: list[tuple[str, bytes]]) -> bool:
        """Write the lines; returns whether they could be. They are lost when nobody will ever read them."""
        left = [line for _, line in taken]
        while left:
            try:
                written = os.writev(self._fd, left)
            except BlockingIOError:  # somebody who has the same pipe does not want to wait for it
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll(1000)
                continue
            except OSError:
                with self._lock:
                    for level, _ in taken[-len(left) :]:
                        self._dropped[level] += 1
                return False
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
        return True

    def _tell_lost(self) -> None:
        count, now_s = sum(self._dropped.values()), time.monotonic()
        if self._tell is not None and count > self._told_count and now_s - self._told_at_s >= QUIET_S:
            self._told_count, self._told_at_s = count, now_s
            self._tell(self.dropped_count)
