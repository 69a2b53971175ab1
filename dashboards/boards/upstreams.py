"""The third board: which provider fails, how, since when, and what failing over costs."""

from __future__ import annotations

from dashboards.board import Board, Row
from dashboards.measures import STREAMS, UPSTREAMS, ended
from dashboards.panels import BAD_ABOVE_1_PERCENT, COUNT, Column, Panel, graph, heatmap, link_to, stat, states, table
from dashboards.queries import BOARD, PROVIDERS, RANGE, share

ATTEMPTS = "millrace_upstream_attempts_total"
FAILOVERS = "millrace_failovers_total"
STATE = "millrace_upstream_state"
USAGE = "millrace_usage_total"

STATES = {"1": ("closed", "green"), "2": ("half open", "yellow"), "3": ("open", "red")}
FAILING = (("green", None), ("orange", 0.02), ("red", 0.1))
HEADROOM = (("red", None), ("orange", 0.1), ("green", 0.25))


def _state(*by: str) -> str:
    """Return the worst state that an upstream's breaker is in on any gateway, as a number."""
    is_open, is_half_open, is_closed = (BOARD.series(STATE, state=state) for state in ("open", "half_open", "closed"))
    return f"max by ({', '.join(by)}) (({is_open} == 1) * 3 or ({is_half_open} == 1) * 2 or ({is_closed} == 1))"


def _failed(*by: str, over: str) -> str:
    """Return the share of attempts that failed. One that was given up on purpose has done neither well nor badly."""
    grown = BOARD.rate if over != RANGE else BOARD.increase
    judged = grown(ATTEMPTS, *by, over=over, result=("completed", "failed"))
    return share(grown(ATTEMPTS, *by, over=over, result="failed"), judged)


HEAD = (
    stat("Attempts/s", "Attempts at providers that ended in a second.", BOARD.rate(ATTEMPTS), unit="reqps"),
    stat(
        "Attempts failed",
        "Share of the attempts that failed; those that were given up on purpose are not counted.",
        _failed(over="$__rate_interval"),
        unit="percentunit",
        steps=FAILING,
        decimals=1,
        may_be_empty="no attempt has failed.",
    ),
    stat(
        "Calls lost",
        "Share of the calls that ended by a provider's fault after all attempts at saving them. Compare with *Attempts "
        "failed*: the difference is what fallback and resume have saved.",
        share(ended(outcome=PROVIDERS), ended()),
        unit="percentunit",
        steps=BAD_ABOVE_1_PERCENT,
        decimals=2,
        may_be_empty="every call that a provider failed was saved.",
    ),
    stat(
        "Rate limited",
        "Share of the attempts that were answered with 429.",
        share(BOARD.rate(ATTEMPTS, error_type="rate_limited"), BOARD.rate(ATTEMPTS)),
        unit="percentunit",
        steps=FAILING,
        decimals=1,
        may_be_empty="no provider has limited us.",
    ),
    stat(
        "Breakers open",
        "Upstreams that are not asked now, on at least one gateway, since they failed too often.",
        f"count({_state('upstream')} == 3) or 0 * count({BOARD.series(STATE)})",
        unit="none",
        steps=(("green", None), ("red", 1)),
        nothing="0",
        may_be_empty="every upstream is asked.",
    ),
    stat(
        "Least headroom",
        "What is left of the tightest of the providers' rate limits, by their last answers.",
        BOARD.latest("min", "millrace_upstream_ratelimit_remaining_ratio"),
        unit="percentunit",
        steps=HEADROOM,
        nothing="Not told",
        may_be_empty="no provider tells its rate limits.",
    ),
    stat(
        "Provider TTFT p95",
        "95 % of the attempts had their first token within this time.",
        BOARD.quantile(0.95, "millrace_upstream_ttft_seconds"),
        unit="s",
    ),
    stat(
        "In flight",
        "Attempts under way at all upstreams.",
        BOARD.latest("sum", "millrace_upstream_inflight"),
        unit="short",
        may_be_empty="no attempt is under way.",
    ),
)


def _by_upstream() -> Panel:
    columns = (
        Column(title="Breaker", expression=_state("upstream"), unit="none", names=STATES, width=100),
        Column(title="Attempts", expression=BOARD.increase(ATTEMPTS, "upstream"), unit=COUNT, width=100),
        Column(title="Failed", expression=_failed("upstream", over=RANGE), unit="percentunit", steps=FAILING),
        Column(
            title="429",
            expression=share(
                BOARD.increase(ATTEMPTS, "upstream", error_type="rate_limited"),
                BOARD.increase(ATTEMPTS, "upstream"),
            ),
            unit="percentunit",
            steps=FAILING,
        ),
        Column(
            title="TTFT p50",
            expression=BOARD.quantile(0.5, "millrace_upstream_ttft_seconds", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="TTFT p95",
            expression=BOARD.quantile(0.95, "millrace_upstream_ttft_seconds", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="TPOT p95",
            expression=BOARD.quantile(0.95, "millrace_tpot_seconds", "upstream", over=RANGE),
            unit="s",
        ),
        Column(
            title="In flight",
            expression=BOARD.latest("sum", "millrace_upstream_inflight", "upstream"),
            unit="short",
        ),
        Column(
            title="Headroom",
            expression=BOARD.latest("min", "millrace_upstream_ratelimit_remaining_ratio", "upstream"),
            unit="percentunit",
            steps=HEADROOM,
        ),
        Column(
            title="Output tokens",
            expression=BOARD.increase("millrace_output_tokens_total", "upstream"),
            unit="short",
        ),
    )
    return table(
        "Upstreams, over the whole time range",
        "One line for each target, with its state now and its numbers over all of the time on the screen. Click one "
        "to see only it, or its streams. A headroom that is missing was never told.",
        {"upstream": "Upstream"},
        columns,
        links={
            "upstream": (
                link_to(UPSTREAMS, "Only this upstream", upstream="${__value.raw}"),
                link_to(STREAMS, "Streams of this upstream", upstream="${__value.raw}"),
            )
        },
        sort_by="Attempts",
    )


FAILURES = (
    states(
        "Breakers",
        "The worst state of each upstream's breaker on any gateway. Open: not asked. Half open: asked with a single "
        "call, to see whether it has recovered.",
        _state("upstream"),
        legend="{{upstream}}",
        names=STATES,
    ),
    graph(
        "Attempts by result",
        "Attempts that ended in a second. `cancelled` ones were given up on purpose: the client left, a race was lost, "
        "or there was enough.",
        {"{{result}}": BOARD.rate(ATTEMPTS, "result")},
        unit="reqps",
        stack="normal",
    ),
    graph(
        "Failed attempts by cause",
        "Failed attempts in a second by the kind of error. `rate_limited` and `overloaded` are the provider's load, "
        "`auth` and `bad_request` our request, `connect`, `tls`, `dns` and `reset` the way between.",
        {"{{error_type}}": BOARD.rate(ATTEMPTS, "error_type", result="failed")},
        unit="reqps",
        stack="normal",
        legend="table",
        bars=True,
        may_be_empty="no attempt has failed.",
    ),
    graph(
        "Failed share by upstream",
        "Share of an upstream's attempts that failed.",
        {"{{upstream}}": _failed("upstream", over="$__rate_interval")},
        unit="percentunit",
        legend="table",
        may_be_empty="no attempt has failed.",
    ),
)

SPEED = (
    heatmap(
        "TTFT of attempts",
        "Attempts in a second by the time from their request to their first token.",
        BOARD.rate("millrace_upstream_ttft_seconds", "le", part="bucket"),
    ),
    graph(
        "TTFT p95 by upstream",
        "95 % of an upstream's attempts had their first token within this time.",
        {"{{upstream}}": BOARD.quantile(0.95, "millrace_upstream_ttft_seconds", "upstream")},
        unit="s",
        legend="table",
    ),
    graph(
        "Client's wait and provider's part",
        "Means, which may be subtracted: *client* is what clients waited for the first token, *provider* what "
        "attempts took. The difference is the gateway's own work and the time lost to attempts that failed.",
        {
            "client": BOARD.mean("millrace_ttft_seconds"),
            "provider": BOARD.mean("millrace_upstream_ttft_seconds"),
            "difference": f"{BOARD.mean('millrace_ttft_seconds')} - {BOARD.mean('millrace_upstream_ttft_seconds')}",
        },
        unit="s",
        least=None,
    ),
    graph(
        "TTFT that routing goes by",
        "The recent TTFT by which the strategy `fastest` chooses.",
        {"{{upstream}}": BOARD.latest("max", "millrace_upstream_ttft_ewma_seconds", "upstream")},
        unit="s",
        width=6,
    ),
    graph(
        "In flight by upstream",
        "Attempts under way. A line that is flat at the top is a limit (`max_concurrency`).",
        {"{{upstream}}": BOARD.latest("sum", "millrace_upstream_inflight", "upstream")},
        unit="short",
        width=6,
        may_be_empty="no attempt is under way.",
    ),
    graph(
        "New connections: time, p95",
        "What finding the address, connecting and TLS took, where no connection had been kept: it is a part of the "
        "TTFT of those attempts alone.",
        {"{{upstream}}": BOARD.quantile(0.95, "millrace_upstream_connect_seconds", "upstream")},
        unit="s",
        width=6,
        may_be_empty="all requests went over connections that had been kept.",
    ),
    graph(
        "Rate limit headroom",
        "What is left of the providers' own limits on requests and tokens, by their last answers: 0 means that the "
        "next call will be refused.",
        {
            "{{upstream}} {{resource}}": BOARD.latest(
                "min", "millrace_upstream_ratelimit_remaining_ratio", "upstream", "resource"
            )
        },
        unit="percentunit",
        most=1,
        width=6,
        may_be_empty="no provider tells its rate limits.",
    ),
)

FAILOVER = (
    graph(
        "Failovers by phase",
        "Failed attempts in a second after which another was made. Before the first token nobody notices; in mid "
        "stream the answer is continued.",
        {"{{phase}}": BOARD.rate(FAILOVERS, "phase")},
        unit="cps",
        stack="normal",
        bars=True,
        may_be_empty="no attempt had to be made good.",
    ),
    graph(
        "Failovers by result",
        "Whether the call was completed after all.",
        {"{{result}}": BOARD.rate(FAILOVERS, "result")},
        unit="cps",
        stack="normal",
        bars=True,
        may_be_empty="no attempt had to be made good.",
    ),
    graph(
        "Left behind, by upstream",
        "Failovers in a second by the upstream that failed.",
        {"{{from_upstream}}": BOARD.rate(FAILOVERS, "from_upstream")},
        unit="cps",
        stack="normal",
        legend="table",
        may_be_empty="no attempt had to be made good.",
    ),
    graph(
        "Time lost to failover, p95",
        "Before the first token: from the start of the first attempt that failed to the first token of one that did "
        "not. In mid stream: the gap that the client saw, from the last token of one attempt to the first new one of "
        "the next. Shorter time limits (`ttft_timeout_s`, `stall_timeout_s`) make both shorter.",
        {"{{phase}}": BOARD.quantile(0.95, "millrace_failover_lost_seconds", "phase")},
        unit="s",
        may_be_empty="no attempt had to be made good.",
    ),
    graph(
        "Continued, by upstream that broke",
        "Streams in a second that broke off and were continued elsewhere, by the upstream that broke them.",
        {"{{from_upstream}}": BOARD.rate("millrace_stream_resumes_total", "from_upstream")},
        unit="cps",
        stack="normal",
        may_be_empty="no stream had to be continued.",
    ),
    graph(
        "Races",
        "Second targets that were asked since the first one was slow, by how the race ended.",
        {"{{result}}": BOARD.rate("millrace_hedges_total", "result")},
        unit="cps",
        stack="normal",
        may_be_empty="no model has `hedge_after_s`, or no first target was that slow.",
    ),
)

TOKENS = (
    graph(
        "Output tokens by upstream",
        "Generated tokens in a second.",
        {"{{upstream}}": BOARD.rate("millrace_output_tokens_total", "upstream")},
        unit="short",
        stack="normal",
        legend="table",
    ),
    graph(
        "Where token counts come from",
        "Attempts by the source of their token counts: reported by the provider, counted by the gateway, or missing.",
        {"{{source}}": BOARD.rate(USAGE, "source")},
        unit="cps",
        stack="percent",
    ),
    graph(
        "Token counts missing, by upstream",
        "Share of an upstream's attempts whose tokens nobody knows: they are missing from every sum and from the bill.",
        {"{{upstream}}": share(BOARD.rate(USAGE, "upstream", source="missing"), BOARD.rate(USAGE, "upstream"))},
        unit="percentunit",
        may_be_empty="every attempt is accounted for.",
    ),
)

BOARD_UPSTREAMS = Board(
    uid=UPSTREAMS,
    title="Upstreams",
    says="Which provider fails, how, since when, and what failing over costs.",
    rows=(
        Row("", (*HEAD, _by_upstream())),
        Row("Failures", FAILURES),
        Row("Speed and limits", SPEED),
        Row("Failover", FAILOVER),
        Row("Tokens", TOKENS, is_optional=True),
    ),
)
