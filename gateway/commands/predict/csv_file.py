"""CSV files in and out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from gateway.commands.predict.source import Batch, Schema, from_row

_BLOCK = 1 << 20  # bytes parsed at once
_PARSING = pa_csv.ParseOptions(newlines_in_values=True)


class CsvSource:
    """Columns of a .csv file with a line of names, UTF-8, comma-separated.

    All are read as text: what a value means is known by the input it is for, and what is copied stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        with pa_csv.open_csv(path, _reading(), _PARSING) as reader:
            self.schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
        self.rows = _lines(path) - 1
        self.estimated = True  # a quoted value may have lines of its own

    def read(self, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:  # noqa: ARG002  # a block is one
        """As `Source.read`; what comes before `start` is parsed and dropped."""
        types = dict.fromkeys(self.schema.names, pa.string())
        options = pa_csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False)
        with pa_csv.open_csv(self._path, _reading(), _PARSING, options) as reader:
            yield from from_row(reader, start)


def _reading() -> pa_csv.ReadOptions:
    return pa_csv.ReadOptions(block_size=_BLOCK, use_threads=False)


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            count, last = count + block.count(b"\n"), block
    return count + (not last.endswith(b"\n"))


def write_csv(path: Path, schema: Schema, batches: Iterable[Batch]) -> None:
    """A file with a column for each element of a vector: logits_0, logits_1, ..."""
    flat = pa.schema([field for wide in schema for field in _fields(wide)])
    alone = len(flat) == 1
    if alone and not pa.types.is_floating(flat[0].type):
        flat = pa.schema([(flat[0].name, pa.string())])
    with pa_csv.CSVWriter(path, flat) as writer:
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
