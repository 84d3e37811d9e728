"""Fixtures that every test may use."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.models import RepositoryBuilder
from support.once import alone

# Run in the background or by nohup, the suite and all it starts would ignore these; what users start does not.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent
_TRITONCLIENT = "tritonclient[grpc]==2.73.0"


@pytest.fixture
def repository(tmp_path: Path) -> RepositoryBuilder:
    """An empty model repository."""
    return RepositoryBuilder(tmp_path / "models")


@pytest.fixture(scope="module", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """What carries the RPCs of the gateways that a test starts: each of the transports in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORGATE_TRANSPORT", request.param)
        yield request.param


@pytest.fixture(scope="session")
def tritonclient_python() -> Path:
    """A Python with tritonclient and our client package; it needs a newer grpcio than the server's best one."""
    environment = ROOT / ".venv-tritonclient"
    python = environment / "bin" / "python"
    stamp = environment / "installed.txt"
    with alone(environment):
        if not stamp.exists() or stamp.read_text() != _TRITONCLIENT:
            subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
            command = [python, "-m", "pip", "install", "--quiet", _TRITONCLIENT, "-e", ROOT / "clients" / "python"]
            subprocess.run(command, check=True)
            stamp.write_text(_TRITONCLIENT)
    return python
