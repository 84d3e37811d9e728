"""Our wire modules beside others in one process."""

import os
import pickle
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from tensorgate_client.wire import POOL, inference_pb2

SHARE = Path(__file__).with_name("share_process.py")
ORDERS = [
    pytest.param(("tensorgate_client.wire", "tritonclient.grpc"), id="ours-first"),
    pytest.param(("tritonclient.grpc", "tensorgate_client.wire"), id="tritonclient-first"),
]


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize("order", ORDERS)
def test_shares_a_process_with_tritonclient(
    tritonclient_python: Path, order: tuple[str, str], implementation: str
) -> None:
    """A program may import tritonclient too, in any order, and each package reads the other's messages."""
    result = subprocess.run(
        [str(tritonclient_python), "-W", "error::UserWarning", str(SHARE), *order],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "exchanged\n"


def test_leaves_the_default_pool_alone() -> None:
    """A program with its own definition of package `inference` can register it after importing ours."""
    name = "inference.ModelInferRequest"
    assert POOL.FindMessageTypeByName(name) is inference_pb2.ModelInferRequest.DESCRIPTOR
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(name)


def test_messages_can_be_pickled() -> None:
    """A program may hand a request to another process with everything in it."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="pixels", datatype="FP32", shape=[1, 64])
    request = inference_pb2.ModelInferRequest(model_name="digits", inputs=[tensor])
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own bytes
