"""Whether a request asks to go on is told from the conversation, whatever its wording."""

import pytest

from gateway.simulator.ask import Ask, Checkpoint, Turn
from gateway.simulator.continuation import Continuation, find_continuation, obeyed

OWN = "The river is saying one long sentence and has been at it since the ice went back to the hills."
QUESTION = Turn("user", "What does the river say?")
PARTIAL = OWN[:60]


def found(*turns: Turn, **fields: object) -> Continuation:
    """Look for a continuation of `OWN`."""
    ask = Ask(model="m", turns=(QUESTION, *turns), **fields)  # type: ignore[arg-type] # fields of any type
    return find_continuation(ask, lambda turns: OWN if turns == (QUESTION,) else "another answer altogether")


def test_a_plain_question_asks_for_no_continuation() -> None:
    """The conversation is all of it."""
    assert found() == Continuation(turns=(QUESTION,))


def test_a_follow_up_to_a_finished_answer_asks_for_none() -> None:
    """The assistant had said all it had to say."""
    turns = (Turn("assistant", OWN), Turn("user", "Thank you. And the lake?"))
    assert found(*turns) == Continuation(turns=(QUESTION, *turns))


def test_a_trailing_assistant_turn_is_a_prefill_where_the_wire_says_so() -> None:
    """Else it is a turn like any other."""
    turn = Turn("assistant", PARTIAL, reasoning="thought")
    expected = Continuation(turns=(QUESTION,), way="prefill", partial=PARTIAL, partial_reasoning="thought")
    assert found(turn, trailing="continue") == expected
    assert found(turn, trailing="echo").way == "echo"
    assert found(turn, trailing="new") == Continuation(turns=(QUESTION, turn))


def test_a_checkpoint_says_how_far_the_answer_had_come() -> None:
    """The provider's token counts characters of its own text."""
    continuation = found(checkpoint=Checkpoint(char_count=10, token_count=3))
    assert (continuation.way, continuation.partial) == ("checkpoint", OWN[:10])


@pytest.mark.parametrize(
    ("request_text", "anchor_chars"),
    [
        ("Go on.", 40),
        ("Please repeat the last 25 characters and continue.", 25),
        ("Repeat the final 17 UTF-8 characters, then continue.", 17),
        (f"You stopped at «{PARTIAL[-22:]}». Begin with exactly that.", 22),
        (f"Your answer so far was: {PARTIAL} - repeat its last 30 characters and go on.", 30),
        ("Weiter, bitte, ohne Vorrede!", 40),
    ],
)
def test_any_wording_after_its_own_partial_is_a_request_to_go_on(request_text: str, anchor_chars: int) -> None:
    """The anchor is as long as the request says or quotes, and forty characters otherwise."""
    continuation = found(Turn("assistant", PARTIAL), Turn("user", request_text))
    assert (continuation.way, continuation.turns) == ("anchored", (QUESTION,))
    assert (continuation.partial, continuation.anchor_chars) == (PARTIAL, anchor_chars)


def test_a_strangers_partial_is_continued_if_its_end_is_quoted() -> None:
    """Another provider's text is taken as given."""
    strange = "A river never says the same thing twice, or so they"
    asked = found(Turn("assistant", strange), Turn("user", f"Continue after '{strange[-30:]}'"))
    assert (asked.way, asked.partial, asked.anchor_chars) == ("anchored", strange, 30)
    assert found(Turn("assistant", strange), Turn("user", "And the lake?")).way == ""


def test_a_partial_quoted_in_the_request_is_found() -> None:
    """Where no assistant turn may stand before it, the request itself holds the partial."""
    asked = found(Turn("user", f"Your reply broke off:\n\n{PARTIAL}\n\nRepeat its last 15 characters and go on."))
    assert (asked.way, asked.partial, asked.anchor_chars) == ("anchored", PARTIAL, 15)
    assert found(Turn("user", "Are you there?")).way == ""


@pytest.mark.parametrize(
    ("obey", "begins"),
    [
        ("exact", PARTIAL[-12:]),
        ("repeat_more", PARTIAL[-36:]),
        ("repeat_less", PARTIAL[-4:]),
        ("preamble", "Of course. Here is the rest:\n\n" + PARTIAL[-12:]),
        ("ignore", OWN[60:]),
    ],
)
def test_it_obeys_or_not_as_it_is_told(obey: str, begins: str) -> None:
    """Each way to disobey is the same every time."""
    continuation = Continuation(turns=(QUESTION,), way="anchored", partial=PARTIAL, anchor_chars=12)
    text = obeyed(continuation, OWN[60:], obey)  # type: ignore[arg-type] # a parameter
    assert text.startswith(begins)
    assert text.endswith(OWN[60:])


def test_a_rephrased_end_does_not_have_the_anchor() -> None:
    """The words are there in another order, so that no seam can be found."""
    continuation = Continuation(turns=(QUESTION,), way="anchored", partial=PARTIAL, anchor_chars=40)
    text = obeyed(continuation, OWN[60:], "rephrase")
    assert PARTIAL[-12:] not in text
    assert text.endswith(OWN[60:])
