from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import (
    DEFAULT_MIDDLEWARE,
    Config,
    MiddlewareConfig,
    ModelConfig,
    Pattern,
    ProviderConfig,
    Range,
    Secret,
    ServerConfig,
    SloConfig,
    TelemetryConfig,
    build_options,
    find_config,
    load_config,
    parse_config,
)
from gateway.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CANARY = "swordfish"
ENVIRON = {"OPENAI_API_KEY": CANARY, "TOKEN": "t0ken", "PORT": "9000"}
DIGEST = "0123456789abcdef" * 4

# Every key there is, each on a line of its own, so that any line can be broken by itself.
WHOLE = f"""\
server:
  host: 0.0.0.0
  port: ${{PORT}}
  admin_host: "::1"
  admin_port: 9001
  workers: 4
  max_body_bytes: 1_000
  drain_timeout_s: 0
  cors_origins: [https://Example.org, "http://localhost:5173"]
  heartbeat_s: 5
  header_timeout_s: 6
  body_timeout_s: 7
  write_timeout_s: 8.5
providers:
  openai:
    kind: openai
    base_url: https://api.openai.com/v1/
    api_key: ${{OPENAI_API_KEY}}
    headers:
      x-team: Bearer ${{TOKEN}}
    connect_timeout_s: 1
    ttft_timeout_s: 2
    stall_timeout_s: 3
    total_timeout_s: 4
    max_concurrency: 5
    continuation: off
  azure:
    kind: openai-compatible
    host: azure
    api_version: 2024-10-21
    proxy: http://user:{CANARY}@proxy.example:3128/
models:
  chat:
    targets:
      - openai/gpt-5-mini
      - azure/deployments/gpt
    strategy: weighted
    weights: [1, 0.5]
    on_interrupt: restart
    hedge_after_s: 2
middleware:
  - use: middleware.observe.Observe
  - use: middleware.auth.Auth
    keys:
      - {{id: web, sha256: "{DIGEST}"}}
telemetry:
  log_level: debug
  log_format: console
  otlp_endpoint: http://localhost:4318
  otlp_headers:
    x-tenant: ${{TOKEN}}
  trace_sample_ratio: 0.25
  propagate_to_providers: yes
  slo:
    ttft_s: 1
    tpot_s: 0.2
    max_gap_s: 3
"""

# By key path: a line of WHOLE, and what to write instead of its key and value to break just that.
BREAKS = {
    "server.host": ("  host: 0.0.0.0", "  host: http://0.0.0.0"),
    "server.port": ("  port: ${PORT}", "  port: 65536"),
    "server.admin_host": ('  admin_host: "::1"', "  admin_host: 5"),
    "server.admin_port": ("  admin_port: 9001", "  admin_port: -1"),
    "server.workers": ("  workers: 4", "  workers: 65"),
    "server.max_body_bytes": ("  max_body_bytes: 1_000", "  max_body_bytes: 0"),
    "server.drain_timeout_s": ("  drain_timeout_s: 0", "  drain_timeout_s: -1"),
    "server.cors_origins[0]": ("  cors_origins: [https", "  cors_origins: [ftp"),
    "server.hartbeat_s": ("  heartbeat_s: 5", "  hartbeat_s: 5"),
    "server.header_timeout_s": ("  header_timeout_s: 6", "  header_timeout_s: 1:30"),
    "server.body_timeout_s": ("  body_timeout_s: 7", "  body_timeout_s: null"),
    "server.write_timeout_s": ("  write_timeout_s: 8.5", "  write_timeout_s: .inf"),
    "providers.openai.kind": ("    kind: openai\n", "    kind: openia\n"),
    "providers.openai.base_url": ("    base_url: https://api", "    base_url: https://me:pw@api"),
    "providers.openai.api_key": ("    api_key: ${OPENAI_API_KEY}", "    api_key: ${OPENAI_KEY}"),
    "providers.openai.headers.x-team": ("      x-team: Bearer ${TOKEN}", "      x-team: 5"),
    "providers.openai.connect_timeout_s": ("    connect_timeout_s: 1", "    connect_timeout_s: 0"),
    "providers.openai.ttft_timeout_s": ("    ttft_timeout_s: 2", "    ttft_timeout_s: abc"),
    "providers.openai.stall_timeout_s": ("    stall_timeout_s: 3", "    stall_timeout_s: '3'"),
    "providers.openai.total_timeout_s": ("    total_timeout_s: 4", "    total_timeout_s: [4]"),
    "providers.openai.max_concurrency": ("    max_concurrency: 5", "    max_concurrency: 5.5"),
    "providers.openai.continuation": ("    continuation: off", "    continuation: no"),
    "providers.azure.base_url": ("    host: azure", "    base_url: null"),
    "providers.azure.api_version": ("    api_version: 2024-10-21", "    api_version: '2024 10'"),
    "providers.azure.proxy": ("    proxy: http://user", "    proxy: socks5://user"),
    "models.chat.targets[0]": ("      - openai/gpt-5-mini", "      - opnai/gpt-5-mini"),
    "models.chat.targets[1]": ("      - azure/deployments/gpt", "      - azure"),
    "models.chat.strategy": ("    strategy: weighted", "    strategy: random"),
    "models.chat.weights": ("    weights: [1, 0.5]", "    weights: [1]"),
    "models.chat.on_interrupt": ("    on_interrupt: restart", "    on_interrupt: true"),
    "models.chat.hedge_after_s": ("    hedge_after_s: 2", "    hedge_after_s: 0"),
    "middleware[0].use": ("  - use: middleware.observe.Observe", "  - use: Observe"),
    "middleware[1].use": ("  - use: middleware.auth.Auth", "  - yes: middleware.auth.Auth"),
    "telemetry.log_level": ("  log_level: debug", "  log_level: 5"),
    "telemetry.log_format": ("  log_format: console", "  log_format: off"),
    "telemetry.otlp_endpoint": ("  otlp_endpoint: http://localhost", "  otlp_endpoint: localhost"),
    "telemetry.otlp_headers.x-tenant": ("    x-tenant: ${TOKEN}", "    x-tenant: 5"),
    "telemetry.trace_sample_ratio": ("  trace_sample_ratio: 0.25", "  trace_sample_ratio: 25"),
    "telemetry.propagate_to_providers": ("  propagate_to_providers: yes", "  propagate_to_providers: none"),
    "telemetry.slo.ttft": ("    ttft_s: 1", "    ttft: 1"),
    "telemetry.slo.tpot_s": ("    tpot_s: 0.2", "    tpot_s: 0.0"),
    "telemetry.slo.max_gap_s": ("    max_gap_s: 3\n", "    max_gap_s: 3\n    max_gap_s: 3\n"),
}


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A client and the digest of its key."""

    id: str
    sha256: Annotated[str, Pattern(r"[0-9a-f]{64}", "64 lowercase hex digits")]


@dataclass(frozen=True, slots=True)
class Auth:
    """A middleware with nested options."""

    keys: tuple[ClientKey, ...] = ()
    realm: str = "millrace"
    tries: Annotated[int, Range(1, 9)] = 3
    mode: Literal["on", "off"] = "on"
    pepper: Secret | None = None


def parse(text: str, environ: Mapping[str, str] = ENVIRON) -> Config:
    """Return the configuration in the text."""
    return parse_config(text, "millrace.yaml", environ)


def faults_of(text: str, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    """Return the faults of the text."""
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return caught.value.faults


def fault_of(text: str, environ: Mapping[str, str] = ENVIRON) -> str:
    """Return the one fault of the text, less the name of the file."""
    (fault,) = faults_of(text, environ)
    return fault.removeprefix("millrace.yaml:")


def faults_or_none(text: str) -> list[str]:
    """Return the faults of a text that may have none; whatever else it raises is a failure."""
    try:
        parse(text)
    except ConfigError as error:
        return error.faults or [""]
    return []


def paths_of(faults: list[str]) -> list[str]:
    """Return the key path that each fault names."""
    return [fault.split(": ")[1] for fault in faults]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_file_with_every_key_is_read_as_written() -> None:
    """Every key of the configuration reaches its field."""
    config = parse(WHOLE)
    assert config.server == ServerConfig(
        host="0.0.0.0",  # noqa: S104  # nothing listens here
        port=9000,
        admin_host="::1",
        admin_port=9001,
        workers=4,
        max_body_bytes=1000,
        drain_timeout_s=0.0,
        cors_origins=("https://example.org", "http://localhost:5173"),
        heartbeat_s=5.0,
        header_timeout_s=6.0,
        body_timeout_s=7.0,
        write_timeout_s=8.5,
    )
    assert config.providers == {
        "openai": ProviderConfig(
            kind="openai",
            base_url="https://api.openai.com/v1",
            api_key=Secret(CANARY),
            headers={"x-team": Secret("Bearer t0ken")},
            connect_timeout_s=1.0,
            ttft_timeout_s=2.0,
            stall_timeout_s=3.0,
            total_timeout_s=4.0,
            max_concurrency=5,
            continuation="off",
        ),
        "azure": ProviderConfig(
            kind="openai-compatible",
            host="azure",
            api_version="2024-10-21",
            proxy=f"http://user:{CANARY}@proxy.example:3128",
        ),
    }
    targets = ("openai/gpt-5-mini", "azure/deployments/gpt")
    assert config.models == {"chat": ModelConfig(targets, "weighted", "restart", 2.0, (1.0, 0.5))}
    assert config.middleware == (
        MiddlewareConfig("middleware.observe.Observe"),
        MiddlewareConfig("middleware.auth.Auth", {"keys": ({"id": "web", "sha256": DIGEST},)}),
    )
    slo = SloConfig(1.0, 0.2, 3.0)
    headers = {"x-tenant": Secret("t0ken")}
    assert config.telemetry == TelemetryConfig(
        "debug", "console", "http://localhost:4318", headers, 0.25, propagate_to_providers=True, slo=slo
    )
    assert config.source == "millrace.yaml"


def test_defaults_are_those_that_are_promised() -> None:
    """What a file leaves out is as the documentation says."""
    config = parse("providers: {openai: {kind: openai}}\nmodels: {chat: {targets: [openai/gpt-5-mini]}}")
    assert dataclasses.asdict(config.server) == {
        "host": "127.0.0.1",
        "port": 8080,
        "admin_host": "127.0.0.1",
        "admin_port": 8081,
        "admin_key": None,
        "workers": 1,
        "event_loop": "auto",
        "max_body_bytes": 10485760,
        "drain_delay_s": 0.0,
        "drain_timeout_s": 600.0,
        "cors_origins": (),
        "heartbeat_s": 15.0,
        "header_timeout_s": 10.0,
        "body_timeout_s": 30.0,
        "write_timeout_s": 30.0,
    }
    assert dataclasses.asdict(config.providers["openai"]) == {
        "kind": "openai",
        "base_url": None,
        "host": None,
        "api_key": None,
        "headers": {},
        "api_version": None,
        "proxy": None,
        "connect_timeout_s": 5.0,
        "ttft_timeout_s": 60.0,
        "stall_timeout_s": 30.0,
        "total_timeout_s": 900.0,
        "max_concurrency": 0,
        "continuation": "auto",
    }
    assert config.models["chat"] == ModelConfig(("openai/gpt-5-mini",), "priority", "continue", None, None)
    assert dataclasses.asdict(config.telemetry) == {
        "log_level": "info",
        "log_format": "json",
        "otlp_endpoint": None,
        "otlp_headers": {},
        "trace_sample_ratio": 1.0,
        "propagate_to_providers": False,
        "slo": {"ttft_s": 2.0, "tpot_s": 0.1, "max_gap_s": 2.0},
    }
    assert [entry.use for entry in config.middleware] == [
        "middleware.observe.Observe",
        "middleware.auth.Auth",
        "middleware.fallback.Fallback",
        "middleware.resume.Resume",
    ]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "server:\nproviders:\nmodels:\nmiddleware:\ntelemetry:\n"])
def test_an_empty_file_is_all_defaults(text: str) -> None:
    """A file without a key, or with empty sections, is the built-in default."""
    config = parse(text, {})
    assert config == dataclasses.replace(load_default({}), source="millrace.yaml")
    assert config.middleware == DEFAULT_MIDDLEWARE


def test_an_explicit_list_of_middleware_is_used_as_is() -> None:
    """An empty chain stays empty."""
    assert parse("middleware: []").middleware == ()


def test_models_without_providers_stand_on_those_of_the_environment() -> None:
    """A file may name models only; its providers are then found like without a file."""
    config = parse("models: {fast: {targets: [openai/gpt-5-nano]}}")
    assert list(config.providers) == ["openai"]
    assert list(config.models) == ["fast"]


def test_providers_without_models_have_no_alias() -> None:
    """A file that names its providers gets no model that it did not name."""
    assert parse("providers: {sim: {kind: simulator}}").models == {}


def test_a_configuration_can_be_handed_to_another_process() -> None:
    """A configuration survives pickling, as workers need it."""
    config = parse(WHOLE)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301  # our own bytes


def test_importing_the_configuration_imports_no_network() -> None:
    """Neither aiohttp, asyncio nor any large library comes along."""
    code = "import gateway.config, sys; print(*{'aiohttp', 'asyncio', 'msgspec', 'pydantic'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert answer.stdout.strip() == ""


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BREAKS)
def test_one_fault_in_a_whole_file_is_one_line_with_its_key_path(path: str) -> None:
    """A single fault is told once, with the line it is on, and is blamed for nothing else."""
    good, bad = BREAKS[path]
    text = WHOLE.replace(good, bad)
    line = text[: text.index(bad)].count("\n") + 1 + bad.strip().count("\n")
    assert paths_of(faults_of(text)) == [path]
    assert fault_of(text).startswith(f"{line}: ")


@given(st.sets(st.sampled_from(sorted(BREAKS)), min_size=1))
@settings(max_examples=60)
def test_no_fault_hides_another(paths: set[str]) -> None:
    """Any set of faults gives just these faults, in the order of the file."""
    text = WHOLE
    for path in paths:
        text = text.replace(*BREAKS[path])
    assert paths_of(faults_of(text)) == [path for path in BREAKS if path in paths]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("server: {prot: 80}", "server.prot", "unknown key; did you mean port?"),
        ("provider: {}", "provider", "unknown key; did you mean providers?"),
        ("server: 8080", "server", "expected a mapping, got a number"),
        (
            "server: {port: 8081}",
            "server.admin_port",
            "expected another port than that of the gateway itself, on the same host",
        ),
        (
            "providers: {a: }",
            "providers.a.kind",
            "missing, expected one of openai, anthropic, google, mistral, meta, llama, openai-compatible, simulator",
        ),
        (
            "providers: {a/b: {kind: openai}}",
            "providers.a/b",
            "expected a name of letters, digits, '.', '_' and '-', got text",
        ),
        (
            "providers: {a: {kind: openai-compatible}}",
            "providers.a.base_url",
            "missing, kind openai-compatible needs it, or a known host",
        ),
        (
            "providers: {a: {kind: openai, host: groq}}",
            "providers.a.host",
            "only kind openai-compatible has a host; base_url is for the others",
        ),
        (
            "providers: {a: {kind: openai, headers: {Host: x}}}",
            "providers.a.headers.Host",
            "expected the name of a header that is not about framing, got text",
        ),
        (
            "models: {'': {targets: [openai/x]}}",
            "models.''",
            "expected a printable name without blanks at its ends, got text",
        ),
        ("models: {m: {}}", "models.m.targets", "missing, expected a list of at least one provider/model"),
        (
            "models: {m: {targets: []}}",
            "models.m.targets",
            "expected a list of at least one provider/model, got an empty list",
        ),
        (
            "models: {m: {targets: [x/y]}}",
            "models.m.targets[0]",
            "expected a configured provider before the slash (openai), got 'x/y'",
        ),
        (
            "models: {openai/m: {targets: [openai/y]}}",
            "models.openai/m",
            "expected a name that does not begin with openai/, which is a provider's",
        ),
        (
            "models: {m: {targets: [openai/y], weights: [0]}}",
            "models.m.weights",
            "expected a list of numbers with one above 0, got a list",
        ),
        ("middleware: [a.b]", "middleware[0]", "expected a mapping, got text"),
        (
            "middleware: [{x: 1}]",
            "middleware[0].use",
            "missing, expected an import path such as middleware.resume.Resume",
        ),
        ("middleware: {use: a.b}", "middleware", "expected a list, got a mapping"),
    ],
)
def test_a_fault_says_what_was_expected(text: str, path: str, message: str) -> None:
    """Each kind of fault is one line that a person can act on."""
    assert fault_of(text) == f"1: {path}: {message}"


def test_a_fault_has_file_line_path_expectation_and_value() -> None:
    """The form of a fault is the one that is documented."""
    text = "providers:\n  openai:\n    kind: openai\n    ttft_timeout_s: abc\n"
    assert faults_of(text) == [
        "millrace.yaml:4: providers.openai.ttft_timeout_s: expected a number of seconds above 0, got 'abc'"
    ]


def test_a_file_that_is_no_mapping_or_no_yaml_is_a_fault() -> None:
    """What has no key path is told with the file, and with the line where there is one."""
    assert faults_of("- server") == ["millrace.yaml: expected a mapping, got a list"]
    assert fault_of("server: {port: 1").startswith(
        "1: not valid YAML, while parsing a flow mapping, expected ',' or '}'"
    )


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "https://user@host",
        "https://user:swordfish@host",
        "https://host/v1?key=swordfish",
        "https://host/v1#x",
        "https://host:99999",
        "https://host:0",
        "https://[::1",
        "https://ho st",
        "https://host/\t",
        "https://host/a\\b",
        "https://hôst",
        "",
    ],
)
def test_a_base_url_that_is_none_is_refused_unseen(url: str) -> None:
    """A base URL is http or https with a host and neither user, query nor fragment; a fault does not show it."""
    fault = fault_of(f"providers: {{a: {{kind: openai, base_url: {json.dumps(url)}}}}}")
    assert fault == (
        "1: providers.a.base_url: expected an http or https URL with a host, without user, query or fragment, got text"
    )


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://localhost:11434/v1//", "http://localhost:11434/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://vllm_1:8000/v1", "http://vllm_1:8000/v1"),
    ],
)
def test_a_base_url_loses_its_trailing_slashes(url: str, read: str) -> None:
    """Paths can be appended to a base URL as it is."""
    config = parse(f"providers: {{a: {{kind: openai, base_url: '{url}'}}}}")
    assert config.providers["a"].base_url == read


@pytest.mark.parametrize("url", ["http://proxy/path", "http://proxy?x", "http://proxy#x", "socks5://proxy", "proxy:80"])
def test_a_proxy_that_is_none_is_refused(url: str) -> None:
    """A proxy is http or https, has a host, and nothing behind it."""
    fault = fault_of(f"providers: {{a: {{kind: openai, proxy: '{url}'}}}}")
    assert fault == "1: providers.a.proxy: expected an http or https URL with a host, without path or query, got text"


@pytest.mark.parametrize("origin", ["'*'", "null", "https://a.b/", "https://a.b/c", "a.b"])
def test_a_cors_origin_is_a_whole_origin(origin: str) -> None:
    """An origin has a scheme, a host and no path; a wildcard would open the gateway to every page."""
    assert fault_of(f"server: {{cors_origins: [{origin}]}}").startswith("1: server.cors_origins[0]: expected an origin")


def test_two_equal_ports_on_different_hosts_are_no_fault() -> None:
    """Only the same port of the same host is contradictory, and port 0 is never the same."""
    assert parse("server: {port: 8081, admin_host: 127.0.0.2}").server.admin_port == 8081
    assert parse("server: {port: 0, admin_port: 0}").server.port == 0


@pytest.mark.parametrize(
    "text",
    [
        f"providers: {{a: {{kind: openai, api_key: [{CANARY}]}}}}",
        f"providers: {{a: {{kind: openai, api_key: '{CANARY} '}}}}",
        f"providers: {{a: {{kind: openai, api_key: *{CANARY}}}}}",
        f"providers: {{a: {{kind: openai, api_key: !{CANARY} x}}}}",
        f"providers: {{a: {{kind: openai, api_key: '{CANARY}${{'}}}}",
        f'providers: {{a: {{kind: openai, api_key: "{CANARY}\\n"}}}}',
        f"providers: {{a: {{kind: openai, api_key: {CANARY}: x}}}}",
        f"providers: {{a: {{kind: openai, headers: {CANARY}}}}}",
        f"providers: {{a: {{kind: openai, headers: {{x: '{CANARY} '}}}}}}",
        f"providers: {{a: {{kind: openai, proxy: 'ftp://u:{CANARY}@h'}}}}",
        f"providers: {{a: {CANARY}}}",
        "server: {port: '${OPENAI_API_KEY}'}",
        "server: {host: '/${OPENAI_API_KEY}'}",
        "telemetry: {log_level: '${OPENAI_API_KEY}'}",
        "models: {m: {targets: ['${OPENAI_API_KEY}', 'x/${OPENAI_API_KEY}']}}",
        "middleware: [{use: '${OPENAI_API_KEY}'}]",
    ],
)
def test_a_fault_shows_neither_a_secret_nor_a_variable(text: str) -> None:
    """Whatever is wrong with a secret or with what the environment held, its value is not shown."""
    assert CANARY not in "\n".join(faults_of(text))


def test_a_configuration_that_is_printed_shows_no_secret() -> None:
    """Keys, headers, proxies and the options of middlewares do not show."""
    shown = repr(parse(WHOLE + f"  x: &y {CANARY}".replace("  x: &y ", "# ")))
    assert CANARY not in shown
    assert "t0ken" not in shown
    assert "***" in shown


@given(st.text())
def test_any_text_is_a_configuration_or_faults(text: str) -> None:
    """No text makes the reader fail in any other way than with lines that can be printed."""
    assert all(fault and fault.isprintable() for fault in faults_or_none(text))


FRAGMENTS = [*WHOLE.split("\n"), *"{}[]:,-?!&*|>'\"%@`#=\n\t", "&a ", "*a", "<<: *a", "${", "!!int ", "  ", "\\", "---"]
PIECES = st.lists(st.sampled_from(FRAGMENTS))


@given(PIECES.map("".join) | PIECES.map("\n".join))
def test_any_shuffled_file_is_a_configuration_or_faults(text: str) -> None:
    """Neither does any file made of pieces of a good one and of YAML's own signs."""
    assert all(fault and fault.isprintable() for fault in faults_or_none(text))


TREES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(set(WHOLE.split()))) | st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["server", "providers", "models", "middleware", "telemetry"]), TREES))
def test_any_tree_is_a_configuration_or_faults(tree: dict[str, object]) -> None:
    """Neither does any value at any place."""
    assert all(fault and fault.isprintable() for fault in faults_or_none(yaml.safe_dump(tree)))


# --- where it comes from ----------------------------------------------------------------------------------------------


def load_default(environ: Mapping[str, str]) -> Config:
    """Return the configuration without any file."""
    return parse_config("", "environment", environ)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """An empty directory to start in."""
    return tmp_path


def load_fault(path: str | None, environ: Mapping[str, str], cwd: Path) -> str:
    """Return the one fault of loading."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ, cwd)
    (fault,) = caught.value.faults
    return fault


def test_without_file_or_keys_the_simulator_is_served(cwd: Path) -> None:
    """With nothing at all the gateway has the provider sim, behind the model chat."""
    config = load_config(None, {"OPENAI_API_KEY": ""}, cwd)
    assert config == Config(providers={"sim": ProviderConfig("simulator")}, models={"chat": ModelConfig(("sim/mill",))})
    assert config.source == "environment"


def test_without_file_each_key_in_the_environment_adds_its_provider(cwd: Path) -> None:
    """All keys that are set give a provider each, and a target each of the model chat, in a fixed order."""
    names = ["LLAMA", "META", "MISTRAL", "GEMINI", "ANTHROPIC", "OPENAI"]
    config = load_config(None, {f"{name}_API_KEY": name.lower() for name in names}, cwd)
    assert list(config.providers) == ["openai", "anthropic", "google", "mistral", "meta", "llama"]
    assert all(provider.kind == name for name, provider in config.providers.items())
    assert config.providers["google"].api_key == Secret("gemini")
    assert config.models["chat"].targets == (
        "openai/gpt-5-mini",
        "anthropic/claude-haiku-4-5",
        "google/gemini-3.5-flash",
        "mistral/mistral-small-latest",
        "meta/muse-spark-1.1",
        "llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
    )


def test_a_key_in_the_environment_that_no_header_can_carry_is_a_fault(cwd: Path) -> None:
    """A key with a line break is refused at start, by the name of its variable."""
    fault = load_fault(None, {"OPENAI_API_KEY": f"{CANARY}\n"}, cwd)
    assert fault.startswith("environment: providers.openai.api_key: expected printable text")
    assert fault.endswith("got the value of ${OPENAI_API_KEY}")


def test_the_path_beats_the_variable_and_the_variable_the_working_directory(cwd: Path) -> None:
    """A file is looked for in three places, and the first that is named is used."""
    for port, name in enumerate(["millrace.yaml", "b.yaml", "c.yaml"], start=1000):
        (cwd / name).write_text(f"server: {{port: {port}}}", "utf-8")
    environ = {"MILLRACE_CONFIG": "b.yaml"}
    found = [
        load_config(None, {}, cwd),
        load_config(None, environ, cwd),
        load_config(str(cwd / "c.yaml"), environ, cwd),
    ]
    assert [config.server.port for config in found] == [1000, 1001, 1002]
    assert [config.source for config in found] == ["millrace.yaml", "b.yaml", str(cwd / "c.yaml")]


def test_a_file_that_cannot_be_read_is_a_fault(cwd: Path) -> None:
    """A missing file, a directory, an impossible path and bytes that are no text are told in one line each."""
    (cwd / "latin.yaml").write_bytes(b"server:\n  host: caf\xe9\n")
    assert load_fault("none.yaml", {}, cwd) == "none.yaml: no such file"
    assert load_fault(None, {"MILLRACE_CONFIG": "none.yaml"}, cwd) == "none.yaml: no such file"
    assert load_fault(".", {}, cwd) == ".: the file cannot be read: Is a directory"
    assert load_fault("a\0b", {}, cwd) == r"'a\x00b': the file cannot be read: embedded null byte"
    assert load_fault("latin.yaml", {}, cwd) == "latin.yaml:2: the file is not UTF-8 text"


def test_a_byte_order_mark_is_no_fault(cwd: Path) -> None:
    """A file saved with a byte order mark reads as the same file without."""
    (cwd / "millrace.yaml").write_bytes(b"\xef\xbb\xbfserver: {port: 1}")
    assert load_config(None, {}, cwd).server.port == 1


def test_a_configuration_can_be_read_again_from_its_text(cwd: Path) -> None:
    """By another process, which gets the same although the file has changed by then; without a file too."""
    environ = {"OPENAI_API_KEY": "key"}
    assert find_config(None, environ, cwd) == ("environment", "")
    assert parse_config("", "environment", environ) == load_config(None, environ, cwd)
    (cwd / "millrace.yaml").write_bytes(b"\xef\xbb\xbfserver: {port: 1}")
    assert find_config(None, environ, cwd) == ("millrace.yaml", "server: {port: 1}")


@given(content=st.binary())
def test_any_bytes_are_a_configuration_or_faults(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No content of a file makes loading fail in any other way than with faults."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        load_config("any.yaml", ENVIRON, path.parent)


# --- flags ------------------------------------------------------------------------------------------------------------


def test_flags_beat_the_file() -> None:
    """What the command line gives replaces what the file said, and nothing else."""
    config = parse("server: {port: 1, workers: 2}").with_overrides(host="0.0.0.0", port=0, admin_port=5)  # noqa: S104
    assert config.server == ServerConfig(host="0.0.0.0", port=0, admin_port=5, workers=2)  # noqa: S104
    assert config.with_overrides() == config


def test_flags_out_of_range_are_faults_by_their_names() -> None:
    """Flags are checked like the file, all at once."""
    with pytest.raises(ConfigError) as caught:
        load_default({}).with_overrides(host="a b", port=65536, workers=0)
    assert caught.value.faults == [
        "command line: --host: expected a host name or an IP address, got 'a b'",
        "command line: --port: expected an integer from 0 to 65535, got 65536",
        "command line: --workers: expected an integer from 1 to 64, got 0",
    ]
    with pytest.raises(ConfigError, match="command line: --admin-port: expected another port"):
        load_default({}).with_overrides(port=8081)


# --- middlewares ------------------------------------------------------------------------------------------------------


def make_entry(options: str, environ: Mapping[str, str] = ENVIRON) -> MiddlewareConfig:
    """Return the second middleware of a chain, with these options."""
    text = f"middleware:\n  - use: middleware.observe.Observe\n  - use: middleware.auth.Auth\n{options}"
    return parse(text, environ).middleware[1]


def build_faults(options: str) -> list[str]:
    """Return the faults of building a middleware with these options."""
    with pytest.raises(ConfigError) as caught:
        build_options(Auth, make_entry(options))
    return caught.value.faults


def test_options_become_the_dataclass_they_are_for() -> None:
    """Nested options, words that YAML takes for booleans and secrets reach their fields."""
    entry = make_entry(f"    keys: [{{id: web, sha256: '{DIGEST}'}}]\n    mode: off\n    pepper: ${{TOKEN}}\n")
    assert build_options(Auth, entry) == Auth((ClientKey("web", DIGEST),), mode="off", pepper=Secret("t0ken"))
    assert entry.options["pepper"] == Secret("t0ken")


def test_options_left_out_are_the_defaults_of_the_class() -> None:
    """An entry without options, also one of the default chain, builds the class as it is."""
    assert build_options(Auth, make_entry("")) == Auth()
    assert build_options(Auth, DEFAULT_MIDDLEWARE[1]) == Auth()


def test_every_fault_of_the_options_names_line_and_key_path() -> None:
    """The options of a middleware are checked like the rest of the file, all at once."""
    options = f"    keys:\n      - {{id: web, sha256: {CANARY}}}\n      - {{id: 5}}\n    tries: 0\n    relm: x\n"
    assert build_faults(options) == [
        "millrace.yaml:5: middleware[1].keys[0].sha256: expected 64 lowercase hex digits, got text",
        "millrace.yaml:6: middleware[1].keys[1].id: expected text, got a number; quote it if text is meant",
        "millrace.yaml:6: middleware[1].keys[1].sha256: missing, expected 64 lowercase hex digits",
        "millrace.yaml:7: middleware[1].tries: expected an integer from 1 to 9, got 0",
        "millrace.yaml:8: middleware[1].relm: unknown key; did you mean realm?",
    ]


def test_options_made_in_code_are_checked_too() -> None:
    """An entry that comes from no file names its middleware instead."""
    assert build_options(Auth, MiddlewareConfig("a.Auth", {"tries": 2, "keys": []})) == Auth(tries=2)
    with pytest.raises(ConfigError) as caught:
        build_options(Auth, MiddlewareConfig("a.Auth", {"tries": "2"}))
    assert caught.value.faults == ["middleware: a.Auth.tries: expected an integer from 1 to 9, got '2'"]


def test_a_middleware_that_is_no_dataclass_is_a_fault() -> None:
    """Only a dataclass says what its options are."""
    with pytest.raises(ConfigError, match=r"^millrace\.yaml:3: middleware\[1\]\.use: expected a dataclass, got int$"):
        build_options(int, make_entry(""))


def test_a_fault_found_later_is_told_with_the_place_of_its_entry() -> None:
    """Whoever imports the class can name the line on which it was asked for."""
    assert make_entry("").fault("no module named x") == "millrace.yaml:3: middleware[1].use: no module named x"
    assert DEFAULT_MIDDLEWARE[1].fault("x").startswith("middleware: middleware.auth.Auth.use: ")
