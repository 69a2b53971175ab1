"""The interruption policy as a table: what may break, what a client has by then, who goes on, what it must receive.

A row is a fault of the first target's, on the wire of one provider, at one moment of one answer, under one policy, with
somebody or nobody to recover. ``expected`` says what the client must receive; it was written from the table of the
contract (section 5) and its section 4, and knows nothing of the gateway.

The faults are a provider's own: what it answers (429, 500), what it does to its connection, what it writes. A fault
stands with the moments at which it can happen:

- *nothing*: the client has nothing, and the provider has not even said who speaks.
- *role*: the provider has begun (a role, ``message_start``) and said nothing yet. Gemini's wire has no such event.
- *reasoning*: some of the reasoning. OpenAI's Chat Completions show none.
- *text*: some of the text; *json* is text in the form of a schema, which may only be continued exactly.
- *tool*: some of a tool call, inside the arguments of the last of two. It is held back until it is whole, unless one
  target alone is asked under ``error``: then what came of it was passed on.

Left out, for they make no sense: an HTTP status, a refused connection or an error in the first event behind anything
delivered; a stall before anything, which is a slow first token; a slow first token behind a token; a cut inside a
character, a tool call, reasoning or an end anywhere else than there; a quota on Gemini's wire, where other fields tell
of it than the simulator has; JSON with faults that differ from others only before the first token.

Who recovers: the *same* target, which breaks once; the next one, which takes a partial answer (*exact*) or has to be
asked in words (*anchored*); nobody, because the target is *alone* or because the next one is *dead* too. A first target
that does not recover answers every further attempt with its status, or with a 500.

The wires are dealt out: row by row to the next of the five that can have the fault at that moment, so that every fault
comes on every wire and each meeting of moment, recovery and policy on at least two (``test_matrix.py`` checks both).
The three readings begin at different wires, and so read other combinations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final, Literal, TypeAlias, get_args

from gateway.simulator.text import tokenize

Wire = Literal["openai", "anthropic", "google", "mistral", "vllm"]
Moment = Literal["nothing", "role", "reasoning", "text", "tool", "json"]
Recovery = Literal["same", "exact", "anchored", "alone", "dead"]
Policy = Literal["continue", "restart", "error"]
Reading = Literal["wire", "sdk", "whole"]

WIRES: Final[tuple[Wire, ...]] = get_args(Wire)
MOMENTS: Final[tuple[Moment, ...]] = get_args(Moment)
RECOVERIES: Final[tuple[Recovery, ...]] = get_args(Recovery)
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
READINGS: Final[tuple[Reading, ...]] = get_args(Reading)

GOES_ON_EXACTLY: Final[frozenset[Wire]] = frozenset({"anthropic", "google", "mistral", "vllm"})
"""The wires whose models take a partial answer, with the models that the tests ask for."""

ENDS_WITH_FINISH: Final[frozenset[Wire]] = frozenset({"openai", "google", "mistral", "vllm"})
"""The wires on which an answer is whole once all its choices have a finish reason; Anthropic's wants its marker."""

CALLS_WITH_FINISH: Final[frozenset[Wire]] = frozenset({"mistral"})
"""The wires on which all tool calls come in one event with the finish: of one that is cut nothing was delivered."""

TEXT: Final = (
    "## The weir\n\nA weir — naïve as it looks — holds the river 🐟 back: it *raises* the water.\n\n"
    "- 水 above, stone below"
)
JSON_TEXT: Final = '{"name": "Weir", "notes": ["it raises the water — and slows it", "naïve 🐟"], "steep": true}'
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "string"}},
        "steep": {"type": "boolean"},
    },
    "required": ["name", "notes", "steep"],
    "additionalProperties": False,
}
REASONING_TOKENS: Final = 6
TEXT_TOKENS: Final = 14
"""How much has come when a stream breaks."""


@dataclass(frozen=True, slots=True)
class Break:
    """A damage that no script of the simulator's says: to the first event behind so many tokens.

    ``half`` sends half of the event and closes the connection; ``character`` does so inside the first character there
    that has several bytes; ``malformed`` loses the second half of the event's JSON and goes on.
    """

    how: Literal["half", "character", "malformed"]
    token_count: int | None = None
    """``None`` for the very first event."""


Deed: TypeAlias = str | Break
"""What a provider does: a script of the simulator's, or a break. ``refused`` and ``dns`` are done to its address."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fault:
    """One way to break, and what the provider does for it at each moment at which it can happen."""

    name: str
    family: str
    deeds: Mapping[Moment, Deed]
    later: str = "status=500"
    """What a target that does not recover does to further attempts."""
    statuses: frozenset[int] = frozenset({502, 503, 504})
    """Which of HTTP's statuses fit, where the client can be told by one."""
    is_hasty: bool = False
    """Whether it takes a time limit to notice."""
    may_pass: bool = True
    """Whether asking the same target again may help."""
    has_retry_after: bool = False
    is_harmless: bool = False
    """Whether it is none: the answer is legal, and whole."""
    is_behind_finish: bool = False
    is_in_stream: bool = False
    """Whether only a stream can break so: an answer that is sent in one piece does not."""
    without: frozenset[Wire] = frozenset()


def _at(script: str, *moments: Moment) -> dict[Moment, Deed]:
    """Return the same script for several moments, with ``{n}`` for the tokens before."""
    counts = {"role": 0, "reasoning": REASONING_TOKENS, "text": TEXT_TOKENS, "json": TEXT_TOKENS, "tool": TOOL_TOKENS}
    return {moment: script.format(n=counts[moment]) for moment in moments}


TOOL_TOKENS: Final = 18
"""Inside the second of the two tool calls that the tools of ``tests/sdk/truth.py`` lead to."""

_WAITING: Final = "no answer in time"
_CUT: Final = "cuts"
_BYTES: Final = "bytes and events"
FAMILIES: Final = (_WAITING, _CUT, _BYTES)


def _status(status: int, *, told: int, name: str = "", more: str = "", has_retry_after: bool = False) -> Fault:
    script = f"status={status}{more}"
    return Fault(
        name=name or str(status),
        family=_WAITING,
        deeds={"nothing": script},
        later=script,
        statuses=frozenset({told}),
        has_retry_after=has_retry_after,
    )


FAULTS: Final[tuple[Fault, ...]] = (
    Fault(name="refused", family=_WAITING, deeds={"nothing": "refused"}, statuses=frozenset({502})),
    Fault(name="dns", family=_WAITING, deeds={"nothing": "dns"}, statuses=frozenset({502})),
    _status(429, told=429, name="429 with retry-after", more="&retry_after_s=0.3", has_retry_after=True),
    _status(429, told=429),
    Fault(
        name="429 for good",
        family=_WAITING,
        deeds={"nothing": "status=429&error_code=insufficient_quota"},
        later="status=429&error_code=insufficient_quota",
        statuses=frozenset({429}),
        may_pass=False,
        without=frozenset({"google"}),
    ),
    _status(500, told=502),
    _status(503, told=503),
    _status(529, told=503),
    Fault(name="error event first", family=_WAITING, deeds={"nothing": "error_first"}, later="error_first"),
    Fault(
        name="slow first token",
        family=_WAITING,
        is_hasty=True,
        deeds={"nothing": "head_s=60", "role": "first_token_s=60"},
    ),
    Fault(
        name="stall with pings",
        family=_WAITING,
        is_hasty=True,
        deeds=_at("stall_after={n}&stall_ping_s=0.2", "role", "reasoning", "text", "tool", "json"),
    ),
    Fault(
        name="fin inside an event",
        family=_CUT,
        deeds={
            "nothing": Break("half"),
            "role": Break("half", 0),
            "reasoning": Break("half", REASONING_TOKENS),
            "text": Break("half", TEXT_TOKENS),
            "tool": Break("half", TOOL_TOKENS),
            "json": Break("half", TEXT_TOKENS),
        },
    ),
    Fault(
        name="rst",
        family=_CUT,
        deeds={
            "nothing": "cut_after_bytes=0&cut=rst",
            **_at("cut_after_tokens={n}&cut=rst", "role", "reasoning", "text", "tool", "json"),
        },
    ),
    Fault(
        name="clean close without an end",
        family=_CUT,
        deeds={
            "nothing": "cut_after_bytes=0&cut=clean",
            **_at("cut_after_tokens={n}&cut=clean", "role", "reasoning", "text", "tool"),
        },
    ),
    Fault(
        name="cut of a body that ends with its connection",
        family=_CUT,
        deeds={
            "nothing": "close_delimited&cut_after_bytes=0&cut=fin",
            **_at("close_delimited&cut_after_tokens={n}&cut=fin", "role", "reasoning", "text", "tool"),
        },
    ),
    Fault(name="cut inside a tool call", family=_CUT, deeds={"tool": "half_tool&cut=fin"}, is_in_stream=True),
    Fault(name="cut inside reasoning", family=_CUT, deeds={"reasoning": "cut_in=reasoning&cut=fin"}, is_in_stream=True),
    Fault(name="cut behind the finish", family=_CUT, deeds=_at("cut_in=finish", "text", "tool"), is_behind_finish=True),
    Fault(name="cut behind the usage", family=_CUT, deeds=_at("cut_in=usage", "text", "tool"), is_behind_finish=True),
    Fault(name="cut inside a character", family=_BYTES, deeds={"text": Break("character", TEXT_TOKENS)}),
    Fault(
        name="malformed json",
        family=_BYTES,
        deeds={"nothing": Break("malformed"), **_at("malformed_after={n}", "role", "reasoning", "text", "tool")},
    ),
    Fault(
        name="a line of a megabyte",
        family=_BYTES,
        is_harmless=True,
        deeds=_at("long_line_after={n}", "role", "reasoning", "text", "tool"),
    ),
    Fault(name="error event", family=_BYTES, deeds=_at("error_after={n}", "role", "reasoning", "text", "tool", "json")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: Fault
    moment: Moment
    recovery: Recovery
    policy: Policy
    wire: Wire

    def __str__(self) -> str:
        return f"{self.fault.name} | {self.moment} | {self.recovery} | {self.policy} | {self.wire}"

    @property
    def has_next(self) -> bool:
        """Whether the route has a second target."""
        return self.recovery in ("exact", "anchored", "dead")


Ending = Literal["whole", "http_error", "broken"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the client must receive.

    ``whole``: the text of the uncut answer to the byte, its finish reason, one usage, ``[DONE]``, and no error.
    ``http_error``: a status that fits, and the word that it is no use to ask again. ``broken``: what was delivered
    before, an error event, and a connection that closes without the end of the body; no finish reason, no ``[DONE]``.

    ``has_seam`` says whether an attempt went on with what the client had, which the stream then says in a comment.
    """

    ending: Ending
    has_seam: bool = False


def expected(row: Row) -> Expected:
    """Return what the client of a stream must receive, by section 5 of the contract."""
    fault, policy = row.fault, row.policy
    if fault.is_harmless or (fault.is_behind_finish and row.wire in ENDS_WITH_FINISH):
        return Expected("whole")
    is_recovered = row.recovery in ("same", "exact", "anchored") and (fault.may_pass or row.recovery != "same")
    match delivered(row):
        case "nothing":
            may_go_on = True
        case "reasoning":
            may_go_on = policy != "error"
        case "text":
            may_go_on = policy == "continue"
        case "json":
            may_go_on = policy == "continue"
            is_recovered = row.recovery == "exact" or (row.recovery == "same" and row.wire in GOES_ON_EXACTLY)
        case _:
            may_go_on = False
    has_seen = delivered(row) != "nothing"
    if may_go_on and is_recovered:
        return Expected("whole", has_seam=has_seen)
    return Expected("broken" if has_seen else "http_error")


def delivered(row: Row) -> Literal["nothing", "reasoning", "text", "tool", "json"]:
    """Return what of the answer the client has seen when the fault happens."""
    match row.moment:
        case "nothing" | "role":
            return "nothing"
        case "tool":
            is_passed_on = row.policy == "error" and not row.has_next and row.wire not in CALLS_WITH_FINISH
            return "tool" if is_passed_on else "nothing"
        case moment:
            return moment


def expected_whole(row: Row) -> frozenset[Ending]:
    """Return what the client may receive who asked for the answer in one piece: whole or an error, never half of it.

    Nobody has seen anything, so it may be asked again from the start whatever the policy says of streams. Where only
    the end of the connection is missing the answer may be taken or not; where it takes the deadline to notice that
    nothing comes, no time is left for another attempt.
    """
    fault = row.fault
    is_streamed = row.policy == "continue"
    if fault.is_harmless or (fault.is_in_stream and not is_streamed):
        return frozenset({"whole"})
    is_recovered = row.recovery in ("same", "exact", "anchored") and (fault.may_pass or row.recovery != "same")
    if not is_recovered:
        return frozenset({"whole", "http_error"} if fault.is_behind_finish else {"http_error"})
    is_exact = row.recovery == "exact" or (row.recovery == "same" and row.wire in GOES_ON_EXACTLY)
    is_bound = row.moment == "json" and is_streamed and not is_exact
    is_late = fault.is_hasty and not (is_streamed and row.moment in ("reasoning", "text", "json"))
    return frozenset({"whole", "http_error"} if is_bound or is_late else {"whole"})


def text_before(row: Row) -> str:
    """Return the text that had come when the fault happened."""
    if row.moment not in ("text", "json"):
        return ""
    tokens = tokenize(JSON_TEXT if row.moment == "json" else TEXT)
    if row.fault.is_behind_finish:
        return "".join(tokens)
    if row.fault.name == "cut inside a character":
        return "".join(tokens[: next(n for n in range(TEXT_TOKENS, len(tokens)) if not tokens[n].isascii())])
    return "".join(tokens[:TEXT_TOKENS])


def rows(reading: Reading) -> list[Row]:
    """Return the table, with the wires dealt out for one reading.

    An answer in one piece looks the same to many faults: of that reading every third row is left out, but for JSON.
    """
    table = [row for fault in FAULTS for row in _rows_of(fault, READINGS.index(reading))]
    if reading != "whole":
        return table
    return [row for number, row in enumerate(table) if row.moment == "json" or (number + number // 15) % 3]


def _rows_of(fault: Fault, turn: int) -> Iterator[Row]:
    for moment in fault.deeds:
        wires = _dealt(fault, moment, turn + FAULTS.index(fault))
        for recovery in RECOVERIES:
            for policy in POLICIES:
                yield Row(fault, moment, recovery, policy, next(wires))


def _dealt(fault: Fault, moment: Moment, turn: int) -> Iterator[Wire]:
    can = [wire for wire in WIRES if wire not in fault.without and is_possible(wire, moment)]
    return islice(cycle(can), turn % len(can), None)


def is_possible(wire: Wire, moment: Moment) -> bool:
    """Whether there is such a moment on a wire."""
    return not (moment == "reasoning" and wire == "openai") and not (moment == "role" and wire == "google")
