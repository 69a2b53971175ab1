"""What is written is what is in the repository."""

from __future__ import annotations

from pathlib import Path

import dashboards
from dashboards.boards import BOARDS

FOLDER = Path(dashboards.__file__).parent


def test_the_files_in_the_repository_are_up_to_date() -> None:
    """If not: ``millrace dashboards --out dashboards``."""
    stale = [name for name, text in dashboards.files().items() if (FOLDER / name).read_text("utf-8") != text]
    assert stale == []


def test_the_repository_has_no_file_that_nobody_makes() -> None:
    """A board that is gone is gone."""
    found = {path for part in ("grafana", "prometheus") for path in (FOLDER / part).rglob("*") if path.is_file()}
    assert {path.relative_to(FOLDER).as_posix() for path in found} | {
        "kustomization.yaml",
        "runbook.md",
    } == dashboards.files().keys()


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
