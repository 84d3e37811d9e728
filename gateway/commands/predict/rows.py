"""Blocks of a file as batches of a model's inputs; rows that cannot be converted are left out, with their reasons."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gateway.commands.predict.columns import Feed, is_list, plain
from gateway.commands.predict.source import FAULT
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

    def bytes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How large the input of each of these rows is in a request."""
        if self.flat.dtype != object:
            return (self.offsets[rows + 1] - self.offsets[rows]) * self.flat.itemsize
        until = np.concatenate([[0], np.cumsum([len(value) + 4 for value in self.flat])]).astype(np.int64)
        return until[self.offsets[rows + 1]] - until[self.offsets[rows]]

    def of(self, rows: NDArray[np.int64], *, batched: bool) -> Array:
        """The input of these rows, all of one size."""
        first, last = rows[0], rows[-1]
        if last - first + 1 == len(rows):
            flat = self.flat[self.offsets[first] : self.offsets[last + 1]]
        else:
            flat = np.concatenate([self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows])
        return flat.reshape((len(rows), *self.feed.dims) if batched else self.feed.dims)


class Request(NamedTuple):
    """Rows that are sent together, by their positions in the block, and how large they are."""

    rows: NDArray[np.int64]
    bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of the file, converted.

    Attributes:
        kept: columns to copy.
        faults: rows that cannot be sent.
        first: the first row that an earlier run has not done.
    """

    kept: Columns
    faults: Faults
    _values: Sequence[_Values]
    _batched: bool
    first: int
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.kept.num_rows)

    def inputs(self, rows: NDArray[np.int64]) -> Mapping[str, Array]:
        """What to send for these rows, which are of one shape."""
        return {values.feed.tensor.name: values.of(rows, batched=self._batched) for values in self._values}

    def requests(self, size: int, most_bytes: int) -> Iterator[Request]:
        """The good rows in order: up to `size` of one shape and up to so many bytes at a time.

        They do not depend on `first`, which has to be where one of them ends: a run that goes on computes the same.
        """
        fit = np.ones(self.rows, bool)
        fit[list(self.faults)] = False
        good = np.flatnonzero(fit)
        if not len(good):
            return
        change = np.zeros(len(good) - 1, bool)
        for values in self._values:
            change |= np.diff(np.diff(values.offsets)[good]) != 0
        sizes = sum((values.bytes_of(good) for values in self._values), np.zeros(len(good), np.int64))
        until = [0, *np.cumsum(sizes).tolist()]
        begin = 0
        for end in (*(np.flatnonzero(change) + 1).tolist(), len(good)):
            while begin < end:
                fitting = bisect_right(until, until[begin] + most_bytes) - 1
                last = max(min(begin + size, end, fitting), begin + 1)
                if good[last - 1] >= self.first:
                    yield Request(good[begin:last], until[last] - until[begin])
                begin = last


def block(columns: Columns, feeds: Sequence[Feed], keep: Sequence[str], *, batched: bool, first: int = 0) -> Block:
    """Convert some rows of the file."""
    faults = _unread(columns)
    values = [_values(columns, feed, faults) for feed in feeds]
    return Block(_kept(columns, keep), faults, values, batched, first)


def _unread(columns: Columns) -> Faults:
    if FAULT not in columns.schema.names or columns.column(FAULT).null_count == columns.num_rows:
        return {}
    return {row: why for row, why in enumerate(columns.column(FAULT).to_pylist()) if why}


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
    what = "is null"
    while is_list(column.type):
        for at in np.flatnonzero(column.is_null()).tolist():
            faults.setdefault(_row_of(at, offsets), f"column '{name}' {what}")
        what = "has a null in its list"
        lengths = pc.list_value_length(column).fill_null(0)
        starts = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)])
        offsets = starts[offsets]
        column = column.flatten()
    flat, unfit = converted(column, feed.tensor.datatype)
    for at in np.flatnonzero(column.is_null()).tolist():
        unfit[at] = what
    for at, reason in sorted(unfit.items()):
        faults.setdefault(_row_of(at, offsets), f"column '{name}' {reason}")
    return flat, offsets


def _row_of(element: int, offsets: NDArray[np.int64]) -> int:
    return int(np.searchsorted(offsets, element, side="right")) - 1
