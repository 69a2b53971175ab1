"""The names that traces use: OpenTelemetry's where it has one, ``millrace.*`` where it has none.

Those of a GenAI call are as its conventions stood in September 2026 (repository semantic-conventions-genai, document
client-inference), where ``cache_creation`` had just become ``cache_write``. Of gateways, attempts, stalls and seams
they say nothing. What was said has names there too, which are not here: it cannot be captured by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# --- a GenAI call -----------------------------------------------------------------------------------------------------

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"

REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"

RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"

USAGE_OF_CALL: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.reasoning.output_tokens",
)

CHAT: Final = "chat"
"""The operation, whichever dialect it is asked for in."""

UNFINISHED: Final = "error"
"""The finish reason of a choice that has none because it broke off."""

# --- what all conventions share ---------------------------------------------------------------------------------------

ERROR_TYPE: Final = "error.type"
OTHER_ERROR: Final = "_OTHER"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
PROCESS_ID: Final = "process.pid"

# --- ours -------------------------------------------------------------------------------------------------------------

OURS: Final = "millrace."
"""What begins the name of everything that no convention knows."""

REQUEST_ID: Final = "millrace.request_id"
OUTCOME: Final = "millrace.outcome"
ATTEMPT_COUNT: Final = "millrace.attempt_count"
ATTEMPT: Final = "millrace.attempt"
TARGET: Final = "millrace.target"
RESULT: Final = "millrace.result"
REASON: Final = "millrace.reason"
CODE: Final = "millrace.code"
WAY: Final = "millrace.way"
IS_DELIVERED: Final = "millrace.is_delivered"

USAGE_OF_ATTEMPT: Final = (
    "millrace.usage.input_tokens",
    "millrace.usage.output_tokens",
    "millrace.usage.cache_read.input_tokens",
    "millrace.usage.cache_write.input_tokens",
    "millrace.usage.reasoning.output_tokens",
)
USAGE_IS_ESTIMATED: Final = "millrace.usage.is_estimated"

# --- who is asked -----------------------------------------------------------------------------------------------------

_OF_KINDS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "google": "gcp.gemini",
    "llama": "meta",
    "meta": "meta",
    "mistral": "mistral_ai",
    "openai": "openai",
    "openai-compatible": "openai_compatible",
    "simulator": "simulator",
}

_OF_HOSTS: Final[Mapping[str, str]] = {"azure": "azure.ai.openai", "moonshot": "moonshot_ai", "xai": "x_ai"}
"""Where the conventions have another name for a host than the configuration."""

_OF_ADDRESSES: Final[Mapping[str, str]] = {
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.openai.com": "openai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
}
"""The ends of addresses behind which a provider is that the conventions have a name for."""


def provider_name(kind: str, host: str | None = None, address: str = "") -> str:
    """Return what ``gen_ai.provider.name`` says of a provider with this kind, known host and address.

    A known host that the conventions have no name for goes by its own, as they allow.
    """
    if host:
        return _OF_HOSTS.get(host, host)
    for end, name in _OF_ADDRESSES.items():
        if address == end or address.endswith((f".{end}", f"-{end}")):
            return name
    return _OF_KINDS.get(kind, kind)
