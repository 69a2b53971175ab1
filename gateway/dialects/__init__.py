"""The dialects that clients speak, one line each."""

from __future__ import annotations

from gateway.dialects.base import Dialect
from gateway.dialects.openai_chat import OpenAIChat
from gateway.dialects.plain_text import PlainText

DIALECTS: dict[str, Dialect] = {
    "openai_chat": OpenAIChat(),
    "plain_text": PlainText(),
}
