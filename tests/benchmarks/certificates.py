"""An authority made for one run, and a certificate of it for this machine, by the ``openssl`` command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.processes import BenchmarkError

_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Whom to trust, and what to show."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make all three, good for a day."""
    if not shutil.which("openssl"):
        raise BenchmarkError("certificates are made by the command openssl, which is not here")
    made = Certificates(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    authority_key, wish, names = (folder / name for name in ("authority.key", "wish.pem", "names"))
    names.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    _openssl(
        "req",
        "-x509",
        *_NEW_KEY,
        "-days",
        "1",
        "-subj",
        "/CN=benchmark",
        "-keyout",
        authority_key,
        "-out",
        made.authority,
    )
    _openssl("req", *_NEW_KEY, "-subj", "/CN=localhost", "-keyout", made.key, "-out", wish)
    signing = ("-CA", made.authority, "-CAkey", authority_key, "-CAcreateserial", "-days", "1", "-extfile", names)
    _openssl("x509", "-req", "-in", wish, *signing, "-out", made.certificate)
    return made


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"openssl {words[0]} failed: {next(iter(done.stderr.splitlines()), '')}")
