"""Several processes of callers against one server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass
class Report:
    """What all callers met together."""

    outcomes: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every request ended, each in a way that its circumstances explain."""
        ended = sum(count for outcome, count in self.outcomes.items() if outcome not in {"sent", "reloads"})
        return not (self.outcomes["lost"] or self.outcomes["wrong"]) and self.outcomes["sent"] == ended > 0


async def drive(address: str, folder: Path, seed: str, seconds: float, processes: int) -> Report:
    """Run so many processes of callers, the first of which also reloads models."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    running = []
    for number in range(processes):
        arguments = [address, str(folder), f"{seed}.{number}", str(seconds), *(["reload"] if number == 0 else [])]
        command = [sys.executable, "-m", "soak.callers", *arguments]
        running.append(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment))
    report = Report()
    for process, (output, _) in zip(running, await asyncio.gather(*(p.communicate() for p in running)), strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of callers ended with {process.returncode}")
        part = json.loads(output)
        report.outcomes.update(part["outcomes"])
        report.complaints += part["complaints"]
    return report
