"""Which columns of a file make up which input of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Model, Tensor
from gateway.commands.predict.source import Source

_SHOWN = 8  # names of columns in a message
_LEAST = 64  # bytes that a row counts as where nobody knows


@dataclass(frozen=True, slots=True)
class Feed:
    """An input and the columns that make up its rows, one after the other.

    Attributes:
        dims: the shape of a row; at most one size is -1, to be told by the number of values.
        width: values in a row; None if rows differ.
    """

    tensor: Tensor
    columns: tuple[str, ...]
    dims: tuple[int, ...]
    width: int | None

    def row_bytes(self, source: Source) -> int:
        """About so large a row of it is: as its datatype has it if that is known, or else as the file does."""
        if self.width is None or self.tensor.datatype == "BYTES":
            return max(source.row_bytes(self.columns), _LEAST)
        return self.width * self.tensor.dtype.itemsize


class _File:
    """The columns that may feed inputs: neither copied nor unfit."""

    def __init__(self, source: Source, keep: Sequence[str]) -> None:
        self.types: dict[str, Any] = dict(zip(source.schema.names, source.schema.types, strict=True))
        self.shapes = source.shapes
        for name in keep:
            if name not in self.types:
                raise CommandFailed(f"--keep: the file has no column '{name}': {self}")
        self.free = [name for name in self.types if name not in keep]

    def __str__(self) -> str:
        return f"it has {_listed(list(self.types))}"

    def width(self, columns: Sequence[str]) -> int | None:
        """Values in a row of these columns; None if rows may differ."""
        widths = [_width(self.types[name]) for name in columns]
        return None if None in widths else sum(width or 0 for width in widths)


def feeds(model: Model, source: Source, maps: Sequence[str], keep: Sequence[str]) -> tuple[Feed, ...]:
    """What feeds each input: by `--map`, by its name, as NAME_0, NAME_1, ..., or as all there is for an only input.

    Raises:
        CommandFailed: a column is missing, of the wrong type, or there are too many or too few.
    """
    file = _File(source, keep)
    chosen = _mapped(model, file, maps)
    for tensor in model.inputs:
        if tensor.name in chosen:
            continue
        if columns := _by_name(tensor, file) or _everything(model, tensor, file):
            chosen[tensor.name] = columns
        elif not tensor.optional:
            raise CommandFailed(
                f"no column for input {tensor} of model '{model.name}': {file}: say --map {tensor.name}=COLUMNS"
            )
    return tuple(_feed(model, tensor, file, chosen[tensor.name]) for tensor in model.inputs if tensor.name in chosen)


def _mapped(model: Model, file: _File, maps: Sequence[str]) -> dict[str, tuple[str, ...]]:
    chosen: dict[str, tuple[str, ...]] = {}
    inputs = [tensor.name for tensor in model.inputs]
    for given in maps:
        name, equals, patterns = given.partition("=")
        if not equals:
            raise CommandFailed(f"--map: expected INPUT=COLUMNS, got '{given}'")
        if name not in inputs or name in chosen:
            fault = "is mapped twice" if name in chosen else f"is unknown: expected {', '.join(inputs)}"
            raise CommandFailed(f"--map: input '{name}' of model '{model.name}' {fault}")
        chosen[name] = tuple(column for pattern in patterns.split(",") for column in _matching(pattern.strip(), file))
    return chosen


def _matching(pattern: str, file: _File) -> list[str]:
    """Columns by name, or in the file's order by a pattern."""
    if pattern in file.types:
        return [pattern]
    if found := [name for name in file.free if fnmatchcase(name, pattern)]:
        return found
    raise CommandFailed(f"--map: the file has no column '{pattern}': {file}")


def _by_name(tensor: Tensor, file: _File) -> tuple[str, ...]:
    if tensor.name in file.types:
        return (tensor.name,)
    numbered: list[str] = []
    while (name := f"{tensor.name}_{len(numbered)}") in file.types:
        numbered.append(name)
    return tuple(numbered)


def _everything(model: Model, tensor: Tensor, file: _File) -> tuple[str, ...]:
    """All columns, if there is but one input and it can take them; too many or too few are told later."""
    if len(model.inputs) > 1 or any(_fault(tensor, file.types[name]) for name in file.free):
        return ()
    return tuple(file.free)


def _feed(model: Model, tensor: Tensor, file: _File, columns: tuple[str, ...]) -> Feed:
    for name in columns:
        if fault := _fault(tensor, file.types[name]):
            raise CommandFailed(f"column '{name}' is {fault}: input {tensor} of model '{model.name}' cannot take it")
    dims = tensor.dims
    if len(columns) == 1 and (shape := file.shapes.get(columns[0])) and _admits(dims, shape):
        dims = shape
    if dims.count(-1) > 1:
        raise CommandFailed(
            f"input {tensor} of model '{model.name}' leaves several sizes open: use .npz, whose arrays have shapes"
        )
    width, step = file.width(columns), math.prod(size for size in dims if size > 0)
    if width is not None and (width % step if -1 in dims else width != step):
        raise CommandFailed(
            f"input {tensor} of model '{model.name}' takes {step} values a row, {_listed(columns)} "
            f"{'has' if len(columns) == 1 else 'have'} {width}: say --map {tensor.name}=COLUMNS, or --keep those that "
            "are not for the model"
        )
    return Feed(tensor, columns, dims, width if tensor.width is None else tensor.width)


def _admits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(a in (b, -1) for a, b in zip(dims, shape, strict=True))


def _fault(tensor: Tensor, kind: Any) -> str | None:
    """What a column's type is, if it cannot feed the input."""
    leaf = _leaf(kind)
    text = pa.types.is_string(leaf) or pa.types.is_large_string(leaf)
    binary = pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf)
    number = pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf)
    if tensor.datatype == "BYTES":
        return None if text or binary else str(kind)
    return None if number or text else str(kind)


def _leaf(kind: Any) -> Any:
    while is_list(kind):
        kind = kind.value_type
    return plain(kind)


def plain(kind: Any) -> Any:
    """The type of a column's values; a category is its text."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_list(kind: Any) -> bool:
    """Whether a type is one of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _width(kind: Any) -> int | None:
    if not is_list(kind):
        return 1
    inner = _width(kind.value_type)
    return kind.list_size * inner if pa.types.is_fixed_size_list(kind) and inner is not None else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    rest = f", ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"column{'s' * (len(names) != 1)} {shown}{rest}"


def described(chosen: Sequence[Feed]) -> Mapping[str, list[str]]:
    """The columns of each input by name, for the books."""
    return {feed.tensor.name: list(feed.columns) for feed in chosen}
