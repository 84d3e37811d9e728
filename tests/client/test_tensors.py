"""numpy arrays to wire tensors and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.tensors import (
    DTYPES,
    TYPED_FIELDS,
    TensorError,
    datatype_of,
    from_raw,
    from_typed,
    to_raw,
    to_typed,
)
from tensorgate_client.wire import inference_pb2 as pb

NUMBERS = [datatype for datatype in DTYPES if datatype != "BYTES"]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
ELEMENTS = st.one_of(st.binary(max_size=6), st.sampled_from([b"", b"\0", b"a\0b\0", b"\xff\xfe", "é".encode()]))

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda array: array,
    "fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(array[..., None], 2, axis=-1)[..., 0],
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "big_endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


@st.composite
def numbers(draw: st.DrawFn, datatype: str) -> np.ndarray:
    """An array of any shape and any bits, NaNs of every kind among them."""
    shape = draw(SHAPES)
    dtype = DTYPES[datatype]
    bits = draw(st.binary(min_size=(size := math.prod(shape) * dtype.itemsize), max_size=size))
    raw = np.frombuffer(bits, np.uint8)
    return (raw & 1 if datatype == "BOOL" else raw).view(dtype).reshape(shape)


@st.composite
def texts(draw: st.DrawFn) -> np.ndarray:
    """An object array of any shape with `bytes` in it."""
    shape = draw(SHAPES)
    count = math.prod(shape)
    array = np.empty(count, object)
    array[:] = draw(st.lists(ELEMENTS, min_size=count, max_size=count))
    return array.reshape(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
def test_raw_numbers_come_back_to_the_bit(datatype: str, layout: str, data: st.DataObject) -> None:
    """Every number arrives as it was sent, whatever shape, memory layout or byte order the caller's array has."""
    array = data.draw(numbers(datatype))
    sent = LAYOUTS[layout](array)
    raw = bytes(to_raw(sent))
    assert raw == array.tobytes()
    assert datatype_of(sent.dtype) == datatype
    received = from_raw(raw, datatype, array.shape)
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert received.tobytes() == array.tobytes()


@pytest.mark.parametrize("datatype", [datatype for datatype in NUMBERS if datatype in TYPED_FIELDS])
@given(data=st.data())
def test_typed_numbers_come_back(datatype: str, data: st.DataObject) -> None:
    """Typed contents hold the same numbers as the array, also after a trip over the wire."""
    array = data.draw(numbers(datatype))
    contents = pb.InferTensorContents.FromString(to_typed(array).SerializeToString())
    received = from_typed(contents, datatype, array.shape)
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)


@given(array=texts())
def test_bytes_come_back(array: np.ndarray) -> None:
    """Byte strings arrive whole, raw and typed: empty ones, with NULs inside or at the end, and not UTF-8."""
    raw = bytes(to_raw(array))
    assert raw == b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())
    for received in (from_raw(raw, "BYTES", array.shape), from_typed(to_typed(array), "BYTES", array.shape)):
        assert (received.dtype, received.shape) == (np.dtype(object), array.shape)
        assert received.ravel().tolist() == array.ravel().tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.array([["é", ""]]),
        np.array([["é".encode(), b""]]),
        np.array([["é", ""]], object),
        np.array([["é", ""]], np.dtypes.StringDType()),
    ],
    ids=["text", "byte strings", "objects", "StringDType"],
)
def test_text_of_every_kind_is_sent_as_utf8(array: np.ndarray) -> None:
    """A caller may pass any numpy array of text; the model sees UTF-8 bytes."""
    assert datatype_of(array.dtype) == "BYTES"
    assert from_raw(to_raw(array), "BYTES", (1, 2)).tolist() == [["é".encode(), b""]]
    assert list(to_typed(array).bytes_contents) == ["é".encode(), b""]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_contents_at_an_odd_offset_come_back_aligned(datatype: str) -> None:
    """Raw contents may begin anywhere in a message; the runtime still gets numbers at addresses it can use."""
    sent = np.arange(6).astype(DTYPES[datatype]).reshape(2, 3)
    for offset in range(9):
        received = from_raw(memoryview(bytes(offset) + sent.tobytes())[offset:], datatype, (2, 3))
        assert received.flags.aligned
        assert received.tobytes() == sent.tobytes()


def test_large_tensors_are_not_copied() -> None:
    """A tensor costs no second copy of its memory on the way in or out."""
    array = np.arange(2000, dtype=np.float32)  # more than what is cheaper to copy
    raw = to_raw(array)
    assert np.shares_memory(np.frombuffer(raw, np.uint8), array)
    assert np.shares_memory(from_raw(raw, "FP32", (20, 100)), array)


def contents(**fields: list) -> pb.InferTensorContents:
    """Typed contents."""
    return pb.InferTensorContents(**fields)


FAULTS: list[tuple[str, Callable[[], object], str]] = [
    ("raw too short", lambda: from_raw(b"1234567", "FP32", [2]), "FP32 [2] takes 8 bytes of raw contents, got 7"),
    ("raw too long", lambda: from_raw(b"123", "UINT8", []), "UINT8 [] takes 1 bytes of raw contents, got 3"),
    ("huge", lambda: from_raw(b"", "INT8", [2**62, 4]), f"INT8 [{2**62},4] takes {2**64} bytes of raw contents, got 0"),
    ("negative", lambda: from_raw(bytes(4), "INT8", [-1, -4]), "no array has the shape [-1,-4]: "),
    ("huge and empty", lambda: from_raw(b"", "INT8", [0, 2**63]), "no array has the shape [0,9223372036854775808]: "),
    ("many dimensions", lambda: from_raw(b"1", "INT8", [1] * 65), "no array has the shape [1,1,1,"),
    ("datatype", lambda: from_raw(b"1", "INT7", [1]), "'INT7' is no datatype of the protocol; use one of BOOL, UINT8"),
    ("length cut", lambda: from_raw(b"\1\0\0", "BYTES", [1]), "BYTES element 0 runs past the end of the 3 raw bytes"),
    (
        "length lies",
        lambda: from_raw(b"\xff" * 9, "BYTES", [1]),
        "BYTES element 0 runs past the end of the 9 raw bytes",
    ),
    ("too few texts", lambda: from_raw(bytes(8), "BYTES", [3]), "BYTES [3] takes 3 elements, raw contents hold 2"),
    ("too many texts", lambda: from_raw(bytes(8), "BYTES", []), "BYTES [] takes 1 elements, raw contents hold more"),
    ("typed FP16", lambda: from_typed(contents(), "FP16", [0]), "FP16 has no typed contents in the protocol: use raw"),
    ("to typed", lambda: to_typed(np.ones(1, ml_dtypes.bfloat16)), "BF16 has no typed contents in the protocol"),
    (
        "wrong field",
        lambda: from_typed(contents(fp64_contents=[1]), "FP32", [1]),
        "FP32 travels in fp32_contents, got fp64_contents",
    ),
    (
        "two fields",
        lambda: from_typed(contents(int_contents=[1], uint_contents=[1]), "INT8", [1]),
        "INT8 travels in int_contents, got uint_contents",
    ),
    (
        "too few values",
        lambda: from_typed(contents(int64_contents=[1]), "INT64", [2, 2]),
        "INT64 [2,2] takes 4 values in int64_contents, got 1",
    ),
    (
        "out of range",
        lambda: from_typed(contents(int_contents=[128]), "INT8", [1]),
        "int_contents holds values out of the range of INT8",
    ),
    ("foreign dtype", lambda: datatype_of(np.dtype("M8[s]")), "dtype datetime64[s] has no datatype in the protocol"),
    ("foreign object", lambda: to_raw(np.array([1], object)), "BYTES elements are bytes or str, got int"),
]


@pytest.mark.parametrize(("call", "message"), [pytest.param(*fault[1:], id=fault[0]) for fault in FAULTS])
def test_contradictions_are_explained(call: Callable[[], object], message: str) -> None:
    """A tensor that contradicts its description is refused with what came and what was expected."""
    with pytest.raises(TensorError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_a_request_holds_what_the_caller_gave() -> None:
    """A request carries the model, version, id, inputs in order and the outputs asked for."""
    inputs = {"b": np.ones((1, 2), np.float32), "a": np.array(["x"])}
    request = encode_infer_request("m", inputs, version="3", outputs=["y"], request_id="7")
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "7")
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [("b", "FP32", [1, 2]), ("a", "BYTES", [1])]
    assert list(request.raw_input_contents) == [np.ones(2, np.float32).tobytes(), b"\1\0\0\0x"]
    assert [output.name for output in request.outputs] == ["y"]


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_a_response_is_read_by_name(form: str) -> None:
    """Outputs come back by name, whether the server sent them raw or typed."""
    arrays = {
        "y": np.array([[1.5, -2]], np.float32),
        "label": np.array([b"\0"], object),
        "none": np.empty((0, 2), bool),
    }
    response = pb.ModelInferResponse()
    for name, array in arrays.items():
        tensor = response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        if form == "typed":
            tensor.contents.CopyFrom(to_typed(array))
        else:
            response.raw_output_contents.append(bytes(to_raw(array)))
    outputs = decode_infer_response(pb.ModelInferResponse.FromString(response.SerializeToString()))
    assert outputs.keys() == arrays.keys()
    for name, array in arrays.items():
        assert outputs[name].shape == array.shape
        assert outputs[name].tolist() == array.tolist()


def test_a_response_that_lacks_contents_is_refused() -> None:
    """A broken server's answer gives a clear error instead of an IndexError."""
    response = pb.ModelInferResponse(raw_output_contents=[b"\0"])
    response.outputs.add(name="a", datatype="INT8", shape=[1])
    response.outputs.add(name="b", datatype="INT8", shape=[1])
    with pytest.raises(TensorError, match="2 outputs but 1 raw_output_contents: expected one each"):
        decode_infer_response(response)
