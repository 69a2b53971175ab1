from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

import pytest

from gateway.configured_provider import MAX_LEARNED_MODELS, ConfiguredProvider
from gateway.core.call import Call, Target
from gateway.core.continuation import Checkpoint, Continuation
from gateway.core.errors import UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused
from gateway.providers.base import ProviderOptions
from gateway.providers.compatible import OpenAICompatible
from gateway.providers.google import Google
from gateway.watch import Limits

EXACT = Continuation(way="exact", text="Hello, ")
ANCHORED = Continuation(way="anchored", text="Hello, ")
RESTART = Continuation(way="restart")
OWN = replace(EXACT, checkpoint=Checkpoint(target="up/gemini-2.5-flash", token="t", character_count=7))
FOREIGN = replace(EXACT, checkpoint=Checkpoint(target="other/gemini-2.5-flash", token="t", character_count=7))


def make_provider(
    *, max_concurrency: int = 0, host: str | None = "vllm", takes_anchored: bool = True
) -> ConfiguredProvider:
    """Return a provider of OpenAI's wire; this host goes on with a partial answer exactly."""
    options = ProviderOptions(name="up", base_url="http://127.0.0.1:9/v1", host=host)
    limits = Limits(max_concurrency=max_concurrency)
    return ConfiguredProvider(OpenAICompatible(options), limits, takes_anchored=takes_anchored)


def make_call(continuation: Continuation | None = None, model: str = "mill") -> Call:
    """Return a call for one of the provider's models."""
    return Call(request_id="t", target=Target("up", model), continuation=continuation)


def may_be_asked(provider: ConfiguredProvider, continuation: Continuation | None, model: str = "mill") -> bool:
    """Return whether a call like this is counted in."""
    before = provider.in_flight_count
    with suppress(UpstreamRefused):
        provider.take(make_call(continuation, model))
    return provider.in_flight_count > before


def refusal(status: int = 400, refused: str = "continuation") -> UpstreamError:
    """Return what a provider says that does not take a request."""
    return UpstreamRefused("no", upstream_status=status, refused=refused)  # type: ignore[arg-type]  # of the closed set


# --- limits


def test_a_call_over_the_concurrency_limit_is_refused_at_once() -> None:
    """The next may be asked when one has ended."""
    provider = make_provider(max_concurrency=2)
    for _ in range(2):
        provider.take(make_call())
    with pytest.raises(UpstreamBusy) as caught:
        provider.take(make_call())
    assert (caught.value.code, provider.in_flight_count) == ("concurrency_limit", 2)
    provider.in_flight_count -= 1
    provider.take(make_call())


def test_without_a_limit_any_number_is_asked() -> None:
    """Each is counted, and when the last one was."""
    provider = make_provider()
    assert provider.asked_at_s < 0, "nobody has asked it"
    before_s = time.monotonic()
    for _ in range(1000):
        provider.take(make_call())
    assert provider.in_flight_count == 1000
    assert before_s <= provider.asked_at_s <= time.monotonic()


# --- ways to go on


@pytest.mark.parametrize(
    ("host", "takes_anchored", "ways"),
    [
        (None, True, [ANCHORED]),
        (None, False, []),
        ("vllm", True, [EXACT, ANCHORED]),
        ("vllm", False, [EXACT]),
    ],
)
def test_a_target_is_asked_only_in_ways_that_it_knows_and_its_operator_allows(
    host: str | None, ways: list[Continuation], *, takes_anchored: bool
) -> None:
    """To begin again may be asked of every one."""
    provider = make_provider(host=host, takes_anchored=takes_anchored)
    asked = [way for way in (EXACT, ANCHORED, RESTART, None) if may_be_asked(provider, way)]
    assert asked == [*ways, RESTART, None]


def test_a_way_that_a_target_does_not_know_is_declined_as_such() -> None:
    """Nothing is asked, so that another way or target may be; the same again would be no use."""
    provider = make_provider(host=None)
    with pytest.raises(UpstreamRefused) as caught:
        provider.take(make_call(EXACT))
    error = caught.value
    assert (error.code, error.refused, error.retryable) == ("continuation_unsupported", "continuation", False)
    assert provider.in_flight_count == 0


@pytest.mark.parametrize("status", [400, 422])
def test_a_model_that_refused_to_go_on_exactly_is_not_asked_to_again(status: int) -> None:
    """Other models are, it is in other ways, and so it is elsewhere."""
    provider = make_provider()
    provider.learn(make_call(EXACT), refusal(status))
    assert not may_be_asked(provider, EXACT)
    assert all(may_be_asked(provider, way) for way in (ANCHORED, RESTART, None))
    assert may_be_asked(provider, EXACT, "other")
    assert may_be_asked(make_provider(), EXACT)


@pytest.mark.parametrize("continuation", [None, RESTART, ANCHORED])
def test_a_request_refused_that_did_not_go_on_exactly_teaches_nothing(continuation: Continuation | None) -> None:
    """Whatever its words are: the client's own request may have had an open turn."""
    provider, error = make_provider(), refusal()
    provider.learn(make_call(continuation), error)
    assert may_be_asked(provider, EXACT)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (refusal(400, "request"), "continuation"),
        (refusal(404, "request"), "request"),
        (UpstreamFailed("broken", upstream_status=500), "request"),
    ],
)
def test_nothing_is_learned_from_an_error_that_is_about_something_else(error: UpstreamError, refused: str) -> None:
    """What a longer request is refused for may still be had in another way: that much every 400 says."""
    provider = make_provider()
    provider.learn(make_call(EXACT), error)
    assert may_be_asked(provider, EXACT)
    assert error.refused == refused


def test_a_token_of_the_targets_own_still_goes_through_when_open_turns_do_not() -> None:
    """It is another way of going on; one that was refused, because it has expired, says nothing of open turns."""
    model = "gemini-2.5-flash"
    provider = ConfiguredProvider(Google(ProviderOptions(name="up")), Limits())
    provider.learn(make_call(OWN, model), refusal())
    assert may_be_asked(provider, EXACT, model)
    provider.learn(make_call(EXACT, model), refusal())
    assert [way for way in (EXACT, FOREIGN, OWN) if may_be_asked(provider, way, model)] == [OWN]


def test_what_is_learned_is_bounded() -> None:
    """Names of models come from clients."""
    provider = make_provider()
    for number in range(MAX_LEARNED_MODELS + 1):
        provider.learn(make_call(EXACT, f"m{number}"), refusal())
    assert not may_be_asked(provider, EXACT, f"m{MAX_LEARNED_MODELS - 1}")
    assert may_be_asked(provider, EXACT, f"m{MAX_LEARNED_MODELS}")
