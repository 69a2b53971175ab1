"""The providers, one line each: the ``kind`` of the configuration and the class that speaks its wire."""

from __future__ import annotations

from collections.abc import Callable

from gateway.providers.anthropic import Anthropic
from gateway.providers.base import Provider, ProviderOptions
from gateway.providers.compatible import OpenAICompatible
from gateway.providers.google import Google
from gateway.providers.llama import Llama
from gateway.providers.meta import Meta
from gateway.providers.mistral import Mistral
from gateway.providers.openai import OpenAI

PROVIDERS: dict[str, Callable[[ProviderOptions], Provider]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "google": Google,
    "mistral": Mistral,
    "meta": Meta,
    "llama": Llama,
    "openai-compatible": OpenAICompatible,
}
