"""The typed configuration, read from YAML and environment, checked once at start.

The dataclasses below are the schema: their fields are the keys, their defaults the defaults, their annotations what is
checked (``gateway.schema`` does the checking). What no type can say, how keys go together, is checked on the tree as
it was written, so that no fault hides another. Whoever reads a ``Config`` need not check anything again.

``providers`` left out, in a file or for want of one, means the providers whose keys the environment holds, else the
simulator; ``middleware`` left out means the default chain. This module opens one file and knows no network.
"""

# No postponed annotations here: they are read at run time, and the linter can see so.
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast, get_args
from urllib.parse import SplitResult, urlsplit

from gateway.schema import (
    FAULTY,
    Block,
    Check,
    Pattern,
    Range,
    Reader,
    Seconds,
    Secret,
    expectation,
    options_of,
    plain_of,
    read_as,
    tree_of,
)
from gateway.yaml_tree import MAX_CHARACTERS, Faults, List, Map, Node, Place, Scalar, is_null, printable, read_tree

__all__ = [
    "DEFAULT_MIDDLEWARE",
    "Check",
    "Config",
    "MiddlewareConfig",
    "ModelConfig",
    "Pattern",
    "ProviderConfig",
    "Range",
    "Seconds",
    "Secret",
    "ServerConfig",
    "SloConfig",
    "TelemetryConfig",
    "build_options",
    "find_config",
    "load_config",
    "parse_config",
]

T = TypeVar("T")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_URL = re.compile(r"[A-Za-z0-9:/?#\[\]@!$&'()*+,;=%._~-]+")
_FRAMING = {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}

# In the order in which the default model asks them: provider and kind, the variable with its key, a small model.
_FROM_ENVIRONMENT = (
    ("openai", "OPENAI_API_KEY", "gpt-5-mini"),
    ("anthropic", "ANTHROPIC_API_KEY", "claude-haiku-4-5"),
    ("google", "GEMINI_API_KEY", "gemini-3.5-flash"),
    ("mistral", "MISTRAL_API_KEY", "mistral-small-latest"),
    ("meta", "META_API_KEY", "muse-spark-1.1"),
    ("llama", "LLAMA_API_KEY", "Llama-4-Maverick-17B-128E-Instruct-FP8"),
)


# --- what a value may be ----------------------------------------------------------------------------------------------


def _host(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if not _HOST.fullmatch(text):
            raise
    return text


def _split(text: str) -> SplitResult:
    parts = urlsplit(text)  # it drops blanks and control characters, hence the look at the text
    if parts.scheme not in {"http", "https"} or not _URL.fullmatch(text) or parts.port == 0:
        raise ValueError
    _host(parts.hostname or "")
    return parts


def _base_url(text: str) -> str:
    if "@" in _split(text).netloc or "?" in text or "#" in text:
        raise ValueError
    return text.rstrip("/")


def _proxy(text: str) -> str:
    if _split(text).path.strip("/") or "?" in text or "#" in text:
        raise ValueError
    return text.rstrip("/")


def _origin(text: str) -> str:
    parts = _split(_base_url(text))
    if parts.path or text.endswith("/"):
        raise ValueError
    return text.lower()  # as browsers send it


def _name(text: str) -> str:
    if not text.isprintable() or text != text.strip() or not text:
        raise ValueError
    return text


def _header(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text) or text.lower() in _FRAMING:
        raise ValueError
    return text


def _targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise ValueError
    return targets


def _weights(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(weights) > 0:
        raise ValueError
    return weights


_URL_WORDS = "an http or https URL with a host, without user, query or fragment"
Port = Annotated[int, Range(0, 65535)]
Host = Annotated[str, Check(_host, "a host name or an IP address", shown=True)]
BaseUrl = Annotated[str, Check(_base_url, _URL_WORDS)]
ProxyUrl = Annotated[str, Check(_proxy, "an http or https URL with a host, without path or query")]
Origin = Annotated[str, Check(_origin, "an origin such as https://example.org, without path")]
HeaderName = Annotated[str, Check(_header, "the name of a header that is not about framing")]
ProviderName = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, '.', '_' and '-'")]
ModelName = Annotated[str, Check(_name, "a printable name without blanks at its ends")]
Target = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*/[!-~]+", "provider/model", shown=True)]
Targets = Annotated[tuple[Target, ...], Check(_targets, "a list of at least one provider/model")]
Weights = Annotated[tuple[Annotated[float, Range(0)], ...], Check(_weights, "a list of numbers with one above 0")]
ImportPath = Annotated[
    str, Pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", "an import path such as middleware.resume.Resume", shown=True)
]
Kind = Literal["openai", "anthropic", "google", "mistral", "meta", "llama", "openai-compatible", "simulator"]


# --- the configuration ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the gateway listens, in how many processes, and what it allows its clients.

    ``event_loop`` "auto" is uvloop where that is installed. Told to stop, the gateway accepts connections for
    ``drain_delay_s`` more, while load balancers find that it is not ready, and streams go on for ``drain_timeout_s``.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080
    admin_host: Host = "127.0.0.1"
    admin_port: Port = 8081
    admin_key: Secret | None = None
    workers: Annotated[int, Range(1, 64)] = 1
    event_loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    max_body_bytes: Annotated[int, Range(1)] = 10_485_760
    drain_delay_s: Annotated[float, Range(0, unit="seconds")] = 0.0
    drain_timeout_s: Annotated[float, Range(0, unit="seconds")] = 600.0
    cors_origins: tuple[Origin, ...] = ()
    heartbeat_s: Seconds = 15.0
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 30.0


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One provider: its wire format, where it is, and how long it may take."""

    kind: Kind
    base_url: BaseUrl | None = None
    host: Annotated[str, Check(_name, "the name of a known host")] | None = None
    api_key: Secret | None = None
    headers: Mapping[HeaderName, Secret] = field(default_factory=dict)
    api_version: Annotated[str, Pattern(r"[A-Za-z0-9._-]+", "a version such as 2023-06-01", shown=True)] | None = None
    proxy: ProxyUrl | None = field(default=None, repr=False)  # it may hold a password
    connect_timeout_s: Seconds = 5.0
    ttft_timeout_s: Seconds = 60.0
    stall_timeout_s: Seconds = 30.0
    total_timeout_s: Seconds = 900.0
    max_concurrency: Annotated[int, Range(0)] = 0
    continuation: Literal["auto", "exact", "anchored", "off"] = "auto"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One name that a client may ask for, and what stands behind it."""

    targets: Targets
    strategy: Literal["priority", "weighted", "fastest"] = "priority"
    on_interrupt: Literal["continue", "restart", "error"] = "continue"
    hedge_after_s: Seconds | None = None
    weights: Weights | None = None


@dataclass(frozen=True, slots=True)
class MiddlewareConfig:
    """One middleware by its import path; ``build_options`` makes it from ``options`` once its class is known.

    In ``options`` what came from the environment is a ``Secret``.
    """

    use: str
    options: Mapping[str, object] = field(default_factory=dict, repr=False)
    block: Block | None = field(default=None, repr=False, compare=False)

    def fault(self, message: str, key: str = "use") -> str:
        """Write a fault of this entry, found later, as one line with its place."""
        block = _block(self)
        return Faults(block.source).line(_at(block.node, block.place, key), message)


@dataclass(frozen=True, slots=True)
class SloConfig:
    """What a stream must keep to count as good."""

    ttft_s: Seconds = 2.0
    tpot_s: Seconds = 0.1
    max_gap_s: Seconds = 2.0


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What is told about the streams, and to whom.

    Traces go to the collector at ``otlp_endpoint``, with ``otlp_headers``: of the calls whose caller has not decided
    that itself, ``trace_sample_ratio`` of them. No provider is told of a trace, not even of its caller's, unless
    ``propagate_to_providers``: most are strangers, to whom it tells which calls belong together.
    """

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: BaseUrl | None = None
    otlp_headers: Mapping[HeaderName, Secret] = field(default_factory=dict)
    trace_sample_ratio: Annotated[float, Range(0, 1)] = 1.0
    propagate_to_providers: bool = False
    slo: SloConfig = field(default_factory=SloConfig)


DEFAULT_MIDDLEWARE: tuple[MiddlewareConfig, ...] = (
    MiddlewareConfig("middleware.observe.Observe"),
    MiddlewareConfig("middleware.auth.Auth"),
    MiddlewareConfig("middleware.fallback.Fallback"),
    MiddlewareConfig("middleware.resume.Resume"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; ``source`` is the file it came from, or "environment"."""

    server: ServerConfig = field(default_factory=ServerConfig)
    providers: Mapping[str, ProviderConfig] = field(default_factory=dict)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    middleware: tuple[MiddlewareConfig, ...] = DEFAULT_MIDDLEWARE
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    source: str = "environment"

    def with_overrides(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        admin_port: int | None = None,
        workers: int | None = None,
    ) -> Self:
        """Return the configuration with what the command line says; raises ``ConfigError``, naming the flags."""
        flags = {"host": host, "port": port, "admin_port": admin_port, "workers": workers}
        kinds, faults = options_of(ServerConfig), Faults("command line")
        given = {
            name: Reader(faults).read(tree_of(value), kinds[name].kind, Place("--" + name.replace("_", "-")))
            for name, value in flags.items()
            if value is not None
        }
        faults.raise_if_any()
        server = replace(self.server, **given)
        if _is_same_port(server.host, server.port, server.admin_host, server.admin_port):
            raise faults.stop(Place("--admin-port"), _SAME_PORT)
        return replace(self, server=server)


@dataclass(frozen=True, slots=True)
class _File:
    """The keys at the top of the file."""

    server: ServerConfig = field(default_factory=ServerConfig)
    providers: Mapping[ProviderName, ProviderConfig] = field(default_factory=dict)
    models: Mapping[ModelName, ModelConfig] = field(default_factory=dict)
    middleware: tuple[Block, ...] | None = None
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)


# --- reading it -------------------------------------------------------------------------------------------------------


def load_config(path: str | None, environ: Mapping[str, str], cwd: Path) -> Config:
    """Return the configuration from the path, else ``MILLRACE_CONFIG``, else ``./millrace.yaml``, else the environment.

    Raises ``ConfigError`` with every fault.
    """
    source, text = find_config(path, environ, cwd)
    return parse_config(text, source, environ)


def find_config(path: str | None, environ: Mapping[str, str], cwd: Path) -> tuple[str, str]:
    """Return what ``load_config`` reads, and its text; "environment", and nothing, if there is no file.

    Raises ``ConfigError`` for a file that cannot be read.
    """
    named = path if path is not None else environ.get("MILLRACE_CONFIG") or None
    source = named if named is not None else "millrace.yaml"
    text = _file_text(cwd / source, Faults(source), is_needed=named is not None)
    return ("environment", "") if text is None else (source, text)


def parse_config(text: str, source: str, environ: Mapping[str, str]) -> Config:
    """Return the configuration that the text holds; raises ``ConfigError`` with every fault, each naming ``source``."""
    faults = Faults(source)
    return _config(read_tree(text, environ, faults), faults, environ)


def build_options(cls: type[T], entry: MiddlewareConfig) -> T:
    """Return the frozen dataclass ``cls`` made from the options of the entry, checked as the file itself is.

    Raises ``ConfigError`` with every fault, each with its line and its key path from ``middleware`` on.
    """
    block = _block(entry)
    faults = Faults(block.source)
    if not is_dataclass(cls):
        raise faults.stop(_at(block.node, block.place, "use"), f"expected a dataclass, got {cls.__qualname__}")
    options = read_as(cls, block.node, block.place, faults)
    faults.raise_if_any()
    return cast("T", options)


def _file_text(path: Path, faults: Faults, *, is_needed: bool) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        if not is_needed:
            return None
        raise faults.stop(Place(), "no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise faults.stop(Place(), f"the file cannot be read: {reason}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise faults.stop(Place(line=line), "the file is not UTF-8 text") from None


def _config(root: Node, faults: Faults, environ: Mapping[str, str]) -> Config:
    if isinstance(root, Map) and not _has(root, "providers"):
        found = _found_in(environ).items
        left_out = {name: node for name, node in found.items() if not _has(root, name)}
        root = Map({**root.items, **left_out}, root.lines, root.line)
    file = read_as(_File, root, Place(), faults)
    chain = DEFAULT_MIDDLEWARE
    if isinstance(root, Map):
        chain = _chain(root, faults)
        _check_ports(root, faults)
        _check_providers(root, faults)
        _check_models(root, faults)
    faults.raise_if_any()
    file = cast("_File", file)
    return Config(file.server, file.providers, file.models, chain, file.telemetry, faults.source)


def _found_in(environ: Mapping[str, str]) -> Map:
    """Return the providers whose keys the environment holds, or the simulator, and the model made of them."""
    found = [(name, key, model) for name, key, model in _FROM_ENVIRONMENT if environ.get(key)]
    providers: dict[str, object] = {
        name: {"kind": name, "api_key": Scalar(environ[key], concealed=f"the value of ${{{key}}}")}
        for name, key, _ in found
    }
    targets = [f"{name}/{model}" for name, _, model in found]
    chat = {"targets": targets or ["sim/mill"]}
    return _map(tree_of({"providers": providers or {"sim": {"kind": "simulator"}}, "models": {"chat": chat}}))


def _chain(root: Map, faults: Faults) -> tuple[MiddlewareConfig, ...]:
    if not _has(root, "middleware"):
        return DEFAULT_MIDDLEWARE
    chain = []
    for item, place in _items(root, Place(), "middleware"):
        if isinstance(item, Map) and "use" in item.items:
            use = Reader(faults).read(item.items["use"], ImportPath, _at(item, place, "use"))
            block = Block(faults.source, place, item.without("use"))
            chain.append(MiddlewareConfig(use, {key: plain_of(node) for key, node in block.node.items.items()}, block))
        elif isinstance(item, Map):
            faults.add(_at(item, place, "use"), f"missing, expected {expectation(ImportPath)}")
    return tuple(chain)


def _block(entry: MiddlewareConfig) -> Block:
    return entry.block or Block("middleware", Place(entry.use), _map(tree_of(entry.options)))


# --- how keys go together ---------------------------------------------------------------------------------------------


_SAME_PORT = "expected another port than that of the gateway itself, on the same host"


def _is_same_port(host: str, port: int, admin_host: str, admin_port: int) -> bool:
    return port != 0 and (host, port) == (admin_host, admin_port)


def _check_ports(root: Map, faults: Faults) -> None:
    server = _map(root.items.get("server"))
    options, default = options_of(ServerConfig), ServerConfig()
    host, port, admin_host, admin_port = (
        Reader(Faults("")).read(server.items[name], options[name].kind, Place())
        if name in server.items
        else getattr(default, name)
        for name in ("host", "port", "admin_host", "admin_port")
    )
    if FAULTY not in {host, port, admin_host, admin_port} and _is_same_port(host, port, admin_host, admin_port):
        faults.add(_at(server, _at(root, Place(), "server"), "admin_port"), _SAME_PORT)


def _check_providers(root: Map, faults: Faults) -> None:
    for _, provider, place in _entries(root, "providers"):
        kind = provider.items.get("kind")
        if not isinstance(kind, Scalar) or kind.text not in get_args(Kind):
            continue
        is_open = kind.text == "openai-compatible"
        if is_open and not _has(provider, "base_url") and not _has(provider, "host"):
            faults.add(_at(provider, place, "base_url"), "missing, kind openai-compatible needs it, or a known host")
        if not is_open and _has(provider, "host"):
            faults.add(
                _at(provider, place, "host"), "only kind openai-compatible has a host; base_url is for the others"
            )


def _check_models(root: Map, faults: Faults) -> None:
    known = _map(root.items.get("providers")).items.keys()
    for alias, model, place in _entries(root, "models"):
        provider = alias.partition("/")[0]
        if provider != alias and provider in known:
            faults.add(place, f"expected a name that does not begin with {provider}/, which is a provider's")
        targets = list(_items(model, place, "targets"))
        for target, spot in targets:
            _check_target(target, spot, known, faults)
        weights = list(_items(model, place, "weights"))
        if weights and len(weights) != len(targets):
            faults.add(_at(model, place, "weights"), f"expected one weight for each of the {len(targets)} targets")


def _check_target(target: Node, place: Place, known: Collection[str], faults: Faults) -> None:
    provider, slash, _ = _text_of(target).partition("/")
    if slash and provider not in known and isinstance(target, Scalar):
        got = target.concealed or f"'{printable(target.text)}'"
        listed = ", ".join(map(printable, known)) or "none"
        faults.add(place, f"expected a configured provider before the slash ({listed}), got {got}")


def _map(node: Node | None) -> Map:
    return node if isinstance(node, Map) else Map()


def _has(node: Map, name: str) -> bool:
    return name in node.items and not is_null(node.items[name])


def _text_of(node: Node | None) -> str:
    return node.text if isinstance(node, Scalar) else ""


def _at(node: Map, place: Place, name: str) -> Place:
    return place.key(name, node.lines.get(name, place.line))


def _entries(root: Map, name: str) -> Iterator[tuple[str, Map, Place]]:
    """Yield the mappings below a key of the file, each with its name and place."""
    for key, node, place in _map(root.items.get(name)).children(_at(root, Place(), name)):
        if isinstance(node, Map):
            yield key, node, place


def _items(node: Map, place: Place, name: str) -> Iterator[tuple[Node, Place]]:
    """Yield the items of the list below a key, each with its place."""
    found = node.items.get(name)
    if isinstance(found, List):
        for index, item in enumerate(found.items):
            line = found.lines[index] if found.lines else place.line
            yield item, _at(node, place, name).item(index, line)
