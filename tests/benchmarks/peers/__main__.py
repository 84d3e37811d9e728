"""`python -m benchmarks.peers [NAME ...] [--quick]`: measure the gateway beside other servers, print and keep it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import h2load
from benchmarks.minilm import LENGTH
from benchmarks.models import embedding
from benchmarks.peers import overload
from benchmarks.peers.contenders import Bare, Echo, Server
from benchmarks.peers.results import BARE, Results
from benchmarks.peers.servers import LAUNCHES, running
from benchmarks.peers.turns import halt
from benchmarks.peers.workloads import OURS_AND_TRITON, WORKLOADS, Contender, measure
from benchmarks.report import BenchmarkError, progress, say
from benchmarks.worker import Worker

_WORKLOADS = [*(workload.name for workload in WORKLOADS), overload.NAME]
_CONTENDERS = [*LAUNCHES, BARE]
_MEASURED = "{rounds} rounds of {seconds:g} s each: median (least-greatest)"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="make bench-peers",
        description="Measure the gateway beside other servers on this machine, in turns.",
        epilog=f"workloads: {', '.join(_WORKLOADS)}\ncontenders: {', '.join(_CONTENDERS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads and contenders; of either all by default")
    parser.add_argument("--quick", action="store_true", help="few short rounds, to see that it runs; not to be quoted")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in (*_WORKLOADS, *_CONTENDERS)]
    if unknown:
        parser.error(f"no '{unknown[0]}': expected {', '.join((*_WORKLOADS, *_CONTENDERS))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `with` blocks, which end the servers
    try:
        _run(_chosen(arguments.names, _WORKLOADS), _chosen(arguments.names, _CONTENDERS), quick=arguments.quick)
    except BenchmarkError as error:
        progress("")
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        progress("")
        sys.stderr.write("benchmarks: interrupted\n")
        return 130
    return 0


def _chosen(names: Collection[str], among: Collection[str]) -> list[str]:
    """Those of `among` that are named; all of them if none is."""
    return [name for name in among if name in names] or list(among)


def _run(workloads: Collection[str], contenders: Collection[str], *, quick: bool) -> None:
    h2load.executable()
    rounds, seconds = (2, 0.4) if quick else (7, 1.2)
    results = Results(_MEASURED.format(rounds=rounds, seconds=seconds) + ("; too short to quote" if quick else ""))
    chosen = [workload for workload in WORKLOADS if workload.name in workloads]
    needed = {name for workload in chosen for name in workload.contenders}
    if overload.NAME in workloads:
        needed |= set(OURS_AND_TRITON)
    try:
        with _up(needed & set(contenders)) as measured:
            for workload in chosen:
                results.add(measure(workload, measured, rounds, seconds))
            if overload.NAME in workloads:
                servers = {name: contender for name, contender in measured.items() if isinstance(contender, Server)}
                results.add(overload.measure(servers, rounds // 2, 4 * seconds))
    finally:  # what was measured before something failed is worth as much
        if results.any:
            say(results.text())


@contextmanager
def _up(names: Collection[str]) -> Iterator[dict[str, Contender]]:
    """These contenders, all up and all halted."""
    with ExitStack() as stack:
        bare = stack.enter_context(Worker("benchmarks.bare"))
        expected = embedding(bare("answer", length=LENGTH)["embedding"])
        contenders: dict[str, Contender] = {BARE: Bare(bare)}
        for name in LAUNCHES:
            if name in names:
                progress(f"starting {name}")
                target = stack.enter_context(running(name))
                contenders[name] = (Echo if name.startswith("echo") else Server)(target, expected)
                halt(target.pid)
        yield contenders


if __name__ == "__main__":
    sys.exit(main())
