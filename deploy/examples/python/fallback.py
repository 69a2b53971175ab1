"""Ask for a stream, and where that breaks off, once more for the whole answer at once.

The second answer may be worded differently: it takes the place of what was shown, and is not joined to it. Worth it for
answers that must be had, or where a proxy on the way lets no stream through.
"""

import os
import sys
from collections.abc import Callable

import openai

client = openai.OpenAI(
    base_url=os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("MILLRACE_KEY", "unused"),
    max_retries=0,
)


def ask(question: str, show: Callable[[str], None]) -> str:
    """Return the whole answer; ``show`` gets its pieces for as long as they come."""
    body = {"model": "chat", "messages": [{"role": "user", "content": question}]}
    pieces = []
    try:
        for chunk in client.chat.completions.create(**body, stream=True):
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                show(pieces[-1])
    except openai.APIStatusError:  # the request itself will not do
        raise
    except openai.APIError as error:
        print(f"\n-- {error.message}; asking for all of it")
        return client.chat.completions.create(**body).choices[0].message.content or ""
    return "".join(pieces)


answer = ask(" ".join(sys.argv[1:]) or "Tell me a story.", lambda piece: print(piece, end="", flush=True))
print(f"\n-- the answer:\n{answer}")
