from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import __version__
from gateway.schema import Secret
from gateway.telemetry.export import Pace
from gateway.telemetry.tracing import Tracer
from tests.gateway.telemetry.traced import (
    QUICK,
    MakeTracer,
    call,
    settlement,
)
from tests.otlp import Collector

CANARY = "canary-7f3a"


def finished(tracer: Tracer, count: int = 1, **facts: Any) -> None:
    """Have so many calls begin and end, of three spans each."""
    for _ in range(count):
        trace = tracer.begin(call())
        trace.attempt(settlement())
        trace.end("completed", **facts)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return when it is so; fails when it does not become so."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/tenant-1"])
def test_spans_go_to_the_endpoint_with_its_headers(collector: Collector, make_tracer: MakeTracer, path: str) -> None:
    """The path of OTLP is added where it is missing."""
    tracer = make_tracer(collector.url + path, headers={"authorization": Secret("Bearer s3cret")}, pace=QUICK)
    finished(tracer)
    wait_until(lambda: len(collector.spans()) == 3)
    (sent_to, headers, _), *_ = collector.requests
    assert sent_to == ("/tenant-1/v1/traces" if path == "/tenant-1" else "/v1/traces")
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["content-type"] == "application/x-protobuf"


def test_spans_are_sent_in_small_batches(collector: Collector, make_tracer: MakeTracer) -> None:
    """No more than 64 at once, and none is lost."""
    tracer = make_tracer()
    finished(tracer, 100)
    tracer.shutdown(5.0)
    sizes = [len(batch.resource_spans[0].scope_spans[0].spans) for batch in collector.batches()]
    assert (sum(sizes), max(sizes) <= 64, len(sizes)) == (300, True, 5)
    assert tracer.dropped_count == 0


def test_a_batch_holds_at_least_one_call(collector: Collector, make_tracer: MakeTracer) -> None:
    """However small batches are to be."""
    tracer = make_tracer(pace=Pace(interval_s=60.0, batch_size=1, spans_per_breath=1))
    finished(tracer, 2)
    tracer.shutdown()
    assert len(collector.batches()) == 4
    assert len(collector.spans()) == 6


def test_what_finds_no_room_is_dropped_and_counted(collector: Collector, make_tracer: MakeTracer) -> None:
    """The newest go, so that what is kept belongs together."""
    tracer = make_tracer(pace=Pace(interval_s=60.0, queue_size=4))
    finished(tracer, 5)
    assert tracer.dropped_count == 9
    tracer.shutdown()
    assert len(collector.spans()) == 6
    assert tracer.dropped_count == 9


def test_a_collector_that_is_down_costs_drops(make_tracer: MakeTracer, capfd: pytest.CaptureFixture[str]) -> None:
    """They are counted, and logged once in a while, in words of ours."""
    with capture_logs() as logs:
        tracer = make_tracer(f"http://127.0.0.1:{closed_port()}", pace=replace(QUICK, timeout_s=0.5))
        for dropped_count in (3, 6):
            finished(tracer, response_id=CANARY)
            wait_until(lambda expected=dropped_count: tracer.dropped_count == expected)  # type: ignore[misc]
        tracer.shutdown()
    assert logs == [
        {"event": "traces.dropped", "log_level": "warning", "dropped_count": 3, "reason": "no_answer"},
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_collector_that_refuses_is_not_asked_again(
    collector: Collector, make_tracer: MakeTracer, status: int
) -> None:
    """The same spans would be refused again; the reason is in the log."""
    collector.statuses = [status]
    with capture_logs() as logs:
        tracer = make_tracer(pace=QUICK)
        finished(tracer)
        wait_until(lambda: logs != [])
        finished(tracer)
        tracer.shutdown()
    assert (tracer.dropped_count, len(collector.requests)) == (3, 2)
    assert [entry["reason"] for entry in logs] == [f"http_{status}"]


def test_a_collector_that_is_busy_is_asked_again(collector: Collector, make_tracer: MakeTracer) -> None:
    """When it says, if that is soon."""
    collector.statuses, collector.headers = [503], {"retry-after": "0"}
    tracer = make_tracer(pace=QUICK)
    finished(tracer)
    wait_until(lambda: len(collector.requests) == 2)
    tracer.shutdown()
    assert tracer.dropped_count == 0
    assert collector.requests[0][2] == collector.requests[1][2]


def test_failures_come_ever_less_often(collector: Collector, make_tracer: MakeTracer) -> None:
    """A collector that is broken is left in peace; when it works again, all is as before."""
    collector.statuses = [500] * 3
    tracer = make_tracer(pace=Pace(interval_s=0.02, pause_s=0.0, timeout_s=30, max_wait_s=0.2))
    began_s = time.monotonic()
    while collector.statuses:
        finished(tracer)
        time.sleep(0.005)
    assert time.monotonic() - began_s > 0.02 + 0.04 + 0.08
    dropped_count = tracer.dropped_count
    finished(tracer)
    tracer.shutdown()
    assert tracer.dropped_count >= dropped_count
    assert len(collector.requests) >= 4


def test_a_collector_that_hangs_costs_drops_and_no_time(collector: Collector, make_tracer: MakeTracer) -> None:
    """Calls begin and end as ever; what no longer fits is dropped, and the end waits only so long."""
    collector.hangs.clear()
    tracer = make_tracer(pace=Pace(interval_s=0.01, queue_size=10, timeout_s=30.0))
    finished(tracer)
    wait_until(lambda: tracer._exporter is not None and tracer._exporter._sending_count == 3)
    began_s = time.monotonic()
    finished(tracer, 100)
    assert time.monotonic() - began_s < 5
    assert tracer.dropped_count == 300 - 15

    began_s = time.monotonic()
    tracer.shutdown(0.1)
    assert 0.1 <= time.monotonic() - began_s < 10
    assert tracer.dropped_count == 303
    collector.hangs.set()
    time.sleep(0.05)
    assert tracer.dropped_count == 303


def test_a_collector_that_is_slow_is_given_up(collector: Collector, make_tracer: MakeTracer) -> None:
    """After the time that a batch has, and the next may do better."""
    collector.hangs.clear()
    with capture_logs() as logs:
        tracer = make_tracer(pace=Pace(interval_s=0.01, timeout_s=1.5))
        finished(tracer)
        wait_until(lambda: logs != [])
        collector.hangs.set()
        finished(tracer)
        tracer.shutdown()
    assert [entry["reason"] for entry in logs] == ["no_answer"]
    assert tracer.dropped_count == 3


def test_the_log_tells_of_a_queue_that_was_full(collector: Collector, make_tracer: MakeTracer) -> None:
    """The collector is not to blame for that."""
    with capture_logs() as logs:
        tracer = make_tracer(pace=Pace(interval_s=0.05, queue_size=1))
        finished(tracer)
        wait_until(lambda: logs != [])
    assert logs[0]["reason"] == "queue_full"
    assert len(collector.spans()) == 1


def test_what_cannot_be_encoded_is_dropped(make_tracer: MakeTracer) -> None:
    """A time before the epoch has no place in OTLP; the thread lives on."""
    with capture_logs() as logs:
        tracer = make_tracer(pace=QUICK)
        tracer.begin(call()).attempt(settlement(started_at_s=-1e12))
        wait_until(lambda: logs != [])
    assert (logs[0]["reason"], tracer.dropped_count) == ("not_encoded", 1)


def test_a_redirect_is_not_followed(collector: Collector, make_tracer: MakeTracer) -> None:
    """Spans go where the configuration says, and nowhere else."""
    elsewhere = Collector()
    try:
        collector.statuses, collector.headers = [307], {"location": f"{elsewhere.url}/v1/traces"}
        tracer = make_tracer()
        finished(tracer)
        tracer.shutdown()
        assert (len(collector.requests), elsewhere.requests, tracer.dropped_count) == (1, [], 3)
    finally:
        elsewhere.close()


def test_proxies_and_passwords_of_the_environment_are_not_used(
    collector: Collector, make_tracer: MakeTracer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What the machine is set up for is not what the gateway is."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password s3cret\n")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    tracer = make_tracer()
    finished(tracer)
    tracer.shutdown()
    ((_, headers, _),) = collector.requests
    assert "authorization" not in headers
    assert len(collector.spans()) == 3


def test_what_ends_after_the_shutdown_is_dropped(collector: Collector, make_tracer: MakeTracer) -> None:
    """And counted; shutting down again does nothing."""
    tracer = make_tracer()
    tracer.shutdown()
    finished(tracer)
    tracer.shutdown()
    assert (tracer.dropped_count, collector.requests) == (3, [])


def test_a_tracer_that_never_started_drops_what_it_has() -> None:
    """Without a thread nobody sends it."""
    tracer = Tracer("http://127.0.0.1:9")
    finished(tracer)
    tracer.shutdown()
    assert tracer.dropped_count == 3


def test_a_tracer_is_started_once(collector: Collector, make_tracer: MakeTracer) -> None:
    """Starting again is no second thread."""
    tracer = make_tracer()
    before = threading.active_count()
    tracer.start()
    assert threading.active_count() == before
    finished(tracer)
    tracer.shutdown()
    assert len(collector.spans()) == 3


def test_each_process_starts_after_the_fork(collector: Collector) -> None:
    """A tracer that was made before exports from every worker, and each says who it is."""
    script = """
import os, sys
from gateway.core.call import Call
from gateway.telemetry.tracing import Tracer
tracer = Tracer(sys.argv[1])
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        tracer.start()
        tracer.begin(Call(request_id=f"r{number}")).end("completed")
        tracer.shutdown()
        os._exit(tracer.dropped_count)
    children.append(pid)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children))
"""
    subprocess.run([sys.executable, "-c", script, collector.url], check=True)  # noqa: S603, ours
    assert len({span.trace_id for span in collector.spans()}) == 2
    workers = set()
    for batch in collector.batches():
        for item in batch.resource_spans[0].resource.attributes:
            if item.key in ("service.instance.id", "process.pid"):
                workers.add(str(item.value))
    assert len(workers) == 4


def test_who_exports_is_named(collector: Collector, make_tracer: MakeTracer) -> None:
    """Each process by itself, with what the environment says of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=mill-0")
        tracer = make_tracer()
    tracer.begin(call()).end("completed")
    tracer.shutdown()
    (resource,) = collector.batches()[0].resource_spans
    found = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert found["service.name"] == "millrace"
    assert found["service.version"] == __version__
    assert re.fullmatch(r"[0-9a-f-]{36}", found["service.instance.id"])
    assert found["k8s.pod.name"] == "mill-0"
    assert (resource.scope_spans[0].scope.name, resource.scope_spans[0].scope.version) == ("millrace", __version__)
