"""Every metric there is: its name, kind, labels, buckets, and what it is good for. Nothing else is exported.

Units are base units and end the name. Labels come from the configuration and from closed sets: ``model`` is a name of
the configuration or ``other``, ``upstream`` a configured target (``provider/model``) or ``provider/other``, ``worker``
a slot and never a process id. Buckets hold the bounds of MLPerf's serving scenarios and of the objectives, so that a
quantile near one of them is not a guess.

Clocks are monotonic. TTFT starts when the last byte of the request was read and stops when the first token (a piece of
text, reasoning or a tool call that is not empty) is handed to the client's socket; that of an attempt starts when its
request is written. A role, a ping or a usage report is no token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "min", "mean"]

TTFT_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.75, 1, 1.5, 2, 3, 4.5, 6, 10, 15, 30, 60, 120, 300)
TPOT_S = (0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.175, 0.2, 0.3, 0.5, 1, 2.5)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
CONNECT_S = (0.005, 0.025, 0.1, 0.5, 2)
OVERHEAD_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
RATE_PER_S = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. ``help`` is a sentence for who sees it for the first time.

    ``merge`` says what the gauges of several workers come to; counters and histograms are summed.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    merge: Merge = "sum"

    @property
    def cell_count(self) -> int:
        """How many numbers a child is kept in: one, or one for each bucket, that without a bound, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1

    @property
    def series_count(self) -> int:
        """How many lines a child is told in: a histogram has its count beside what is kept."""
        return len(self.buckets) + 3 if self.kind == "histogram" else 1


def _counter(name: str, *labels: str, says: str) -> Metric:
    return Metric(name, "counter", labels, says)


def _gauge(name: str, *labels: str, says: str, merge: Merge = "sum") -> Metric:
    return Metric(name, "gauge", labels, says, merge=merge)


def _histogram(name: str, buckets: tuple[float, ...], *labels: str, says: str) -> Metric:
    return Metric(name, "histogram", labels, says, buckets)


CATALOGUE: tuple[Metric, ...] = (
    # requests and how they end
    _counter(
        "millrace_requests_total", "route", "model", "stream", "outcome",
        says="Calls that have ended, by how: exactly one outcome each.",
    ),
    _counter("millrace_requests_started_total", "route", "model", says="Calls that have begun."),
    _counter("millrace_http_responses_total", "route", "code", says="HTTP answers by status; a broken one was 200."),
    _histogram(
        "millrace_request_duration_seconds", DURATION_S, "route", "model", "stream",
        says="From the last byte of the request to the end of the answer.",
    ),
    _counter("millrace_rejected_total", "reason", says="Calls refused before any provider was asked."),
    _counter("millrace_finish_reasons_total", "model", "finish_reason", says="Choices by how the provider ended them."),
    _counter("millrace_client_aborts_total", "route", "phase", says="Clients that left, by how far their answer was."),
    _gauge("millrace_streams_active", "model", "phase", says="Calls in flight, by how far their answer is."),
    # speed as the client has it
    _histogram(
        "millrace_ttft_seconds", TTFT_S, "model", "upstream",
        says="From the request read to the first token handed to the client, whatever number of attempts that took.",
    ),
    _histogram(
        "millrace_time_to_first_content_seconds", TTFT_S, "model",
        says="From the request read to the first piece of text or tool call: reasoning does not count.",
    ),
    _histogram(
        "millrace_tpot_seconds", TPOT_S, "model", "upstream",
        says="Seconds per output token behind the first, one number for each stream.",
    ),
    _histogram(
        "millrace_stream_tokens_per_second", RATE_PER_S, "model", "upstream",
        says="Output tokens behind the first by the time they took, one number for each stream.",
    ),
    _histogram(
        "millrace_chunk_gap_seconds", GAP_S, "model", "upstream",
        says="Between one delivery of tokens and the next, as the provider made them; a delivery counts once.",
    ),
    _histogram(
        "millrace_stream_max_gap_seconds", GAP_S, "model", "upstream", says="The longest gap of each stream.",
    ),
    _counter(
        "millrace_stalls_total", "model", "upstream", "phase", "resolution",
        says="Waits for a token that were longer than the objective for the longest gap, and how they ended.",
    ),
    _counter("millrace_stall_seconds_total", "model", "upstream", says="Seconds that users stared at a stall."),
    _counter(
        "millrace_slo_streams_total", "model", "objective", "met",
        says="Streams by whether they met an objective, decided for each stream when it ends; 'all' is all of them.",
    ),
    # tokens
    _counter("millrace_input_tokens_total", "model", "upstream", says="Prompt tokens of all attempts."),
    _counter("millrace_output_tokens_total", "model", "upstream", says="Generated tokens of all attempts."),
    _counter(
        "millrace_cache_read_input_tokens_total", "model", "upstream", says="Of the prompt tokens, those from a cache.",
    ),
    _counter(
        "millrace_cache_write_input_tokens_total", "model", "upstream",
        says="Of the prompt tokens, those written to a cache.",
    ),
    _counter(
        "millrace_reasoning_output_tokens_total", "model", "upstream", says="Of the output tokens, those of reasoning.",
    ),
    _counter(
        "millrace_usage_total", "upstream", "source",
        says="Attempts by where their token counts come from: reported, counted by us, or missing.",
    ),
    _counter(
        "millrace_tokens_wasted_total", "model", "upstream", "reason",
        says="Generated tokens that no client got: of failed attempts, lost races, clients that left, repeated ends.",
    ),
    # attempts, and what became of them
    _counter(
        "millrace_upstream_attempts_total", "upstream", "model", "result", "error_type",
        says="Attempts at providers by result.",
    ),
    _histogram(
        "millrace_upstream_ttft_seconds", TTFT_S, "upstream", "model",
        says="From an attempt's request written to its first token.",
    ),
    _histogram(
        "millrace_upstream_connect_seconds", CONNECT_S, "upstream",
        says="Of a new connection: name, address and TLS. Most requests go over one that was kept.",
    ),
    _counter(
        "millrace_failovers_total", "model", "from_upstream", "phase", "result",
        says="Failed attempts after which another was made, and whether the call was completed.",
    ),
    _histogram(
        "millrace_failover_lost_seconds", TTFT_S, "model", "phase",
        says="Before the first token, from the first failed attempt's start to that token; in mid stream, the gap.",
    ),
    _counter(
        "millrace_stream_resumes_total", "model", "from_upstream", "result",
        says="Answers that broke off and went on in another attempt.",
    ),
    _counter("millrace_hedges_total", "model", "result", says="Second targets raced against a slow first one."),
    _gauge(
        "millrace_upstream_state", "upstream", "state", merge="max",
        says="1 for the state that a target's breaker is in, in any of the workers.",
    ),
    _gauge(
        "millrace_upstream_ttft_ewma_seconds", "upstream", merge="mean", says="The recent TTFT that routing goes by.",
    ),
    _gauge("millrace_upstream_inflight", "upstream", says="Attempts in flight at a target."),
    _gauge(
        "millrace_upstream_ratelimit_remaining_ratio", "upstream", "resource", merge="min",
        says="What is left of the provider's own rate limit, by its last answer.",
    ),
    # what the gateway itself adds
    _histogram(
        "millrace_overhead_seconds", OVERHEAD_S, "stage",
        says="The gateway's own share: from the request read to the attempt's request written, and of the first token.",
    ),
    _histogram(
        "millrace_chunk_transit_seconds", OVERHEAD_S, says="From the provider's socket read to the client's written.",
    ),
    _histogram("millrace_event_loop_lag_seconds", OVERHEAD_S, says="How late the event loop does what it is asked."),
    _gauge("millrace_event_loop_lag_max_seconds", "worker", merge="max", says="The worst lag of the last seconds."),
    _histogram(
        "millrace_client_backpressure_seconds", GAP_S, says="How long a stream was paused, as its client did not read.",
    ),
    _gauge("millrace_stream_buffered_bytes", says="Bytes written that no client has taken yet."),
    # the process
    _gauge("millrace_worker_up", "worker", says="1 for a worker that serves."),
    _counter("millrace_worker_restarts_total", "worker", says="Workers that had to be replaced."),
    _counter("millrace_worker_cpu_seconds_total", "worker", says="CPU time, user and system."),
    _gauge("millrace_worker_resident_memory_bytes", "worker", says="Resident memory."),
    _gauge("millrace_worker_open_fds", "worker", says="Open file descriptors."),
    _counter("millrace_log_records_dropped_total", "level", says="Log lines that nobody took in time."),
    _counter("millrace_spans_dropped_total", says="Spans that could not be exported."),
    _counter("millrace_metric_series_overflow_total", "family", says="Label values beyond the cap, counted as other."),
    _gauge("millrace_metrics_series", says="Series in this answer."),
    _gauge("millrace_scrape_duration_seconds", says="How long the last scrape took to make."),
    _gauge("millrace_build_info", "version", "python", "loop", merge="max", says="1; what runs."),
    _gauge("millrace_config_info", "hash", merge="max", says="1; the configuration that is in force."),
    _gauge("millrace_config_generation", merge="max", says="How often the configuration was loaded."),
    _gauge("millrace_config_last_reload_success", merge="min", says="1 if the last reload took effect."),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in CATALOGUE}
