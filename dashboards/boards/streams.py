"""The second board: how an answer flows, how it stutters, and how it ends."""

from __future__ import annotations

from dashboards.board import Board, Row
from dashboards.measures import STREAMS, UPSTREAMS, attained, ended, quantiles, within
from dashboards.objectives import JUDGED
from dashboards.panels import COUNT, GOOD_ABOVE_99, Column, Panel, graph, heatmap, link_to, stat, table
from dashboards.queries import BOARD, CLIENTS, PROVIDERS, RANGE, share

STALLS = "millrace_stalls_total"
WASTED = "millrace_tokens_wasted_total"
OUTPUT = "millrace_output_tokens_total"
RESUMES = "millrace_stream_resumes_total"

HEAD = (
    stat(
        "Streams/s",
        "Calls with a streamed answer that ended in a second.",
        ended(stream="true"),
        unit="reqps",
    ),
    stat(
        "First token in time",
        "Share of the streams whose first token reached the client within *TTFT target* (${ttft_slo:text}).",
        within("millrace_ttft_seconds", "ttft_slo"),
        unit="percentunit",
        steps=GOOD_ABOVE_99,
        decimals=1,
    ),
    stat(
        "Fast enough",
        "Share of the streams whose time per token was within *TPOT target* (${tpot_slo:text}).",
        within("millrace_tpot_seconds", "tpot_slo"),
        unit="percentunit",
        steps=GOOD_ABOVE_99,
        decimals=1,
    ),
    stat(
        "Without a long gap",
        "Share of the streams whose longest gap was within *Gap target* (${gap_slo:text}).",
        within("millrace_stream_max_gap_seconds", "gap_slo"),
        unit="percentunit",
        steps=GOOD_ABOVE_99,
        decimals=1,
    ),
    stat(
        "Smooth",
        "Share of the streams that met the objective for the longest gap as it is configured; one that broke has not.",
        attained("smooth"),
        unit="percentunit",
        steps=GOOD_ABOVE_99,
        decimals=1,
    ),
    stat(
        "Stalls per 100 calls",
        "Waits for a token that were longer than the gap objective, for each hundred calls that ended.",
        f"100 * {share(BOARD.rate(STALLS), ended())}",
        unit="none",
        decimals=2,
        may_be_empty="nothing has stalled.",
    ),
    stat(
        "Time stared at",
        "How many users are looking at a stalled answer, on average: seconds of stall in each second. A stall is "
        "counted when its stream has ended.",
        BOARD.rate("millrace_stall_seconds_total"),
        unit="none",
        decimals=2,
        nothing="0",
        may_be_empty="nothing has stalled.",
    ),
    stat(
        "Continued",
        "Streams that broke off and went on with another attempt, in the time on the screen.",
        BOARD.increase(RESUMES),
        unit="short",
        decimals=0,
        is_instant=True,
        nothing="0",
        link=link_to(UPSTREAMS, "Upstreams"),
        may_be_empty="no stream had to be continued.",
    ),
)

FIRST_TOKEN = (
    heatmap(
        "TTFT, as clients have it",
        "Streams in a second by the time to their first token. Two bands are two kinds of request, or a provider that "
        "is tried after another has failed; a percentile between them describes nobody.",
        BOARD.rate("millrace_ttft_seconds", "le", part="bucket"),
        width=12,
    ),
    graph(
        "TTFT p95 by model",
        "The time in which 95 % of a model's clients had their first token.",
        {"{{model}}": BOARD.quantile(0.95, "millrace_ttft_seconds", "model"), "target": "vector($ttft_slo)"},
        unit="s",
        width=6,
        exemplars=True,
    ),
    graph(
        "First token and first content",
        "Medians. *client* is the first token of any kind, *content* the first text or tool call: what lies between "
        "is reasoning, and an empty screen for whoever does not show it.",
        {
            "client": BOARD.quantile(0.5, "millrace_ttft_seconds"),
            "content": BOARD.quantile(0.5, "millrace_time_to_first_content_seconds"),
        },
        unit="s",
        width=6,
    ),
)

FLOW = (
    heatmap(
        "Gap between deliveries",
        "Deliveries of tokens in a second by the time since the one before, as the provider made them. A delivery of "
        "several tokens counts once: a provider that sends fewer and larger pieces moves up here and not in TPOT.",
        BOARD.rate("millrace_chunk_gap_seconds", "le", part="bucket"),
    ),
    heatmap(
        "Longest gap of a stream",
        "Streams in a second by their worst wait. Smooth streams are at the bottom; a band above is the stutter that "
        "averages hide.",
        BOARD.rate("millrace_stream_max_gap_seconds", "le", part="bucket"),
    ),
    heatmap(
        "TPOT",
        "Streams in a second by their time for each token behind the first.",
        BOARD.rate("millrace_tpot_seconds", "le", part="bucket"),
    ),
    graph(
        "Tokens per second of a stream",
        "Output tokens behind the first by the time they took. The slow end is what hurts: p5 means that 1 stream in "
        "20 was slower still.",
        quantiles("millrace_stream_tokens_per_second", 0.05, 0.5, 0.95),
        unit="short",
    ),
    graph(
        "TPOT p95 by model",
        "95 % of a model's streams took at most this for each token.",
        {"{{model}}": BOARD.quantile(0.95, "millrace_tpot_seconds", "model"), "target": "vector($tpot_slo)"},
        unit="s",
    ),
    graph(
        "Longest gap p95 by upstream",
        "95 % of the streams of an upstream had no longer gap than this.",
        {
            "{{upstream}}": BOARD.quantile(0.95, "millrace_stream_max_gap_seconds", "upstream"),
            "target": "vector($gap_slo)",
        },
        unit="s",
        exemplars=True,
    ),
)

STALLED = (
    graph(
        "Stalls by phase",
        "Stalls in a second by how far the answer was: in the middle of the reasoning, or of what is visible. A wait "
        "for the first token is no stall, but late: see *TTFT*. In draining, the gateway was about to stop.",
        {"{{phase}}": BOARD.rate(STALLS, "phase")},
        unit="cps",
        stack="normal",
        bars=True,
        may_be_empty="nothing has stalled.",
    ),
    graph(
        "Stalls by what became of them",
        "`recovered`: the provider went on by itself. `failed_over`: another attempt went on. `gave_up`: the call "
        "failed. `client_left`: nobody waited for the end of it.",
        {"{{resolution}}": BOARD.rate(STALLS, "resolution")},
        unit="cps",
        stack="normal",
        bars=True,
        may_be_empty="nothing has stalled.",
    ),
    graph(
        "Time stared at, by upstream",
        "Seconds of stall in each second: how many users are looking at a stalled answer of this upstream. Stalls are "
        "counted when their stream has ended.",
        {"{{upstream}}": BOARD.rate("millrace_stall_seconds_total", "upstream")},
        unit="none",
        stack="normal",
        may_be_empty="nothing has stalled.",
    ),
)

ENDS = (
    graph(
        "Calls that a provider broke",
        "Calls in a second that ended by a provider's fault. `truncated` ended without the provider's own end marker, "
        "`stalled` and `deadline` ran out of time.",
        {"{{outcome}}": ended("outcome", outcome=PROVIDERS)},
        unit="reqps",
        stack="normal",
        bars=True,
        may_be_empty="every call that a provider failed was saved.",
    ),
    graph(
        "Clients that left, by phase",
        "Clients that went away in a second, by how far their answer was. Those that leave in prefill found it too "
        "slow; those in decode have often read enough.",
        {"{{phase}}": BOARD.rate("millrace_client_aborts_total", "phase")},
        unit="reqps",
        stack="normal",
        bars=True,
        may_be_empty="every client stayed to the end.",
    ),
    graph(
        "Finish reasons",
        "Choices by how the provider ended them. `length` is an answer cut by a limit on its tokens: it is complete "
        "for the gateway, and perhaps not for the user.",
        {"{{finish_reason}}": BOARD.rate("millrace_finish_reasons_total", "finish_reason")},
        unit="cps",
        stack="percent",
    ),
)

SAVED = (
    graph(
        "Streams continued",
        "Streams in a second that broke off and went on in another attempt, by what came of it.",
        {"{{result}}": BOARD.rate(RESUMES, "result")},
        unit="reqps",
        stack="normal",
        bars=True,
        may_be_empty="no stream had to be continued.",
    ),
    graph(
        "Wasted tokens by reason",
        "Tokens in a second that were generated and paid for, and that no client got.",
        {"{{reason}}": BOARD.rate(WASTED, "reason")},
        unit="short",
        stack="normal",
        may_be_empty="every generated token was delivered.",
    ),
    graph(
        "Wasted share by upstream",
        "Share of an upstream's generated tokens that no client got.",
        {"{{upstream}}": share(BOARD.rate(WASTED, "upstream"), BOARD.rate(OUTPUT, "upstream"))},
        unit="percentunit",
        may_be_empty="every generated token was delivered.",
    ),
)


def _by_pair() -> Panel:
    columns = (
        Column(
            title="Streams",
            expression=BOARD.increase("millrace_ttft_seconds", "model", "upstream", part="count"),
            unit=COUNT,
        ),
        Column(
            title="TTFT p95",
            expression=BOARD.quantile(0.95, "millrace_ttft_seconds", "model", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="TPOT p95",
            expression=BOARD.quantile(0.95, "millrace_tpot_seconds", "model", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="Gap p99",
            expression=BOARD.quantile(0.99, "millrace_chunk_gap_seconds", "model", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="Longest gap p95",
            expression=BOARD.quantile(0.95, "millrace_stream_max_gap_seconds", "model", "upstream", over=RANGE),
            unit="s",
        ),
        Column(title="Stalls", expression=BOARD.increase(STALLS, "model", "upstream"), unit=COUNT),
        Column(title="Output tokens", expression=BOARD.increase(OUTPUT, "model", "upstream"), unit="short"),
        Column(
            title="Wasted",
            expression=share(BOARD.increase(WASTED, "model", "upstream"), BOARD.increase(OUTPUT, "model", "upstream")),
            unit="percentunit",
            steps=(("green", None), ("orange", 0.05), ("red", 0.1)),
        ),
    )
    return table(
        "Model and upstream, over the whole time range",
        "One line for each model and the upstream that gave its first token. Click to see only one of them.",
        {"model": "Model", "upstream": "Upstream"},
        columns,
        links={
            "model": (link_to(STREAMS, "Only this model", model="${__value.raw}"),),
            "upstream": (
                link_to(STREAMS, "Only this upstream", upstream="${__value.raw}"),
                link_to(UPSTREAMS, "How this upstream does", upstream="${__value.raw}"),
            ),
        },
        sort_by="Streams",
        height=9,
    )


WHOLE = (
    heatmap(
        "Duration",
        "Calls in a second by how long they took from the request to the end of the answer.",
        BOARD.rate("millrace_request_duration_seconds", "le", part="bucket"),
    ),
    heatmap(
        "First content",
        "Streams in a second by the time to their first text or tool call, reasoning left out.",
        BOARD.rate("millrace_time_to_first_content_seconds", "le", part="bucket"),
    ),
    graph(
        "Objectives missed",
        "Streams in a second that missed an objective. One stream may miss several; `all` counts it once.",
        {"{{objective}}": BOARD.rate(JUDGED, "objective", met="false")},
        unit="reqps",
        may_be_empty="every stream met every objective.",
    ),
)

LEFT = graph(
    "Clients that left, and TTFT",
    "Share of the calls whose client left, beside the share whose first token came later than *TTFT target*. Rising "
    "together, they say that users do not wait that long.",
    {
        "client left": share(ended(outcome=CLIENTS), ended()),
        "late": f"1 - ({within('millrace_ttft_seconds', 'ttft_slo')})",
    },
    unit="percentunit",
    width=24,
    height=7,
    may_be_empty="no client left, and no first token was late.",
)

BOARD_STREAMS = Board(
    uid=STREAMS,
    title="Streams",
    says="How answers flow, how they stutter, and how they end.",
    choices=("ttft_slo", "tpot_slo", "gap_slo"),
    rows=(
        Row("", (*HEAD, *FIRST_TOKEN)),
        Row("Flow", FLOW),
        Row("Stalls", STALLED),
        Row("Ends", (*ENDS, LEFT)),
        Row("What was saved, and what it cost", SAVED),
        Row("Models and upstreams", (_by_pair(),)),
        Row("Whole calls", WHOLE, is_optional=True),
    ),
)
