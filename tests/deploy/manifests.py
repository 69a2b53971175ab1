"""What must hold of Kubernetes' objects, told without a cluster: their shape, and that what they name is there.

``faults`` looks at a set of documents as a whole. The shapes know the fields that are used here and no others, so that
a misspelt one is found; to use another field is to add it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

Document = Mapping[str, Any]

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # boards are long

ANY: Final = object()
TEXTS: Final = {"*": str}

_SELECTOR: Final = {"matchLabels!": TEXTS}
_PORT: Final = {"name!": str, "port!": int, "targetPort!": (str, int), "appProtocol": str, "protocol": str}
_PROBE: Final = {
    "httpGet!": {"path!": str, "port!": (str, int)},
    "periodSeconds!": int,
    "timeoutSeconds": int,
    "failureThreshold!": int,
}
_KEY: Final = {"name!": str, "key!": str, "optional": bool}
_CONTAINER: Final = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": str,
    "args": [str],
    "env": [
        {"name!": str, "value": str, "valueFrom": {"secretKeyRef!": {"name!": str, "key!": str, "optional": bool}}}
    ],
    "ports!": [{"name!": str, "containerPort!": int, "protocol": str}],
    "startupProbe!": _PROBE,
    "livenessProbe!": _PROBE,
    "readinessProbe!": _PROBE,
    "resources!": {"requests!": {"cpu!": str, "memory!": str}, "limits!": {"memory!": str}},
    "securityContext!": {
        "allowPrivilegeEscalation!": bool,
        "readOnlyRootFilesystem!": bool,
        "capabilities!": {"drop!": [str]},
    },
    "volumeMounts!": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
_POD: Final = {
    "terminationGracePeriodSeconds!": int,
    "automountServiceAccountToken!": bool,
    "enableServiceLinks": bool,
    "securityContext!": {
        "runAsNonRoot!": bool,
        "runAsUser!": int,
        "runAsGroup!": int,
        "seccompProfile!": {"type!": str},
    },
    "containers!": [_CONTAINER],
    "volumes!": [{"name!": str, "configMap!": {"name!": str}}],
    "topologySpreadConstraints": [
        {"maxSkew!": int, "topologyKey!": str, "whenUnsatisfiable!": str, "labelSelector!": _SELECTOR}
    ],
    "imagePullSecrets": [{"name!": str}],
    "priorityClassName": str,
    "nodeSelector": TEXTS,
    "tolerations": [ANY],
    "affinity": ANY,
}
_PEER: Final = {
    "namespaceSelector": _SELECTOR,
    "podSelector": _SELECTOR,
    "ipBlock": {"cidr!": str, "except": [str]},
}
_POLICY_PORT: Final = {"port!": (str, int), "protocol!": str}
_SCALING: Final = {
    "stabilizationWindowSeconds!": int,
    "policies!": [{"type!": str, "value!": int, "periodSeconds!": int}],
}
_METRIC: Final = {
    "type!": str,
    "pods!": {"metric!": {"name!": str}, "target!": {"type!": str, "averageValue!": str}},
}
_RULE_GROUP: Final = {"name!": str, "interval": str, "rules!": [ANY]}

SHAPES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "Namespace": ("v1", {}),
    "ConfigMap": ("v1", {"data!": TEXTS}),
    "Service": (
        "v1",
        {
            "spec!": {
                "type!": str,
                "clusterIP": str,
                "publishNotReadyAddresses": bool,
                "selector!": TEXTS,
                "ports!": [_PORT],
            }
        },
    ),
    "Deployment": (
        "apps/v1",
        {
            "spec!": {
                "replicas": int,
                "strategy!": {"type!": str, "rollingUpdate!": {"maxSurge!": (str, int), "maxUnavailable!": int}},
                "minReadySeconds": int,
                "selector!": _SELECTOR,
                "template!": {"metadata!": {"labels!": TEXTS, "annotations": TEXTS}, "spec!": _POD},
            }
        },
    ),
    "PodDisruptionBudget": ("policy/v1", {"spec!": {"maxUnavailable!": (int, str), "selector!": _SELECTOR}}),
    "HorizontalPodAutoscaler": (
        "autoscaling/v2",
        {
            "spec!": {
                "scaleTargetRef!": {"apiVersion!": str, "kind!": str, "name!": str},
                "minReplicas!": int,
                "maxReplicas!": int,
                "metrics!": [_METRIC],
                "behavior": {"scaleUp!": _SCALING, "scaleDown!": _SCALING},
            }
        },
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        {
            "spec!": {
                "podSelector!": _SELECTOR,
                "policyTypes!": [str],
                "ingress!": [{"ports!": [_POLICY_PORT], "from": [_PEER]}],
                "egress!": [{"ports!": [_POLICY_PORT], "to": [_PEER]}],
            }
        },
    ),
    "ServiceMonitor": (
        "monitoring.coreos.com/v1",
        {
            "spec!": {
                "jobLabel!": str,
                "selector!": _SELECTOR,
                "endpoints!": [{"port!": str, "path!": str, "interval!": str}],
            }
        },
    ),
    "PrometheusRule": ("monitoring.coreos.com/v1", {"spec!": {"groups!": [_RULE_GROUP]}}),
}
_METADATA: Final = {"name!": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS}
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def read(*texts: str) -> list[Document]:
    """Return the documents in texts."""
    return [document for text in texts for document in yaml.load_all(text, _LOADER) if document]


def one(documents: Sequence[Document], kind: str, name: str = "") -> Any:
    """Return the one document of a kind, and of a name if several may be of it."""
    (found,) = (item for item in documents if item["kind"] == kind and name in ("", item["metadata"]["name"]))
    return found


def faults(documents: Sequence[Document], *, secrets: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what is wrong, a sentence each. ``secrets`` are those that are there, with their keys."""
    shaped = [fault for document in documents for fault in _misshapen(document)]
    return shaped or [*_repeated(documents), *_unresolved(documents, secrets), *_unsafe(documents)]


def _misshapen(document: Document) -> Iterator[str]:
    kind = str(document.get("kind"))
    if kind not in SHAPES:
        yield f"{kind}: not a kind that is known here"
        return
    version, shape = SHAPES[kind]
    whole = {"apiVersion!": str, "kind!": str, "metadata!": _METADATA, **shape}
    yield from _differences(document, whole, kind)
    if document.get("apiVersion") != version:
        yield f"{kind}: apiVersion is {document.get('apiVersion')}, not {version}"
    name = document.get("metadata", {}).get("name", "")
    if not _NAME.fullmatch(name):
        yield f"{kind}: {name!r} is no name"


def _differences(value: object, shape: Any, where: str) -> Iterator[str]:
    if shape is ANY:
        return
    if isinstance(shape, list) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _differences(item, shape[0], f"{where}[{index}]")
    elif isinstance(shape, Mapping) and isinstance(value, Mapping):
        yield from _mapping_differences(value, shape, where)
    elif isinstance(shape, list | Mapping) or not isinstance(value, shape):
        yield f"{where}: {type(value).__name__} is not what belongs there"
    elif isinstance(value, bool) and shape is not bool:
        yield f"{where}: a boolean is not what belongs there"


def _mapping_differences(value: Mapping[Any, object], shape: Mapping[str, Any], where: str) -> Iterator[str]:
    fields = {key.removesuffix("!"): inner for key, inner in shape.items()}
    for key, item in value.items():
        if key in fields or "*" in fields:
            yield from _differences(item, fields.get(key, fields.get("*")), f"{where}.{key}")
        else:
            yield f"{where}.{key}: no such field"
    for key in shape:
        if key.endswith("!") and key[:-1] not in value:
            yield f"{where}.{key[:-1]}: missing"


def _repeated(documents: Sequence[Document]) -> Iterator[str]:
    seen = set()
    for document in documents:
        named = document["kind"], document["metadata"]["name"]
        if named in seen:
            yield f"{named[0]} {named[1]}: there are two"
        seen.add(named)


def _unresolved(documents: Sequence[Document], secrets: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "Deployment":
            yield from _unresolved_in_deployment(document, documents, secrets)
        elif document["kind"] in _RESOLVERS:
            yield from _RESOLVERS[document["kind"]](document, documents)


def _of_kind(documents: Sequence[Document], kind: str) -> list[Document]:
    return [item for item in documents if item["kind"] == kind]


def _unresolved_in_service(service: Document, documents: Sequence[Document]) -> Iterator[str]:
    deployments = _of_kind(documents, "Deployment")
    yield from _unselected(service, service["spec"]["selector"], deployments)
    for port in service["spec"]["ports"]:
        yield from _unknown_port(service, port["targetPort"], _ports(deployments))


def _unresolved_in_budget(budget: Document, documents: Sequence[Document]) -> Iterator[str]:
    yield from _unselected(budget, budget["spec"]["selector"]["matchLabels"], _of_kind(documents, "Deployment"))


def _unresolved_in_policy(policy: Document, documents: Sequence[Document]) -> Iterator[str]:
    deployments = _of_kind(documents, "Deployment")
    yield from _unselected(policy, policy["spec"]["podSelector"]["matchLabels"], deployments)
    for port in (port for rule in policy["spec"]["ingress"] for port in rule["ports"]):
        yield from _unknown_port(policy, port["port"], _ports(deployments))


def _unresolved_in_autoscaler(autoscaler: Document, documents: Sequence[Document]) -> Iterator[str]:
    target, deployments = autoscaler["spec"]["scaleTargetRef"], _of_kind(documents, "Deployment")
    if not any(_reference(item) == target for item in deployments):
        yield f"HorizontalPodAutoscaler: there is no {target['kind']} {target['name']}"
    if any("replicas" in item["spec"] for item in deployments):
        yield "Deployment: replicas are given, though an autoscaler decides"


def _unresolved_in_monitor(monitor: Document, documents: Sequence[Document]) -> Iterator[str]:
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [s for s in _of_kind(documents, "Service") if wanted <= s["metadata"].get("labels", {}).items()]
    if len(found) != 1:
        yield f"ServiceMonitor: it selects {len(found)} Services"
    names = {port["name"] for item in found for port in item["spec"]["ports"]}
    for endpoint in monitor["spec"]["endpoints"]:
        yield from _unknown_port(monitor, endpoint["port"], names)


_RESOLVERS: Final[Mapping[str, Callable[[Document, Sequence[Document]], Iterator[str]]]] = {
    "Service": _unresolved_in_service,
    "PodDisruptionBudget": _unresolved_in_budget,
    "NetworkPolicy": _unresolved_in_policy,
    "HorizontalPodAutoscaler": _unresolved_in_autoscaler,
    "ServiceMonitor": _unresolved_in_monitor,
}


def _reference(document: Document) -> Document:
    return {"apiVersion": document["apiVersion"], "kind": document["kind"], "name": document["metadata"]["name"]}


def _unselected(document: Document, selector: Mapping[str, str], deployments: Sequence[Document]) -> Iterator[str]:
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in deployments]
    if not selector or not any(selector.items() <= labels.items() for labels in pods):
        yield f"{document['kind']} {document['metadata']['name']}: its selector fits no pod"


def _unknown_port(document: Document, port: str | int, known: set[str | int]) -> Iterator[str]:
    if port not in known:
        yield f"{document['kind']} {document['metadata']['name']}: there is no port {port}"


def _ports(deployments: Sequence[Document]) -> set[str | int]:
    containers = [container for item in deployments for container in item["spec"]["template"]["spec"]["containers"]]
    ports = [port for container in containers for port in container["ports"]]
    return {port["name"] for port in ports} | {port["containerPort"] for port in ports}


def _unresolved_in_deployment(
    deployment: Document, documents: Sequence[Document], secrets: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    spec = deployment["spec"]
    pod = spec["template"]["spec"]
    maps = {item["metadata"]["name"]: item["data"] for item in documents if item["kind"] == "ConfigMap"}
    yield from _unselected(deployment, spec["selector"]["matchLabels"], [deployment])
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"]}
    yield from (f"Deployment: there is no ConfigMap {name}" for name in volumes.values() if name not in maps)
    for constraint in pod.get("topologySpreadConstraints", []):
        yield from _unselected(deployment, constraint["labelSelector"]["matchLabels"], [deployment])
    for container in pod["containers"]:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            yield from _unknown_port(deployment, container[probe]["httpGet"]["port"], _ports([deployment]))
        mounted: dict[str, str] = {}
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                yield f"Deployment: there is no volume {mount['name']}"
            texts = maps.get(volumes.get(mount["name"], ""), {})
            mounted |= {f"{mount['mountPath']}/{name}": text for name, text in texts.items()}
        yield from _unresolved_variables(container["env"], mounted, secrets)


def _unresolved_variables(
    env: Sequence[Document], mounted: Mapping[str, str], secrets: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    for variable in env:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference and reference["key"] not in secrets.get(reference["name"], ()):
            yield f"{variable['name']}: Secret {reference['name']} has no key {reference['key']}"
    path = next((variable["value"] for variable in env if variable["name"] == "MILLRACE_CONFIG"), "")
    if path not in mounted:
        yield f"MILLRACE_CONFIG: nothing is mounted at {path or 'no path'}"
    needed = set(re.findall(r"\$\{(\w+)\}", mounted.get(path, "")))
    have = {v["name"] for v in env if not v.get("valueFrom", {}).get("secretKeyRef", {}).get("optional", False)}
    yield from (f"{name}: the configuration needs it, and it may be missing" for name in sorted(needed - have))


def _unsafe(documents: Sequence[Document]) -> Iterator[str]:
    """Yield what the Pod Security Standard "restricted" forbids, and more that is not needed."""
    for pod in (item["spec"]["template"]["spec"] for item in documents if item["kind"] == "Deployment"):
        context = pod["securityContext"]
        if context["runAsNonRoot"] is not True or context["runAsUser"] < 1000 or context["runAsGroup"] < 1000:
            yield "Deployment: it may run as root, or as a user of the system"
        if context["seccompProfile"]["type"] != "RuntimeDefault":
            yield "Deployment: no seccomp profile"
        if pod["automountServiceAccountToken"]:
            yield "Deployment: it does not need a token of the cluster"
        for container in pod["containers"]:
            own = container["securityContext"]
            if own["allowPrivilegeEscalation"] or not own["readOnlyRootFilesystem"]:
                yield "Deployment: it may gain privileges or write to its root"
            if own["capabilities"]["drop"] != ["ALL"]:
                yield "Deployment: it keeps capabilities"
            if re.search(r":latest$|^[^:@]+$", container["image"]):
                yield "Deployment: its image is not pinned"
