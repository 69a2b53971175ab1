"""Every path leads to its wire."""

import pytest

from gateway.simulator.wires.hosts import HOSTS
from gateway.simulator.wires.routes import WIRES, base_path, find_route, split_target


@pytest.mark.parametrize(
    ("path", "model", "name"),
    [
        ("/v1/chat/completions", "mill", "generic"),
        ("/v1/chat/completions", "mistral-large", "mistral"),
        ("/v1/chat/completions", "ministral-3b", "mistral"),
        ("/v1/chat/completions", "magistral-medium", "mistral"),
        ("/v1/chat/completions", "codestral", "mistral"),
        ("/openai/v1/chat/completions", "mistral-large", "openai"),
        ("/mistral/v1/chat/completions", "mill", "mistral"),
        ("/meta/v1/chat/completions", "muse", "meta"),
        ("/llama/v1/chat/completions", "Llama-4", "llama"),
        ("/v1/messages", "claude", "anthropic"),
        ("/anthropic/v1/messages", "claude", "anthropic"),
        ("/hosts/deepseek/chat/completions", "m", "deepseek"),
        ("/hosts/deepseek/beta/chat/completions", "m", "deepseek"),
        ("/hosts/azure/openai/deployments/gpt/chat/completions", "", "azure"),
        ("/hosts/llama.cpp/v1/chat/completions", "m", "llama.cpp"),
    ],
)
def test_a_path_leads_to_its_wire(path: str, model: str, name: str) -> None:
    """On the bare chat path the model decides."""
    route = find_route("POST", path, model)
    assert route is not None
    assert route.wire.name == name


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_host_has_a_base(name: str) -> None:
    """And its chat path leads back to it."""
    route = find_route("POST", base_path(name) + "/chat/completions")
    assert route is not None
    assert route.wire.name == name


@pytest.mark.parametrize(
    ("kind", "path"),
    [("openai-compatible", "/v1"), ("openai", "/openai/v1"), ("anthropic", "/anthropic"), ("google", "/google")],
)
def test_every_kind_has_a_base(kind: str, path: str) -> None:
    """An unknown one is an error that names them all."""
    assert base_path(kind) == path
    with pytest.raises(ValueError, match="no wire is called 'nobody'; there are anthropic, azure"):
        base_path("nobody")


@pytest.mark.parametrize("prefix", ["", "/google"])
@pytest.mark.parametrize("name", ["gemini-2.5-flash", "mill%3Fcut=rst%26no_end", "mill?cut=rst&no_end"])
def test_a_gemini_path_says_the_model_and_whether_to_stream(prefix: str, name: str) -> None:
    """A script in it may be percent-encoded or not."""
    target = f"{prefix}/v1beta/models/{name}:streamGenerateContent?alt=sse"
    path, query = split_target(target)
    route = find_route("POST", path)
    assert query == "alt=sse"
    assert route is not None
    assert route.is_stream_path
    assert route.model in ("gemini-2.5-flash", "mill?cut=rst&no_end")
    once = find_route("POST", f"{prefix}/v1beta/models/m:generateContent")
    assert once is not None
    assert not once.is_stream_path


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/models", "generic"), ("/v1beta/models", "google"), ("/mistral/v1/models", "mistral")]
)
def test_models_are_asked_for_with_get(path: str, name: str) -> None:
    """And only with GET."""
    route = find_route("GET", path)
    assert route is not None
    assert route.is_models
    assert route.wire is WIRES[name]
    assert find_route("POST", path) is None


@pytest.mark.parametrize("path", ["/", "/v1", "/hosts/nobody/v1/chat/completions", "/v1/embeddings"])
def test_other_paths_lead_nowhere(path: str) -> None:
    """There is no such provider."""
    assert find_route("POST", path) is None
    assert find_route("GET", path) is None
