"""A gateway that is none: it exports every family of the catalogue, with values that grow as time passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from threading import Thread
from typing import Self, get_args

from dashboards.panels import PALETTE
from gateway.core.errors import ErrorType
from gateway.telemetry.catalogue import CATALOGUE, Metric

VALUES: dict[str, tuple[str, ...]] = {
    "route": ("chat_completions",),
    "model": ("chat", "code"),
    "stream": ("true", "false"),
    "outcome": tuple(PALETTE["outcome"]),
    "code": ("200", "400", "502"),
    "reason": ("client_abort", "failed_attempt"),
    "finish_reason": ("stop", "length"),
    "phase": ("prefill", "decode"),
    "upstream": ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"),
    "from_upstream": ("openai/gpt-5-mini",),
    "resolution": tuple(PALETTE["resolution"]),
    "objective": ("complete", "ttft", "tpot", "smooth", "all"),
    "met": ("true", "false"),
    "source": ("reported", "counted", "missing"),
    "result": ("completed", "failed", "cancelled"),
    "error_type": ("", *get_args(ErrorType)),
    "state": tuple(PALETTE["state"]),
    "resource": ("requests", "tokens"),
    "stage": ("request", "first_token"),
    "worker": ("0", "1"),
    "level": ("info",),
    "family": ("millrace_ttft_seconds",),
    "version": ("0.1.0",),
    "python": ("3.11.7",),
    "loop": ("uvloop",),
    "hash": ("cafe",),
}


def exposition(age_s: float) -> str:
    """Return all families as they might be after so many seconds."""
    return "".join(f"{line}\n" for metric in CATALOGUE for line in _family(metric, age_s))


def _family(metric: Metric, age_s: float) -> Iterator[str]:
    yield f"# TYPE {metric.name} {metric.kind}"
    for values in product(*(VALUES[label] for label in metric.labels)):
        labels = [f'{label}="{value}"' for label, value in zip(metric.labels, values, strict=True)]
        inner = "{" + ",".join(labels) + "}" if labels else ""
        if metric.kind == "counter":
            yield f"{metric.name}{inner} {age_s}"
        elif metric.kind == "gauge":
            yield f"{metric.name}{inner} {1 if 'info' in metric.name or 'state' in metric.name else 0.5}"
        else:
            yield from _histogram(metric, labels, age_s)


def _histogram(metric: Metric, labels: list[str], age_s: float) -> Iterator[str]:
    bounds = [f"{bound:g}" if bound < 1 else str(float(bound)) for bound in metric.buckets]
    for place, bound in enumerate([*bounds, "+Inf"], 1):
        inner = ",".join([*labels, f'le="{bound}"'])
        yield f"{metric.name}_bucket{{{inner}}} {place * age_s}"
    inner = "{" + ",".join(labels) + "}" if labels else ""
    yield f"{metric.name}_sum{inner} {age_s}"
    yield f"{metric.name}_count{inner} {(len(bounds) + 1) * age_s}"


class MadeUpGateway:
    """Serves ``/metrics`` on a port of its own while it is entered."""

    def __enter__(self) -> Self:
        """Begin to serve."""
        begun_at_s = time.monotonic()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exposition(time.monotonic() - begun_at_s).encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """Where Prometheus finds it."""
        return f"127.0.0.1:{self._server.server_port}"
