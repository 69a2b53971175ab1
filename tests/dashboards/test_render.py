"""Every board can be drawn without Grafana, from what a Prometheus answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from dashboards.board import Board, Row
from dashboards.boards import BOARDS
from dashboards.panels import Column, Panel, graph, heatmap, stat, states, table
from dashboards.render import Screen, main, render, screen_of

END_S = 1_700_000_000.0
LABELS = {"model": "<chat>", "upstream": "p/m", "le": "0.5", "outcome": "completed", "instance": "a:8081"}


class Answering(BaseHTTPRequestHandler):
    """Answers every query with the same numbers, or as ``answer`` says."""

    asked: ClassVar[list[dict[str, str]]] = []
    values: ClassVar[list[float]] = [1.0, 2.0, 4.0]

    def do_GET(self) -> None:
        """Answer one query."""
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.asked.append(query)
        told = [(END_S - 10 * place, str(value)) for place, value in enumerate(reversed(self.values))][::-1]
        if address.path.endswith("query_range"):
            data: Any = {"resultType": "matrix", "result": [{"metric": LABELS, "values": told}] if told else []}
        else:
            data = {"resultType": "vector", "result": [{"metric": LABELS, "value": told[-1]}] if told else []}
        body = json.dumps({"status": "success", "data": data}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def make_screen() -> Iterator[Callable[..., Screen]]:
    """Return screens over a Prometheus that knows these values and no others."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def make(*values: float, **chosen: str) -> Screen:
            Answering.asked, Answering.values = [], list(values)
            url = f"http://127.0.0.1:{server.server_port}/"
            return screen_of(url, since_s=600, end_s=END_S, interval="1m", **chosen)

        yield make
        server.shutdown()
        thread.join()


def page_of(panel: Panel, screen: Screen) -> str:
    """Return the page of a board with this one panel."""
    return render(Board(uid="b", title="B", says="Says.", rows=(Row("", (panel,)),)), screen)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
@pytest.mark.parametrize("values", [(1.0, 2.0, 4.0), (0.0, 0.0), (math.nan,), ()])
def test_every_board_is_drawn_whatever_prometheus_answers(
    board: Board, values: tuple[float, ...], make_screen: Callable[..., Screen]
) -> None:
    """Each panel has its place, but for those that are folded away; no variable is left in a query."""
    page = render(board, make_screen(*values))
    folded = {panel.title for row in board.rows if row.is_optional for panel in row.panels}
    shown = re.findall(r"<h3>(.*?)</h3>", page)
    assert len(shown) == len(board.panels) - sum(panel.title in folded for panel in board.panels)
    assert page.count("<section") == page.count("</section>") == len(shown)
    assert not [query for query in Answering.asked if "$" in query["query"]]
    assert "nan" not in page.replace("nano", "")
    assert "<chat>" not in page


def test_a_stat_shows_its_last_number_in_the_colour_of_its_judgement(make_screen: Callable[..., Screen]) -> None:
    """And what it says where there is none."""
    panel = stat("T", "Says.", "up", unit="none", steps=(("green", None), ("red", 3)), nothing="No traffic")
    page = page_of(panel, make_screen(1.0, 4.0, math.nan))
    assert re.search(r'class="stat"[^>]*color:#f2495c">4</div>', page)
    assert re.search(r'class="stat"[^>]*color:#73bf69">2</div>', page_of(panel, make_screen(2.0)))
    assert "No traffic</div>" in page_of(panel, make_screen())


def test_a_graph_has_a_legend_of_what_is_there(make_screen: Callable[..., Screen]) -> None:
    """With the labels of the series, and their own colours."""
    page = page_of(graph("T", "Says.", {"{{outcome}}": "up"}, unit="s"), make_screen(1.0, 2.0))
    assert '<i style="background:#73bf69"></i>completed' in page
    assert "<polyline" in page
    shares = page_of(graph("T", "Says.", {"{{model}}": "up"}, unit="s", stack="percent"), make_screen(1.0, 2.0))
    assert ">100%</text>" in shares
    counted = page_of(graph("T", "Says.", {"{{model}}": "up"}, unit="s", legend="table"), make_screen(1.0, 2.0))
    assert "<td>1.5 s</td><td>2 s</td><td>2 s</td>" in counted
    assert "No data" in page_of(graph("T", "Says.", {"a": "up"}, unit="s"), make_screen())


def test_a_table_has_a_row_for_each_key_and_a_judgement_in_its_cells(make_screen: Callable[..., Screen]) -> None:
    """A number that has a name is told by it."""
    columns = (
        Column(title="Share", expression="up", unit="percentunit", steps=(("green", None), ("red", 0.5))),
        Column(title="State", expression="up", unit="none", names={"1": ("closed", "green")}),
    )
    panel = table("T", "Says.", {"model": "Model"}, columns, sort_by="Share")
    page = page_of(panel, make_screen(1.0))
    assert "<th>Model</th><th>Share</th><th>State</th>" in page
    assert "<td>&lt;chat&gt;</td>" in page
    assert 'color:#f2495c">100%</td>' in page
    assert 'color:#73bf69">closed</td>' in page
    assert "<td>–</td>" in page_of(panel, make_screen(math.nan))


def test_distributions_and_states_are_drawn(make_screen: Callable[..., Screen]) -> None:
    """As cells and as bands."""
    assert ">500 ms</text>" in page_of(heatmap("T", "Says.", "up"), make_screen(1.0, 2.0))
    names = {"1": ("closed", "green"), "2": ("open", "red")}
    page = page_of(states("T", "Says.", "up", legend="{{upstream}}", names=names), make_screen(1.0, 2.0))
    assert ">p/m</text>" in page
    assert page.count('fill="#f2495c"') == 1


def test_variables_are_what_the_board_begins_with_or_what_was_chosen(make_screen: Callable[..., Screen]) -> None:
    """In the query; the time range and the interval of rates are told with it."""
    expression = 'rate(a{model=~"$model", job=~"$job"}[$__rate_interval]) > $ttft_slo and b[$__range]'
    page_of(stat("T", "Says.", expression, unit="s"), make_screen(1.0, model="chat"))
    assert Answering.asked[0]["query"] == 'rate(a{model=~"chat", job=~".+"}[1m]) > 2 and b[600s]'
    assert float(Answering.asked[0]["end"]) - float(Answering.asked[0]["start"]) == 600


def test_the_command_writes_a_page(make_screen: Callable[..., Screen], tmp_path: Path) -> None:
    """One file that needs no other."""
    out = tmp_path / "page.html"
    main(["--prometheus", make_screen(1.0, 2.0).url, "--board", "slo", "--since", "2h", "--out", str(out)])
    page = out.read_text("utf-8")
    assert "<title>Millrace / SLO drill-down</title>" in page
    assert "120 minutes" in page
    assert not re.search(r"(src|href)=", page)


def test_the_command_says_what_a_time_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    """Before it asks anybody."""
    with pytest.raises(SystemExit):
        main(["--since", "soon"])
    assert "expected a number and s, m, h or d, got soon" in capsys.readouterr().err
