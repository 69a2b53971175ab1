"""Playground and live view in Firefox: what a person does most, as in Chromium."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import pytest

from tests.conftest import QUICK, MakeGateway, Running
from tests.eventually import eventually
from tests.firefox import WHY_NOT, FirefoxPage, open_firefox_page
from tests.gateway.page.playground import (
    ANSWER,
    ANSWER_LENGTH,
    ANSWER_TEXT,
    CHOOSE_FAULT,
    DRAWN,
    ENDLESS,
    GROWING,
    IS_READY,
    IS_RESTING,
    PROBLEM,
    QUESTION,
    SIMULATED,
    STEADY,
    check_is_smooth,
)
from tests.slow_link import slow_link

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

BAR: Final = "new DOMMatrix(getComputedStyle(document.querySelector('#flight .track i')).transform).e"


@pytest.fixture
async def page(firefox: str) -> AsyncIterator[FirefoxPage]:
    """A fresh tab."""
    async with open_firefox_page(firefox) as opened:
        yield opened


async def begin(page: FirefoxPage, running: Running) -> None:
    """Open the page, type the question, and send it."""
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")


async def test_the_answer_grows_while_it_is_made(make_gateway: MakeGateway, page: FirefoxPage) -> None:
    """Piece by piece until it is whole; nothing is complained of, the policy for scripts included."""
    running = await make_gateway("openai", default=GROWING)
    await begin(page, running)
    lengths = [await page.wait_for(ANSWER_LENGTH)]
    while not await page.evaluate(IS_RESTING):
        lengths.append(await page.evaluate(ANSWER_LENGTH))
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    assert lengths == sorted(lengths)
    assert len(set(lengths)) >= 3
    assert page.complaints == []


@pytest.mark.parametrize("way", ["#stop", "Escape"])
async def test_stop_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, page: FirefoxPage, way: str) -> None:
    """By the button or the key."""
    running = await make_gateway("openai", default=ENDLESS)
    await begin(page, running)
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    await (page.click(way) if way.startswith("#") else page.press(way))
    await page.wait_for(IS_RESTING)
    await eventually(lambda: running.simulator.requests[-1].outcome == "client_gone")


async def test_a_faulted_answer_goes_on_and_its_seam_is_marked_on_request(
    make_gateway: MakeGateway, page: FirefoxPage
) -> None:
    """It is one text."""
    running = await make_gateway(config=SIMULATED, default=STEADY)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.evaluate(CHOOSE_FAULT % '"cut"')
    await page.evaluate("document.querySelector('#seams').click()")
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(IS_RESTING)
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    assert await page.evaluate("[...document.querySelectorAll('.seam')].map((one) => one.checkVisibility())") == [True]
    assert page.complaints == []


async def test_an_answer_that_breaks_off_is_told_from_a_whole_one(make_gateway: MakeGateway, page: FirefoxPage) -> None:
    """All that came stays; asking again makes it whole."""
    models = {"chat": {"targets": ["sim/mill"], "on_interrupt": "error"}}
    script = replace(STEADY, cut_after_tokens=30)
    running = await make_gateway(config={**SIMULATED, "models": models}, scripts=[script], default=STEADY)
    await begin(page, running)
    assert "stream_truncated" in await page.wait_for(PROBLEM)
    said = await page.evaluate(ANSWER_TEXT)
    assert said
    assert ANSWER.startswith(said)
    await page.click("[data-do=again]")
    await page.wait_for(f"{PROBLEM} === '' && {IS_RESTING}")
    assert await page.evaluate(ANSWER_TEXT) == ANSWER


async def test_a_tab_in_the_background_keeps_up(make_gateway: MakeGateway, page: FirefoxPage) -> None:
    """It has the whole answer before anybody looks."""
    running = await make_gateway("openai", default=STEADY)
    await begin(page, running)
    async with page.in_background():
        await page.wait_for(IS_RESTING)
        assert await page.evaluate(ANSWER_TEXT) == ANSWER


async def test_a_slow_connection_still_shows_the_answer_grow(make_gateway: MakeGateway, page: FirefoxPage) -> None:
    """At 50 kB/s, 300 ms away, it is drawn in many small steps and not in a few great ones."""
    running = await make_gateway("openai", default=replace(STEADY, interval_s=0.03))
    async with slow_link(running.url, bytes_per_s=50_000, delay_s=0.3) as url:
        await page.open(url)
        await page.wait_for(IS_READY)
        await page.evaluate(DRAWN)
        await page.write("#message", QUESTION)
        await page.press("Enter")
        await page.wait_for(IS_RESTING)
        assert await page.evaluate(ANSWER_TEXT) == ANSWER
        check_is_smooth(await page.evaluate("window.drawn"))


async def test_streams_in_flight_are_bars_that_move(make_gateway: MakeGateway, page: FirefoxPage) -> None:
    """The live view, of a stream that the playground in another tab has begun."""
    running = await make_gateway("openai", default=replace(QUICK, interval_s=0.1, token_count=5000))
    await begin(page, running)
    await page.wait_for(f"{ANSWER_LENGTH} > 0")
    view = await page.tell("browsingContext.create", type="tab")
    playground, page.context = page.context, view["context"]
    await page.open(running.admin_url)
    await page.wait_for("document.querySelectorAll('#flight li').length === 1")
    await page.wait_for("document.querySelector('#flight .track i').style.transform.startsWith('translateX')")
    first = await page.evaluate(BAR)
    await page.wait_for(f"{BAR} > {first} + 5")
    await page.tell("browsingContext.close", context=playground)
    await page.wait_for("document.querySelector('#recent tr')?.className.startsWith('client_aborted')")
    await page.tell("browsingContext.close", **view)
    assert page.complaints == []
