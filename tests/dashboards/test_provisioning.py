"""The small files are what Grafana and Prometheus read."""

from __future__ import annotations

from pathlib import Path

import yaml

import dashboards
from tests.dashboards.promtool import needs_promtool, run

FILES = dashboards.files()


@needs_promtool
def test_promtool_takes_the_configuration_with_its_rules(tmp_path: Path) -> None:
    """It finds the rules beside it."""
    dashboards.write(tmp_path)
    run("check", "config", tmp_path / "prometheus" / "prometheus.yaml")


def test_grafana_is_told_where_prometheus_is() -> None:
    """As the data source that boards choose at first; the interval is that of the scrapes."""
    document = yaml.safe_load(FILES["grafana/provisioning/datasources/millrace.yaml"])
    (source,) = document["datasources"]
    assert (document["apiVersion"], source["type"], source["isDefault"]) == (1, "prometheus", True)
    assert source["url"] == "http://localhost:9090"
    scrapes = yaml.safe_load(FILES["prometheus/prometheus.yaml"])["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrapes


def test_grafana_is_told_where_the_boards_are() -> None:
    """They are not to be changed in the browser."""
    document = yaml.safe_load(FILES["grafana/provisioning/dashboards/millrace.yaml"])
    (provider,) = document["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert provider["options"]["path"] == "/etc/grafana/millrace"


def test_prometheus_scrapes_the_job_that_the_rules_are_about() -> None:
    """The alert for a gateway that is down goes by the name of its job."""
    document = yaml.safe_load(FILES["prometheus/prometheus.yaml"])
    (scraped,) = document["scrape_configs"]
    assert scraped["job_name"] == "millrace"
    assert 'up{job=~"millrace.*"}' in FILES["prometheus/alerts.yaml"]


def test_the_operator_gets_the_rules_that_prometheus_gets() -> None:
    """All groups, in one resource."""
    files = ("prometheus/rules.yaml", "prometheus/alerts.yaml")
    groups = [group for name in files for group in yaml.safe_load(FILES[name])["groups"]]
    document = yaml.safe_load(FILES["prometheus/prometheusrule.yaml"])
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert document["spec"] == {"groups": groups}


def test_the_kustomization_makes_resources_of_all_rules_and_boards() -> None:
    """It names files beside it; Grafana's sidecar finds the boards by their label."""
    document = yaml.safe_load(FILES["kustomization.yaml"])
    boards = [name for made in document["configMapGenerator"] for name in made["files"]]
    assert sorted(boards) == sorted(name for name in FILES if name.endswith(".json"))
    assert document["resources"] == ["prometheus/prometheusrule.yaml"]
    assert document["generatorOptions"]["labels"]["grafana_dashboard"] == "1"
