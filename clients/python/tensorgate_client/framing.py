"""ModelInfer messages whose raw tensors never pass through protobuf.

Protobuf copies every bytes field twice on its way in and twice on its way out. Raw contents are top-level fields, so
they can be cut out of a message before it is parsed and appended to one after it is serialized; the bytes on the wire
are the same. Source of the layout: protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tensorgate_client.tensors import Raw
from tensorgate_client.wire import inference_pb2 as pb

_LENGTH_DELIMITED = 2
_REQUEST_TAG = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_RESPONSE_TAG = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED

_ID_TAG = bytes([pb.ModelInferResponse.ID_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])

FINAL = "triton_final_response"
"""Parameter of responses in a stream: no further one comes for the same request. Triton sets it on each of them."""

_STREAMED_TAG = bytes([pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_FINAL = pb.ModelInferResponse(parameters={FINAL: pb.InferParameter(bool_param=True)}).SerializeToString()

_SMALL = 4096  # bytes below which protobuf's own copies cost less than looking for the fields in Python
_LONGEST_TAG = 5  # bytes of a 32-bit varint; protobuf refuses longer spellings of a tag
_MOST_FIELDS = 256  # more come only from a hostile or a very odd sender; protobuf then scans faster


class InferResponse(NamedTuple):
    """A ModelInferResponse, as `InferRequest` is one of a request."""

    proto: pb.ModelInferResponse
    raw: Sequence[Raw]


class InferRequest(NamedTuple):
    """A ModelInferRequest whose raw contents may lie outside of the protobuf message.

    Attributes:
        proto: the message; it holds the raw contents itself if it is small.
        raw: its raw contents, in order.
    """

    proto: pb.ModelInferRequest
    raw: Sequence[Raw]


def parse_infer_request(message: bytes) -> InferRequest:
    """A serialized ModelInferRequest, its raw contents as views of `message` where that saves copying.

    Raises:
        DecodeError: `message` is no ModelInferRequest.
    """
    cut = _cut(message, _REQUEST_TAG) if len(message) > _SMALL else None
    if cut is None:
        request = pb.ModelInferRequest.FromString(message)
        return InferRequest(request, request.raw_input_contents)
    rest, raw = cut
    return InferRequest(pb.ModelInferRequest.FromString(rest), raw)


def parse_infer_response(message: bytes) -> InferResponse:
    """A serialized ModelInferResponse, as `parse_infer_request` does with a request."""
    cut = _cut(message, _RESPONSE_TAG) if len(message) > _SMALL else None
    if cut is None:
        response = pb.ModelInferResponse.FromString(message)
        return InferResponse(response, response.raw_output_contents)
    rest, raw = cut
    return InferResponse(pb.ModelInferResponse.FromString(rest), raw)


def serialize_infer_response(response: pb.ModelInferResponse, raw: Iterable[Raw]) -> bytes:
    """`response`, which holds no raw contents of its own, with `raw` as its raw_output_contents."""
    parts: list[Raw] = [response.SerializeToString()]
    for contents in raw:
        parts.append(raw_output_head(len(contents)))
        parts.append(contents)
    return b"".join(parts)


def raw_input_head(length: int) -> bytes:
    """What stands before raw_input_contents of `length` bytes in a serialized ModelInferRequest."""
    return _varint(_REQUEST_TAG) + _varint(length)


def raw_output_head(length: int) -> bytes:
    """What stands before raw_output_contents of `length` bytes in a serialized ModelInferResponse."""
    return _varint(_RESPONSE_TAG) + _varint(length)


def id_field(request_id: str) -> bytes:
    """A response's id, to be put anywhere between its fields."""
    encoded = request_id.encode()
    return b"".join((_ID_TAG, _varint(len(encoded)), encoded))


def append_id(response: bytes, request_id: str) -> bytes:
    """A serialized ModelInferResponse that lacks an id, with one; fields may come in any order."""
    if not request_id:
        return response
    return response + id_field(request_id)


def stream_response(response: bytes) -> bytes:
    """A serialized ModelInferResponse as the only one to its request, in a serialized ModelStreamInferResponse."""
    return b"".join((_STREAMED_TAG, _varint(len(response) + len(_FINAL)), response, _FINAL))


def _cut(message: bytes, tag: int) -> tuple[bytes, list[Raw]] | None:
    """`message` without the fields of `tag`, and those fields; None if it is left to protobuf to judge."""
    view = memoryview(message)
    kept: list[memoryview] = []
    raw: list[Raw] = []
    offset = 0
    try:
        for _ in range(_MOST_FIELDS):
            if offset == len(view):
                return b"".join(kept), raw
            field, body = _read_varint(message, offset)
            if field & 7 != _LENGTH_DELIMITED or body - offset > _LONGEST_TAG:
                return None
            length, start = _read_varint(message, body)
            end = start + length
            if field == tag:
                raw.append(view[start:end])
            else:
                kept.append(view[offset:end])
            offset = end
    except (IndexError, ValueError):  # the message ends inside a field, or a number has no end
        return None
    return None


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    """The number at `offset` and the offset behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise ValueError("a varint has at most 10 bytes")


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
