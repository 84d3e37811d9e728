"""A model's outputs as columns of the result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Tensor
from gateway.commands.predict.columns import is_list
from gateway.commands.predict.rows import Block, Faults
from gateway.commands.predict.source import Batch, Schema
from tensorgate_client.tensors import shown

REASON = "tensorgate.reason"
"""The column beside the results that says why a row failed; it is not written to the result file."""

Array = NDArray[Any]


def result_schema(tensors: Sequence[Tensor], kept: Schema, *, binary: bool) -> Schema:
    """The columns of the result file.

    Raises:
        CommandFailed: two would have one name.
    """
    fields = [*kept, *(pa.field(tensor.name, _type(tensor, binary=binary)) for tensor in tensors)]
    for tensor in tensors:
        if tensor.name in kept.names:
            raise CommandFailed(f"--keep: '{tensor.name}' is also an output of the model")
    return pa.schema([field.remove_metadata() for field in fields])


def _type(tensor: Tensor, *, binary: bool) -> Any:
    if tensor.datatype == "BYTES":
        one = pa.binary() if binary else pa.string()
    elif tensor.datatype in ("FP16", "BF16"):  # not every reader knows them, and FP32 holds them exactly
        one = pa.float32()
    else:
        one = pa.from_numpy_dtype(tensor.dtype)
    if tensor.width == 1:
        return one
    return pa.list_(one) if tensor.width is None else pa.list_(one, tensor.width)


class BlockResults:
    """The results of one block, as they come in."""

    def __init__(self, block: Block, tensors: Sequence[Tensor], schema: Schema, *, batched: bool) -> None:
        self._block = block
        self._tensors = tensors
        self._schema = schema
        self._batched = batched
        self._faults: Faults = dict(block.faults)
        self._parts: dict[str, list[Array]] = {tensor.name: [] for tensor in tensors}
        self._good: list[NDArray[np.int64]] = []

    def __repr__(self) -> str:
        good = sum(len(rows) for rows in self._good)
        return f"<BlockResults rows={self._block.rows} good={good} failed={len(self._faults)}>"

    def fail(self, rows: NDArray[np.int64], reason: str) -> None:
        """These rows have no result."""
        self._faults |= dict.fromkeys(rows.tolist(), reason)

    def add(self, rows: NDArray[np.int64], outputs: Mapping[str, Array]) -> None:
        """The outputs of these rows, which come after all that were added before."""
        parts = {}
        for tensor in self._tensors:
            array = outputs.get(tensor.name)
            if array is None:
                self.fail(rows, f"the model did not answer with output '{tensor.name}'")
                return
            shape = array.shape[1:] if self._batched else array.shape
            if (self._batched and len(array) != len(rows)) or not _fits(shape, tensor.dims):
                self.fail(rows, f"output '{tensor.name}' came as {shown(array.shape)}, expected {shown(tensor.shape)}")
                return
            parts[tensor.name] = array.reshape(len(rows), -1)
        good = self._readable(rows, parts)
        for name, part in parts.items():
            self._parts[name].append(part[good])
        self._good.append(rows[good])

    def _readable(self, rows: NDArray[np.int64], parts: Mapping[str, Array]) -> NDArray[np.bool_]:
        """Which rows can be written: text has to be text."""
        good = np.ones(len(rows), bool)
        for name, part in parts.items():
            kind = self._schema.field(name).type
            if not pa.types.is_string(kind.value_type if is_list(kind) else kind):
                continue
            for at, row in enumerate(part):
                if not all(_is_text(value) for value in row):
                    good[at] = False
                    self.fail(rows[at : at + 1], f"output '{name}' is no UTF-8 text; --binary writes it as it is")
        return good

    def columns(self) -> Batch:
        """The block's rows of the result file, and the reasons of those that failed."""
        good = np.concatenate(self._good) if self._good else np.empty(0, np.int64)
        outputs = [self._column(tensor, good) for tensor in self._tensors]
        reasons = pa.array([self._faults.get(row) for row in range(self._block.rows)], pa.string())
        kept = [self._block.kept.column(name) for name in self._schema.names[: -len(outputs)]]
        names = [*self._schema.names, REASON]
        return pa.RecordBatch.from_arrays([*kept, *outputs, reasons], names=names)

    def _column(self, tensor: Tensor, good: NDArray[np.int64]) -> Any:
        kind = self._schema.field(tensor.name).type
        parts = self._parts[tensor.name]
        lengths = np.zeros(self._block.rows, np.int64)
        lengths[good] = [part.shape[1] for part in parts for _ in range(len(part))]
        missing = np.ones(self._block.rows, bool)
        missing[good] = False
        leaf = kind if tensor.width == 1 else kind.value_type
        if tensor.width is not None:  # a failed row takes as much room as any other
            flat = np.zeros((self._block.rows, tensor.width), object if tensor.datatype == "BYTES" else tensor.dtype)
            if parts:
                flat[good] = np.concatenate(parts)
            if tensor.width == 1:
                return _flat(flat[:, 0], leaf, missing)
            failed = np.repeat(missing, tensor.width)
            return pa.FixedSizeListArray.from_arrays(
                _flat(flat.reshape(-1), leaf, failed), type=kind, mask=pa.array(missing)
            )
        flat = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.empty(0, tensor.dtype)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _flat(flat, leaf, None), type=kind, mask=pa.array(missing))


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(wanted in (got, -1) for got, wanted in zip(shape, dims, strict=True))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _flat(values: Array, kind: Any, missing: NDArray[np.bool_] | None) -> Any:
    if values.dtype != object:
        exact = values.astype(np.float32) if kind == pa.float32() else values  # FP16 and BF16 among them
        return pa.array(exact, kind, mask=missing)
    present = values.tolist() if missing is None else [None if m else v for v, m in zip(values, missing, strict=True)]
    return pa.array(present, pa.binary()).cast(kind)
