"""The Compose files: what they name is there, nothing is open to others, and the images are pinned."""

from __future__ import annotations

import re
import shlex
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

import dashboards
from gateway.config import parse_config
from tests.dashboards.promtool import needs_promtool, run
from tests.deploy.dockerfile import stages

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
NAMES = sorted(SERVICES)
ADDRESSES = dashboards.Addresses(prometheus_url="http://prometheus:9090", admin_address="gateway:8081")

KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "image",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "ulimits",
    "volumes",
}
"""The keys of a service that are used; to use another is to look it up."""


def mounts(name: str) -> dict[str, str]:
    """Return what is mounted into a service, by where."""
    return {target: source for source, target, *_ in (item.split(":") for item in SERVICES[name].get("volumes", []))}


@pytest.mark.parametrize("name", NAMES)
def test_a_service_has_known_keys_and_a_pinned_image(name: str) -> None:
    """A misspelt key is an error of Compose, and ``latest`` is another one every month."""
    service = SERVICES[name]
    assert service.keys() <= KEYS
    assert re.fullmatch(r"millrace:local|[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_open_to_this_machine_alone(name: str) -> None:
    """A port without an address would be open to the network, past most firewalls."""
    ports = SERVICES[name]["ports"]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


@pytest.mark.parametrize("name", NAMES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    """No capabilities, and no way to gain any."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_service_mounts_is_there_and_is_only_read(name: str) -> None:
    """A file that is not there would be made a folder by the engine."""
    for item in SERVICES[name].get("volumes", []):
        source, _, *mode = item.split(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", NAMES)
def test_a_service_waits_for_services_that_there_are(name: str) -> None:
    """And only for the health of one that tells it."""
    needed = SERVICES[name].get("depends_on", [])
    assert set(needed) <= set(NAMES) - {name}
    if isinstance(needed, dict):
        assert needed == {"gateway": {"condition": "service_healthy"}}
        assert stages((DEPLOY / "Dockerfile").read_text("utf-8"))[-1].all_of("HEALTHCHECK")


def test_the_gateway_is_built_from_the_repository() -> None:
    """With the root as its context, where .dockerignore is."""
    build = SERVICES["gateway"]["build"]
    assert (DEPLOY / build["context"]).resolve() == DEPLOY.parent
    assert (DEPLOY.parent / build["dockerfile"]).is_file()


def test_the_gateway_has_a_read_only_root_and_the_time_to_drain() -> None:
    """Compose kills after ten seconds otherwise."""
    service = SERVICES["gateway"]
    drain_s = yaml.safe_load((DEPLOY / "millrace.yaml").read_text("utf-8"))["server"]["drain_timeout_s"]
    assert service["read_only"] is True
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain_s + 15


def test_the_gateway_serves_what_the_image_would_and_shows_itself_to_a_browser() -> None:
    """From outside of a container nobody is on loopback, where no admin key is needed."""
    image = yaml.safe_load((DEPLOY / "millrace.yaml").read_text("utf-8"))
    own = yaml.safe_load((DEPLOY / "compose" / "millrace.yaml").read_text("utf-8"))
    assert own == image | {"server": image["server"] | {"admin_key": "${MILLRACE_ADMIN_KEY}"}}
    assert mounts("gateway") == {"/etc/millrace": "./compose"}


def test_the_gateway_starts_without_any_key_of_a_provider_and_answers_from_the_simulator() -> None:
    """As its keys are known to everybody, no provider must be behind them."""
    environment = SERVICES["gateway"]["environment"]
    assert environment.keys() == {"MILLRACE_ADMIN_KEY", "MILLRACE_CLIENT_KEY_SHA256"}
    assert environment["MILLRACE_ADMIN_KEY"] == "${MILLRACE_ADMIN_KEY:-millrace}"
    hashed = re.fullmatch(
        r"\$\{MILLRACE_CLIENT_KEY_SHA256:-([0-9a-f]{64})\}", environment["MILLRACE_CLIENT_KEY_SHA256"]
    )
    assert hashed
    assert hashed[1] == sha256(b"millrace").hexdigest()
    assert 'client key is "millrace"' in TEXT
    assert 'admin key is "millrace"' in TEXT
    given = {"MILLRACE_CLIENT_KEY_SHA256": hashed[1], "MILLRACE_ADMIN_KEY": "millrace"}
    config = parse_config((DEPLOY / "compose" / "millrace.yaml").read_text("utf-8"), "millrace.yaml", given)
    assert {provider.kind for provider in config.providers.values()} == {"simulator"}
    published = {int(port.rpartition(":")[2]) for port in SERVICES["gateway"]["ports"]}
    assert published == {config.server.port, config.server.admin_port}


def test_providers_are_added_only_behind_a_client_key_of_ones_own() -> None:
    """Compose refuses to start without; the keys themselves are in no file."""
    added = yaml.safe_load((DEPLOY / "compose.providers.yaml").read_text("utf-8"))
    environment: dict[str, Any] = added["services"].pop("gateway")["environment"]
    assert added == {"services": {}}
    for name in ("MILLRACE_CLIENT_KEY_SHA256", "MILLRACE_ADMIN_KEY"):
        assert environment.pop(name).startswith(f"${{{name}:?")
    assert set(environment.values()) == {None}
    config = parse_config("", "millrace.yaml", dict.fromkeys(environment, "sk-fake"))
    assert len(config.providers) == len(environment) == 6


def test_prometheus_and_grafana_get_what_the_gateway_provides() -> None:
    """The small files are the provided ones, but for addresses; the others are mounted from where they are."""
    files = dashboards.files(ADDRESSES)
    own = {"prometheus.yaml": "prometheus/prometheus.yaml", "datasource.yaml": "grafana/provisioning/datasources"}
    for name, provided in own.items():
        text = files[provided if provided in files else f"{provided}/millrace.yaml"]
        assert yaml.safe_load((DEPLOY / "compose" / name).read_text("utf-8")) == yaml.safe_load(text)
    (provider,) = yaml.safe_load(files["grafana/provisioning/dashboards/millrace.yaml"])["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "../dashboards/grafana"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/overview.json"
    assert (DEPLOY.parent / "dashboards" / "grafana" / "overview.json").is_file()


def test_nobody_can_sign_in_to_grafana_with_a_password_that_everybody_knows() -> None:
    """Its own first user is admin, with the password admin."""
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


@needs_promtool
def test_promtool_takes_what_is_mounted_into_prometheus(tmp_path: Path) -> None:
    """The rules lie beside the configuration, where it looks for them."""
    folder = Path("/etc/prometheus")
    for target, source in mounts("prometheus").items():
        if Path(target).parent == folder:
            shutil.copy(DEPLOY / source, tmp_path / Path(target).name)
    arguments = shlex.split(" ".join(SERVICES["prometheus"]["command"]))
    assert f"--config.file={folder}/prometheus.yaml" in arguments
    run("check", "config", tmp_path / "prometheus.yaml")
