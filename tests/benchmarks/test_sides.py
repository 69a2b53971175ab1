"""What each side is told fits what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest
import yaml

from gateway.config import parse_config
from tests.benchmarks.certificates import Certificates, make_certificates
from tests.benchmarks.pace import Upstream
from tests.benchmarks.sides import (
    KINDS,
    PROMPT,
    Side,
    Way,
    gateway_config,
    has_nginx,
    has_nginx_tls,
    litellm_config,
    nginx_config,
    nginx_proxy,
    nginx_tls,
)

NOBODY = cast("Upstream", None)


def test_a_request_is_as_long_as_it_says() -> None:
    """And asks what was wanted."""
    head, _, body = Side("gateway", 1234, model="gemini").request(stream=False, prompt="¿Qué?").partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    found = json.loads(body)
    assert (found["model"], found["stream"], found["messages"][0]["content"]) == ("gemini", False, "¿Qué?")
    assert "stream_options" not in found
    streamed = json.loads(Side("gateway", 1234).request().partition(b"\r\n\r\n")[2])
    assert streamed["stream"] is True
    assert streamed["stream_options"] == {"include_usage": True}
    assert streamed["messages"][0]["content"] == PROMPT


def test_the_gateways_configuration_is_one() -> None:
    """The whole chain, and a model for each wire."""
    text = yaml.safe_dump(gateway_config("http://127.0.0.1:9", 8080, 8081, 2, "asyncio"))
    config = parse_config(text, "millrace.yaml", {})
    assert (config.server.workers, config.server.event_loop) == (2, "asyncio")
    assert set(config.models) == set(KINDS)
    assert [one.use.rpartition(".")[2] for one in config.middleware] == ["Observe", "Auth", "Fallback", "Resume"]


def test_litellms_has_the_same_upstream() -> None:
    """And the model that its side asks for."""
    (model,) = litellm_config("http://127.0.0.1:9/v1")["model_list"]
    assert model["model_name"] == Side("LiteLLM", 1).model
    assert model["litellm_params"]["api_base"] == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("is_tls", [False, True])
def test_nginx_takes_its_configuration(tmp_path: Path, *, is_tls: bool) -> None:
    """As a proxy, and as what puts TLS in front."""
    if not has_nginx() or (is_tls and not (has_nginx_tls() and shutil.which("openssl"))):
        pytest.skip("there is no nginx here, or it or we have no TLS")
    certificates = make_certificates(tmp_path) if is_tls else None
    servers = [nginx_proxy(1025, Way(upstream=NOBODY, port=1026, certificates=certificates))]
    if certificates:
        servers.append(nginx_tls(1027, 1028, certificates))
    for number, server in enumerate(servers):
        config = tmp_path / f"{number}.conf"
        config.write_text(nginx_config(tmp_path, str(number), server))
        done = subprocess.run(
            ["nginx", "-t", "-p", tmp_path, "-c", config], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_way_with_certificates_is_https() -> None:
    """Nothing else is."""
    certificates = Certificates(Path("a"), Path("c"), Path("k"))
    assert Way(upstream=NOBODY, port=1).url == "http://127.0.0.1:1"
    assert Way(upstream=NOBODY, port=1, certificates=certificates).url == "https://127.0.0.1:1"
