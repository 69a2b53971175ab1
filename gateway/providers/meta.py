"""Meta's Model API: OpenAI's shapes at ``api.meta.ai``.

Its models always reason and refuse the effort ``none``; the least they take is ``minimal``. Llama models elsewhere are
``openai-compatible``, and the Llama API's own stream events are ``llama``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.core.call import Call
from gateway.providers.openai import OpenAI, Wire


def _adapt(body: dict[str, Any], call: Call) -> None:  # noqa: ARG001, the signature of Wire.adapt
    if body.get("reasoning_effort") == "none":
        body["reasoning_effort"] = "minimal"


_WIRE = Wire(takes_reasoning_back=False, adapt=_adapt)


class Meta(OpenAI):
    """A provider that speaks to Meta's Model API."""

    default_base_url: ClassVar[str] = "https://api.meta.ai/v1"

    @property
    def wire(self) -> Wire:
        """How Meta's Model API deviates."""
        return _WIRE
