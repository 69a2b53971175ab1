"""The examples for Python and Node.js, run as a user would run them."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import QUICK, MakeGateway, over
from tests.sdk.install import MODULES, find_node, why_not
from tests.sdk.truth import PROMPT, TOOL_PROMPT, scene_of, text_of

EXAMPLES: Final = Path(__file__).parents[2] / "deploy" / "examples"
LONGEST_S: Final = 60
NODE: Final = find_node()
WHY_NOT: Final = why_not(NODE)
ANSWER: Final = text_of(scene_of(("user", PROMPT), script=QUICK).answers[0])
BROKEN: Final = {"chat": {"targets": ["openai/gpt-5-mini"], "on_interrupt": "error"}}
"""A model whose answers are not gone on with."""

Run = Callable[..., Any]


@pytest.fixture(params=["python", pytest.param("node", marks=pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT))])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run an example of a language; returns what it printed."""
    folder = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    if request.param == "node":
        (folder / "node_modules").symlink_to(MODULES)

    async def start(name: str, url: str, question: str, **environ: str) -> str:
        if request.param == "python":
            command = [sys.executable, str(folder / f"{name}.py")]
        else:
            assert NODE is not None
            command = [str(NODE.path), str(folder / f"{name}.mjs")]
        process = await asyncio.create_subprocess_exec(
            *command,
            question,
            env={**os.environ, "MILLRACE_URL": url, "PYTHONIOENCODING": "utf-8", **environ},
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
        return told.decode()

    return start


async def test_a_whole_answer_is_collected(make_gateway: MakeGateway, run: Run) -> None:
    """And shown, with its length."""
    running = await make_gateway("openai")
    tokens = scene_of(("user", PROMPT), script=QUICK).output_tokens
    told = await run("collect", running.url, PROMPT)
    assert told == f"{ANSWER}\n-- {len(ANSWER)} characters, {tokens} tokens\n"


async def test_functions_that_are_called_in_a_stream_are_run(make_gateway: MakeGateway, run: Run) -> None:
    """Each once, with its arguments whole; then comes the answer."""
    running = await make_gateway("openai")
    told = await run("function_calls", running.url, TOOL_PROMPT)
    assert told.count("-- get_weather(") == told.count("-- get_time(") == 1
    first, second = running.simulator.requests
    results = [one["content"] for one in second.body["messages"] if one["role"] == "tool"]
    assert [json.loads(one) for one in results] == [{"sky": "clear"}, {"hour": 9}]
    assert "so here is the answer." in told
    assert len(first.body["messages"]) == 1


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ({"status": 429, "retry_after_s": 90}, "refused: 429"),
        ({"cut_after_tokens": 30}, "broke off after"),
    ],
)
async def test_errors_are_told_apart(
    make_gateway: MakeGateway, run: Run, script: Mapping[str, Any], expected: str
) -> None:
    """Refused, and broken off."""
    running = await make_gateway(config={**over("openai"), "models": BROKEN}, default=replace(QUICK, **script))
    told = await run("errors", running.url, PROMPT)
    assert told.startswith(expected)
    assert ("request req_" in told and "try again in 90 s" in told) == ("status" in script)


async def test_a_gateway_that_is_not_there_is_told_as_such(run: Run) -> None:
    """It is no broken answer."""
    assert await run("errors", "http://127.0.0.1:9", PROMPT) == "the gateway cannot be reached, or was lost\n"


async def test_a_stream_that_breaks_off_is_asked_for_whole(make_gateway: MakeGateway, run: Run) -> None:
    """The whole answer takes the place of the half one."""
    config = {**over("openai"), "models": BROKEN}
    running = await make_gateway(config=config, scripts=[replace(QUICK, cut_after_tokens=30)])
    told = await run("fallback", running.url, PROMPT)
    assert "asking for all of it" in told
    assert told.endswith(f"-- the answer:\n{ANSWER}\n")
    assert [one.is_stream for one in running.simulator.requests] == [True, False]
