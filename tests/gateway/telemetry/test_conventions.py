from __future__ import annotations

import re

import pytest
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    http_attributes,
    process_attributes,
    server_attributes,
    service_attributes,
    url_attributes,
)

from gateway.telemetry import conventions
from gateway.telemetry.conventions import provider_name

NEWER = {"gen_ai.usage.cache_write.input_tokens", "gen_ai.request.reasoning.level"}
"""What the conventions have had since OpenTelemetry's package of names was made."""

CONTENT = {"messages", "instructions", "definitions", "arguments", "result", "prompt", "completion", "stop_sequences"}


def names() -> set[str]:
    """Return all names of attributes that there are."""
    found: set[str] = set()
    for value in vars(conventions).values():
        for name in value if isinstance(value, tuple) else (value,):
            if isinstance(name, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name):
                found.add(name)
    return found


def official() -> set[str]:
    """Return the names that OpenTelemetry has published."""
    modules = (
        error_attributes,
        gen_ai_attributes,
        http_attributes,
        process_attributes,
        server_attributes,
        service_attributes,
        url_attributes,
    )
    return {value for module in modules for value in vars(module).values() if isinstance(value, str)}


def test_every_name_is_the_conventions_or_begins_with_ours() -> None:
    """Nothing looks like a name of OpenTelemetry's that is none."""
    ours = {name for name in names() if name.startswith(conventions.OURS)}
    theirs = {name for name in names() - ours if not name.startswith("gateway.")}
    assert theirs - official() == NEWER
    assert len(ours) > 10


def test_no_name_is_for_what_was_said() -> None:
    """Messages, instructions, tools and their arguments have names in the conventions, and none here."""
    assert [name for name in names() if name.startswith("gen_ai.") and CONTENT & set(name.split("."))] == []


@pytest.mark.parametrize(
    ("kind", "host", "address", "name"),
    [
        ("openai", None, "api.openai.com", "openai"),
        ("anthropic", None, "", "anthropic"),
        ("google", None, "generativelanguage.googleapis.com", "gcp.gemini"),
        ("google", None, "us-central1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("mistral", None, "", "mistral_ai"),
        ("meta", None, "", "meta"),
        ("llama", None, "", "meta"),
        ("simulator", None, "127.0.0.1", "simulator"),
        ("openai-compatible", "azure", "mine.openai.azure.com", "azure.ai.openai"),
        ("openai-compatible", "groq", "", "groq"),
        ("openai-compatible", "xai", "", "x_ai"),
        ("openai-compatible", "vllm", "127.0.0.1", "vllm"),
        ("openai-compatible", None, "api.deepseek.com", "deepseek"),
        ("openai-compatible", None, "mine.openai.azure.com", "azure.ai.openai"),
        ("openai-compatible", None, "notapi.x.ai", "openai_compatible"),
        ("openai-compatible", None, "10.0.0.1", "openai_compatible"),
        ("of-another-package", None, "", "of-another-package"),
    ],
)
def test_a_provider_is_called_what_the_conventions_call_it(
    kind: str, host: str | None, address: str, name: str
) -> None:
    """A known host, else a known address, else the kind decides."""
    assert provider_name(kind, host, address) == name
