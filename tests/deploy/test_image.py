"""What the image does when it is run, done here: its command, its variables, its health check, its user, its signal."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from tests.deploy.dockerfile import stages
from tests.raw_client import chat, exchange, request

ROOT = Path(__file__).parents[2]
IMAGE = stages((ROOT / "deploy" / "Dockerfile").read_text("utf-8"))[-1]
KEY = "mr_test_0123456789abcdef"
TIMEOUT_S = 30.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may read and nobody may write to, as a mounted configuration is."""
    path = Path(tempfile.mkdtemp(prefix="millrace-image-"))
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def mount(folder: Path) -> Path:
    """Put the image's own configuration there, on free ports."""
    document = yaml.safe_load((ROOT / "deploy" / "millrace.yaml").read_text("utf-8"))
    document["server"] |= {"host": "127.0.0.1", "admin_host": "127.0.0.1", "port": 0, "admin_port": 0}
    path = folder / "millrace.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    path.chmod(0o444)
    folder.chmod(0o555)
    return path


def environment(config: Path) -> dict[str, str]:
    """Return the image's variables and no others, but for the paths, and the one that it cannot do without."""
    own = {"MILLRACE_CONFIG": str(config), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return (
        IMAGE.env | own | {"MILLRACE_CLIENT_KEY_SHA256": sha256(KEY.encode()).hexdigest(), "TMPDIR": str(config.parent)}
    )


def without_rights() -> list[str]:
    """Return what takes the rights of root away, as the engine does; whoever is not root has none to lose.

    Where others may not read what is run, a checkout in root's own home, it stays root in name.
    """
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or setpriv is None:
        return []
    user, _, group = IMAGE.last_of("USER").value.partition(":")
    needed = [ROOT, Path(sys.executable), Path(sys.executable).resolve()]
    is_open = all(part.stat().st_mode & stat.S_IXOTH for path in needed for part in (path, *path.parents))
    ids = [f"--reuid={user}", f"--regid={group}", "--clear-groups"] if is_open else []
    return [setpriv, *ids, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that runs as in its image."""

    process: asyncio.subprocess.Process
    url: str
    admin_port: str


@asynccontextmanager
async def running(env: Mapping[str, str], cwd: Path) -> AsyncIterator[Running]:
    """Run what the image runs, where it runs it."""
    command = [*IMAGE.last_of("ENTRYPOINT").words, *IMAGE.last_of("CMD").words]
    program = shutil.which(command[0], path=env["PATH"])
    assert program
    process = await asyncio.create_subprocess_exec(
        *without_rights(),
        program,
        *command[1:],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield await greeted(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def greeted(process: asyncio.subprocess.Process) -> Running:
    """Wait for it to say where it is."""
    assert process.stdout
    out = ""
    async with asyncio.timeout(TIMEOUT_S):
        while "stream:" not in out:
            line = await process.stdout.readline()
            assert line, out
            out += line.decode()
    page, admin = re.search(r"page: +(\S+)/\n", out), re.search(r"admin: +http://[^:]+:(\d+)/", out)
    assert page, out
    assert admin, out
    return Running(process, page[1], admin[1])


async def healthy(env: Mapping[str, str], admin_port: str) -> bool:
    """Ask as the engine does: by the very command in the Dockerfile."""
    command = IMAGE.last_of("HEALTHCHECK").words
    program = shutil.which(command[0], path=env["PATH"])
    assert program
    asking = await asyncio.create_subprocess_exec(
        program, *command[1:], env={**env, "MILLRACE_ADMIN_PORT": admin_port}, stderr=subprocess.DEVNULL
    )
    async with asyncio.timeout(TIMEOUT_S):
        return await asking.wait() == 0


async def test_the_image_serves_without_rights_and_where_it_cannot_write(folder: Path) -> None:
    """It is healthy, streams, and leaves with 0 when it is told to; it has written nothing."""
    env = environment(mount(folder))
    async with running(env, folder) as gateway:
        async with asyncio.timeout(TIMEOUT_S):
            while not await healthy(env, gateway.admin_port):
                pass
        body = chat(model="sim/mill?token_count=5")
        answer = await exchange(
            gateway.url, request("/v1/chat/completions", body, authorization=f"Bearer {KEY}"), timeout_s=TIMEOUT_S
        )
        assert (answer.status, answer.is_whole) == (200, True)
        assert answer.body.endswith(b"data: [DONE]\n\n")
        refused = await exchange(gateway.url, request("/v1/chat/completions", body), timeout_s=TIMEOUT_S)
        assert refused.status == 401
        gateway.process.send_signal(getattr(signal, IMAGE.last_of("STOPSIGNAL").value))
        async with asyncio.timeout(TIMEOUT_S):
            await gateway.process.communicate()
        assert gateway.process.returncode == 0
        assert not await healthy(env, gateway.admin_port)
    assert os.listdir(folder) == ["millrace.yaml"]  # noqa: PTH208, not a matter of waiting


def test_the_image_says_what_it_cannot_do_without(folder: Path) -> None:
    """Without a client key it does not start, and tells which variable it waits for."""
    env = environment(mount(folder))
    del env["MILLRACE_CLIENT_KEY_SHA256"]
    program = shutil.which("millrace", path=env["PATH"])
    assert program
    done = subprocess.run(  # noqa: S603, our own
        [program, "serve"], env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 2
    assert "MILLRACE_CLIENT_KEY_SHA256" in done.stderr
