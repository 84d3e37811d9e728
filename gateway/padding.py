"""Padding of batches to sizes that a model prefers or needs, as config.pbtxt's `parameters` declare it.

`pad`: "ids[1] mask[1] tokens[1]: 32 64 128" makes dimension 1 of the inputs `ids` and `mask`, which have to agree, the
next of these sizes by appending zeros (empty strings for BYTES), and cuts dimension 1 of the output `tokens` back to
the request's own size. Dimensions count from 0, the batch dimension. What is larger than all sizes stays as it is.
Several such rules are separated by semicolons. Telling padding from data, as by a mask, is the model's own business.

`batch_sizes`: "1 8 32" are the only numbers of rows that the model runs with: batches are filled up by repeating the
last row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.base import Array, InvalidInput, LoadError
from gateway import parameters
from gateway.parameters import BATCH_SIZES, PAD
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)

_NO_BATCHES = "the model does not batch (max_batch_size: 0), so there is nothing to pad for"
_RULE = re.compile(r"\s*((?:[^\s\[\]:;]+\[\d+\][\s,]*)+):([\d\s,]+)")
_TENSOR = re.compile(r"([^\s\[\],]+)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Axis:
    """Dimensions that are one size, and the sizes it is padded to.

    Attributes:
        sizes: ascending.
        inputs, outputs: the dimension by the tensor's name; 0 is the batch.
    """

    sizes: tuple[int, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def of(self, inputs: Mapping[str, Array]) -> int | None:
        """The size that the inputs have; None if all of them are optional and left out.

        Raises:
            InvalidInput: they differ.
        """
        found = {name: inputs[name].shape[dim] for name, dim in self.inputs.items() if name in inputs}
        sizes = set(found.values())
        if len(sizes) > 1:
            listed = ", ".join(f"'{name}' {size}" for name, size in found.items())
            raise InvalidInput(f"inputs differ in a size that is one and the same: {listed}")
        return sizes.pop() if sizes else None

    def padded(self, size: int) -> int:
        """The size that `size` is padded to."""
        return next((known for known in self.sizes if known >= size), size)


@dataclass(frozen=True, slots=True)
class Padding:
    """What is padded.

    Attributes:
        axes: dimensions other than the batch.
        batch_sizes: rows that the model runs with, ascending; empty if any will do.
    """

    axes: tuple[Axis, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: pb.ModelConfig) -> Padding:
        """The padding of a completed configuration.

        Raises:
            LoadError: a parameter does not hold.
        """
        sizes = parameters.batch_sizes(config)
        if sizes and not config.max_batch_size:
            raise LoadError(f"parameter '{BATCH_SIZES}': {_NO_BATCHES}")
        if sizes and sizes[-1] < config.max_batch_size:
            limit = config.max_batch_size
            raise LoadError(f"parameter '{BATCH_SIZES}': the largest is {sizes[-1]}, below max_batch_size {limit}")
        text = config.parameters[PAD].string_value if PAD in config.parameters else ""
        axes = tuple(_axis(rule, config) for rule in text.split(";") if rule.strip())
        _check_together(axes, config)
        return cls(axes, sizes)

    def rows(self, rows: int) -> int:
        """How many rows a batch of `rows` runs with."""
        if not self.batch_sizes:
            return rows
        return next((size for size in self.batch_sizes if size >= rows), rows)

    def shape_of(self, name: str, array: Array, inputs: Mapping[str, Array]) -> tuple[int, ...]:
        """The padded shape of an input, without its rows.

        Raises:
            InvalidInput: inputs differ in a size that should be one.
        """
        shape = list(array.shape)
        for axis in self.axes:
            if name in axis.inputs:
                shape[axis.inputs[name]] = axis.padded(axis.of(inputs) or 0)
        return tuple(shape[1:])

    def cut(self, name: str, array: Array, inputs: Mapping[str, Array]) -> Array:
        """An output without what padding added to the request with these inputs."""
        for axis in self.axes:
            dim, size = axis.outputs.get(name), axis.of(inputs)
            if dim is not None and size is not None and array.shape[dim] == axis.padded(size):
                array = array[(*(slice(None),) * dim, slice(size))]
        return array


def stack(arrays: Sequence[Array], stacked: Array) -> None:
    """Put the arrays' rows one below the other into another array, which may be larger in every dimension.

    Dimensions are filled up with zeros (BYTES: empty strings), rows by repeating the last one.
    """
    used = sum([len(array) for array in arrays])
    if {array.shape[1:] for array in arrays} == {stacked.shape[1:]}:
        np.concatenate(arrays, out=stacked[:used])
    else:
        stacked[:used] = b"" if stacked.dtype.hasobject else 0
        row = 0
        for array in arrays:
            stacked[(slice(row, row + len(array)), *map(slice, array.shape[1:]))] = array
            row += len(array)
    if used < len(stacked):
        stacked[used:] = stacked[used - 1]


def _axis(rule: str, config: pb.ModelConfig) -> Axis:
    subject = f"parameter '{PAD}'"
    match = _RULE.fullmatch(rule)
    if match is None:
        got = rule.strip()
        raise LoadError(f"{subject}: expected 'INPUT[DIM] ...: SIZE ...', as 'ids[1] mask[1]: 32 64', got '{got}'")
    if not config.max_batch_size:
        raise LoadError(f"{subject}: {_NO_BATCHES}")
    named = [(name, int(dim)) for name, dim in _TENSOR.findall(match[1])]
    inputs = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name: tensor for tensor in config.output}
    for name, dim in named:
        if name not in inputs and name not in outputs:
            raise LoadError(f"{subject}: the model has no input or output '{name}'")
        # Inputs are padded as the runtime sees them, outputs are cut as the client does.
        shapes = [t.reshape.shape if t.HasField("reshape") else t.dims for n, t in inputs.items() if n == name]
        shapes += [tensor.dims for n, tensor in outputs.items() if n == name]
        if not all(1 <= dim <= len(shape) and shape[dim - 1] == -1 for shape in shapes):
            raise LoadError(f"{subject}: {name}[{dim}] is no open dimension of '{name}' (0 is the batch)")
    padded = {name: dim for name, dim in named if name in inputs}
    if not padded:
        raise LoadError(f"{subject}: '{rule.strip()}' names no input")
    cut = {name: dim for name, dim in named if name in outputs}
    return Axis(parameters.sizes(match[2].strip(), PAD), padded, cut)


def _check_together(axes: Sequence[Axis], config: pb.ModelConfig) -> None:
    """Refuse dimensions that two rules name, and warn of outputs that would come back padded."""
    seen: set[tuple[str, int]] = set()
    for axis in axes:
        for name, dim in axis.inputs.items():
            if (name, dim) in seen:
                raise LoadError(f"parameter '{PAD}': two rules name {name}[{dim}]")
            seen.add((name, dim))
    cut = {name for axis in axes for name in axis.outputs}
    for tensor in config.output:
        if axes and -1 in tensor.dims and tensor.name not in cut:
            _log.warning(
                "model %s: output '%s' has an open dimension that no rule of '%s' cuts: if it is a padded one, name it "
                "there, or callers get it padded",
                config.name,
                tensor.name,
                PAD,
            )
