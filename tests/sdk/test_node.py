"""The JavaScript clients against the gateway, over every provider's wire: OpenAI's own, and Vercel's AI SDK.

One process for each client and provider asks everything at once; what it heard comes back as JSON.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Final

import pytest

from gateway.simulator.scene import Scene
from tests.conftest import KINDS, QUICK, MakeGateway, Running, model_of
from tests.sdk.install import HERE, find_node, why_not
from tests.sdk.truth import (
    FAULTS,
    HALF,
    HELD,
    NEVER_THINKS,
    PROMPT,
    RESULTS,
    SCHEMAS,
    SHORT,
    THINKS_IN_SECRET,
    TOOL_PROMPT,
    answer_after_tools,
    calls_of,
    faulty,
    reasoning_of,
    scene_of,
    text_of,
)

LONGEST_S: Final = 120
NODE: Final = find_node()
WHY_NOT: Final = why_not(NODE)
HALVES: Final = [f"{kept}-{fault}" for kept in (HALF, HELD) for fault in FAULTS]
"""The models that break inside a tool call."""
RIVER: Final = {"type": "object", "properties": {"name": {"type": "string"}, "length_km": {"type": "number"}}}

PROVIDERS: Final = ("compatible", "openai")
"""Those of the AI SDK."""

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
every_kind: Final = pytest.mark.parametrize("kind", KINDS)

Heard = dict[str, dict[str, Any]]


async def run_client(running: Running, script: str) -> Heard:
    """Run a client; returns what each of its scenarios heard."""
    assert NODE is not None
    job = {
        "baseURL": f"{running.url}/v1",
        "prompt": PROMPT,
        "toolPrompt": TOOL_PROMPT,
        "schemas": SCHEMAS,
        "results": RESULTS,
        "faults": list(FAULTS),
        "halves": HALVES,
    }
    process = await asyncio.create_subprocess_exec(
        NODE.path,
        HERE / "clients" / script,
        json.dumps(job),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LONGEST_S):
            told, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complained.decode()
    heard: Heard = json.loads(told)
    return heard


def configured(kind: str) -> dict[str, Any]:
    """Return a configuration with the model ``chat``, which is brief, ``full``, which is not, and those that break."""
    config = faulty(kind)
    brief = {"targets": [f"{model_of(kind)}?token_count={SHORT.token_count}"]}
    return {**config, "models": {"full": config["models"]["chat"], **config["models"], "chat": brief}}


@every_kind
async def test_openais_client_for_node_hears_the_provider_out(make_gateway: MakeGateway, kind: str) -> None:
    """Created, by the helper or whole: text, tool calls, reasoning, finish and usage are the simulator's."""
    heard = await run_client(await make_gateway(config=configured(kind)), "openai_node.mjs")
    said, called, thought = _scenes(kind)
    ways = ("create", "helper", "whole")

    for name, scene, finish in (
        ("text", said, "stop"),
        ("tools", called, "tool_calls"),
        ("reasoning", thought, "stop"),
    ):
        got = [heard[f"{way}-{name}"] for way in ways]
        assert [one["text"] for one in got] == [text_of(scene.answers[0])] * 3
        assert [one["calls"] for one in got] == [_calls(scene)] * 3
        assert [one["finish"] for one in got] == [finish] * 3
        usage = (scene.prompt_tokens, scene.output_tokens)
        assert [(one["usage"]["prompt_tokens"], one["usage"]["completion_tokens"]) for one in got] == [usage] * 3
        assert len(heard[f"create-{name}"]["identities"]) == 1
        assert heard[f"create-{name}"]["afterUsage"] == 0
    for way in ("create", "whole"):  # the helper keeps only the last piece of what it does not know
        assert heard[f"{way}-reasoning"]["reasoning"] == _shown(kind, thought)
    assert heard["run-tools"]["text"] == text_of(answer_after_tools())
    assert heard["run-tools"]["executed"] == _calls(called)
    _check_broken(heard, ("create", "helper"))
    _check_broken_calls(heard, ("create", "helper", "run"), called)


@every_kind
async def test_vercels_ai_sdk_hears_the_provider_out(make_gateway: MakeGateway, kind: str) -> None:
    """With both of its providers, streamed or whole, also in its own loop of tool calls."""
    heard = await run_client(await make_gateway(config=configured(kind)), "vercel_ai.mjs")
    said, called, thought = _scenes(kind)
    river = json.loads(text_of(scene_of(("user", PROMPT), script=QUICK, answer_schema=RIVER).answers[0]))

    for provider in PROVIDERS:
        for name, scene, finish in (
            ("stream-text", said, "stop"),
            ("whole-text", said, "stop"),
            ("stream-tools", called, "tool-calls"),
            ("whole-tools", called, "tool-calls"),
            ("stream-reasoning", thought, "stop"),
        ):
            got = heard[f"{provider}-{name}"]
            assert got["text"] == text_of(scene.answers[0])
            assert got["calls"] == _calls(scene)
            assert got["finish"] == finish
            usage = (scene.prompt_tokens, scene.output_tokens)
            assert (got["usage"]["inputTokens"], got["usage"]["outputTokens"]) == usage
        loop = heard[f"{provider}-stream-loop"]
        assert loop["text"] == text_of(answer_after_tools())
        assert loop["calls"] == loop["executed"] == _calls(called)
        assert loop["finish"] == "stop"
        for way in ("stream", "whole"):
            assert json.loads(heard[f"{provider}-{way}-object"]["text"]) == river
    # the provider for OpenAI does not look for reasoning in Chat Completions
    assert heard["compatible-stream-reasoning"]["reasoning"] == _shown(kind, thought)
    _check_broken(heard, ("compatible-stream", "openai-stream"))
    _check_broken_calls(heard, [f"{provider}-{way}" for provider in PROVIDERS for way in ("stream", "loop")], called)


async def test_vercels_ai_sdk_is_told_why_an_answer_broke_off(make_gateway: MakeGateway) -> None:
    """The error event is read before the connection ends: the SDK hands on its words, and then raises for the end."""
    heard = await run_client(await make_gateway(config=configured("openai")), "vercel_ai.mjs")
    for provider in PROVIDERS:
        for fault in FAULTS:
            broken = heard[f"{provider}-stream-{fault}"]
            [told] = broken["told"]
            assert ("is currently overloaded" if fault == "error" else "ended before the answer did") in told
            assert broken["error"].startswith("APICallError")
            assert broken["finish"] is None


def _scenes(kind: str) -> tuple[Scene, Scene, Scene]:
    return (
        scene_of(("user", PROMPT)),
        scene_of(("user", TOOL_PROMPT), has_tools=True),
        scene_of(("user", PROMPT), wants_reasoning=kind not in NEVER_THINKS),
    )


def _calls(scene: Scene) -> list[list[Any]]:
    return [list(call) for call in calls_of(scene.answers[0])]


def _shown(kind: str, scene: Scene) -> str:
    return "" if kind in THINKS_IN_SECRET else reasoning_of(scene.answers[0])


def _check_broken(heard: Heard, ways: Iterable[str]) -> None:
    """However the provider broke off the client reports an error, no finish, and a true prefix of the text."""
    whole = text_of(scene_of(("user", PROMPT)).answers[0])
    for one in (heard[f"{way}-{fault}"] for way in ways for fault in FAULTS):
        assert one["error"]
        assert one["finish"] in (None, "error")
        assert one["text"]
        assert whole.startswith(one["text"])
        assert one["text"] != whole


def _check_broken_calls(heard: Heard, ways: Iterable[str], called: Scene) -> None:
    """No client calls half a tool call whole, none runs a tool, and of a call that was held none has seen a piece."""
    calls = _calls(called)
    for way in ways:
        for half in HALVES:
            one = heard[f"{way}-{half}"]
            assert one["error"], (way, half)
            assert one["finish"] in (None, "error")
            assert one["executed"] == []
            assert one["calls"] == calls[: len(one["calls"])]
            assert len(one["calls"]) < len(calls)
            assert not one.get("returned")
            assert half.startswith(HALF) or one["pieces"] == 0
    assert {name for name, one in heard.items() if one["error"]} == {
        name for name in heard if name.rpartition("-")[2] in FAULTS
    }
