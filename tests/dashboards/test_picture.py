"""The picture in the README can be made anew at any time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from gateway.config import parse_config
from gateway.simulator import parse_script
from tests.dashboards import traffic
from tests.dashboards.picture import MODELS, PATHS, SHARES, config, script

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("is_bad", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_simulator_takes_every_script(model: str, *, is_bad: bool) -> None:
    """Whatever chance draws."""
    chance = random.Random(model)  # noqa: S311, a test that can be repeated
    drawn = {script(chance, model, is_bad=is_bad) for _ in range(1000)}
    assert any("cut_after_tokens" in one for one in drawn)
    for one in drawn:
        parse_script(one)


def test_the_gateway_takes_both_configurations() -> None:
    """That of the picture, and that of the traffic in which everything happens."""
    for document in (
        config("http://127.0.0.1:1", 0, 0),
        traffic.config("http://127.0.0.1:1", port=0, admin_port=0, dead_port=1),
    ):
        assert parse_config(yaml.safe_dump(document), "test.yaml", {}).models.keys() == document["models"].keys()
    assert MODELS.keys() == PATHS.keys() == SHARES.keys()
    assert traffic.TIMES.keys() - traffic.MODELS.keys() == {"no-such-model"}


def test_the_picture_is_there_and_small_enough_for_a_readme() -> None:
    """Whoever reads it on the way should not have to wait."""
    picture = (ROOT / "deploy/images/overview.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
