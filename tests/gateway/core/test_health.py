from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.core.budget import MAX_TARGETS
from gateway.core.call import Target
from gateway.core.errors import (
    ErrorType,
    InternalError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.health import MAX_OPEN_S, PROBE_S, Breaker, HealthBoard, Pace, TargetHealth, counts
from gateway.core.ledger import Settlement
from gateway.core.seam import seam_not_found


def make_open(*, at_s: float = 0.0, **options: Any) -> Breaker:
    """Return a breaker that has opened for the first time."""
    breaker = Breaker(**options)
    while not breaker.is_open(at_s):
        breaker.note_failure(at_s)
    return breaker


def make_settlement(result: Any = "completed", **fields: Any) -> Settlement:
    """Return what an attempt came to that was begun at 100 s, if nothing else is said."""
    plain = {"request_id": "r", "attempt": 1, "target": Target("a", "m"), "model": "m", "started_at_s": 100.0}
    return Settlement(**{**plain, "ended_at_s": 101.0, "result": result, **fields})


def failed(at_s: float, **fields: Any) -> Settlement:
    """Return the settlement of an attempt, begun at ``at_s``, that the provider broke."""
    return make_settlement("failed", started_at_s=at_s, error_type="server_error", http_status=502, **fields)


def test_a_new_target_is_asked() -> None:
    """Nothing is known against it."""
    breaker = Breaker()
    assert breaker.admit(0.0)
    assert (breaker.state(0.0), breaker.is_open(0.0), breaker.open_until_s) == ("closed", False, 0.0)


def test_five_failures_in_a_row_open() -> None:
    """The fifth, and none before it."""
    breaker = Breaker()
    was_open = []
    for _ in range(5):
        breaker.note_failure(1.0)
        was_open.append(breaker.is_open(1.0))
    assert was_open == [False] * 4 + [True]
    assert (breaker.state(1.0), breaker.opened_at_s, breaker.open_until_s) == ("open", 1.0, 16.0)
    assert not breaker.admit(15.9)


def test_the_number_in_a_row_is_an_option() -> None:
    """So is how long it stays open at first."""
    breaker = make_open(failures=1, open_s=2.0)
    assert (breaker.is_open(1.9), breaker.is_open(2.0)) == (True, False)


@pytest.mark.parametrize("proof", ["note_first_token", "note_completed"])
def test_a_token_ends_the_row(proof: str) -> None:
    """Four failures, a sign of life, and four failures are no five."""
    breaker = Breaker()
    for _ in range(4):
        breaker.note_failure(0.0)
    getattr(breaker, proof)(0.0)
    for _ in range(4):
        breaker.note_failure(0.0)
    assert breaker.state(0.0) == "closed"


def test_half_of_twenty_opens() -> None:
    """Not of nineteen, though it is more than half of them."""
    breaker, other = Breaker(), Breaker()
    for outcome in range(9):
        breaker.note_completed(float(outcome))
        breaker.note_failure(float(outcome))
        other.note_completed(float(outcome))
        other.note_failure(float(outcome))
    breaker.note_completed(9.0)
    breaker.note_failure(9.0)
    other.note_failure(9.0)
    assert (breaker.state(9.0), other.state(9.0)) == ("open", "closed")


def test_less_than_half_does_not_open() -> None:
    """A target that answers two of three is not shut out."""
    breaker = Breaker()
    for outcome in range(100):
        breaker.note_failure(outcome / 10)
        breaker.note_completed(outcome / 10)
        breaker.note_completed(outcome / 10)
    assert breaker.state(10.0) == "closed"


def test_what_is_long_past_is_no_share() -> None:
    """Only the outcomes of the last 30 s are set against each other."""
    breaker = Breaker()
    for outcome in range(200):
        breaker.note_failure(outcome * 4.0)
        breaker.note_completed(outcome * 4.0)
    assert breaker.state(800.0) == "closed"


def test_what_opened_it_does_not_open_it_again() -> None:
    """Behind a probe that went well it starts from nothing."""
    breaker = Breaker(failures=100)
    for _ in range(20):
        breaker.note_failure(0.0)
    assert breaker.is_open(0.0)
    assert breaker.admit(15.0)
    breaker.note_completed(15.0)
    breaker.note_failure(15.0)
    assert breaker.state(15.0) == "closed"


def test_one_probe_decides() -> None:
    """Half-open, one is let through; it closes the breaker for all, or opens it anew."""
    for told, expected in (("note_first_token", "closed"), ("note_completed", "closed"), ("note_failure", "open")):
        breaker = make_open()
        assert breaker.state(15.0) == "half_open"
        assert [breaker.admit(15.0), breaker.admit(15.0), breaker.is_open(16.0)] == [True, False, True]
        getattr(breaker, told)(17.0)
        assert breaker.state(17.0) == expected
        assert breaker.admit(17.0) is (expected == "closed")


def test_every_opening_lasts_twice_as_long() -> None:
    """Up to five minutes, as long as no answer comes to its end between."""
    breaker = make_open()
    lengths = []
    for _ in range(8):
        now_s = breaker.open_until_s
        lengths.append(now_s - breaker.opened_at_s)
        assert breaker.admit(now_s)
        breaker.note_failure(now_s)
    assert lengths == [15, 30, 60, 120, 240, MAX_OPEN_S, MAX_OPEN_S, MAX_OPEN_S]


def test_a_first_token_does_not_forget_how_often_it_opened() -> None:
    """A completed answer does."""
    for told, expected_s in (("note_first_token", 30.0), ("note_completed", 15.0)):
        breaker = make_open()
        assert breaker.admit(15.0)
        getattr(breaker, told)(15.0)
        for _ in range(5):
            breaker.note_failure(20.0)
        assert breaker.open_until_s == 20.0 + expected_s


def test_a_target_that_is_down_for_days_does_not_overflow() -> None:
    """Two to the power of a thousand openings is still five minutes."""
    breaker = make_open()
    for _ in range(1100):
        breaker.note_failure(breaker.open_until_s)
    assert breaker.open_until_s - breaker.opened_at_s == MAX_OPEN_S


def test_an_outage_opens_once() -> None:
    """Fifty attempts that fail together do not make it worse than five."""
    breaker = make_open()
    for _ in range(45):
        breaker.note_failure(3.0)
        breaker.note_cut(3.0)
    assert breaker.open_until_s == 15.0
    breaker.note_first_token(3.0)
    breaker.note_completed(3.0)
    assert breaker.state(3.0) == "open"


def test_a_probe_that_is_given_back_lets_another_through() -> None:
    """One that was cancelled has told nothing."""
    breaker = make_open()
    assert breaker.admit(15.0)
    breaker.release(16.0)
    assert [breaker.admit(16.0), breaker.admit(16.0)] == [True, False]


def test_only_the_probe_is_given_back() -> None:
    """What was begun before it cannot be it; and where there is none, nothing happens."""
    breaker = make_open()
    breaker.release(15.0)
    assert breaker.admit(15.0)
    breaker.release(14.0)
    assert breaker.is_open(15.0)
    closed = Breaker()
    closed.release(1.0)
    assert closed.admit(1.0)


def test_a_lost_probe_does_not_block_for_ever() -> None:
    """A minute later another is let through."""
    breaker = make_open()
    assert breaker.admit(15.0)
    assert [breaker.admit(15.0 + PROBE_S - 0.1), breaker.admit(15.0 + PROBE_S)] == [False, True]


def test_one_cut_stream_counts_half() -> None:
    """Four failures and a cut are four and a half."""
    breaker = Breaker()
    breaker.note_cut(0.0)
    for _ in range(4):
        breaker.note_failure(0.0)
    assert breaker.state(0.0) == "closed"
    breaker.note_failure(0.0)
    assert breaker.state(0.0) == "open"


def test_two_cut_streams_in_a_row_count_whole() -> None:
    """Both of them, whatever first tokens lie between; so the fifth opens."""
    breaker = Breaker()
    for _ in range(4):
        breaker.note_first_token(0.0)
        breaker.note_cut(0.0)
    assert breaker.state(0.0) == "closed"
    breaker.note_first_token(0.0)
    breaker.note_cut(0.0)
    assert breaker.state(0.0) == "open"


def test_a_second_cut_makes_the_first_whole() -> None:
    """With three failures they are five."""
    breaker = Breaker()
    breaker.note_cut(0.0)
    for _ in range(3):
        breaker.note_failure(0.0)
    breaker.note_cut(0.0)
    assert breaker.state(0.0) == "open"


def test_a_first_token_proves_little_where_streams_are_cut() -> None:
    """The row goes on."""
    breaker = Breaker()
    breaker.note_cut(0.0)
    for _ in range(4):
        breaker.note_failure(0.0)
    breaker.note_first_token(0.0)
    breaker.note_failure(0.0)
    assert breaker.state(0.0) == "open"


def test_a_completed_answer_forgives_the_cuts() -> None:
    """The next one counts half again."""
    breaker = Breaker()
    for _ in range(4):
        breaker.note_cut(0.0)
    breaker.note_completed(0.0)
    for _ in range(4):
        breaker.note_cut(0.0)
    assert breaker.state(0.0) == "closed"


def test_single_cuts_are_half_of_the_share() -> None:
    """Of two answers always one is cut: that is a quarter."""
    breaker = Breaker()
    for _ in range(50):
        breaker.note_cut(0.0)
        breaker.note_completed(0.0)
    assert breaker.state(0.0) == "closed"


def test_a_target_that_cuts_every_stream_is_not_well_at_its_first_token() -> None:
    """The probe's token lets others through, the probe's end shuts them out, for twice as long."""
    breaker = Breaker()
    for _ in range(5):
        breaker.note_cut(0.0)
    assert breaker.admit(15.0)
    breaker.note_first_token(15.0)
    assert breaker.state(15.0) == "closed"
    breaker.note_cut(16.0)
    assert breaker.open_until_s == 46.0


def test_a_cut_probe_had_its_first_token() -> None:
    """Also if nobody told of that."""
    breaker = make_open()
    assert breaker.admit(15.0)
    breaker.note_cut(15.0)
    assert breaker.state(15.0) == "closed"


@pytest.mark.parametrize("code", ["answer_continues", "concurrency_limit", "seam_not_found", "total_timeout"])
def test_what_is_about_the_answer_or_our_limits_never_counts(code: str) -> None:
    """Whatever type and status it comes with."""
    assert not counts("protocol", code, 502)
    assert not counts("overloaded", code, 503)
    assert not counts("read_timeout", code, 504)
    assert not counts("rate_limited", code, 429)


@pytest.mark.parametrize("error_type", ["auth", "bad_request", "context_length", "content_filter", "_OTHER", None])
def test_what_the_client_or_the_gateway_did_never_counts(error_type: ErrorType | None) -> None:
    """The target is as well as before, also where its refusal is told as a 502."""
    for status in (None, 200, 400, 401, 404, 409, 413, 422, 499, 500, 502):
        assert not counts(error_type, "upstream_refused", status)


@pytest.mark.parametrize(
    "error_type",
    ["rate_limited", "overloaded", "connect", "tls", "dns", "read_timeout", "reset", "protocol", "server_error"],
)
def test_what_the_target_did_counts(error_type: ErrorType) -> None:
    """Whether it had a status or not; unless that says that the client did it."""
    for status in (None, 200, 408, 429, 500, 502, 503, 504, 529):
        assert counts(error_type, "upstream_error", status)
    assert not counts(error_type, "upstream_error", 404)


def test_a_target_that_had_no_time_counts() -> None:
    """408 is told as a bad request, and is none."""
    assert counts("bad_request", "upstream_refused", 408)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamBusy("", error_type="rate_limited", status_code=429), True),
        (UpstreamBusy(""), True),
        (UpstreamBusy("", code="concurrency_limit"), False),
        (UpstreamFailed(""), True),
        (UpstreamUnreachable("", error_type="dns"), True),
        (UpstreamTimeout("", code="ttft_timeout"), True),
        (UpstreamTimeout("", code="total_timeout"), False),
        (StreamInterrupted("", code="stream_truncated"), True),
        (StreamInterrupted("", code="malformed_stream", error_type="protocol"), True),
        (StreamInterrupted("", code="stall_timeout", status_code=504, error_type="read_timeout"), True),
        (seam_not_found(), False),
        (UpstreamRefused("", error_type="auth", status_code=502), False),
        (UpstreamRefused("", error_type="content_filter", status_code=400), False),
        (InvalidRequest(""), False),
        (InternalError(""), False),
    ],
)
def test_errors_count_as_they_are_raised(error: UpstreamError, expected: bool) -> None:  # noqa: FBT001, a column of the table
    """With the type, the code and the status that their classes give them."""
    assert counts(error.error_type, error.code, error.status_code) is expected


def test_the_first_sample_is_the_pace() -> None:
    """Before it there is none."""
    pace = Pace()
    assert pace.ttft_s(0.0) is None
    pace.note(2.0, 5.0)
    assert pace.ttft_s(5.0) == 2.0


def test_a_sample_weighs_three_tenths() -> None:
    """One slow answer is not yet a slow target."""
    pace = Pace()
    pace.note(1.0, 5.0)
    pace.note(2.0, 5.0)
    assert pace.ttft_s(5.0) == pytest.approx(1.3)


def test_pace_halves_every_minute() -> None:
    """So that a target that was slow once is tried again."""
    pace = Pace()
    pace.note(8.0, 0.0)
    assert [pace.ttft_s(now_s) for now_s in (-60.0, 0.0, 60.0, 120.0)] == [8.0, 8.0, 4.0, 2.0]


def test_the_older_the_memory_the_less_it_weighs() -> None:
    """A target asked once a minute is found as slow as it is, not half as slow."""
    pace = Pace()
    for minute in range(10):
        pace.note(2.0, minute * 60.0)
    assert pace.ttft_s(540.0) == pytest.approx(2.0)
    pace.note(10.0, 100_000.0)
    assert pace.ttft_s(100_000.0) == pytest.approx(10.0)


@given(st.lists(st.tuples(st.floats(0, 600), st.floats(-5, 3600)), min_size=1))
def test_pace_is_between_its_samples(samples: list[tuple[float, float]]) -> None:
    """An average, whatever the times; also where two attempts tell out of their order."""
    pace, now_s = Pace(), 0.0
    for ttft_s, later_s in samples:
        now_s += later_s
        pace.note(ttft_s, now_s)
    taken_s = [ttft_s for ttft_s, _ in samples]
    found_s = pace.ttft_s(now_s)
    assert found_s is not None
    assert min(taken_s) - 1e-9 <= found_s <= max(taken_s) + 1e-9


def test_a_first_token_tells_breaker_and_pace() -> None:
    """The target is alive, and so fast."""
    health = TargetHealth(make_open())
    assert health.breaker.admit(20.0)
    health.note_first_token(0.5, 20.5)
    assert (health.breaker.state(20.5), health.pace.ttft_s(20.5)) == ("closed", 0.5)


def test_failures_open_and_a_completed_probe_closes() -> None:
    """As settlements tell them."""
    health = TargetHealth()
    for _ in range(5):
        health.note(failed(100.0), 101.0)
    assert health.breaker.state(101.0) == "open"
    assert health.breaker.admit(120.0)
    health.note(make_settlement(started_at_s=120.0), 121.0)
    assert health.breaker.state(121.0) == "closed"


def test_a_stream_that_broke_is_a_cut() -> None:
    """It is one when its first token had come: so one of them is only half a failure."""
    health = TargetHealth()
    health.note(failed(100.0, first_token_at_s=100.5), 101.0)
    for _ in range(4):
        health.note(failed(100.0), 101.0)
    assert health.breaker.state(101.0) == "closed"


@pytest.mark.parametrize(
    "settlement",
    [
        make_settlement("cancelled", reason="client_gone"),
        make_settlement("cancelled", reason="hedge_lost", error_type="server_error", http_status=502),
        make_settlement("failed", error_type="bad_request", code="upstream_refused", http_status=400),
        make_settlement("failed", error_type="protocol", code="seam_not_found", first_token_at_s=100.5),
        make_settlement("failed"),
    ],
)
def test_what_says_nothing_about_the_target_gives_the_probe_back(settlement: Settlement) -> None:
    """Then another may be the probe."""
    health = TargetHealth(make_open())
    assert health.breaker.admit(100.0)
    health.note(settlement, 101.0)
    assert health.breaker.state(101.0) == "half_open"
    assert [health.breaker.admit(101.0), health.breaker.admit(101.0)] == [True, False]


@pytest.mark.parametrize(
    "settlement",
    [
        make_settlement("completed", started_at_s=1.0),
        make_settlement("cancelled", started_at_s=1.0),
        failed(1.0),
        failed(1.0, first_token_at_s=2.0),
    ],
)
def test_what_began_before_the_breaker_opened_is_no_news(settlement: Settlement) -> None:
    """Streams of that time end for a long while yet, and none of them is the probe."""
    health = TargetHealth(make_open(at_s=5.0))
    assert health.breaker.admit(20.0)
    health.note(settlement, 21.0)
    health.note_first_token(20.0, 21.0)
    assert (health.breaker.state(21.0), health.breaker.is_open(21.0)) == ("half_open", True)


def test_a_cancelled_attempt_from_before_the_probe_does_not_give_it_back() -> None:
    """Another that was let through in between may have been lost, and turns up at last."""
    health = TargetHealth(make_open())
    assert health.breaker.admit(20.0)
    assert health.breaker.admit(90.0)
    health.note(make_settlement("cancelled", started_at_s=20.0), 91.0)
    assert health.breaker.is_open(91.0)


def test_the_board_keeps_targets_apart() -> None:
    """Each has its own, the same whenever it is asked for."""
    board = HealthBoard()
    one, other = board.of("a/m"), board.of("b/m")
    assert board.of("a/m") is one
    assert one is not other
    assert one.breaker is not other.breaker
    assert sorted((name, health.breaker) for name, health in board if health is one) == [("a/m", one.breaker)]
    assert sorted(name for name, _ in board) == ["a/m", "b/m"]


def test_the_boards_options_are_those_of_its_breakers() -> None:
    """Each target's opens after so many failures, for so long."""
    breaker = HealthBoard(failures=2, open_s=3.0).of("a/m").breaker
    breaker.note_failure(0.0)
    assert not breaker.is_open(0.0)
    breaker.note_failure(0.0)
    assert (breaker.is_open(2.9), breaker.is_open(3.0)) == (True, False)


def test_the_board_forgets_what_was_longest_unused() -> None:
    """Names that clients make up do not push out a target in use."""
    board = HealthBoard()
    used, unused = board.of("used"), board.of("unused")
    for number in range(MAX_TARGETS):
        board.of(f"junk/{number}")
        assert board.of("used") is used
    assert sum(1 for _ in board) == MAX_TARGETS
    assert board.of("unused") is not unused


def test_the_board_can_be_asked_while_it_is_read() -> None:
    """Whoever reads it may come upon a target of its own."""
    board = HealthBoard()
    board.of("a")
    board.of("b")
    for name, _ in board:
        board.of(name)
        board.of(f"{name}+")
    assert sum(1 for _ in board) == 4


class BreakerMachine(RuleBasedStateMachine):
    """Attempts at one target that begin, tell and end in any order, at any time."""

    @initialize(failures=st.integers(1, 5), open_s=st.sampled_from([1.0, 15.0]))
    def start(self, failures: int, open_s: float) -> None:
        """Begin with a closed breaker."""
        self.health = TargetHealth(Breaker(failures=failures, open_s=open_s))
        self.now_s = 1000.0
        self.running: list[float] = []
        self.probes: list[float] = []

    @rule(seconds=st.sampled_from([0.25, 1.0, 14.0, 15.0, 59.0, 61.0, 299.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    @rule(count=st.integers(1, 6))
    def ask(self, count: int) -> None:
        """Let several ask at once; who is let through begins an attempt."""
        self.now_s += 0.25
        breaker = self.health.breaker
        state = breaker.state(self.now_s)
        admitted = [breaker.admit(self.now_s) for _ in range(count)]
        match state:
            case "closed":
                assert all(admitted)
            case "open":
                assert not any(admitted)
            case "half_open":
                assert sum(admitted) <= 1
                self.probes += [self.now_s] * sum(admitted)
        self.running += [self.now_s] * sum(admitted)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        """Let an attempt bring its first token."""
        started_at_s = data.draw(st.sampled_from(self.running))
        self.now_s += 0.25
        self.health.note_first_token(self.now_s - started_at_s, self.now_s)
        self.tell(started_at_s)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        result=st.sampled_from(["completed", "failed", "failed", "failed", "cancelled"]),
        error=st.sampled_from([("server_error", 502), ("server_error", 502), ("bad_request", 400)]),
        has_begun=st.booleans(),
    )
    def end(self, data: st.DataObject, result: str, error: tuple[str, int], has_begun: bool) -> None:  # noqa: FBT001, drawn by name
        """Let an attempt end."""
        started_at_s = data.draw(st.sampled_from(self.running))
        self.running.remove(started_at_s)
        self.now_s += 0.25
        error_type, status = error if result == "failed" else (None, None)
        settlement = make_settlement(
            result,
            started_at_s=started_at_s,
            first_token_at_s=self.now_s if has_begun else None,
            error_type=error_type,
            http_status=status,
        )
        self.health.note(settlement, self.now_s)
        self.tell(started_at_s)

    def tell(self, started_at_s: float) -> None:
        """Forget a probe that has told, and all of them once the breaker is not half-open."""
        self.probes = [at_s for at_s in self.probes if at_s != started_at_s]
        if self.health.breaker.state(self.now_s) != "half_open":
            self.probes.clear()

    @invariant()
    def at_most_one_probe_is_under_way(self) -> None:
        """Those that were lost for a minute are not counted."""
        assert sum(self.now_s < at_s + PROBE_S for at_s in self.probes) <= 1

    @invariant()
    def is_open_says_what_admit_would(self) -> None:
        """And looking changes nothing."""
        breaker = self.health.breaker
        assert breaker.is_open(self.now_s) is not copy.deepcopy(breaker).admit(self.now_s)

    @invariant()
    def it_admits_again(self) -> None:
        """Whatever has happened: after the longest opening, or the time of a probe."""
        breaker = self.health.breaker
        assert breaker.open_until_s <= self.now_s + MAX_OPEN_S
        assert (breaker.open_until_s == 0.0) is (breaker.state(self.now_s) == "closed")
        assert not breaker.is_open(self.now_s + max(MAX_OPEN_S, PROBE_S))


TestBreakerMachine = BreakerMachine.TestCase
