"""`model_warmup`: requests a model answers before its first caller, so that nobody waits for lazy set-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.base import Array, BackendError, LoadError
from gateway.batch import Batch
from gateway.instances import ThreadInstance
from gateway.model_config import wire_datatype
from gateway.request import InferenceRequest
from tensorgate_client.tensors import DTYPES, TensorError, from_raw, shown
from tensorgate_client.wire import model_config_pb2 as pb

if TYPE_CHECKING:
    from gateway.model import ServedModel

FOLDER = "warmup"
"""Beside the version folders: where `input_data_file` looks."""


async def run(model: ServedModel, instance: ThreadInstance, path: Path) -> None:
    """Run every warm-up request of the model's configuration on one instance.

    Args:
        model: whose configuration and tensor rules hold.
        instance: where to run.
        path: the model's folder.

    Raises:
        LoadError: a request does not fit the model, or the model fails on it.
    """
    for warmup in model.config.model_warmup:
        try:
            rows = max(warmup.batch_size, 1)
            request = InferenceRequest("", _inputs(warmup, model, path), rows, tuple(model.outputs))
            for _ in range(max(warmup.count, 1)):
                await instance.submit(Batch([request], model.layout))
        except Exception as error:
            reason = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
            raise LoadError(f"model_warmup '{warmup.name}': {reason}") from error


def _inputs(warmup: pb.ModelWarmup, model: ServedModel, path: Path) -> dict[str, Array]:
    if warmup.batch_size > model.max_batch_size > 0:
        raise LoadError(f"batch_size is {warmup.batch_size}, over max_batch_size {model.max_batch_size}")
    rules = model.inputs
    missing = {name for name, rule in rules.items() if not rule.optional} - set(warmup.inputs)
    if missing:
        raise LoadError(f"no input {', '.join(sorted(missing))}")
    inputs = {}
    for name, spec in warmup.inputs.items():
        rule = rules.get(name)
        if rule is None:
            raise LoadError(f"the model has no input '{name}': expected {', '.join(rules)}")
        shape = (*((max(warmup.batch_size, 1),) if rule.batches else ()), *spec.dims)
        datatype = wire_datatype(spec.data_type)
        if not rule.admits(datatype, shape):
            raise LoadError(f"input '{name}': expected {rule}, got {datatype} {shown(shape)}")
        inputs[name] = rule.to_runtime(_data(spec, datatype, shape, path))
    return inputs


def _data(spec: pb.ModelWarmup.Input, datatype: str, shape: tuple[int, ...], path: Path) -> Array:
    dtype = DTYPES[datatype]
    match spec.WhichOneof("input_data_type"):
        case "input_data_file":
            return _from_file(path / FOLDER, spec.input_data_file, datatype, shape)
        case "random_data":
            values = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, shape)
            return values.astype(dtype) if not dtype.hasobject else _texts(values)
        case _:
            return np.zeros(shape, dtype) if not dtype.hasobject else np.full(shape, b"", dtype)


def _texts(values: Array) -> Array:
    texts = np.empty(values.size, np.object_)
    texts[:] = [str(value).encode() for value in values.flat]
    return texts.reshape(values.shape)


def _from_file(folder: Path, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    """A file's raw contents. Only plain names: a path could lead out of the repository."""
    if Path(name).name != name or name in {".", ".."}:
        raise LoadError(f"input_data_file '{name}': expected the name of a file in {FOLDER}/")
    try:
        return from_raw((folder / name).read_bytes(), datatype, shape)
    except (OSError, TensorError) as error:
        raise LoadError(f"input_data_file '{name}': {error}") from error
