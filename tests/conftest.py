"""What tests of more than one part share: a running gateway whose providers are the simulator."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol, get_args

import pytest
import yaml
from hypothesis import HealthCheck, settings

from gateway.app import Gateway
from gateway.config import Kind, parse_config
from gateway.simulator import Script, Simulator
from tests.browser import running_browser
from tests.clock import Clock, IdleClock
from tests.firefox import running_firefox
from tests.otlp import Collector

QUICK: Final = Script(first_token_s=0.002, interval_s=0.0002)
"""Token by token, but faster than any provider; what a script leaves open is as here."""

MODELS: Final[Mapping[str, str]] = {
    "openai": "gpt-5-mini",
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-3.5-flash",
    "mistral": "mistral-small-latest",
    "meta": "muse-spark-1.1",
    "llama": "Llama-4-Maverick-17B-128E-Instruct-FP8",
    "openai-compatible": "mill",
}
"""A model that each kind is asked for; a host is asked for ``mill``."""

HOSTS: Final = ("azure", "deepseek", "groq", "llama.cpp", "ollama", "openrouter", "together", "vllm")
KINDS: Final = (*MODELS, *HOSTS)

# A loaded machine takes seconds for an example of milliseconds, and as long to think of it.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway on ports of its own, and the simulator behind it."""

    url: str
    admin_url: str
    simulator: Simulator
    gateway: Gateway

    @property
    def model(self) -> str:
        """What to ask for: the first model of the configuration, or of the first provider."""
        config = self.gateway.config
        return next(iter(config.models), "") or model_of(next(iter(config.providers)))


class MakeGateway(Protocol):
    """Start a simulator, and a gateway over it.

    ``kinds`` are provider kinds or names of hosts; each becomes a provider of that name, and the model ``chat`` tries
    them in this order. Or give ``config``, as YAML or as what YAML says: its providers without a ``base_url`` are
    pointed at the simulator. ``scripts`` go to the first requests, ``default`` to the others.
    """

    async def __call__(
        self,
        *kinds: str,
        config: str | Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        scripts: Iterable[Script | str] = (),
        default: Script = QUICK,
    ) -> Running:
        """Return them, running."""


@pytest.fixture
async def make_gateway() -> AsyncIterator[MakeGateway]:
    """Start gateways over simulators; all are stopped after the test, streams in flight with them."""
    async with AsyncExitStack() as running:

        async def make(
            *kinds: str,
            config: str | Mapping[str, Any] | None = None,
            environ: Mapping[str, str] | None = None,
            scripts: Iterable[Script | str] = (),
            default: Script = QUICK,
        ) -> Running:
            simulator = await running.enter_async_context(Simulator(scripts, default=default))
            document = yaml.safe_load(config) if isinstance(config, str) else dict(config or over(*kinds))
            text = yaml.safe_dump(pointed_at(simulator, document))
            gateway = Gateway(parse_config(text, "test.yaml", environ or {}))
            running.push_async_callback(gateway.stop)
            await gateway.start()
            return Running(
                url=f"http://127.0.0.1:{gateway.port}",
                admin_url=f"http://127.0.0.1:{gateway.admin_port}",
                simulator=simulator,
                gateway=gateway,
            )

        yield make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, which can be put forward. Name it before the fixtures that run in the loop: it is set back last."""
    return Clock(monkeypatch)


@pytest.fixture
async def idle_clock(monkeypatch: pytest.MonkeyPatch) -> IdleClock:
    """The clock, which moves on when everybody waits: for tests without a socket or a thread."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    return IdleClock(monkeypatch, loop)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of traces, running."""
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A browser for all tests of a file; its value is what ``open_page`` takes."""
    with running_browser(tmp_path_factory.mktemp("chromium") / "profile") as devtools:
        yield devtools


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with a Firefox; its value is what ``open_firefox_page`` takes."""
    with running_firefox(tmp_path_factory.mktemp("firefox") / "profile") as url:
        yield url


def model_of(provider: str) -> str:
    """Return ``provider/model`` for a provider that is named after its kind or host."""
    return f"{provider}/{MODELS.get(provider, 'mill')}"


def over(*kinds: str) -> dict[str, Any]:
    """Return a configuration with these providers and the model ``chat`` over all of them."""
    known = get_args(Kind)
    return {
        "providers": {
            kind: {"kind": kind} if kind in known else {"kind": "openai-compatible", "host": kind} for kind in kinds
        },
        "models": {"chat": {"targets": [model_of(kind) for kind in kinds]}},
    }


def pointed_at(simulator: Simulator, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration on free ports, with a short drain, and with the simulator where nothing else is said."""
    server = {"port": 0, "admin_port": 0, "drain_timeout_s": 0.05, **document.get("server", {})}
    providers = {
        name: {"base_url": simulator.base_url(_wire_of(one)), "api_key": "fake", **one}
        for name, one in document.get("providers", {}).items()
    }
    return {**document, "server": server, "providers": providers}


def _wire_of(provider: Mapping[str, Any]) -> str:
    kind = str(provider["kind"])
    return "sim" if kind == "simulator" else str(provider.get("host", kind))
