from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.budget import MAX_TARGETS, SLICES, Budget, Budgets, Window


def taken(budget: Budget, price: float, now_s: float) -> int:
    """Return how many extra attempts there are enough for."""
    count = 0
    while budget.take(price, now_s):
        count += 1
    return count


def make_budget(request_count: int, *, now_s: float = 0.0, percent: float = 10.0, floor_per_s: float = 0.0) -> Budget:
    """Return a budget into which so many requests have paid."""
    budget = Budget(percent, floor_per_s)
    for _ in range(request_count):
        budget.note_request(now_s)
    return budget


def test_a_tenth_of_the_requests_may_be_made_again() -> None:
    """Of two hundred twenty, and no more."""
    assert taken(make_budget(200), 1.0, 0.0) == 20
    assert taken(make_budget(9), 1.0, 0.0) == 0


def test_the_share_is_an_option() -> None:
    """Where nothing may be made again, nothing is."""
    assert taken(make_budget(200, percent=50.0), 1.0, 0.0) == 100
    assert taken(make_budget(200, percent=0.0), 1.0, 0.0) == 0


def test_a_resume_costs_twice_as_much() -> None:
    """It asks for the prompt once more, and for an answer besides."""
    assert taken(make_budget(200), 2.0, 0.0) == 10


def test_who_cannot_pay_the_whole_price_pays_nothing() -> None:
    """What is left is still there for something cheaper."""
    budget = make_budget(10)
    assert not budget.take(2.0, 0.0)
    assert budget.take(1.0, 0.0)
    assert not budget.take(1.0, 0.0)


def test_a_quiet_gateway_retries_at_all() -> None:
    """Three in a second, for the whole window."""
    budget = Budget()
    assert taken(budget, 1.0, 0.0) == 30
    assert taken(budget, 1.0, 9.9) == 0
    assert taken(budget, 1.0, 10.0) == 30


def test_the_window_forgets_requests() -> None:
    """A busy minute does not pay for an idle one."""
    assert taken(make_budget(200), 1.0, 9.9) == 20
    assert taken(make_budget(200), 1.0, 10.0) == 0


def test_the_window_forgets_step_by_step() -> None:
    """What was put in later is worth something for longer."""
    budget = Budget(percent=100.0, floor_per_s=0.0)
    for second in range(10):
        budget.note_request(float(second))
    assert budget.take(5.0, 14.0)
    assert not budget.take(1.0, 14.0)


def test_a_window_has_no_more_slices_than_steps() -> None:
    """However much happens in it."""
    window = Window(10.0)
    for tenth in range(1000):
        window.add(tenth / 10, count=1, amount=0.5)
    assert window.sums(99.9) == (100, 50.0)
    assert len(window._slices) == SLICES
    window.clear()
    assert window.sums(99.9) == (0, 0.0)


def test_targets_do_not_pay_for_each_other() -> None:
    """A provider in trouble uses up its own share."""
    budgets = Budgets(percent=10.0, floor_per_s=0.1)
    for _ in range(20):
        budgets.note_request("a", 0.0)
    assert [budgets.take("a", 1.0, 0.0) for _ in range(4)] == [True, True, True, False]
    assert [budgets.take("b", 1.0, 0.0) for _ in range(2)] == [True, False]


def test_targets_are_bounded() -> None:
    """Names that clients make up do not fill the memory, nor push out a target in use."""
    budgets = Budgets(floor_per_s=0.1)
    assert budgets.take("unused", 1.0, 0.0)
    assert budgets.take("used", 1.0, 0.0)
    for number in range(MAX_TARGETS):
        budgets.note_request(f"junk/{number}", 0.0)
        assert not budgets.take("used", 1.0, 0.0)
    assert len(budgets._by_target) == MAX_TARGETS
    assert budgets.take("unused", 1.0, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.0, 1.0, 2.0])), max_size=150),
    st.sampled_from([0.0, 10.0, 50.0]),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_never_more_is_spent_than_was_put_in(
    steps: list[tuple[int, float]], percent: float, floor_per_s: float
) -> None:
    """In any nine tenths of a window: the share of the requests of that window, and the floor."""
    budget = Budget(percent, floor_per_s)
    requests: list[float] = []
    spent: list[tuple[float, float]] = []
    now_s = 0.0
    for quarters, price in steps:
        now_s += quarters / 4
        if not price:
            budget.note_request(now_s)
            requests.append(now_s)
        elif budget.take(price, now_s):
            spent.append((now_s, price))
            paid = sum(price for at_s, price in spent if at_s > now_s - 9.0)
            put_in = sum(at_s > now_s - 10.0 for at_s in requests) * percent / 100
            assert paid <= put_in + floor_per_s * 10.0 + 1e-9


@pytest.mark.parametrize("now_s", [0.0, 3.3, 1e9])
def test_any_clock_will_do(now_s: float) -> None:
    """Where a monotonic clock begins is not said."""
    assert taken(make_budget(100, now_s=now_s), 1.0, now_s) == 10


def test_a_window_that_was_cleared_begins_again_within_the_same_step() -> None:
    """What is put in after that is counted, and in this window alone."""
    window, other = Window(10.0), Window(10.0)
    window.add(1.0, count=3, amount=1.5)
    window.clear()
    assert window.sums(1.0) == (0, 0.0)
    window.add(1.0, count=1, amount=0.5)
    assert window.sums(1.0) == (1, 0.5)
    other.add(1.0, count=2)
    assert (window.sums(1.0), other.sums(1.0)) == ((1, 0.5), (2, 0.0))
