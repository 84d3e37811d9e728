"""Which model file of PyTorch a path holds, and the two formats that leave dtypes and shapes to config.pbtxt."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from backends import torch_export
from backends.base import LoadError, ModelSource, Signature
from backends.torch_precision import cast
from backends.torch_program import Program, Target, first_line, joined, output_names, paths, positions, weights_of

_AOTINDUCTOR = "/data/aotinductor/"


def load(source: ModelSource, target: Target) -> Program:
    """Read the source's file, whichever format it holds.

    Raises:
        LoadError: the file is damaged or of another kind, or cannot run like that; the message says what can be done.
    """
    path = str(source.file)
    members = _members(path)
    if any(_AOTINDUCTOR in name for name in members):
        if target.dtype or target.compiled:
            raise LoadError(
                "parameters 'dtype' and 'compile': an AOTInductor package is compiled already, leave them out"
            )
        return _load_aotinductor(path, source, target.device)
    if any(name.endswith("/archive_format") for name in members):
        return torch_export.load(path, source, target)
    if any(name.endswith("/constants.pkl") for name in members):
        if target.compiled:
            raise LoadError("parameter 'compile': torch.compile does not take TorchScript: export with torch.export")
        return _load_torchscript(path, source, target)
    raise LoadError(
        f"{_name(path)} is neither a torch.export archive nor TorchScript; a pickled module or a bare state_dict is "
        "not served: write one with torch.export.save(torch.export.export(model, example), 'model.pt2')"
    )


def compiled_for(path: Path) -> str:
    """The kind of device that an AOTInductor package was compiled for, "cpu" or "cuda"; "" for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if _AOTINDUCTOR in name and name.endswith("_metadata.json"):
                    return str(json.loads(archive.read(name)).get("AOTI_DEVICE_KEY", ""))
    except (OSError, ValueError, zipfile.BadZipFile):  # loading it will say what is wrong
        pass
    return ""


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


def _load_torchscript(path: str, source: ModelSource, target: Target) -> Program:
    """TorchScript. Its schema names the arguments; dtypes and shapes have to be declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is on its way out, its files are not
        try:
            module = torch.jit.load(path, map_location=target.device).eval()
        except Exception as error:
            raise LoadError(f"{_name(path)}: TorchScript cannot load it: {first_line(error)}") from error
    if target.dtype:
        cast(module, target.dtype)
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
