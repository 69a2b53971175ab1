"""Each kind of panel comes out as Grafana wants it."""

from __future__ import annotations

from typing import Any, cast

from dashboards.panels import NONE_IS_GOOD, PALETTE, Column, Panel, graph, heatmap, link_to, stat, states, table

Json = dict[str, Any]


def drawn(panel: Panel) -> Json:
    """Return a panel as Grafana gets it."""
    return cast("Json", panel.as_json(number=7, x=3, y=4))


def overrides(panel: Panel) -> dict[str, dict[str, Any]]:
    """Return what is special of each name."""
    found = drawn(panel)["fieldConfig"]["overrides"]
    return {item["matcher"]["options"]: {p["id"]: p["value"] for p in item["properties"]} for item in found}


def test_a_description_says_what_is_seen_why_not_what_has_no_effect_and_from_which_metric() -> None:
    """Also of recorded series, of scrapes and of alerts."""
    expression = 'sum(millrace_worker_up) + millrace:slo_target:ratio + up{job=~"$job"} + ALERTS{a="b"}'
    panel = stat("T", "Says.", expression, unit="none", may_be_empty="all is well.")
    assert panel.description == (
        "Says.\n\nMay be empty: all is well.\n\nDoes not follow *Instance*, *Model*, *Upstream*.\n\n"
        "Metric: `millrace_worker_up`, `millrace:slo_target:ratio`, `up`, `ALERTS`"
    )


def test_a_stat_judges_only_with_steps() -> None:
    """Without them it has one colour, whatever its value."""
    plain = drawn(stat("T", "Says.", "1", unit="s"))
    assert plain["fieldConfig"]["defaults"]["color"] == {"mode": "fixed", "fixedColor": "blue"}
    judged = drawn(
        stat("T", "Says.", "1", unit="s", steps=NONE_IS_GOOD, decimals=1, is_instant=True, link=link_to("b", "B"))
    )
    defaults = judged["fieldConfig"]["defaults"]
    assert defaults["color"] == {"mode": "thresholds"}
    assert defaults["decimals"] == 1
    assert [step["color"] for step in defaults["thresholds"]["steps"]] == ["green", "red"]
    assert judged["options"]["graphMode"] == "none"
    assert judged["targets"][0]["instant"]
    assert judged["links"][0]["title"] == "B"


def test_a_panel_has_its_number_and_its_place() -> None:
    """The board decides on them."""
    found = drawn(stat("T", "Says.", "1", unit="s"))
    assert (found["id"], found["gridPos"]) == (7, {"h": 4, "w": 3, "x": 3, "y": 4})


def test_a_name_has_its_colour_in_every_graph() -> None:
    """Whether the legend is written out or comes from a label; the target is a dashed line."""
    found = overrides(graph("T", "Says.", {"p95": "1", "target": "2", "{{outcome}}": "3"}, unit="s"))
    assert found["p95"]["color"]["fixedColor"] == PALETTE[""]["p95"]
    assert found["target"]["custom.lineStyle"]["fill"] == "dash"
    assert {name: found[name]["color"]["fixedColor"] for name in PALETTE["outcome"]} == dict(PALETTE["outcome"])
    assert overrides(graph("T", "Says.", {"{{model}}": "1", "any": "2"}, unit="s")) == {}


def test_a_graph_is_stacked_bounded_and_limited_as_it_is_told() -> None:
    """Its first query asks for exemplars, where there are any."""
    panel = graph(
        "T",
        "Says.",
        {"a": "1", "b": "2"},
        unit="s",
        stack="percent",
        bars=True,
        legend="table",
        limits=(("transparent", None), ("red", 1)),
        least=None,
        most=1,
        exemplars=True,
    )
    found = drawn(panel)
    defaults = found["fieldConfig"]["defaults"]
    assert defaults["custom"]["stacking"]["mode"] == "percent"
    assert defaults["custom"]["drawStyle"] == "bars"
    assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"
    assert (defaults.get("min"), defaults["max"]) == (None, 1)
    assert found["options"]["legend"]["calcs"]
    assert [target.get("exemplar", False) for target in found["targets"]] == [True, False]
    assert [target["refId"] for target in found["targets"]] == ["A", "B"]


def test_a_heatmap_takes_the_buckets_as_they_are() -> None:
    """Prometheus has counted; Grafana need not."""
    found = drawn(heatmap("T", "Says.", "1", unit="bytes"))
    assert found["options"]["calculate"] is False
    assert found["options"]["yAxis"]["unit"] == "bytes"
    assert found["targets"][0]["format"] == "heatmap"


def test_a_table_has_a_heading_for_each_column_and_links_at_its_keys() -> None:
    """A column judges where it has steps or names."""
    columns = (
        Column(title="Calls", expression="1", unit="short", width=90),
        Column(title="Share", expression="2", unit="percentunit", steps=NONE_IS_GOOD),
        Column(title="State", expression="3", unit="none", names={"1": ("open", "red")}),
    )
    panel = table(
        "T", "Says.", {"model": "Model"}, columns, links={"model": [link_to("b", "B", model="x")]}, sort_by="Calls"
    )
    organized = drawn(panel)["transformations"][1]["options"]
    assert organized["renameByName"] == {
        "model": "Model",
        "Value #A": "Calls",
        "Value #B": "Share",
        "Value #C": "State",
    }
    found = overrides(panel)
    assert found["Calls"] == {"unit": "short", "custom.width": 90}
    assert found["Share"]["custom.cellOptions"] == {"type": "color-text"}
    assert found["State"]["mappings"][0]["options"]["1"]["text"] == "open"
    assert found["Model"]["links"][0]["url"].startswith("/d/b?")


def test_a_table_of_one_column_has_its_value_without_a_letter() -> None:
    """Grafana gives letters only where there are several queries."""
    panel = table("T", "Says.", {"model": "Model"}, (Column(title="Calls", expression="1", unit="short"),))
    assert drawn(panel)["transformations"][1]["options"]["renameByName"]["Value"] == "Calls"


def test_states_have_names_and_colours() -> None:
    """A number says nothing in a band."""
    found = drawn(states("T", "Says.", "1", legend="{{upstream}}", names={"3": ("open", "red")}))
    assert found["type"] == "state-timeline"
    assert found["fieldConfig"]["defaults"]["mappings"][0]["options"]["3"] == {
        "color": "red",
        "index": 0,
        "text": "open",
    }


def test_a_link_keeps_the_variables_that_it_does_not_set() -> None:
    """And the time range."""
    url = link_to("b", "B", model="${__value.raw}")["url"]
    assert url == (
        "/d/b?${datasource:queryparam}&${job:queryparam}&${instance:queryparam}&${upstream:queryparam}"
        "&var-model=${__value.raw}&${__url_time_range}"
    )
