"""The model files of PyTorch, each brought to one shape: a flat list of tensors in, a flat list of tensors out."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils import _pytree as pytree

from backends.base import UNBOUNDED, LoadError, ModelSource, Signature, TensorSpec

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
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


@dataclass(frozen=True, slots=True)
class Program:
    """Something that runs, and the names, dtypes and shapes of its tensors in the order `run` takes and gives."""

    signature: Signature
    run: Run


def load(source: ModelSource, device: torch.device) -> Program:
    """Read the source's file, whichever format it holds.

    Raises:
        LoadError: the file is damaged or of another kind; the message says which kinds there are.
    """
    path = str(source.file)
    members = _members(path)
    if any(name.endswith("archive_format") for name in members) or path.endswith(".pt2"):
        if any("/aotinductor/" in name for name in members):
            return _load_aotinductor(path, source, device)
        return _load_exported(path, source, device)
    if any(name.endswith("/constants.pkl") for name in members):
        return _load_torchscript(path, source, device)
    raise LoadError(
        "model.pt is neither TorchScript nor a torch.export archive; a pickled module or a bare state_dict is not "
        "served: write one with torch.export.save(torch.export.export(model, example), 'model.pt2')"
    )


def _members(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise LoadError(f"not a PyTorch archive: {error}") from error


def _load_exported(path: str, source: ModelSource, device: torch.device) -> Program:
    """An exported program; its call specification and range constraints say all there is to know."""
    try:
        exported = torch.export.load(path)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the archive's reader stumbles over
        raise LoadError(f"torch.export cannot read the file: {_first_line(error)}") from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415  # needed off the CPU only

        exported = move_to_device_pass(exported, device)
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    in_spec, out_spec = exported.call_spec.in_spec, exported.call_spec.out_spec
    inputs = [_spec(name, values.get(name)) for name in exported.graph_signature.user_inputs]
    output_values = [values.get(name) for name in exported.graph_signature.user_outputs]
    names = _output_names(out_spec, source, len(output_values))
    outputs = [_spec(name, value) for name, value in zip(names, output_values, strict=True)]
    signature = _bounded(Signature.of(inputs, outputs), exported)
    module = exported.module(check_guards=False)  # the gateway has checked dtypes and shapes already

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        args, kwargs = pytree.tree_unflatten(tensors, in_spec)
        return pytree.tree_leaves(module(*args, **kwargs))

    return Program(signature, run)


def _bounded(signature: Signature, exported: torch.export.ExportedProgram) -> Signature:
    """The signature with the batch limit the model was exported with."""
    if signature.max_batch_size == 0:
        return signature
    first = exported.graph_signature.user_inputs[0]
    value = next(node.meta["val"] for node in exported.graph.nodes if node.name == first)
    limits = exported.range_constraints.get(value.shape[0].node.expr)
    if limits is None:
        return signature
    if limits.lower > 1:
        raise LoadError(
            f"exported for batches of at least {limits.lower}: export with torch.export.Dim('batch', min=1), so that "
            "a single row can be served"
        )
    upper = limits.upper
    maximum = int(upper) if upper.is_Integer and upper < 2**31 else UNBOUNDED
    return Signature(signature.inputs, signature.outputs, maximum)


def _load_aotinductor(path: str, source: ModelSource, device: torch.device) -> Program:
    """A compiled package. It keeps the call's structure, but no names, dtypes or shapes: config.pbtxt declares them."""
    index = -1 if device.index is None else device.index
    try:
        package = torch._inductor.aoti_load_package(path, device_index=index)
    except Exception as error:
        raise LoadError(f"AOTInductor cannot load the package: {_first_line(error)}") from error
    in_spec, out_spec = (pytree.treespec_loads(text) for text in package.loader.get_call_spec())
    names = _output_names(out_spec, source, out_spec.num_leaves)
    guessed = [f"INPUT__{i}" for i in range(in_spec.num_leaves)]
    declared = _declared(source, guessed, names, "an AOTInductor package")
    return Program(declared, package.loader.run)


def _load_torchscript(path: str, source: ModelSource, device: torch.device) -> Program:
    """TorchScript. Its schema names the arguments; dtypes and shapes have to be declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is on its way out, its files are not
        try:
            module = torch.jit.load(path, map_location=device).eval()
        except Exception as error:
            raise LoadError(f"TorchScript cannot load the file: {_first_line(error)}") from error
    arguments = [a for a in module.forward.schema.arguments if a.name != "self"]
    needed = [a.name for a in arguments if not a.has_default_value()]
    declared = _declared(source, needed, ["OUTPUT__0"], "TorchScript")
    order = _argument_order([spec.name for spec in declared.inputs], [a.name for a in arguments], needed)

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        return _leaves(module(**{order[i]: tensor for i, tensor in enumerate(tensors)}), declared)

    return Program(declared, run)


def _argument_order(names: list[str], arguments: list[str], needed: list[str]) -> list[str]:
    """The argument each declared input goes to: by name, by a trailing `__INDEX` (Triton's rule), else in order."""
    if set(names) <= set(arguments):
        order = names
    elif all(re.search(r"__\d+$", name) for name in names):
        indices = [int(name.rsplit("__", 1)[1]) for name in names]
        order = [arguments[i] for i in indices if i < len(arguments)]
    else:
        order = arguments[: len(names)]
    if len(order) != len(names) or len(set(order)) != len(order) or not set(needed) <= set(order):
        raise LoadError(
            f"forward takes ({', '.join(arguments)}), config.pbtxt declares inputs ({', '.join(names)}): name each "
            "after an argument, or end it with the argument's position, as INPUT__0"
        )
    return order


def _leaves(result: Any, declared: Signature) -> Sequence[torch.Tensor]:
    if isinstance(result, dict):
        return [result[spec.name] for spec in declared.outputs]
    leaves: list[torch.Tensor] = pytree.tree_leaves(result)
    if all(re.search(r"__\d+$", spec.name) for spec in declared.outputs):
        return [leaves[int(spec.name.rsplit("__", 1)[1])] for spec in declared.outputs]
    return leaves


def _declared(source: ModelSource, inputs: list[str], outputs: list[str], what: str) -> Signature:
    """What config.pbtxt declares; without it, an error with the lines to write."""
    declared = source.declared
    if declared.inputs and declared.outputs:
        return declared
    lines = ["max_batch_size: 32"]
    for kind, names in (("input", inputs), ("output", outputs)):
        lines += [f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]' for name in names]
    raise LoadError(
        f"{what} does not say which dtypes and shapes it takes: write these lines, with the real values, into "
        f"{source.name}/config.pbtxt (dims without the batch dimension):\n  " + "\n  ".join(lines)
    )


def _output_names(out_spec: pytree.TreeSpec, source: ModelSource, count: int) -> list[str]:
    """Keys where the model returns a dict; else the declared names in order; else OUTPUT__0, OUTPUT__1, ..."""
    if out_spec.type is dict and out_spec.num_children == count:
        return [str(key) for key in out_spec.context]
    declared = [spec.name for spec in source.declared.outputs]
    return declared if len(declared) == count else [f"OUTPUT__{i}" for i in range(count)]


def _spec(name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise LoadError(f"'{name}' is {kind}: only tensors of the protocol's datatypes can be served")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name, _DTYPES[value.dtype], shape)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
