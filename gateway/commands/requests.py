"""What a model is measured with: a file's first rows, or random ones."""

from __future__ import annotations

import importlib.util
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Model, Tensor

Inputs = Mapping[str, NDArray[Any]]

_HELD_BYTES = 64 << 20
_MOST_BYTES = 1 << 30  # protobuf's messages end at 2 GiB
_WORD = 12  # bytes of a random BYTES element


def make_requests(model: Model, flags: Namespace, most: int) -> Sequence[Inputs]:
    """Up to `most` different requests, fewer large ones, as the flags `rows`, `size`, `input` and `map` say.

    Raises:
        CommandFailed: the model does not take so many rows, they would be too large, the file is not as it needs it, or
            what reads files is not installed.
    """
    if flags.rows > 1 and not model.batches:
        raise CommandFailed(f"--rows: model '{model.name}' does not batch: it takes one row a request")
    if flags.input:
        return _from_file(model, flags, most)
    if flags.map:
        raise CommandFailed("--map needs --input")
    random = np.random.default_rng(0)
    rows = (flags.rows,) if model.batches else ()
    shapes = {tensor: _shape(tensor, rows, flags.size) for tensor in model.inputs if not tensor.optional}
    size = sum(math.prod(shape) * _item_bytes(tensor) for tensor, shape in shapes.items())
    if size > _MOST_BYTES:
        raise CommandFailed(
            f"a request would have {size >> 20:,} MiB, expected up to {_MOST_BYTES >> 20:,}: lower --size or --rows"
        )
    count = max(min(_HELD_BYTES // max(size, 1), most), 1)
    return [{tensor.name: _random(random, tensor, shape) for tensor, shape in shapes.items()} for _ in range(count)]


def _shape(tensor: Tensor, rows: tuple[int, ...], size: int) -> tuple[int, ...]:
    return (*rows, *(size if length < 0 else length for length in tensor.dims))


def _item_bytes(tensor: Tensor) -> int:
    return _WORD if tensor.datatype == "BYTES" else tensor.dtype.itemsize


def _random(random: np.random.Generator, tensor: Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
    """Values that most models take: numbers around 0, integers from 0 to 9 (a token of any vocabulary), short words."""
    if tensor.datatype == "BYTES":
        array = np.empty(shape, object)
        array[...] = np.frompyfunc(lambda number: b"word%d" % number, 1, 1)(random.integers(0, 1000, shape))
        return array
    if tensor.dtype.kind in "iu":
        return random.integers(0, 10, shape, tensor.dtype)
    if tensor.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    return np.asarray(random.standard_normal(shape, np.float32)).astype(tensor.dtype, copy=False)


def _from_file(model: Model, flags: Namespace, most: int) -> Sequence[Inputs]:
    if importlib.util.find_spec("pyarrow") is None:
        raise CommandFailed("--input needs pyarrow: pip install 'tensorgate[predict]'")
    # These need pyarrow, which random rows do not.
    from gateway.commands.predict.columns import feeds  # noqa: PLC0415
    from gateway.commands.predict.rows import block  # noqa: PLC0415
    from gateway.commands.predict.source import blocks, open_source  # noqa: PLC0415

    source = open_source(flags.input)
    chosen = feeds(model, source, flags.map, ())
    names = list(dict.fromkeys(name for feed in chosen for name in feed.columns))
    held = _HELD_BYTES // max(source.row_bytes(names), 1)
    columns = next(blocks(source, flags.input, names, 0, max(min(flags.rows * most, held), flags.rows)), None)
    if columns is None:
        raise CommandFailed(f"{flags.input}: it has no rows")
    converted = block(columns, chosen, (), batched=model.batches)
    full = (request for request in converted.requests(flags.rows, _MOST_BYTES) if len(request.rows) == flags.rows)
    requests = [converted.inputs(request.rows) for request in islice(full, most)]
    if not requests:
        fault = next(iter(converted.faults.values()), "it has fewer, or they are not of one shape")
        raise CommandFailed(f"{flags.input}: no {flags.rows} rows to send: {fault}")
    return requests
