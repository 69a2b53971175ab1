import json
from collections.abc import Iterator

import pytest
import structlog

from gateway.logs import configure_logs


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    """Leave structlog as it was found."""
    yield
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_level_time_and_fields(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whatever its values hold, a line stays a line."""
    configure_logs(level="info", log_format="json")
    structlog.get_logger().info("stream.finished", text="two\nlines", value=1.5, odd={"a": object}, name="日本")
    (line,) = capfdbinary.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["event"] == "stream.finished"
    assert found["level"] == "info"
    assert found["timestamp"].endswith("Z")
    assert found["text"] == "two\nlines"
    assert found["value"] == 1.5
    assert found["name"] == "日本"


def test_a_traceback_is_part_of_its_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """An error of ours is found where everything else is."""
    configure_logs(level="info", log_format="json")
    try:
        int("mine")
    except ValueError:
        structlog.get_logger().exception("internal_error", request_id="r")
    (line,) = capfdbinary.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["level"] == "error"
    assert "ValueError: invalid literal" in found["exception"]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(
    level: str, written: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """``telemetry.log_level`` is a lower bound."""
    configure_logs(level=level, log_format="json")
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert [json.loads(line)["event"] for line in capfdbinary.readouterr().out.splitlines()] == written


def test_the_console_format_is_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    """Words and colours instead of JSON, on the same stream."""
    configure_logs(level="info", log_format="console")
    structlog.get_logger().info("stream.finished", outcome="completed")
    out = capsys.readouterr().out
    assert "stream.finished" in out
    assert "completed" in out
    assert not out.lstrip().startswith("{")


def test_context_variables_are_on_every_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """What is bound for a request need not be named again."""
    configure_logs(level="info", log_format="json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("a")
    assert json.loads(capfdbinary.readouterr().out)["request_id"] == "r1"
