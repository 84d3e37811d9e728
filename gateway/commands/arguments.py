"""The flags of the commands; light, since `tensorgate --help` reads them all."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def add_connection(parser: ArgumentParser) -> None:
    """How to reach the server."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address", type=_address, default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s"
    )
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the authorities that gRPC ships")
    group.add_argument("--tls-ca", metavar="FILE", help="encrypt, trusting the authorities of this PEM file")
    group.add_argument("--tls-cert", metavar="FILE", help="with --tls-key: the client's certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="FILE", help="its private key")
    token = group.add_mutually_exclusive_group()  # never the token itself: every user sees a command's arguments
    token.add_argument("--token-file", metavar="FILE", help="file that holds the token to send")
    token.add_argument("--token-env", metavar="NAME", help="environment variable that holds the token to send")
    group.add_argument(
        "--allow-plaintext-token", action="store_true", help="send the token unencrypted, as inside a service mesh"
    )


def add_predict(parser: ArgumentParser) -> None:
    """What to predict, from which file to which."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help=".parquet, .csv, .npy or .npz")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".parquet, .csv, .npy or .npz")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="INPUT=COLUMNS",
        help="columns that make up an input, comma-separated, * for any text; repeatable. By default a column belongs "
        "to the input of its name, and all columns together to an only input",
    )
    parser.add_argument("--keep", type=_names, default=(), metavar="COLUMNS", help="columns to copy to the output")
    parser.add_argument("--select", type=_names, default=(), metavar="OUTPUTS", help="outputs to write (default: all)")
    parser.add_argument("--version", default="", metavar="N", help="of the model (default: the latest)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="rows a request (default: the model's most)")
    parser.add_argument("--window", type=_positive, default=16, metavar="N", help="requests on their way (default: 16)")
    parser.add_argument(
        "--retry-for-s",
        type=_not_negative,
        default=60.0,
        metavar="S",
        help="how long to wait for a server that is away, 0 to give up at once (default: 60)",
    )
    parser.add_argument("--binary", action="store_true", help="write BYTES outputs as binary and not as text")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where an interrupted run ended")
    again.add_argument("--restart", action="store_true", help="throw away what an interrupted run has done")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    parser.add_argument("--quiet", action="store_true", help="say nothing but what goes wrong")
    add_connection(parser)


def add_models(parser: ArgumentParser) -> None:
    """What to ask of the models, or to do with one."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | load MODEL | unload MODEL",
        help="nothing lists them all; a name shows one model with its inputs and outputs",
    )
    parser.add_argument("--statistics", action="store_true", help="requests, rows and times since they were loaded")
    parser.add_argument("--config", type=Path, metavar="FILE", help="load: JSON to use in the place of config.pbtxt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection(parser)


def add_bench(parser: ArgumentParser) -> None:
    """What to measure."""
    _add_requests(parser)
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=_list_of(_positive),
        metavar="N,N,...",
        help="requests in flight, one line of the table for each (default: 1,2,4,8,16)",
    )
    load.add_argument(
        "--rate",
        type=_list_of(_rate),
        metavar="R,R,...",
        help="open loop: this many requests a second, arriving at random, however slow the answers are",
    )
    parser.add_argument("--stream", action="store_true", help="over one stream (default: a call for each request)")
    parser.add_argument("--seconds", type=_rate, default=5.0, metavar="S", help="for each line (default: 5)")
    parser.add_argument("--warmup", type=_not_negative, default=1.0, metavar="S", help="before each line (default: 1)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw latency over throughput: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection(parser)


def add_profile(parser: ArgumentParser) -> None:
    """What to profile; `settings.add_arguments` adds where it is."""
    _add_requests(parser)
    parser.add_argument("--runs", type=_positive, default=100, metavar="N", help="executions (default: 100)")
    parser.add_argument(
        "--by",
        choices=("operator", "node"),
        default="operator",
        help="a line of the table for each kind of operator (default) or each operator of the model",
    )
    parser.add_argument("--top", type=_positive, default=20, metavar="N", help="lines of the table (default: 20)")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="keep every call in this .json file, for Perfetto or chrome://tracing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, all operators in it")


def add_optimize(parser: ArgumentParser) -> None:
    """What to optimise, under which budget, and where to."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.py", help="defines model, sample and evaluate")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="model repository to write")
    parser.add_argument(
        "--budget",
        default="drop<=1%",
        metavar="TEXT",
        help="what the winner has to keep to, as 'accuracy>=0.97, p99<5ms, size<1MB' (default: 'drop<=1%%'); also p50, "
        "p95, memory, throughput",
    )
    parser.add_argument("--only", type=_names, default=(), metavar="TECHNIQUES", help="use these alone")
    parser.add_argument("--skip", type=_names, default=(), metavar="TECHNIQUES", help="do not use these")
    parser.add_argument(
        "--concurrency",
        type=_positive,
        default=8,
        metavar="N",
        help="callers at once while latencies are measured (default: 8)",
    )
    parser.add_argument(
        "--seconds", type=_rate, default=2.0, metavar="S", help="to measure each kind of latency for (default: 2)"
    )
    parser.add_argument(
        "--timeout-s", type=_rate, default=900.0, metavar="S", help="that a technique may take (default: 900)"
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier run has written")


def _add_requests(parser: ArgumentParser) -> None:
    """A model, and what it is measured with."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--version", default="", metavar="N", help="of the model (default: the latest)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="send this file's first rows (default: random ones)")
    parser.add_argument("--map", action="append", default=[], metavar="INPUT=COLUMNS", help="as `tensorgate predict`'s")
    parser.add_argument("--rows", type=_positive, default=1, metavar="N", help="rows a request (default: 1)")
    parser.add_argument(
        "--size", type=_positive, default=16, metavar="N", help="elements where a shape is open (default: 16)"
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ArgumentTypeError(f"'{twice}' is named twice")
    return names


def _address(text: str) -> str:
    if not text.strip() or text.startswith(("http://", "https://")):
        raise ArgumentTypeError(f"expected HOST:PORT, got '{text}'")
    return text.strip()


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _rate(text: str) -> float:
    if not 0 < (value := _number(text)) < float("inf"):
        raise ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := _number(text)) < float("inf"):
        raise ArgumentTypeError(f"expected 0 or more, got '{text}'")
    return value


def _list_of(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(one(part) for part in text.split(","))
