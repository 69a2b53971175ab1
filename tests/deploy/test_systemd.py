"""The unit of systemd, by what systemd itself says of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from gateway.config import ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "millrace.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (Debian's: systemd)")


def directives() -> dict[str, list[str]]:
    """Return the values of each directive."""
    found = defaultdict(list)
    for line in UNIT.read_text("utf-8").splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found[name].append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    assert ANALYZE
    return subprocess.run(  # noqa: S603, our own
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that there is."""
    text = UNIT.read_text("utf-8")
    assert "ExecStart=/opt/millrace/bin/millrace serve\n" in text
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/millrace/bin/millrace", sys.executable), "utf-8")
    return path


@needs_systemd
def test_systemd_takes_the_unit(unit: Path) -> None:
    """It knows every directive and value; what it says of other units is not our concern."""
    told = analyze("verify", unit).stderr.splitlines()
    assert [line for line in told if unit.name in line] == []


@needs_systemd
def test_systemd_tells_of_a_directive_that_it_does_not_know(unit: Path) -> None:
    """So that the test above sees something."""
    unit.write_text(unit.read_text("utf-8").replace("KillMode=", "KilMode="), "utf-8")
    told = analyze("verify", unit).stderr.splitlines()
    assert [line for line in told if unit.name in line and "KilMode" in line]


@needs_systemd
def test_systemd_finds_the_service_well_shut_in(unit: Path) -> None:
    """At most 2.5 points of exposure, where a service without any hardening has 9.6."""
    done = analyze("security", "--offline=true", "--threshold=25", "--no-pager", unit)
    if "offline" in done.stderr:
        pytest.skip(f"systemd-analyze has no offline check here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout[-500:]


def test_it_drains_reloads_and_comes_back() -> None:
    """SIGTERM to the supervisor alone, with the time that a drain may take; SIGHUP reloads."""
    found = directives()
    assert found["Type"] == ["exec"]
    assert found["KillMode"] == ["mixed"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == ["2"]
    longest_s = ServerConfig().drain_timeout_s
    kubernetes = yaml.safe_load((DEPLOY / "kubernetes" / "deployment.yaml").read_text("utf-8"))
    assert int(found["TimeoutStopSec"][0]) >= longest_s + 15
    assert int(found["TimeoutStopSec"][0]) == kubernetes["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_no_secret_is_in_the_unit() -> None:
    """Anybody may read it; the keys are in a file that only root reads."""
    found = directives()
    assert found["EnvironmentFile"] == ["-/etc/millrace/environment"]
    assert found["Environment"] == ["MILLRACE_CONFIG=/etc/millrace/millrace.yaml PYTHONDONTWRITEBYTECODE=1"]


def test_it_runs_as_nobody_in_particular_and_writes_nowhere() -> None:
    """The parts that matter most, whatever systemd's points say."""
    found = directives()
    assert found["DynamicUser"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
