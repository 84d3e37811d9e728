"""Parquet files in and out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gateway.commands.predict.source import Batch, Schema, from_row

_BUFFER = 1 << 20  # bytes read ahead of each column, where a whole row group might not fit into memory
_SAMPLE = 16  # rows


class ParquetSource:
    """Columns of a .parquet file; row groups may be as large as the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        self.estimated = False
        with self._open() as file:
            self.schema = file.schema_arrow
            self.rows: int = file.metadata.num_rows

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)

    def row_bytes(self, columns: Sequence[str]) -> int:
        """As `Source.row_bytes`: the average, or that of the first rows, since what repeats is stored but once."""
        stored = 0
        with self._open() as file:
            paths = [file.schema.column(at).path for at in range(len(file.schema))]
            wanted = [at for at, path in enumerate(paths) if path in columns or path.split(".")[0] in columns]
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
                stored += sum(group.column(at).total_uncompressed_size for at in wanted)
        first = next(self.read(columns, 0, _SAMPLE), None)
        return max(stored // max(self.rows, 1), first.nbytes // max(first.num_rows, 1) if first else 0)

    def read(self, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:
        """As `Source.read`; row groups before `start` are passed over unread."""
        with self._open() as file:
            first = 0
            groups = file.metadata.num_row_groups
            while first < groups and start >= (rows := file.metadata.row_group(first).num_rows):
                start -= rows
                first += 1
            if first == groups:
                return
            wanted = range(first, groups)
            batches = file.iter_batches(size, row_groups=list(wanted), columns=list(columns), use_threads=False)
            yield from from_row(batches, start)


def write_parquet(file: Path | IO[bytes], schema: Schema, batches: Iterable[Batch]) -> None:
    """A file with one row group for each batch. Nothing in it depends on when or where it is written.

    Vectors become lists: that is how Parquet stores them anyway, and before pyarrow 25 it could neither write nor read
    vectors of a fixed size of which some are null.
    """
    schema = pa.schema([(field.name, _listed(field.type)) for field in schema])
    with pq.ParquetWriter(file, schema) as writer:
        for batch in batches:
            columns = [_as_list(column) for column in batch.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(batch.num_rows, 1))


def _listed(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind


def _as_list(column: pa.Array) -> pa.Array:
    if not pa.types.is_fixed_size_list(column.type):
        return column
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    missing = column.is_null() if column.null_count else None
    return pa.ListArray.from_arrays(offsets, column.flatten(), type=_listed(column.type), mask=missing)
