"""Programs for Node.js and the packages that they need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.once import alone


def with_packages(folder: Path) -> Path:
    """A folder with package-lock.json, its packages installed; the test is skipped where there is no Node.js."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip(f"node and npm are not on PATH: {folder.name} is not tried")
    installed = folder / "node_modules" / ".package-lock.json"  # npm's own record of what it installed
    with alone(folder):
        if not installed.exists() or installed.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
            command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"]
            subprocess.run(command, cwd=folder, check=True, timeout=150)
    return folder
