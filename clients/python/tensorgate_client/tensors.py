"""numpy arrays <-> tensors on the wire, for both ends of a call.

Source of the layout: the Open Inference Protocol v2 (section "Raw Tensor Contents"): numbers little-endian in
row-major order; each BYTES element is its length as an unsigned 32-bit integer followed by that many bytes.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tensorgate_client.wire import inference_pb2 as pb

Array = NDArray[Any]
Raw = bytes | memoryview

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
"""The protocol's datatypes and the numpy dtype that holds each; BYTES is an object array of `bytes`."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

TYPED_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where typed contents of a datatype travel; FP16 and BF16 are absent, the protocol gives them no typed form."""

_TEXT_KINDS = "SUT"  # numpy's byte strings and text of fixed width, and its text of any
_LENGTH = struct.Struct("<I")
_LITTLE_ENDIAN = sys.byteorder == "little"
_SMALL = 4096


class TensorError(ValueError):
    """A tensor that contradicts its own description; the message says what came and what was expected."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name for a numpy dtype; text and byte strings count as BYTES.

    Raises:
        TensorError: the protocol has no such datatype.
    """
    if dtype.kind in _TEXT_KINDS:
        return "BYTES"
    try:
        return _DATATYPES[dtype.newbyteorder("=")]
    except KeyError:
        raise TensorError(f"dtype {dtype} has no datatype in the protocol; use one of {', '.join(DTYPES)}") from None


def shown(shape: Iterable[int]) -> str:
    """A shape as messages spell it: [2,3]."""
    return f"[{','.join(map(str, shape))}]"


def from_raw(raw: Raw, datatype: str, shape: Sequence[int]) -> Array:
    """The array that `raw` holds: a read-only view of it where the layout allows, else a copy.

    Raises:
        TensorError: `raw` has another size than `shape` and `datatype` need, BYTES elements run past its end, or
            there is no such datatype or shape.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise TensorError(f"'{datatype}' is no datatype of the protocol; use one of {', '.join(DTYPES)}")
    count = math.prod(shape)
    if dtype.hasobject:
        return _object_array(_split_bytes(raw, count, shape), shape)
    expected = count * dtype.itemsize
    if len(raw) != expected:
        raise TensorError(f"{datatype} {shown(shape)} takes {expected} bytes of raw contents, got {len(raw)}")
    array = _shaped(np.frombuffer(raw, dtype, count), shape)
    return array if array.flags.aligned else array.copy()


def to_raw(array: Array) -> Raw:
    """The protocol's raw bytes of `array`, without a copy where it is contiguous already.

    Raises:
        TensorError: an object array holds something other than `bytes` or `str`.
    """
    if array.dtype.hasobject or array.dtype.kind in _TEXT_KINDS:
        elements = [_as_bytes(element) for element in array.ravel().tolist()]
        return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
    if array.nbytes <= _SMALL and array.dtype.isnative and _LITTLE_ENDIAN:
        return array.tobytes()  # costs less than a view
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little_endian).reshape(-1).view(np.uint8).data


def from_typed(contents: pb.InferTensorContents, datatype: str, shape: Sequence[int]) -> Array:
    """The array that typed `contents` hold.

    Raises:
        TensorError: the values are in another field than `datatype` belongs in, too few, too many or out of range,
            or there is no such shape.
    """
    field = _typed_field(datatype)
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise TensorError(f"{datatype} travels in {field}, got {descriptor.name}")
    values = getattr(contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise TensorError(f"{datatype} {shown(shape)} takes {count} values in {field}, got {len(values)}")
    if datatype == "BYTES":
        return _object_array(values, shape)
    try:
        return _shaped(np.fromiter(values, DTYPES[datatype], count), shape)
    except OverflowError:
        raise TensorError(f"{field} holds values out of the range of {datatype}") from None


def to_typed(array: Array) -> pb.InferTensorContents:
    """Typed contents of `array`, for clients that would rather not unpack raw bytes.

    Raises:
        TensorError: the protocol has no typed form of its datatype (FP16, BF16).
    """
    datatype = datatype_of(array.dtype)
    field = _typed_field(datatype)
    flat = array.ravel().tolist()
    contents = pb.InferTensorContents()
    getattr(contents, field).extend([_as_bytes(v) for v in flat] if datatype == "BYTES" else flat)
    return contents


def encode_infer_request(
    model: str, inputs: Mapping[str, Array], *, version: str = "", outputs: Iterable[str] = (), request_id: str = ""
) -> pb.ModelInferRequest:
    """A request for `model` with raw contents; no `outputs` means all of them.

    Raises:
        TensorError: an array's dtype has no datatype in the protocol, or an object array holds other than `bytes` or
            `str`.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        try:
            request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            request.raw_input_contents.append(bytes(to_raw(array)))
        except TensorError as error:
            raise TensorError(f"input '{name}' of model '{model}': {error}") from None
    for name in outputs:
        request.outputs.add(name=name)
    return request


def decode_infer_response(response: pb.ModelInferResponse, raw: Sequence[Raw] = ()) -> dict[str, Array]:
    """The outputs of a response by name, whether their contents are raw or typed.

    Args:
        response: as it came.
        raw: its raw contents, where they were cut out of it.

    Raises:
        TensorError: an output contradicts its own description.
    """
    raw = raw or response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise TensorError(f"{len(response.outputs)} outputs but {len(raw)} raw_output_contents: expected one each")
    outputs = {}
    for index, tensor in enumerate(response.outputs):
        if raw:
            outputs[tensor.name] = from_raw(raw[index], tensor.datatype, tensor.shape)
        else:
            outputs[tensor.name] = from_typed(tensor.contents, tensor.datatype, tensor.shape)
    return outputs


def _typed_field(datatype: str) -> str:
    try:
        return TYPED_FIELDS[datatype]
    except KeyError:
        raise TensorError(f"{datatype} has no typed contents in the protocol: use raw contents") from None


def _split_bytes(raw: Raw, count: int, shape: Sequence[int]) -> list[bytes]:
    view = memoryview(raw)
    elements: list[bytes] = []
    offset = 0
    while offset < len(view):
        if len(elements) == count:  # now, since millions of empty elements more would cost time and memory
            raise TensorError(f"BYTES {shown(shape)} takes {count} elements, raw contents hold more")
        start = offset + _LENGTH.size
        if start > len(view) or (end := start + _LENGTH.unpack_from(view, offset)[0]) > len(view):
            raise TensorError(f"BYTES element {len(elements)} runs past the end of the {len(view)} raw bytes")
        elements.append(bytes(view[start:end]))
        offset = end
    if len(elements) != count:
        raise TensorError(f"BYTES {shown(shape)} takes {count} elements, raw contents hold {len(elements)}")
    return elements


def _object_array(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return _shaped(array, shape)


def _shaped(array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:  # [-1,-4], whose product looks right; numpy's limits: 64 dimensions, [0,2**62]
        raise TensorError(f"no array has the shape {shown(shape)}: {error}") from None


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise TensorError(f"BYTES elements travel as UTF-8, which cannot hold {element!r:.50}: {error}") from None
    raise TensorError(f"BYTES elements are bytes or str, got {type(element).__name__}")
