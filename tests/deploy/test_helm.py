"""The Helm chart: rendered where Helm is at hand, read where it is not."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import rendering
from tests.deploy.manifests import Document, faults, one, read
from tests.deploy.test_kubernetes import POD, SECRETS

CHART = rendering.CHART
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
TEMPLATES = sorted((CHART / "templates").iterdir())
BOARDS = sorted((Path(__file__).parents[2] / "dashboards" / "grafana").glob("*.json"))
EVERYTHING = ("autoscaling.enabled=true", "serviceMonitor.enabled=true", "prometheusRule.enabled=true")

needs_helm = pytest.mark.skipif(rendering.HELM is None, reason="Helm is not installed (it is in no Debian package)")


# --- without Helm


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_closes_what_it_opens(path: Path) -> None:
    """Braces, and blocks."""
    text = path.read_text("utf-8")
    actions = re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", text, re.DOTALL)
    assert text.count("{{") == text.count("}}") == len(actions)
    depth = 0
    for action in actions:
        depth += bool(re.match(r"(if|range|with|define|block)\b", action)) - (action == "end")
        assert depth >= 0, action
    assert depth == 0


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_uses_values_and_parts_that_there_are(path: Path) -> None:
    """Helm takes a misspelt value for nothing."""
    text = path.read_text("utf-8")
    helpers = (CHART / "templates" / "_helpers.tpl").read_text("utf-8")
    assert set(re.findall(r'include "([^"]+)"', text)) <= set(re.findall(r'define "([^"]+)"', helpers))
    for name in re.findall(r"\.Values\.([A-Za-z0-9_.]+)", text):
        assert _has(VALUES, name.split(".")) or name in ("config.server.port", "config.server.admin_port"), name


def _has(values: object, path: list[str]) -> bool:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def test_every_value_is_used() -> None:
    """One that nobody reads is a promise that nobody keeps."""
    text = "".join(path.read_text("utf-8") for path in TEMPLATES)
    unused = [name for name in _paths(VALUES) if not re.search(rf"\.Values\.{re.escape(name)}\b", text)]
    assert unused == []


def _paths(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name in ("config", "resources") or not isinstance(value, dict) or not value:
            yield name
        else:
            yield from (f"{name}.{inner}" for inner in value)


def test_the_schema_knows_the_values_and_takes_no_others() -> None:
    """A misspelt one is told before anything is installed."""
    assert list(_violations(VALUES, SCHEMA)) == []
    assert SCHEMA["properties"].keys() - {"global"} == VALUES.keys()
    for wrong in (
        {"replicacount": 3},
        {"secret": VALUES["secret"] | {"existingSecret": ""}},
        {"config": {"server": VALUES["config"]["server"] | {"drain_timeout_s": "soon"}}},
        {"config": VALUES["config"] | {"provider": {}}},
    ):
        assert list(_violations(VALUES | wrong, SCHEMA)), wrong


def _violations(value: Any, schema: Mapping[str, Any], where: str = "values") -> Iterator[str]:
    """Yield what breaks the parts of JSON Schema that are used here."""
    kinds: dict[str, Any] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        yield f"{where}: not of type {schema['type']}"
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{where}.{name}: missing" for name in schema.get("required", []) if name not in value)
        yield from (f"{where}.{name}: unknown" for name in value if name not in known and others is False)
        for name in value.keys() & known.keys():
            yield from _violations(value[name], known[name], f"{where}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _violations(item, schema.get("items", {}), f"{where}[]")
    elif isinstance(value, str):
        if len(value) < schema.get("minLength", 0) or not re.search(schema.get("pattern", ""), value):
            yield f"{where}: not such a text"
        if value not in schema.get("enum", [value]):
            yield f"{where}: not one of these"
    elif not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where}: out of range"


def test_the_chart_has_the_version_of_the_package() -> None:
    """And with it the image that it asks for."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    package = (CHART.parents[2] / "pyproject.toml").read_text("utf-8")
    assert f'\nversion = "{chart["appVersion"]}"\n' in package
    assert POD["containers"][0]["image"] == f"{VALUES['image']['repository']}:{chart['appVersion']}"


def test_boards_and_rules_are_those_of_the_repository() -> None:
    """Linked, not copied: Helm puts what a link leads to into the package."""
    for name in ("grafana", "prometheus"):
        link = CHART / "files" / name
        assert link.is_symlink()
        assert link.resolve() == CHART.parents[2] / "dashboards" / name
    assert [path.name for path in sorted((CHART / "files" / "grafana").glob("*.json"))] == [p.name for p in BOARDS]


# --- with Helm


@needs_helm
def test_helm_finds_nothing_to_complain_of() -> None:
    """Not even a warning."""
    assert rendering.HELM
    command = [rendering.HELM, "lint", "--strict", "--kube-version", rendering.KUBERNETES, str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603, our own
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@needs_helm
@pytest.mark.parametrize("switches", [(), EVERYTHING], ids=["default", "everything"])
def test_what_helm_renders_is_whole(switches: tuple[str, ...]) -> None:
    """By the rules that the plain manifests keep."""
    assert faults(_rendered(*switches), secrets=SECRETS) == []


@needs_helm
def test_the_plain_manifests_are_what_helm_renders() -> None:
    """If not: ``python -m tests.deploy.rendering``."""
    made = rendering.rendered()
    assert made == {name: (rendering.MANIFESTS / name).read_text("utf-8") for name in made}


@needs_helm
def test_boards_and_rules_come_out_as_they_are_in_the_repository() -> None:
    """To the letter; but for the links of alerts, which lead where one's own Grafana and runbook are."""
    urls = {"grafanaUrl": "https://grafana.example", "runbookUrl": "https://wiki.example/book"}
    documents = _rendered(*EVERYTHING, f"prometheusRule={json.dumps(urls)}", "prometheusRule.enabled=true")
    maps = [item["data"] for item in documents if item["kind"] == "ConfigMap"]
    boards = {name: text for data in maps for name, text in data.items() if name.endswith(".json")}
    assert boards == {path.name: path.read_text("utf-8") for path in BOARDS}
    rules = (CHART / "files" / "prometheus" / "prometheusrule.yaml").read_text("utf-8")
    rules = rules.replace("http://localhost:3000", urls["grafanaUrl"]).replace("runbook.md", urls["runbookUrl"])
    assert one(documents, "PrometheusRule")["spec"] == one(read(rules), "PrometheusRule")["spec"]


@needs_helm
def test_the_grace_period_follows_the_drain() -> None:
    """Whoever lets streams run on for an hour has pods that may."""
    switches = ("config.server.drain_timeout_s=3600", "config.server.drain_delay_s=0.5")
    pod = one(_rendered(*switches), "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 3600 + 1 + 20


@needs_helm
def test_a_new_configuration_is_rolled_out() -> None:
    """Its checksum is part of the pod."""
    before, after = (
        one(_rendered(*switches), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for switches in ((), ('config.telemetry={"log_level": "debug"}',))
    )
    assert before != after


@needs_helm
def test_a_release_of_another_name_keeps_its_parts_together() -> None:
    """Two releases in one namespace do not meet."""
    documents = read(rendering.template(switches=EVERYTHING, release="blue"))
    assert faults(documents, secrets=SECRETS) == []
    assert {item["metadata"]["name"].partition("-millrace")[0] for item in documents} == {"blue"}


def _rendered(*switches: str) -> list[Document]:
    return read(rendering.template(switches=switches))
