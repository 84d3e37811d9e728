"""Blocks of a file as batches of a model's inputs; rows that cannot be converted are left out, with their reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gateway.commands.predict.columns import Feed, is_list, plain
from gateway.commands.predict.source import Batch as Columns
from gateway.commands.predict.values import converted
from tensorgate_client.tensors import shown

Array = NDArray[Any]
Faults = dict[int, str]
"""Why a row failed, by its position in the block."""


@dataclass(frozen=True, slots=True)
class _Values:
    """An input of every row: the elements one after the other, and where each row's begin."""

    feed: Feed
    flat: Array
    offsets: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64], *, batched: bool) -> Array:
        """The input of these rows, all of one size."""
        first, last = rows[0], rows[-1]
        if last - first + 1 == len(rows):
            flat = self.flat[self.offsets[first] : self.offsets[last + 1]]
        else:
            flat = np.concatenate([self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows])
        return flat.reshape((len(rows), *self.feed.dims) if batched else self.feed.dims)


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of the file, converted.

    Attributes:
        kept: columns to copy.
        faults: rows that cannot be sent.
    """

    kept: Columns
    faults: Faults
    _values: Sequence[_Values]
    _batched: bool
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.kept.num_rows)

    def inputs(self, rows: NDArray[np.int64]) -> Mapping[str, Array]:
        """What to send for these rows, which are of one shape."""
        return {values.feed.tensor.name: values.of(rows, batched=self._batched) for values in self._values}

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """The good rows by their positions, in order: up to `size` of one shape at a time."""
        good = np.array([row for row in range(self.rows) if row not in self.faults], np.int64)
        if not len(good):
            return
        change = np.zeros(len(good) - 1, bool)
        for values in self._values:
            change |= np.diff(np.diff(values.offsets)[good]) != 0
        for alike in np.split(good, np.flatnonzero(change) + 1):
            yield from (alike[first : first + size] for first in range(0, len(alike), size))


def block(columns: Columns, feeds: Sequence[Feed], keep: Sequence[str], *, batched: bool) -> Block:
    """Convert some rows of the file."""
    faults: Faults = {}
    values = [_values(columns, feed, faults) for feed in feeds]
    return Block(_kept(columns, keep), faults, values, batched)


def _kept(columns: Columns, keep: Sequence[str]) -> Columns:
    if keep:
        kept = columns.select(list(keep))
        return kept.cast(pa.schema([(field.name, plain(field.type)) for field in kept.schema]))
    # A batch without columns forgets how many rows it has.
    return pa.RecordBatch.from_arrays([pa.nulls(columns.num_rows)], names=[""])


def _values(columns: Columns, feed: Feed, faults: Faults) -> _Values:
    parts = [_column(columns.column(name), name, feed, faults) for name in feed.columns]
    rows = columns.num_rows
    if len(parts) == 1:
        flat, offsets = parts[0]
    elif all(len(part) == rows for part, _ in parts):  # the common case, and a quick one
        flat, offsets = np.stack([part for part, _ in parts], axis=1).reshape(-1), np.arange(rows + 1) * len(parts)
    else:
        cut = [np.split(part, offsets[1:-1]) for part, offsets in parts]
        flat = np.concatenate([piece for row in zip(*cut, strict=True) for piece in row])
        offsets = np.sum([offsets for _, offsets in parts], axis=0)
    step = math.prod(size for size in feed.dims if size > 0)
    lengths = np.diff(offsets)
    wrong = lengths % step != 0 if -1 in feed.dims else lengths != step
    for row in np.flatnonzero(wrong).tolist():
        expected = f"a multiple of {step}" if -1 in feed.dims else str(step)
        message = f"input '{feed.tensor.name}' {shown(feed.dims)} takes {expected} values a row, got {lengths[row]}"
        faults.setdefault(row, message)
    return _Values(feed, flat, offsets)


def _column(column: Any, name: str, feed: Feed, faults: Faults) -> tuple[Array, NDArray[np.int64]]:
    """A column's elements in the input's datatype, and where each row's begin."""
    offsets = np.arange(len(column) + 1, dtype=np.int64)
    while is_list(column.type):
        for at in np.flatnonzero(column.is_null()).tolist():
            faults.setdefault(_row_of(at, offsets), f"column '{name}' is null")
        lengths = pc.list_value_length(column).fill_null(0)
        starts = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)])
        offsets = starts[offsets]
        column = column.flatten()
    flat, unfit = converted(column, feed.tensor.datatype)
    for at, reason in sorted(unfit.items()):
        faults.setdefault(_row_of(at, offsets), f"column '{name}' {reason}")
    return flat, offsets


def _row_of(element: int, offsets: NDArray[np.int64]) -> int:
    return int(np.searchsorted(offsets, element, side="right")) - 1
