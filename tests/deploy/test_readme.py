"""What the README tells operators to do can be done, and its figures are those of the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy import rendering
from tests.deploy.test_kubernetes import SECRETS

DEPLOY = rendering.DEPLOY
TEXT = (DEPLOY / "README.md").read_text("utf-8")
VALUES = yaml.safe_load((rendering.CHART / "values.yaml").read_text("utf-8"))


def test_what_it_names_is_there() -> None:
    """Files, and values of the chart."""
    paths = re.findall(r"(?<!path/to/)\bdeploy/[\w./-]+[\w]", TEXT)
    paths += [f"deploy/{name}" for name in re.findall(r"`((?:front|helm|kubernetes|systemd)/[\w./-]*)`", TEXT)]
    assert len(paths) > 10
    assert [path for path in paths if not (DEPLOY.parent / path).exists()] == []
    for section, name in re.findall(r"`(\w+)\.(\w+)`", TEXT):
        assert name in VALUES.get(section, {"drain_delay_s", "drain_timeout_s", "admin_key", "yaml", "lock"}), name


@pytest.mark.parametrize("name", ["front/nginx.conf", "front/haproxy.cfg", "front/envoy.yaml"])
def test_what_it_says_of_proxies_is_in_their_files(name: str) -> None:
    """Word by word."""
    column = ["front/nginx.conf", "front/haproxy.cfg", "front/envoy.yaml"].index(name) + 2
    rows = [line.split("|") for line in TEXT.partition("| nginx | HAProxy")[2].splitlines() if line.startswith("|")][1:]
    said = [item for row in rows for item in re.findall(r"`([^`]+)`", row[column])]
    text = (DEPLOY / name).read_text("utf-8")
    assert said
    assert [item for item in said if item not in text] == []


def test_the_secret_that_it_makes_is_the_one_that_pods_wait_for() -> None:
    """By its name and keys; what must be there is among them."""
    made = re.search(r"create secret generic (\w+) \\\n(.*)\n", TEXT)
    assert made
    keys = set(re.findall(r"--from-literal=([\w-]+)=", made[2]))
    assert keys <= set(SECRETS[made[1]])
    assert {item["key"] for item in VALUES["secret"]["env"] if not item.get("optional")} <= keys


def test_the_time_that_it_asks_for_is_the_one_that_is_given() -> None:
    """In the chart, the manifests, the unit, and the Compose file."""
    grace, compose = re.search(r"unit \((\d+)\), (\d+) in the Compose file", TEXT.replace("\n", " ")).groups()  # type: ignore[union-attr]  # else the test fails
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "deployment.yaml").read_text("utf-8"))
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == int(grace)
    assert f"TimeoutStopSec={grace}\n" in (DEPLOY / "systemd" / "millrace.service").read_text("utf-8")
    assert f"stop_grace_period: {compose}s\n" in (DEPLOY / "compose.yaml").read_text("utf-8")
    assert f"--stop-timeout {compose}" in TEXT


def test_the_folder_holds_nothing_that_it_does_not_mention() -> None:
    """But for what Compose and the image take without being told."""
    names = {path.name for path in Path(DEPLOY).iterdir()} - {
        "README.md",
        "compose",
        "examples",
        "images",
        "millrace.yaml",
    }
    assert [name for name in sorted(names) if name not in TEXT] == []
