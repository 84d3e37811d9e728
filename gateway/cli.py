"""The `tensorgate` command: one function per sub-command."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway import VERSION, settings
from gateway.commands import arguments
from gateway.commands.failure import CommandFailed

Command = Callable[[Namespace], int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command and exit with its code."""
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a model stuck in native code must not keep a drained server from ending.
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; its exit code."""
    parser = ArgumentParser("tensorgate", description="A gRPC inference gateway.")
    parser.add_argument("--version", action="version", version=f"tensorgate {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_demo(commands)
    _add_backends(commands)
    _add_predict(commands)
    _add_models(commands)
    _add_health(commands)
    _add_bench(commands)
    _add_profile(commands)
    _add_optimize(commands)
    parsed = parser.parse_args(arguments)
    command: Command = parsed.run
    del parsed.run
    try:
        return command(parsed)
    except CommandFailed as error:
        return _fail(str(error), error.code)
    except KeyboardInterrupt:  # before the server took the signal over
        return 128 + signal.SIGINT


def _add_serve(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model repository",
        description="Serve a model repository. Every flag may also be an environment variable (TENSORGATE_PORT) or a "
        "line of the --config file (port = 8001).",
    )
    parse = settings.add_arguments(parser)

    def run(parsed: Namespace) -> int:
        try:
            chosen = parse(parsed)
        except settings.InvalidSettings as error:
            return _fail(str(error), 2)
        return _serve(chosen)

    parser.set_defaults(run=run)


def _serve(chosen: settings.Settings) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters of its own log we say ourselves, in plain words
    from gateway.logs import ServerLog  # noqa: PLC0415  # as those below

    log = ServerLog(chosen.log_level, chosen.log_format, sys.stderr)
    log.install()
    from gateway import engine, server, source, transport  # noqa: PLC0415  # grpc takes a moment to import, which --help need not wait for

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(server.serve(chosen, log))
    except (engine.EngineUnavailable, transport.CannotListen, source.StorageFailed) as error:
        return _fail(str(error), 1)
    except settings.InvalidSettings as error:  # of what the server alone reads: OpenTelemetry's variables
        return _fail(str(error), 2)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def _add_backends(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser("backends", help="list the backends, and how to install those that are missing")

    def run(_: Namespace) -> int:
        from backends.registry import Registry  # noqa: PLC0415

        for info in Registry():
            files = ", ".join(info.filenames) or "no file"
            print(f"{info.name:12} {files:24} {'installed' if info.installed else info.install_hint}")
        return 0

    parser.set_defaults(run=run)


def _add_demo(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo", help="train a small model, serve it on every installed backend and measure it, in under a minute"
    )
    parser.add_argument("--keep", action="store_true", help="leave the server running and say how to call it")
    parser.add_argument("--directory", type=Path, default=Path("demo-models"), help="model repository to write")
    for flag, what in (("--port", "port to serve on"), ("--metrics-port", "port of /metrics")):
        parser.add_argument(flag, type=int, default=0, help=f"{what} (default: a free one)")

    def run(parsed: Namespace) -> int:
        from gateway import demo  # noqa: PLC0415  # grpc takes a moment to import

        return demo.run(parsed.directory, port=parsed.port, metrics_port=parsed.metrics_port, keep=parsed.keep)

    parser.set_defaults(run=run)


def _add_predict(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "predict",
        help="send the rows of a file through a model, into another file",
        description="Send the rows of a file through a model, into another file. Memory stays flat whatever the file's "
        "size. Exit codes: 0 all rows are predicted; 1 some failed, OUTPUT.errors.csv says why; 2 wrong usage; 3 the "
        "server went away, --resume goes on; 130 Ctrl-C, likewise.",
    )
    arguments.add_predict(parser)

    def run(parsed: Namespace) -> int:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.commands import predict  # noqa: PLC0415  # grpc takes a moment to import

        return predict.run(parsed)

    parser.set_defaults(run=run)


def _add_models(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser("models", help="list a server's models, load and unload them")
    arguments.add_models(parser)

    def run(parsed: Namespace) -> int:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.commands import models  # noqa: PLC0415  # grpc takes a moment to import

        return models.run(parsed)

    parser.set_defaults(run=run)


def _add_health(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser("health", help="exit with 0 if a server takes requests, else with 1 and the reason")
    arguments.add_connection(parser)

    def run(parsed: Namespace) -> int:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.commands import health  # noqa: PLC0415  # grpc takes a moment to import

        return health.run(parsed)

    parser.set_defaults(run=run)


def _add_bench(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure a served model: requests a second and latencies",
        description="Measure a served model through the Python client, whose own work is part of what is measured.",
    )
    arguments.add_bench(parser)

    def run(parsed: Namespace) -> int:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.commands import bench  # noqa: PLC0415  # grpc takes a moment to import

        return bench.run(parsed)

    parser.set_defaults(run=run)


def _add_profile(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "profile",
        help="run a model under its runtime's profiler: which operators take the time",
        description="Load a model as the server would, without one, run it under its runtime's own profiler and print "
        "which operators take the time.",
    )
    arguments.add_profile(parser)
    parse = settings.add_arguments(parser, only=("model_repository", "model_cache", "default_max_batch_size"))

    def run(parsed: Namespace) -> int:
        try:
            chosen = parse(parsed)
        except settings.InvalidSettings as error:
            return _fail(str(error), 2)
        from gateway import profile  # noqa: PLC0415  # what loads models takes a moment to import

        return profile.run(parsed, chosen)

    parser.set_defaults(run=run)


def _add_optimize(commands: argparse._SubParsersAction[ArgumentParser]) -> None:
    parser = commands.add_parser(
        "optimize",
        help="make a PyTorch model smaller and faster, measured as it is served",
        description="Prune, distil, quantise and export a PyTorch model, measure every variant through the gateway and "
        "write them into a model repository, with a report. Exit codes: 0 there is a winner; 1 no variant keeps to the "
        "budget; 2 wrong usage; 130 Ctrl-C, with a report of what had been measured.",
    )
    arguments.add_optimize(parser)

    def run(parsed: Namespace) -> int:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway import optimize  # noqa: PLC0415  # what optimises takes a moment to import

        return optimize.run(parsed)

    parser.set_defaults(run=run)


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"tensorgate: {line}", file=sys.stderr)
    return code
