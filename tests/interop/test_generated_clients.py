"""Programs in Node, Go and Java (`clients/`) that send rows of JSON through generated clients to a running gateway."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.models import ONNX_TYPES, RepositoryBuilder, onnx_identity, onnx_model
from support.server import Gateway, serving
from support.zoo import onnx_classifier

from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc

Program = list[str]
Run = Callable[..., subprocess.CompletedProcess[str]]
STREAMING = pytest.mark.parametrize("program", ["node", "go", "java"], indirect=True)
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
FACTORS = {"UINT8": 6, "UINT16": 1600, "UINT32": 1e8, "UINT64": 4e17, "FP32": 1e37}
"""What 40 is multiplied by to need the datatype's highest bit, or, for FP32, to become infinite."""


@pytest.fixture(scope="module", params=["node", "go", "go -unary", "java", "java --unary"])
def program(request: pytest.FixtureRequest) -> Program:
    """Each program in turn, built; the unary ones make a ModelInfer call for each row."""
    language, *options = request.param.split()
    return [*request.getfixturevalue(f"{language}_client"), *options]


@pytest.fixture
def run(program: Program) -> Run:
    """Runs the program on lines of text, or on rows."""

    def run(model: str, address: str, *lines: Any) -> subprocess.CompletedProcess[str]:
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        return subprocess.run(
            [*program, model, address], input=text, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def casts() -> bytes:
    """A model from `x` [batch,4] to an output for each datatype, which bears its name."""
    nodes = [helper.make_node("Abs", ["x"], ["abs"])]
    weights = []
    names = [name for name in ONNX_TYPES if name not in {"BF16", "BYTES"}]
    for name in names:
        source = "x"
        if name in FACTORS:
            weights.append(onnx.numpy_helper.from_array(np.array(FACTORS[name], np.float32), f"{name}_factor"))
            source = f"{name}_product"
            nodes.append(helper.make_node("Mul", ["abs", f"{name}_factor"], [source]))
        nodes.append(helper.make_node("Cast", [source], [name], to=ONNX_TYPES[name]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    return onnx_model(
        nodes, [x], [helper.make_tensor_value_info(n, ONNX_TYPES[n], ["batch", 4]) for n in names], weights
    )


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with a classifier, and a model that answers in every datatype."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    repository.add("casts", {"model.onnx": casts()})
    with serving(repository.root) as gateway:
        yield gateway


def probabilities(answer: dict[str, Any]) -> np.ndarray:
    """What the classifier says in one answer."""
    output = answer["outputs"]["probabilities"]
    assert output["datatype"] == "FP32"
    return np.array(output["data"], np.float32).reshape(output["shape"])


def expected(rows: Any) -> np.ndarray:
    """What ONNX Runtime says to the same."""
    array = np.array(rows, np.float32).reshape(-1, 4)
    return onnxruntime.InferenceSession(onnx_classifier()).run(["probabilities"], {"x": array})[0]


def test_rows_get_the_runtimes_own_numbers(run: Run, gateway: Gateway) -> None:
    """Each line's answer has that line's number and the very numbers that ONNX Runtime gives, in the lines' order."""
    rows = np.random.default_rng(3).normal(size=(300, 4)).astype(np.float32).tolist()
    lines = [*rows[:297], "", rows[297:]]  # the last line is a batch of three
    result = run("classifier", gateway.address, *lines)
    assert (result.returncode, result.stderr) == (0, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [str(number) for number in [*range(1, 298), 299]]
    assert {(answer["model"], answer["version"]) for answer in answers} == {("classifier", "1")}
    for line, answer in zip([*rows[:297], rows[297:]], answers, strict=True):
        assert probabilities(answer).tobytes() == expected(line).tobytes()


@STREAMING
def test_every_datatype_is_read(run: Run, gateway: Gateway) -> None:
    """Outputs of all datatypes print as the numbers they are, unsigned ones and infinities among them."""
    row = [-3, 0, 1, 40]
    result = run("casts", gateway.address, row)
    assert (result.returncode, result.stderr) == (0, "")
    outputs = json.loads(result.stdout)["outputs"]
    session = onnxruntime.InferenceSession(casts())
    for tensor, array in zip(session.get_outputs(), session.run(None, {"x": np.array([row], np.float32)}), strict=True):
        output = outputs.pop(tensor.name)
        assert (output["datatype"], output["shape"]) == (tensor.name, [1, 4])
        if tensor.name == "FP16":
            assert base64.b64decode(output["base64"]) == array.tobytes()
        else:
            read = float if array.dtype.kind == "f" else int
            assert np.array([read(element) for element in output["data"]], array.dtype).tobytes() == array.tobytes()
    assert not outputs


def test_a_bad_row_fails_alone(run: Run, gateway: Gateway) -> None:
    """Rows that the server or the program refuses are reported by number and reason, and all others are answered."""
    good = [[1, 2, 3, 4], [5, 6, 7, 8], [0.5, 0, 0, 0]]
    result = run("classifier", gateway.address, good[0], [1, 2, 3], good[1], "none", "[[1, 2], [3]]", good[2])
    assert result.returncode == 1
    assert result.stderr.endswith(": 3 of 6 rows failed\n")
    assert result.stderr.count("\n") == 1
    answers = {answer["id"]: answer for answer in map(json.loads, result.stdout.splitlines())}
    assert sorted(answers) == ["1", "2", "3", "4", "5", "6"]
    assert answers["2"]["error"] == "input 'x' of model 'classifier': expected FP32 [-1,4], got FP32 [1,3]"
    assert answers["4"]["error"]
    assert answers["5"]["error"] == "not numbers in nested arrays of equal lengths"
    for number, row in zip(["1", "3", "6"], good, strict=True):
        assert probabilities(answers[number]).tobytes() == expected(row).tobytes()


@STREAMING
def test_an_unknown_model_is_named(run: Run, gateway: Gateway) -> None:
    """A wrong model's name is answered by the server's own sentence, in one line."""
    result = run("nobody", gateway.address)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith(": Request for unknown model: 'nobody' is not found\n")
    assert result.stderr.count("\n") == 1


@STREAMING
def test_an_unreachable_server_is_named(run: Run) -> None:
    """With no server there, the program says so in one line and fails."""
    with socket.socket() as taken:  # bound, yet not listening: nobody answers there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("classifier", address)
    assert (result.returncode, result.stdout) == (1, "")
    assert f": cannot reach the server at {address}: " in result.stderr
    assert result.stderr.count("\n") == 1


@STREAMING
def test_a_dying_server_ends_the_program(program: Program, repository: RepositoryBuilder) -> None:
    """When the server dies, a program that waits for more rows does not hang: it says so in one line and fails."""
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    with (
        serving(repository.root) as gateway,
        subprocess.Popen([*program, "classifier", gateway.address], text=True, **PIPES) as process,
    ):
        process.stdin.write("[1, 2, 3, 4]\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == "1"  # so the input need not end for answers to come
        gateway.server.kill()
        assert process.wait(30) == 1
        errors = process.stderr.read()
    assert f": cannot reach the server at {gateway.address}: " in errors
    assert errors.count("\n") == 1


class Forgetful(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that answers the last of three requests first, the first one never, and ends the stream well."""

    def ModelMetadata(self, request, context):  # noqa: N802 - the protocol's name
        """A model of one number."""
        x = pb.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1, 1])
        return pb.ModelMetadataResponse(name=request.name, inputs=[x])

    def ModelStreamInfer(self, requests, context):  # noqa: N802 - the protocol's name
        """Two answers to three requests."""
        _, second, third = (next(requests) for _ in range(3))
        for request in (third, second):
            response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            yield pb.ModelStreamInferResponse(infer_response=response)


@STREAMING
def test_a_forgetful_server_is_found_out(run: Run) -> None:
    """Answers are told apart by id whatever their order, and a stream that ends before all are there is no success."""
    with futures.ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Forgetful(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        result = run("forgetful", f"127.0.0.1:{port}", [1], [2], [3])
        server.stop(None).wait()
    assert result.returncode == 1
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["3", "2"]
    assert result.stderr.endswith(": the server ended the stream; unanswered requests: 1\n")
    assert result.stderr.count("\n") == 1


@STREAMING
def test_a_program_waits_for_its_reader(program: Program, repository: RepositoryBuilder) -> None:
    """While nobody takes its answers a program stops reading rows, lest they fill its memory; none is lost by that."""
    repository.add("wide", {"model.onnx": onnx_identity("FP32", ("batch", 10_000))})
    row = f"{json.dumps([0] * 10_000)}\n".encode()
    with (
        serving(repository.root) as gateway,
        subprocess.Popen([*program, "wide", gateway.address], **PIPES) as process,
    ):
        os.set_blocking(process.stdin.fileno(), False)
        size = 0
        while select.select([], [process.stdin], [], 2)[1]:
            size += os.write(process.stdin.fileno(), row[size % len(row) :])
            assert size < 10_000 * len(row), "it reads on and on"
        output, errors = process.communicate(row[size % len(row) :], timeout=90)
    assert (process.returncode, errors) == (0, b"")
    ids = [line[7 : line.index(b'"', 7)].decode() for line in output.splitlines()]  # parsing 40 MB of JSON takes long
    assert ids == [str(number) for number in range(1, size // len(row) + 2)]
