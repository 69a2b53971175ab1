"""On which machine, with what, and of which revision something was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.sides import ROOT, has_nginx

PACKAGES: Final = ("aiohttp", "msgspec", "uvloop")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Return what there is to know of it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "processor": processor(Path("/proc/cpuinfo").read_text(errors="replace")),
        "cores": cores(),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        **{name: version_of(name) for name in PACKAGES},
        "nginx": _nginx(),
    }


def processor(text: str) -> str:
    """Return the name of the processor out of ``/proc/cpuinfo``."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "cpu model"}:
            return value.strip()
    return platform.machine()


def revision() -> str:
    """Return the revision of the repository, with a mark if something in it was changed since; empty outside of one."""
    found = _told(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"])
    return found.splitlines()[0] if found else ""


def version_of(package: str) -> str:
    """Return the version of an installed package, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _nginx() -> str:
    return _told(["nginx", "-v"]).rpartition("/")[2] if has_nginx() else "none"


def _told(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else (done.stdout or done.stderr).strip()
