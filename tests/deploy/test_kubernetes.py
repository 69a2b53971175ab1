"""The plain manifests: each is whole, and together they are what is promised."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.app import Gateway
from gateway.config import parse_config
from tests.deploy import rendering
from tests.deploy.manifests import Document, faults, one, read

ROOT = Path(__file__).parents[2]
FOLDER = rendering.MANIFESTS
RULES = ROOT / "dashboards" / "prometheus" / "prometheusrule.yaml"
KUBECTL = shutil.which("kubectl")
SECRETS = {
    "millrace": [
        "client-key-sha256",
        "openai-api-key",
        "anthropic-api-key",
        "gemini-api-key",
        "mistral-api-key",
        "meta-api-key",
        "llama-api-key",
    ]
}
"""The Secret that the README tells how to make."""


def kustomization(path: Path) -> Any:
    """Return a kustomization, as YAML says it."""
    return yaml.safe_load((path / "kustomization.yaml").read_text("utf-8"))


def files_of(path: Path) -> list[str]:
    """Return the texts of the manifests that a kustomization names."""
    return [(path / name).read_text("utf-8") for name in kustomization(path)["resources"] if name.endswith(".yaml")]


BASE = read(*files_of(FOLDER))
DEPLOYMENT = one(BASE, "Deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONFIG = yaml.safe_load(one(BASE, "ConfigMap")["data"]["millrace.yaml"])


def with_monitoring() -> list[Document]:
    """Return all manifests, as the component leaves them."""
    documents = [*deepcopy(BASE), *read(*files_of(FOLDER / "monitoring"), RULES.read_text("utf-8"))]
    del one(documents, "Deployment")["spec"]["replicas"]
    return documents


WHOLE = with_monitoring()


@pytest.mark.parametrize("documents", [BASE, WHOLE], ids=["base", "monitoring"])
def test_the_manifests_are_whole(documents: Sequence[Document]) -> None:
    """No unknown field, none missing, and whatever is named is there."""
    assert faults(documents, secrets=SECRETS) == []


def _pod(documents: Sequence[Any]) -> Any:
    return one(documents, "Deployment")["spec"]["template"]["spec"]


def _gateway(documents: Sequence[Any]) -> Any:
    return _pod(documents)["containers"][0]


BREAKAGES: dict[str, Callable[[list[Any]], object]] = {
    "no such field": lambda all_: _gateway(all_).update(readinesProbe={}),
    "missing": lambda all_: _gateway(all_).pop("readinessProbe"),
    "is not what belongs there": lambda all_: _pod(all_).update(terminationGracePeriodSeconds="630"),
    "a boolean": lambda all_: _pod(all_).update(terminationGracePeriodSeconds=True),
    "not a kind": lambda all_: all_.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}),
    "apiVersion is": lambda all_: one(all_, "PodDisruptionBudget").update(apiVersion="policy/v1beta1"),
    "is no name": lambda all_: one(all_, "NetworkPolicy")["metadata"].update(name="Millrace"),
    "there are two": lambda all_: all_.append(one(all_, "NetworkPolicy")),
    "Service millrace: its selector": lambda all_: one(all_, "Service", "millrace")["spec"]["selector"].update(x="y"),
    "PodDisruptionBudget millrace: its": lambda all_: one(all_, "PodDisruptionBudget")["spec"]["selector"].update(
        matchLabels={"app.kubernetes.io/name": "other"}
    ),
    "Deployment millrace: its": lambda all_: one(all_, "Deployment")["spec"]["template"]["metadata"].update(labels={}),
    "no port web": lambda all_: one(all_, "Service", "millrace")["spec"]["ports"][0].update(targetPort="web"),
    "no port metrics": lambda all_: one(all_, "ServiceMonitor")["spec"]["endpoints"][0].update(port="metrics"),
    "no port probes": lambda all_: _gateway(all_)["livenessProbe"]["httpGet"].update(port="probes"),
    "no port peer": lambda all_: one(all_, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0].update(port="peer"),
    "it selects 0": lambda all_: one(all_, "Service", "millrace-admin")["metadata"].update(labels={}),
    "there is no Deployment": lambda all_: one(all_, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(
        name="other"
    ),
    "replicas are given": lambda all_: one(all_, "Deployment")["spec"].update(replicas=2),
    "no ConfigMap": lambda all_: _pod(all_)["volumes"][0]["configMap"].update(name="other"),
    "no volume": lambda all_: _gateway(all_)["volumeMounts"][0].update(name="other"),
    "has no key": lambda all_: _gateway(all_)["env"][1]["valueFrom"]["secretKeyRef"].update(key="other"),
    "nothing is mounted": lambda all_: _gateway(all_)["env"][0].update(value="/etc/other.yaml"),
    "may be missing": lambda all_: _gateway(all_)["env"][1]["valueFrom"]["secretKeyRef"].update(optional=True),
    "may run as root": lambda all_: _pod(all_)["securityContext"].update(runAsUser=0),
    "no seccomp": lambda all_: _pod(all_)["securityContext"]["seccompProfile"].update(type="Unconfined"),
    "does not need a token": lambda all_: _pod(all_).update(automountServiceAccountToken=True),
    "write to its root": lambda all_: _gateway(all_)["securityContext"].update(readOnlyRootFilesystem=False),
    "keeps capabilities": lambda all_: _gateway(all_)["securityContext"]["capabilities"].update(drop=["NET_RAW"]),
    "not pinned": lambda all_: _gateway(all_).update(image="millrace:latest"),
}


@pytest.mark.parametrize("told", BREAKAGES)
def test_the_rules_find_what_is_broken(told: str) -> None:
    """Each breakage is told, so that the manifests are not merely whole by rules that see nothing."""
    documents: list[Any] = deepcopy(WHOLE)
    BREAKAGES[told](documents)
    assert [fault for fault in faults(documents, secrets=SECRETS) if told in fault]


def test_pods_are_replaced_before_they_go_and_have_the_time_to_finish() -> None:
    """No pod is missing at a roll-out, and nobody is killed while a stream may live."""
    server = CONFIG["server"]
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert server["drain_timeout_s"] == 600
    assert POD["terminationGracePeriodSeconds"] >= server["drain_delay_s"] + server["drain_timeout_s"] + 15


def test_the_delay_is_longer_than_it_takes_to_be_seen_unready() -> None:
    """Whoever asks /readyz before sending has asked by then."""
    probe = POD["containers"][0]["readinessProbe"]
    seen_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert CONFIG["server"]["drain_delay_s"] > seen_s


def test_liveness_and_readiness_are_asked_of_the_admin_port() -> None:
    """A pod that drains is not ready, and is not to be killed."""
    probes = {name: POD["containers"][0][name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {
        "livenessProbe": {"path": "/healthz", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
    }


def test_the_gateway_takes_the_configuration() -> None:
    """With the one variable that is no optional one; the ports are those of the pod."""
    text = one(BASE, "ConfigMap")["data"]["millrace.yaml"]
    config = parse_config(text, "configmap.yaml", {"MILLRACE_CLIENT_KEY_SHA256": "0" * 64})
    assert not Gateway(config).is_open
    ports = {port["name"]: port["containerPort"] for port in POD["containers"][0]["ports"]}
    assert ports == {"http": config.server.port, "admin": config.server.admin_port}
    assert {provider.kind for provider in config.providers.values()} == {"simulator"}


def test_the_configuration_is_that_of_the_image_with_a_delay() -> None:
    """One thing to know, wherever it runs."""
    image = yaml.safe_load((rendering.DEPLOY / "millrace.yaml").read_text("utf-8"))
    assert image | {"server": image["server"] | {"drain_delay_s": 10}} == CONFIG


def test_a_pod_that_drains_is_still_scraped() -> None:
    """What happens to its last streams is counted, too."""
    spec = one(BASE, "Service", "millrace-admin")["spec"]
    assert (spec["publishNotReadyAddresses"], spec["clusterIP"]) == (True, "None")


def test_the_autoscaler_asks_for_what_the_adapter_makes_of_what_the_gateway_exports() -> None:
    """One name in three places."""
    autoscaler = one(WHOLE, "HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text("utf-8"))["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert name == rule["name"]["as"] == "millrace_streams_active"
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_no_manifest_is_left_out() -> None:
    """Whatever is in the folder is named by a kustomization, and the other way round."""
    for path in (FOLDER, FOLDER / "monitoring"):
        found = {file.name for file in path.glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
        assert {name for name in kustomization(path)["resources"] if name.endswith(".yaml")} == found


def test_the_manifests_are_those_of_the_chart() -> None:
    """If not: ``python -m tests.deploy.rendering``, which needs Helm."""
    assert rendering.SUMS.read_text("utf-8") == rendering.sums()
    assert all((FOLDER / name).read_text("utf-8").startswith(rendering.HEAD) for name in rendering.PARTS)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_kustomize_makes_of_them_what_the_rules_have_seen(tmp_path: Path) -> None:
    """As somebody's own kustomization takes them, from another folder; boards and rules come along."""
    assert KUBECTL
    folder = os.path.relpath(FOLDER, tmp_path.resolve())
    own = {"namespace": "millrace", "resources": [folder], "components": [f"{folder}/monitoring"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    done = subprocess.run(  # noqa: S603, our own
        [KUBECTL, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    made = read(done.stdout)
    assert faults(made, secrets=SECRETS) == []
    assert {item["metadata"]["namespace"] for item in made if item["kind"] != "Namespace"} == {"millrace"}
    boards = {name: text for item in made if item["kind"] == "ConfigMap" for name, text in item["data"].items()}
    del boards["millrace.yaml"]
    assert boards == {path.name: path.read_text("utf-8") for path in (ROOT / "dashboards" / "grafana").glob("*.json")}
    assert one(made, "PrometheusRule")["spec"] == one(WHOLE, "PrometheusRule")["spec"]
