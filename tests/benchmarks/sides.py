"""What is measured beside each other: the gateway, nginx, a naive proxy, LiteLLM, and nothing at all.

Each is given one worker, talks to the same upstream over connections that are kept, and buffers nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import yaml

from tests.benchmarks.certificates import Certificates
from tests.benchmarks.pace import Tool, Upstream
from tests.benchmarks.processes import Process, free_port, is_listening, is_ready, started, wait_for

ROOT: Final = Path(__file__).parents[2]
KEY: Final = "benchmark-key-0123456789"
PROMPT: Final = "Write a poem about the stars, and take your time over it."

GATEWAY: Final = "gateway"
NGINX: Final = "nginx"
NAIVE: Final = "naive aiohttp"
LITELLM: Final = "LiteLLM"
DIRECT: Final = "direct"

OPENAI: Final = ("openai-compatible", "/v1")
ANTHROPIC: Final = ("anthropic", "")
GEMINI: Final = ("google", "")
KINDS: Final = {"openai": OPENAI, "anthropic": ANTHROPIC, "gemini": GEMINI}
"""By model: which kind of provider answers for it, and the path of its base URL."""


@dataclass(frozen=True, slots=True)
class Side:
    """One that is loaded. Without a process it is the upstream itself."""

    name: str
    port: int
    process: Process | None = None
    model: str = "openai"

    def request(self, *, stream: bool = True, prompt: str = PROMPT) -> bytes:
        """Return what its clients say."""
        body: dict[str, Any] = {"model": self.model, "stream": stream, "max_tokens": 1000}
        if stream:
            body["stream_options"] = {"include_usage": True}
        body["messages"] = [{"role": "user", "content": prompt}]
        data = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the upstream is reached."""

    upstream: Upstream
    port: int
    certificates: Certificates | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Sides:
    """Starts them, in a folder of their own."""

    tool: Tool
    folder: Path
    event_loop: str = "auto"

    @contextmanager
    def gateway(self, way: Way, *, workers: int = 1) -> Iterator[Side]:
        """Run the gateway with its default chain; a model for each wire."""
        port, admin_port = free_port(), free_port()
        command, environ = self.gateway_command(way, port, admin_port, workers=workers)
        with started(GATEWAY, command, self.folder, environ) as process:
            wait_for(process, lambda: is_ready(f"http://127.0.0.1:{admin_port}/readyz"))
            yield Side(GATEWAY, port, process)

    def gateway_command(
        self, way: Way, port: int, admin_port: int, *, workers: int = 1
    ) -> tuple[list[str | Path], dict[str, str]]:
        """Write its configuration, and return the command and the environment it is started with."""
        config = self.folder / "millrace.yaml"
        config.write_text(yaml.safe_dump(gateway_config(way.url, port, admin_port, workers, self.event_loop)))
        command = self.tool.tethered([sys.executable, "-m", "gateway", "serve", "--config", config])
        trusted = {"SSL_CERT_FILE": str(way.certificates.authority)} if way.certificates else {}
        return command, {"PYTHONPATH": str(ROOT), **trusted}

    @contextmanager
    def nginx(self, way: Way) -> Iterator[Side]:
        """Run nginx as a proxy that reads nothing of what it passes on."""
        port = free_port()
        with self._nginx(NGINX, nginx_proxy(port, way)) as process:
            wait_for(process, lambda: is_listening(port))
            yield Side(NGINX, port, process)

    @contextmanager
    def tls(self, upstream: Upstream, certificates: Certificates) -> Iterator[Way]:
        """Put TLS in front of the upstream, by an nginx that is measured by nobody."""
        port = free_port()
        with self._nginx("tls", nginx_tls(port, upstream.port, certificates)) as process:
            wait_for(process, lambda: is_listening(port))
            yield Way(upstream=upstream, port=port, certificates=certificates)

    @contextmanager
    def naive(self, way: Way) -> Iterator[Side]:
        """Run the smallest proxy that can be written with aiohttp."""
        port = free_port()
        command = self.tool.tethered(
            [sys.executable, "-m", "tests.benchmarks.naive_proxy", str(port), str(way.upstream.port)]
        )
        with started("naive", command, self.folder, {"PYTHONPATH": str(ROOT)}) as process:
            wait_for(process, lambda: is_listening(port))
            yield Side(NAIVE, port, process)

    @contextmanager
    def litellm(self, way: Way, environment: Path) -> Iterator[Side]:
        """Run LiteLLM's proxy out of an environment of its own, with one worker and nothing to log to."""
        port, config = free_port(), self.folder / "litellm.yaml"
        config.write_text(yaml.safe_dump(litellm_config(f"{way.url}/v1")))
        words = ("--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        command = self.tool.tethered([environment.absolute() / "bin" / "litellm", *words])
        environ = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with started("litellm", command, self.folder, environ) as process:
            wait_for(process, lambda: is_ready(f"http://127.0.0.1:{port}/health/liveliness"), every_s=0.2)
            yield Side(LITELLM, port, process)

    @contextmanager
    def _nginx(self, name: str, server: str) -> Iterator[Process]:
        config = self.folder / f"{name}.conf"
        config.write_text(nginx_config(self.folder, name, server))
        command = self.tool.tethered(["nginx", "-p", self.folder, "-c", config])
        with started(name, command, self.folder) as process:
            yield process


def gateway_config(url: str, port: int, admin_port: int, workers: int, event_loop: str = "auto") -> dict[str, Any]:
    """Return the configuration: the whole chain, a client key, and nothing logged for each stream."""
    return {
        "server": {
            "host": "127.0.0.1",
            "port": port,
            "admin_host": "127.0.0.1",
            "admin_port": admin_port,
            "workers": workers,
            "event_loop": event_loop,
            "drain_timeout_s": 0,
        },
        "providers": {
            name: {"kind": kind, "base_url": url + path, "api_key": "none"} for name, (kind, path) in KINDS.items()
        },
        "models": {name: {"targets": [f"{name}/bench"]} for name in KINDS},
        "middleware": [
            {"use": "middleware.observe.Observe"},
            {"use": "middleware.auth.Auth", "keys": [{"id": "bench", "sha256": sha256(KEY.encode()).hexdigest()}]},
            {"use": "middleware.fallback.Fallback"},
            {"use": "middleware.resume.Resume"},
        ],
        "telemetry": {"log_level": "warning"},
    }


def litellm_config(base_url: str) -> dict[str, Any]:
    """Return its configuration: one model at the upstream, no telemetry, the client's key as its only one."""
    parameters = {"model": "openai/bench", "api_base": base_url, "api_key": "none"}
    return {
        "model_list": [{"model_name": "openai", "litellm_params": parameters}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": KEY},
    }


def nginx_config(folder: Path, name: str, server: str) -> str:
    """Return a whole configuration around a server; all that it might write is in the folder."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {folder}/{name}-{kind};" for kind in kinds)
    return (
        f"worker_processes 1;\nworker_rlimit_nofile 20000;\ndaemon off;\npid {folder}/{name}.pid;\nerror_log stderr;\n"
        "events { worker_connections 10000; }\n"
        f"http {{\n  access_log off;\n  tcp_nodelay on;\n{temporary}\n{server}}}\n"
    )


_PROXY: Final = (
    '      proxy_http_version 1.1;\n      proxy_set_header Connection "";\n      proxy_buffering off;\n'
    "      client_max_body_size 16m;\n      client_body_buffer_size 1m;\n"
)
_MANY: Final = 100_000_000


def nginx_proxy(port: int, way: Way) -> str:
    """Return an unbuffered proxy; of a TLS upstream it checks the certificate, as the gateway does."""
    tls = way.certificates and (
        f"      proxy_ssl_verify on;\n      proxy_ssl_trusted_certificate {way.certificates.authority};\n"
        "      proxy_ssl_name localhost;\n      proxy_ssl_server_name on;\n"
    )
    return (
        f"  upstream up {{ server 127.0.0.1:{way.port}; keepalive 2048; keepalive_requests {_MANY}; }}\n"
        f"  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    keepalive_requests {_MANY};\n"
        f"    location / {{\n      proxy_pass {'https' if tls else 'http'}://up;\n{tls or ''}{_PROXY}    }}\n  }}\n"
    )


def nginx_tls(port: int, upstream_port: int, certificates: Certificates) -> str:
    """Return a server that speaks TLS, and passes what it hears to the upstream."""
    return (
        f"  upstream up {{ server 127.0.0.1:{upstream_port}; keepalive 2048; keepalive_requests {_MANY}; }}\n"
        f"  server {{\n    listen 127.0.0.1:{port} ssl backlog=4096;\n    keepalive_requests {_MANY};\n"
        f"    ssl_certificate {certificates.certificate};\n    ssl_certificate_key {certificates.key};\n"
        f"    location / {{\n      proxy_pass http://up;\n{_PROXY}    }}\n  }}\n"
    )


def has_nginx() -> bool:
    """Return whether there is an nginx to compare with."""
    return shutil.which("nginx") is not None


def has_nginx_tls() -> bool:
    """Return whether it speaks TLS."""
    if not has_nginx():
        return False
    told = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=False).stderr
    return "http_ssl_module" in told
