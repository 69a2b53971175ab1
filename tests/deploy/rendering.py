"""The plain manifests are the chart, rendered once: ``python -m tests.deploy.rendering`` does it, and needs Helm.

What they were rendered from is noted beside them, so that without Helm, too, a test can tell when they are out of date.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
CHART: Final = DEPLOY / "helm" / "millrace"
MANIFESTS: Final = DEPLOY / "kubernetes"
SUMS: Final = MANIFESTS / "chart.sha256"
HELM: Final = shutil.which("helm")
KUBERNETES: Final = "1.30.0"

HEAD: Final = "# The chart in deploy/helm, rendered. Change it there, or patch this in a kustomization of your own.\n"
OF_HELM: Final = re.compile(
    r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n"
    r"|^ *annotations:\n *checksum/config: .*\n"
    r"|^# Source: .*\n",
    re.MULTILINE,
)
"""What only Helm needs. The plain Deployment does not know its configuration's checksum, which would not change."""

PARTS: Final = {
    "configmap.yaml": (),
    "deployment.yaml": (),
    "networkpolicy.yaml": (),
    "poddisruptionbudget.yaml": (),
    "service.yaml": (),
    "monitoring/horizontalpodautoscaler.yaml": ("autoscaling.enabled=true",),
    "monitoring/servicemonitor.yaml": ("serviceMonitor.enabled=true",),
}
"""The files, each made of the template of its name, with what is switched on for it."""


def template(*arguments: str, switches: Sequence[str] = (), release: str = "millrace") -> str:
    """Return what Helm makes of the chart; raises ``CalledProcessError`` when it cannot. ``switches`` are in JSON."""
    assert HELM
    options = [option for switch in switches for option in ("--set-json", switch)]
    done = subprocess.run(  # noqa: S603, our own
        [HELM, "template", release, str(CHART), "--kube-version", KUBERNETES, *options, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def rendered() -> dict[str, str]:
    """Return the plain manifests as they should be, by their paths."""
    made = {}
    for name, switches in PARTS.items():
        text = template("--show-only", f"templates/{Path(name).name}", switches=switches)
        made[name] = HEAD + OF_HELM.sub("", text).removeprefix("---\n")
    return made


def sums() -> str:
    """Return the state of the chart and of what was made of it, as ``sha256sum`` writes it."""
    paths = [CHART / "Chart.yaml", CHART / "values.yaml", CHART / "templates" / "_helpers.tpl"]
    paths += [CHART / "templates" / Path(name).name for name in PARTS] + [MANIFESTS / name for name in PARTS]
    noted = [(sha256(path.read_bytes()).hexdigest(), os.path.relpath(path, MANIFESTS)) for path in paths]
    return "".join(f"{digest}  {path}\n" for digest, path in noted)


if __name__ == "__main__":
    for _name, _text in rendered().items():
        (MANIFESTS / _name).write_text(_text, "utf-8")
    SUMS.write_text(sums(), "utf-8")
