"""`tensorgate optimize`: a PyTorch model made smaller and faster, every variant measured as it is served."""

from __future__ import annotations

import importlib.util
import tempfile
from argparse import Namespace
from pathlib import Path

from gateway.commands.failure import CommandFailed

_NEEDED = ("torch", "cloudpickle", "tqdm")


def run(flags: Namespace) -> int:
    """Search, measure, write the repository and the report; the exit code.

    Args:
        flags: of `arguments.add_optimize`.

    Raises:
        CommandFailed: a package is missing, or the recipe, the budget or the folder to write does not hold.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CommandFailed(f"optimize needs {', '.join(missing)}: pip install 'tensorgate[optimize]'")
    from gateway.optimize.job import Job  # noqa: PLC0415  # torch takes seconds to import

    with tempfile.TemporaryDirectory(prefix="tensorgate-optimize-") as folder:
        return Job(flags, Path(folder)).run()
