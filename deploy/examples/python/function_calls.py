"""Stream function calls, run the functions, and stream the answer that rests on their results.

A call arrives in pieces: its id and name once, its arguments as JSON that is whole only when the stream has ended.
"""

import json
import os
import sys
from typing import Any

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("MILLRACE_KEY", "unused"),
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "get_time", "parameters": CITY}},
]


def call(name: str, arguments: dict[str, Any]) -> str:
    """Run a function of ours."""
    print(f"-- {name}({arguments['city']})")
    return json.dumps({"get_weather": {"sky": "clear"}, "get_time": {"hour": 9}}[name])


def answer(messages: list[Any]) -> dict[str, Any]:
    """Stream one answer; returns it as the message to go on with."""
    text, calls = "", {}
    for chunk in client.chat.completions.create(model="chat", messages=messages, tools=TOOLS, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
            for piece in choice.delta.tool_calls or []:
                known = calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
                known["id"] = piece.id or known["id"]
                if piece.function:
                    known["name"] += piece.function.name or ""
                    known["arguments"] += piece.function.arguments or ""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in calls.values()
        ]
    return message


messages: list[Any] = [{"role": "user", "content": " ".join(sys.argv[1:]) or "What are weather and time in Oslo?"}]
while True:
    message = answer(messages)
    messages.append(message)
    if "tool_calls" not in message:
        break
    for asked in message["tool_calls"]:
        result = call(asked["function"]["name"], json.loads(asked["function"]["arguments"]))
        messages.append({"role": "tool", "tool_call_id": asked["id"], "content": result})
print()
