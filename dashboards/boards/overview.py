"""The first board tells whether it is us, the provider or the client, since when, and what it costs."""

from __future__ import annotations

from dashboards.board import ALERTS, Board, Row
from dashboards.measures import (
    GATEWAY,
    OVERVIEW,
    SLO,
    STREAMS,
    UPSTREAMS,
    attained,
    ended,
    missed,
    quantiles,
    within,
)
from dashboards.objectives import BUDGET_WINDOW, JUDGED
from dashboards.panels import (
    BAD_ABOVE_1_PERCENT,
    BUDGET,
    BURN,
    COUNT,
    GOOD_ABOVE_99,
    GOOD_ABOVE_999,
    NONE_IS_GOOD,
    Column,
    Panel,
    graph,
    link_to,
    stat,
    table,
)
from dashboards.queries import BOARD, CLIENTS, OURS, PROVIDERS, RANGE, REFUSED, at_least_none, share


def _of_all(outcomes: tuple[str, ...]) -> str:
    return share(ended(outcome=outcomes), ended())


VERDICT = (
    stat(
        "Streams completed",
        "Share of the streams that were finished as the provider ended them. Clients that left and requests that were "
        "refused are not counted. The target is 99.9 %.",
        attained("complete"),
        unit="percentunit",
        steps=GOOD_ABOVE_999,
        decimals=2,
        link=link_to(SLO, "Objectives"),
    ),
    stat(
        "Goodput",
        "Share of the streams that met every objective at once: finished, begun in time, fast enough and without a "
        "long gap. The target is 98 %.",
        attained("all"),
        unit="percentunit",
        steps=(("red", None), ("orange", 0.9), ("green", 0.98)),
        decimals=2,
        link=link_to(SLO, "Objectives"),
    ),
    stat(
        "First token in time",
        "Share of the streams whose first token reached the client within *TTFT target* (${ttft_slo:text}). Move the "
        "target to see what another would give; alerts go by the one in the gateway's configuration.",
        within("millrace_ttft_seconds", "ttft_slo"),
        unit="percentunit",
        steps=GOOD_ABOVE_99,
        decimals=1,
        link=link_to(STREAMS, "Streams"),
    ),
    stat(
        "Burn rate, 1 h",
        "How many times faster than allowed the last hour used up the error budget of *Completion target*: 1 uses it "
        "up in just 30 days, 14.4 a fiftieth of it in an hour, which pages.",
        f"({missed('complete', over='1h')}) / (1 - $completion_target)",
        unit="none",
        steps=BURN,
        decimals=1,
        link=link_to(SLO, "Objectives"),
        may_be_empty="no stream of the last hour was broken.",
    ),
    stat(
        "Budget left, 30 d",
        "What is left of the 30 days' error budget of *Completion target*. Below 0 the objective is broken.",
        f"1 - ({missed('complete', over=BUDGET_WINDOW)}) / (1 - $completion_target)",
        unit="percentunit",
        steps=BUDGET,
        is_instant=True,
        decimals=1,
        link=link_to(SLO, "Objectives"),
    ),
    stat(
        "Alerts firing",
        "Alerts of Millrace's rules that fire now, for all models and instances. Open *SLO drill-down* for the list.",
        f"count({ALERTS}) or vector(0)",
        unit="none",
        steps=NONE_IS_GOOD,
        nothing="0",
        link=link_to(SLO, "Alerts"),
        may_be_empty="nothing fires.",
    ),
    stat(
        "Unreachable",
        "Gateways that Prometheus cannot scrape. What they would have reported is missing from every other panel.",
        at_least_none(
            'count(up{job=~"$job", instance=~"$instance"} == 0)', 'count(up{job=~"$job", instance=~"$instance"})'
        ),
        unit="none",
        steps=NONE_IS_GOOD,
        nothing="No target",
        link=link_to(GATEWAY, "Gateway"),
        may_be_empty="every gateway answers.",
    ),
    stat(
        "Streams active",
        "Calls in flight now, whatever they are waiting for.",
        BOARD.latest("sum", "millrace_streams_active"),
        unit="short",
        link=link_to(STREAMS, "Streams"),
        may_be_empty="no call is in flight.",
    ),
)

FAULT = (
    stat(
        "Our fault",
        "Share of the calls that ended by a fault of the gateway (`gateway_error`), or were cut off when it stopped "
        "(`drained`).",
        _of_all(OURS),
        unit="percentunit",
        steps=BAD_ABOVE_1_PERCENT,
        height=3,
        link=link_to(GATEWAY, "Gateway"),
        may_be_empty="the gateway has made no mistake.",
    ),
    stat(
        "Provider's fault",
        "Share of the calls that ended by a provider's fault and could not be saved: `upstream_error`, `truncated`, "
        "`stalled`, `deadline`.",
        _of_all(PROVIDERS),
        unit="percentunit",
        steps=BAD_ABOVE_1_PERCENT,
        height=3,
        link=link_to(UPSTREAMS, "Upstreams"),
        may_be_empty="every call that a provider failed was saved.",
    ),
    stat(
        "Client left",
        "Share of the calls whose client went away before the end (`client_aborted`). It is no fault by itself; when "
        "it rises together with TTFT, users are giving up.",
        _of_all(CLIENTS),
        unit="percentunit",
        height=3,
        link=link_to(STREAMS, "Streams"),
        may_be_empty="every client stayed to the end.",
    ),
    stat(
        "Refused",
        "Share of the calls that were refused before a provider was asked (`rejected`): no such model, no valid key, "
        "over a limit, malformed.",
        _of_all(REFUSED),
        unit="percentunit",
        height=3,
        link=link_to(GATEWAY, "Gateway"),
        may_be_empty="every request was a valid one.",
    ),
    stat(
        "TTFT p95",
        "95 % of the clients had their first token within this time, whatever number of attempts it took.",
        BOARD.quantile(0.95, "millrace_ttft_seconds"),
        unit="s",
        height=3,
        link=link_to(STREAMS, "Streams"),
    ),
    stat(
        "TPOT p95",
        "95 % of the streams took at most this time for each token behind the first.",
        BOARD.quantile(0.95, "millrace_tpot_seconds"),
        unit="s",
        height=3,
        link=link_to(STREAMS, "Streams"),
    ),
    stat(
        "Output tokens/s",
        "Tokens generated in a second, by all attempts together.",
        BOARD.rate("millrace_output_tokens_total"),
        unit="short",
        height=3,
        link=link_to(STREAMS, "Streams"),
    ),
    stat(
        "Tokens wasted",
        "Share of the generated tokens that no client got: those of failed attempts, lost races and clients that "
        "left. They are paid for.",
        share(BOARD.rate("millrace_tokens_wasted_total"), BOARD.rate("millrace_output_tokens_total")),
        unit="percentunit",
        steps=(("green", None), ("orange", 0.05), ("red", 0.1)),
        height=3,
        link=link_to(STREAMS, "Streams"),
        may_be_empty="every generated token was delivered.",
    ),
)

SINCE_WHEN = (
    graph(
        "Whose fault",
        "Share of the calls that did not come to a regular end, by whose fault it was. Red is the gateway, orange the "
        "provider, purple a client that left, yellow a request that was refused.",
        {
            "gateway": _of_all(OURS),
            "provider": _of_all(PROVIDERS),
            "client left": _of_all(CLIENTS),
            "refused": _of_all(REFUSED),
        },
        unit="percentunit",
        stack="normal",
        may_be_empty="every call was completed.",
    ),
    graph(
        "Calls by outcome",
        "Calls that ended in a second, by how: each has exactly one outcome. A stream that broke was an HTTP 200 all "
        "the same, so that a graph of status codes does not show it.",
        {"{{outcome}}": ended("outcome")},
        unit="reqps",
        stack="normal",
    ),
    graph(
        "Where the first token's time goes",
        "95th percentiles. *client* is what clients waited; *provider* what single attempts took; *gateway* what the "
        "gateway itself added before the request and after the first token. A distance between client and provider "
        "that *gateway* does not explain is failover.",
        {
            "client": BOARD.quantile(0.95, "millrace_ttft_seconds"),
            "provider": BOARD.quantile(0.95, "millrace_upstream_ttft_seconds"),
            "gateway": BOARD.quantile(0.95, "millrace_overhead_seconds", stage="request")
            + " + "
            + BOARD.quantile(0.95, "millrace_overhead_seconds", stage="first_token"),
            "target": "vector($ttft_slo)",
        },
        unit="s",
        exemplars=True,
    ),
)


def _by_model() -> Panel:
    columns = (
        Column(title="Calls", expression=ended("model", over=RANGE), unit=COUNT, width=90),
        Column(
            title="Completed",
            expression=attained("complete", "model", over=RANGE),
            unit="percentunit",
            steps=GOOD_ABOVE_999,
        ),
        Column(
            title="Goodput",
            expression=attained("all", "model", over=RANGE),
            unit="percentunit",
            steps=(("red", None), ("orange", 0.9), ("green", 0.98)),
        ),
        Column(
            title="Our fault",
            expression=share(ended("model", over=RANGE, outcome=OURS), ended("model", over=RANGE)),
            unit="percentunit",
            steps=BAD_ABOVE_1_PERCENT,
        ),
        Column(
            title="Provider's fault",
            expression=share(ended("model", over=RANGE, outcome=PROVIDERS), ended("model", over=RANGE)),
            unit="percentunit",
            steps=BAD_ABOVE_1_PERCENT,
        ),
        Column(
            title="Client left",
            expression=share(ended("model", over=RANGE, outcome=CLIENTS), ended("model", over=RANGE)),
            unit="percentunit",
        ),
        Column(
            title="TTFT p95", expression=BOARD.quantile(0.95, "millrace_ttft_seconds", "model", over=RANGE), unit="s"
        ),
        Column(
            title="TPOT p95", expression=BOARD.quantile(0.95, "millrace_tpot_seconds", "model", over=RANGE), unit="s"
        ),
        Column(
            title="Longest gap p95",
            expression=BOARD.quantile(0.95, "millrace_stream_max_gap_seconds", "model", over=RANGE),
            unit="s",
        ),
        Column(
            title="Output tokens",
            expression=BOARD.increase("millrace_output_tokens_total", "model"),
            unit="short",
        ),
        Column(
            title="Wasted",
            expression=share(
                BOARD.increase("millrace_tokens_wasted_total", "model"),
                BOARD.increase("millrace_output_tokens_total", "model"),
            ),
            unit="percentunit",
            steps=(("green", None), ("orange", 0.05), ("red", 0.1)),
        ),
    )
    return table(
        "Models, over the whole time range",
        "One line for each model as clients call it, over all of the time on the screen. Click a model to see its "
        "streams, its providers or its objectives.",
        {"model": "Model"},
        columns,
        links={
            "model": (
                link_to(STREAMS, "Streams of this model", model="${__value.raw}"),
                link_to(UPSTREAMS, "Upstreams of this model", model="${__value.raw}"),
                link_to(SLO, "Objectives of this model", model="${__value.raw}"),
                link_to(OVERVIEW, "Only this model", model="${__value.raw}"),
            )
        },
        sort_by="Calls",
        height=7,
    )


SPEED = (
    graph(
        "TTFT",
        "From the last byte of the request to the first token handed to the client, failover included. A role or a "
        "ping is no token.",
        quantiles("millrace_ttft_seconds", 0.5, 0.95, 0.99) | {"target": "vector($ttft_slo)"},
        unit="s",
        width=6,
    ),
    graph(
        "TPOT",
        "Time for each output token behind the first, one number for each stream.",
        quantiles("millrace_tpot_seconds", 0.5, 0.95, 0.99) | {"target": "vector($tpot_slo)"},
        unit="s",
        width=6,
    ),
    graph(
        "Longest gap of a stream",
        "The worst wait for the next token that a stream had. It is what users call a hang.",
        quantiles("millrace_stream_max_gap_seconds", 0.5, 0.95, 0.99) | {"target": "vector($gap_slo)"},
        unit="s",
        width=6,
    ),
    graph(
        "Objectives met",
        "Share of the streams that met each objective, as was decided for every stream when it ended.",
        {"{{objective}}": share(BOARD.rate(JUDGED, "objective", met="true"), BOARD.rate(JUDGED, "objective"))},
        unit="percentunit",
        width=6,
        least=None,
        most=1,
    ),
)

TRAFFIC = (
    graph(
        "Calls by model",
        "Calls that ended in a second, by model.",
        {"{{model}}": ended("model")},
        unit="reqps",
        stack="normal",
        legend="table",
    ),
    graph(
        "Calls begun and ended",
        "Calls that began and that ended in a second. Where *in* stays above *out*, calls pile up: see how many are "
        "active.",
        {"in": BOARD.rate("millrace_requests_started_total"), "out": ended()},
        unit="reqps",
    ),
    graph(
        "Streams active by phase",
        "Calls in flight by how far they are: prefill waits for the first token, reasoning and decode bring tokens, "
        "draining finishes before a shutdown.",
        {"{{phase}}": BOARD.latest("sum", "millrace_streams_active", "phase")},
        unit="short",
        stack="normal",
        may_be_empty="no call is in flight.",
    ),
    graph(
        "Tokens",
        "Prompt tokens (in) and generated tokens (out) in a second, of all attempts.",
        {"in": BOARD.rate("millrace_input_tokens_total"), "out": BOARD.rate("millrace_output_tokens_total")},
        unit="short",
    ),
    graph(
        "Duration of a call",
        "From the last byte of the request to the end of the answer.",
        quantiles("millrace_request_duration_seconds", 0.5, 0.95, 0.99),
        unit="s",
    ),
    graph(
        "HTTP answers by status",
        "Answers by their status line. Compare with *Calls by outcome*: what failed after the first token is a 200 "
        "here.",
        {"{{code}}": BOARD.rate("millrace_http_responses_total", "code")},
        unit="reqps",
        stack="normal",
    ),
)

COST = (
    graph(
        "Wasted tokens by reason",
        "Share of the generated tokens that no client got: `client_abort` left, `failed_attempt` broke, `hedge_loser` "
        "lost the race, `resume_overlap` came twice and was cut off.",
        {
            "{{reason}}": f"{BOARD.rate('millrace_tokens_wasted_total', 'reason')} / ignoring (reason) group_left () "
            f"({BOARD.rate('millrace_output_tokens_total')} > 0)"
        },
        unit="percentunit",
        stack="normal",
        may_be_empty="every generated token was delivered.",
    ),
    graph(
        "Prompt tokens from a cache",
        "Share of the prompt tokens that the provider had cached, and that it wrote to its cache. What is read from a "
        "cache costs a fraction.",
        {
            "read": share(
                BOARD.rate("millrace_cache_read_input_tokens_total"), BOARD.rate("millrace_input_tokens_total")
            ),
            "written": share(
                BOARD.rate("millrace_cache_write_input_tokens_total"), BOARD.rate("millrace_input_tokens_total")
            ),
        },
        unit="percentunit",
        may_be_empty="no provider has reported cached tokens.",
    ),
    graph(
        "Reasoning",
        "Share of the generated tokens that were reasoning, which users may never see but pay for.",
        {
            "reasoning": share(
                BOARD.rate("millrace_reasoning_output_tokens_total"), BOARD.rate("millrace_output_tokens_total")
            )
        },
        unit="percentunit",
        may_be_empty="no model has reported reasoning tokens.",
    ),
)

BOARD_OVERVIEW = Board(
    uid=OVERVIEW,
    title="Overview",
    says="Is it us, the provider or the client, since when, and what does it cost?",
    choices=("ttft_slo", "tpot_slo", "gap_slo", "completion_target"),
    rows=(
        Row("", (*VERDICT, *FAULT, *SINCE_WHEN)),
        Row("Models", (_by_model(),)),
        Row("Speed, as clients have it", SPEED),
        Row("Traffic", TRAFFIC),
        Row("Cost", COST, is_optional=True),
    ),
)
