"""Prometheus's own tool, for the tests that need it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")
PROMETHEUS = shutil.which("prometheus")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed (Debian's: prometheus)")


def run(*arguments: str | Path) -> str:
    """Run promtool and return what it said; it must not complain."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)  # noqa: S603, our own
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_expressions(expressions: Sequence[str], folder: Path) -> None:
    """Let promtool parse expressions, each as a recording rule."""
    rules = [{"record": "a:b", "expr": expression, "labels": {"n": str(n)}} for n, expression in enumerate(expressions)]
    path = folder / "expressions.yaml"
    path.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))  # JSON is YAML
    run("check", "rules", path)


def try_rules(tests: list[dict[str, object]], rules: dict[str, str], folder: Path, *, every: str = "1m") -> None:
    """Let promtool try rules, whose texts are given by their names, on made-up series."""
    for name, text in rules.items():
        (folder / name).write_text(text)
    document = {"rule_files": list(rules), "evaluation_interval": every, "tests": tests}
    (folder / "tests.yaml").write_text(json.dumps(document))
    run("test", "rules", folder / "tests.yaml")
