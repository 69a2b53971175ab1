from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

import middleware
from gateway.core.call import Call, Route, Target
from gateway.core.errors import ClientGone, GatewayError, StreamInterrupted, Unauthorized, UpstreamRefused
from gateway.core.events import Event, Frame, StreamStarted, TextDelta
from gateway.pipeline import Middleware, compose
from middleware.auth import Auth, Key
from middleware.fallback import Fallback
from middleware.observe import Observe
from middleware.resume import Resume
from tests.middleware.scripted_endpoint import ANSWER, HANG, START, ScriptedEndpoint, ignore

KEY = "a-client-key"
MIDDLEWARES: dict[str, Callable[[], Middleware]] = {
    "Auth": lambda: Auth((Key("web", hashlib.sha256(KEY.encode()).hexdigest()),)),
    "Fallback": Fallback,
    "Observe": Observe,
    "Resume": Resume,
}
"""Every middleware that ships with the gateway; a new one joins by its line."""

CALL = Call(
    request_id="t",
    credential=KEY,
    route=Route(name="chat", targets=(Target("openai", "gpt"), Target("anthropic", "claude"))),
)


@pytest.fixture(params=[*MIDDLEWARES, "all of them"])
def chain(request: pytest.FixtureRequest) -> Callable[[ScriptedEndpoint], asyncio.Future[None]]:
    """Run a call through one middleware, or through the default chain, to an endpoint, and send to a list."""
    names = ["Observe", "Auth", "Fallback", "Resume"] if request.param == "all of them" else [request.param]
    middlewares = [MIDDLEWARES[name]() for name in names]
    return lambda endpoint: asyncio.ensure_future(_run(middlewares, endpoint, ignore))


Chain = Callable[[ScriptedEndpoint], "asyncio.Future[None]"]


async def _run(middlewares: Sequence[Middleware], endpoint: ScriptedEndpoint, send: Callable[[Any], None]) -> None:
    with capture_logs():
        await compose(middlewares, endpoint)(CALL, send)


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


@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_events_pass_unchanged_when_there_is_nothing_to_do(name: str) -> None:
    """The very same batches of the very same events, with their frames."""
    frame = Frame(b"{}", "w", 1)
    batches: list[list[Event]] = [[StreamStarted("a", "m", frame=frame)], [TextDelta("b", frame=frame)], *ANSWER[1:]]
    sent: list[list[Event]] = []
    await _run([MIDDLEWARES[name]()], endpoint := ScriptedEndpoint(batches), sent.append)
    assert len(endpoint.calls) == 1
    assert len(sent) == len(batches)
    assert all(got is wanted for got, wanted in zip(sent, batches, strict=True))


@pytest.mark.parametrize("name", MIDDLEWARES)
async def test_the_call_itself_is_not_changed(name: str) -> None:
    """What goes on is a new one."""
    before = {slot: getattr(CALL, slot) for slot in CALL.__slots__}
    await _run([MIDDLEWARES[name]()], ScriptedEndpoint(), ignore)
    assert {slot: getattr(CALL, slot) for slot in CALL.__slots__} == before


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


async def test_an_interruption_after_the_first_token_is_passed_on(chain: Chain) -> None:
    """Nothing is begun again that could be seen twice."""
    error = StreamInterrupted("cut")
    endpoint = ScriptedEndpoint([[START, TextDelta("a")], error])
    with pytest.raises(GatewayError) as raised:
        await chain(endpoint)
    assert raised.value is error
    assert len(endpoint.calls) == 1


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
