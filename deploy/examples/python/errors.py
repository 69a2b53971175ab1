"""Tell apart what can go wrong: refused, not reached, and broken off after it had begun.

An answer that ends without an exception is whole: the gateway never ends a broken one as if it were.
"""

import os
import sys

import openai

client = openai.OpenAI(
    base_url=os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("MILLRACE_KEY", "unused"),
    max_retries=0,  # the gateway has retried what may be
)
answer = ""
try:
    stream = client.chat.completions.create(
        model=os.environ.get("MILLRACE_MODEL", "chat"),
        messages=[{"role": "user", "content": " ".join(sys.argv[1:]) or "Tell me a story."}],
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            answer += choice.delta.content or ""
except openai.APIStatusError as error:  # before the first token: a status, and nothing has been said
    wait = error.response.headers.get("retry-after")
    told = f"; try again in {wait} s" if wait else ""
    print(f"refused: {error.status_code} {error.code}, request {error.request_id}{told}")
except openai.APIConnectionError:
    print("the gateway cannot be reached, or was lost")
except openai.APIError as error:  # after it: what has come is a true beginning, and not all
    print(f"broke off after {len(answer)} characters: {error.code}")
else:
    print(answer)
