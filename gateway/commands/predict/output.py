"""The result file, put together from the segments, and the list of rows that failed."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Tensor
from gateway.commands.predict.columns import is_list
from gateway.commands.predict.finished import mark
from gateway.commands.predict.partial import Partial, sync_folder
from gateway.commands.predict.results import REASON
from gateway.commands.predict.source import Batch, Schema, exactly

SUFFIXES = (".parquet", ".csv", ".npy", ".npz")


def check_path(path: Path, source: Path, keep: Sequence[str]) -> None:
    """Whether there can be such a file, with copies of columns of `source` in it.

    Raises:
        CommandFailed: there cannot.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise CommandFailed(f"--output: expected {', '.join(SUFFIXES)}, got '{kind}': {path}")
    if not path.parent.is_dir():
        raise CommandFailed(f"--output: no such folder: {path.parent}")
    if path.is_dir():
        raise CommandFailed(f"--output: expected a file, {path} is a folder")
    if any(written.exists() and written.samefile(source) for written in (path, reasons_of(path))):
        raise CommandFailed(f"--output: {path} would replace the input")
    if keep and kind in (".npy", ".npz"):
        raise CommandFailed(f"--keep: {kind} holds outputs only: use .parquet or .csv")


def check(path: Path, tensors: Sequence[Tensor], schema: Schema) -> None:
    """Whether a file of this kind can hold these outputs and these columns.

    Raises:
        CommandFailed: it cannot.
    """
    kind = path.suffix.lower()
    if kind != ".parquet":
        _check_outputs(kind, tensors)
    if kind not in (".npy", ".npz"):
        for field in schema:
            if not _can_hold(kind, field):
                raise CommandFailed(f"--output: {kind} cannot hold column '{field.name}', which is {field.type}")


def _check_outputs(kind: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if tensor.width is None:
            raise CommandFailed(f"--output: the size of output {tensor} is open; only .parquet can hold it")
        if tensor.datatype == "BYTES" and kind != ".csv":
            raise CommandFailed(f"--output: {kind} holds numbers, output {tensor} is text: use .parquet or .csv")
    if kind == ".npy" and len(tensors) > 1:
        names = ", ".join(tensor.name for tensor in tensors)
        raise CommandFailed(f"--output: .npy holds one output, the model has {names}: --select one, or use .npz")


def _can_hold(kind: str, field: pa.Field) -> bool:
    """Tried with a row of nothing, since only the writers know it; but .csv is text, and binary only may be."""
    leaf = field.type.value_type if is_list(field.type) else field.type
    if kind == ".csv" and (
        pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf) or pa.types.is_fixed_size_binary(leaf)
    ):
        return False
    schema = pa.schema([field, ("beside", pa.int8())])
    row = pa.RecordBatch.from_arrays([pa.nulls(1, one) for one in schema.types], schema=schema)
    try:
        _writer(kind)(io.BytesIO(), schema, [row])
    except (pa.ArrowException, ValueError):
        return False
    return True


def reasons_of(path: Path) -> Path:
    """Where the rows that failed are listed."""
    return path.with_name(f"{path.name}.errors.csv")


def finish(flags: Namespace, partial: Partial, tensors: Sequence[Tensor], schema: Schema) -> None:
    """Put the output in its place; the folder of segments can then go."""
    path = flags.output
    _write(path, partial, tensors, schema)
    mark(flags, partial.assembled)
    with partial.assembled.open("rb") as file:
        os.fsync(file.fileno())
    if partial.failed:
        _list_failed(reasons_of(path), partial)
    else:
        reasons_of(path).unlink(missing_ok=True)  # of the file that this one replaces
    partial.assembled.replace(path)
    sync_folder(path.parent)


def _write(path: Path, partial: Partial, tensors: Sequence[Tensor], schema: Schema) -> None:
    def results() -> Iterator[Batch]:
        rows = (batch.drop_columns([REASON]).cast(schema) for batch in partial.batches())
        return exactly(rows, int(partial.manifest["group_rows"]))

    kind = path.suffix.lower()
    if kind in (".parquet", ".csv"):
        _writer(kind)(partial.assembled, schema, results())
        return
    from gateway.commands.predict import arrays  # noqa: PLC0415  # only what the file needs

    write = arrays.write_npy if kind == ".npy" else arrays.write_npz
    write(partial.assembled, tensors, partial.rows, results)


def _writer(kind: str) -> Callable[[Path | IO[bytes], Schema, Iterable[Batch]], None]:
    if kind == ".parquet":
        from gateway.commands.predict.parquet import write_parquet  # noqa: PLC0415  # only what the file needs

        return write_parquet
    from gateway.commands.predict.csv_file import write_csv  # noqa: PLC0415

    return write_csv


def _list_failed(path: Path, partial: Partial) -> None:
    unfinished = partial.folder / "errors.csv.writing"
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "reason"])
        first = 0
        for batch in partial.batches():
            reasons = batch.column(REASON)
            for at in reasons.is_valid().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
                writer.writerow([first + at, reasons[at].as_py()])
            first += batch.num_rows
    unfinished.replace(path)
