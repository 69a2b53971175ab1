"""What is answered depends on who said what, and the limits of the request are kept."""

import json
from dataclasses import replace

import pytest

from gateway.simulator.ask import Ask, Checkpoint, Tool, Turn
from gateway.simulator.scene import LEAD, Answer, identify, stage
from gateway.simulator.script import Script
from gateway.simulator.text import tokenize

QUESTION = (Turn("system", "Be brief."), Turn("user", "What does a weir do?"))
ASK = Ask(model="mill", turns=QUESTION)
WEATHER = Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}})
TIDE = Tool("get_tide", {"type": "object", "properties": {}})
ASK_WITH_TOOLS = replace(ASK, tools=(WEATHER, TIDE, Tool("third", None)))


def answer_to(ask: Ask, **script: object) -> Answer:
    """Return the first choice."""
    return stage(ask, Script(**script)).answers[0]  # type: ignore[arg-type] # fields of any type


def text_of(answer: Answer) -> str:
    """Return an answer's text as one."""
    return "".join(answer.text)


def test_identity_is_who_said_what() -> None:
    """White space, how turns are split and where the system speaks do not count; words and roles do."""
    assert identify(QUESTION) == identify([QUESTION[1], Turn("system", "Be brief.")])
    assert identify(QUESTION) == identify([QUESTION[0], Turn("user", "What does "), Turn("user", "a weir do? ")])
    assert identify(QUESTION) != identify([QUESTION[0], Turn("assistant", "What does a weir do?")])
    assert identify(QUESTION) != identify([QUESTION[1]])
    results = [Turn("tool", "7"), Turn("tool", '{"result": 8}')]
    assert identify([*QUESTION, *results]) == identify([*QUESTION, Turn("tool", "else")])


def test_the_model_and_the_wire_do_not_change_the_text() -> None:
    """Only the conversation does."""
    assert answer_to(ASK) == answer_to(replace(ASK, model="other"))


def test_tools_are_called_once_and_then_their_result_is_told() -> None:
    """A user's turn brings calls; a tool's turn brings text that mentions what came."""
    calls = answer_to(ASK_WITH_TOOLS).calls
    assert [call.name for call in calls] == ["get_weather", "get_tide"]
    assert json.loads(calls[1].json) == {}
    done = (*QUESTION, Turn("assistant", "", calls=("get_weather",)), Turn("tool", '{"result": "rain, 9 °C"}'))
    answer = answer_to(replace(ASK_WITH_TOOLS, turns=done))
    assert answer.calls == ()
    assert text_of(answer).startswith("I have the result of get_weather (rain, 9 °C), so here is the answer.\n\n")


@pytest.mark.parametrize(
    "result",
    ["rain, 9 °C", '"rain, 9 °C"', '{"output": "rain, 9 °C"}', '{"result": {"content": "rain,  9 °C"}}'],
)
def test_a_result_is_told_alike_however_it_is_wrapped(result: str) -> None:
    """Each wire puts its own object around it."""
    turns = (*QUESTION, Turn("assistant", "", calls=("w",)), Turn("tool", result))
    assert text_of(answer_to(replace(ASK, turns=turns))).startswith("I have the result of w (rain, 9 °C)")


def test_tool_choice_is_honoured() -> None:
    """None, one by name, only one at a time, or required again after a result."""
    assert answer_to(replace(ASK_WITH_TOOLS, tool_choice="none")).calls == ()
    assert [call.name for call in answer_to(replace(ASK_WITH_TOOLS, tool_choice=TIDE)).calls] == ["get_tide"]
    assert len(answer_to(replace(ASK_WITH_TOOLS, is_parallel=False)).calls) == 1
    turns = (*QUESTION, Turn("assistant", "", calls=("get_tide",)), Turn("tool", "high"))
    assert answer_to(replace(ASK_WITH_TOOLS, turns=turns, tool_choice="required")).calls


def test_a_script_can_force_calls_or_text() -> None:
    """`tools=n` calls n tools, offered or not; `lead` says something first."""
    assert len(answer_to(ASK, tools=3).calls) == 3
    assert answer_to(ASK_WITH_TOOLS, tools=0).calls == ()
    led = answer_to(ASK_WITH_TOOLS, lead=True)
    assert text_of(led) == LEAD
    assert len(led.calls) == 2


def test_an_answer_as_json_fits_its_schema() -> None:
    """A schema is a document made from it."""
    schema = {"type": "object", "properties": {"depth": {"type": "integer"}}, "required": ["depth"]}
    document = json.loads(text_of(answer_to(replace(ASK, answer_schema=schema))))
    assert isinstance(document["depth"], int)


def test_reasoning_comes_when_asked_or_when_the_script_says() -> None:
    """And the script can forbid it."""
    assert answer_to(ASK).reasoning == ()
    assert answer_to(replace(ASK, wants_reasoning=True)).reasoning
    assert answer_to(ASK, reasoning="on").reasoning
    assert answer_to(replace(ASK, wants_reasoning=True), reasoning="off").reasoning == ()


@pytest.mark.parametrize("limit", [0, 1, 30, 60])
def test_a_limit_is_spent_on_reasoning_first(limit: int) -> None:
    """Reasoning, text and arguments share it, and the answer ends for its length."""
    ask = replace(ASK, wants_reasoning=True, max_tokens=limit)
    answer, whole = answer_to(ask), answer_to(replace(ask, max_tokens=None))
    assert answer.token_count == limit
    assert answer.ending == "length"
    assert answer.reasoning == whole.reasoning[:limit]
    assert answer.text == whole.text[: max(0, limit - len(whole.reasoning))]


def test_a_limit_can_fall_inside_a_tool_call() -> None:
    """The call is then not whole."""
    answer = answer_to(replace(ASK_WITH_TOOLS, max_tokens=2))
    assert [(len(call.arguments), call.is_whole) for call in answer.calls] == [(2, False)]


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    """An answer of exactly so many tokens has ended by itself."""
    count = len(answer_to(ASK).text)
    assert answer_to(replace(ASK, max_tokens=count)).ending == "stop"


def test_stop_sequences_end_the_text_before_them() -> None:
    """The first that comes counts, and is told."""
    text = text_of(answer_to(ASK))
    answer = answer_to(replace(ASK, stop=("not in it", text[100:110], text[50:55])))
    assert text_of(answer) == text[: text.index(text[50:55])]
    assert (answer.ending, answer.stop_sequence) == ("stop_sequence", text[50:55])


def test_several_choices_differ() -> None:
    """The first is what one alone would be."""
    answers = stage(replace(ASK, choice_count=3), Script(token_count=40)).answers
    assert answers[0] == answer_to(ASK, token_count=40)
    assert len({text_of(answer) for answer in answers}) > 1


def test_a_script_can_say_what_is_said_and_how_much() -> None:
    """A text of one's own, or a number of tokens."""
    assert text_of(answer_to(ASK, say="Just this.")) == "Just this."
    assert len(answer_to(ASK, token_count=1000).text) == 1000


def test_usage_counts_what_is_said() -> None:
    """Reasoning is part of the output; a longer prompt costs more."""
    scene = stage(replace(ASK, wants_reasoning=True), Script())
    answer = scene.answers[0]
    assert scene.output_tokens == len(answer.text) + len(answer.reasoning)
    assert scene.reasoning_tokens == len(answer.reasoning)
    longer = (*QUESTION, Turn("user", "Tell me more about it, please."))
    assert stage(replace(ASK, turns=longer), Script()).prompt_tokens > scene.prompt_tokens


def test_a_strangers_partial_is_continued_from_its_length() -> None:
    """Another provider's text is taken as given, and the rest of our own follows."""
    strange = "Weirs, as everyone in the valley will tell you, hold water back."
    turns = (*QUESTION, Turn("assistant", strange))
    own = text_of(answer_to(ASK))
    assert text_of(answer_to(replace(ASK, turns=turns, trailing="continue"))) == own[len(strange) :]


def test_a_prefill_goes_on_inside_the_reasoning() -> None:
    """With the reasoning so far and no text yet, the rest of the reasoning comes first."""
    whole = answer_to(replace(ASK, wants_reasoning=True))
    thought = "".join(whole.reasoning)
    begun = replace(ASK, turns=(*QUESTION, Turn("assistant", "", reasoning=thought[:50])), trailing="continue")
    answer = answer_to(replace(begun, wants_reasoning=True))
    assert thought[:50] + "".join(answer.reasoning) == thought
    assert answer.text == whole.text


def test_a_prefill_of_text_brings_no_new_reasoning_unless_the_wire_thinks_again() -> None:
    """Gemini does."""
    partial = text_of(answer_to(ASK))[:30]
    ask = replace(ASK, turns=(*QUESTION, Turn("assistant", partial)), trailing="continue", wants_reasoning=True)
    assert answer_to(ask).reasoning == ()
    assert answer_to(replace(ask, rethinks=True)).reasoning


def test_a_limit_holds_for_all_hops_together() -> None:
    """Tokens before a checkpoint are not given again."""
    whole = answer_to(ASK)
    checkpoint = Checkpoint(char_count=len("".join(whole.text[:20])), token_count=20)
    answer = answer_to(replace(ASK, checkpoint=checkpoint, max_tokens=50))
    assert answer.text == whole.text[20:50]
    assert answer.ending == "length"


def test_a_partial_answer_to_a_request_with_tools_is_continued_as_text() -> None:
    """What was text before does not become a call."""
    turns = (*QUESTION, Turn("assistant", "A weir"))
    answer = answer_to(replace(ASK_WITH_TOOLS, turns=turns, trailing="continue"))
    assert answer.calls == ()
    assert answer.text
    led = (*QUESTION, Turn("assistant", LEAD[:20]))
    answer = answer_to(replace(ASK_WITH_TOOLS, turns=led, trailing="continue"), lead=True)
    assert LEAD[:20] + text_of(answer) == LEAD
    assert len(answer.calls) == 2


def test_ignoring_a_request_to_go_on_begins_another_answer() -> None:
    """`obey=ignore` has nothing of the partial."""
    own = text_of(answer_to(ASK))
    asked = (*QUESTION, Turn("assistant", own[:300]), Turn("user", "Repeat the last 40 characters and go on."))
    scene = stage(replace(ASK, turns=asked), Script(obey="ignore"))
    assert scene.way == "anchored"
    assert not text_of(scene.answers[0]).startswith(own[260:300])
    assert text_of(scene.answers[0]) != own[300:]
    assert len(tokenize(text_of(scene.answers[0]))) == len(scene.answers[0].text)
