"""Raw tensors cut out of and appended to messages mean what protobuf says they mean."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from tensorgate_client.framing import parse_infer_request, serialize_infer_response, stream_response
from tensorgate_client.wire import inference_pb2 as pb

PADDING = 5000  # bytes: more than what framing leaves to protobuf whole


def varint(value: int, length: int = 1) -> bytes:
    """A number as protobuf spells it, in at least `length` bytes."""
    encoded = bytearray()
    while value > 0x7F or len(encoded) + 1 < length:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, body: bytes, tag_length: int = 1, size_length: int = 1) -> bytes:
    """A length-delimited field; the lengths ask for longer spellings of its tag and its size."""
    return varint(number << 3 | 2, tag_length) + varint(len(body), size_length) + body


def parsed_as_protobuf_does(message: bytes) -> None:
    """Framing and protobuf agree on `message`: the same request, or both refuse it."""
    try:
        expected = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_infer_request(message)
        return
    request, raw = parse_infer_request(message)
    assert [bytes(contents) for contents in raw] == list(expected.raw_input_contents)
    del request.raw_input_contents[:]
    del expected.raw_input_contents[:]
    assert request.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


INPUT = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, -1]).SerializeToString()
RAW = st.builds(field, st.just(7), st.binary(max_size=40), st.integers(1, 7), st.integers(1, 12))
KNOWN = st.sampled_from([field(1, b"m"), field(3, b"id"), field(5, INPUT), field(6, field(1, b"y")), field(4, b"")])
UNKNOWN = st.one_of(
    st.builds(field, st.integers(0, 2**29), st.binary(max_size=20), st.integers(1, 7)),
    st.integers(0, 2**64 - 1).map(lambda value: varint(9 << 3) + varint(value)),  # a number
    st.binary(min_size=8, max_size=8).map(lambda body: varint(10 << 3 | 1) + body),  # a fixed64
    st.just(varint(11 << 3 | 3) + field(7, b"in a group") + varint(11 << 3 | 4)),
    st.just(varint(7 << 3) + b"\5"),  # raw_input_contents, yet a number
)
FIELDS = st.lists(st.one_of(RAW, KNOWN, UNKNOWN), max_size=12)


@given(fields=FIELDS, padding=st.sampled_from([b"", field(7, bytes(PADDING))]))
def test_any_message_means_the_same(fields: list[bytes], padding: bytes) -> None:
    """A request is understood whatever the order, number and spelling of its fields, known or not, small or large."""
    parsed_as_protobuf_does(b"".join(fields) + padding)


@given(fields=FIELDS, data=st.data())
def test_a_message_cut_short_means_the_same(fields: list[bytes], data: st.DataObject) -> None:
    """A request that was cut off on its way is refused wherever the cut is, and never misread."""
    message = field(7, bytes(PADDING)) + b"".join(fields)
    parsed_as_protobuf_does(message[: data.draw(st.integers(PADDING, len(message)))])


@given(noise=st.binary(max_size=60))
@example(noise=b"\xff" * 60)
@example(noise=b"\x3a" + b"\xff" * 9 + b"\x7f")  # a size beyond 64 bits
@example(noise=b"\x3a" + b"\x80" * 10 + b"\0")  # a size spelled longer than protobuf takes
@example(noise=b"\xba\x80\x80\x80\x80\x00\x01x")  # a tag longer than protobuf takes
def test_noise_is_refused_or_means_the_same(noise: bytes) -> None:
    """Bytes that are no request give the protocol's own error, nothing else."""
    parsed_as_protobuf_does(field(7, bytes(PADDING)) + noise)


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_many_fields_mean_the_same(count: int) -> None:
    """A request with hundreds of tensors is understood like one with a few."""
    parsed_as_protobuf_does(b"".join(field(5, INPUT) + field(7, b"%d" % n * 20) for n in range(count)))


def test_large_contents_stay_where_they_are() -> None:
    """A large tensor is read from the received bytes themselves, so it costs no copy."""
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(PADDING), b"", bytes(100)])
    message = request.SerializeToString()
    parsed, raw = parse_infer_request(message)
    assert parsed.model_name == "m"
    assert [len(contents) for contents in raw] == [PADDING, 0, 100]
    buffer = np.frombuffer(message, np.uint8)
    assert np.shares_memory(np.frombuffer(raw[0], np.uint8), buffer)
    assert np.shares_memory(np.frombuffer(raw[2], np.uint8), buffer)


@given(
    name=st.text(max_size=5),
    contents=st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(bytes)), max_size=5),
)
def test_a_response_is_plain_protobuf(name: str, contents: list[bytes]) -> None:
    """Any client reads a response, byte for byte what protobuf would have written."""
    response = pb.ModelInferResponse(model_name=name, id="7")
    response.outputs.add(name="y", datatype="FP32", shape=[1, 2])
    message = serialize_infer_response(response, map(memoryview, contents))
    expected = pb.ModelInferResponse(raw_output_contents=contents)
    expected.MergeFrom(response)
    assert message == expected.SerializeToString()


@given(st.binary(max_size=300), st.text(max_size=20))
@example(bytes(100_000), "large")
def test_responses_in_streams(contents, request_id):
    """A response that is put into a stream's message is read back as it was, and as the last one to its request."""
    response = pb.ModelInferResponse(model_name="m", id=request_id, raw_output_contents=[contents])
    response.parameters["other"].int64_param = 1
    read = pb.ModelStreamInferResponse.FromString(stream_response(response.SerializeToString()))
    assert read.error_message == ""
    response.parameters["triton_final_response"].bool_param = True
    assert read.infer_response == response
