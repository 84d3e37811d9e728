"""`tensorgate models`: what a server's models are and do; loading and unloading them."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.commands.connection import connected
from gateway.commands.failure import CommandFailed
from gateway.commands.model import Tensor, read_model
from gateway.commands.saying import say
from gateway.commands.table import table
from tensorgate_client import InferenceClient
from tensorgate_client.tensors import shown
from tensorgate_client.wire import inference_pb2 as pb

_PATIENCE_MS = 10_000  # for what needs no work of the server; loading takes as long as it takes

_LOAD, _UNLOAD = ["load"], ["unload"]  # a model that is called so cannot be shown; a name forgotten is likelier

Answer = tuple[Any, str]
"""For programs and for people."""


def run(flags: Namespace) -> int:
    """Ask or tell the server; the exit code.

    Raises:
        CommandFailed: the server cannot be reached, or refused.
    """
    ask = _asked(flags)
    with connected(flags, deadline_ms=_PATIENCE_MS, retry=False) as client:
        data, text = ask(client)
    say(json.dumps(data, indent=2) if flags.json else text)
    return 0


def _asked(flags: Namespace) -> Callable[[InferenceClient], Answer]:
    match flags.words:
        case ["load", name] if not flags.statistics:
            config = _config(flags)
            return lambda client: _load(client, name, config)
        case ["unload", name] if not (flags.statistics or flags.config):
            return lambda client: _unload(client, name)
        case [*names] if len(names) <= 1 and names not in (_LOAD, _UNLOAD) and not flags.config:
            name = "".join(names)
            if flags.statistics:
                return lambda client: _statistics(client.statistics(name))
            return (lambda client: _one(client, name)) if name else (lambda client: _all(client.index()))
    raise CommandFailed(
        "expected `models` or `models MODEL`, both also with --statistics; `models load MODEL`, also with --config "
        "FILE; or `models unload MODEL`"
    )


def _config(flags: Namespace) -> Mapping[str, Any] | None:
    if flags.config is None:
        return None
    try:
        config = json.loads(flags.config.read_text())
    except OSError as error:
        raise CommandFailed(f"--config: {flags.config}: {error.strerror}") from None
    except ValueError as error:
        raise CommandFailed(f"--config: {flags.config}: expected JSON: {error}") from None
    if not isinstance(config, dict):
        raise CommandFailed(f"--config: {flags.config}: expected a JSON object with the fields of config.pbtxt")
    return config


def _load(client: InferenceClient, name: str, config: Mapping[str, Any] | None) -> Answer:
    client.load(name, config)
    versions = list(client.metadata(name).versions)
    return {"model": name, "loaded": versions}, f"{name} is loaded: version {', '.join(versions)}"


def _unload(client: InferenceClient, name: str) -> Answer:
    client.unload(name)
    return {"model": name, "loaded": []}, f"{name} is unloaded"


def _all(index: Sequence[pb.RepositoryIndexResponse.ModelIndex]) -> Answer:
    data = [{"model": m.name, "version": m.version, "state": m.state, "reason": m.reason} for m in index]
    if not data:
        return data, "the server has no models"
    rows = [[m.name, m.version or "-", m.state or "not loaded", m.reason.partition("\n")[0]] for m in index]
    return data, table(["model", "version", "state", "reason"], rows, left=4)


def _one(client: InferenceClient, name: str) -> Answer:
    entries = [entry for entry in client.index() if entry.name == name]
    states = [f"{name} version {e.version or '-'}: {e.state or 'not loaded'} {e.reason}".rstrip() for e in entries]
    data: dict[str, Any] = {
        "model": name,
        "versions": [{"version": e.version, "state": e.state, "reason": e.reason} for e in entries],
    }
    if entries and not any(entry.state == "READY" for entry in entries):
        return data, "\n".join(states)
    model = read_model(client, name, "")
    data |= {"max_batch_size": model.max_rows if model.batches else 0}
    data |= {"inputs": [_described(t) for t in model.inputs], "outputs": [_described(t) for t in model.outputs]}
    tensors = [*(["input", *_row(t)] for t in model.inputs), *(["output", *_row(t)] for t in model.outputs)]
    batches = f"takes up to {model.max_rows} rows a request" if model.batches else "does not batch"
    heads = ["", "name", "datatype", "shape", ""]
    return data, "\n".join([*states, f"version {model.version} {batches}", "", table(heads, tensors, left=5)])


def _described(tensor: Tensor) -> dict[str, Any]:
    described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    return {**described, "optional": True} if tensor.optional else described


def _row(tensor: Tensor) -> list[str]:
    return [tensor.name, tensor.datatype, shown(tensor.shape), "optional" if tensor.optional else ""]


def _statistics(statistics: Sequence[pb.ModelStatistics]) -> Answer:
    data = [_counted(entry) for entry in statistics]
    if not data:
        return data, "no model is loaded"
    heads = ["model", "version", "requests", "failed", "rows", "runs", "rows/run", "queue ms", "run ms"]
    heads += ["hits", "misses"]  # of the response cache
    return data, table(heads, [[_cell(value) for value in row.values()] for row in data], left=1)


def _counted(entry: pb.ModelStatistics) -> dict[str, str | int | float | None]:
    times = entry.inference_stats
    compute_ns = times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
    return {
        "model": entry.name,
        "version": entry.version,
        "requests": times.success.count,
        "failed": times.fail.count,
        "rows": entry.inference_count,
        "executions": entry.execution_count,
        "mean_batch": _mean(entry.inference_count, entry.execution_count),
        "mean_queue_ms": _mean(times.queue.ns / 1e6, times.queue.count),
        "mean_compute_ms": _mean(compute_ns / 1e6, times.compute_infer.count),
        "cache_hits": times.cache_hit.count,
        "cache_misses": times.cache_miss.count,
    }


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 3) if count else None


def _cell(value: str | float | None) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.2f}"
        case int():
            return f"{value:,}"
    return value
