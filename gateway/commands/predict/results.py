"""A model's outputs as columns of the result file."""

from __future__ import annotations

from bisect import bisect_left
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
    """The results of one block, as they come in.

    Attributes:
        done: rows before this one are settled.
    """

    def __init__(self, block: Block, tensors: Sequence[Tensor], schema: Schema, *, batched: bool) -> None:
        self._block = block
        self._tensors = tensors
        self._schema = schema
        self._batched = batched
        self._texts = [tensor.name for tensor in tensors if _is_text_type(schema.field(tensor.name).type)]
        self._unsent = sorted(block.faults)
        self._faults: Faults = dict(block.faults)
        self._first = block.first
        self._unfit = bisect_left(self._unsent, block.first)
        self._refused = 0
        self.done = block.first
        self._forget()

    def _forget(self) -> None:
        self._parts: dict[str, list[Array]] = {tensor.name: [] for tensor in self._tensors}
        self._good: list[NDArray[np.int64]] = []

    def __repr__(self) -> str:
        return f"<BlockResults rows={self._block.rows} done={self.done} failed={len(self._faults)}>"

    @property
    def complete(self) -> bool:
        """Whether the whole block is settled."""
        return self.done == self._block.rows

    @property
    def settled(self) -> tuple[int, int]:
        """Rows that are done but not yet taken, and how many of them failed."""
        return self.done - self._first, bisect_left(self._unsent, self.done) - self._unfit + self._refused

    def settle(self, rows: NDArray[np.int64] | None) -> None:
        """Everything up to the last of these rows has its result; None: up to the block's end."""
        self.done = self._block.rows if rows is None else int(rows[-1]) + 1

    def fail(self, rows: NDArray[np.int64], reason: str) -> None:
        """These rows have no result."""
        self._faults |= dict.fromkeys(rows.tolist(), reason)
        self._refused += len(rows)

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
        if self._texts:
            good = self._readable(rows, parts)
            rows, parts = rows[good], {name: part[good] for name, part in parts.items()}
        for name, part in parts.items():
            self._parts[name].append(part)
        self._good.append(rows)

    def _readable(self, rows: NDArray[np.int64], parts: Mapping[str, Array]) -> NDArray[np.bool_]:
        """Which rows can be written: text has to be text."""
        good = np.ones(len(rows), bool)
        for name in self._texts:
            for at, row in enumerate(parts[name]):
                if good[at] and not all(_is_text(value) for value in row):
                    good[at] = False
                    self.fail(rows[at : at + 1], f"output '{name}' is no UTF-8 text; --binary writes it as it is")
        return good

    def take(self) -> Batch:
        """Rows of the result file, and the reasons of those that failed: what is done and was not taken before."""
        count = self.done - self._first
        good = (np.concatenate(self._good) if self._good else np.empty(0, np.int64)) - self._first
        outputs = [self._column(tensor, good, count) for tensor in self._tensors]
        reasons = pa.array([self._faults.get(row) for row in range(self._first, self.done)], pa.string())
        kept = self._block.kept.slice(self._first, count)
        columns = [kept.column(name) for name in self._schema.names[: -len(outputs)]]
        self._first, self._unfit, self._refused = self.done, bisect_left(self._unsent, self.done), 0
        self._forget()
        return pa.RecordBatch.from_arrays([*columns, *outputs, reasons], names=[*self._schema.names, REASON])

    def _column(self, tensor: Tensor, good: NDArray[np.int64], count: int) -> Any:
        kind = self._schema.field(tensor.name).type
        parts = self._parts[tensor.name]
        missing = np.ones(count, bool)
        missing[good] = False
        leaf = kind if tensor.width == 1 else kind.value_type
        if tensor.width is not None:  # a failed row takes as much room as any other
            flat = np.zeros((count, tensor.width), object if tensor.datatype == "BYTES" else tensor.dtype)
            if parts:
                flat[good] = np.concatenate(parts)
            if tensor.width == 1:
                return _flat(flat[:, 0], leaf, missing)
            failed = np.repeat(missing, tensor.width)
            return pa.FixedSizeListArray.from_arrays(
                _flat(flat.reshape(-1), leaf, failed), type=kind, mask=pa.array(missing)
            )
        lengths = np.zeros(count, np.int64)
        lengths[good] = [part.shape[1] for part in parts for _ in range(len(part))]
        flat = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.empty(0, tensor.dtype)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _flat(flat, leaf, None), type=kind, mask=pa.array(missing))


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(wanted in (got, -1) for got, wanted in zip(shape, dims, strict=True))


def _is_text_type(kind: Any) -> bool:
    return bool(pa.types.is_string(kind.value_type if is_list(kind) else kind))


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
