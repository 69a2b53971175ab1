"""Processes that count, for tests of what is read of them; and tracers that export to a collector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from gateway.telemetry.export import Pace
from gateway.telemetry.slab import Slab
from gateway.telemetry.tracing import Tracer
from tests.gateway.telemetry.traced import PATIENT, PEERS, MakeTracer
from tests.otlp import Collector

WRITER = Path(__file__).with_name("writer.py")


class MakeWriter(Protocol):
    """Start a process that counts in a slab."""

    def __call__(self, slab: Slab) -> subprocess.Popen[str]:
        """Return it when it has begun to."""


@pytest.fixture
def make_writer() -> Iterator[MakeWriter]:
    """Start processes that count; none is left after the test."""
    writers: list[subprocess.Popen[str]] = []

    def make(slab: Slab) -> subprocess.Popen[str]:
        command = [sys.executable, str(WRITER), str(slab.fd)]
        writer = subprocess.Popen(command, pass_fds=[slab.fd], stdout=subprocess.PIPE, text=True)  # noqa: S603, ours
        writers.append(writer)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        return writer

    yield make
    for writer in writers:
        writer.kill()
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()


@pytest.fixture
def make_tracer(collector: Collector) -> Iterator[MakeTracer]:
    """Start tracers for the collector; after the test they are shut down."""
    made: list[Tracer] = []

    def make(endpoint: str = collector.url, *, pace: Pace = PATIENT, **options: Any) -> Tracer:
        tracer = Tracer(endpoint, pace=pace, peers=PEERS, **options)
        tracer.start()
        made.append(tracer)
        return tracer

    yield make
    for tracer in made:
        tracer.shutdown(0.0)
