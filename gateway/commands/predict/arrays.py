"""numpy's files in and out: .npy holds one array, .npz several by name."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from gateway.commands.model import Tensor
from gateway.commands.predict.source import Batch

ARRAY = "array"
"""The name of a .npy file's only column."""

_THE_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # ZIP's first; equal results make equal files


@dataclass(frozen=True, slots=True)
class _Member:
    """An array in the file, and where its values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def width(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class ArraySource:
    """The arrays of a file as columns; their first dimension is rows. They are read piece by piece, never mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive = zipfile.ZipFile(path) if path.suffix.lower() == ".npz" else None
        names = [name.removesuffix(".npy") for name in self._archive.namelist()] if self._archive else [ARRAY]
        self._members = {name: self._member(name) for name in names}
        if not names:
            raise ValueError("it has no arrays")
        counts = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(counts.values())) > 1:
            described = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise ValueError(f"arrays differ in their number of rows: {described}")
        self.rows = next(iter(counts.values()))
        self.estimated = False
        self.shapes: Mapping[str, tuple[int, ...]] = {name: m.shape[1:] for name, m in self._members.items()}
        self.schema = pa.schema([(name, _column(np.empty(0, m.dtype), m).type) for name, m in self._members.items()])

    def _open(self, name: str) -> IO[bytes]:
        return self._archive.open(f"{name}.npy") if self._archive else self._path.open("rb")

    def _member(self, name: str) -> _Member:
        with self._open(name) as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"array '{name}' has named fields: expected plain numbers or text")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            _check(name, shape, dtype, fortran=fortran)
            return _Member(dtype, shape, file.tell())

    def row_bytes(self, columns: Sequence[str]) -> int:
        """As `Source.row_bytes`."""
        return sum(self._members[name].row_bytes for name in columns)

    def read(self, columns: Sequence[str], start: int, size: int) -> Iterator[Batch]:
        """As `Source.read`; what comes before `start` is passed over."""
        with ExitStack() as stack:
            files = {name: stack.enter_context(self._open(name)) for name in columns}
            for name, file in files.items():
                file.seek(self._members[name].offset + start * self._members[name].row_bytes)
            for first in range(start, self.rows, size):
                count = min(size, self.rows - first)
                arrays = [self._values(name, file, count) for name, file in files.items()]
                yield pa.RecordBatch.from_arrays(arrays, names=list(files))

    def _values(self, name: str, file: IO[bytes], rows: int) -> pa.Array:
        member = self._members[name]
        data = file.read(rows * member.row_bytes)
        if len(data) != rows * member.row_bytes:
            raise ValueError(f"array '{name}' ends too early")
        return _column(np.frombuffer(data, member.dtype), member)


def _check(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool) -> None:
    if dtype.kind not in "biufSU" or (dtype.itemsize > 8 and dtype.kind == "f"):
        raise ValueError(f"array '{name}' has dtype {dtype}: expected numbers or text")
    if not shape or not math.prod(shape[1:]):
        raise ValueError(f"array '{name}' has shape {list(shape)}: expected rows of values")
    if fortran and len(shape) > 1:
        raise ValueError(f"array '{name}' is in Fortran's order: save numpy.ascontiguousarray(array)")


def _column(flat: NDArray[Any], member: _Member) -> pa.Array:
    if member.dtype.kind in "SU":
        values = pa.array(flat.tolist(), pa.binary() if member.dtype.kind == "S" else pa.string())
    else:
        values = pa.array(flat.astype(member.dtype.newbyteorder("="), copy=False))
    return values if len(member.shape) == 1 else pa.FixedSizeListArray.from_arrays(values, member.width)


Again = Callable[[], Iterable[Batch]]
"""The results from their beginning, as often as it is called."""


def write_npy(path: Path, tensors: Sequence[Tensor], rows: int, batches: Again) -> None:
    """A file with the only tensor."""
    with path.open("wb") as file:
        _write(file, tensors[0], rows, batches())


def write_npz(path: Path, tensors: Sequence[Tensor], rows: int, batches: Again) -> None:
    """A file with an array for each tensor, stored as numpy.savez does."""
    with zipfile.ZipFile(path, "w") as archive:
        for tensor in tensors:
            with archive.open(zipfile.ZipInfo(f"{tensor.name}.npy", _THE_SAME_DATE), "w", force_zip64=True) as file:
                _write(file, tensor, rows, batches())


def _write(file: IO[bytes], tensor: Tensor, rows: int, batches: Iterable[Batch]) -> None:
    """Where a row failed there is NaN, or 0 where there is no such number."""
    dtype = np.dtype(np.float32) if tensor.datatype == "BF16" else tensor.dtype  # numpy's files do not know it
    nothing = np.nan if dtype.kind == "f" else 0
    descr = npy.dtype_to_descr(dtype)
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (rows, *tensor.dims)})
    width = tensor.width or 1
    for batch in batches:
        column = batch.column(tensor.name)
        values = np.full((len(column), width), nothing, dtype)
        good = np.asarray(column.is_valid())
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column.drop_null()
        values[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
        file.write(values.data)
