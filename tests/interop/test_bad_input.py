"""Wrong requests get the right status and a sentence that helps; the server goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import numpy as np
import onnxruntime
import pytest
from support.bad_requests import INVALID, NOT_FOUND, NOT_OFFERED
from support.faults import BODIES, CONFIDENTIAL, GOOD, ROW, Request, X, build, request, tensor
from support.server import Gateway, serving
from support.zoo import onnx_classifier

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
RPCS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
GARBAGE = (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x07" * 9000)
FAILING = sorted(BODIES.keys() - {"refuses", "huge_output"})


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server for all of it; what each fault leaves behind, the next ones meet."""
    with serving(build(tmp_path_factory.mktemp("models")).root) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def expected() -> bytes:
    """What the classifier answers to `GOOD`, straight from its runtime."""
    (logits,) = onnxruntime.InferenceSession(onnx_classifier()).run(["logits"], {"x": np.zeros((1, 4), np.float32)})
    return logits.tobytes()


@pytest.fixture(autouse=True)
def unharmed(gateway: Gateway, expected: bytes) -> Iterator[None]:
    """Whatever a test sends, the same process answers the next good request as ever."""
    yield
    answer = gateway.stub.ModelInfer(GOOD, timeout=30)
    assert answer.raw_output_contents[0] == expected
    assert gateway.server.process.poll() is None


def refusal(gateway: Gateway, message: Request) -> tuple[grpc.StatusCode, str]:
    """Status and message that a request brings."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.stub.ModelInfer(message, timeout=60)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(("message", "reason"), INVALID.values(), ids=INVALID)
def test_a_wrong_request_is_explained(gateway: Gateway, message: Request, reason: str) -> None:
    """A caller with a mistake reads what came, what was expected, and which model and tensor it is about."""
    assert refusal(gateway, message) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


@pytest.mark.parametrize(("message", "reason"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_an_unknown_model_is_not_found(gateway: Gateway, message: Request, reason: str) -> None:
    """A caller of a model or version that is not there gets the phrase that existing clients look for."""
    assert refusal(gateway, message) == (grpc.StatusCode.NOT_FOUND, reason)


@pytest.mark.parametrize(("message", "reason"), NOT_OFFERED.values(), ids=NOT_OFFERED)
def test_a_missing_extension_is_unimplemented(gateway: Gateway, message: Request, reason: str) -> None:
    """A caller who wants an extension that the server lacks is told so, instead of getting something else."""
    assert refusal(gateway, message) == (grpc.StatusCode.UNIMPLEMENTED, reason)


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_model_is_internal(gateway: Gateway, name: str) -> None:
    """A caller learns that the model failed and an id, and the operator finds the cause under it in the log."""
    code, details = refusal(gateway, request(X, model=name, raw=[ROW]))
    assert code == grpc.StatusCode.INTERNAL
    match = re.fullmatch(
        rf"model '{name}': it failed on this request: internal error, id (\w{{12}}); "
        "the server's log has the cause under that id",
        details,
    )
    assert match
    gateway.server.wait_for_log(
        rf"ModelInfer failed, id {match[1]}: [^\n]*\n  Traceback (.*\n)+?  [\w.]+Error", timeout=10
    )


def test_a_failing_models_text_stays_in_the_log(gateway: Gateway) -> None:
    """What a model's own exception says may be confidential: callers never see it, the log does."""
    _, details = refusal(gateway, request(X, model="raises", raw=[ROW]))
    assert CONFIDENTIAL not in details
    gateway.server.wait_for_log(rf"ValueError: .*{CONFIDENTIAL}", timeout=10)


def test_an_answer_over_the_limit_says_so(gateway: Gateway) -> None:
    """A model whose answer is too large for a message fails with the sizes, not with a broken connection."""
    code, details = refusal(gateway, request(X, model="huge_output", raw=[ROW]))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"larger than max \(\d+ vs\. 67108864\)", details)


def test_a_request_over_the_limit_says_so(gateway: Gateway) -> None:
    """A request of 100 MB is refused with its size and the limit."""
    code, details = refusal(gateway, request(tensor(shape=[6_250_000, 4]), raw=[bytes(100_000_000)]))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"larger than max \(1000000\d\d vs\. 67108864\)", details)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_odd_numbers_are_served(gateway: Gateway, value: float) -> None:
    """NaN and infinities are numbers like others: the model decides what they mean."""
    rows = np.array([[value, 0, 1, 2]], np.float32)
    answer = decode_infer_response(gateway.stub.ModelInfer(encode_infer_request("classifier", {"x": rows}), timeout=30))
    logits, _ = onnxruntime.InferenceSession(onnx_classifier()).run(None, {"x": rows})
    assert answer["logits"].tobytes() == logits.tobytes()


def test_any_name_is_served(gateway: Gateway) -> None:
    """Models and tensors may be named in any language; the answer and its messages carry the names unharmed."""
    message = encode_infer_request("größe 数", {"in_é": np.array([1, 2], np.float32)}, request_id="п")
    answer = gateway.stub.ModelInfer(message, timeout=30)
    assert (answer.model_name, answer.id) == ("größe 数", "п")
    assert decode_infer_response(answer)["out_é"].tolist() == [1, 2]
    message.inputs[0].name = "ü"
    reason = "unknown input 'ü' of model 'größe 数': expected 'in_é'"
    assert refusal(gateway, message) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


def test_millions_of_empty_texts_are_refused_at_once(gateway: Gateway) -> None:
    """A small shape with sixteen million texts behind it is refused without unpacking them."""
    message = request(tensor("in_a", "BYTES", [1]), model="text", raw=[bytes(64_000_000)])
    reason = "input 'in_a' of model 'text': BYTES [1] takes 1 elements, raw contents hold more"
    assert refusal(gateway, message) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


@pytest.mark.parametrize("rpc", [rpc.name for rpc in RPCS if not rpc.client_streaming])
@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_garbage_is_refused(gateway: Gateway, rpc: str, garbage: bytes) -> None:
    """Bytes that are no protobuf message are the caller's mistake, whichever RPC they are sent to."""
    call = gateway.channel.unary_unary(SERVICE + rpc)
    with pytest.raises(grpc.RpcError) as caught:
        call(garbage, timeout=30)
    outcome = caught.value.code(), caught.value.details()
    invalid = grpc.StatusCode.INVALID_ARGUMENT, f"{rpc}: the request is not a valid protobuf message of this RPC"
    switch = " without --allow-shared-memory" if rpc.startswith("SystemSharedMemory") else ""
    assert outcome in (invalid, (grpc.StatusCode.UNIMPLEMENTED, f"this server does not offer {rpc}{switch}"))


def test_garbage_in_a_stream_is_told(gateway: Gateway) -> None:
    """Bytes between the messages of a stream that are none get an error each, and the good ones their answers."""
    good = GOOD.SerializeToString()
    answers = stream(gateway, [message for garbage in GARBAGE for message in (garbage, good)])
    told = "ModelStreamInfer: the request is not a valid protobuf message of this RPC"
    assert [answer.error_message for answer in answers] == [told, ""] * len(GARBAGE)


def stream(gateway: Gateway, messages: list[bytes]) -> list[pb.ModelStreamInferResponse]:
    """What a stream of these messages is answered with."""
    read = pb.ModelStreamInferResponse.FromString
    call = gateway.channel.stream_stream(SERVICE + "ModelStreamInfer", response_deserializer=read)
    return list(call(iter(messages), timeout=60))


@pytest.mark.parametrize("path", [f"{SERVICE}ModelInferr", "/other.Service/ModelInfer", "/", "/größe/数", "//"])
def test_an_unknown_rpc_is_unimplemented(gateway: Gateway, path: str) -> None:
    """A call to what does not exist is answered as gRPC says."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.channel.unary_unary(path)(b"", timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("size", [0, 4, 4095, 4096, 5000])
def test_a_request_cut_short_is_refused(gateway: Gateway, size: int) -> None:
    """A request that lost its end is refused and never taken for a shorter one."""
    message = request(tensor(shape=[32, 4]), raw=[bytes(512)], id="x" * 4500).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        gateway.channel.unary_unary(SERVICE + "ModelInfer")(message[:size], timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_every_bit_of_a_good_request_may_be_wrong(gateway: Gateway) -> None:
    """No single flipped bit in a good request harms the server: it answers, or says what is wrong."""
    message = GOOD.SerializeToString()
    call = gateway.channel.unary_unary(SERVICE + "ModelInfer")
    flipped = [
        message[:i] + bytes([message[i] ^ 1 << bit]) + message[i + 1 :]
        for i in range(len(message))
        for bit in (0, 3, 7)
    ]
    futures = [call.future(bad, timeout=60) for bad in flipped]
    fine = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert {future.code() for future in futures} <= fine
    answers = stream(gateway, flipped)
    assert len(answers) == len(flipped)
    told = {answer.infer_response.parameters["tensorgate_status"].string_param for answer in answers}
    assert told <= {"", "INVALID_ARGUMENT", "NOT_FOUND"}
