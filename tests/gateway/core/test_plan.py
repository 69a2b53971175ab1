from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from gateway.core.call import OPENAI_CHAT, Call, Message, ResponseFormat, Route, Source, Target, TextPart
from gateway.core.continuation import Checkpoint
from gateway.core.delivery import MOST_CHARACTERS_PER_TOKEN
from gateway.core.errors import StreamInterrupted
from gateway.core.events import (
    CheckpointReached,
    ChoiceFinished,
    Event,
    ReasoningDelta,
    RefusalDelta,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from gateway.core.plan import Plan, holds_calls, is_spoken, may_go_on, plans
from gateway.core.seam import SEAM_NOT_FOUND, AnchorTrim, DropTrim, SpaceTrim, StopTrim
from gateway.core.transcript import Transcript

START = StreamStarted("c1", "m", target="a/x")
TEXT = "The mill stands by the river, and its wheel has turned for three hundred years."
QUESTION = Message(role="user", parts=(TextPart("Tell me of the mill."),))
TARGETS = (Target("a", "x"), Target("b", "y"))


def make_call(policy: str = "continue", *, body: dict[str, Any] | None = None, **more: Any) -> Call:
    """Return a call of a route with this policy."""
    route = Route(targets=TARGETS, on_interrupt=policy)  # type: ignore[arg-type]  # one of the closed set
    source = Source(OPENAI_CHAT, body or {})
    return Call(request_id="t", messages=(QUESTION,), route=route, source=source, **more)


def delivered(*events: Event) -> Transcript:
    """Return a transcript of what was delivered."""
    transcript = Transcript()
    transcript.add([START, *events])
    return transcript


def words(text: str = TEXT, index: int = 0) -> list[Event]:
    """Return text as deltas of a word each."""
    return [TextDelta(word, index) for word in text.replace(" ", " |").split("|")]


def planned(call: Call, *events: Event, index: int = 0) -> list[Plan]:
    """Return the ways to go on behind these events."""
    return list(plans(call, delivered(*events), index))


# --- whether the answer may still become whole

CALL = (ToolCallStarted(0, "id", "f"), ToolCallDelta(0, "{"))
TABLE: list[tuple[str, list[Event], tuple[bool, bool, bool]]] = [
    ("nothing", [], (True, True, True)),
    ("text", [TextDelta("a")], (True, False, False)),
    ("white space", [TextDelta(" ")], (True, False, False)),
    ("reasoning", [ReasoningDelta("a")], (True, True, False)),
    ("reasoning and text", [ReasoningDelta("a"), TextDelta("a")], (True, False, False)),
    ("half a call", [*CALL], (False, False, False)),
    ("text and half a call", [TextDelta("a"), *CALL], (False, False, False)),
    ("a whole call of one choice", [*CALL, ChoiceFinished("tool_calls")], (True, True, False)),
    ("a refusal", [RefusalDelta("no")], (False, False, False)),
]


@pytest.mark.parametrize(("events", "allowed"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_was_delivered_and_the_route_decide_whether_to_go_on(
    events: list[Event], allowed: tuple[bool, bool, bool]
) -> None:
    """The table of what happens at an interruption, for ``continue``, ``restart`` and ``error``."""
    policies = ("continue", "restart", "error")
    assert tuple(may_go_on(make_call(policy), delivered(*events)) for policy in policies) == allowed


def test_words_that_were_spoken_are_not_gone_on_with() -> None:
    """The transcript has the words of audio, and not its sound; what nobody has heard may be begun again."""
    spoken = make_call(body={"modalities": ["text", "audio"]})
    assert not may_go_on(spoken, delivered(TextDelta("a")))
    assert may_go_on(spoken, delivered())
    assert may_go_on(make_call(body={"modalities": ["text"]}), delivered(TextDelta("a")))


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        (["text", "audio"], True),
        (["text"], False),
        ([], False),
        (None, False),
        ("audio", False),
        (1, False),
        ({}, False),
    ],
)
def test_an_answer_is_spoken_if_its_modalities_have_audio(modalities: object, expected: bool) -> None:  # noqa: FBT001
    """What is no list is nothing a provider would take; it is not ours to fail for."""
    assert is_spoken(make_call(body={"modalities": modalities})) is expected


@pytest.mark.parametrize(
    ("policy", "targets", "expected"),
    [
        ("continue", TARGETS, True),
        ("continue", TARGETS[:1], True),
        ("restart", TARGETS[:1], True),
        ("error", TARGETS, True),
        ("error", TARGETS[:1], False),
    ],
)
def test_tool_calls_are_held_where_the_call_may_be_made_again(
    policy: Any,
    targets: tuple[Target, ...],
    expected: bool,  # noqa: FBT001
) -> None:
    """Only one target that is not asked again streams them."""
    assert holds_calls(Call(request_id="t", route=Route(targets=targets, on_interrupt=policy))) is expected


# --- the ways


def test_text_is_gone_on_with_exactly_or_else_anchored() -> None:
    """In this order; each with the whole text, and the client's name of the answer."""
    ways = planned(make_call(), *words())
    assert [plan.way for plan in ways] == ["exact", "anchored"]
    for plan in ways:
        continuation = plan.call.continuation
        assert continuation is not None
        assert (continuation.way, continuation.text, continuation.started) == (plan.way, TEXT, START)


def test_an_exact_call_is_the_clients_own() -> None:
    """What is new of it is in its continuation; nothing is to be cut."""
    exact, _ = planned(make_call(), *words())
    assert (exact.call.messages, exact.trims, exact.check) == ((QUESTION,), (), None)
    assert exact.added_tokens > len(words())


def test_a_checkpoint_goes_with_the_exact_way() -> None:
    """Its target may go on from there without a word of the text."""
    exact, anchored = planned(make_call(), TextDelta(TEXT), CheckpointReached("t"))
    assert exact.call.continuation is not None
    assert anchored.call.continuation is not None
    assert exact.call.continuation.checkpoint == Checkpoint(target="a/x", token="t", character_count=len(TEXT))
    assert anchored.call.continuation.checkpoint is None


def test_an_anchored_call_asks_in_the_users_voice_for_the_last_words() -> None:
    """How many characters, and which; what it answered stands before that as its own turn."""
    _, anchored = planned(make_call(), *words())
    question, answer, request = anchored.call.messages
    assert (question, answer.role, answer.text, request.role) == (QUESTION, "assistant", TEXT, "user")
    *_, anchor = request.text.partition("characters:\n")
    assert TEXT.endswith(anchor)
    assert 40 <= len(anchor) < 60
    assert request.text.count(f" {len(anchor)} characters") == 2
    [trim] = anchored.trims
    assert isinstance(trim, AnchorTrim)
    assert trim.take(f"{anchor} And more.") + trim.finish() == " And more."
    assert anchored.added_tokens > planned(make_call(), *words())[0].added_tokens


def test_the_length_of_the_anchor_can_be_chosen() -> None:
    """In characters, up to the word that it begins in."""
    [_, anchored] = plans(make_call(), delivered(*words()), anchor_characters=20)
    *_, anchor = anchored.call.messages[-1].text.partition("characters:\n")
    assert 20 <= len(anchor) < 40


def test_text_without_an_end_to_find_again_is_continued_exactly_or_not_at_all() -> None:
    """One that says the same over and over can be cut at many places."""
    assert [plan.way for plan in planned(make_call(), TextDelta("na " * 300))] == ["exact"]


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": ResponseFormat(kind="json_object")},
        {"response_format": ResponseFormat(kind="json_schema")},
        {"response_format": ResponseFormat(kind="other")},
        {"logprobs": True},
        {"choice_count": 2},
    ],
    ids=str,
)
def test_text_that_words_would_spoil_is_continued_exactly_only(more: dict[str, Any]) -> None:
    """In a given form, with log probabilities, beside others."""
    assert [plan.way for plan in planned(make_call(**more), *words())] == ["exact"]


def test_plain_text_is_no_form() -> None:
    """A client may say so."""
    call = make_call(response_format=ResponseFormat(kind="text"))
    exact, _ = planned(call, *words())
    assert exact.check is None


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_json_in_two_parts_must_be_json_in_the_end(kind: Any) -> None:
    """A seam in a string can look right and not be it."""
    [exact] = planned(make_call(response_format=ResponseFormat(kind=kind)), TextDelta('{"a": '))
    assert exact.check is not None
    exact.check('{"a": 1}')
    for text in ('{"a": 1', '{"a": 1}}', "", "[" * 100_000, '"\ud800"'):
        with pytest.raises(StreamInterrupted) as raised:
            exact.check(text)
        assert raised.value.code == SEAM_NOT_FOUND


def test_another_form_than_json_is_not_looked_at() -> None:
    """A grammar is known only to the host whose it is."""
    [exact] = planned(make_call(response_format=ResponseFormat(kind="other", name="grammar")), *words())
    assert exact.check is None


@pytest.mark.parametrize("text", ["", " \n"])
def test_what_nobody_wants_to_keep_is_begun_again(text: str) -> None:
    """Nothing, reasoning or white space, which is not said twice."""
    events: list[Event] = [ReasoningDelta("hm"), *([TextDelta(text)] if text else [])]
    call = make_call(max_output_tokens=100, stop=("x",))
    [again] = planned(call, *events)
    assert (again.way, again.call.messages, again.call.max_output_tokens) == ("restart", (QUESTION,), 100)
    assert (again.added_tokens, again.check) == (0, None)
    assert again.call.continuation is not None
    assert (again.call.continuation.way, again.call.continuation.text) == ("restart", "")
    assert [type(trim) for trim in again.trims] == ([SpaceTrim] if text else [])
    assert [trim.take(" \nYes") for trim in again.trims] == (["Yes"] if text else [])


# --- limits


def test_the_limit_is_for_the_whole_answer() -> None:
    """What was delivered of it is taken off; the client's own limit goes along for who wants it so."""
    for plan in planned(make_call(max_output_tokens=100), ReasoningDelta("hm"), *words()):
        assert plan.call.continuation is not None
        assert plan.call.continuation.limit_tokens == 100
        left = 100 - len(words()) - 1
        if plan.way == "exact":
            assert plan.call.max_output_tokens == left
        else:  # there must be room for the words that are said again
            assert plan.call.max_output_tokens is not None
            *_, anchor = plan.call.messages[-1].text.partition("characters:\n")
            assert left + len(anchor.split()) <= plan.call.max_output_tokens <= left + len(anchor.split()) + 3


def test_words_that_came_in_large_pieces_need_no_less_room() -> None:
    """A delta may have a whole paragraph."""
    text = TEXT + "x" * MOST_CHARACTERS_PER_TOKEN
    exact, anchored = planned(make_call(max_output_tokens=1000), TextDelta(text))
    assert exact.call.max_output_tokens is not None
    assert anchored.call.max_output_tokens is not None
    assert anchored.call.max_output_tokens >= exact.call.max_output_tokens + 10


def test_a_limit_is_never_less_than_one() -> None:
    """Zero would be refused, and the answer may have been about to end."""
    exact, _ = planned(make_call(max_output_tokens=3), *words())
    assert exact.call.max_output_tokens == 1


@pytest.mark.parametrize(("limit_tokens", "is_full"), [(None, False), (99, False), (4, False), (3, True), (2, True)])
def test_a_client_that_has_as_much_as_it_wanted_is_only_told_the_end(limit_tokens: int | None, is_full: bool) -> None:  # noqa: FBT001
    """The one token that has to be asked for is not for it."""
    for plan in planned(make_call(max_output_tokens=limit_tokens), *map(TextDelta, ("a ", "long ", "story"))):
        assert any(isinstance(trim, DropTrim) for trim in plan.trims) is is_full


def test_no_limit_stays_none() -> None:
    """Nobody asked for one."""
    assert {plan.call.max_output_tokens for plan in planned(make_call(), *words())} == {None}


# --- stop sequences


def test_a_stop_sequence_is_watched_for_across_the_seam() -> None:
    """The provider sees only the rest of it, whichever way it goes on."""
    exact, anchored = planned(make_call(stop=("years.\n",)), *words())
    assert [type(trim) for trim in exact.trims] == [StopTrim]
    assert [type(trim) for trim in anchored.trims] == [AnchorTrim, StopTrim]
    assert exact.call.stop == anchored.call.stop == ("years.\n",)


def test_the_trims_of_one_way_know_nothing_of_the_others() -> None:
    """An attempt that failed has held text back in them."""
    [exact, anchored] = planned(make_call(stop=("years.\n",)), *words())
    [again, _] = planned(make_call(stop=("years.\n",)), *words())
    trims = {id(exact.trims[0]), id(anchored.trims[1]), id(again.trims[0])}
    assert len(trims) == 3


# --- several choices


def test_one_choice_of_several_is_asked_for_alone() -> None:
    """Also in the client's own body; its text is that of this choice."""
    call = make_call(choice_count=2, body={"n": 2, "model": "m"})
    [plan] = planned(call, *words("one"), *words("two", 1), index=1)
    assert (plan.call.choice_count, dict(plan.call.source.body)) == (1, {"model": "m"})
    assert plan.call.source.wire == OPENAI_CHAT
    assert plan.call.continuation is not None
    assert plan.call.continuation.text == "two"
    assert call.source.body["n"] == 2


def test_a_choice_of_which_nothing_came_is_begun_alone() -> None:
    """The others are not asked for again."""
    call = make_call(choice_count=2, body={"n": 2})
    for events in (words("one"), [ChoiceFinished("content_filter")]):
        [plan] = planned(call, *events, index=1)
        assert (plan.way, plan.call.choice_count, dict(plan.call.source.body)) == ("restart", 1, {})


def test_a_call_for_one_choice_keeps_its_body() -> None:
    """The very same object: there is nothing to take out of it."""
    call = make_call(body={"n": 1})
    exact, _ = planned(call, *words())
    assert exact.call.source is call.source


def test_plans_do_not_change_the_call() -> None:
    """What is asked next begins from the client's own."""
    call = make_call(max_output_tokens=50, stop=("x",))
    before = structs.replace(call)
    planned(call, *words())
    assert call == before
