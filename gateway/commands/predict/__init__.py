"""`tensorgate predict`: the rows of a file through a model, into another file."""

from __future__ import annotations

import importlib.util
from argparse import Namespace

from gateway.commands.failure import CommandFailed


def run(flags: Namespace) -> int:
    """Predict every row; the exit code.

    Raises:
        CommandFailed: it cannot be done, or not to the end.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise CommandFailed("predict needs pyarrow: pip install 'tensorgate[predict]'")
    from gateway.commands.predict import job  # noqa: PLC0415  # pyarrow takes a moment to import, and may be missing

    return job.run(flags)
