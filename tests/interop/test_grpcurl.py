"""grpcurl knows nothing of the service but what reflection tells it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, serving
from support.zoo import onnx_classifier

SERVICE = "inference.GRPCInferenceService"
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with a classifier and a model of texts."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    repository.add("text", {"model.onnx": onnx_identity("BYTES", ("n",))})
    with serving(repository.root) as gateway:
        yield gateway


@pytest.fixture
def call(grpcurl: Path, gateway: Gateway) -> Call:
    """`grpcurl -plaintext [-d DATA] ADDRESS ARGUMENTS`."""

    def run(*arguments: str, data: Any = None) -> subprocess.CompletedProcess[str]:
        body = [] if data is None else ["-d", json.dumps(data)]
        command = [str(grpcurl), "-plaintext", *body, gateway.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_services_are_listed(call: Call) -> None:
    """A user with nothing but an address sees what the server offers."""
    listed = call("list")
    assert listed.stdout.split() == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE]
    assert f"{SERVICE}.ModelInfer" in call("list", SERVICE).stdout.split()


def test_messages_are_described(call: Call) -> None:
    """A user sees which fields a message has, those of an imported file too."""
    assert "repeated bytes raw_input_contents = 7;" in call("describe", "inference.ModelInferRequest").stdout
    assert "int32 max_batch_size = 4;" in call("describe", "inference.ModelConfig").stdout


def test_typed_numbers_go_there_and_back(call: Call) -> None:
    """A user calls a model with numbers typed as JSON, and reads numbers in the answer instead of bytes."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4.5]}}
    parameters = {"binary_data_output": {"bool_param": False}}
    data = {"model_name": "classifier", "inputs": [tensor], "parameters": parameters, "outputs": [{"name": "logits"}]}
    result = call(f"{SERVICE}/ModelInfer", data=data)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert "raw_output_contents" not in answer
    (output,) = answer["outputs"]
    session = onnxruntime.InferenceSession(onnx_classifier())
    (expected,) = session.run(["logits"], {"x": np.array([[1, 2, 3, 4.5]], np.float32)})
    assert (output["name"], output["shape"]) == ("logits", ["1", "3"])
    assert np.array(output["contents"]["fp32_contents"], np.float32).tobytes() == expected.tobytes()


def test_typed_texts_go_there_and_back(call: Call) -> None:
    """BYTES work from JSON too, in base64, and come raw unless the caller asks otherwise."""
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": ["w7w=", ""]}}
    data = {"model_name": "text", "inputs": [tensor]}
    raw = json.loads(call(f"{SERVICE}/ModelInfer", data=data).stdout)
    assert raw["raw_output_contents"] == ["AgAAAMO8AAAAAA=="]
    data["parameters"] = {"binary_data_output": {"bool_param": False}}
    typed = json.loads(call(f"{SERVICE}/ModelInfer", data=data).stdout)
    assert typed["outputs"][0]["contents"] == {"bytes_contents": ["w7w=", ""]}


def test_mistakes_are_readable(call: Call) -> None:
    """A user sees the status and the sentence that goes with it."""
    result = call(f"{SERVICE}/ModelInfer", data={"model_name": "nobody"})
    assert result.returncode != 0
    assert "Code: NotFound" in result.stderr
    assert "Message: Request for unknown model: 'nobody' is not found" in result.stderr
