"""Which path speaks which wire: the real ones bare, and again under a prefix where two providers share one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from gateway.simulator.wires.anthropic import AnthropicWire
from gateway.simulator.wires.base import Wire
from gateway.simulator.wires.google import GoogleWire
from gateway.simulator.wires.hosts import GENERIC, HOSTS
from gateway.simulator.wires.llama import LlamaWire
from gateway.simulator.wires.mistral import MistralWire
from gateway.simulator.wires.openai import OpenAIWire

MODELS: Final = ("mill", "mill-mini", "mill-reasoning")

WIRES: Final[dict[str, Wire]] = {
    "anthropic": AnthropicWire(),
    "google": GoogleWire(),
    "mistral": MistralWire(),
    "llama": LlamaWire(),
    **{name: OpenAIWire(host) for name, host in HOSTS.items()},
}

_BASES: Final = {
    "sim": "/v1",
    "openai-compatible": "/v1",
    "openai": "/openai/v1",
    "meta": "/meta/v1",
    "mistral": "/mistral/v1",
    "llama": "/llama/v1",
    "anthropic": "/anthropic",
    "google": "/google",
    "azure": "/hosts/azure/openai/v1",
    "deepseek": "/hosts/deepseek",
}
_CHAT: Final = re.compile(
    r"^(?:/(?P<kind>openai|meta|mistral|llama)|/hosts/(?P<host>[\w.-]+))?"
    r"(?:/v1|/beta|/openai/v1|/api/v1|/openai/deployments/(?P<deployment>[^/]+))?/chat/completions$"
)
_MESSAGES: Final = re.compile(r"^(?:/anthropic)?/v1/messages$")
_GENERATE: Final = re.compile(
    r"^(?:/google)?/v1(?:beta\d?)?/models/(?P<model>[^/]+):(?P<action>generateContent|streamGenerateContent)$"
)
_MODELS: Final = re.compile(
    r"^(?:/(?P<kind>openai|meta|mistral|llama|anthropic|google)|/hosts/(?P<host>[\w.-]+))?(?:/v1(?:beta)?|/openai/v1)?"
    r"/models$"
)
_MISTRAL: Final = re.compile(r"^(mistral|ministral|magistral|codestral)")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `model` is what the path says, script and all; most say it in the body."""

    wire: Wire
    model: str = ""
    is_stream_path: bool = False
    is_models: bool = False


def base_path(kind: str) -> str:
    """Return the base path for a provider kind or the name of a host; raises `ValueError` for any other."""
    if kind not in _BASES and kind not in HOSTS:
        raise ValueError(f"no wire is called {kind!r}; there are {', '.join(sorted({*_BASES, *HOSTS}))}")
    return _BASES.get(kind) or f"/hosts/{kind}/v1"


def split_target(raw_path: str) -> tuple[str, str]:
    """Split the request line's path from its query.

    A script may stand in a Gemini path with its question mark bare, so there the query begins after the action.
    """
    action = re.search(r":(?:stream)?[gG]enerateContent", raw_path)
    at = raw_path.find("?", action.end() if action else 0)
    return (raw_path, "") if at < 0 else (raw_path[:at], raw_path[at + 1 :])


def find_route(method: str, path: str, body_model: str = "") -> Route | None:
    """Return where a request goes, or None if no provider has such a path."""
    return next(_routes(method, path, body_model), None)


def _routes(method: str, path: str, body_model: str) -> Iterator[Route]:
    if method == "GET" and (found := _MODELS.match(path)):
        name = found["kind"] or found["host"] or ("google" if path.startswith("/v1beta") else "generic")
        if name in WIRES:
            yield Route(WIRES[name], is_models=True)
    if method != "POST":
        return
    if found := _CHAT.match(path):
        name = found["kind"] or found["host"] or ("mistral" if _MISTRAL.match(body_model) else GENERIC.name)
        if name in WIRES:
            yield Route(WIRES[name], model=unquote(found["deployment"] or ""))
    if _MESSAGES.match(path):
        yield Route(WIRES["anthropic"])
    if found := _GENERATE.match(path):
        yield Route(WIRES["google"], unquote(found["model"]), found["action"].startswith("stream"))
