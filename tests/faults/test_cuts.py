"""A text that is cut anywhere is, once continued, the text that was not cut; or the client is told that it is not all.

Cut at every byte of the answer, over five wires; at places, in texts and by models that nobody has thought of, found by
hypothesis; and over real sockets, with FIN and RST. What runs without sockets is in ``in_memory.py``.

One thing cannot be known and is allowed: where fewer than twelve characters had been delivered, and an answer that was
asked for in words begins with exactly these, the client may have that answer instead.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.config import parse_config
from gateway.core.seam import ANCHOR_CHARACTERS, LEAST_ANCHOR_CHARACTERS
from gateway.simulator.script import Obedience, Script
from gateway.simulator.text import tokenize
from tests.conftest import MODELS, pointed_at
from tests.faults.bench import BreakingSimulator
from tests.faults.in_memory import Attempt, Providers, Received
from tests.faults.matrix import TEXT as LONGER
from tests.raw_client import chat, exchange, request
from tests.scripted_upstream import texts_of
from tests.sdk.truth import TOOLS

TEXT: Final = "# Wehr\n\nA **weir** — naïve 🐟:\n\n- 水, 👩\u200d🌾!"
"""Short, for it is cut thousands of times; ``LONGER`` is cut where it is dearer to try."""
EXACT: Final = ("mistral", "anthropic", "google", "vllm", "groq", "deepseek", "llama.cpp")
ANCHORED: Final = ("openai", "claude", "meta", "llama", "together", "azure")
DEAD: Final = Attempt(script=Script(status=500))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nobody waits between the attempts that are made in memory."""
    if "on_the_wire" in request.node.name:
        return
    real = asyncio.sleep

    async def sleep(_: float, result: Any = None) -> Any:
        return await real(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for thousands of examples."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


# --- every byte


@pytest.mark.parametrize("name", ["mistral", "anthropic", "google", "vllm", "openai"])
async def test_a_text_cut_at_every_byte_arrives_as_it_is(name: str) -> None:
    """Wherever the stream breaks off, the same target goes on with it, exactly or in words, and not a byte shows it."""
    script = Script(say=TEXT)
    uncut = await Providers({name: [Attempt(script=script)]}).receive()
    assert (uncut.is_whole, uncut.text) == (True, TEXT)
    ways = set()
    for place in range(len(uncut.attempts[0].played.body)):
        cut = Attempt(script=script, cut_after_bytes=place, piece_bytes=97 if place % 16 == 0 else 65536)
        received = await Providers({name: [cut, Attempt(script=script)]}).receive()
        assert received.is_whole, (place, received.error)
        assert received.text == TEXT, place
        assert received.body.endswith(b"data: [DONE]\n\n")
        ways |= {made.way for made in received.attempts}
    assert ways == {"", _way_of(name)}


@pytest.mark.parametrize(
    ("first", "second"),
    [("openai", "vllm"), ("vllm", "openai"), ("google", "claude"), ("mistral", "llama"), ("anthropic", "mistral")],
)
async def test_a_text_cut_at_many_bytes_is_gone_on_with_by_the_next(first: str, second: str) -> None:
    """So does another target, with another wire, when the first one does not come back."""
    script = Script(say=LONGER)
    size = len((await Providers({first: [Attempt(script=script)]}).receive()).attempts[0].played.body)
    for place in range(0, size, 29):
        cut = Attempt(script=script, cut_after_bytes=place)
        received = await Providers({first: [cut, DEAD], second: [Attempt(script=script)]}).receive()
        assert (received.is_whole, received.text) == (True, LONGER), (place, received.error)


@pytest.mark.parametrize("checkpoint_every", [3, 16])
async def test_a_text_cut_behind_a_checkpoint_is_gone_on_with_from_there(checkpoint_every: int) -> None:
    """Where a provider has its own token for that, what it says again behind its token is not delivered again."""
    script = Script(say=LONGER, checkpoint_every=checkpoint_every)
    size = len((await Providers({"argon": [Attempt(script=script)]}).receive()).attempts[0].played.body)
    ways = set()
    for place in range(0, size, 29):
        cut = Attempt(script=script, cut_after_bytes=place)
        received = await Providers({"argon": [cut, Attempt(script=script)]}).receive()
        assert (received.is_whole, received.text) == (True, LONGER), (place, received.error)
        ways |= {made.way for made in received.attempts}
    assert "checkpoint" in ways


def _way_of(name: str) -> str:
    return "anchored" if name in ANCHORED else "echo" if name == "mistral" else "prefill"


@pytest.mark.parametrize("name", EXACT)
async def test_who_refuses_a_partial_answer_is_asked_in_words(name: str) -> None:
    """Though its kind should take one: that is learned at the price of one request, and the text arrives as it is."""
    script = Script(say=LONGER)
    uncut = await Providers({name: [Attempt(script=script)]}).receive()
    refusing = Attempt(script=Script(say=LONGER, prefill="reject"))
    for place in range(0, len(uncut.attempts[0].played.body), 151):
        received = await Providers({name: [Attempt(script=script, cut_after_bytes=place), refusing]}).receive()
        assert (received.is_whole, received.text) == (True, LONGER), (place, received.error)
        statuses = [made.played.status for made in received.attempts]
        assert statuses in ([200], [200, 200], [200, 400, 200]), statuses


@pytest.mark.parametrize("name", EXACT)
async def test_an_echo_that_nobody_expects_is_cut_off(name: str) -> None:
    """As is the want of one at a provider that is known to repeat the partial answer, once that has some length."""
    script = Script(say=LONGER)
    size = len((await Providers({name: [Attempt(script=script)]}).receive()).attempts[0].played.body)
    contrary = Attempt(script=Script(say=LONGER, echo="off" if name == "mistral" else "on"))
    seen = 0
    for place in range(0, size, 151):
        received = await Providers({name: [Attempt(script=script, cut_after_bytes=place), contrary]}).receive()
        if len(received.attempts[-1].delivered) >= ANCHOR_CHARACTERS:
            seen += 1
            assert (received.is_whole, received.text) == (True, LONGER), (place, received.error)
    assert seen > 10


# --- over sockets


@pytest.mark.parametrize("name", ["mistral", "anthropic", "google", "vllm", "openai"])
async def test_a_text_cut_on_the_wire_arrives_as_it_is(name: str) -> None:
    """With FIN and with RST in turns, through a real gateway and from a real provider."""
    base = Script(say=LONGER, first_token_s=0.001, interval_s=0)
    async with BreakingSimulator() as simulator:
        kind = {"kind": name} if name in MODELS else {"kind": "openai-compatible", "host": name}
        document = pointed_at(simulator, {"providers": {name: kind}})
        gateway = Gateway(parse_config(yaml.safe_dump(document), "cuts.yaml", {}))
        await gateway.start()
        gate = asyncio.Semaphore(32)

        async def ask(number: int, *scripts: str) -> tuple[str, bool]:
            simulator.plan(f"cut{number}", *scripts, "", base=base)
            body = request("/v1/chat/completions", chat(model=f"{name}/{MODELS.get(name, 'mill')}?cut{number}"))
            async with gate:
                answer = await exchange(f"http://127.0.0.1:{gateway.port}", body, timeout_s=30)
            return "".join(texts_of(answer.body)), answer.is_whole

        try:
            assert await ask(0) == (LONGER, True)
            places = range(0, simulator.requests[0].bytes_sent, 53)
            cuts = [f"cut_after_bytes={place}&cut={('fin', 'rst')[place % 2]}" for place in places]
            heard = await asyncio.gather(*(ask(number, script) for number, script in enumerate(cuts, 1)))
        finally:
            await gateway.stop()
    assert {script: one for script, one in zip(cuts, heard, strict=True) if one != (LONGER, True)} == {}


# --- what is counted


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of answer: how it is asked for, and what is said."""

    script: Script
    asked: Mapping[str, Any] = field(default_factory=dict)


KINDS: Final[Mapping[str, Kind]] = {
    "text": Kind(Script(say=TEXT)),
    "text behind reasoning": Kind(Script(say=TEXT, reasoning="on")),
    "text before tool calls": Kind(Script(lead=True), {"tools": TOOLS}),
    "text between checkpoints": Kind(Script(say=TEXT, checkpoint_every=8)),
}
LONG_PROMPT: Final = "What does a weir do, and why does it matter? " * 12
SHOWS_REASONING: Final = ("mistral", "anthropic", "google", "vllm", "claude", "meta")
COUNTED: Final = [
    *(("text", name) for name in (*EXACT, *ANCHORED)),
    *(("text behind reasoning", name) for name in SHOWS_REASONING),
    *(("text before tool calls", name) for name in ("mistral", "anthropic", "vllm", "openai", "claude", "llama")),
    ("text between checkpoints", "argon"),
]


@pytest.mark.parametrize(("kind", "name"), COUNTED)
async def test_the_usage_is_that_of_one_answer(kind: str, name: str) -> None:
    """However often it was asked for: the prompt once, and the tokens that the client has.

    Give or take a few of the prompt, which is told only for the attempt that had part of the answer in it.
    """
    script, asked = KINDS[kind].script, {**KINDS[kind].asked, "stream_options": {"include_usage": True}}
    uncut = await Providers({name: [Attempt(script=script)]}, prompt=LONG_PROMPT).receive(**asked)
    size = len(uncut.attempts[0].played.body)
    wrong = {}
    for place in range(0, size, max(1, size // 60)):
        cut = Attempt(script=script, cut_after_bytes=place)
        received = await Providers({name: [cut, Attempt(script=script)]}, prompt=LONG_PROMPT).receive(**asked)
        assert received.is_whole, (place, received.error)
        if received.attempts[-1].way and not _is_near(received.usage, uncut.usage):
            wrong[place] = received.usage
    assert wrong == {}, f"{len(wrong)} times not about {uncut.usage}"


def _is_near(usage: tuple[int, int], uncut: tuple[int, int]) -> bool:
    return abs(usage[0] - uncut[0]) <= 15 and abs(usage[1] - uncut[1]) <= 3


@pytest.mark.parametrize("name", [*EXACT, *ANCHORED])
@pytest.mark.parametrize("limit", [6, 15])
async def test_a_limit_holds_over_a_seam(name: str, limit: int) -> None:
    """The client's ``max_tokens`` is for the whole answer, however many attempts it takes.

    A model that repeats the end of its answer may need a token more where a token was cut in two.
    """
    script = Script(say=TEXT)
    asked = {"max_tokens": limit}
    uncut = await Providers({name: [Attempt(script=script)]}).receive(**asked)
    assert len(tokenize(uncut.text)) == limit
    size = len(uncut.attempts[0].played.body)
    most = limit + (2 if name in ANCHORED else 0)
    over = {}
    for place in range(0, size, max(1, size // 60)):
        cut = Attempt(script=script, cut_after_bytes=place)
        received = await Providers({name: [cut, Attempt(script=script)]}).receive(**asked)
        assert received.is_whole, (place, received.error)
        assert TEXT.startswith(received.text)
        if len(tokenize(received.text)) > most:
            over[place] = received.text
    assert over == {}


@pytest.mark.parametrize("name", ["mistral", "anthropic", "google", "vllm", "openai", "claude"])
@pytest.mark.parametrize("stop", ["weir** — ", "- 水"])
async def test_a_stop_sequence_ends_the_answer_over_a_seam(name: str, stop: str) -> None:
    """Also one that begins before the seam and ends behind it, where no provider can see it."""
    script = Script(say=TEXT)
    size = len((await Providers({name: [Attempt(script=script)]}).receive()).attempts[0].played.body)
    for place in range(0, size, max(1, size // 70)):
        cut = Attempt(script=script, cut_after_bytes=place)
        received = await Providers({name: [cut, Attempt(script=script)]}).receive(stop=[stop])
        assert (received.is_whole, received.text) == (True, TEXT[: TEXT.index(stop)]), (place, received.error)


# --- any text, any cut, any model

FRAGMENTS: Final = st.one_of(
    st.sampled_from(
        [
            "the ", "weir ", " holds", " ", "  ", "\t", "\n", "\n\n", "\r\n", "## ", "- ", "* ", "```\n", "`x`", "...",
            "é", "e\u0301", "🐟", "👩\u200d👩\u200d👧", "🇳🇴", "水", "الماء ", "한국", "na ", "na na ", "0", "1, 2, 3, ",
            "Of course. ", "Continuing:\n", '"', "\\", "\u2028", "\x00", "<b>", "|---|", "\u00a0", "\ufeff", "}",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
    st.text(alphabet="ab ", min_size=1, max_size=8),
)  # fmt: skip
TEXTS: Final = st.one_of(
    st.lists(FRAGMENTS, min_size=1, max_size=12).map("".join),
    st.lists(FRAGMENTS, min_size=12, max_size=30).map("".join),
)
TARGETS: Final = st.sampled_from((*EXACT, *ANCHORED))
OBEDIENCES: Final[tuple[Obedience, ...]] = ("rephrase", "preamble", "repeat_more", "repeat_less", "ignore")
EXAMPLES: Final = settings(max_examples=600, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@dataclass(frozen=True, slots=True)
class Case:
    """A text, who says it and who goes on with it, and after how many bytes each of the first attempts is cut."""

    text: str
    first: str
    second: str
    cuts: tuple[int, ...]
    piece_bytes: int

    @property
    def is_exact(self) -> bool:
        """Whether whoever goes on with it does so exactly."""
        return self.second in EXACT

    async def receive(self, **habits: Any) -> Received:
        """Break it off, and go on with it; ``habits`` are those of who does."""
        said = Script(say=self.text)
        later = Script(say=self.text, **habits)
        head, *tail = [
            Attempt(script=later if place else said, cut_after_bytes=cut, piece_bytes=self.piece_bytes)
            for place, cut in enumerate(self.cuts)
        ]
        rest = [*tail, Attempt(script=later, piece_bytes=self.piece_bytes)]
        if self.first == self.second:
            return await Providers({self.first: [head, *rest]}).receive()
        return await Providers({self.first: [head, DEAD], self.second: rest}).receive()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw one. A quarter of the cuts lie behind the end, and do not happen."""
    text, first = draw(TEXTS), draw(TARGETS)
    second = draw(st.one_of(st.just(first), TARGETS))
    most = 400 + 120 * len(tokenize(text))
    cuts = draw(st.lists(st.integers(0, most), min_size=1, max_size=3))
    return Case(text, first, second, tuple(cuts), draw(st.sampled_from([11, 64, 4096, 4096])))


@EXAMPLES
@given(case=cases())
def test_any_text_cut_anywhere_arrives_when_models_obey(loop: asyncio.AbstractEventLoop, case: Case) -> None:
    """Up to three times, on any wire, in pieces of any size; one cut before an exact target is always mended."""
    received = loop.run_until_complete(case.receive())
    _note(received)
    assert _is_told_truly(case.text, received)
    if case.is_exact and len(case.cuts) == 1:
        assert received.is_whole, received.error


@EXAMPLES
@given(case=cases(), obey=st.sampled_from(OBEDIENCES), prefill=st.sampled_from(["auto", "reject"]))
def test_no_disobedience_doubles_or_loses_a_character(
    loop: asyncio.AbstractEventLoop, case: Case, obey: Obedience, prefill: Literal["auto", "reject"]
) -> None:
    """A model that says it in other words, or begins again, or does not take a partial answer, ends in an error."""
    received = loop.run_until_complete(case.receive(obey=obey, prefill=prefill))
    _note(received)
    assert _is_told_truly(case.text, received) or _is_another_answer(received)


@EXAMPLES
@given(case=cases(), echo=st.sampled_from(["on", "off"]), prefill=st.sampled_from(["auto", "accept"]))
def test_an_echo_against_the_habit_is_seen(
    loop: asyncio.AbstractEventLoop,
    case: Case,
    echo: Literal["on", "off"],
    prefill: Literal["auto", "accept"],
) -> None:
    """Of some length; whether a short one is an echo, or the text come to the same words again, nobody can know."""
    received = loop.run_until_complete(case.receive(echo=echo, prefill=prefill))
    _note(received)
    assert _is_told_truly(case.text, received) or _is_another_answer(received) or _is_short_echo(received)


def _note(received: Received) -> None:
    for made in received.attempts:
        note(f"{made.call.target}: {made.way or 'from the start'}, behind {made.delivered!r}: {made.played.status}")
    note(f"received {received.text!r}, {received.error or 'whole'}")


def _is_told_truly(text: str, received: Received) -> bool:
    """Whether the client has the text, or an error and a beginning of it."""
    return received.text == text if received.is_whole else text.startswith(received.text)


def _is_another_answer(received: Received) -> bool:
    """Whether the client may have the answer of a model that went its own way, since too little had been delivered."""
    for place, made in enumerate(received.attempts):
        had, said, got = made.delivered.lstrip(), made.said.lstrip(), received.text.lstrip()
        is_own = made.way == "anchored" and len(had) < LEAST_ANCHOR_CHARACTERS and said.startswith(had)
        if is_own and (said.startswith(got) or got.startswith(said)):
            return True
        if is_own and any(later.way for later in received.attempts[place + 1 :]):
            return True  # who goes on with that answer is not asked what it would have been
    return False


def _is_short_echo(received: Received) -> bool:
    return any(
        made.way in ("prefill", "echo")
        and len(made.delivered) < ANCHOR_CHARACTERS
        and (made.way == "echo") != (made.call.target is not None and made.call.target.provider == "mistral")
        for made in received.attempts
    )
