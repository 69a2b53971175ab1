"""The interruption policy, fault by fault: what the table of ``matrix.py`` promises is what clients receive.

Each row is asked for three times at a real gateway over the simulator: as a stream that is read byte by byte, as a
stream that OpenAI's own client reads, and in one piece.

Of the numbered rows of RELIABILITY.md §1 the table proves 21 to 26 (cuts, resets, 429 and 5xx, an error first, an error
in the middle, a stall), 28 (no usage), 32 (nobody is left, and every attempt is settled) and 55 (bytes that are not the
wire's). ``test_cuts.py`` proves 30 and 31 (a partial answer that is refused, or repeated). 27 and 29, what a provider
says twice or behind its end, are in ``tests/sdk``; 33, 35 and 52, clients that leave or dawdle, with the server's own
tests. The others need several processes, a store, or keys with budgets, and wait for these: 1 to 20, 34, 36 to 51, 53,
54 and 56.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from structlog.testing import capture_logs

from gateway.simulator.text import tokenize
from tests.faults.bench import Bench
from tests.faults.matrix import (
    FAMILIES,
    GOES_ON_EXACTLY,
    JSON_TEXT,
    POLICIES,
    READINGS,
    REASONING_TOKENS,
    RECOVERIES,
    SCHEMA,
    TEXT,
    WIRES,
    Ending,
    Expected,
    Reading,
    Row,
    delivered,
    expected,
    expected_whole,
    rows,
    text_before,
)
from tests.faults.reading import Heard, read_sdk, read_whole, read_wire
from tests.sdk.truth import PROMPT, TOOL_PROMPT, TOOLS, calls_of, quick, reasoning_of, scene_of

AT_ONCE: Final = 30
"""So many rows run side by side; of those in which a time limit runs out, and not for want of a CPU, some more."""

MOST_ATTEMPTS: Final = 3
"""At one target; as many again where an answer in one piece is asked for from the start once more."""

REASONING: Final = reasoning_of(scene_of(("user", PROMPT), script=quick("reasoning=on")).answers[0])
CALLS: Final = calls_of(scene_of(("user", TOOL_PROMPT), has_tools=True).answers[0])

Check = Callable[[Bench, Row, AsyncOpenAI], Awaitable[None]]


@pytest.mark.parametrize("reading", READINGS)
def test_every_fault_comes_on_every_wire(reading: Reading) -> None:
    """No wire is left out, but where the table says so."""
    seen = defaultdict(set)
    for row in rows(reading):
        seen[row.fault.name].add(row.wire)
    assert {name: wires for name, wires in seen.items() if len(wires) < len(WIRES)} == {
        "429 for good": {*WIRES} - {"google"},
        "cut inside reasoning": {*WIRES} - {"openai"},
    }


@pytest.mark.parametrize("reading", READINGS)
def test_every_meeting_of_moment_recovery_and_policy_comes_on_two_wires(reading: Reading) -> None:
    """And the table has all of them."""
    seen = defaultdict(set)
    for row in rows(reading):
        seen[row.moment, row.recovery, row.policy].add(row.wire)
    assert len(seen) == 6 * len(RECOVERIES) * len(POLICIES)
    assert {meeting: wires for meeting, wires in seen.items() if len(wires) < 2} == {}


def test_all_endings_are_promised() -> None:
    """A table that promises one thing only would prove little."""
    endings = [expected(row).ending for row in rows("wire")]
    assert min(endings.count(ending) for ending in ("whole", "broken", "http_error")) > 50


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stream_is_whole_or_its_end_is_told_on_the_wire(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read byte by byte, each row is what the contract promises: order, identity, one end, and seams that show."""

    async def check(bench: Bench, row: Row, _: AsyncOpenAI) -> None:
        heard = await read_wire(bench.url, _body(bench.names[row], row))
        promised = expected(row)
        _check(row, heard, promised)
        _check_target(bench, row, heard)
        if promised.ending == "whole":
            _check_usage(row, heard)
            assert len(heard.seams) == promised.has_seam, heard.seams
            _check_way(bench, row, promised)

    await _check_all(family, "wire", check, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stream_is_whole_or_raises_in_the_client(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own client hands on the same text, and raises wherever it is not the whole."""

    async def check(bench: Bench, row: Row, client: AsyncOpenAI) -> None:
        _check(row, await read_sdk(client, _body(bench.names[row], row)), expected(row))

    await _check_all(family, "sdk", check, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_answer_in_one_piece_is_whole_or_an_error(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for no stream never gets half of an answer, and all of it where that can be had."""

    async def check(bench: Bench, row: Row, client: AsyncOpenAI) -> None:
        heard = await read_whole(client, _body(bench.names[row], row))
        ending: Ending = "whole" if heard.status == 200 else "http_error"
        assert ending in expected_whole(row), f"{ending}: {heard.error}"
        _check(row, heard, Expected(ending), is_in_one_piece=True)

    await _check_all(family, "whole", check, monkeypatch)


# --- what is asked


def _body(model: str, row: Row) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if row.moment == "tool":
        return {**asked, "messages": [{"role": "user", "content": TOOL_PROMPT}], "tools": TOOLS}
    asked["messages"] = [{"role": "user", "content": PROMPT}]
    if row.moment == "json":
        schema = {"name": "structure", "schema": SCHEMA, "strict": True}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    return asked


async def _check_all(family: str, reading: Reading, check: Check, patch: pytest.MonkeyPatch) -> None:
    """Check all rows of a family, side by side; fails with a line for each row that is not as promised."""
    table = [row for row in rows(reading) if row.fault.family == family]
    gates = {False: asyncio.Semaphore(AT_ONCE), True: asyncio.Semaphore(2 * AT_ONCE)}
    with capture_logs() as logs:
        async with _running(table, reading, patch) as (bench, client):

            async def check_one(row: Row) -> None:
                async with gates[row.fault.is_hasty]:
                    await check(bench, row, client)

            outcomes = await asyncio.gather(*map(check_one, table), return_exceptions=True)
    _fail_with(table, outcomes)
    _check_ledger(bench, logs, most=2 * MOST_ATTEMPTS if reading == "whole" else MOST_ATTEMPTS)


@asynccontextmanager
async def _running(
    table: Sequence[Row], reading: Reading, patch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Bench, AsyncOpenAI]]:
    async with Bench.over(table, patch, is_in_one_piece=reading == "whole") as bench:
        http_client = DefaultAsyncHttpxClient(verify=False)  # it would read the certificates
        url = f"{bench.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="any", http_client=http_client, max_retries=0) as client:
            yield bench, client


def _fail_with(table: Iterable[Row], outcomes: Iterable[BaseException | None]) -> None:
    failures = [
        f"{row}: {type(outcome).__name__}: {outcome}"
        for row, outcome in zip(table, outcomes, strict=True)
        if outcome is not None
    ]
    assert failures == [], "\n" + "\n".join(failures)


def _check_ledger(bench: Bench, logs: Sequence[Mapping[str, Any]], *, most: int) -> None:
    """Each attempt that a provider saw is settled once, under a number of its own, and each call ends once.

    No target is asked more often than it may be, and one that says "not today" is not asked again.
    """
    settled, finished = defaultdict(list), defaultdict(list)
    for line in logs:
        if line["event"] == "attempt.settled":
            settled[line["model"]].append((line["attempt"], line["target"]))
        elif line["event"] == "stream.finished":
            finished[line["model"]].append(line["outcome"])
    for row, name in bench.names.items():
        numbers = [number for number, _ in settled[name]]
        assert len(set(numbers)) == len(numbers), (str(row), settled[name])
        counts = Counter(target for _, target in settled[name])
        assert max(counts.values()) <= (most if row.fault.may_pass else most // MOST_ATTEMPTS), (str(row), counts)
        assert len(finished[name]) == 1, (str(row), finished[name])
        reached = sum(len(bench.simulator.asked(target)) for target in (name, f"{name}n"))
        assert reached <= len(settled[name]) <= reached + (3 if row.fault.name in ("refused", "dns") else 0), str(row)


# --- what is received


def _check(row: Row, heard: Heard, promised: Expected, *, is_in_one_piece: bool = False) -> None:
    match promised.ending:
        case "whole":
            assert heard.error is None, f"not whole: {heard.status} {heard.error}"
            _check_whole(row, heard, is_in_one_piece=is_in_one_piece)
        case "broken":
            assert heard.status == 200, f"not broken: {heard.status} {heard.error}"
            assert heard.error is not None, "whole, and should not be"
            _check_broken(row, heard)
        case "http_error":
            assert heard.status in row.fault.statuses, f"{heard.status}: {heard.error}, not {row.fault.statuses}"
            assert heard.headers.get("x-should-retry") == "false"
            if row.fault.has_retry_after:
                assert int(heard.headers["retry-after"]) >= 1


def _check_whole(row: Row, heard: Heard, *, is_in_one_piece: bool) -> None:
    assert heard.is_done
    if row.moment == "tool":
        assert (heard.text, heard.tools, heard.finish_reason) == ("", CALLS, "tool_calls")
    else:
        assert heard.text == (JSON_TEXT if row.moment == "json" else TEXT)
        assert (heard.calls, heard.finish_reason) == ([], "stop")
    assert len(heard.usages) == 1, heard.usages
    if row.moment == "reasoning":
        _check_reasoning(row, heard.reasoning, is_in_one_piece=is_in_one_piece)
    else:
        assert heard.reasoning == ""


def _check_reasoning(row: Row, reasoning: str, *, is_in_one_piece: bool) -> None:
    """What was thought before the break may stand before what was thought again, as a block of its own."""
    if reasoning == REASONING or (is_in_one_piece and not reasoning):
        return  # nobody has seen what there was before
    before, _, rest = reasoning.partition("\n\n")
    assert _is_reasoning_before(row, before), reasoning
    assert rest in ("", REASONING), reasoning  # some that recover do not show what they think


def _is_reasoning_before(row: Row, reasoning: str) -> bool:
    """Whether that is what had come when the fault happened; half-way through is not at the same token on all wires."""
    if row.fault.deeds["reasoning"] == "cut_in=reasoning&cut=fin":
        return len(REASONING) / 3 < len(reasoning) < len(REASONING) and REASONING.startswith(reasoning)
    return reasoning == "".join(tokenize(REASONING)[:REASONING_TOKENS])


def _check_broken(row: Row, heard: Heard) -> None:
    """All that came before the fault is there, and nothing else."""
    assert heard.finish_reason is None
    assert heard.usages == []
    assert heard.text == text_before(row), heard.text
    if row.moment == "reasoning":
        assert _is_reasoning_before(row, heard.reasoning), heard.reasoning
    else:
        assert heard.reasoning == ""
    if delivered(row) != "tool":
        assert heard.calls == []
    else:
        names = [name for name, _ in heard.calls]
        assert names == [name for name, _ in CALLS][: len(names)]
        is_half = len(names) < len(CALLS) or not _is_json(heard.calls[-1][1])
        assert is_half != row.fault.is_behind_finish


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# --- what only the wire shows


def _check_target(bench: Bench, row: Row, heard: Heard) -> None:
    """The header names the target that gave the first token."""
    if heard.status != 200:
        return
    is_first = delivered(row) != "nothing" or row.fault.is_harmless or not row.has_next
    promised = bench.first_target(row) if is_first or expected(row).ending != "whole" else bench.recovering_target(row)
    if row.fault.is_behind_finish and row.moment == "tool" and row.wire != "anthropic":
        promised = bench.first_target(row)
    assert heard.headers["x-millrace-target"] == promised


def _check_usage(row: Row, heard: Heard) -> None:
    """The usage counts the prompt once and what was delivered, give or take what nobody but the provider can count.

    What a model thinks and does not show is counted by its provider, too.
    """
    if row.moment == "tool":
        return
    least = len(tokenize(JSON_TEXT if row.moment == "json" else TEXT)) + len(tokenize(heard.reasoning))
    most = least + (len(tokenize(REASONING)) if row.moment == "reasoning" else 0)
    prompt, completion = heard.usages[0]
    assert least - 5 <= completion <= most + 5, f"{completion} tokens instead of {least} to {most}"
    assert 15 <= prompt <= 30, f"{prompt} tokens of prompt"


def _check_way(bench: Bench, row: Row, promised: Expected) -> None:
    """Text is gone on with in the way that the target knows, and what was not seen is asked for from the start."""
    ways = bench.recovery_ways(row)
    if promised.has_seam and delivered(row) in ("text", "json"):
        is_exact = row.recovery == "exact" or (row.recovery == "same" and row.wire in GOES_ON_EXACTLY)
        assert ways[-1] in (("prefill", "echo") if is_exact else ("anchored",)), ways
    elif ways:
        assert ways[-1] == "", ways
