"""What every model file of PyTorch is brought to: a flat list of tensors in, a flat list of tensors out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils import _pytree as pytree

from backends.base import ModelSource, Signature, TensorSpec

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.bool: np.dtype(np.bool_),
    torch.uint8: np.dtype(np.uint8),
    torch.uint16: np.dtype(np.uint16),
    torch.uint32: np.dtype(np.uint32),
    torch.uint64: np.dtype(np.uint64),
    torch.int8: np.dtype(np.int8),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
}

Run = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]

_INDEX = re.compile(r".*__(\d+)")


@dataclass(frozen=True, slots=True)
class Target:
    """How a file's program is to run.

    Attributes:
        device: where.
        dtype: what its weights are cast to; None leaves them as they are.
        compiled: by torch.compile.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Something that runs, and the names, dtypes and shapes of its tensors in the order `run` takes and gives.

    Attributes:
        weights: its tensors, each storage once; empty where the format does not tell.
    """

    signature: Signature
    run: Run
    weights: Sequence[torch.Tensor] = ()


def weights_of(module: torch.nn.Module, constants: Iterable[Any] = ()) -> list[torch.Tensor]:
    """Parameters, buffers and constant tensors, each storage once."""
    tensors = [*module.parameters(), *module.buffers(), *(c for c in constants if isinstance(c, torch.Tensor))]
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())


def memory_of(weights: Iterable[torch.Tensor]) -> dict[str, int]:
    """Bytes of weights by device, such as "CPU:0"."""
    held: Counter[str] = Counter()
    for tensor in weights:
        kind = "GPU" if tensor.device.type == "cuda" else tensor.device.type.upper()
        held[f"{kind}:{tensor.device.index or 0}"] += tensor.untyped_storage().nbytes()
    return dict(held)


def paths(spec: pytree.TreeSpec) -> list[pytree.KeyPath]:
    """Where each leaf of a nested structure is found."""
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def output_names(spec: pytree.TreeSpec, source: ModelSource) -> list[str]:
    """Keys where the model returns a dict; else the declared names in order; else OUTPUT__0, OUTPUT__1, ..."""
    keys = [joined(path) for path in paths(spec) if path and not isinstance(path[0], pytree.SequenceKey)]
    declared = [tensor.name for tensor in source.declared.outputs]
    if len(set(keys)) == spec.num_leaves:
        return keys
    return declared if len(declared) == spec.num_leaves else [f"OUTPUT__{i}" for i in range(spec.num_leaves)]


def joined(path: pytree.KeyPath) -> str:
    """A leaf's name in the style of torch.export: "a_0" for `["a"][0]`."""
    return "_".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)


def positions(declared: Sequence[TensorSpec], known: Sequence[str]) -> list[int]:
    """Where each declared tensor stands among the known ones: by name, by a trailing `__INDEX`, else in order."""
    names = [tensor.name for tensor in declared]
    indices = [_INDEX.fullmatch(name) for name in names]
    if set(names) <= set(known):
        return [known.index(name) for name in names]
    if all(indices):
        return [int(match[1]) for match in indices if match]
    return list(range(len(names)))


def first_line(error: Exception) -> str:
    """What an exception says, without the stack of native frames that torch appends."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
