"""The page in a real browser, and what any page can do with the gateway's plain text: no library, no parser."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.simulator import Script
from tests.browser import WHY_NOT, Page, open_page
from tests.conftest import QUICK, MakeGateway, Running, over
from tests.sdk.truth import scene_of, text_of

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

QUESTION: Final = "What does a mill race do – in naïve words? 🐟"
STEADY: Final = Script(first_token_s=0.1, interval_s=0.01, token_count=150)
ENDLESS: Final = replace(STEADY, token_count=5000)
ANSWER: Final = text_of(scene_of(("user", QUESTION), script=STEADY).answers[0])

ANSWER_LENGTH: Final = "document.querySelector('#answer').textContent.length"
ANSWER_TEXT: Final = "document.querySelector('#answer').textContent"
IS_RESTING: Final = "document.querySelector('#answer').getAttribute('aria-busy') !== 'true'"
PROBLEM: Final = "(problem => problem.hidden ? '' : problem.textContent)(document.querySelector('#problem'))"
IS_READY: Final = "document.querySelector('#model').options.length > 0"

READER: Final = """
  (async (message) => {
    document.body.replaceChildren();
    const response = await fetch('/api/chat/stream', {method: 'POST', body: JSON.stringify({message})});
    const reader = response.body.getReader(), decoder = new TextDecoder();
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      document.body.append(decoder.decode(value, {stream: true}));
    }
    document.title = 'done';
  })(%s).catch((error) => { document.title = 'broken'; }), 0
"""
"""What anybody would write; its value does not wait for it."""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """A tab of a fresh browser."""
    async with open_page(tmp_path / "profile") as opened:
        yield opened


async def test_the_answer_grows_while_it_is_made(make_gateway: MakeGateway, page: Page, tmp_path: Path) -> None:
    """A person types, presses Enter, and sees the answer come piece by piece until it is whole."""
    running = await make_gateway("openai", default=STEADY)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    lengths = await _watch(page, ANSWER_LENGTH, IS_RESTING)
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    _check_growth(lengths)
    assert await page.evaluate(PROBLEM) == ""
    assert page.complaints == []
    await page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 0


async def test_shift_and_enter_begin_a_line_and_send_nothing(make_gateway: MakeGateway, page: Page) -> None:
    """A question may have several lines."""
    running = await make_gateway("openai", default=STEADY)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", "One")
    await page.press("Enter", shift=True)
    await page.tell("Input.insertText", text="Two")
    assert await page.evaluate("document.querySelector('#message').value") == "One\nTwo"
    assert running.simulator.requests == []


async def test_stop_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, page: Page) -> None:
    """The stop button aborts the provider's stream within a second, what was said stays, and one may ask again."""
    running = await make_gateway("openai", default=ENDLESS)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.click("#send")
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    stopped_at_s = time.monotonic()
    await page.click("#stop")
    await page.wait_for(IS_RESTING)
    assert (await _end_of_last(running) - stopped_at_s) < 1.0
    assert running.simulator.requests[-1].outcome == "client_gone"
    said = await page.evaluate(ANSWER_TEXT)
    assert text_of(scene_of(("user", QUESTION), script=ENDLESS).answers[0]).startswith(said)
    assert not await page.evaluate("document.querySelector('#send').disabled")


async def test_closing_the_tab_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, page: Page) -> None:
    """A closed tab stops paying for what nobody reads."""
    running = await make_gateway("openai", default=ENDLESS)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    closed_at_s = time.monotonic()
    await page.close()
    assert (await _end_of_last(running) - closed_at_s) < 1.0
    assert running.simulator.requests[-1].outcome == "client_gone"


async def test_an_error_before_the_answer_is_shown(make_gateway: MakeGateway, page: Page) -> None:
    """What the gateway says of a failure is on the page, and nothing is in the place of the answer."""
    running = await make_gateway("openai", default=replace(STEADY, status=401))
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    said = await page.wait_for(PROBLEM)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running.url}/api/chat/stream", data=json.dumps({"message": QUESTION})) as response,
    ):
        assert said == (await response.json())["error"]["message"]
    assert await page.evaluate(ANSWER_TEXT) == ""
    assert await page.evaluate(IS_RESTING)


@pytest.mark.parametrize("script", ["cut_after_tokens=30&cut=fin", "cut_after_tokens=30&cut=clean", "error_after=30"])
async def test_an_answer_that_breaks_off_is_told_from_a_whole_one(
    make_gateway: MakeGateway, page: Page, script: str
) -> None:
    """The text that came stays on the page, and beside it stands that it is not all."""
    running = await make_gateway(config=_unrecoverable(script), default=STEADY)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    assert await page.wait_for(PROBLEM)
    said = await page.evaluate(ANSWER_TEXT)
    assert said
    assert ANSWER.startswith(said)
    assert said != ANSWER


async def test_markup_in_an_answer_is_shown_and_not_run(make_gateway: MakeGateway, page: Page) -> None:
    """A model cannot put a script into its reader's page."""
    said = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    running = await make_gateway("openai", default=replace(QUICK, say=said))
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 0 && {IS_RESTING}")
    assert await page.evaluate(ANSWER_TEXT) == said
    assert await page.evaluate("document.querySelectorAll('#answer img, #answer script').length") == 0
    assert await page.evaluate("document.title") != "run"


@pytest.mark.parametrize("width", [320, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_its_window(
    make_gateway: MakeGateway, page: Page, tmp_path: Path, scheme: Any, width: int
) -> None:
    """From the narrowest phone on nothing has to be scrolled sideways, and dark is dark."""
    running = await make_gateway("openai", default=STEADY)
    await page.look(scheme=scheme, width=width, height=900)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background[:3]) < 3 * 128) == (scheme == "dark")
    await page.screenshot(tmp_path / f"{scheme}.png")


# --- a page of somebody else's making


async def test_a_page_without_any_library_shows_the_answer_as_it_grows(make_gateway: MakeGateway, page: Page) -> None:
    """``fetch``, ``getReader`` and ``TextDecoder`` are enough; the body is JSON that no header announces."""
    running = await make_gateway("anthropic", default=STEADY)
    await page.open(f"{running.url}/v1/models")
    await page.evaluate(READER % json.dumps(QUESTION))
    lengths = await _watch(page, "document.body.textContent.length", "document.title !== ''")
    assert await page.evaluate("document.title") == "done"
    assert await page.evaluate("document.body.textContent") == ANSWER
    _check_growth(lengths)


async def test_a_page_without_any_library_learns_of_a_broken_answer(make_gateway: MakeGateway, page: Page) -> None:
    """Its reader rejects, so that half an answer is not taken for a whole one."""
    running = await make_gateway(config=_unrecoverable("cut_after_tokens=30&cut=clean"), default=STEADY)
    await page.open(f"{running.url}/v1/models")
    await page.evaluate(READER % json.dumps(QUESTION))
    await page.wait_for("document.title !== ''")
    assert await page.evaluate("document.title") == "broken"
    said = await page.evaluate("document.body.textContent")
    assert said
    assert ANSWER.startswith(said)


async def test_a_page_without_any_library_has_all_that_came_before_the_break(
    make_gateway: MakeGateway, page: Page
) -> None:
    """Text that was sent just before the connection is closed is shown every time."""
    config = _unrecoverable("cut_after_tokens=30&interval_s=0")
    running = await make_gateway(config=config, default=STEADY)
    tokens = scene_of(("user", QUESTION), script=STEADY).answers[0].text[:30]
    for _ in range(10):
        await page.open(f"{running.url}/v1/models")
        await page.evaluate(READER % json.dumps(QUESTION))
        await page.wait_for("document.title !== ''")
        assert await page.evaluate("document.body.textContent") == "".join(tokens)


async def test_a_page_from_elsewhere_spends_nothing(make_gateway: MakeGateway, page: Page) -> None:
    """A page of another origin can neither read an answer nor cause one."""
    running = await make_gateway("openai", default=STEADY)
    await page.open(running.simulator.origin)
    asked = "fetch(%s, {method: 'POST', body: JSON.stringify({message: 'Hello'}), mode: %s}).then(() => 1, () => 0)"
    url = json.dumps(f"{running.url}/api/chat/stream")
    assert await page.evaluate(asked % (url, "'cors'")) == 0
    assert await page.evaluate(asked % (url, "'no-cors'")) == 1  # sent, and its answer is not shown to the page
    assert running.simulator.requests == []


async def _watch(page: Page, length: str, is_over: str) -> list[int]:
    """Return the lengths that were seen from the first text until the end."""
    lengths = [await page.wait_for(length)]
    while not await page.evaluate(is_over):
        lengths.append(await page.evaluate(length))
        await asyncio.sleep(0.05)
    return [*lengths, await page.evaluate(length)]


def _check_growth(lengths: list[int]) -> None:
    assert lengths == sorted(lengths)
    assert len(set(lengths)) >= 3


async def _end_of_last(running: Running) -> float:
    """Wait until the provider's last stream is over; returns when that was."""
    record = running.simulator.requests[-1]
    async with asyncio.timeout(30):
        while record.ended_at_s is None:  # noqa: ASYNC110, a record has no event for its end
            await asyncio.sleep(0.01)
    return record.ended_at_s


def _unrecoverable(script: str) -> dict[str, Any]:
    config = over("openai")
    return {**config, "models": {"chat": {"targets": [f"openai/gpt-5-mini?{script}"], "on_interrupt": "error"}}}
