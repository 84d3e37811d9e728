"""What every backend does alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from backends.base import Model, Signature, TensorSpec
from support.loading import UNDECLARED
from support.models import onnx_model


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
    device: str = "cpu"
    parameters: Mapping[str, str] = field(default_factory=dict)


def doubling(path: Path) -> None:
    """Write y = x + x as ONNX."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    path.write_bytes(onnx_model([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y]))


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


class Contract:
    """Tests of the model that the fixture `case` names."""

    @pytest.fixture
    def model(self, case: Case, load: Any) -> Model:
        """The case's model, loaded."""
        file = load.file(case.filename or "nothing", case.write)
        return load.reload(file, case.parameters, declared=case.declared, backend=case.backend, device=case.device)

    def test_signature(self, case: Case, model: Model) -> None:
        """A client reads names, datatypes, shapes and the batch limit of a model from its metadata."""
        (given,) = (TensorSpec.of(*spec) for spec in model.signature.inputs)
        (taken,) = (TensorSpec.of(*spec) for spec in model.signature.outputs)
        assert given == ("x", np.float32, (-1, 4))
        assert taken == (case.output, np.float32, (-1, 4))
        assert model.signature.max_batch_size == case.max_batch_size

    @pytest.mark.parametrize("count", [1, 2, 16])
    def test_execute(self, case: Case, model: Model, execute: Any, count: int) -> None:
        """A caller gets every promised output, with the promised datatype and as many rows as were sent."""
        batch = rows(count)
        outputs = execute(model, x=batch)
        assert list(outputs) == [spec[0] for spec in model.signature.outputs]
        assert outputs[case.output].dtype == np.float32
        np.testing.assert_array_equal(outputs[case.output], batch * np.float32(case.factor), strict=True)

    def test_leaves_its_inputs_alone(self, model: Model, execute: Any) -> None:
        """A request's memory, which a cache or another model may share, is as it was after the execution."""
        batch = rows(3)
        before = batch.tobytes()
        execute(model, x=batch)
        assert batch.tobytes() == before
        assert not batch.flags.writeable

    def test_instances_run_side_by_side(self, case: Case, model: Model) -> None:
        """Two instances of one model answer at the same time, each its own callers."""
        batches = [[rows(1 + i % 5, seed=100 * thread + i) for i in range(40)] for thread in range(2)]
        barrier = threading.Barrier(2, timeout=60)
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(on_own_thread, [model] * 2, batches, [barrier] * 2))
        for given, got in zip(batches, answers, strict=True):
            for batch, outputs in zip(given, got, strict=True):
                np.testing.assert_array_equal(outputs[case.output], batch * np.float32(case.factor))

    def test_loads_again_after_it_was_closed(self, case: Case, load: Any, execute: Any) -> None:
        """A model that was unloaded can be loaded once more in the same server."""
        path = load.file(case.filename or "nothing", case.write)
        for _ in range(2):
            options = {"declared": case.declared, "backend": case.backend, "device": case.device}
            model = load.reload(path, case.parameters, **options, close=False)
            np.testing.assert_array_equal(execute(model, x=rows(2))[case.output], rows(2) * np.float32(case.factor))
            model.close()

    def test_profiler(self, case: Case, model: Model, tmp_path: Path) -> None:
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
