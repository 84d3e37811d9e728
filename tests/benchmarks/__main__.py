"""`python -m benchmarks [PART ...] [--quick]`: run the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.report import BenchmarkError, machine, progress, say

_PARTS = {
    "minilm": "a real transformer behind the gateway against the bare runtime",
    "overload": "what is answered in time when more is asked for than there is capacity",
    "shapes": "requests of four lengths that come mixed against the same in order",
    "cache": "what the response cache gives on a hit, costs on a miss and saves when equal requests meet",
    "streams": "messages per second through ModelStreamInfer, with a model that does nothing",
    "tracing": "what traces and metrics cost",
    "batching": "what the gateway itself costs, with a model that does nothing",
    "gpu": "real networks on an NVIDIA GPU against the bare runtime; only if it is named",
    "ends": "what is lost when gateways end behind nginx, Envoy and clients that balance; only if it is named",
}
_ONLY_NAMED = ("gpu", "ends")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure the gateway on this machine. Every figure that matters is a ratio taken in one run.",
        epilog="parts:\n" + "\n".join(f"  {name:10} {described}" for name, described in _PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; by default all but gpu and ends")
    parser.add_argument("--quick", action="store_true", help="few short rounds, to see that it runs; not to be quoted")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in _PARTS]
    if unknown:
        parser.error(f"no part '{unknown[0]}': expected {', '.join(_PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `with` blocks, which end the servers
    try:
        _run(arguments.parts or [part for part in _PARTS if part not in _ONLY_NAMED], quick=arguments.quick)
    except BenchmarkError as error:
        progress("")
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        progress("")
        sys.stderr.write("benchmarks: interrupted\n")
        return 130
    return 0


def _run(parts: Sequence[str], *, quick: bool) -> None:
    # Imported here: what they import takes seconds, in which Ctrl-C must end cleanly and a wrong argument be told.
    if not set(parts) <= set(_ONLY_NAMED):  # which have their own load generators
        import_module("benchmarks.h2load").executable()
    say(machine())
    if quick:
        say("quick: too short to quote")
    for part in parts:
        import_module(f"benchmarks.{part}").run(quick=quick)


if __name__ == "__main__":
    sys.exit(main())
