"""How late the event loop is: whatever blocks it delays every stream of the process by as much.

A timer says when it should have been called and when it was. It looks at the loop from inside, so that a loop that
hangs tells nothing until it goes on; then it tells how long that was.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.core.meters import Meters

INTERVAL_S: Final = 0.25
REMEMBERED_S: Final = 10.0
"""The worst lag is that of the last so many seconds: what was worse before is in the histogram."""


class LagSampler:
    """Looks at the loop every ``interval_s``, from ``start`` to ``stop``.

    ``worker`` is the slot of the process. ``samples`` are called as often: for what else is only known by looking.
    """

    def __init__(
        self,
        meters: Meters,
        *,
        worker: str = "0",
        samples: Sequence[Callable[[], None]] = (),
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._lag = meters.histogram("millrace_event_loop_lag_seconds")
        self._worst = meters.gauge("millrace_event_loop_lag_max_seconds", worker)
        self._samples = samples
        self._interval_s = interval_s
        self._recent: deque[float] = deque(maxlen=max(1, round(REMEMBERED_S / interval_s)))
        self._due_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; to be called inside the loop."""
        self._wait()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._due_at_s = time.monotonic() + self._interval_s  # uvloop's own clock stands still within a turn
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        lag_s = max(0.0, time.monotonic() - self._due_at_s)
        self._lag.observe(lag_s)
        self._recent.append(lag_s)
        self._worst.set(max(self._recent))
        try:
            for sample in self._samples:
                sample()
        finally:
            self._wait()
