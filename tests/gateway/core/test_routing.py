from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from gateway.core.call import Route, Target
from gateway.core.errors import (
    InvalidRequest,
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.health import HealthBoard
from gateway.core.routing import FAILURES, TargetOrder, is_worth_another, tells_more
from gateway.core.seam import seam_not_found

A, B, C = Target("openai", "a"), Target("anthropic", "b"), Target("llama", "c")
NOW_S = 1000.0


def make_order(board: HealthBoard | None = None, **ttft_s: float) -> TargetOrder:
    """Return an order that knows targets by these times to the first token, and draws the same in each run."""
    board = board or HealthBoard()
    for name, seconds in ttft_s.items():
        board.of(str({"a": A, "b": B, "c": C}[name])).note_first_token(seconds, NOW_S)
    return TargetOrder(board, lambda: NOW_S, random.Random(7))  # noqa: S311, nothing is kept secret by it


def make_route(*targets: Target, strategy: Any, **more: Any) -> Route:
    """Return a route with these targets."""
    return Route(name="chat", targets=targets, strategy=strategy, **more)


def firsts(order: TargetOrder, route: Route, count: int) -> Counter[Target]:
    """Return how often each target came first."""
    return Counter(order.of(route)[0] for _ in range(count))


# --- the order


@pytest.mark.parametrize("strategy", ["priority", "weighted", "fastest"])
def test_a_route_with_one_target_has_one_order(strategy: str) -> None:
    """However it is to be made."""
    assert make_order().of(make_route(A, strategy=strategy)) == [A]


def test_targets_come_as_they_are_configured() -> None:
    """Whatever is known of them; what is done with the list changes no route."""
    route = make_route(A, B, A, strategy="priority")
    order = make_order(a=2.0, b=0.1)
    order.of(route).clear()
    assert order.of(route) == [A, B, A]


def test_targets_are_drawn_by_their_weight() -> None:
    """Over many calls each gets its share; one call asks the others behind it."""
    route = make_route(A, B, C, strategy="weighted", weights=(6.0, 3.0, 1.0))
    order = make_order()
    drawn = firsts(order, route, 2000)
    assert 0.55 < drawn[A] / 2000 < 0.65
    assert 0.25 < drawn[B] / 2000 < 0.35
    assert 0.07 < drawn[C] / 2000 < 0.13
    assert all(sorted(map(str, order.of(route))) == sorted(map(str, (A, B, C))) for _ in range(20))


def test_a_target_without_weight_is_the_last_resort() -> None:
    """It is asked when all others have failed."""
    route = make_route(A, B, C, strategy="weighted", weights=(0.0, 1.0, 1.0))
    order = make_order()
    assert {order.of(route)[-1] for _ in range(50)} == {A}


def test_targets_without_weights_get_the_same_share() -> None:
    """Also one that is there twice, which counts twice."""
    drawn = firsts(make_order(), make_route(A, B, A, strategy="weighted"), 3000)
    assert 0.62 < drawn[A] / 3000 < 0.72


def test_the_same_target_may_have_two_weights() -> None:
    """They add up, and both places are asked."""
    route = make_route(A, B, A, strategy="weighted", weights=(1.0, 2.0, 1.0))
    order = make_order()
    assert 0.45 < firsts(order, route, 2000)[A] / 2000 < 0.55
    assert {len(order.of(route)) for _ in range(20)} == {3}


def test_the_faster_of_two_is_asked_first() -> None:
    """By what its last first tokens took."""
    route = make_route(A, B, strategy="fastest")
    assert firsts(make_order(a=2.0, b=0.2), route, 20) == {B: 20}
    assert firsts(make_order(a=0.1, b=0.2), route, 20) == {A: 20}


def test_of_more_targets_two_are_drawn_and_the_faster_is_first() -> None:
    """So that not everybody runs to the same one; the slowest of three never wins, the rest follow by their pace."""
    route = make_route(A, B, C, strategy="fastest")
    order = make_order(a=0.1, b=0.2, c=0.9)
    drawn = firsts(order, route, 300)
    assert set(drawn) == {A, B}
    assert drawn[A] > drawn[B] > 50
    assert {tuple(order.of(route)) for _ in range(100)} == {(A, B, C), (B, A, C)}


def test_a_target_that_nobody_knows_is_worth_a_try() -> None:
    """How else should it become known."""
    assert firsts(make_order(a=0.1), make_route(A, B, strategy="fastest"), 20) == {B: 20}


def test_a_fast_target_whose_breaker_is_open_is_not_drawn() -> None:
    """It is among the last; where all are open none is drawn, and their pace decides."""
    board = HealthBoard(failures=1)
    order = make_order(board, a=0.1, b=2.0, c=3.0)
    board.of(str(A)).breaker.note_failure(NOW_S)
    assert firsts(order, make_route(A, B, C, strategy="fastest"), 20) == {B: 20}
    assert firsts(order, make_route(A, A, strategy="fastest"), 5) == {A: 5}
    board.of(str(B)).breaker.note_failure(NOW_S)
    assert order.of(make_route(B, A, strategy="fastest")) == [A, B]


# --- what an error says


DECLINED = UpstreamRefused("not here", code="continuation_unsupported", refused="continuation")


@pytest.mark.parametrize(
    "error",
    [
        UpstreamBusy("busy"),
        UpstreamFailed("broken"),
        UpstreamUnreachable("gone"),
        UpstreamTimeout("slow"),
        StreamInterrupted("cut"),
        UpstreamRefused("no credit", error_type="auth"),
        UpstreamRefused("no quota", error_type="rate_limited", retryable=False),
        UpstreamRefused("too long", error_type="context_length"),
        UpstreamRefused("no such model", upstream_status=404),
        InvalidRequest("this wire has no audio"),
        seam_not_found(),
        DECLINED,
    ],
    ids=repr,
)
def test_what_may_be_the_targets_own_is_worth_another(error: UpstreamError | InvalidRequest) -> None:
    """Its key, its quota, its context or its wire: another does not share them."""
    assert is_worth_another(error)
    assert isinstance(error, FAILURES)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("bad request", upstream_status=400),
        UpstreamRefused("not allowed", error_type="content_filter"),
        UpstreamTimeout("too late", code="total_timeout", retryable=False),
        StreamInterrupted("final", retryable=False),
    ],
    ids=repr,
)
def test_what_is_wrong_everywhere_is_not(error: UpstreamError) -> None:
    """Nor what there is no time left for."""
    assert not is_worth_another(error)


def test_that_a_target_was_the_wrong_one_to_ask_hides_no_error() -> None:
    """One that cannot express a request, or go on with an answer, says nothing of what is wrong."""
    assert tells_more(UpstreamFailed("broken"))
    assert tells_more(UpstreamRefused("bad request"))
    assert not tells_more(InvalidRequest("this wire has no audio"))
    assert not tells_more(DECLINED)
