"""A file as columns, read a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812  # its name says nothing by itself

import pyarrow as pa

from gateway.commands.failure import CommandFailed

Batch = Any  # pyarrow publishes no types; this is a pa.RecordBatch
Schema = Any

FAULT = "tensorgate.fault"
"""A column that files may have beside their own: why a row could not be read; null where it could."""


class Source(Protocol):
    """Rows in columns.

    Attributes:
        schema: names and types of the columns.
        shapes: what a row of a column looks like, where the file says more than its type: [8,8] and not 64.
        rows: how many there are; with `estimated`, about.
    """

    schema: Schema
    shapes: Mapping[str, tuple[int, ...]]
    rows: int
    estimated: bool

    def row_bytes(self, columns: Sequence[str]) -> int:
        """About so much memory a row of these columns takes."""

    def read(self, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:
        """These columns from row `start` on, in batches of `size` rows or so."""


def open_source(path: Path) -> Source:
    """The file at `path`, by its suffix.

    Raises:
        CommandFailed: it is not there, or is not what its suffix says.
    """
    if not path.is_file():
        raise CommandFailed(f"--input: {'not a file' if path.exists() else 'no such file'}: {path}")
    with readable(path):
        match path.suffix.lower():
            case ".npy" | ".npz":
                from gateway.commands.predict.arrays import ArraySource  # noqa: PLC0415  # only what the file needs

                source: Source = ArraySource(path)
            case ".csv":
                from gateway.commands.predict.csv_file import CsvSource  # noqa: PLC0415

                source = CsvSource(path)
            case ".parquet":
                from gateway.commands.predict.parquet import ParquetSource  # noqa: PLC0415

                source = ParquetSource(path)
            case suffix:
                raise CommandFailed(f"--input: expected .parquet, .csv, .npy or .npz, got '{suffix}': {path}")
    names = source.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CommandFailed(f"{path}: two columns are called '{twice}'")
    return source


def blocks(source: Source, path: Path, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:
    """These columns from row `start` on, in blocks of `size` rows; the last one may be shorter.

    Raises:
        CommandFailed: the file turns out to be broken.
    """
    with readable(path):
        yield from exactly(source.read(columns, start, size), size)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What is wrong with a file, in a line that starts with its name."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, BadZipFile, ZlibError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CommandFailed(f"{path}: {reason.splitlines()[0] if reason else type(error).__name__}") from error


def from_row(batches: Iterable[Batch], start: int) -> Iterator[Batch]:
    """Batches without their first `start` rows altogether."""
    for batch in batches:
        if start < batch.num_rows:
            yield batch.slice(start)
        start = max(start - batch.num_rows, 0)


def exactly(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows in batches of `size`, however they were cut; the last one may be shorter."""
    held: list[Batch] = []
    room = size
    for batch in batches:
        offset = 0
        while offset < batch.num_rows:
            part = batch.slice(offset, room)
            held.append(part)
            offset += part.num_rows
            room -= part.num_rows
            if room == 0:
                yield pa.concat_batches(held)
                held, room = [], size
    if held:
        yield pa.concat_batches(held)
