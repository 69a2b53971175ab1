"""The layout that a reader may rely on: every module has its test, and imports point one way."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dashboards", "gateway", "middleware")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

WITHOUT_TEST = {
    "dashboards/boards/gateway.py": "a list of panels; tests/dashboards/boards/test_boards.py reads all of them",
    "dashboards/boards/overview.py": "the same",
    "dashboards/boards/slo.py": "the same",
    "dashboards/boards/streams.py": "the same",
    "dashboards/boards/upstreams.py": "the same",
    "gateway/__init__.py": "only the version",
    "gateway/__main__.py": "one call of the command line, which has its test",
    "gateway/core/__init__.py": "only a docstring",
    "gateway/dialects/__init__.py": "a table; the tests of its entries use it",
    "gateway/dialects/base.py": "only protocols",
    "gateway/process/__init__.py": "only a docstring",
    "gateway/process/messages.py": "only words; tests/gateway/process/test_member.py hears each of them",
    "gateway/providers/__init__.py": "a table; tests/gateway/providers/test_conformance.py runs all of it",
    "gateway/simulator/__init__.py": "the manual, and names for others to import",
    "gateway/simulator/wires/__init__.py": "only a docstring",
    "gateway/telemetry/__init__.py": "only a docstring",
    "middleware/__init__.py": "only a docstring",
}
"""The modules that have no test file of their own, each with its reason."""

PACKAGE_TESTS = {
    "dashboards/__init__.py": "tests/dashboards/test_dashboards.py",
    "dashboards/boards/__init__.py": "tests/dashboards/boards/test_boards.py",
    "gateway/page/__init__.py": "tests/gateway/page/test_page.py",
}
"""Packages whose code is in ``__init__.py``, and where it is tested."""

NETWORK = {
    "gateway/admin.py",
    "gateway/admin_gate.py",
    "gateway/app.py",
    "gateway/connection.py",
    "gateway/ending.py",
    "gateway/guard.py",
    "gateway/live_feed.py",
    "gateway/page/__init__.py",
    "gateway/exchange.py",
    "gateway/provider_connection.py",
    "gateway/reply.py",
    "gateway/server.py",
    "gateway/upstream.py",
}
"""The modules that touch ``aiohttp``, beside the simulator, which is a server of its own."""

CORE_LIBRARIES = {"msgspec"}
"""All that the core uses beside the standard library."""

ASYNC_LIBRARIES = {"aiohttp", "asyncio", "uvloop"}
CLOCKS_AND_LOGS = {"logging", "structlog", "time"}
SHAPELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_handler"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            found |= {module} | {f"{module}.{name.name}" for name in node.names if _is_module(module, name.name)}
    return frozenset(found)


def _is_module(package: str, name: str) -> bool:
    place = ROOT.joinpath(*package.split("."), name)
    return place.with_suffix(".py").is_file() or place.is_dir()


def roots(path: Path) -> set[str]:
    """Return the top-level names of what a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


def under(path: Path, *places: str) -> bool:
    """Return whether a module is one of places, or in one of them."""
    return any(path.as_posix() == place or path.as_posix().startswith(f"{place}/") for place in places)


def imported_from(path: Path, *packages: str) -> set[str]:
    """Return what a file imports from packages."""
    return {name for name in imports(path) if any(name == item or name.startswith(f"{item}.") for item in packages)}


def select(*places: str) -> list[Path]:
    """Return the modules that are in places."""
    return [path for path in MODULES if under(path, *places)]


def test_every_module_has_its_mirrored_test() -> None:
    """``gateway/core/sse.py`` is tested by ``tests/gateway/core/test_sse.py``, and so on."""
    missing = []
    for path in MODULES:
        name = path.as_posix()
        mirror = PACKAGE_TESTS.get(name) or (Path("tests") / path.parent / f"test_{path.name}").as_posix()
        if name not in WITHOUT_TEST and not (ROOT / mirror).is_file():
            missing.append(mirror)
    assert missing == []


def test_the_exceptions_are_still_there() -> None:
    """An exception whose module is gone, or has got its test, is none any more."""
    names = {path.as_posix() for path in MODULES}
    assert WITHOUT_TEST.keys() | PACKAGE_TESTS.keys() | NETWORK <= names
    for name in WITHOUT_TEST:
        path = Path(name)
        assert not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_is_a_noun_with_a_docstring(path: Path) -> None:
    """A function without a home is a missing noun."""
    assert path.stem not in SHAPELESS
    assert ast.get_docstring(ast.parse((ROOT / path).read_bytes()))


@pytest.mark.parametrize("path", select("gateway/core"), ids=str)
def test_the_core_imports_nothing_but_itself(path: Path) -> None:
    """No event loop, no socket, no clock, no log."""
    used = roots(path)
    assert used <= sys.stdlib_module_names | CORE_LIBRARIES | {"gateway"}
    assert not used & (ASYNC_LIBRARIES | CLOCKS_AND_LOGS | {"socket", "random"})
    assert imported_from(path, "gateway") == imported_from(path, "gateway.core")


@pytest.mark.parametrize("path", select("gateway/providers", "gateway/dialects"), ids=str)
def test_providers_and_dialects_do_no_io_and_never_meet(path: Path) -> None:
    """Both speak events, so that M dialects and N providers are M + N files."""
    own = "gateway.providers" if under(path, "gateway/providers") else "gateway.dialects"
    assert imported_from(path, "gateway") == imported_from(path, "gateway.core", own)
    assert not roots(path) & (ASYNC_LIBRARIES | CLOCKS_AND_LOGS)


def test_the_pipeline_knows_only_the_core() -> None:
    """It is the one signature of the chain, and nothing else."""
    path = Path("gateway/pipeline.py")
    assert imported_from(path, "gateway") == imported_from(path, "gateway.core")
    assert not roots(path) & ASYNC_LIBRARIES


@pytest.mark.parametrize("path", select("gateway"), ids=str)
def test_nothing_in_the_gateway_imports_a_middleware(path: Path) -> None:
    """They are loaded by name, out of the configuration."""
    assert "middleware" not in roots(path)


@pytest.mark.parametrize("path", select("middleware"), ids=str)
def test_a_middleware_imports_the_core_the_pipeline_and_the_words_for_its_options(path: Path) -> None:
    """And no other middleware, and nothing of the network."""
    allowed = imported_from(path, "gateway.core", "gateway.pipeline", "gateway.schema")
    assert imported_from(path, "gateway", "middleware") == allowed
    assert "aiohttp" not in roots(path)


@pytest.mark.parametrize("path", select("dashboards"), ids=str)
def test_the_dashboards_know_the_catalogue_and_nothing_else_of_the_gateway(path: Path) -> None:
    """A board can read only what is exported, and making one needs no library."""
    assert imported_from(path, "gateway") <= {"gateway.telemetry", "gateway.telemetry.catalogue"}
    assert roots(path) <= sys.stdlib_module_names | {"dashboards", "gateway"}


def test_only_the_modules_for_it_touch_the_network() -> None:
    """Everything else can be tested without a socket."""
    users = {path.as_posix() for path in MODULES if "aiohttp" in roots(path)}
    assert {name for name in users if not name.startswith("gateway/simulator/")} == NETWORK


LAYERS = (
    ("gateway/core",),
    ("gateway/schema.py", "gateway/yaml_tree.py", "gateway/logs.py", "gateway/ledger.py", "gateway/telemetry"),
    ("gateway/providers", "gateway/dialects", "gateway/pipeline.py"),
    (
        "gateway/config.py",
        "gateway/configured_provider.py",
        "gateway/expectations.py",
        "gateway/known_head.py",
        "gateway/connection.py",
        "gateway/ending.py",
        "gateway/plain_answer.py",
        "gateway/provider_connection.py",
        "gateway/exchange.py",
        "gateway/reply.py",
        "gateway/stream.py",
        "gateway/warmth.py",
        "gateway/watch.py",
    ),
    (
        "gateway/process/__init__.py",
        "gateway/process/channel.py",
        "gateway/process/listening.py",
        "gateway/process/member.py",
        "gateway/process/messages.py",
    ),
    ("gateway/upstream.py", "gateway/server.py", "gateway/guard.py", "gateway/page"),
    ("gateway/admin.py", "gateway/admin_gate.py", "gateway/live_feed.py"),
    ("gateway/app.py", "gateway/process/supervisor.py"),
    ("gateway/process/worker.py",),
    ("gateway/cli.py",),
    ("gateway/__main__.py",),
)
"""From the inside out. A module imports from its own layer and from those before it."""


def test_imports_point_one_way() -> None:
    """``core`` <- ``providers``, ``dialects``, ``pipeline`` <- ``upstream``, ``server`` <- ``app`` <- ``cli``."""
    layer_of = {path: number for number, layer in enumerate(LAYERS) for path in select(*layer)}
    simulator, version = select("gateway/simulator"), Path("gateway/__init__.py")
    assert set(MODULES) - set(select("dashboards", "middleware")) - set(simulator) - {version} == set(layer_of)
    wrong = [
        f"{path} imports {name}"
        for path, number in layer_of.items()
        for layer in LAYERS[number + 1 :]
        for outer in layer
        for name in imported_from(path, outer.removesuffix(".py").replace("/", "."))
    ]
    assert wrong == []


def test_the_simulator_is_a_server_of_its_own() -> None:
    """What is written after the same description must not share its mistakes."""
    shared = {
        str(path): imported_from(path, "gateway") - imported_from(path, "gateway.simulator")
        for path in select("gateway/simulator")
    }
    assert {path: names for path, names in shared.items() if names} == {}


def test_the_top_level_is_closed() -> None:
    """Benchmarks are in ``tests/benchmarks``, tool settings in ``pyproject.toml``."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders - {"dist", "build", "__pycache__"} <= {*PACKAGES, "tests", "deploy"}
