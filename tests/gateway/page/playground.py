"""What tests of the playground ask, what they must see, and where it stands on the page."""

from dataclasses import replace
from typing import Final

from gateway.simulator import Script
from tests.sdk.truth import scene_of, text_of

QUESTION: Final = "What does a mill race do – in naïve words? 🐟"
STEADY: Final = Script(first_token_s=0.1, interval_s=0.006, token_count=150)
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
