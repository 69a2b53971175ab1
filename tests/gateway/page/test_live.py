"""The live view in a real browser."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Final

import aiohttp
import pytest

from gateway.simulator import Script
from tests.browser import WHY_NOT, Page, open_page
from tests.conftest import QUICK, MakeGateway, Running, over
from tests.eventually import eventually

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

ENDLESS: Final = Script(first_token_s=0.05, interval_s=0.01, token_count=5000)
KEY: Final = "an admin's key"

ROWS: Final = "[...document.querySelectorAll('#flight li')]"
NOW: Final = f"{ROWS}.map((row) => row.textContent)"
BAR: Final = "new DOMMatrix(getComputedStyle(document.querySelector('#flight .track i')).transform).e"
RECENT: Final = "[...document.querySelectorAll('#recent tr')].map((row) => row.className.trim())"


@pytest.fixture
async def page(chromium: str) -> AsyncIterator[Page]:
    """A fresh tab."""
    async with open_page(chromium) as opened:
        yield opened


def asked(running: Running, *, model: str = "chat") -> asyncio.Task[bytes]:
    """Ask for an answer, and read it to its end."""

    async def read() -> bytes:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{running.url}/v1/chat/completions", json=body) as response,
        ):
            return await response.read()

    return asyncio.create_task(read())


async def leave(task: asyncio.Task[bytes]) -> None:
    """Hang up."""
    task.cancel()
    await asyncio.wait([task])


async def test_streams_in_flight_are_bars_that_move_until_they_end(make_gateway: MakeGateway, page: Page) -> None:
    """Then they are among those that have ended, with how."""
    running = await make_gateway("openai", default=replace(ENDLESS, interval_s=0.1))
    await page.open(running.admin_url)
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    assert await page.evaluate("document.querySelector('#calm').checkVisibility()")
    one, two = asked(running), asked(running)
    await page.wait_for(f"{ROWS}.length === 2")
    assert all("openai/gpt-5-mini" in told for told in await page.wait_for(NOW))
    await page.wait_for("document.querySelector('#flight .track i')?.style.transform.startsWith('translateX')")
    first = await page.evaluate(BAR)
    await page.wait_for(f"{BAR} > {first} + 5")
    await leave(one)
    await page.wait_for(f"{ROWS}.length === 1")
    assert await page.wait_for(RECENT) == ["client_aborted"]
    await leave(two)
    await page.wait_for(f"{ROWS}.length === 0 && {RECENT}.length === 2")
    assert page.complaints == []


async def test_upstreams_show_how_they_do_and_whether_they_are_asked(make_gateway: MakeGateway, page: Page) -> None:
    """A chart each for the first token and the pace; of one that has failed too often, that it is not asked."""
    models = {
        "broken": {"targets": ["openai/gpt-5-mini?status=500"]},
        "chat": {"targets": ["anthropic/claude-haiku-4-5"]},
    }
    config = {**over("openai", "anthropic"), "models": models}
    running = await make_gateway(config=config, default=QUICK)
    await page.open(running.admin_url)
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    card = "[...document.querySelectorAll('#upstreams li')].find((one) => one.textContent.startsWith('%s'))"
    well, ill = card % "anthropic/", card % "openai/"
    for _ in range(3):
        await asked(running, model="broken")
    await page.wait_for(f"{ill}?.querySelector('.state').textContent === 'not asked'")
    assert "failed" in await page.evaluate(f"{ill}.textContent")

    async def is_drawn() -> bool:
        await asked(running, model="chat")
        lines = f"[...({well}?.querySelectorAll('.line') ?? [])].map((line) => line.getAttribute('d'))"
        return all(await page.evaluate(lines) or [""])

    await eventually(is_drawn, every_s=0.3)
    assert await page.evaluate(f"{well}.querySelector('.state').textContent") == "well"
    assert page.complaints == []


async def test_a_tab_that_nobody_looks_at_asks_for_nothing(make_gateway: MakeGateway, page: Page) -> None:
    """It comes back by itself when it is looked at again."""
    running = await make_gateway("openai", default=ENDLESS)
    await page.open(running.admin_url)
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    async with page.in_background():
        await page.wait_for("document.querySelector('#status').textContent === 'Resting'")
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    assert page.complaints == []


async def test_a_view_without_its_gateway_says_so(make_gateway: MakeGateway, page: Page) -> None:
    """What it shows is not what is; the gateway waits for no viewer when it stops."""
    running = await make_gateway("openai", default=ENDLESS)
    await page.open(running.admin_url)
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    async with asyncio.timeout(20):
        await running.gateway.stop()
    await page.wait_for("document.querySelector('#status').textContent.startsWith('No connection')")


@pytest.mark.parametrize("width", [320, 1200])
async def test_with_an_admin_key_it_is_shown_to_who_has_it(make_gateway: MakeGateway, page: Page, width: int) -> None:
    """A form asks for it, and keeps it for as long as the tab is open; nothing is scrolled sideways."""
    config: Mapping[str, Any] = {**over("openai"), "server": {"admin_key": KEY}}
    running = await make_gateway(config=config, default=QUICK)
    await page.look(scheme="dark", width=width)
    await page.open(running.admin_url)
    await page.wait_for("document.querySelector('#login').checkVisibility()")
    await page.write("#key", "wrong")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#refused').checkVisibility()")
    assert not await page.evaluate("document.querySelector('#view').checkVisibility()")
    await page.write("#key", KEY)
    await page.press("Enter")
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    await asked(running)
    await page.wait_for(f"{RECENT}.length === 1")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("[localStorage.length, sessionStorage.getItem('millrace.admin-key')]") == [0, KEY]
    await page.open(f"{running.admin_url}/?again")
    await page.wait_for("document.querySelector('#status').textContent === 'Ready'")
    assert not await page.evaluate("document.querySelector('#login').checkVisibility()")
