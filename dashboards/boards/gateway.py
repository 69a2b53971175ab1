"""The fourth board: what the gateway itself adds, what it uses, and whether what it tells can be believed."""

from __future__ import annotations

from dashboards.board import Board, Row
from dashboards.measures import GATEWAY
from dashboards.panels import NONE_IS_GOOD, Column, graph, heatmap, stat, states, table
from dashboards.queries import BOARD, at_least_none

UP = 'up{job=~"$job", instance=~"$instance"}'
OVERHEAD = "millrace_overhead_seconds"
TRANSIT = "millrace_chunk_transit_seconds"
LAG = "millrace_event_loop_lag_seconds"

HEAD = (
    stat(
        "Gateways up",
        "Gateways that Prometheus can scrape.",
        f"count({UP} == 1)",
        unit="none",
        steps=(("red", None), ("green", 1)),
        nothing="0",
    ),
    stat(
        "Unreachable",
        "Gateways that Prometheus cannot scrape: stopped, hung, or cut off from it.",
        at_least_none(f"count({UP} == 0)", f"count({UP})"),
        unit="none",
        steps=NONE_IS_GOOD,
        nothing="No target",
        may_be_empty="every gateway answers.",
    ),
    stat(
        "Workers serving",
        "Worker processes that take requests, of all gateways.",
        BOARD.latest("sum", "millrace_worker_up"),
        unit="none",
        steps=(("red", None), ("green", 1)),
        nothing="0",
    ),
    stat(
        "Workers replaced",
        "Workers that had to be replaced in the time on the screen.",
        BOARD.increase("millrace_worker_restarts_total"),
        unit="none",
        steps=NONE_IS_GOOD,
        decimals=0,
        is_instant=True,
        nothing="0",
        may_be_empty="every worker is still the first in its place.",
    ),
    stat(
        "First token delayed, p99",
        "What the gateway itself adds to the first token, in the worst of a hundred calls. The objective is 5 ms.",
        BOARD.quantile(0.99, OVERHEAD, stage="first_token"),
        unit="s",
        steps=(("green", None), ("orange", 0.005), ("red", 0.05)),
    ),
    stat(
        "Transit, p99",
        "From the provider's socket to the client's, for the worst of a hundred deliveries. The objective is 1 ms on "
        "a machine that is not full.",
        BOARD.quantile(0.99, TRANSIT),
        unit="s",
        steps=(("green", None), ("orange", 0.0025), ("red", 0.025)),
    ),
    stat(
        "Loop lag, p99",
        "How late the event loop does what it is asked. Every stream of the worker waits that long.",
        BOARD.quantile(0.99, LAG),
        unit="s",
        steps=(("green", None), ("orange", 0.01), ("red", 0.05)),
    ),
    stat(
        "Last reload",
        "Whether the configuration that was loaded last is in force, on every gateway.",
        BOARD.latest("min", "millrace_config_last_reload_success"),
        unit="bool_yes_no",
        steps=(("red", None), ("green", 1)),
        nothing="Not told",
    ),
)

ADDED = (
    heatmap(
        "Transit of a delivery",
        "Deliveries in a second by the time from the provider's socket to the client's. It is the jitter that the "
        "gateway adds.",
        BOARD.rate(TRANSIT, "le", part="bucket"),
    ),
    graph(
        "Transit",
        "The same as percentiles.",
        {f"p{q * 100:g}": BOARD.quantile(q, TRANSIT) for q in (0.5, 0.95, 0.99)},
        unit="s",
    ),
    graph(
        "Overhead by stage, p99",
        "The gateway's own share: *request* from the request read to the attempt's request written, *first_token* from "
        "the provider's first token to the client's.",
        {"{{stage}}": BOARD.quantile(0.99, OVERHEAD, "stage")},
        unit="s",
    ),
)

LOOP = (
    heatmap(
        "Event loop lag",
        "Checks in a second by how late they came. A second band is something that blocks the loop.",
        BOARD.rate(LAG, "le", part="bucket"),
    ),
    graph(
        "Worst lag by worker",
        "The worst lag of the last seconds. One worker alone is a request that blocks it; all of them together are a "
        "machine without processor time.",
        {"{{instance}} {{worker}}": BOARD.latest("max", "millrace_event_loop_lag_max_seconds", "instance", "worker")},
        unit="s",
    ),
    graph(
        "Processor time by worker",
        "Cores used. A worker is one thread: at 1 it is full, and lag and transit rise.",
        {"{{instance}} {{worker}}": BOARD.rate("millrace_worker_cpu_seconds_total", "instance", "worker")},
        unit="percentunit",
        limits=(("transparent", None), ("red", 0.9)),
    ),
)

WORKERS = (
    states(
        "Workers",
        "Whether each worker serves.",
        BOARD.latest("max", "millrace_worker_up", "instance", "worker"),
        legend="{{instance}} {{worker}}",
        names={"0": ("down", "red"), "1": ("serves", "green")},
        width=12,
        height=8,
    ),
    graph(
        "Resident memory by worker",
        "A live stream takes about 30 KiB. A line that only rises is a leak.",
        {"{{instance}} {{worker}}": BOARD.latest("max", "millrace_worker_resident_memory_bytes", "instance", "worker")},
        unit="bytes",
        width=6,
    ),
    graph(
        "Open files by worker",
        "Open file descriptors: two for each live stream, and a few. Compare with `ulimit -n`.",
        {"{{instance}} {{worker}}": BOARD.latest("max", "millrace_worker_open_fds", "instance", "worker")},
        unit="short",
        width=6,
    ),
)

PRESSURE = (
    graph(
        "Streams active by phase",
        "Calls in flight by how far they are. Draining ones finish before a shutdown.",
        {"{{phase}}": BOARD.latest("sum", "millrace_streams_active", "phase")},
        unit="short",
        stack="normal",
        width=6,
        may_be_empty="no call is in flight.",
    ),
    graph(
        "Refused, by reason",
        "Requests in a second that were refused before a provider was asked.",
        {"{{reason}}": BOARD.rate("millrace_rejected_total", "reason")},
        unit="reqps",
        stack="normal",
        width=6,
        may_be_empty="every request was a valid one.",
    ),
    graph(
        "Bytes that no client has taken",
        "Written, and not yet read by slow clients. It is bounded for each stream: the provider is paused.",
        {"{{instance}}": BOARD.latest("sum", "millrace_stream_buffered_bytes", "instance")},
        unit="bytes",
        width=6,
        may_be_empty="every client reads as fast as its provider writes.",
    ),
    graph(
        "Streams paused by their clients",
        "Seconds of pause in each second: how many streams wait for a client that does not read. A pause is counted "
        "when it ends.",
        {"paused": BOARD.rate("millrace_client_backpressure_seconds", part="sum")},
        unit="none",
        width=6,
        may_be_empty="every client reads as fast as its provider writes.",
    ),
)

OBSERVER = (
    graph(
        "Log lines and spans dropped",
        "Lost in a second, as nobody took them in time. The counters on these boards lose nothing.",
        {
            "{{level}}": BOARD.rate("millrace_log_records_dropped_total", "level"),
            "spans": BOARD.rate("millrace_spans_dropped_total"),
        },
        unit="cps",
        width=6,
        may_be_empty="nothing was dropped.",
    ),
    graph(
        "Label values beyond the cap",
        "Counted as `other`, in a second, by family. The numbers stay right, but no longer say for whom.",
        {"{{family}}": BOARD.rate("millrace_metric_series_overflow_total", "family")},
        unit="cps",
        width=6,
        may_be_empty="every label value has a series of its own.",
    ),
    graph(
        "Series by gateway",
        "Series in one answer to Prometheus. It grows with models and upstreams, never with users or time.",
        {"{{instance}}": BOARD.latest("max", "millrace_metrics_series", "instance")},
        unit="short",
        width=6,
    ),
    graph(
        "Time to make an answer to Prometheus",
        "It is made outside the workers, so that streams do not wait for it.",
        {"{{instance}}": BOARD.latest("max", "millrace_scrape_duration_seconds", "instance")},
        unit="s",
        width=6,
    ),
)

RUNNING = (
    table(
        "What runs",
        "Version, Python and event loop of each gateway. More than one line for each column is a rollout, or one that "
        "has stopped half way.",
        {"instance": "Instance", "version": "Version", "python": "Python", "loop": "Event loop"},
        (
            Column(
                title="Gateways",
                expression=BOARD.latest("count", "millrace_build_info", "instance", "version", "python", "loop"),
                unit="none",
            ),
        ),
        width=12,
        height=6,
    ),
    table(
        "Configuration in force",
        "The hash of the configuration of each gateway, and how often one was loaded. Gateways of one job should "
        "agree.",
        {"instance": "Instance", "hash": "Hash"},
        (
            Column(
                title="Loaded",
                expression=f"{BOARD.latest('max', 'millrace_config_info', 'instance', 'hash')} * on (instance) "
                f"group_left () {BOARD.latest('max', 'millrace_config_generation', 'instance')}",
                unit="none",
            ),
        ),
        width=12,
        height=6,
    ),
)

BOARD_GATEWAY = Board(
    uid=GATEWAY,
    title="Gateway",
    says="What the gateway itself adds, what it uses, and whether what it tells can be believed.",
    rows=(
        Row("", (*HEAD, *ADDED)),
        Row("Event loop and processor", LOOP),
        Row("Workers", WORKERS),
        Row("Pressure", PRESSURE),
        Row("Observing the observer", OBSERVER, is_optional=True),
        Row("What runs", RUNNING, is_optional=True),
    ),
)
