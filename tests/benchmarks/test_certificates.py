"""An authority that is trusted for this machine, and for one run."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest

from tests.benchmarks.certificates import make_certificates
from tests.benchmarks.processes import BenchmarkError


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl here")
def test_a_client_that_trusts_the_authority_trusts_the_server(tmp_path: Path) -> None:
    """By its name and by its address."""
    made = make_certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.authority))
    for name in ("localhost", "127.0.0.1"):
        sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(received, sent, server_hostname=name),
            server.wrap_bio(sent, received, server_side=True),
        ]
        for _ in range(3):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert ends[0].getpeercert(), name


def test_without_openssl_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="openssl"):
        make_certificates(tmp_path)
