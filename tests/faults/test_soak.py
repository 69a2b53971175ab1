"""Most of a minute of what ``make soak`` does in a quarter of an hour, and whether that sees what it looks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.soak import Load, Look, Told, broken_laws, grown, parts, soak
from tests.exposition import Exposition

SHORT: Final = Load(
    stream_count=60,
    duration_s=48.0,
    warm_up_s=8.0,
    reload_s=8.0,
    look_s=0.5,
    token_count=20,
)
SLACK: Final = 15.0
"""Times the bounds of the long form. Where the machine is busy the old workers may be there in one window, and gone in
another: that alone is a hundred megabytes. What is left at rest is what counts here."""
LEFT_MB: Final = 60.0


async def test_nothing_is_lost_or_left_behind_in_faults_departures_and_reloads(tmp_path: Path) -> None:
    """The books balance to the last attempt; what the processes hold at rest is about what it was."""
    report = await soak(SHORT, tmp_path, slack=SLACK)
    assert report.faults == []
    assert report.told.reloads >= 2
    assert report.told.endings["completed"] > SHORT.stream_count
    assert report.told.endings["left"] > 0
    assert report.told.attempts["failed"] > SHORT.stream_count / 4, "the faults were met"
    before, after = report.looks[0], report.looks[-1]
    assert after.resident_mb < before.resident_mb + LEFT_MB


FLAT: Final = [Look(float(at), 3, 9, 400, 150.0, 20, 60.0, 900, 200) for at in range(300)]
LOAD: Final = Load(warm_up_s=20.0)


def test_what_rises_and_falls_with_reloads_has_not_grown() -> None:
    """Only its lowest counts."""
    looks = [replace(look, processes=3 + 2 * (look.at_s % 30 < 10), resident_mb=150 + look.at_s % 30) for look in FLAT]
    assert grown(looks, LOAD) == []


@pytest.mark.parametrize(
    ("name", "a_second"),
    [
        ("processes", 0.02),
        ("descriptors", 0.5),
        ("resident_mb", 0.2),
        ("own_resident_mb", 0.1),
        ("own_descriptors", 0.1),
        ("series", 1.0),
        ("threads", 0.1),
    ],
)
def test_what_grows_is_seen_and_told(name: str, a_second: float) -> None:
    """Each of the numbers has its bound."""
    looks = [replace(look, **{name: getattr(look, name) + int(look.at_s * a_second * 10) / 10}) for look in FLAT]
    (told,) = grown(looks, LOAD)
    assert told.startswith(f"{name} grew by ")


def test_what_only_a_worker_that_stays_loses_is_seen() -> None:
    """Reloads hide it for the first half of the time: in all of it, it would be too little."""
    load = replace(LOAD, duration_s=300.0, still_s=150.0)
    looks = [replace(look, resident_mb=150 + max(0.0, look.at_s - 150) * 0.15) for look in FLAT]
    reloaded, stayed = parts(looks, load)
    assert grown(reloaded, load) == []
    (told,) = grown(stayed, load)
    assert told.startswith("resident_mb grew by ")
    assert parts(looks, LOAD) == [looks]


def _books(**changes: float) -> Exposition:
    """Return what is counted of two calls: one completed in its second attempt, the other left by its client."""
    counted = {
        "started": ('millrace_requests_started_total{model="chat"}', 2),
        "completed": ('millrace_requests_total{outcome="completed"}', 1),
        "left": ('millrace_requests_total{outcome="client_aborted"}', 1),
        "active": ('millrace_streams_active{model="chat"}', 0),
        "attempts": ('millrace_upstream_attempts_total{result="completed"}', 3),
        "dropped": ('millrace_log_records_dropped_total{level="info"}', 0),
        "restarts": ('millrace_worker_restarts_total{worker="0"}', 0),
        "generation": ("millrace_config_generation", 2),
    }
    return Exposition.read("".join(f"{name} {changes.get(key, n)}\n" for key, (name, n) in counted.items()).encode())


LINES: Final[list[Mapping[str, Any]]] = [
    *[{"event": "attempt.settled"}] * 3,
    {"event": "stream.finished", "outcome": "completed", "attempts": 2},
    {"event": "stream.finished", "outcome": "client_aborted", "attempts": 1},
]
TOLD: Final = Told(endings=Counter(left=1), reloads=1)


def test_books_that_balance_break_no_law() -> None:
    """The first request is not among those that were told."""
    assert broken_laws(_books(), LINES, TOLD) == []


@pytest.mark.parametrize("key", ["started", "completed", "left", "active", "attempts", "dropped", "restarts"])
def test_a_number_that_is_off_by_one_breaks_a_law(key: str) -> None:
    """Whichever it is."""
    whole = {"started": 2, "completed": 1, "left": 1, "attempts": 3}
    assert broken_laws(_books(**{key: whole.get(key, 0) + 1}), LINES, TOLD)


@pytest.mark.parametrize("place", range(len(LINES)))
def test_a_line_that_is_missing_breaks_a_law(place: int) -> None:
    """One that there is twice, too."""
    assert broken_laws(_books(), [*LINES[:place], *LINES[place + 1 :]], TOLD)
    assert broken_laws(_books(), [*LINES, LINES[place]], TOLD)


def test_a_completed_call_of_which_no_client_knows_breaks_a_law() -> None:
    """Nor may one be missing that a client has seen."""
    assert broken_laws(_books(), LINES, Told(endings=Counter(completed=1), reloads=1))
    assert broken_laws(_books(), LINES, Told(endings=Counter({"http 429": 1}), reloads=1)) == []
    assert broken_laws(_books(), LINES, Told(endings=Counter({"http 429": 2}), reloads=1))
