"""What is told of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.machine import PACKAGES, machine, processor, version_of


def test_all_that_a_figure_depends_on_is_there() -> None:
    """On whatever machine this is."""
    found = machine()
    assert found["cores"] >= 1
    assert all(found[name] for name in ("date", "processor", "system", "python", "nginx", *PACKAGES))
    assert version_of("no-such-package-as-this") == "none"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("Model\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_the_processor_has_a_name(text: str, name: str) -> None:
    """And not only the number of its model."""
    assert processor(text) == name


def test_one_without_a_name_is_at_least_of_a_kind() -> None:
    """As on most ARM machines."""
    assert processor("CPU implementer\t: 0x41\n")


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nginx is told to be missing, instead of anything failing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine()
    assert found["revision"] == ""
    assert found["nginx"] == "none"
