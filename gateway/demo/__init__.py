"""`tensorgate demo`: a trained model, served on every backend and measured, from nothing in under a minute."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import signal
import sys
import time
from pathlib import Path

from gateway import process

_NEEDED = ("torch", "onnxruntime", "onnxscript", "sklearn")


def run(directory: Path, *, port: int, metrics_port: int, keep: bool) -> int:
    """Train, export, serve, classify, print the table; the exit code.

    Args:
        directory: the model repository to write.
        port: to serve on, 0 for a free one.
        metrics_port: to serve metrics on, likewise.
        keep: leave the server running until Ctrl-C and say how to call it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"tensorgate: the demo needs {', '.join(missing)}: pip install 'tensorgate[demo]'", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each step shows when it is done, through a pipe too
    for number in process.ending_signals():  # however the demo ends, its server must not be left behind
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(directory, port, metrics_port, keep=keep)
    except KeyboardInterrupt:
        print()
        return 130
    except OSError as error:
        print(f"tensorgate: {error}", file=sys.stderr)
        return 1


def _run(directory: Path, port: int, metrics_port: int, *, keep: bool) -> int:
    # These bring torch and scikit-learn, which `tensorgate --help` need not wait for.
    from gateway.demo import digits, measure, stages  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)  # before the work whose result it is to hold
    started = time.monotonic()
    data = digits.load()
    network = digits.train(data)
    print(f"trained a small CNN on {len(data.train_labels)} images of digits in {time.monotonic() - started:.1f} s")
    names = digits.export(network, directory)
    print(f"exported it to {directory}/: {', '.join(names)}")
    held_out = directory / "digits.csv"
    digits.write_rows(data, held_out)
    print(f"wrote the {len(data.labels)} held-out images to {held_out}, for `tensorgate predict`")
    with process.serving(directory, "--port", str(port), "--metrics-port", str(metrics_port)) as server:
        address = server.wait_until_ready()
        print(f"serving on {address}; classifying the {len(data.labels)} held-out images over gRPC")
        rows = asyncio.run(measure.all_models(address, names, data.images, data.labels))
        print(f"\n{measure.table(rows)}\n")
        print(f"{stages.table(server.metrics)}\n\n{_HOW_TO_TRACE}\n")
        if keep:
            print(_how_to_call(address, server.metrics))
            server.wait()
    print("the server ended cleanly" if server.exit_code == 0 else f"the server ended with code {server.exit_code}")
    return server.exit_code


_HOW_TO_TRACE = """To see single requests as traces, and who shared a batch (pip install 'tensorgate[otlp]'):

    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 tensorgate serve --model-repository DIR --trace-rate 0.01"""


def _how_to_call(address: str, metrics: str) -> str:
    return f"""The server runs until Ctrl-C. Call it from another terminal:

    {sys.executable} -m gateway.demo.classify {address}
    grpcurl -plaintext {address} inference.GRPCInferenceService/ServerMetadata
    curl {metrics}
"""
