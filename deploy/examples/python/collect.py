"""Show an answer while it comes, and have it whole at the end, with what it cost."""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("MILLRACE_KEY", "unused"),
)
stream = client.chat.completions.create(
    model="chat",
    messages=[{"role": "user", "content": " ".join(sys.argv[1:]) or "Tell me a story."}],
    stream=True,
    stream_options={"include_usage": True},
)
pieces: list[str] = []
usage = None
for chunk in stream:
    for choice in chunk.choices:
        piece = choice.delta.content or ""
        pieces.append(piece)
        print(piece, end="", flush=True)
    usage = chunk.usage or usage

answer = "".join(pieces)
tokens = usage.completion_tokens if usage else "an unknown number of"
print(f"\n-- {len(answer)} characters, {tokens} tokens")
