"""Node's unary program (`clients/node/classify.js`) against a running gateway."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.zoo import onnx_classifier


@pytest.fixture(scope="module")
def client(node_folder: Path) -> Path:
    """The program, ready to run."""
    return node_folder / "classify.js"


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with a classifier."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    with serving(repository.root) as gateway:
        yield gateway


def classify(client: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`node classify.js ARGUMENTS`."""
    command = ["node", str(client), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("form", ["json", "raw"])
def test_node_gets_the_runtimes_own_numbers(client: Path, gateway: Gateway, tmp_path: Path, form: str) -> None:
    """A Node service gets the very numbers that ONNX Runtime gives, to the last bit, from JSON or raw floats."""
    rows = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    file = tmp_path / f"rows.{form}"
    file.write_bytes(json.dumps(rows.tolist()).encode() if form == "json" else rows.tobytes())
    result = classify(client, "classifier", file, gateway.address)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["model"], answer["version"]) == ("classifier", "1")
    expected = onnxruntime.InferenceSession(onnx_classifier()).run(["logits", "probabilities"], {"x": rows})
    for name, array in zip(["logits", "probabilities"], expected, strict=True):
        output = answer["outputs"][name]
        assert (output["datatype"], output["shape"]) == ("FP32", [3, 3])
        assert np.array(output["data"], np.float32).tobytes() == array.tobytes()


def test_node_shows_the_servers_reason(client: Path, gateway: Gateway, tmp_path: Path) -> None:
    """A wrong call from Node shows the server's own sentence, and the program fails."""
    file = tmp_path / "rows.json"
    file.write_text("[[1, 2, 3]]")
    result = classify(client, "classifier", file, gateway.address)
    expected = "input 'x' of model 'classifier': expected FP32 [-1,4], got FP32 [1,3]"
    assert (result.returncode, result.stderr) == (1, f"classify: {expected}\n")


def test_node_says_when_the_server_is_unreachable(client: Path, tmp_path: Path) -> None:
    """With no server there, the Node program says so in one line and fails."""
    file = tmp_path / "rows.json"
    file.write_text("[[1, 2, 3, 4]]")
    with socket.socket() as taken:  # bound, yet not listening: nobody answers there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = classify(client, "classifier", file, address)
    assert result.returncode == 1
    assert result.stderr.startswith(f"classify: cannot reach the server at {address}: ")
    assert result.stderr.count("\n") == 1
