"""The image, as far as it can be told from its Dockerfile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import faults, stages

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
BUILD, FINAL = stages(TEXT)


def test_the_dockerfile_is_a_good_one() -> None:
    """Pinned, two stages, nobody's root, no shell between signals and the gateway."""
    assert faults(TEXT) == []


BREAKAGES = {
    "only one stage": (r"\nFROM \$\{PYTHON\}\n", "\n"),
    "is not pinned": ("python:3.11-slim-bookworm\n", "python:latest\n"),
    "FORM is no instruction": (r"EXPOSE", "FORM"),
    "ADD does more": (r"COPY gateway", "ADD gateway"),
    "a secret would stay": (r"ENV PATH", "ENV OPENAI_API_KEY=sk-1 PATH"),
    "ENTRYPOINT runs a shell": (r'\["millrace"\]', "millrace"),
    "there is no such stage": (r"--from=build", "--from=builder"),
    "recommended packages": (r"WORKDIR /src", "RUN apt-get install x && rm -rf /var/lib/apt/lists/*"),
    "leaves its lists": (r"WORKDIR /src", "RUN apt-get install --no-install-recommends x"),
    "come out the same": (r"WORKDIR /src", "RUN curl https://example.org | sh"),
    "not checked against hashes": (r"--require-hashes -r build.lock", "-r build.lock"),
    "has no USER": (r"USER .*\n", ""),
    "has no HEALTHCHECK": (r"HEALTHCHECK .*\n.*\n", ""),
    "neither root nor": (r"USER .*", "USER root"),
    "takes nothing from": (r"COPY --from=.*\n", ""),
    "tools to build with": (r"STOPSIGNAL", "RUN apt-get install gcc\nSTOPSIGNAL"),
    "not stopped by SIGTERM": (r"STOPSIGNAL .*", "STOPSIGNAL SIGKILL"),
}


@pytest.mark.parametrize("told", BREAKAGES)
def test_the_rules_find_what_is_broken(told: str) -> None:
    """Each breakage is told."""
    broken = re.sub(*BREAKAGES[told], TEXT)
    assert broken != TEXT
    assert [fault for fault in faults(broken) if told in fault]


def test_it_serves_with_the_configuration_that_is_mounted() -> None:
    """Without a word more; and another command of millrace can be given instead."""
    assert FINAL.last_of("ENTRYPOINT").words == ["millrace"]
    assert FINAL.last_of("CMD").words == ["serve"]
    assert FINAL.env["MILLRACE_CONFIG"] == "/etc/millrace/millrace.yaml"
    assert any(item.words == ["deploy/millrace.yaml", FINAL.env["MILLRACE_CONFIG"]] for item in FINAL.all_of("COPY"))


def test_it_has_a_python_that_the_package_takes() -> None:
    """The locks are made for it."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {BUILD.base, FINAL.base} == {"python:3.11-slim-bookworm"}
    assert package["requires-python"] == ">=3.11"


def test_all_that_is_copied_is_there_and_reaches_the_builder() -> None:
    """What .dockerignore keeps away cannot be copied; what it lets through is copied."""
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    passed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        word
        for stage in (BUILD, FINAL)
        for item in stage.all_of("COPY")
        if "--from=" not in item.value
        for word in item.words[:-1]
    }
    assert "*" in ignore
    assert copied == passed
    assert all((ROOT / name).exists() for name in copied)


def test_the_build_backend_is_locked() -> None:
    """Else a build would run code that nobody has looked at."""
    lock = (ROOT / "deploy" / "build.lock").read_text("utf-8")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    for requirement in wanted:
        assert re.search(rf"^{re.split(r'[<>=]', requirement)[0]}==", lock, re.MULTILINE)
    pins = re.findall(r"^\S+==", lock, re.MULTILINE)
    assert len(re.findall(r"^\S+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)) == len(pins)
