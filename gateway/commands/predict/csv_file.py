"""CSV files in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from gateway.commands.predict.source import FAULT, Batch, Schema, from_row

_BLOCK = 1 << 20  # bytes parsed at once
_LARGEST_BLOCK = 1 << 28  # for longer rows; a quote that is never closed makes one row of all the rest

Gaps = deque[tuple[int, str]]
"""Numbers of rows that could not be parsed, and why."""


class CsvSource:
    """Columns of a .csv file with a line of names, UTF-8, comma-separated.

    All are read as text: what a value means is known by the input it is for, and what is copied stays as it is. A row
    with too few or too many cells, or with a cell that is no text, fails alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._block = _BLOCK
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        while not (names := self._names()):
            pass
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.rows = _lines(path) - 1
        self.estimated = True  # a quoted value may have lines of its own

    def row_bytes(self, columns: Sequence[str]) -> int:
        """As `Source.row_bytes`."""
        return self._path.stat().st_size * len(columns) // (max(self.rows, 1) * len(self.schema))

    def read(self, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:  # noqa: ARG002  # a block is one
        """As `Source.read`; what comes before `start` is parsed and dropped."""
        while True:
            try:
                for batch in from_row(self._parsed(columns), start):
                    yield batch
                    start += batch.num_rows
            except pa.ArrowInvalid as error:
                self._widen(error)
            else:
                return

    def _names(self) -> Sequence[str]:
        """Of the columns; none where the first block turned out to be too small."""
        try:
            with pa_csv.open_csv(self._path, self._reading(), _parsing(deque())) as reader:
                return list(reader.schema.names)
        except pa.ArrowInvalid as error:
            self._widen(error)
        return []

    def _reading(self) -> pa_csv.ReadOptions:
        return pa_csv.ReadOptions(block_size=self._block, use_threads=False)

    def _widen(self, error: pa.ArrowInvalid) -> None:
        """Read larger blocks, if it is for that that a row could not be read."""
        if "straddling" not in str(error):
            raise error
        if self._block >= _LARGEST_BLOCK:
            raise ValueError(f"a row is longer than {_LARGEST_BLOCK >> 20} MiB: is a quote never closed?") from None
        self._block *= 4

    def _parsed(self, columns: Sequence[str]) -> Iterator[Batch]:
        gaps: Gaps = deque()
        types = dict.fromkeys(self.schema.names, pa.binary())  # what is no text must not fail all the others
        options = pa_csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False)
        first = 0
        with pa_csv.open_csv(self._path, self._reading(), _parsing(gaps), options) as reader:
            nothing = pa.RecordBatch.from_pylist([], reader.schema)
            for batch in chain(reader, [nothing]):  # behind the last batch there may still be a gap
                filled = _filled(batch, first, gaps)
                first += filled.num_rows
                yield filled


def _parsing(gaps: Gaps) -> pa_csv.ParseOptions:
    def note(row: pa_csv.InvalidRow) -> str:
        number = row.number - 2  # it counts from 1, and the line of names
        gaps.append((number, f"its line has {row.actual_columns} cells, expected {row.expected_columns}"))
        return "skip"

    return pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)


def _filled(batch: Batch, first: int, gaps: Gaps) -> Batch:
    """A batch whose first row has this number, with the rows that are missing from it, and why they are, as text."""
    reasons: dict[int, str] = {}
    rows = batch.num_rows
    while gaps and gaps[0][0] <= first + rows + len(reasons):
        number, why = gaps.popleft()
        reasons[number - first] = why
    if reasons:
        missing = np.zeros(rows + len(reasons), bool)
        missing[list(reasons)] = True
        batch = batch.take(pa.array(np.maximum(np.cumsum(~missing) - 1, 0), mask=missing))
    columns = [_text(column, name, reasons) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    whys = pa.array([reasons.get(row) for row in range(batch.num_rows)], pa.string()) if reasons else None
    whys = pa.nulls(batch.num_rows, pa.string()) if whys is None else whys
    return pa.RecordBatch.from_arrays([*columns, whys], names=[*batch.schema.names, FAULT])


def _text(column: pa.Array, name: str, reasons: dict[int, str]) -> pa.Array:
    """Bytes as text, and nothing where they are none."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [_decoded(value) for value in column.to_pylist()]
    for row, text in enumerate(texts):
        if text is None:
            reasons.setdefault(row, f"column '{name}' is no UTF-8 text")
    return pa.array(texts, pa.string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            count, last = count + block.count(b"\n"), block
    return count + (not last.endswith(b"\n"))


def write_csv(file: Path | IO[bytes], schema: Schema, batches: Iterable[Batch]) -> None:
    """A file with a column for each element of a vector: logits_0, logits_1, ..."""
    flat = pa.schema([field for wide in schema for field in _fields(wide)])
    alone = len(flat) == 1
    if alone and not pa.types.is_floating(flat[0].type):
        flat = pa.schema([(flat[0].name, pa.string())])
    with pa_csv.CSVWriter(file, flat) as writer:
        for batch in batches:
            columns = [column for index in range(batch.num_columns) for column in _elements(batch.column(index))]
            if alone:
                columns = [_visible(columns[0])]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=flat))


def _visible(column: pa.Array) -> pa.Array:
    """An only column with something to see where a row failed, since readers pass over empty lines."""
    return (
        column.fill_null(float("nan")) if pa.types.is_floating(column.type) else column.cast(pa.string()).fill_null("")
    )


def _fields(field: pa.Field) -> list[pa.Field]:
    if not pa.types.is_fixed_size_list(field.type):
        return [field]
    return [pa.field(f"{field.name}_{index}", field.type.value_type) for index in range(field.type.list_size)]


def _elements(column: pa.Array) -> list[pa.Array]:
    if not pa.types.is_fixed_size_list(column.type):
        return [column]
    return [pa.compute.list_element(column, index) for index in range(column.type.list_size)]
