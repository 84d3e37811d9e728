"""Part `ends`: calls that are lost when gateways end under load, behind whatever spreads them."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from support.balancing import ENVOY, Balanced, Member, balanced, gateways, infer
from support.calls import ECHO
from support.concurrent import parameter
from support.models import RepositoryBuilder

from benchmarks.report import BenchmarkError, progress, table
from tensorgate_client import InferenceClient, InferenceError

_CALLERS = 64
_ENDS = 3
_DELAY_MS = 20
_COLUMNS = ("spread by", "gateways end by", "callers", "calls", "lost", "how")


def run(*, quick: bool) -> None:
    """Measure and print."""
    if not shutil.which("nginx"):
        raise BenchmarkError("no nginx on PATH: apt-get install --no-install-recommends nginx")
    kinds = ["nginx", *(["envoy"] if ENVOY else []), "client"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="ends-") as folder:
        repository = RepositoryBuilder(Path(folder) / "models")
        repository.add("echo", config=ECHO + parameter("delay_ms", _DELAY_MS))
        with gateways(repository.root, {}) as members:
            for kind in kinds:
                with balanced(kind, members, Path(folder)) as fleet:
                    rows += [_row(fleet, number, retry=retry, quick=quick) for number, retry in _CASES]
    measured = f"ends: two gateways, one of them ended {_ENDS} times, {_CALLERS} callers, calls of {_DELAY_MS} ms"
    table(measured, "none lost by SIGTERM, nor by SIGKILL where callers repeat", _COLUMNS, rows)


_CASES = [(number, retry) for number in (signal.SIGTERM, signal.SIGKILL) for retry in (False, True)]


def _row(fleet: Balanced, number: signal.Signals, *, retry: bool, quick: bool) -> list[str]:
    progress(f"ends: {fleet.kind}, {number.name}, callers {'repeat' if retry else 'repeat nothing'}")
    fleet.mend()
    callers = [_Caller() for _ in range(_CALLERS)]
    with fleet.client(retry=retry) as client:
        threads = [threading.Thread(target=caller.run, args=(client,)) for caller in callers]
        for thread in threads:
            thread.start()
        _end(fleet.members, number, 0.5 if quick else 2.0)
        for caller in callers:
            caller.over = True
        for thread in threads:
            thread.join()
    lost = sum((caller.lost for caller in callers), Counter[str]())
    calls = sum(caller.answered for caller in callers) + lost.total()
    says = "repeat" if retry else "repeat nothing"
    return [fleet.kind, number.name, says, f"{calls:,}", f"{lost.total()}", ", ".join(lost)]


def _end(members: Sequence[Member], number: signal.Signals, seconds: float) -> None:
    """End gateways in turn, and start them again."""
    for turn in range(_ENDS):
        time.sleep(seconds)
        member = members[turn % len(members)]
        member.server.signal(number)
        member.server.wait()
        time.sleep(seconds / 2)
        member.restart()
    time.sleep(seconds)


class _Caller:
    """Calls until it is over."""

    def __init__(self) -> None:
        self.over = False
        self.answered = 0
        self.lost: Counter[str] = Counter()

    def run(self, client: InferenceClient) -> None:
        """One call after the other."""
        while not self.over:
            try:
                infer(client, 1, deadline_ms=30_000)
                self.answered += 1
            except InferenceError as error:
                self.lost[error.code.name] += 1
