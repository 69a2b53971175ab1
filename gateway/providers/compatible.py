"""Every host that speaks OpenAI's Chat Completions, the well-known ones by name.

``host:`` in the configuration fills in the base URL, the header of the key and what the host does differently, from the
table below; a ``base_url`` beats it. A host that is not here needs no code: it is a ``base_url``.

Of the answers nothing has to be said per host: the decoder copes with what any of them is known to send, comments,
``reasoning`` beside ``reasoning_content``, ``x_groq``, missing roles and indices, usage on odd chunks, errors in a 200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

from gateway.core.call import Call
from gateway.core.errors import ConfigError
from gateway.providers.anthropic import takes_open_turn
from gateway.providers.openai import OPENAI_WIRE, OpenAI, Prefill, Wire


@dataclass(frozen=True, slots=True)
class Host:
    """Where a well-known host is, and how its wire differs. An empty ``base_url`` has to be configured."""

    base_url: str
    wire: Wire = field(default_factory=Wire)


def _adapt_deepseek(body: dict[str, Any], call: Call) -> None:  # noqa: ARG001, the signature of Wire.adapt
    """DeepSeek's efforts are low, high and max."""
    effort = body.get("reasoning_effort")
    if effort in ("none", "minimal"):
        body.pop("reasoning_effort")
        body.setdefault("thinking", {"type": "disabled"})
    elif effort is not None:
        body["reasoning_effort"] = {"low": "low", "medium": "high", "high": "high", "xhigh": "max"}.get(effort, effort)


_LEFT_OPEN_BY_OLLAMA = re.compile(
    r"(?:[\w.-]+/)?(?:qwen3-coder|qwen3\.5|lfm2|olmo-?3|laguna|cohere|command)", re.IGNORECASE
)
"""The models whose last turn Ollama's own renderers leave open; it is closed by others, or in a way nobody knows."""

_OPEN_WEIGHTS = re.compile(r"(?:deepseek|meta-llama|mistralai|moonshotai|qwen)/", re.IGNORECASE)


def _is_left_open_by_ollama(model: str) -> bool:
    return _LEFT_OPEN_BY_OLLAMA.match(model) is not None


def _is_continued_by_openrouter(model: str) -> bool:
    """OpenRouter passes the turn on as it is: the model behind it decides."""
    if model.startswith("anthropic/"):
        return takes_open_turn(model)
    return _OPEN_WEIGHTS.match(model) is not None


def _is_text_model_of_groq(model: str) -> bool:
    """Of the models that answer in OpenAI's harmony format nothing is documented."""
    return "gpt-oss" not in model


_UNKNOWN = Host("")
_NO_REASONING_BACK = Wire(takes_reasoning_back=False)

HOSTS: dict[str, Host] = {
    "alibaba": Host("https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    "avian": Host("https://api.avian.io/v1"),
    "azure": Host("", replace(OPENAI_WIRE, key_header="api-key")),
    "cerebras": Host("https://api.cerebras.ai/v1", _NO_REASONING_BACK),
    "crusoe": Host("https://hub.crusoecloud.com/v1"),
    "deepinfra": Host("https://api.deepinfra.com/v1/openai"),
    "deepseek": Host(
        "https://api.deepseek.com", Wire(prefill=Prefill(turn={"prefix": True}, path="/beta"), adapt=_adapt_deepseek)
    ),
    "doubleword": Host("https://api.doubleword.ai/v1"),
    "fireworks": Host("https://api.fireworks.ai/inference/v1"),
    "github-copilot": Host("https://api.githubcopilot.com"),
    "gpustack": Host("http://127.0.0.1/v1"),
    "groq": Host(
        "https://api.groq.com/openai/v1",
        Wire(
            max_tokens_key="max_completion_tokens",
            takes_reasoning_back=False,
            prefill=Prefill(models=_is_text_model_of_groq),
        ),
    ),
    "huggingface": Host("https://router.huggingface.co/v1"),
    "litellm-proxy": Host("http://127.0.0.1:4000/v1"),
    "llama.cpp": Host("http://127.0.0.1:8080/v1", Wire(prefill=Prefill())),
    "lmstudio": Host("http://127.0.0.1:1234/v1"),
    "mistralrs": Host("http://127.0.0.1:1234/v1"),
    "moonshot": Host("https://api.moonshot.ai/v1"),
    "nebius": Host("https://api.studio.nebius.com/v1"),
    "nvidia": Host("https://integrate.api.nvidia.com/v1"),
    "ollama": Host("http://127.0.0.1:11434/v1", Wire(prefill=Prefill(models=_is_left_open_by_ollama))),
    "openrouter": Host(
        "https://openrouter.ai/api/v1",
        Wire(has_developer_role=True, prefill=Prefill(models=_is_continued_by_openrouter, takes_space=False)),
    ),
    "perplexity": Host("https://api.perplexity.ai", _NO_REASONING_BACK),
    "requesty": Host("https://router.requesty.ai/v1", Wire(has_developer_role=True)),
    "sambanova": Host("https://api.sambanova.ai/v1"),
    "snowflake": Host("", Wire(done_is_end=True)),
    "together": Host("https://api.together.xyz/v1"),
    "venice": Host("https://api.venice.ai/api/v1"),
    "vercel": Host("https://ai-gateway.vercel.sh/v1", Wire(has_developer_role=True)),
    "vllm": Host(
        "http://127.0.0.1:8000/v1",
        Wire(prefill=Prefill(body={"continue_final_message": True, "add_generation_prompt": False, "echo": False})),
    ),
    "xai": Host("https://api.x.ai/v1", _NO_REASONING_BACK),
    "zai": Host("https://api.z.ai/api/paas/v4"),
}
"""The hosts known by name. Local engines are where they listen by default."""


@dataclass(frozen=True)
class OpenAICompatible(OpenAI):
    """A provider that speaks Chat Completions at ``options.base_url``, or at the well-known ``options.host``.

    Raises ``ConfigError`` for a host that is not in the table, or when neither says where it is.
    """

    def __post_init__(self) -> None:
        """Check what the configuration says of the host."""
        options = self.options
        if options.host is not None and options.host not in HOSTS:
            expected = f"expected one of {', '.join(HOSTS)}, got {options.host!r}"
            raise ConfigError([f"providers.{options.name}.host: {expected}"])
        if not self.base_url:
            expected = "expected the address of the host, such as http://127.0.0.1:8000/v1"
            raise ConfigError([f"providers.{options.name}.base_url: {expected}"])

    @cached_property
    def host(self) -> Host:
        """What is known of the host; nothing for one that has only an address."""
        return HOSTS[self.options.host] if self.options.host else _UNKNOWN

    @cached_property
    def wire(self) -> Wire:
        """How the host deviates."""
        return self.host.wire

    @cached_property
    def base_url(self) -> str:
        """Where the host is: as configured, or where it is known to be."""
        return self.options.base_url_or(self.host.base_url)

    def url(self, call: Call) -> str:
        """Return the address that answers ``call``; Azure's has the deployment in it when it has an ``api_version``."""
        if not self.options.api_version:
            return super().url(call)
        deployment = quote(call.target_model, safe="")
        query = urlencode({"api-version": self.options.api_version})
        return f"{self.base_url}/openai/deployments/{deployment}{self.wire.path}?{query}"

    @cached_property
    def _usual_url(self) -> str:
        return "" if self.options.api_version else super()._usual_url
