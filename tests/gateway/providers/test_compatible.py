from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

from gateway.core.call import Call, Target
from gateway.core.continuation import Continuation
from gateway.core.errors import ConfigError, StreamInterrupted
from gateway.core.events import ChoiceFinished, StreamStarted, TextDelta
from gateway.core.lifecycle import Lifecycle
from gateway.dialects.openai_request import read_request
from gateway.providers.base import ProviderOptions, UpstreamRequest
from gateway.providers.compatible import HOSTS, OpenAICompatible

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
NAMELESS = sorted(name for name, host in HOSTS.items() if not host.base_url)
"""Hosts that are somewhere else for everybody."""


def make_provider(host: str | None = None, **options: Any) -> OpenAICompatible:
    """Return a provider for a host, with a key."""
    return OpenAICompatible(ProviderOptions(name="p", host=host, **{"api_key": "secret-key", **options}))


def make_call(body: dict[str, Any], model: str = "m") -> Call:
    """Return the call that a client's body becomes."""
    call = Call(request_id="t", target=Target("p", model))
    return read_request(msgspec.json.encode({"model": "chat", **HELLO, **body}), call)


def make_request(host: str | None, body: dict[str, Any], model: str = "m", **options: Any) -> UpstreamRequest:
    """Return the request that a host is sent for a client's body."""
    return make_provider(host, **options).request(make_call(body, model))


def write(host: str | None, body: dict[str, Any], model: str = "m", **options: Any) -> dict[str, Any]:
    """Return the body that a host is sent."""
    written: dict[str, Any] = msgspec.json.decode(make_request(host, body, model, **options).body)
    return written


def faults(**options: Any) -> list[str]:
    """Return what is wrong with a configuration."""
    with pytest.raises(ConfigError) as refused:
        make_provider(**options)
    return refused.value.faults


# --- where a host is


@pytest.mark.parametrize("host", sorted(HOSTS.keys() - NAMELESS))
def test_a_known_host_needs_only_its_name(host: str) -> None:
    """The table says where it is."""
    url = make_request(host, {}).url
    assert url == HOSTS[host].base_url + "/chat/completions"
    assert url.startswith(("https://", "http://127.0.0.1"))


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_base_url_beats_the_host(host: str) -> None:
    """What else is known of the host still holds."""
    assert make_request(host, {}, base_url="http://10.0.0.1/v1/").url == "http://10.0.0.1/v1/chat/completions"
    assert make_provider(host, base_url="http://10.0.0.1").wire is HOSTS[host].wire


def test_a_host_that_is_not_in_the_table_is_a_base_url() -> None:
    """No code is needed for it."""
    request = make_request(None, {"x_extra": 1}, base_url="http://10.0.0.1/v1", api_key=None)
    assert request.url == "http://10.0.0.1/v1/chat/completions"
    assert "authorization" not in request.headers
    assert msgspec.json.decode(request.body) == {**HELLO, "model": "m", "x_extra": 1}


@pytest.mark.parametrize("options", [{}, *({"host": host} for host in NAMELESS)])
def test_a_provider_that_is_nowhere_is_a_fault(options: dict[str, str]) -> None:
    """It is found at the start, with the key that is missing."""
    [fault] = faults(**options)
    assert fault.startswith("providers.p.base_url: expected the address")


def test_an_unknown_host_is_a_fault() -> None:
    """All the known ones are named."""
    [fault] = faults(host="gorq")
    assert fault.startswith("providers.p.host: expected one of alibaba, ")
    assert fault.endswith("got 'gorq'")


# --- Azure

AZURE = {"host": "azure", "base_url": "https://res.openai.azure.com"}


def test_azure_with_an_api_version_has_the_deployment_in_its_address() -> None:
    """Which is quoted, whatever it is called."""
    request = make_request(**AZURE, body={}, model="my gpt/4", api_version="2024-10-21")
    assert request.url == (
        "https://res.openai.azure.com/openai/deployments/my%20gpt%2F4/chat/completions?api-version=2024-10-21"
    )


def test_azure_without_an_api_version_is_its_newer_address() -> None:
    """The base URL has all of it."""
    request = make_request(host="azure", base_url="https://res.openai.azure.com/openai/v1/", body={}, model="gpt-4o")
    assert request.url == "https://res.openai.azure.com/openai/v1/chat/completions"


def test_azures_key_has_a_header_of_its_own() -> None:
    """Bare, without ``Bearer``."""
    headers = make_request(**AZURE, body={}).headers
    assert headers["api-key"] == "secret-key"
    assert "authorization" not in headers


def test_azure_takes_what_openai_takes() -> None:
    """Its models are OpenAI's: the developer's role, and the limit that a reasoning model wants."""
    messages = [{"role": "developer", "content": "S"}]
    written = write(**AZURE, body={"messages": messages, "max_completion_tokens": 9})
    assert (written["messages"], written["max_completion_tokens"]) == (messages, 9)
    assert write(**AZURE, body={"max_tokens": 9, "temperature": 0.5}, model="gpt-5-mini") == {
        **HELLO,
        "model": "gpt-5-mini",
        "max_completion_tokens": 9,
    }


def test_an_api_version_elsewhere_is_an_azure_address_too() -> None:
    """A proxy in front of Azure need not be called ``azure``."""
    url = make_request(None, {}, base_url="http://proxy", api_version="v1").url
    assert url == "http://proxy/openai/deployments/m/chat/completions?api-version=v1"


# --- what hosts do differently


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("low", {"reasoning_effort": "low"}),
        ("medium", {"reasoning_effort": "high"}),
        ("high", {"reasoning_effort": "high"}),
        ("xhigh", {"reasoning_effort": "max"}),
        ("max", {"reasoning_effort": "max"}),
        ("none", {"thinking": {"type": "disabled"}}),
        ("minimal", {"thinking": {"type": "disabled"}}),
        (None, {"reasoning_effort": None}),
    ],
)
def test_deepseek_has_efforts_of_its_own(asked: str | None, sent: dict[str, Any]) -> None:
    """Low, high and max, or no thinking at all."""
    assert write("deepseek", {"reasoning_effort": asked}) == {**HELLO, "model": "m", **sent}


def test_a_word_on_deepseeks_thinking_is_kept() -> None:
    """The client's own beats what the effort would mean."""
    body = {"reasoning_effort": "none", "thinking": {"type": "enabled"}}
    assert write("deepseek", body)["thinking"] == {"type": "enabled"}


THOUGHT = {"role": "assistant", "content": "a", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("host", "takes_back"),
    [("deepseek", True), ("openrouter", True), ("vllm", True), ("groq", False), ("xai", False), ("perplexity", False)],
)
def test_reasoning_goes_back_only_to_who_takes_it(host: str, *, takes_back: bool) -> None:
    """DeepSeek demands it, others refuse it."""
    [turn] = write(host, {"messages": [THOUGHT]})["messages"]
    assert (turn == THOUGHT) is takes_back


@pytest.mark.parametrize(
    ("host", "role"), [("azure", "developer"), ("openrouter", "developer"), ("groq", "system"), ("ollama", "system")]
)
def test_the_developer_is_the_system_to_most_hosts(host: str, role: str) -> None:
    """Only OpenAI's own and those that translate for it know the role."""
    options = {"base_url": "http://x"}
    assert write(host, {"messages": [{"role": "developer", "content": "S"}]}, **options)["messages"][0]["role"] == role


@pytest.mark.parametrize(
    ("host", "key"), [("groq", "max_completion_tokens"), ("together", "max_tokens"), ("vllm", "max_tokens")]
)
def test_a_limit_goes_by_the_hosts_name(host: str, key: str) -> None:
    """Whichever of the two the client used."""
    assert write(host, {"max_completion_tokens": 9}) == {**HELLO, "model": "m", key: 9}


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_usage_is_asked_of_every_host(host: str) -> None:
    """The gateway counts."""
    assert write(host, {"stream": True}, base_url="http://x")["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("host", "is_whole"), [("snowflake", True), ("vllm", False)])
def test_only_snowflake_ends_without_a_finish_reason(host: str, *, is_whole: bool) -> None:
    """Elsewhere ``[DONE]`` without one is an interruption."""
    decoder = make_provider(host, base_url="http://x").decoder(make_call({"stream": True}))
    chunk = {"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "b"}}]}
    decoder.feed(b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode(chunk))
    if is_whole:
        decoder.finish()
    else:
        with pytest.raises(StreamInterrupted):
            decoder.finish()


def test_a_choice_that_a_whole_answer_has_twice_is_read_once() -> None:
    """What is passed on stays legal: the first is the choice, and a second finish of it is none."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    again = {"message": {"content": "b"}, "finish_reason": "length", "index": 0}
    events = make_provider("vllm", base_url="http://x").answer(
        make_call({}), msgspec.json.encode({"id": "a", "choices": [choice, again]})
    )
    assert [type(event) for event in events] == [StreamStarted, TextDelta, ChoiceFinished]
    assert Lifecycle().admit(events) == events


# --- going on with an answer


def go_on(text: str = "So ", model: str = "m", body: dict[str, Any] | None = None) -> Call:
    """Return a call that is to go on with ``text``."""
    return structs.replace(make_call(body or {}, model), continuation=Continuation(way="exact", text=text))


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_only_hosts_that_are_known_for_it_go_on_with_an_answer(host: str) -> None:
    """Of all others an operator may say so, and of those that they shall not."""
    known = {"deepseek", "groq", "llama.cpp", "vllm"}
    call = go_on()
    at = {"base_url": "http://h/v1"}
    assert make_provider(host, **at).continues(call) is (host in known)
    assert make_provider(host, **at, continuation="exact").continues(call)
    assert not make_provider(host, **at, continuation="anchored").continues(call)


@pytest.mark.parametrize(
    ("host", "model", "expected"),
    [
        ("ollama", "qwen3-coder:30b", True),
        ("ollama", "someone/Qwen3.5:9b", True),
        ("ollama", "olmo-3:7b", True),
        ("ollama", "lfm2.5", True),
        ("ollama", "laguna", True),
        ("ollama", "command-a", True),
        ("ollama", "qwen3:8b", False),
        ("ollama", "deepseek-v3", False),
        ("ollama", "gpt-oss:20b", False),
        ("ollama", "hf.co/someone/qwen3-coder-GGUF", False),
        ("openrouter", "anthropic/claude-haiku-4.5", True),
        ("openrouter", "anthropic/claude-3.7-sonnet", True),
        ("openrouter", "anthropic/claude-opus-4.6", False),
        ("openrouter", "anthropic/claude-sonnet-5", False),
        ("openrouter", "mistralai/mistral-large", True),
        ("openrouter", "deepseek/deepseek-v4-pro", True),
        ("openrouter", "meta-llama/llama-4-maverick", True),
        ("openrouter", "qwen/qwen3-max", True),
        ("openrouter", "moonshotai/kimi-k2", True),
        ("openrouter", "openai/gpt-5", False),
        ("openrouter", "google/gemini-3-pro", False),
        ("groq", "llama-3.3-70b-versatile", True),
        ("groq", "openai/gpt-oss-120b", False),
    ],
)
def test_hosts_of_many_models_go_on_with_some(host: str, model: str, *, expected: bool) -> None:
    """What a renderer leaves open, what is documented, and what the model behind the host takes."""
    assert make_provider(host).continues(go_on(model=model)) is expected


@pytest.mark.parametrize(
    ("host", "turn", "extra"),
    [
        ("deepseek", {"prefix": True}, {}),
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False, "echo": False}),
        ("llama.cpp", {}, {}),
        ("groq", {}, {}),
        ("ollama", {}, {}),
        ("together", {}, {}),
    ],
)
def test_each_host_is_asked_in_its_own_way(host: str, turn: dict[str, Any], extra: dict[str, Any]) -> None:
    """By keys of the turn, by keys of the body, or by the turn alone."""
    body = msgspec.json.decode(make_provider(host).request(go_on(body={"echo": True} if extra else {})).body)
    messages = [*HELLO["messages"], {"role": "assistant", "content": "So ", **turn}]
    assert body == {"model": "m", "messages": messages, **extra}


def test_white_space_at_the_end_is_kept_back_from_openrouter() -> None:
    """Anthropic's models behind it refuse it."""
    body = msgspec.json.decode(make_provider("openrouter").request(go_on(model="anthropic/claude-haiku-4.5")).body)
    assert body["messages"][-1] == {"role": "assistant", "content": "So"}


@pytest.mark.parametrize("base_url", [None, "https://api.deepseek.com/v1", "https://api.deepseek.com/beta/"])
def test_deepseek_goes_on_at_its_beta_address(base_url: str | None) -> None:
    """And answers at the other one."""
    provider = make_provider("deepseek", base_url=base_url)
    assert provider.request(go_on()).url == "https://api.deepseek.com/beta/chat/completions"
    expected = (base_url or "https://api.deepseek.com").rstrip("/")
    assert provider.request(make_call({})).url == f"{expected}/chat/completions"
    assert provider.request(go_on("")).url == f"{expected}/chat/completions"


def test_azures_address_stays_its_own() -> None:
    """Whatever the operator says of it."""
    provider = make_provider(**AZURE, api_version="v1", continuation="exact")
    assert provider.request(go_on()).url == provider.request(make_call({})).url
