"""`model.pt2` from torch.export: the format of PyTorch that says all there is to know about its tensors."""

from __future__ import annotations

import os
import pickle
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.export.pt2_archive import _package as archives
from torch.utils import _pytree as pytree

from backends.base import UNBOUNDED, InvalidInput, LoadError, ModelSource, Signature, TensorSpec
from backends.torch_precision import cast
from backends.torch_program import DTYPES, Program, Run, Target, first_line, output_names, paths, weights_of

_DTYPE_CHECK = torch.ops.aten._assert_tensor_metadata.default
"""Holds a tensor to the datatype that it was exported with."""

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OPAQUE = re.compile(r"data/constants/opaque_obj")
_SIZE_REFUSED = re.compile(r"Expected input (?:at )?(?P<path>.+)\.shape\[\d+\] ")
_reading = threading.Lock()


def load(path: str, source: ModelSource, target: Target) -> Program:
    """An exported program; arguments that are no tensors keep the values they were exported with.

    Raises:
        LoadError: the archive is damaged, holds pickled code, or the program takes or gives what the protocol lacks.
    """
    try:
        exported = _read(path)
    except _Pickled as refused:
        raise LoadError(
            f"{Path(path).name} holds pickled Python code ({refused}), which is not executed: export the model with "
            f"plain tensors, or start the server with {_FORCE}=0 if you trust every file in the repository"
        ) from refused
    except Exception as error:  # whatever the archive's reader stumbles over
        raise LoadError(f"{Path(path).name}: torch.export cannot read it: {first_line(error)}") from error
    if target.device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415  # needed off the CPU only

        exported = move_to_device_pass(exported, target.device)
    signature, wanted = _signature(exported, source)
    module = _module(exported, target)
    weights = weights_of(module, () if target.dtype else exported.constants.values())
    return Program(signature, _runner(exported, module, wanted), weights)


def _module(exported: torch.export.ExportedProgram, target: Target) -> torch.nn.Module:
    # Sizes are checked either way; the guards would check them once more, by code generated at load.
    module = exported.module(check_guards=False)
    if target.dtype:
        cast(module, target.dtype)
        for node in module.graph.find_nodes(op="call_function", target=_DTYPE_CHECK):
            module.graph.erase_node(node)
        module.recompile()
    if target.compiled:
        # Not the module as a whole: its check of the sizes comes before, and is to say what it always says.
        module.forward = torch.compile(module.forward, dynamic=True)
    return module


def _runner(exported: torch.export.ExportedProgram, module: torch.nn.Module, wanted: Sequence[int]) -> Run:
    in_spec = exported.call_spec.in_spec
    arguments = [s.arg for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    slots = [i for i, argument in enumerate(arguments) if not isinstance(argument, ConstantArgument)]
    constants = [a.value if isinstance(a, ConstantArgument) else None for a in arguments]
    names = {_torch_path(path): argument.name for path, argument in zip(paths(in_spec), arguments, strict=True)}

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        leaves: list[Any] = list(constants)
        for slot, tensor in zip(slots, tensors, strict=True):
            leaves[slot] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, in_spec)
        try:
            results = pytree.tree_leaves(module(*args, **kwargs))
        except RuntimeError as error:
            if refusal := _refusal(error, names):
                raise InvalidInput(refusal) from error
            raise
        return [results[i] for i in wanted]

    return run


def _torch_path(path: pytree.KeyPath) -> str:
    """How torch's messages spell the place of a leaf of (args, kwargs)."""
    keyword = path[0] == pytree.SequenceKey(1)
    return str(path[1])[1:-1] + pytree.keystr(path[2:]) if keyword else "*args" + pytree.keystr(path[1:])


def _refusal(error: RuntimeError, names: Mapping[str, str]) -> str:
    """What torch says of a size that the program was not exported for, with the tensor's name; "" for other errors."""
    match = _SIZE_REFUSED.match(str(error))
    if match is None or match["path"] not in names:
        return ""
    return first_line(error).replace(match["path"], f"'{names[match['path']]}'", 1)


class _Pickled(Exception):
    """Python code, by the name of what it would call or where it lies."""


def _read(path: str) -> torch.export.ExportedProgram:
    # torch.export.load would hide the reason of most failures in a logged warning; and a file object may have any
    # name, where a path has to end with .pt2.
    with _weights_only() as held, Path(path).open("rb") as file:
        if held:
            _refuse_opaque_objects(path)
        try:
            programs = archives.load_pt2(file).exported_programs
        except pickle.UnpicklingError as error:
            if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise _Pickled(refused[1]) from error
            raise
    if len(programs) != 1:
        raise ValueError(f"expected one exported program, found {len(programs)}")
    return next(iter(programs.values()))


@contextmanager
def _weights_only() -> Iterator[bool]:
    """Hold `torch.load` to plain tensors, which torch's reader of archives by itself does not; whether it is held.

    Only this variable of torch's reaches that far. It holds for the process, whose `python` models have a right to
    load what they like: so it is there no longer than needed, and not at all where the user has set it to 0.
    """
    with _reading:
        usual = os.environ.get(_FORCE)
        if usual == "0":
            yield False
            return
        os.environ[_FORCE] = "1"
        try:
            yield True
        finally:
            del os.environ[_FORCE]
            if usual is not None:
                os.environ[_FORCE] = usual


def _refuse_opaque_objects(path: str) -> None:
    """Objects that torch unpickles without asking `torch.load`."""
    with archives.PT2ArchiveReader(path) as reader:
        opaque = [name for name in reader.get_file_names() if _OPAQUE.match(name)]
    if opaque:
        raise _Pickled(opaque[0])


def _signature(exported: torch.export.ExportedProgram, source: ModelSource) -> tuple[Signature, list[int]]:
    """The signature, and which of the returned leaves are its outputs: the constants among them are not."""
    graph = exported.graph_signature
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    inputs = [s.arg for s in graph.input_specs if s.kind is InputKind.USER_INPUT]
    outputs = [s.arg for s in graph.output_specs if s.kind is OutputKind.USER_OUTPUT]
    names = output_names(exported.call_spec.out_spec, source)
    taken = {a.name: values.get(a.name) for a in inputs if not isinstance(a, ConstantArgument)}
    wanted = [i for i, a in enumerate(outputs) if not isinstance(a, ConstantArgument)]
    given = {names[i]: values.get(outputs[i].name) for i in wanted}
    specs = _specs(taken), _specs(given)
    return Signature(*specs, _max_batch_size((*taken.values(), *given.values()), exported)), wanted


def _max_batch_size(tensors: Sequence[Any], exported: torch.export.ExportedProgram) -> int:
    """The limit of the open size that leads every tensor; 0 if none does."""
    leading = {_symbol(tensor) for tensor in tensors}
    if len(leading) != 1 or None in leading:
        return 0
    (symbol,) = leading
    limits = exported.range_constraints.get(symbol)
    if limits is None:
        return UNBOUNDED
    # The exporter calls an open size at least 2 where nobody said otherwise, and torch runs it with 1 all the same.
    if limits.lower > 2:
        raise LoadError(
            f"exported for batches of at least {limits.lower}: export with torch.export.Dim('batch', min=1), so that "
            "a single row can be served"
        )
    return int(limits.upper) if limits.upper.is_Integer and limits.upper < 2**31 else UNBOUNDED


def _symbol(tensor: Any) -> Any:
    """The symbol of the first dimension, None where that is fixed or computed, as in `2*batch`."""
    first = tensor.shape[0] if tensor.dim() else 0
    return first.node.expr if isinstance(first, torch.SymInt) and first.node.expr.is_Symbol else None


def _specs(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, value) for name, value in tensors.items())


def _spec(name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in DTYPES:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise LoadError(f"'{name}' is {kind}: only tensors of the protocol's datatypes can be served")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name, DTYPES[value.dtype], shape)
