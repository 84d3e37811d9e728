"""`python -m benchmarks.instructions [--record]`: the instructions that a request costs, over those recorded.

Unlike seconds they are the same on a busy machine. Counted are all threads of a process that answers requests without
a transport, by callgrind; few requests are taken off many, so that what is not theirs cancels out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.counted import KINDS, lay_out
from benchmarks.report import BenchmarkError, progress, say, table

_RECORD = Path(__file__).with_suffix(".json")
_FEW, _MANY = 200, 1000
_NOISE = 0.01
"""Runs of the same code differ by some 0.2 %, rarely by more than this."""

_LIBRARIES = ("numpy", "protobuf", "grpcio", "cachetools", "cryptography", "uvloop")
_TIMEOUT_S = 600
_UNSET = ("TENSORGATE_", "OTEL_")


@dataclass(frozen=True, slots=True)
class Counts:
    """A run's result.

    Attributes:
        versions: of what the counts depend on.
        instructions: for a request, by kind.
    """

    versions: dict[str, str]
    instructions: dict[str, int]


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="make instructions", description="Count the instructions that requests cost.")
    parser.add_argument("--record", action="store_true", help=f"keep them in {_RECORD.name}, to be compared with")
    arguments = parser.parse_args()
    try:
        counts = Counts(_versions(), _count())
    except BenchmarkError as error:
        sys.stderr.write(f"instructions: {error}\n")
        return 1
    _compare(counts, Counts(**json.loads(_RECORD.read_text())))
    if arguments.record:
        _RECORD.write_text(json.dumps(asdict(counts), indent=2) + "\n")
        say(f"recorded in {_RECORD.name}")
    return 0


def _versions() -> dict[str, str]:
    valgrind = shutil.which("valgrind")
    if not valgrind:
        raise BenchmarkError("valgrind not found: apt-get install valgrind")
    told = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "machine": platform.machine(),
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "valgrind": told.strip().removeprefix("valgrind-"),
        **{name: version(name) for name in _LIBRARIES},
    }


def _count() -> dict[str, int]:
    progress("counting instructions: about a minute")
    with tempfile.TemporaryDirectory(prefix="tensorgate-bench-") as name:
        folder = Path(name)
        lay_out(folder / "models")
        _run_counted(folder)
        # The first dump is the start; then two for each kind, of the few requests and of the many.
        dumps = [_total(folder / f"callgrind.{number}") for number in range(2, 2 + 2 * len(KINDS))]
    pairs = zip(KINDS, dumps[::2], dumps[1::2], strict=True)
    return {kind: round((many - few) / (_MANY - _FEW)) for kind, few, many in pairs}


def _run_counted(folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_UNSET)}
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind'}", "--dump-before=getloadavg"]
    program = [sys.executable, "-m", "benchmarks.counted", str(folder / "models"), str(_FEW), str(_MANY)]
    run = subprocess.run(
        [*tool, *program],
        env={**environment, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if run.returncode:
        raise BenchmarkError(f"the requests were not answered under callgrind:\n{run.stderr.strip()}")


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE) if dump.exists() else None
    if not found:
        raise BenchmarkError("callgrind has not seen each call of getloadavg, which marks where the requests begin")
    return int(found.group(1))


def _compare(counts: Counts, recorded: Counts) -> None:
    differing = [
        f"{name} {recorded.versions.get(name, 'unknown')} then, {now} now"
        for name, now in counts.versions.items()
        if recorded.versions.get(name) != now
    ]
    rows, dearer = [], []
    for kind, now in counts.instructions.items():
        before = recorded.instructions.get(kind, 0)
        change = f"{now / before - 1:+.1%}" if before and not differing else "-"
        rows.append((kind, f"{now:,}", f"{before:,}", change))
        if before and now > before * (1 + _NOISE):
            dearer.append(f"{kind} {change}")
    table(
        "instructions for a request, between the bytes of it and those of its response",
        f"no more than recorded; less than {_NOISE:.0%} is noise",
        ("request", "instructions", "recorded", "change"),
        rows,
    )
    if differing:
        say(f"not comparable: {'; '.join(differing)}")
    elif dearer:
        say(f"WARNING: dearer than recorded: {', '.join(dearer)}")


if __name__ == "__main__":
    sys.exit(main())
