"""Requests that are spelled like an earlier one are not decoded again; nobody may notice but by the clock."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc import StatusCode as Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb

TWO = """
backend: "echo"
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "b" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "c" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "d" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two inputs, given back."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("plain", {}, TWO)
    repository.add("cached", {}, TWO + "response_cache { enable: true }")
    with serving(repository.root) as served:
        yield served


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Requests of few kinds and many contents."""
    rows, columns = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    values = draw(st.integers(0, 2**40))
    inputs = {
        "a": np.full((rows, columns), values, np.float32),
        "b": np.arange(values, values + rows).reshape(rows, 1),
    }
    if draw(st.booleans()):
        inputs = dict(reversed(inputs.items()))
    request = encode_infer_request(
        draw(st.sampled_from(["plain", "cached"])),
        inputs,
        version=draw(st.sampled_from(["", "1"])),
        outputs=draw(st.sampled_from([(), ("c",), ("d", "c")])),
        request_id=draw(st.sampled_from(["", "x", "longer than that", "y" * 200])),
    )
    if draw(st.booleans()):
        request.parameters["binary_data_output"].bool_param = draw(st.booleans())
    return request


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(messages(), min_size=2, max_size=6))
def test_each_gets_its_own(gateway: Gateway, sent: list[pb.ModelInferRequest]):
    """Whatever came before it, a request is answered with its own numbers, outputs, form and id."""
    for request in sent:
        response = gateway.stub.ModelInfer(request)
        expected = {
            output: np.frombuffer(request.raw_input_contents[index], np.float32 if output == "c" else np.int64)
            for index, output in enumerate("c" if tensor.name == "a" else "d" for tensor in request.inputs)
        }
        wanted = [output.name for output in request.outputs] or ["c", "d"]
        outputs = decode_infer_response(response)
        assert list(outputs) == wanted
        assert all(np.array_equal(outputs[name].ravel(), expected[name]) for name in wanted)
        typed = "binary_data_output" in request.parameters and not request.parameters["binary_data_output"].bool_param
        assert bool(response.raw_output_contents) is not typed
        assert (response.id, response.model_name) == (request.id, request.model_name)


def test_a_fault_behind_a_known_beginning_is_seen(gateway: Gateway):
    """A request that only begins like an earlier one is still checked: contents too short, too many, or none."""
    good = encode_infer_request("plain", {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 1), np.int64)})
    for _ in range(2):
        gateway.stub.ModelInfer(good)
    short, more, none = (pb.ModelInferRequest.FromString(good.SerializeToString()) for _ in range(3))
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    more.raw_input_contents.append(b"1234")
    del none.raw_input_contents[:]
    shifted = pb.ModelInferRequest.FromString(good.SerializeToString())
    shifted.raw_input_contents[0], shifted.raw_input_contents[1] = b"1" * 8, b"2" * 12
    for wrong in (short, more, none, shifted):
        with pytest.raises(grpc.RpcError) as refused:
            gateway.stub.ModelInfer(wrong)
        assert refused.value.code() is Code.INVALID_ARGUMENT


def test_fields_in_any_order_are_understood(gateway: Gateway):
    """Clients that write their fields in another order are answered, those that name two models are told so."""
    good = encode_infer_request("plain", {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 1), np.int64)})
    named, body = good.SerializeToString()[:7], good.SerializeToString()[7:]
    other = pb.ModelInferRequest(model_name="cached").SerializeToString()
    call = gateway.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for message in (named + body, body + named, named + body + named):
        for _ in range(2):
            response = pb.ModelInferResponse.FromString(call(message))
            assert np.array_equal(decode_infer_response(response)["c"], np.ones((1, 3), np.float32))
    for message in (other + body + named, named + other + body):
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as refused:
                call(message)
            assert refused.value.code() is Code.INVALID_ARGUMENT
            assert "came twice" in refused.value.details()
