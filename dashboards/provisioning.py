"""The small files that make a Grafana and a Prometheus find all the others, as a start to be copied and changed."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.document import Json

FOLDER = "/etc/grafana/millrace"  # where the folder with the boards is mounted


def datasource(prometheus_url: str) -> Json:
    """Return Grafana's description of the Prometheus that the boards read."""
    source: Json = {
        "name": "Prometheus",
        "uid": "millrace-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "isDefault": True,
        "editable": False,
        # the interval at which Prometheus scrapes: $__rate_interval is four of them
        "jsonData": {"httpMethod": "POST", "timeInterval": "15s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def dashboard_provider() -> Json:
    """Return where Grafana looks for the boards."""
    provider: Json = {
        "name": "millrace",
        "folder": "Millrace",
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 30,
        "options": {"path": FOLDER, "foldersFromFilesStructure": False},
    }
    return {"apiVersion": 1, "providers": [provider]}


def prometheus_config(admin_address: str) -> Json:
    """Return a configuration of Prometheus that scrapes one gateway and knows the rules."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yaml", "alerts.yaml"],
        "scrape_configs": [{"job_name": "millrace", "static_configs": [{"targets": [admin_address]}]}],
    }


def prometheus_rule(groups: Sequence[Json]) -> Json:
    """Return all rules as the Prometheus Operator takes them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "millrace", "labels": {"app.kubernetes.io/name": "millrace"}},
        "spec": {"groups": groups},
    }


def kustomization(boards: Sequence[str]) -> Json:
    """Return what makes of the rules and boards resources of Kubernetes, as Grafana's sidecar looks for them."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["prometheus/prometheusrule.yaml"],
        "configMapGenerator": [
            {"name": f"millrace-board-{name}", "files": [f"grafana/{name}.json"]} for name in boards
        ],
        "generatorOptions": {
            "disableNameSuffixHash": True,
            "labels": {"app.kubernetes.io/name": "millrace", "grafana_dashboard": "1"},
            "annotations": {"grafana_folder": "Millrace"},
        },
    }
