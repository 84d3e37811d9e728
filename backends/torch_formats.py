"""Which model file of PyTorch a path holds, and the two formats that leave dtypes and shapes to config.pbtxt."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from backends import torch_export
from backends.base import LoadError, ModelSource, Signature
from backends.torch_program import Program, first_line, joined, output_names, paths, positions, weights_of


def load(source: ModelSource, device: torch.device) -> Program:
    """Read the source's file, whichever format it holds.

    Raises:
        LoadError: the file is damaged or of another kind; the message says which kinds there are.
    """
    path = str(source.file)
    members = _members(path)
    if any("/data/aotinductor/" in name for name in members):
        return _load_aotinductor(path, source, device)
    if any(name.endswith("/archive_format") for name in members):
        return torch_export.load(path, source, device)
    if any(name.endswith("/constants.pkl") for name in members):
        return _load_torchscript(path, source, device)
    raise LoadError(
        f"{_name(path)} is neither a torch.export archive nor TorchScript; a pickled module or a bare state_dict is "
        "not served: write one with torch.export.save(torch.export.export(model, example), 'model.pt2')"
    )


def _members(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise LoadError(f"{_name(path)} is not a PyTorch archive, or damaged: {error}") from error


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _load_aotinductor(path: str, source: ModelSource, device: torch.device) -> Program:
    """A compiled package. It keeps the call's structure, but no dtypes or shapes: config.pbtxt declares them."""
    try:
        package = torch._inductor.aoti_load_package(path, device_index=-1 if device.index is None else device.index)
    except Exception as error:
        raise LoadError(f"{_name(path)}: AOTInductor cannot load it: {first_line(error)}") from error
    built_for = package.get_metadata().get("AOTI_DEVICE_KEY", device.type)
    if built_for != device.type:
        raise LoadError(f"the package was compiled for {built_for}: set parameter 'device' to it, not '{device.type}'")
    in_spec, out_spec = (pytree.treespec_loads(text) for text in package.loader.get_call_spec())
    known = [joined(p[1:]) if p[0] == pytree.SequenceKey(1) else f"INPUT__{i}" for i, p in enumerate(paths(in_spec))]
    named = output_names(out_spec, source)
    declared = _declared(source, known, named, "an AOTInductor package")
    slots, wanted = positions(declared.inputs, known), positions(declared.outputs, named)
    for kind, places, names in (("inputs", slots, known), ("outputs", wanted, named)):
        if len(set(places)) != len(places) or max(places) >= len(names):
            raise LoadError(f"the package has {kind} ({', '.join(names)}): config.pbtxt has to declare those")
    order = sorted(range(len(slots)), key=slots.__getitem__)

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        results = package.loader.run([tensors[i] for i in order])
        return [results[i] for i in wanted]

    return Program(declared, run)


def _load_torchscript(path: str, source: ModelSource, device: torch.device) -> Program:
    """TorchScript. Its schema names the arguments; dtypes and shapes have to be declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is on its way out, its files are not
        try:
            module = torch.jit.load(path, map_location=device).eval()
        except Exception as error:
            raise LoadError(f"{_name(path)}: TorchScript cannot load it: {first_line(error)}") from error
    schema = module.forward.schema
    arguments = schema.arguments[1:]  # the first is the module itself, whatever its author called it
    needed = [a.name for a in arguments if not a.has_default_value()]
    returned = [f"OUTPUT__{i}" for i in range(_leaf_count(schema.returns[0].type))]
    declared = _declared(source, needed, returned, "TorchScript")
    order = _argument_order(declared, arguments, needed)
    wanted = positions(declared.outputs, [])

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        result = module(**dict(zip(order, tensors, strict=True)))
        if isinstance(result, dict):
            return [result[spec.name] for spec in declared.outputs]
        leaves: list[torch.Tensor] = pytree.tree_leaves(result)
        return [leaves[i] for i in wanted]

    return Program(declared, run, weights_of(module))


def _leaf_count(returned: Any) -> int:
    """How many outputs a TorchScript type says it holds; the length of a list or a dict is not part of its type."""
    return sum(map(_leaf_count, returned.elements())) if returned.kind() == "TupleType" else 1


def _argument_order(declared: Signature, arguments: Sequence[Any], needed: Sequence[str]) -> list[str]:
    """The argument each declared input goes to."""
    places = positions(declared.inputs, [a.name for a in arguments])
    order = [arguments[i] for i in places if i < len(arguments)]
    names = [a.name for a in order]
    if len(names) != len(declared.inputs) or len(set(names)) != len(names) or not set(needed) <= set(names):
        raise LoadError(
            f"forward takes ({', '.join(a.name for a in arguments)}), config.pbtxt declares inputs "
            f"({', '.join(spec.name for spec in declared.inputs)}): name each after an argument, or end it with the "
            "argument's position, as INPUT__0"
        )
    for argument in order:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise LoadError(f"argument '{argument.name}' of forward is {argument.type}: only tensors can be served")
    return names


def _declared(source: ModelSource, inputs: list[str], outputs: list[str], what: str) -> Signature:
    """What config.pbtxt declares; without it, an error with the lines to write."""
    declared = source.declared
    if not declared.inputs or not declared.outputs:
        lines = ["max_batch_size: 32"]
        for kind, names in (("input", inputs), ("output", outputs)):
            lines += [f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]' for name in names]
        raise LoadError(
            f"{what} does not say which dtypes and shapes it takes: write these lines, with the real values, into "
            f"{source.name}/config.pbtxt (dims without the batch dimension):\n  " + "\n  ".join(lines)
        )
    for spec in (*declared.inputs, *declared.outputs):
        if spec.dtype.hasobject:
            raise LoadError(f"'{spec.name}' is TYPE_STRING, and torch has no strings: put a `python` model in front")
    return declared
