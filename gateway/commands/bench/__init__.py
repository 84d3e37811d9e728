"""`tensorgate bench`: how many requests a second a served model answers, and how fast."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from gateway.commands.bench import report
from gateway.commands.bench.load import Load, measure
from gateway.commands.connection import connected, failed, make
from gateway.commands.ending import endings, how
from gateway.commands.failure import FAILED
from gateway.commands.model import Model, read_model
from gateway.commands.requests import Inputs, make_requests
from gateway.commands.saying import say
from tensorgate_client import InferenceError, aio

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
    lines: list[report.Line] = []
    code = 0
    try:
        with endings():
            asyncio.run(_measure_all(model, requests, loads, lines, flags))
    except KeyboardInterrupt as interrupt:  # what is measured is measured
        _, code = how(interrupt)
    if flags.plot and lines:
        report.plot(flags.plot, model.name, lines)
    say(json.dumps([asdict(line) for line in lines], indent=2) if flags.json else report.notes(lines, flags))
    return code or (FAILED if any(line.errors for line in lines) else 0)


async def _measure_all(
    model: Model, requests: Sequence[Inputs], loads: Sequence[Load], lines: list[report.Line], flags: Namespace
) -> None:
    """Measure each load and show its line as soon as it is there."""
    if not flags.json:
        say(report.head(flags))
    async with make(aio.InferenceClient, flags, retry=False) as client:
        for load in loads:
            try:
                measured = await measure(client, model, requests, load, flags)
            except InferenceError as error:  # a stream that broke
                raise failed(error, flags.address, live=await client.is_live(deadline_ms=2000)) from None
            lines.append(report.line(load, measured, rows=flags.rows, seconds=flags.seconds))
            if not flags.json:
                say(report.row(lines[-1], flags))
