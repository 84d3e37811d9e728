"""What a model is measured with: a file's first rows, or random ones."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Model, Tensor

Inputs = Mapping[str, NDArray[Any]]


def make_requests(model: Model, flags: Namespace, most: int) -> Sequence[Inputs]:
    """Up to `most` different requests, as the flags `rows`, `size`, `input` and `map` say.

    Raises:
        CommandFailed: the model does not batch, the file is not as it needs it, or what reads files is not installed.
    """
    if flags.rows > 1 and not model.batches:
        raise CommandFailed(f"--rows: model '{model.name}' does not batch: it takes one row a request")
    if flags.input:
        return _from_file(model, flags, most)
    if flags.map:
        raise CommandFailed("--map needs --input")
    random = np.random.default_rng(0)
    rows = (flags.rows,) if model.batches else ()
    required = [tensor for tensor in model.inputs if not tensor.optional]
    return [{tensor.name: _random(random, tensor, rows, flags.size) for tensor in required} for _ in range(most)]


def _random(random: np.random.Generator, tensor: Tensor, rows: tuple[int, ...], size: int) -> NDArray[Any]:
    """Values that most models take: numbers around 0, integers from 0 to 9 (a token of any vocabulary), short words."""
    shape = (*rows, *(size if length < 0 else length for length in tensor.dims))
    if tensor.datatype == "BYTES":
        array = np.empty(shape, object)
        array[...] = np.frompyfunc(lambda number: b"word%d" % number, 1, 1)(random.integers(0, 1000, shape))
        return array
    if tensor.dtype.kind in "iu":
        return random.integers(0, 10, shape).astype(tensor.dtype)
    if tensor.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    return np.asarray(random.standard_normal(shape)).astype(tensor.dtype)


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
    columns = next(blocks(source, flags.input, names, 0, flags.rows * most), None)
    if columns is None:
        raise CommandFailed(f"{flags.input}: it has no rows")
    converted = block(columns, chosen, (), batched=model.batches)
    full = (rows for rows in converted.batches(flags.rows) if len(rows) == flags.rows)
    requests = [converted.inputs(rows) for rows in islice(full, most)]
    if not requests:
        fault = next(iter(converted.faults.values()), "it has fewer, or they are not of one shape")
        raise CommandFailed(f"{flags.input}: no {flags.rows} rows to send: {fault}")
    return requests
