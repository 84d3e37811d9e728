"""`tensorgate bench`: how many requests a second a served model answers, and how fast."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from dataclasses import asdict

from gateway.commands.bench import report
from gateway.commands.bench.load import Load, measure
from gateway.commands.connection import connected, make
from gateway.commands.failure import FAILED
from gateway.commands.model import read_model
from gateway.commands.requests import make_requests
from tensorgate_client import aio

_IN_FLIGHT = (1, 2, 4, 8, 16)

_DIFFERENT = 64
"""Requests that are sent in turn."""


def run(flags: Namespace) -> int:
    """Measure and print the table; the exit code.

    Raises:
        CommandFailed: there is no such model or server, or it refuses what it would be sent.
    """
    if flags.plot:
        report.check_plot(flags.plot)
    with connected(flags, retry=False) as client:
        model = read_model(client, flags.model, flags.version)
        requests = make_requests(model, flags, _DIFFERENT)
        client.infer(model.name, requests[0], version=model.version)  # what it refuses now it would refuse always
    loads = [Load(rate=rate) for rate in flags.rate or ()] or [Load(n) for n in flags.concurrency or _IN_FLIGHT]

    async def all_loads() -> list[report.Line]:
        async with make(aio.InferenceClient, flags, retry=False) as client:
            lines = []
            for load in loads:
                measured = await measure(client, model, requests, load, flags)
                lines.append(report.line(load, measured, rows=flags.rows, seconds=flags.seconds))
                if sys.stderr.isatty():
                    print(f"\r{len(lines)} of {len(loads)} measured", end="\r\033[K", file=sys.stderr, flush=True)
            return lines

    lines = asyncio.run(all_loads())
    if flags.plot:
        report.plot(flags.plot, model.name, lines)
    print(json.dumps([asdict(line) for line in lines], indent=2) if flags.json else report.text(lines, flags))
    return FAILED if any(line.errors for line in lines) else 0
