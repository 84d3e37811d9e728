"""The tools of `make test-deploy`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tools import Tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Tool]:
    """Runs a program of the tools' environment."""
    folder = Path(os.environ.get("TENSORGATE_DEPLOY_TOOLS", ROOT / ".venv-deploy" / "bin"))

    def of(name: str) -> Tool:
        def run(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
            command = [folder / name, *arguments]
            return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)

        return run

    return of
