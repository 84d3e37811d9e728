"""Programs that tests run to their end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol


class Tool(Protocol):
    """Runs a program with arguments, `given` on its standard input."""

    def __call__(self, *arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """How it ended, and what it printed."""
