"""What tests of the playground ask, what they must see, and where it stands on the page."""

from dataclasses import replace
from typing import Final

from gateway.simulator import Script
from tests.sdk.truth import scene_of, text_of

QUESTION: Final = "What does a mill race do – in naïve words? 🐟"
STEADY: Final = Script(first_token_s=0.1, interval_s=0.006, token_count=150)
GROWING: Final = replace(STEADY, interval_s=0.02)
"""Slow enough that it is seen to grow where the machine stands still for a while."""
ENDLESS: Final = replace(STEADY, token_count=5000)
ANSWER: Final = text_of(scene_of(("user", QUESTION), script=STEADY).answers[0])

SIMULATED: Final = {"providers": {"sim": {"kind": "simulator"}}, "models": {"chat": {"targets": ["sim/mill"]}}}
"""What is served without a provider's key: the page has switches for it."""

ANSWER_TEXT: Final = """
  [...document.querySelectorAll('.answer:last-child .text > *')].map((one) => one.textContent).join('\\n\\n')
"""
ANSWER_LENGTH: Final = "(document.querySelector('.answer:last-child .text')?.textContent.length ?? 0)"
IS_RESTING: Final = "document.querySelector('.answer:last-child')?.getAttribute('aria-busy') === 'false'"
PROBLEM: Final = "(document.querySelector('.answer:last-child .problem')?.textContent ?? '')"
FACTS: Final = "document.querySelector('.answer:last-child .facts').textContent"
IS_READY: Final = "document.querySelector('#model').options.length > 0"
CHOOSE_FAULT: Final = """
  (field => { field.value = %s; field.dispatchEvent(new Event('change')); })(document.querySelector('#fault'))
"""

DRAWN: Final = """
  window.drawn = [],
  new MutationObserver(() => {
    const length = document.querySelector('.answer .text')?.textContent.length ?? 0;
    if (length > (window.drawn.at(-1) ?? 0)) window.drawn.push(length);
  }).observe(document.querySelector('#turns'), {subtree: true, childList: true, characterData: true}), 0
"""
"""Notes how long the answer is whenever that has changed."""


def check_is_smooth(lengths: list[int]) -> None:
    """The answer has grown in many small steps, and not in a few great ones; ``lengths`` is what ``DRAWN`` noted."""
    assert len(lengths) >= 10
    assert max(after - before for before, after in zip([0, *lengths], lengths, strict=False)) < lengths[-1] / 2
