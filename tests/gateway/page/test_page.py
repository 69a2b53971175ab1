"""The playground in a real browser, and what any page can do with the gateway's plain text: no library, no parser."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

import pytest

from tests.browser import WHY_NOT, Page, open_page
from tests.conftest import QUICK, MakeGateway, Running, over
from tests.gateway.page.playground import (
    ANSWER,
    ANSWER_LENGTH,
    ANSWER_TEXT,
    CHOOSE_FAULT,
    DRAWN,
    ENDLESS,
    FACTS,
    GROWING,
    IS_READY,
    IS_RESTING,
    PROBLEM,
    QUESTION,
    SIMULATED,
    STEADY,
    check_is_smooth,
)
from tests.raw_client import exchange, request
from tests.sdk.truth import reasoning_of, scene_of, text_of

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

KEY: Final = "a client's key"
KEY_SHA256: Final = sha256(KEY.encode()).hexdigest()
WIDE: Final = "`" + "w" * 300 + "`\n\n```\n" + "w" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "w" * 300 + " | c |\n"

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
async def page(chromium: str) -> AsyncIterator[Page]:
    """A fresh tab."""
    async with open_page(chromium) as opened:
        yield opened


# --- an answer


async def test_the_answer_grows_while_it_is_made(make_gateway: MakeGateway, page: Page) -> None:
    """A person types, presses Enter, and sees the answer come piece by piece until it is whole, and how fast."""
    running = await make_gateway("openai", default=GROWING)
    await _begin(page, running, "Enter")
    lengths = await _watch(page, ANSWER_LENGTH, IS_RESTING)
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    _check_growth(lengths)
    facts = await page.evaluate(FACTS)
    assert all(told in facts for told in ("first token", "tokens/s", "150 tokens", "in all", "openai/gpt-5-mini"))
    assert await page.evaluate(PROBLEM) == ""
    assert page.complaints == []


async def test_until_the_first_token_it_is_seen_that_one_waits(make_gateway: MakeGateway, page: Page) -> None:
    """Something moves, and a clock runs."""
    running = await make_gateway("openai", default=replace(STEADY, first_token_s=60))
    await _begin(page, running, "Enter")
    await page.wait_for("document.querySelector('.waiting').checkVisibility()")
    await page.wait_for(f"{FACTS}.includes('waiting')")
    first = await page.evaluate(FACTS)
    await page.wait_for(f"{FACTS} !== {json.dumps(first)}")
    assert await page.evaluate(ANSWER_LENGTH) == 0


async def test_stop_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, page: Page) -> None:
    """The button aborts the provider's stream at once, what was said stays, and one may ask again."""
    running = await make_gateway("openai", default=ENDLESS)
    await _begin(page, running, "#send")
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    stopped_at_s = time.monotonic()
    await page.click("#stop")
    await page.wait_for(IS_RESTING)
    assert (await _end_of_last(running) - stopped_at_s) < 20
    assert running.simulator.requests[-1].outcome == "client_gone"
    said = await page.evaluate(ANSWER_TEXT)
    assert text_of(scene_of(("user", QUESTION), script=ENDLESS).answers[0]).startswith(said)
    assert await page.evaluate("document.querySelector('.answer .note').textContent.startsWith('Stopped')")
    assert await page.evaluate("document.querySelector('#send').checkVisibility()")


async def test_closing_the_tab_ends_the_answer_at_the_provider_too(make_gateway: MakeGateway, page: Page) -> None:
    """A closed tab stops paying for what nobody reads."""
    running = await make_gateway("openai", default=ENDLESS)
    await _begin(page, running, "Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    closed_at_s = time.monotonic()
    await page.close()
    assert (await _end_of_last(running) - closed_at_s) < 20
    assert running.simulator.requests[-1].outcome == "client_gone"


async def test_a_whole_conversation_is_asked_with_the_keyboard(make_gateway: MakeGateway, page: Page) -> None:
    """Enter sends, Shift and Enter begin a line, Escape stops; whatever has the focus shows it."""
    running = await make_gateway("openai", scripts=[QUICK, ENDLESS])
    await page.open(running.url)
    await page.wait_for(IS_READY)
    assert await page.evaluate("document.activeElement.id") == "message"
    await page.tell("Input.insertText", text="One")
    await page.press("Enter", shift=True)
    await page.tell("Input.insertText", text="Two")
    assert await page.evaluate("document.querySelector('#message').value") == "One\nTwo"
    assert running.simulator.requests == []
    await page.press("Enter")
    await page.wait_for(IS_RESTING)
    assert await page.evaluate("document.querySelector('#message').value") == ""
    await page.tell("Input.insertText", text="Three")
    await page.press("Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 20")
    await page.press("Escape")
    await _end_of_last(running)
    assert running.simulator.requests[-1].outcome == "client_gone"
    first = text_of(scene_of(("user", "One\nTwo"), script=QUICK).answers[0])
    asked = running.simulator.requests[-1].body["messages"]
    assert [(one["role"], one["content"]) for one in asked] == [
        ("user", "One\nTwo"),
        ("assistant", first),
        ("user", "Three"),
    ]
    reached = set()
    for _ in range(16):
        await page.press("Tab")
        focused, outline = await page.evaluate(
            "((one) => [one.id || one.textContent, getComputedStyle(one).outlineStyle])(document.activeElement)"
        )
        reached.add(focused)
        assert outline != "none" or focused in {"message", "scroll"} or len(focused) > 100  # the page itself
    assert {"message", "model", "toggle", "send", "fresh", "theme", "Copy", "Ask again", "Details"} <= reached


async def test_reasoning_and_tool_calls_unfold(make_gateway: MakeGateway, page: Page) -> None:
    """Each in its own place, and the results of the tools that a person gives go back to the model."""
    running = await make_gateway(config=SIMULATED)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.evaluate("document.querySelector('#thinks').click(), document.querySelector('#calls').click()")
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(IS_RESTING)
    script = replace(QUICK, reasoning="on", tools=2, lead=True)
    said = scene_of(("user", QUESTION), script=script).answers[0]
    assert await page.evaluate("document.querySelector('.reasoning p').textContent") == reasoning_of(said)
    assert await page.evaluate(ANSWER_TEXT) == text_of(said)
    called = await page.evaluate("[...document.querySelectorAll('.call pre')].map((one) => one.textContent)")
    assert [json.loads(one) for one in called] == [json.loads(one.json) for one in said.calls]
    await page.write(".call input", "a mill")
    await page.click("[data-do=results]")
    await page.wait_for(f"document.querySelectorAll('.answer').length === 2 && {IS_RESTING}")
    results = [one["content"] for one in running.simulator.requests[-1].body["messages"] if one["role"] == "tool"]
    assert results == ["a mill", "{}"]
    assert await page.evaluate(PROBLEM) == ""
    assert page.complaints == []


# --- what goes wrong


@pytest.mark.parametrize("fault", ["cut", "error", "malformed"])
async def test_a_faulted_answer_goes_on_and_its_seam_is_marked_on_request(
    make_gateway: MakeGateway, page: Page, fault: str
) -> None:
    """It is one text, the very one that it would have been, whether the seam is shown or not."""
    running = await make_gateway(config=SIMULATED, default=STEADY)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.evaluate(CHOOSE_FAULT % json.dumps(fault))
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(IS_RESTING)
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    assert len(running.simulator.requests) == 2
    are_shown = "[...document.querySelectorAll('.answer .seam')].map((one) => one.checkVisibility())"
    assert await page.evaluate(are_shown) == [False]
    await page.evaluate("document.querySelector('#seams').click()")
    assert await page.evaluate(are_shown) == [True]
    assert "attempt 2" in await page.evaluate("document.querySelector('.seam').dataset.label")
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    assert page.complaints == []


async def test_an_error_before_the_answer_is_told_as_one_can_act_on_it(make_gateway: MakeGateway, page: Page) -> None:
    """What the gateway says, its code and the request's id, and what to do; asking again makes it good."""
    running = await make_gateway("openai", scripts=[replace(QUICK, status=401)])
    await _begin(page, running, "Enter")
    told = await page.wait_for(PROBLEM)
    shown = await exchange(running.admin_url, request("/admin/streams", method="GET"))
    request_id = shown.json["recent"][0]["id"]
    for part in ("The provider refuses the gateway's key", "Check api_key", "status 502", "upstream_auth", request_id):
        assert part in told
    assert await page.evaluate(ANSWER_TEXT) == ""
    await page.click("[data-do=again]")
    await page.wait_for(f"{IS_RESTING} && {ANSWER_LENGTH} > 0")
    assert await page.evaluate("document.querySelectorAll('.asked, .answer').length") == 2
    assert await page.evaluate(PROBLEM) == ""


@pytest.mark.parametrize("script", ["cut_after_tokens=30&cut=fin", "cut_after_tokens=30&cut=clean", "error_after=30"])
async def test_an_answer_that_breaks_off_is_told_from_a_whole_one(
    make_gateway: MakeGateway, page: Page, script: str
) -> None:
    """The text that came stays on the page, and beside it stands that it is not all."""
    running = await make_gateway(config=_unrecoverable(script), default=STEADY)
    await _begin(page, running, "Enter")
    assert "nobody could go on" in await page.wait_for(PROBLEM) or script.startswith("error")
    said = await page.evaluate(ANSWER_TEXT)
    assert said
    assert ANSWER.startswith(said)
    assert said != ANSWER


async def test_an_answer_without_its_end_is_not_whole_however_clean_the_connection_ended(
    make_gateway: MakeGateway, page: Page
) -> None:
    """As a proxy between the two might end it."""
    running = await make_gateway("openai", default=QUICK)
    await page.open(running.url)
    await page.wait_for(IS_READY)
    half = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'
    await page.evaluate(f"window.fetch = async () => new Response({json.dumps(half)}), 0")
    await page.write("#message", QUESTION)
    await page.press("Enter")
    assert "connection_lost" in await page.wait_for(PROBLEM)
    assert await page.evaluate(ANSWER_TEXT) == "Half"


async def test_a_gateway_with_keys_asks_for_one(make_gateway: MakeGateway, page: Page) -> None:
    """It is kept for as long as the tab is open, and nowhere else."""
    keys = {"use": "middleware.auth.Auth", "keys": [{"id": "web", "sha256": KEY_SHA256}]}
    running = await make_gateway(config={**over("openai"), "middleware": [keys]}, default=QUICK)
    await page.open(running.url)
    await page.wait_for("document.querySelector('#key').checkVisibility()")
    await page.write("#key", KEY)
    await page.press("Enter")
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(f"{IS_RESTING} && {ANSWER_LENGTH} > 0")
    assert await page.evaluate("[localStorage.length, sessionStorage.getItem('millrace.key')]") == [0, KEY]
    assert KEY not in str(running.simulator.requests[-1].headers)


# --- how it is drawn


async def test_a_tab_in_the_background_keeps_up(make_gateway: MakeGateway, page: Page) -> None:
    """It draws no frames, and has the whole answer all the same, before anybody looks."""
    running = await make_gateway("openai", default=STEADY)
    await _begin(page, running, "Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 0")
    async with page.in_background():
        await page.wait_for(IS_RESTING)
        assert await page.evaluate(ANSWER_TEXT) == ANSWER
    assert await page.evaluate(ANSWER_TEXT) == ANSWER


async def test_a_slow_connection_still_shows_the_answer_grow(make_gateway: MakeGateway, page: Page) -> None:
    """At 50 kB/s, 300 ms away, it is drawn in many small steps and not in a few great ones."""
    running = await make_gateway("openai", default=replace(STEADY, interval_s=0.03))
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.tell("Network.enable")
    slow = {"offline": False, "latency": 300, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    await page.tell("Network.emulateNetworkConditions", **slow)
    await page.evaluate(DRAWN)
    await page.write("#message", QUESTION)
    await page.press("Enter")
    await page.wait_for(IS_RESTING)
    assert await page.evaluate(ANSWER_TEXT) == ANSWER
    check_is_smooth(await page.evaluate("window.drawn"))


async def test_the_end_is_followed_until_the_reader_scrolls_up(make_gateway: MakeGateway, page: Page) -> None:
    """Then the page stays where they read, and a button brings them back."""
    running = await make_gateway("openai", default=replace(ENDLESS, interval_s=0.003))
    await page.look(height=500)
    await _begin(page, running, "Enter")
    box = "document.querySelector('#scroll')"
    is_at_end = f"({box}.scrollHeight - {box}.clientHeight - {box}.scrollTop < 24)"
    await page.wait_for(f"{box}.scrollTop > 400 && {is_at_end}")
    await page.wheel(-300)
    await page.wait_for("document.querySelector('#latest').checkVisibility()")
    top, height = await _at_rest(page, f"{box}.scrollTop"), await page.evaluate(f"{box}.scrollHeight")
    await page.wait_for(f"{box}.scrollHeight > {height} + 200")
    assert await page.evaluate(f"{box}.scrollTop") == top
    await page.click("#latest")
    await page.wait_for(f"{is_at_end} && !document.querySelector('#latest').checkVisibility()")
    await page.wait_for(f"{box}.scrollTop > {height} && {is_at_end}")


async def test_who_listens_is_told_paragraphs_and_not_tokens(make_gateway: MakeGateway, page: Page) -> None:
    """The growing text is no live region; what is announced are blocks that are whole, and the end."""
    running = await make_gateway("openai", default=STEADY)
    await _begin(page, running, "Enter")
    await page.wait_for(IS_RESTING)
    await page.wait_for("document.querySelector('#announce').textContent.includes('complete')")
    told = await page.evaluate("[...document.querySelector('#announce').children].map((one) => one.textContent.trim())")
    assert told == [*ANSWER.split("\n\n"), "The answer is complete."]
    assert await page.evaluate("document.querySelector('.answer .text').closest('[aria-live]') === null")


async def test_markup_in_an_answer_is_shown_and_not_run(make_gateway: MakeGateway, page: Page) -> None:
    """A model cannot put a script into its reader's page, nor a link that leads away from it."""
    said = (
        "<img src=x onerror=\"document.title='run'\"> [here](javascript:alert(1)) <script>document.title='run'</script>"
    )
    running = await make_gateway("openai", default=replace(QUICK, say=said))
    await _begin(page, running, "Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 0 && {IS_RESTING}")
    shown = await page.evaluate(ANSWER_TEXT)
    assert shown == said
    assert await page.evaluate("document.querySelectorAll('.answer :is(img, script, a, iframe)').length") == 0
    assert await page.evaluate("document.title") == "Millrace"
    assert page.complaints == []


async def test_no_script_of_elsewhere_would_be_run(make_gateway: MakeGateway) -> None:
    """The policy allows what the gateway itself serves, and no text to become markup."""
    running = await make_gateway("openai")
    for path in ("/", "/page/playground.js"):
        found = await exchange(running.url, request(path, method="GET"))
        policy = found.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
    assert (await exchange(running.url, request("/page/index.html", method="GET"))).status == 404
    assert (await exchange(running.url, request("/page/__init__.py", method="GET"))).status == 404


@pytest.mark.parametrize("width", [320, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_its_window(make_gateway: MakeGateway, page: Page, scheme: Any, width: int) -> None:
    """From the narrowest phone on nothing has to be scrolled sideways, and dark is dark, unless one chooses."""
    running = await make_gateway("openai", default=replace(QUICK, say=WIDE))
    await page.look(scheme=scheme, width=width, height=900)
    await _begin(page, running, "Enter")
    await page.wait_for(f"{ANSWER_LENGTH} > 0 && {IS_RESTING}")
    await page.click("#toggle")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("document.querySelector('#scroll').scrollWidth <= innerWidth")
    assert await _is_dark(page) == (scheme == "dark")
    await page.click("#theme")
    assert await _is_dark(page) != (scheme == "dark")
    assert page.complaints == []


# --- a page of somebody else's making


async def test_a_page_without_any_library_shows_the_answer_as_it_grows(make_gateway: MakeGateway, page: Page) -> None:
    """``fetch``, ``getReader`` and ``TextDecoder`` are enough; the body is JSON that no header announces."""
    running = await make_gateway("anthropic", default=GROWING)
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


async def _begin(page: Page, running: Running, send: str) -> None:
    """Open the page, type the question, and send it with a key or a button."""
    await page.open(running.url)
    await page.wait_for(IS_READY)
    await page.write("#message", QUESTION)
    await (page.click(send) if send.startswith("#") else page.press(send))


async def _at_rest(page: Page, expression: str) -> Any:
    """Wait until a value stays as it is for a while; returns it."""
    value = await page.evaluate(expression)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.3)
            before, value = value, await page.evaluate(expression)
            if before == value:
                return value


async def _is_dark(page: Page) -> bool:
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    return bool(sum(background[:3]) < 3 * 128)


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
