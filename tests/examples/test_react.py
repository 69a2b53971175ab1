"""The React example, built with Vite as its users build it, in a real browser."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from gateway.simulator import Script
from tests import browser, firefox
from tests.browser import BrowserError, Page, open_page
from tests.conftest import MakeGateway, Running, over
from tests.eventually import eventually
from tests.firefox import FirefoxPage, open_firefox_page
from tests.sdk.install import REACT, find_node, why_not
from tests.sdk.truth import scene_of, text_of

NODE: Final = find_node()
WHY_NOT: Final = why_not(NODE, REACT)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

QUESTION: Final = "What does a mill race do – in naïve words? 🐟"
STEADY: Final = Script(first_token_s=0.1, interval_s=0.005, token_count=120)
ANSWER: Final = text_of(scene_of(("user", QUESTION), script=STEADY).answers[0])
TEXT: Final = "document.querySelector('article').textContent"
STATUS: Final = "document.querySelector('article')?.dataset.status"
ALERT: Final = "(document.querySelector('[role=alert] p')?.textContent ?? '')"


Opened = AbstractAsyncContextManager[Page | FirefoxPage]
Open = Callable[[], Opened]


@pytest.fixture(
    params=[
        pytest.param("chromium", marks=pytest.mark.skipif(bool(browser.WHY_NOT), reason=browser.WHY_NOT)),
        pytest.param("firefox", marks=pytest.mark.skipif(bool(firefox.WHY_NOT), reason=firefox.WHY_NOT)),
    ]
)
def open_tab(request: pytest.FixtureRequest) -> Open:
    """Open a fresh tab of each browser."""
    address = request.getfixturevalue(request.param)

    def start() -> Opened:
        return open_page(address) if request.param == "chromium" else open_firefox_page(address)

    return start


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built."""
    folder = tmp_path_factory.mktemp("react") / "example"
    shutil.copytree(REACT, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "node_modules").symlink_to(REACT / "node_modules")
    done = subprocess.run(_vite("build"), cwd=folder, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603, the one of the example
    assert done.returncode == 0, done.stderr
    return folder


def _vite(*arguments: str) -> list[str]:
    assert NODE is not None
    return [str(NODE.path), str(REACT / "node_modules" / "vite" / "bin" / "vite.js"), *arguments]


@asynccontextmanager
async def served(folder: Path, gateway_url: str) -> AsyncIterator[str]:
    """Serve the example beside a gateway."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *_vite("preview", "--host", "127.0.0.1", "--port", str(port), "--strictPort"),
        cwd=folder,
        env={**os.environ, "MILLRACE_URL": gateway_url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert process.returncode is None, "vite preview has ended"
            return False
        writer.close()
        return True

    try:
        await eventually(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def chatting(folder: Path, running: Running, open_tab: Open) -> AsyncIterator[Page | FirefoxPage]:
    """Open the example, and ask."""
    async with served(folder, running.url) as url, open_tab() as page:
        await page.open(url)
        await page.wait_for("document.querySelector('input') !== null")
        await page.write("input", QUESTION)
        await page.press("Enter")
        yield page


async def test_the_answer_grows_until_it_is_whole(make_gateway: MakeGateway, built: Path, open_tab: Open) -> None:
    """Each chunk is appended as it comes, and a letter that was cut is one letter."""
    running = await make_gateway("openai", default=replace(STEADY, interval_s=0.02))
    async with chatting(built, running, open_tab) as page:
        lengths = [await page.wait_for(f"{TEXT}.length")]
        while await page.evaluate(STATUS) != "done":
            lengths.append(await page.evaluate(f"{TEXT}.length"))
            await asyncio.sleep(0.02)
        assert lengths == sorted(lengths)
        assert len(set(lengths)) >= 3
        assert await page.evaluate(TEXT) == ANSWER
        assert page.complaints == []


async def test_stop_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, built: Path, open_tab: Open) -> None:
    """What has come stays."""
    running = await make_gateway("openai", default=replace(STEADY, token_count=5000))
    async with chatting(built, running, open_tab) as page:
        await page.wait_for(f"{TEXT}.length > 20")

        async def is_stopped() -> bool:  # the button goes down while the answer grows, and a click may come too late
            if await page.evaluate(STATUS) == "stopped":
                return True
            with suppress(BrowserError):  # it goes away when it has been hit
                await page.click(".stop")
            return False

        await eventually(is_stopped)
        await eventually(lambda: running.simulator.requests[-1].outcome == "client_gone")
        assert await page.evaluate(f"{TEXT}.length") > 20


async def test_an_answer_that_breaks_off_is_told_and_asked_for_again(
    make_gateway: MakeGateway, built: Path, open_tab: Open
) -> None:
    """Half an answer is never taken for a whole one, behind Vite's proxy too; an error is told in its own words."""
    models = {"chat": {"targets": ["openai/gpt-5-mini"], "on_interrupt": "error"}}
    scripts = [replace(STEADY, cut_after_tokens=30), replace(STEADY, status=401)]
    running = await make_gateway(config={**over("openai"), "models": models}, scripts=scripts, default=STEADY)
    async with chatting(built, running, open_tab) as page:
        assert await page.wait_for(ALERT) == "The answer broke off before its end."
        said = await page.evaluate(TEXT)
        assert said
        assert ANSWER.startswith(said)
        assert said != ANSWER
        await page.click("[role=alert] button")
        await page.wait_for(f"{ALERT} !== '' && !{ALERT}.includes('broke off')")
        assert await page.evaluate(TEXT) == ""
        await page.click("[role=alert] button")
        await page.wait_for(f"{STATUS} === 'done'")
        assert await page.evaluate(TEXT) == ANSWER
        assert await page.evaluate(ALERT) == ""


async def test_a_mistake_of_the_page_takes_away_the_chat_and_nothing_else(
    make_gateway: MakeGateway, built: Path, open_tab: Open
) -> None:
    """The error boundary says so, and one can start over."""
    running = await make_gateway("openai", default=STEADY)
    async with served(built, running.url) as url, open_tab() as page:
        await page.open(url)
        await page.wait_for("document.querySelector('input') !== null")
        await page.evaluate("window.TextDecoder = function () { throw new Error('no decoder'); }, 0")
        await page.write("input", QUESTION)
        await page.press("Enter")
        assert "no decoder" in await page.wait_for(ALERT)
        assert await page.evaluate("document.querySelector('h1').textContent") == "Streaming chat"
        await page.click("[role=alert] button")
        await page.wait_for("document.querySelector('input') !== null")
