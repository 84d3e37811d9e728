"""What a .tflite file computes: its signatures, and which of them are one model for several sizes of batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from backends.base import Array, LoadError, Signature, TensorSpec

Call = Callable[..., dict[str, Array]]
"""Executes one signature: outputs by name for inputs by name, in memory of their own."""

_KINDS = "biuf"
"""Of numpy's dtypes; those that the runtime has of these kinds are all the protocol's."""


@dataclass(frozen=True, slots=True)
class Program:
    """One of the things that a file computes.

    Attributes:
        key: its signature's name; "" in a file without signatures.
        signature: what it takes and gives; its batch is open only if the file says so.
        call: executes it.
    """

    key: str
    signature: Signature
    call: Call

    @property
    def rows(self) -> int:
        """Rows of its batches; 0 where its tensors have no first dimension of one fixed size."""
        first = {spec.shape[:1] for spec in (*self.signature.inputs, *self.signature.outputs)}
        return first.pop()[0] if len(first) == 1 and first.isdisjoint({(), (-1,)}) else 0


def programs(interpreter: Interpreter, chosen: Sequence[str] = ()) -> list[Program]:
    """What an interpreter can execute, each executed once with zeros: first executions take longer, and may fail.

    Args:
        interpreter: over the file.
        chosen: names of signatures; all without any.

    Raises:
        LoadError: there is no such signature, a tensor cannot be served, or an execution fails.
    """
    known = list(interpreter.get_signature_list())
    if missing := [key for key in chosen if key not in known]:
        listed = ", ".join(known) or "no signatures"
        raise LoadError(f"parameter 'signatures': the file has {listed}; got '{missing[0]}'")
    if not known:
        return [_program("", _Unsigned(interpreter))]
    return [_program(key, interpreter.get_signature_runner(key)) for key in chosen or known]


def together(found: Sequence[Program]) -> Signature:
    """The one signature of programs that do the same for batches of different sizes.

    Raises:
        LoadError: they do not.
    """
    first, *others = found
    if not others:
        return first.signature
    sizes = sorted({program.rows for program in found})
    signature = first.signature.batched(sizes)
    alike = all(other.signature.batched(sizes) == signature for other in others)
    if sizes[0] == 0 or len(sizes) < len(found) or not alike:
        listed = "; ".join(f"'{program.key}' {_shown(program)}" for program in found)
        raise LoadError(
            f"the signatures are not one model for several sizes of batch: {listed}; name the one to serve, or those "
            "that belong together, in the parameter 'signatures'"
        )
    return signature


class _Unsigned:
    """A file without signatures, called and described as the runtime does one of those."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def get_input_details(self) -> dict[str, Any]:
        return _by_name(self._interpreter.get_input_details())

    def get_output_details(self) -> dict[str, Any]:
        return _by_name(self._interpreter.get_output_details())

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        details = self.get_input_details()
        for name, array in inputs.items():
            self._interpreter.resize_tensor_input(details[name]["index"], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(details[name]["index"], array)
        self._interpreter.invoke()
        outputs = self.get_output_details().items()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in outputs}


def _by_name(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = {detail["name"]: detail for detail in details}
    if len(named) < len(details):
        raise LoadError(f"two tensors have one name, and no signature has better ones: {', '.join(named)}")
    return named


def _program(key: str, runner: Any) -> Program:
    inputs = [_spec(name, detail) for name, detail in runner.get_input_details().items()]
    outputs = [_spec(name, detail) for name, detail in runner.get_output_details().items()]
    batches = bool(Signature.of(inputs, outputs).max_batch_size)
    if not any(-1 in spec.shape[batches:] for spec in inputs):  # nobody knows sizes that would do
        for rows in (1, 2) if batches else (1,):
            outputs = _tried(key, runner, inputs, outputs, rows)
    return Program(key, Signature.of(inputs, outputs), runner)


def _tried(
    key: str, runner: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: int
) -> list[TensorSpec]:
    """The outputs as they come: the file need not state shapes that follow from others."""
    zeros = {spec.name: _zeros(spec, rows) for spec in inputs}
    try:
        results = runner(**zeros)
    except (RuntimeError, ValueError) as error:
        where = f"signature '{key}' " if key else ""
        raise LoadError(f"{where}does not execute: {' '.join(str(error).split())}") from error
    return [_settled(spec, results[spec.name].shape, rows) for spec in outputs]


def _settled(stated: TensorSpec, shape: tuple[int, ...], rows: int) -> TensorSpec:
    if -1 not in stated.shape:
        return stated._replace(shape=shape)
    wanted = (rows, *stated.shape[1:])
    if len(shape) != len(wanted) or any(size not in (-1, got) for size, got in zip(wanted, shape, strict=True)):
        raise LoadError(
            f"output '{stated.name}' is stated as {list(stated.shape)}, but for a batch of {rows} it is {list(shape)}: "
            "convert the model with a signature for each size of batch"
        )
    return stated


def _zeros(spec: TensorSpec, rows: int) -> Array:
    return np.full(
        [rows if size == -1 else size for size in spec.shape], b"" if spec.dtype.hasobject else 0, spec.dtype
    )


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "S":
        dtype = np.dtype(np.object_)
    elif dtype.kind not in _KINDS and dtype != ml_dtypes.bfloat16:
        raise LoadError(f"tensor '{name}' has type {dtype}, which the protocol cannot carry")
    stated = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(name, dtype, tuple(int(size) for size in stated))


def _shown(program: Program) -> str:
    sides = (program.signature.inputs, program.signature.outputs)
    return " -> ".join(", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in specs) for specs in sides)
