"""`tensorgate profile`: which operators of a model take the time, as its runtime's own profiler sees it."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from pathlib import Path

from gateway.commands.failure import CommandFailed
from gateway.commands.saying import say
from gateway.profile import loading, report
from gateway.profile.runs import measure
from gateway.settings import Settings


def run(flags: Namespace, settings: Settings) -> int:
    """Profile a model and print the table; the exit code.

    Args:
        flags: of `arguments.add_profile`.
        settings: the server's: where the models are, and how they are loaded.

    Raises:
        CommandFailed: there is no such model, it does not load or run, or its backend has no profiler.
    """
    if flags.trace:
        _check_trace(flags.trace)
    profile = asyncio.run(_profile(flags, settings))
    say(json.dumps(report.fields(profile), indent=2) if flags.json else report.text(profile, flags.top))
    return 0


async def _profile(flags: Namespace, settings: Settings) -> report.Profile:
    served = await loading.load(settings, flags.model, flags.version)
    try:
        profiler = loading.profiler(served, flags)
        requests = loading.requests(served, flags)
        measured = await measure(served, requests, profiler, flags)
    finally:
        await served.aclose()
    rows = requests[0].rows
    return report.Profile(served.name, served.version, served.config.backend, profiler.name, rows, measured)


def _check_trace(path: Path) -> None:
    """Whether the trace can be written, before anything is measured: torch tells only the log if it cannot."""
    if path.suffix.lower() != ".json":
        raise CommandFailed(f"--trace: expected .json, got '{path.suffix}': {path}")
    if not path.parent.is_dir():
        raise CommandFailed(f"--trace: no such folder: {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandFailed(f"--trace: cannot be written: {path}")
