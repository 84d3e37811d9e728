"""Values of a file as values of a datatype: converted where they keep their meaning, refused one by one where not.

Numbers become floating-point numbers by rounding to the nearest, and integers only if they are whole and in range; text
is parsed as a number where one is wanted, and never made from one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tensorgate_client.tensors import DTYPES

_NUMPY = {pa.bool_(): np.bool_, pa.int64(): np.int64, pa.uint64(): np.uint64, pa.float64(): np.float64}

Column = Any  # a pa.Array
Faults = dict[int, str]
"""Why an element cannot be converted, by its position."""


def converted(column: Column, datatype: str) -> tuple[NDArray[Any], Faults]:
    """The elements of a flat column in a datatype; where there is a fault, or a null, the value is of no use."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if datatype == "BYTES":
        return _as_bytes(column), {}
    dtype = DTYPES[datatype]
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    numbers, unread = _parsed(column, dtype) if text else (_filled(column), {})
    array, unfit = _cast(numbers, dtype)
    return array, _worded(unfit, numbers, datatype) | unread


def _as_bytes(column: Column) -> NDArray[Any]:
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    values = column.cast(pa.large_binary() if large else pa.binary()).fill_null(b"")
    array = np.empty(len(values), object)
    array[:] = values.to_pylist()
    return array


def _filled(column: Column) -> NDArray[Any]:
    if pa.types.is_float16(column.type):  # of which Arrow knows less than of others
        column = column.cast(pa.float32())
    if column.null_count:
        column = column.fill_null(pa.scalar(0).cast(column.type))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _parsed(column: Column, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Faults]:
    """Numbers from text, in the widest type of their kind."""
    kind = {"b": pa.bool_(), "i": pa.int64(), "u": pa.uint64()}.get(dtype.kind, pa.float64())
    texts = pc.utf8_trim_whitespace(column).fill_null("0")
    faults: Faults = {}
    parts = list(_parse(texts, kind, 0, faults))
    return np.concatenate(parts) if parts else np.empty(0, dtype), faults


def _parse(texts: Column, kind: Any, first: int, faults: Faults) -> Any:
    """Parse all at once, or in halves where that fails, down to the culprits."""
    if not len(texts):
        return
    try:
        yield texts.cast(kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        if len(texts) > 1:
            half = len(texts) // 2
            yield from _parse(texts[:half], kind, first, faults)
            yield from _parse(texts[half:], kind, first + half, faults)
            return
        yield _single(texts[0].as_py(), kind, first, faults)


def _single(text: str, kind: Any, position: int, faults: Faults) -> NDArray[Any]:
    """An integer may be written 3.0, as programs do whose integers cannot be missing."""
    dtype = _NUMPY[kind]
    limit = 1 if pa.types.is_unsigned_integer(kind) else 2**53  # where floats no longer know every integer
    try:
        value = float(text)
        if pa.types.is_integer(kind) and value.is_integer() and -limit < value < 2**53:
            return np.array([int(value)]).astype(dtype)
    except (ValueError, OverflowError):
        pass
    integer = "an integer, 0 or more" if limit == 1 else "an integer"
    wanted = integer if pa.types.is_integer(kind) else "true or false" if pa.types.is_boolean(kind) else "a number"
    faults[position] = f"is '{text[:50]}', expected {wanted}" if text else "is empty"
    return np.zeros(1, dtype)


def _cast(numbers: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """In another dtype, and which of them do not fit."""
    if numbers.dtype == dtype:
        return numbers, np.zeros(0, bool)
    with np.errstate(all="ignore"):
        array = numbers.astype(dtype)
        if dtype.kind == "b":
            return array, (numbers != 0) & (numbers != 1)
        if dtype.kind not in "iu":
            return array, np.isinf(array.astype(np.float64)) & np.isfinite(numbers)
        if numbers.dtype.kind == "b":
            return array, np.zeros(0, bool)
        limits = np.iinfo(dtype)
        if numbers.dtype.kind in "iu":
            return array, (numbers < int(limits.min)) | (numbers > int(limits.max))
        wide = numbers.astype(np.float64)
        return array, ~((wide >= float(limits.min)) & (wide < float(int(limits.max) + 1)) & (wide == np.trunc(wide)))


def _worded(unfit: NDArray[np.bool_], numbers: NDArray[Any], datatype: str) -> Faults:
    return {int(at): f"is {numbers[at]}, which is no {datatype}" for at in np.flatnonzero(unfit)}
