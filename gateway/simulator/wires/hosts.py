"""Where the hosts that speak OpenAI's shapes differ, as a table: one line for each deviation seen on the wire.

`OPENAI` is the original; `GENERIC` is what a well-behaved compatible server does, and what the simulator speaks on
its bare `/v1`. Whether a host goes on with a trailing assistant turn is in `continues`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gateway.simulator.ask import Trailing, invalid

Continues = Callable[[str, Mapping[str, Any], str], Trailing]

_LEFT_OPEN_BY_OLLAMA: Final = re.compile(r"qwen3-coder|qwen3\.5|lfm2|olmo-?3|laguna|cohere|command|aya")
_OPEN_WEIGHTS: Final = re.compile(r"^(mistralai|deepseek|meta-llama|qwen|moonshotai)/")


def _never(_model: str, _body: Mapping[str, Any], _path: str) -> Trailing:
    return "new"


def _always(_model: str, body: Mapping[str, Any], _path: str) -> Trailing:
    return "echo" if body.get("echo") is True else "continue"


def _vllm(_model: str, body: Mapping[str, Any], _path: str) -> Trailing:
    goes_on = body.get("continue_final_message") is True
    if goes_on and body.get("add_generation_prompt", True):
        raise invalid(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    if not goes_on:
        return "new"
    return "echo" if body.get("echo") is True else "continue"


def _deepseek(_model: str, body: Mapping[str, Any], path: str) -> Trailing:
    is_prefix = body["messages"][-1].get("prefix") is True
    return "continue" if is_prefix and "/beta" in path else "new"


def _llamacpp(model: str, body: Mapping[str, Any], path: str) -> Trailing:
    messages = body["messages"]
    if len(messages) > 1 and messages[-2].get("role") == "assistant":
        raise invalid("Cannot have 2 or more assistant messages at the end of the list.")
    return _always(model, body, path)


def _ollama(model: str, _body: Mapping[str, Any], _path: str) -> Trailing:
    return "continue" if _LEFT_OPEN_BY_OLLAMA.search(model.lower()) else "new"


def _openrouter(model: str, _body: Mapping[str, Any], _path: str) -> Trailing:
    if model.startswith("anthropic/"):
        if not accepts_prefill_claude(model.partition("/")[2]):
            raise invalid(NO_PREFILL_CLAUDE)
        return "continue"
    return "continue" if _OPEN_WEIGHTS.match(model) else "new"


NO_PREFILL_CLAUDE: Final = (
    "This model does not support assistant message prefill. The conversation must end with a user message."
)
_CLAUDE_VERSION: Final = re.compile(
    r"claude-(?:(?:opus|sonnet|haiku|fable|mythos)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?![\d])"
)
_LAST_PREFILLED: Final = (4, 5)


def accepts_prefill_claude(model: str) -> bool:
    """Whether this Claude goes on with a trailing assistant turn: up to 4.5, and none since."""
    found = _CLAUDE_VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) <= _LAST_PREFILLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How one host writes OpenAI's chunks."""

    name: str
    id_prefix: str = "chatcmpl-"
    fingerprint: str = "fp_millrace"
    greeting: bytes = b""
    comment: bytes = b""
    reasoning_fields: tuple[str, ...] = ("reasoning_content",)
    has_null_fields: bool = False
    role: Literal["chunk", "first", "every"] = "chunk"
    role_content: str | None = ""
    usage: frozenset[Literal["extra", "finish", "every", "x_groq", "timings"]] = frozenset({"extra"})
    has_unasked_usage: bool = False
    has_null_usage: bool = False
    has_usage_choice: bool = False
    has_named_error: bool = False
    has_whole_calls: bool = False
    has_obfuscation: bool = False
    has_prompt_filter: bool = False
    stop: str = "stop"
    ends_error_with_done: bool = False
    errors: Literal["openai", "code_first", "azure", "named", "plain"] = "openai"
    unknown_model_status: int = 404
    request_id_header: str = "x-request-id"
    extra: Mapping[str, Any] = field(default_factory=dict)
    continues: Continues = _never


GENERIC: Final = Host(name="generic")
OPENAI: Final = Host(
    name="openai", reasoning_fields=(), has_null_usage=True, has_obfuscation=True, extra={"service_tier": "default"}
)

HOSTS: Final = {
    host.name: host
    for host in (
        GENERIC,
        OPENAI,
        Host(name="meta", has_null_usage=True),
        Host(
            name="azure",
            reasoning_fields=(),
            has_null_usage=True,
            has_obfuscation=True,
            has_prompt_filter=True,
            errors="azure",
            request_id_header="apim-request-id",
        ),
        Host(
            name="groq",
            reasoning_fields=("reasoning",),
            usage=frozenset({"finish", "x_groq", "extra"}),
            has_unasked_usage=True,
            has_named_error=True,
            has_whole_calls=True,
            continues=_always,
        ),
        Host(
            name="together",
            id_prefix="o",
            reasoning_fields=("reasoning", "reasoning_content"),
            role="every",
            usage=frozenset({"finish"}),
            has_unasked_usage=True,
            has_null_usage=True,
            stop="eos",
        ),
        Host(name="fireworks", id_prefix="", usage=frozenset({"finish"}), has_unasked_usage=True),
        Host(
            name="deepseek",
            id_prefix="",
            greeting=b": keep-alive\n\n",
            has_null_fields=True,
            comment=b": keep-alive\n\n",
            usage=frozenset({"finish"}),
            has_unasked_usage=True,
            has_null_usage=True,
            unknown_model_status=400,
            continues=_deepseek,
        ),
        Host(name="xai", id_prefix="", role="first", has_unasked_usage=True, has_whole_calls=True),
        Host(
            name="openrouter",
            id_prefix="gen-",
            greeting=b": OPENROUTER PROCESSING\n\n",
            comment=b": OPENROUTER PROCESSING\n\n",
            reasoning_fields=("reasoning",),
            role="every",
            has_unasked_usage=True,
            has_usage_choice=True,
            ends_error_with_done=True,
            errors="code_first",
            unknown_model_status=400,
            request_id_header="x-generation-id",
            extra={"provider": "Millrace"},
            continues=_openrouter,
        ),
        Host(
            name="perplexity",
            id_prefix="",
            role="every",
            usage=frozenset({"every"}),
            has_unasked_usage=True,
            errors="named",
            extra={"citations": ["https://example.org/mill"]},
        ),
        Host(
            name="ollama",
            fingerprint="fp_ollama",
            reasoning_fields=("reasoning",),
            role="every",
            has_whole_calls=True,
            errors="plain",
            continues=_ollama,
        ),
        Host(
            name="vllm",
            id_prefix="chatcmpl-",
            reasoning_fields=("reasoning",),
            ends_error_with_done=True,
            continues=_vllm,
        ),
        Host(
            name="llama.cpp",
            comment=b":\n\n",
            fingerprint="b10499-millrace",
            role_content=None,
            usage=frozenset({"extra", "timings"}),
            errors="named",
            continues=_llamacpp,
        ),
    )
}
