"""A provider that can be told how to fail.

The simulator is a real HTTP server. It speaks the wires of OpenAI, Anthropic, Gemini, Mistral, the Llama API and a
dozen hosts that are nearly OpenAI: their paths, headers, events, errors, and the way each goes on with a broken
answer. What it says is decided by the conversation alone, so that a test can repeat itself and so that an answer
that was cut and continued, on whatever wire, is byte for byte the uncut one. Point your own software at it::

    millrace simulate --port 8090
    curl -N localhost:8090/v1/chat/completions -H 'content-type: application/json' -d '{"model":
      "mill?cut_after_tokens=20&cut=rst", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'

or, in a test::

    async with Simulator([Script(cut_after_tokens=20), Script()]) as simulator:
        url = simulator.base_url("anthropic")

Where it listens: the real paths (`/v1/chat/completions`, `/v1/messages`, `/v1beta/models/{model}:generateContent`,
`:streamGenerateContent`, `/v1/models`), and under a prefix those that two providers share: `/openai/v1`,
`/mistral/v1`, `/meta/v1`, `/llama/v1`, `/anthropic`, `/google`, `/hosts/{host}/v1` for azure, deepseek, fireworks,
groq, llama.cpp, ollama, openrouter, perplexity, together, vllm and xai. On the bare chat path a model called
mistral*, ministral*, magistral* or codestral* speaks Mistral's wire. Any API key will do but `wrong-key` (401); any
model but `no-such-model*` (404, or what that provider says instead).

Scripts
-------

A script says how an answer goes. It stands behind a question mark in the model's name (`mill?first_token_s=2`), in
a test as `Script(first_token_s=2)`, or is queued over HTTP, for the next requests: `POST /_sim/scripts` with a JSON
list of scripts, or of `{"script": ..., "path": ...}` for the next request whose path begins so; `DELETE` drops what
is left. Values may be percent-encoded; a switch alone means on.

Before the first byte:

- `status=429`: an HTTP error; `retry_after_s=13` and `error_code=insufficient_quota` go with it.
- `refuse=fin` or `rst`: the request is read, and the connection closed or reset without an answer.
- `head_s=2`: seconds before the status line.

What is said, and how fast:

- `first_token_s=0.05`, `interval_s=0.02`: to the first token, and from token to token.
- `token_count=500`: exactly so many tokens of text. `say=...`: this text.
- `reasoning=on` or `off`: reason first, asked or not. `refusal`: decline.
- `tools=2`: call so many tools in parallel, `tools=0` none. `lead`: say a sentence before calling them.

How a continuation is treated:

- `prefill=accept` or `reject`, `echo=on` or `off`: not as this provider would.
- `obey=exact`: what it does when asked in words to repeat the end of its answer and go on. It may also `rephrase`
  the end, write a `preamble`, `repeat_more`, `repeat_less`, or `ignore` the request and begin another answer.
- `checkpoint_every=16`, `hop_after=40`: how often gemini-4-argon gives a continuation token, and after how many
  tokens it stops with CONTINUATION.

How it breaks, counted in tokens sent (`0`: before the first):

- `stall_after=10`: nothing more for `stall_s=3600`, but pings every `stall_ping_s` if that is given.
- `cut_after_tokens=20`, `cut_after_bytes=1000` (of the body), or `cut_in=start|reasoning|text|tool|finish|usage`: the
  body is cut, half-way through what is said or just after a moment is over. `half_tool`: in the last tool's
  arguments. `cut=fin` closes the connection without the last chunk, `rst` resets it, `clean` ends the body properly.
- `error_after=10`: the provider's own error event, of `error_status=503` and `error_code`; `error_first`: at once.
- `malformed_after=5`: one event whose JSON breaks off. `long_line_after=5`: one line of more than a megabyte.
- `split_bytes=3`: every chunk has so many bytes. `close_delimited`: no chunks, the body ends with the connection.
- `no_end`: no end marker (or, where there is none, no finish). `no_usage`: nothing is said about tokens.
- `after_finish=text` or `duplicate`: text, or the finish again, after the finish.

What it saw: `GET /_sim/requests` lists path, wire, model, tokens and bytes sent, the outcome (open, finished, cut,
error_event, rejected, refused, client_gone, stopped), monotonic times, and whether it was a continuation and in
which way; `?bodies=1` adds the requests' bodies. `DELETE` forgets them. In a test: `simulator.requests`.
"""

from gateway.simulator.account import Record
from gateway.simulator.script import Script, ScriptError, parse_script
from gateway.simulator.server import Simulator

__all__ = ["Record", "Script", "ScriptError", "Simulator", "parse_script"]
