"""The table of hosts says where each differs."""

import pytest

from gateway.simulator.wires.hosts import HOSTS, accepts_prefill_claude


@pytest.mark.parametrize(
    ("model", "accepts"),
    [
        ("claude-opus-4-5", True),
        ("claude-sonnet-4-5-20250929", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-3-5-sonnet-20240620", True),
        ("claude-haiku-4.5", True),
        ("claude-opus-4-6", False),
        ("claude-sonnet-4-6", False),
        ("claude-opus-5", False),
        ("claude-fable-5-1", False),
        ("claude-haiku-5-5-20260901", False),
        ("mill", False),
    ],
)
def test_claude_continues_a_trailing_turn_up_to_4_5(model: str, accepts: bool) -> None:  # noqa: FBT001 - a table
    """Dates in a name are no versions."""
    assert accepts_prefill_claude(model) is accepts


def test_hosts_are_known_by_name() -> None:
    """All that the documentation names."""
    named = "azure deepseek fireworks groq llama.cpp ollama openrouter perplexity together vllm xai"
    assert {*named.split(), "generic", "openai", "meta"} == set(HOSTS)
