from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.core.budget import Budgets
from gateway.core.call import Call, ImagePart, Message, OpenFlow, Route, Source, Target, TextPart
from gateway.core.continuation import Continuation
from gateway.core.events import TextDelta
from gateway.core.ledger import NoLedger
from gateway.core.transcript import Transcript


def turn(role: str, *texts: str) -> Message:
    """Return a turn with ``texts`` as its parts."""
    return Message(role=role, parts=tuple(TextPart(text) for text in texts))  # type: ignore[arg-type]  # a role, given as text


CALL = Call(
    request_id="r1",
    messages=(
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("developer", "Be ", "kind."),
        turn("system"),
        turn("assistant", "Yes"),
    ),
)


def test_target_reads_as_provider_and_model() -> None:
    """A model's own name may have a slash in it."""
    assert str(Target("openrouter", "meta/llama")) == "openrouter/meta/llama"


def test_text_of_a_turn_is_all_its_text() -> None:
    """Parts that are not text say nothing."""
    assert Message(role="user", parts=(TextPart("a"), ImagePart("https://h/x"), TextPart("b"))).text == "ab"
    assert Message(role="user").text == ""


def test_system_text_joins_all_instructions() -> None:
    """System and developer turns are one text, wherever they stand; empty ones leave no gap."""
    assert CALL.system_text() == "Be brief.\n\nBe kind."
    assert Call(request_id="r1").system_text() == ""


def test_conversation_is_the_rest() -> None:
    """The other turns, in their order."""
    assert [message.role for message in CALL.conversation()] == ["user", "assistant"]


def test_another_attempt_is_another_call() -> None:
    """A call is never changed in place."""
    again = replace(CALL, attempt=2, target=Target("a", "b"))
    assert (again.attempt, CALL.attempt, CALL.target) == (2, 1, None)
    with pytest.raises(AttributeError, match="immutable"):
        CALL.attempt = 3  # type: ignore[misc]  # that this fails is the point


def test_model_is_called_what_its_target_calls_it() -> None:
    """Before there is a target, it is what the client asked for."""
    asked = replace(CALL, model="chat")
    assert asked.target_model == "chat"
    assert replace(asked, target=Target("a", "b")).target_model == "b"


def test_representation_has_no_secret_and_no_prompt() -> None:
    """A call that ends up in a log or a traceback gives nobody away."""
    call = replace(CALL, credential="hush", source=Source("openai.chat", {"messages": "Hi there"}), stop=("Hi",))
    for secret in ("hush", "Hi", "brief"):
        assert secret not in repr(call)


def test_representation_has_nothing_of_the_answer() -> None:
    """Of an attempt that goes on with one it shows in which way, and not with what."""
    transcript = Transcript()
    transcript.add([TextDelta("hush")])
    call = replace(
        CALL, delivered=transcript, continuation=Continuation(way="anchored", text="hush"), budgets=Budgets()
    )
    assert "hush" not in repr(call)
    assert "way='anchored'" in repr(call)


def test_call_is_a_first_attempt_that_nobody_accounts_for() -> None:
    """Whoever wants something else says so."""
    call = Call(request_id="r1")
    assert (call.attempt, call.other_targets, call.is_fresh) == (1, 0, False)
    assert (call.delivered, call.continuation, call.budgets) == (None, None, None)
    assert isinstance(call.ledger, NoLedger)


def test_route_tries_its_targets_in_their_order_and_goes_on_by_itself() -> None:
    """Nothing is hedged that was not asked for."""
    route = Route(name="chat", targets=(Target("a", "m"), Target("b", "m")))
    assert (route.strategy, route.weights, route.on_interrupt, route.hedge_after_s) == (
        "priority", (), "continue", None,
    )  # fmt: skip


def test_calls_share_nothing_that_can_change() -> None:
    """The headers of one call are not those of the next."""
    assert Call(request_id="a").headers is not Call(request_id="b").headers
    assert Call(request_id="a").route == Route()


async def test_open_flow_never_pauses() -> None:
    """A consumer that always takes more is never waited for."""
    flow = OpenFlow()
    assert not flow.is_paused
    await flow.wait()
