"""The server: scripts come from three places, what was asked is on record, and many are served at once."""

import asyncio
from typing import Any

import aiohttp
import pytest

from gateway.simulator import Record, Script, ScriptError, Simulator

QUICK = Script(first_token_s=0, interval_s=0)
MESSAGES = [{"role": "user", "content": "What does a weir do?"}]
CHAT = "/v1/chat/completions"


async def ask(simulator: Simulator, model: str = "mill", path: str = CHAT, **fields: Any) -> tuple[int, bytes]:
    """Ask and return the status and the body; an empty body if it broke."""
    body = {"model": model, "messages": MESSAGES, "stream": True, **fields}
    async with aiohttp.ClientSession() as session, session.post(simulator.origin + path, json=body) as response:
        try:
            return response.status, await response.read()
        except aiohttp.ClientPayloadError:
            return response.status, b""


async def ended(record: Record) -> None:
    """Wait until a request has ended."""
    async with asyncio.timeout(20):
        while record.outcome == "open":  # noqa: ASYNC110 - a record has no event
            await asyncio.sleep(0.005)


async def test_scripts_are_used_up_one_per_request_and_then_the_default_holds() -> None:
    """First a 429, then a 503, then answers."""
    async with Simulator([Script(status=429), "status=503"], default=QUICK) as simulator:
        statuses = [(await ask(simulator))[0] for _ in range(3)]
        assert statuses == [429, 503, 200]


async def test_a_script_in_the_models_name_goes_first_and_uses_up_none() -> None:
    """It changes only what it names."""
    async with Simulator([Script(status=429)], default=QUICK) as simulator:
        assert (await ask(simulator, "mill?status=418"))[0] == 418
        assert (await ask(simulator))[0] == 429
        assert [record.model for record in simulator.requests] == ["mill", "mill"]
        assert simulator.requests[0].script == "status=418"


async def test_a_script_can_wait_for_a_path() -> None:
    """Others are answered in the meantime."""
    async with Simulator(default=QUICK) as simulator:
        simulator.enqueue(Script(status=500), path="/openai")
        assert (await ask(simulator))[0] == 200
        assert (await ask(simulator, path="/openai/v1/chat/completions"))[0] == 500
        assert simulator.clear_scripts() == 0


async def test_a_bad_script_in_the_models_name_is_a_400_that_names_the_fault() -> None:
    """In a constructor it is an exception."""
    async with Simulator(default=QUICK) as simulator:
        status, body = await ask(simulator, "mill?cut=maybe")
        assert status == 400
        assert b"script key 'cut' takes one of fin, rst, clean, not 'maybe'" in body
    with pytest.raises(ScriptError):
        Simulator(["foo=1"])


async def test_scripts_are_queued_and_dropped_over_http() -> None:
    """Good lists are taken, bad ones refused with each fault named."""
    async with Simulator(default=QUICK) as simulator, aiohttp.ClientSession(simulator.origin) as session:
        entries = ["status=503", {"script": "status=500", "path": "/anthropic"}]
        async with session.post("/_sim/scripts", json=entries) as response:
            assert await response.json() == {"queued": 2}
        async with session.post("/_sim/scripts", json=["cut=maybe&foo", 7]) as response:
            assert response.status == 400
            errors = (await response.json())["errors"]
            assert [error.partition(":")[0] for error in errors] == ["entry 0", "entry 0", "entry 1"]
        assert (await ask(simulator))[0] == 503
        async with session.delete("/_sim/scripts") as response:
            assert await response.json() == {"dropped": 1}


async def test_what_was_asked_is_on_record_without_its_words() -> None:
    """Path, wire, model, tokens, bytes, outcome and times; bodies only if asked for."""
    async with Simulator(default=QUICK) as simulator, aiohttp.ClientSession(simulator.origin) as session:
        _, body = await ask(simulator, "mill?token_count=12", path="/hosts/groq/v1/chat/completions")
        async with session.get("/_sim/requests") as response:
            text = await response.text()
            (record,) = (await response.json())["requests"]
        assert "weir" not in text
        assert (record["path"], record["wire"]) == ("/hosts/groq/v1/chat/completions", "groq")
        assert (record["model"], record["script"]) == ("mill", "token_count=12")
        assert (record["tokens_sent"], record["bytes_sent"]) == (12, len(body))
        assert (record["status"], record["outcome"], record["is_continuation"]) == (200, "finished", False)
        assert record["started_at_s"] <= record["ended_at_s"]
        async with session.get("/_sim/requests?bodies=1") as response:
            assert "weir" in await response.text()
        async with session.delete("/_sim/requests") as response:
            assert await response.json() == {"dropped": 1}
        assert simulator.requests == []


async def test_a_continuation_is_on_record_as_one() -> None:
    """With the way in which it was asked for."""
    async with Simulator(default=QUICK) as simulator:
        messages = [*MESSAGES, {"role": "assistant", "content": "A weir"}]
        await ask(simulator, path="/hosts/groq/v1/chat/completions", messages=messages)
        assert (simulator.requests[0].is_continuation, simulator.requests[0].way) == (True, "prefill")


async def test_a_client_that_leaves_is_noticed() -> None:
    """Its stream is ended and on record."""
    async with Simulator(default=Script(stall_after=3)) as simulator:
        body = {"model": "mill", "messages": MESSAGES, "stream": True}
        async with aiohttp.ClientSession() as session:
            response = await session.post(simulator.origin + CHAT, json=body)
            await response.content.readany()
            response.close()
        record = simulator.requests[0]
        await ended(record)
        assert record.outcome == "client_gone"


async def test_stopping_ends_every_stream() -> None:
    """Nobody has to wait for a stall."""
    simulator = Simulator(default=Script(stall_after=3))
    await simulator.start()
    asking = asyncio.create_task(ask(simulator))
    async with asyncio.timeout(20):
        while not simulator.requests or not simulator.requests[0].bytes_sent:  # noqa: ASYNC110 - same
            await asyncio.sleep(0.005)
        await simulator.stop()
        await asking
    assert simulator.requests[0].outcome == "stopped"


async def test_two_hundred_streams_at_once_are_all_whole() -> None:
    """Each is paced, and each gets every byte and its end."""
    async with Simulator(default=Script(first_token_s=0.05, interval_s=0.005, token_count=40)) as simulator:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(number: int) -> bytes:
                messages = [{"role": "user", "content": f"question {number}"}]
                body = {"model": "mill", "messages": messages, "stream": True}
                async with session.post(simulator.origin + CHAT, json=body) as response:
                    return await response.read()

            bodies = await asyncio.gather(*(one(number) for number in range(200)))
        assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
        assert {record.tokens_sent for record in simulator.requests} == {40}
        assert len(simulator.requests) == 200


async def test_the_front_page_says_how_to_use_it() -> None:
    """With a command that can be copied."""
    async with Simulator() as simulator, aiohttp.ClientSession(simulator.origin) as session:
        async with session.get("/") as response:
            assert f"curl -N {simulator.origin}/v1/chat/completions" in await response.text()
        async with session.get("/nowhere") as response:
            assert response.status == 404


@pytest.mark.parametrize("path", ["/v1/models", "/anthropic/v1/models", "/v1beta/models", "/hosts/groq/v1/models"])
async def test_models_are_listed(path: str) -> None:
    """In each provider's shape, and not on record."""
    async with Simulator() as simulator, aiohttp.ClientSession(simulator.origin) as session:
        async with session.get(path) as response:
            assert "mill" in await response.text()
        assert simulator.requests == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'"text"'])
async def test_a_body_that_is_no_object_is_a_400(body: bytes) -> None:
    """In the provider's words."""
    async with (
        Simulator() as simulator,
        aiohttp.ClientSession(simulator.origin) as session,
        session.post(CHAT, data=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


def test_the_app_can_be_served_by_someone_else() -> None:
    """It has all routes."""
    assert len(Simulator().make_app().router.routes()) > 5
