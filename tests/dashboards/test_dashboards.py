"""What is written is what is in the repository, and a real Prometheus answers every panel."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

import dashboards
from dashboards.boards import BOARDS
from dashboards.queries import runnable
from tests.dashboards.made_up import MadeUpGateway
from tests.dashboards.promtool import PROMETHEUS, needs_prometheus

FOLDER = Path(dashboards.__file__).parent


def test_the_files_in_the_repository_are_up_to_date() -> None:
    """If not: ``millrace dashboards --out dashboards``."""
    stale = [name for name, text in dashboards.files().items() if (FOLDER / name).read_text("utf-8") != text]
    assert stale == []


def test_the_repository_has_no_file_that_nobody_makes() -> None:
    """A board that is gone is gone."""
    found = {path for part in ("grafana", "prometheus") for path in (FOLDER / part).rglob("*") if path.is_file()}
    assert {path.relative_to(FOLDER).as_posix() for path in found} | {"runbook.md"} == dashboards.files().keys()


def test_write_makes_the_folders_and_tells_the_paths(tmp_path: Path) -> None:
    """A second time it writes over what is there."""
    for _ in range(2):
        paths = dashboards.write(tmp_path / "new" / "folder")
        assert {path.relative_to(tmp_path / "new" / "folder").as_posix() for path in paths} == dashboards.files().keys()
    assert (tmp_path / "new/folder/grafana/overview.json").read_text("utf-8").startswith("{\n")


def test_addresses_are_where_links_lead_to() -> None:
    """Alerts lead to one's own Grafana and runbook."""
    addresses = dashboards.Addresses(
        grafana_url="https://grafana.example",
        prometheus_url="https://prometheus.example",
        runbook_url="https://wiki.example/runbook",
        admin_address="gateway:9000",
    )
    files = dashboards.files(addresses)
    assert "https://wiki.example/runbook#millracedown" in files["prometheus/alerts.yaml"]
    assert "https://grafana.example/d/millrace-gateway?" in files["prometheus/alerts.yaml"]
    assert "https://prometheus.example" in files["grafana/provisioning/datasources/millrace.yaml"]
    assert "gateway:9000" in files["prometheus/prometheus.yaml"]
    assert "localhost" not in "".join(text for name, text in files.items() if name != "runbook.md")


def test_every_panel_has_its_queries_and_no_variable_is_left() -> None:
    """They can be sent to Prometheus as they are."""
    found = list(dashboards.panel_queries(interval="5m", model="chat"))
    assert {(q.board, q.panel) for q in found} == {(b.uid, p.title) for b in BOARDS for p in b.panels}
    assert not [query for query in found if "$" in query.expression]
    assert [query for query in found if 'model=~"chat"' in query.expression]
    assert [query for query in found if query.needs_rules]
    assert all(query.may_be_empty.endswith(".") for query in found if query.may_be_empty)


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that come back; an error of Prometheus is one here."""
        with urlopen(f"http://{self.address}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        found = document["data"]["result"]
        return found if document["data"]["resultType"] == "vector" else [{"value": found}]

    def wait_for(self, expression: str) -> None:
        """Return when something comes back."""
        for _ in range(300):
            try:
                if self.ask(expression):
                    return
            except (URLError, ConnectionError):
                pass
            time.sleep(0.1)
        pytest.fail(f"nothing came back for {expression}")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a made-up gateway every second, with all rules."""
    assert PROMETHEUS
    folder = tmp_path_factory.mktemp("prometheus")
    with MadeUpGateway() as gateway, socket.create_server(("127.0.0.1", 0)) as free:
        files = dashboards.files(dashboards.Addresses(admin_address=gateway.address))
        for name in ("rules", "alerts"):
            document = yaml.safe_load(files[f"prometheus/{name}.yaml"])
            groups = [{key: group[key] for key in ("name", "rules")} for group in document["groups"]]
            (folder / f"{name}.yaml").write_text(json.dumps({"groups": groups}))
        config = yaml.safe_load(files["prometheus/prometheus.yaml"])
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (folder / "prometheus.yaml").write_text(json.dumps(config))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        process = subprocess.Popen(  # noqa: S603, our own
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=error",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            running = Prometheus(address)
            running.wait_for("millrace:slo_errors:ratio_rate30d")
            running.wait_for("count_over_time(up[10s]) >= 5")
            yield running
        finally:
            process.terminate()
            process.wait(10)


@needs_prometheus
def test_a_real_prometheus_answers_every_panel(prometheus: Prometheus) -> None:
    """Of a gateway that exports every family nothing is empty, but for what nobody has broken."""
    empty = [
        f"{query.board}: {query.panel}: {query.expression}"
        for query in dashboards.panel_queries(interval="5s")
        if not prometheus.ask(query.expression) and not query.may_be_empty
    ]
    assert empty == []


@needs_prometheus
def test_a_real_prometheus_answers_the_annotations(prometheus: Prometheus) -> None:
    """None of them is an error; that nothing happened is well."""
    for board in BOARDS:
        annotations = board.as_json()["annotations"]
        assert isinstance(annotations, dict)
        for annotation in annotations["list"]:
            if "expr" in annotation:
                prometheus.ask(runnable(annotation["expr"]))
