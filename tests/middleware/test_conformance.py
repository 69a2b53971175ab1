from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from structlog.testing import capture_logs

import middleware
from gateway.core.call import Call, Message, Route, Target
from gateway.core.errors import (
    ClientGone,
    GatewayError,
    StreamInterrupted,
    Unauthorized,
    UpstreamError,
    UpstreamRefused,
)
from gateway.core.events import (
    AttemptFailed,
    ChoiceFinished,
    Event,
    Frame,
    ReasoningDelta,
    StreamContinued,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from gateway.core.lifecycle import Lifecycle
from gateway.core.transcript import Transcript
from gateway.pipeline import Middleware, Next, Send, compose
from middleware.auth import Auth, Key
from middleware.fallback import Fallback
from middleware.observe import Observe
from middleware.resume import Resume
from tests.middleware.scripted_endpoint import ANSWER, HANG, START, Recorder, ScriptedEndpoint, ignore

KEY = "a-client-key"
MIDDLEWARES: dict[str, Callable[[], Middleware]] = {
    "Auth": lambda: Auth((Key("web", hashlib.sha256(KEY.encode()).hexdigest()),)),
    "Fallback": Fallback,
    "Observe": Observe,
    "Resume": Resume,
}
"""Every middleware that ships with the gateway; a new one joins by its line."""

NAMES = {"all of them": ["Observe", "Auth", "Fallback", "Resume"]}
"""The default chain."""

CALL = Call(
    request_id="t",
    credential=KEY,
    route=Route(name="chat", targets=(Target("openai", "gpt"), Target("anthropic", "claude"))),
)


@pytest.fixture(params=[*MIDDLEWARES, "all of them"])
def chain(request: pytest.FixtureRequest) -> Callable[[ScriptedEndpoint], asyncio.Future[None]]:
    """Run a call through one middleware, or through the default chain, to an endpoint, and send to a list."""
    middlewares = [MIDDLEWARES[name]() for name in NAMES.get(request.param, [request.param])]
    return lambda endpoint: asyncio.ensure_future(_run(middlewares, endpoint, ignore))


Chain = Callable[[ScriptedEndpoint], "asyncio.Future[None]"]


async def _run(
    middlewares: Sequence[Middleware], endpoint: Next, send: Callable[[Any], None], call: Call = CALL
) -> None:
    with capture_logs():
        await compose(middlewares, endpoint)(call, send)


def test_every_middleware_of_the_package_is_in_the_table() -> None:
    """None escapes what is tested here."""
    found = set()
    for module in pkgutil.iter_modules(middleware.__path__):
        members = vars(importlib.import_module(f"middleware.{module.name}")).values()
        found |= {
            item.__name__
            for item in members
            if inspect.isclass(item) and item.__module__ == f"middleware.{module.name}" and "__call__" in vars(item)
        }
    assert found == set(MIDDLEWARES)


@pytest.mark.parametrize("name", MIDDLEWARES)
def test_a_middleware_is_an_immutable_dataclass(name: str) -> None:
    """Its fields are its options; nothing of a call stays in it."""
    params = type(MIDDLEWARES[name]()).__dataclass_params__  # type: ignore[attr-defined]  # every dataclass has them
    assert params.frozen


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_events_pass_unchanged_when_there_is_nothing_to_do(name: str, stream: bool) -> None:  # noqa: FBT001
    """The very same batches of the very same events, with their frames, whether they are waited for or not."""
    frame = Frame(b"{}", "w", 1)
    batches: list[list[Event]] = [[StreamStarted("a", "m", frame=frame)], [TextDelta("b", frame=frame)], *ANSWER[1:]]
    sent: list[list[Event]] = []
    call = structs.replace(CALL, stream=stream)
    await _run([MIDDLEWARES[name]()], endpoint := ScriptedEndpoint(batches), sent.append, call)
    assert len(endpoint.calls) == 1
    assert len(sent) == len(batches)
    assert all(got is wanted for got, wanted in zip(sent, batches, strict=True))


@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_the_call_itself_is_not_changed(name: str) -> None:
    """What goes on is a new one."""
    before = structs.asdict(CALL)
    await _run([MIDDLEWARES[name]()], ScriptedEndpoint(), ignore)
    assert structs.asdict(CALL) == before


@pytest.mark.parametrize(
    "error",
    [Unauthorized("who"), UpstreamRefused("no"), ClientGone("left"), RuntimeError("a fault"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_an_error_that_nobody_can_mend_is_passed_on(name: str, error: BaseException) -> None:
    """The very same one, after one attempt."""
    endpoint = ScriptedEndpoint([error])
    with pytest.raises(type(error)) as raised:
        await _run([MIDDLEWARES[name]()], endpoint, ignore)
    assert raised.value is error
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize("policy", ["restart", "error"])
@pytest.mark.parametrize("name", [*MIDDLEWARES, "all of them"])
async def test_an_interruption_that_is_not_to_be_mended_is_passed_on(name: str, policy: Any) -> None:
    """Nothing is begun again that could be seen twice."""
    error = StreamInterrupted("cut")
    endpoint = ScriptedEndpoint([[START, TextDelta("a")], error])
    sent: list[Event] = []
    call = structs.replace(CALL, stream=True, route=replace(CALL.route, on_interrupt=policy))
    with pytest.raises(GatewayError) as raised:
        await _run([MIDDLEWARES[one]() for one in NAMES.get(name, [name])], endpoint, sent.extend, call)
    assert raised.value is error
    assert len(endpoint.calls) == 1
    assert sent == [START, TextDelta("a")]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_interruption_is_mended_by_the_chain(stream: bool) -> None:  # noqa: FBT001
    """The client hears one answer, and one end."""
    endpoint = ScriptedEndpoint([[START, TextDelta("Hel")], StreamInterrupted("cut", retry_after_s=0.0)], ANSWER[1:])
    sent: list[Event] = []
    chain = [MIDDLEWARES[one]() for one in NAMES["all of them"]]
    await _run(chain, endpoint, sent.extend, structs.replace(CALL, stream=stream))
    assert "".join(event.text for event in sent if isinstance(event, TextDelta)) == "Hello"
    assert [type(event) for event in sent] == [
        *([StreamStarted, TextDelta, AttemptFailed] if stream else [AttemptFailed, StreamStarted, TextDelta]),
        *[StreamContinued, TextDelta, ChoiceFinished, UsageReported],
    ]


@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_a_client_that_is_gone_ends_the_attempt_at_once(name: str) -> None:
    """What ``send`` raises travels through the provider's side and out again, and no other attempt is made."""
    error = ClientGone("left")
    taken: list[Event] = []

    def leave(events: Sequence[Event]) -> None:
        taken.extend(events)
        raise error

    endpoint = ScriptedEndpoint(ANSWER)
    with pytest.raises(ClientGone) as raised:
        await _run([MIDDLEWARES[name]()], endpoint, leave)
    assert raised.value is error
    assert (taken, len(endpoint.calls)) == (ANSWER[0], 1)


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize("script", [[HANG], [ANSWER[0], HANG]])
async def test_a_cancelled_call_lets_go_of_its_provider(chain: Chain, script: list[list[Event] | str]) -> None:
    """Before the first token and after it, and it is cancelled, not failed."""
    endpoint = ScriptedEndpoint(script)
    work = chain(endpoint)
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (len(endpoint.calls), endpoint.cancelled_count) == (1, 1)


async def test_two_calls_at_once_know_nothing_of_each_other() -> None:
    """One instance serves all."""
    middlewares = [make() for make in MIDDLEWARES.values()]
    sent: tuple[list[list[Event]], list[list[Event]]] = ([], [])
    await asyncio.gather(*(_run(middlewares, ScriptedEndpoint(), into.append) for into in sent))
    assert sent == (list(ANSWER), list(ANSWER))


# --- whatever providers do


WORDS = [f"word{number} " for number in range(24)]
TEXT = "".join(WORDS)
TOOL: list[Event] = [ToolCallStarted(0, "id", "f"), ToolCallDelta(0, '{"a":'), ToolCallDelta(0, "1}")]


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one attempt: how many of its events come, and how it ends if those are not all.

    One to go on may be declined: because that is known of the target, or when it is asked.
    """

    event_count: int
    is_final: bool
    declines: Literal["", "known", "asked"]
    is_slow: bool


class Model:
    """The end of a chain that says the same whoever asks, goes on where it is asked to, and breaks off as drawn."""

    def __init__(self, fates: Sequence[Fate], *, thinks: bool, calls: bool) -> None:
        self._fates = iter(fates)
        self._before: list[Event] = [ReasoningDelta("hm")] if thinks else []
        self._behind: list[Event] = TOOL if calls else []

    async def __call__(self, call: Call, send: Send) -> None:
        """Answer, until it is time to fail."""
        fate = next(self._fates, None)
        events = self._events(call)
        script: list[list[Event] | BaseException | str | float] = [[event] for event in events]
        if fate is not None:
            if fate.declines and call.continuation is not None and call.continuation.way != "restart":
                status = 400 if fate.declines == "asked" else None
                script = [UpstreamRefused("no prefill", refused="continuation", upstream_status=status)]
            elif fate.event_count < len(events):
                script[fate.event_count :] = [StreamInterrupted("cut", retryable=not fate.is_final, retry_after_s=0.0)]
            if fate.is_slow:
                script.insert(0, 0.002)
        await ScriptedEndpoint(script)(call, send)

    def _events(self, call: Call) -> list[Event]:
        begun = call.continuation.text if call.continuation is not None else ""
        rest = TEXT.removeprefix(begun)
        if call.continuation is not None and call.continuation.way == "anchored":
            *_, anchor = call.messages[-1].text.partition("characters:\n")
            rest = anchor + rest
        words: list[Event] = [TextDelta(piece) for piece in re.findall(r".{1,5}", rest)]
        start = StreamStarted(f"c{call.attempt}", "m", target=str(call.target))
        thought = self._before if not begun else []
        return [start, *thought, *words, *self._behind, ChoiceFinished("stop"), UsageReported(Usage(9, 9))]


FATES = st.builds(Fate, st.integers(0, 40), st.booleans(), st.sampled_from(["", "known", "asked"]), st.booleans())


@given(
    fates=st.lists(FATES, max_size=8),
    options=st.fixed_dictionaries({"thinks": st.booleans(), "calls": st.booleans()}),
    stream=st.booleans(),
    policy=st.sampled_from(["continue", "restart", "error"]),
    hedge_after_s=st.sampled_from([None, 0.001]),
)
def test_whatever_providers_do_a_client_hears_one_answer_or_its_beginning(
    fates: list[Fate],
    options: dict[str, bool],
    stream: bool,  # noqa: FBT001
    policy: Any,
    hedge_after_s: float | None,
) -> None:
    """In legal order, with one start and one end; no attempt is counted twice, and none is left behind."""
    ledger, sent = Recorder(), list[Event]()
    targets = (Target("a", "x"), Target("b", "y"), Target("c", "z"))
    route = Route(name="chat", targets=targets, on_interrupt=policy, hedge_after_s=hedge_after_s)
    call = structs.replace(CALL, route=route, stream=stream, ledger=ledger, messages=(Message(role="user"),))
    chain: list[Middleware] = [Observe(), Fallback(hedge_percent=100.0), Resume()]

    async def run() -> bool:
        try:
            await _run(chain, Model(fates, **options), sent.extend, call)
        except UpstreamError:
            return False
        finally:
            assert len(asyncio.all_tasks()) == 1
        return True

    is_whole = asyncio.run(run())
    assert Lifecycle().admit(sent) == sent
    heard = Transcript()
    heard.add(sent)
    arguments = [tool_call.arguments for tool_call in heard.choice().tool_calls.values()]
    assert sum(isinstance(event, StreamStarted) for event in sent) <= 1
    if is_whole:
        assert (heard.choice().text, heard.choice().finish_reason) == (TEXT, "stop")
        assert arguments == (['{"a":1}'] if options["calls"] else [])
    else:
        assert TEXT.startswith(heard.choice().text)
        assert heard.choice().finish_reason is None
        assert arguments == []
    numbers = [one.attempt for one in ledger.settlements]
    assert len(numbers) == len(set(numbers))
