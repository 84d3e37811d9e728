"""What every backend does alike, whoever wrote it."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from support.models import RepositoryBuilder, onnx_model, save_exported, save_torchscript
from support.server import serving
from torch import nn

from backends.base import InvalidInput, LoadError, Model, Signature, TensorSpec
from backends.registry import Registry
from tensorgate_client.wire import inference_pb2 as pb


class Double(nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice `x`."""
        return x + x


def _onnx(path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    path.write_bytes(onnx_model([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y]))


def _python(path: Path) -> None:
    path.write_text(
        "class Model:\n"
        "    inputs, outputs = [('x', 'float32', (-1, 4))], [('y', 'float32', (-1, 4))]\n"
        "    def execute(self, inputs): return {'y': inputs['x'] * 2}\n"
    )


UNDECLARED = Signature((), ())
DECLARED = Signature(
    (TensorSpec.of("x", np.float32, (-1, 4)),), (TensorSpec.of("y", np.float32, (-1, 4)),), max_batch_size=16
)


@dataclass(frozen=True)
class Case:
    """A model file that multiplies `x` [-1, 4] by `factor` into `y`, and what its backend says of it."""

    backend: str
    filename: str
    write: Callable[[Path], None]
    max_batch_size: int
    output: str = "y"
    factor: float = 2
    declared: Signature = UNDECLARED


def _exported(path: Path) -> None:
    save_exported(Double(), path, torch.zeros(2, 4), max_batch=16)


CASES = {
    "onnxruntime": Case("onnxruntime", "model.onnx", _onnx, -1),
    "torch-pt2": Case("torch", "model.pt2", _exported, 16, "OUTPUT__0"),
    "torch-torchscript": Case("torch", "model.pt", lambda p: save_torchscript(Double(), p), 16, declared=DECLARED),
    "python": Case("python", "model.py", _python, -1),
    "echo": Case("echo", "", lambda _: None, 16, factor=1, declared=DECLARED),
    "third-party": Case("scale", "model.scale", lambda p: p.write_text("3") and None, 16, factor=3),
}
RUNTIMES = [("onnxruntime", "onnxruntime", "onnx"), ("torch", "torch", "torch")]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest, third_party: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Each backend in turn, the third-party one among them."""
    monkeypatch.syspath_prepend(third_party)
    return request.param


@pytest.fixture
def model(case: Case, load: Any) -> Model:
    """The case's model, loaded."""
    return load(case.filename or "nothing", case.write, declared=case.declared, backend=case.backend)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Random rows that nobody may write to, as those of a request."""
    array = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    array.setflags(write=False)
    return array


def on_own_thread(model: Model, batches: list[np.ndarray], barrier: threading.Barrier) -> list[Mapping[str, Any]]:
    """Make, use and close an instance on one thread, as the gateway does."""
    instance = model.instance()
    barrier.wait()
    try:
        return [instance.execute({"x": batch}) for batch in batches]
    finally:
        instance.close()


def test_signature(case: Case, model: Model) -> None:
    """A client reads names, datatypes, shapes and the batch limit of a model from its metadata."""
    (given,) = (TensorSpec.of(*spec) for spec in model.signature.inputs)
    (taken,) = (TensorSpec.of(*spec) for spec in model.signature.outputs)
    assert given == ("x", np.float32, (-1, 4))
    assert taken == (case.output, np.float32, (-1, 4))
    assert model.signature.max_batch_size == case.max_batch_size


@pytest.mark.parametrize("count", [1, 2, 16])
def test_execute(case: Case, model: Model, execute: Any, count: int) -> None:
    """A caller gets every promised output, with the promised datatype and as many rows as were sent."""
    batch = rows(count)
    outputs = execute(model, x=batch)
    assert list(outputs) == [spec[0] for spec in model.signature.outputs]
    assert outputs[case.output].dtype == np.float32
    np.testing.assert_array_equal(outputs[case.output], batch * np.float32(case.factor), strict=True)


def test_leaves_its_inputs_alone(model: Model, execute: Any) -> None:
    """A request's memory, which a cache or another model may share, is as it was after the execution."""
    batch = rows(3)
    before = batch.tobytes()
    execute(model, x=batch)
    assert batch.tobytes() == before
    assert not batch.flags.writeable


def test_instances_run_side_by_side(case: Case, model: Model) -> None:
    """Two instances of one model answer at the same time, each its own callers."""
    batches = [[rows(1 + i % 5, seed=100 * thread + i) for i in range(40)] for thread in range(2)]
    barrier = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(on_own_thread, [model] * 2, batches, [barrier] * 2))
    for given, got in zip(batches, answers, strict=True):
        for batch, outputs in zip(given, got, strict=True):
            np.testing.assert_array_equal(outputs[case.output], batch * np.float32(case.factor))


def test_loads_again_after_it_was_closed(case: Case, load: Any, execute: Any) -> None:
    """A model that was unloaded can be loaded once more in the same server."""
    path = load.file(case.filename or "nothing", case.write)
    for _ in range(2):
        model = load.reload(path, declared=case.declared, backend=case.backend, close=False)
        np.testing.assert_array_equal(execute(model, x=rows(2))[case.output], rows(2) * np.float32(case.factor))
        model.close()


KNOWN = {
    "onnxruntime": "inter_op_thread_count, execution_mode, .*, session\\.\\*, ep\\.\\*, cuda\\.\\*$",
    "torch-pt2": "dtype, compile, intra_op_thread_count$",
    "torch-torchscript": "dtype, compile, intra_op_thread_count$",
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
    repository.add("damaged", {"model.scale": "three"})
    with serving(repository.root, environment={"PYTHONPATH": str(third_party)}) as gateway:
        metadata = gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name="triple"))
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
        request = pb.ModelInferRequest(model_name="triple", raw_input_contents=[rows(2).tobytes()])
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
    write = _onnx if filename == "model.onnx" else lambda path: save_exported(Double(), path, torch.zeros(2, 4))
    with pytest.raises(InvalidInput, match="input 'x' cannot be left out: the model needs it"):
        execute(load(filename, write))


def profiled(model: Any, trace: Path | None) -> tuple[list[Mapping[str, Any]], list[tuple[str, int, float, float]]]:
    """The outputs of three executions after two that are not recorded, and what the profiler says of the three."""
    instance = model.profiler.instance(by_node=False)
    try:
        for _ in range(2):
            instance.execute({"x": rows(2)})
        instance.start()
        outputs = [instance.execute({"x": rows(2, seed)}) for seed in range(3)]
        return outputs, list(instance.stop(trace))
    finally:
        instance.close()


def test_profiler(case: Case, model: Model, tmp_path: Path) -> None:
    """Under a profiler a model answers as ever, and its operations are those of the recorded executions alone."""
    if getattr(model, "profiler", None) is None:
        pytest.skip("the backend has none")
    trace = tmp_path / "trace.json" if model.profiler.traces else None
    with ThreadPoolExecutor(1) as thread:
        outputs, operations = thread.submit(profiled, model, trace).result()
    for seed, got in enumerate(outputs):
        np.testing.assert_array_equal(got[case.output], rows(2, seed) * np.float32(case.factor))
    assert operations
    for name, calls, total_us, self_us in operations:
        assert calls % 3 == 0, name
        assert self_us <= total_us + 1e-3, name
    assert trace is None or json.loads(trace.read_text())["traceEvents"]
