"""What every backend does alike, whoever wrote it."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.contract import Case, Contract, doubling, rows
from support.models import RepositoryBuilder, save_exported, save_torchscript
from support.server import serving
from support.tflite import doubled, tflite_model
from torch import nn

from backends.base import InvalidInput, LoadError, Signature, TensorSpec
from backends.registry import Registry
from tensorgate_client.wire import inference_pb2 as pb


class Double(nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice `x`."""
        return x + x


def _python(path: Path) -> None:
    path.write_text(
        "class Model:\n"
        "    inputs, outputs = [('x', 'float32', (-1, 4))], [('y', 'float32', (-1, 4))]\n"
        "    def execute(self, inputs): return {'y': inputs['x'] * 2}\n"
    )


DECLARED = Signature(
    (TensorSpec.of("x", np.float32, (-1, 4)),), (TensorSpec.of("y", np.float32, (-1, 4)),), max_batch_size=16
)


def _exported(path: Path) -> None:
    save_exported(Double(), path, torch.zeros(2, 4), max_batch=16)


CASES = {
    "onnxruntime": Case("onnxruntime", "model.onnx", doubling, -1),
    "torch-pt2": Case("torch", "model.pt2", _exported, 16, "OUTPUT__0"),
    "torch-torchscript": Case("torch", "model.pt", lambda p: save_torchscript(Double(), p), 16, declared=DECLARED),
    "litert-open-batch": Case(
        "litert", "model.tflite", lambda p: p.write_bytes(tflite_model(doubled(-1))) and None, -1
    ),
    "litert-signatures": Case(
        "litert",
        "model.tflite",
        lambda p: p.write_bytes(tflite_model(*(doubled(rows, f"b{rows}") for rows in range(1, 17)))) and None,
        16,
    ),
    "python": Case("python", "model.py", _python, -1),
    "echo": Case("echo", "", lambda _: None, 16, factor=1, declared=DECLARED),
    "third-party": Case("scale", "model.scale", lambda p: p.write_text("3") and None, 16, factor=3),
}
RUNTIMES = [("onnxruntime", "onnxruntime", "onnx"), ("torch", "torch", "torch"), ("litert", "ai_edge_litert", "litert")]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest, third_party: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Each backend in turn, the third-party one among them."""
    monkeypatch.syspath_prepend(third_party)
    return request.param


class TestContract(Contract):
    """Every backend holds to it."""


KNOWN = {
    "onnxruntime": "inter_op_thread_count, execution_mode, .*, session\\.\\*, ep\\.\\*, cuda\\.\\*$",
    "torch-pt2": "dtype, compile, intra_op_thread_count$",
    "torch-torchscript": "dtype, compile, intra_op_thread_count$",
    "litert-open-batch": "intra_op_thread_count, signatures, inline$",
    "echo": "delay_ms$",
}


@pytest.mark.parametrize("name", KNOWN)
def test_misspelt_parameters(name: str, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The owner of a misspelt parameter finds it in the log once, beside those there are; the model is served."""
    case = CASES[name]
    parameters = {"intra_op_thread_cout": "2", "FORCE_CPU_ONLY": "true"}
    load(case.filename or "nothing", case.write, parameters, declared=case.declared, backend=case.backend)
    (text,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    start = r"^model m/1: unknown parameter 'FORCE_CPU_ONLY', 'intra_op_thread_cout' is ignored; known: .*"
    assert re.search(start + KNOWN[name], text)


FILES = [name for name, case in CASES.items() if name not in ("echo", "third-party")]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_damaged_file(name: str, damage: str, load: Any) -> None:
    """The owner of a damaged model file reads in one line which file cannot be read and why."""
    case = CASES[name]
    whole = load.file(case.filename, case.write).read_bytes()
    content = {"garbage": b"(no model", "truncated": whole[: len(whole) * 2 // 3], "empty": b""}[damage]
    with pytest.raises(LoadError) as caught:
        load(case.filename, content, declared=case.declared)
    assert case.filename in str(caught.value)
    assert len(str(caught.value)) > len(case.filename) + 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("backend", "module", "extra"), RUNTIMES)
def test_missing_runtime(backend: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks a runtime is told the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)  # what an import sees where nothing is installed
    registry = Registry()
    info = registry.info(backend)
    assert not info.installed
    with pytest.raises(LoadError) as caught:
        registry.backend(info)
    assert str(caught.value) == f"backend '{backend}' is not installed: pip install 'tensorgate[{extra}]'"


def test_third_party_backend_in_a_server(repository: RepositoryBuilder, third_party: Path) -> None:
    """A backend that somebody else published serves gRPC clients as soon as it is installed."""
    repository.add("triple", {"model.scale": "3"})
    repository.add("sized", {"model.scale": "3 4 16"})
    repository.add("damaged", {"model.scale": "three"})
    with serving(repository.root, environment={"PYTHONPATH": str(third_party)}) as gateway:
        metadata = gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name="triple"))
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
        for name in ("triple", "sized"):
            request = pb.ModelInferRequest(model_name=name, raw_input_contents=[rows(2).tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
            response = gateway.stub.ModelInfer(request)
            assert response.raw_output_contents[0] == (rows(2) * 3).tobytes()
        index = gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert {model.name: model.reason for model in index if model.state != "READY"} == {
        "damaged": "ValueError: could not convert string to float: 'three'"
    }


@pytest.mark.parametrize("filename", ["model.onnx", "model.pt2"])
def test_an_input_the_model_needs(filename: str, load: Any, execute: Any) -> None:
    """A caller who leaves out an input that config.pbtxt wrongly calls optional is told that the model needs it."""
    write = doubling if filename == "model.onnx" else lambda path: save_exported(Double(), path, torch.zeros(2, 4))
    with pytest.raises(InvalidInput, match="input 'x' cannot be left out: the model needs it"):
        execute(load(filename, write))
