"""A process that does nothing but count, so that others can read it, stop it and kill it: ``writer.py FD``.

Everything it writes can be checked by who reads it: each value follows from its number, in both halves of its cell;
what it gathers is the same every time, and settled after every ``GATHERED_COUNT``. At SIGTERM it says how often it has
counted, and ends.
"""

from __future__ import annotations

import os
import signal
import sys

from gateway.telemetry.meters import Meters
from gateway.telemetry.slab import Slab

BOTH_HALVES = 2**32 + 1
"""A multiple of it, below 2**52, that was written by halves, is none."""
REASON_COUNT = 8
GATHERED_COUNT = 10
GATHERED_S = 0.5


def value_of(number: int) -> float:
    """Return what is observed as that number: sums of such values are exact."""
    return (number % 1024) / 64


def main() -> None:
    """Count until told to stop."""
    count = 0
    is_told = False

    def stop(*_: object) -> None:
        nonlocal is_told
        is_told = True

    signal.signal(signal.SIGTERM, stop)
    os.nice(19)
    meters = Meters(Slab.attach(int(sys.argv[1])), clock=lambda: float(count))
    started = [meters.counter("millrace_requests_started_total", "chat", model) for model in ("a", "b", "c")]
    ttft = meters.histogram("millrace_ttft_seconds", "a", "openai/a")
    buffered = meters.gauge("millrace_stream_buffered_bytes")
    gap = meters.histogram("millrace_chunk_gap_seconds", "a", "openai/a")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not is_told:
        count += 1
        started[count % 3].inc()
        ttft.observe(value_of(count), f"{count:032x}")
        buffered.set(count % 2**20 * BOTH_HALVES)
        gap.gather(GATHERED_S)
        if count % GATHERED_COUNT == 0:
            gap.settle()
        if count % 100 == 0:  # the directory grows while it is read
            meters.counter("millrace_rejected_total", f"reason {count // 100 % REASON_COUNT}").inc()
    sys.stdout.write(f"{count}\n")


if __name__ == "__main__":
    main()
