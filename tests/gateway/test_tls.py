"""Encrypted connections: who may call, what a certificate's renewal takes, what is said of wrong files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.calls import ECHO, eventually
from support.certificates import make_certificate
from support.server import TENSORGATE, serving

from tensorgate_client import TLS, InferenceClient

X = np.ones((1, 4), np.float32)


@pytest.fixture
def cert(tmp_path) -> Path:
    """The server's certificate; its key lies beside it."""
    return make_certificate(tmp_path, "server")


@pytest.fixture
def flags(repository, cert) -> list[object]:
    """Flags of a server with one model that encrypts."""
    repository.add("m", config=ECHO)
    return [repository.root, "--tls-cert", cert, "--tls-key", cert.with_suffix(".key")]


def reaches(address: str, tls: TLS | None) -> bool:
    """Whether a client's calls and streams are answered."""
    with InferenceClient(address, tls=tls, retry=False, deadline_ms=10_000) as client:
        if not client.is_live():
            return False
        streamed = [(result.outputs["OUTPUT0"] == X).all() for result in client.stream("m", [{"INPUT0": X}] * 3)]
        return (client.infer("m", {"INPUT0": X})["OUTPUT0"] == X).all() and streamed == [True] * 3


def test_only_encrypted_calls_are_answered(flags, cert, transport):
    """Who trusts the certificate is answered, unary and on streams; plaintext and strangers' certificates are not."""
    with serving(*flags) as gateway:
        assert reaches(gateway.address, TLS(cert))
        assert not reaches(gateway.address, None)
        assert not reaches(gateway.address, TLS(make_certificate(cert.parent, "other")))
        assert f"{transport}, TLS" in gateway.server.log


@pytest.mark.usefixtures("transport")
def test_clients_show_who_they_are(flags, cert):
    """With --tls-client-ca only clients with a certificate from there are answered."""
    mine = make_certificate(cert.parent, "client")
    with serving(*flags, "--tls-client-ca", mine) as gateway:
        assert reaches(gateway.address, TLS(cert, mine, mine.with_suffix(".key")))
        assert not reaches(gateway.address, TLS(cert))
        assert not reaches(gateway.address, TLS(cert, cert, cert.with_suffix(".key")))


@pytest.mark.usefixtures("transport")
def test_a_renewed_certificate(flags, cert):
    """New connections get a new certificate without a restart; a broken one is told once, the former kept."""
    with serving(*flags) as gateway:
        old = cert.rename(cert.with_name("old.pem"))
        cert.write_text("half a certif")
        assert all(reaches(gateway.address, TLS(old)) for _ in range(3))
        gateway.server.wait_for_log("former certificate")
        assert gateway.server.log.count("former certificate") == 1
        make_certificate(cert.parent, "server")
        eventually(lambda: reaches(gateway.address, TLS(cert)))
        assert not reaches(gateway.address, TLS(old))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--tls-cert", "server.pem"], "TLS needs --tls-cert and --tls-key"),
        (["--tls-client-ca", "server.pem"], "TLS needs --tls-cert and --tls-key"),
        (["--tls-cert", "server.pem", "--tls-key", "away.key"], "away.key: No such file"),
        (["--tls-cert", "server.pem", "--tls-key", "other.key"], "KEY_VALUES_MISMATCH"),
        (["--tls-cert", "server.key", "--tls-key", "server.pem"], "no certificate and its key, in PEM"),
        (["--tls-cert", "server.pem", "--tls-key", "locked.key"], "the private key has a password"),
        (["--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "server.key"], "no certificate"),
    ],
)
def test_wrong_files(repository, cert, given, told):
    """A mistake with the files ends the start with a line that says which."""
    make_certificate(cert.parent, "other")
    lock = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", "server.key", "-out", "locked.key"]
    subprocess.run(lock, cwd=cert.parent, check=True, capture_output=True)
    command = [TENSORGATE, "serve", "--model-repository", repository.root, *given]
    ended = subprocess.run(command, cwd=cert.parent, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
