"""The backend `tensorrt` on a GPU."""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from support.contract import Case, Contract, doubling
from support.engines import convolutions, perceptron
from support.loading import Loader
from support.models import onnx_identity, onnx_model

from backends.base import InvalidInput, LoadError, Model
from tensorgate_client.tensors import DTYPES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("engines")]

MIB = 2**20
GPU: dict[str, Any] = {"backend": "tensorrt", "device": "cuda:0"}


class TestContract(Contract):
    """This backend holds to what all do."""

    @pytest.fixture
    def case(self) -> Case:
        """An engine for y = x + x."""
        return Case("tensorrt", "model.onnx", doubling, 32, device="cuda:0")


def random_rows(content: bytes, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a model, read-only as those of a request."""
    random = np.random.default_rng(seed)
    inputs = {}
    for node in ort.InferenceSession(content).get_inputs():
        dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[node.type]
        inputs[node.name] = random.normal(size=(rows, *node.shape[1:])).astype(dtype)
        inputs[node.name].setflags(write=False)
    return inputs


def by_onnxruntime(content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes on the CPU."""
    session = ort.InferenceSession(content)
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


MODELS = {
    "perceptron": (perceptron(), "16", 1e-5),
    "convolutions": (convolutions(), "3x32x32", 1e-5),
    "perceptron in half precision": (perceptron(element=TensorProto.FLOAT16), "16", 5e-3),
    "convolutions in half precision": (convolutions(TensorProto.FLOAT16), "3x32x32", 5e-3),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name: str, load: Loader, execute: Any) -> None:
    """An engine computes what ONNX Runtime computes of the same file, in the file's own precision."""
    content, size, tolerance = MODELS[name]
    model = load("model.onnx", content, {"tf32": "false", "max_shapes": f"x:16x{size}"}, **GPU)
    for rows in (1, 3, 8, 16):
        inputs = random_rows(content, rows)
        expected, outputs = by_onnxruntime(content, inputs), execute(model, **inputs)
        assert list(outputs) == list(expected)
        for output, array in expected.items():
            assert (outputs[output].dtype, outputs[output].shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(outputs[output], array, rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32", "BF16"])
def test_every_datatype(datatype: str, load: Loader, execute: Any) -> None:
    """Datatypes that TensorRT knows pass through an engine unchanged."""
    dtype = DTYPES[datatype]
    model = load("model.onnx", onnx_identity(datatype), **GPU)
    assert model.signature.inputs == (("x", dtype, (-1, 4)),)
    array = np.random.default_rng(0).integers(0, 2, (5, 4)).astype(dtype)
    result = execute(model, x=array)["y"]
    assert (result.dtype, result.tobytes()) == (dtype, array.tobytes())


def sequences() -> bytes:
    """An ONNX model of `ids` and `mask` [batch,length] to their product `y`, and to its sum `total` [batch]."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axis"], ["total"], keepdims=0),
    ]
    inputs = [value(name, TensorProto.FLOAT, ["batch", "length"]) for name in ("ids", "mask")]
    outputs = [value("y", TensorProto.FLOAT, ["batch", "length"]), value("total", TensorProto.FLOAT, ["batch"])]
    return onnx_model(nodes, inputs, outputs, [helper.make_tensor("axis", TensorProto.INT64, [1], [1])])


def test_lengths(load: Loader, execute: Any) -> None:
    """A model of sequences takes every length up to the longest that its owner named, and refuses longer ones."""
    model = load(
        "model.onnx", sequences(), {"max_shapes": "ids:8x50,mask:8x50", "opt_shapes": "ids:8x20,mask:8x20"}, **GPU
    )
    assert model.signature.max_batch_size == 8
    for rows, length in ((1, 1), (8, 50), (3, 20), (2, 49)):
        array = np.random.default_rng(length).integers(0, 9, (rows, length)).astype(np.float32)
        outputs = execute(model, ids=array, mask=np.full_like(array, 2))
        np.testing.assert_array_equal(outputs["y"], array * 2)
        np.testing.assert_array_equal(outputs["total"], array.sum(1) * 2)
    array = np.ones((1, 51), np.float32)
    with pytest.raises(InvalidInput, match=r"^input 'ids': dimension 1 is 51, the engine was built for 1 to 50$"):
        execute(model, ids=array, mask=array)
    with pytest.raises(InvalidInput, match="input 'mask' cannot be left out"):
        execute(model, ids=array[:, :5])


def instances(*models: Model) -> Any:
    """An instance of each."""
    return [model.instance() for model in models]


def test_cuda_graphs(load: Loader, caplog: pytest.LogCaptureFixture) -> None:
    """Batches that run as CUDA graphs, in any order among others, have the results of those that do not."""
    caplog.set_level(logging.INFO)
    content = convolutions()
    file = load.file("model.onnx", content)
    size = {"max_shapes": "x:8x3x32x32", "tf32": "false"}
    recorded, plain = instances(
        load.reload(file, size, preferred_batch_sizes=(2, 8), **GPU),
        load.reload(file, {**size, "cuda_graphs": "false"}, preferred_batch_sizes=(2, 8), **GPU),
    )
    assert not [message for message in caplog.messages if "without CUDA graphs" in message]
    try:
        for seed, rows in enumerate([8, 2, 3, 8, 8, 1, 2, 5, 8, 2] * 5):
            inputs = random_rows(content, rows, seed)
            expected = plain.execute(inputs)["y"]
            np.testing.assert_allclose(recorded.execute(inputs)["y"], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(expected, by_onnxruntime(content, inputs)["y"], rtol=1e-3, atol=1e-4)
    finally:
        recorded.close()
        plain.close()


def test_outputs_are_the_callers(load: Loader) -> None:
    """An answer that a caller has not yet read stays as it is while later batches run."""
    content = perceptron()
    (instance,) = instances(load("model.onnx", content, preferred_batch_sizes=(4,), **GPU))
    try:
        kept = [instance.execute(random_rows(content, 4, seed))["y"] for seed in range(20)]
        again = [instance.execute(random_rows(content, 4, seed))["y"] for seed in range(20)]
    finally:
        instance.close()
    assert len({array.tobytes() for array in kept}) == 20
    for first, second in zip(kept, again, strict=True):
        np.testing.assert_array_equal(first, second)


def test_memory_stays_flat(load: Loader, free: Callable[[], int]) -> None:
    """Ten thousand batches of all sizes leave the memory of the GPU and of the server as it was."""
    content = perceptron()
    (instance,) = instances(load("model.onnx", content, preferred_batch_sizes=(8,), **GPU))
    batches = [random_rows(content, rows) for rows in (1, 8, 20, 32)]
    try:
        for number in range(1000):
            instance.execute(batches[number % 4])
        gpu, host = free(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(10_000):
            instance.execute(batches[number % 4])
        assert gpu - free() <= 2 * MIB
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host <= 16 * 1024  # KiB
    finally:
        instance.close()


@pytest.mark.timeout(60)  # a library that waits for a thread of its own would hang
@pytest.mark.parametrize("preferred", [(), (8,)], ids=str)
def test_unloaded_models_leave_nothing(preferred: tuple[int, ...], load: Loader, free: Callable[[], int]) -> None:
    """A model that is loaded and unloaded again and again takes no more memory than once."""
    file = load.file("model.onnx", perceptron(hidden=200_000))  # 16 MB of weights

    def once() -> None:
        model = load.reload(file, preferred_batch_sizes=preferred, close=False, **GPU)
        (instance,) = instances(model)
        for rows in (1, 8, 31):
            instance.execute(random_rows(perceptron(), rows))
        instance.close()
        model.close()

    for _ in range(2):
        once()
    before = free()
    for _ in range(4):
        once()
    assert before - free() <= 16 * MIB


def test_the_engine_is_kept(load: Loader, execute: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The second start builds nothing; the kept engine serves as model.plan too, and its results are the same."""
    caplog.set_level(logging.INFO)
    content = convolutions()
    file = load.file("model.onnx", content)
    first = load.reload(file, {"max_shapes": "x:8x3x32x32"}, **GPU)
    second = load.reload(file, {"max_shapes": "x:8x3x32x32"}, **GPU)
    assert len([message for message in caplog.messages if "engine built in" in message]) == 1
    (kept,) = file.parent.glob(".*.plan")
    plan = load("model.plan", kept, device="cuda:0")
    inputs = random_rows(content, 5)
    expected = execute(first, **inputs)["y"]
    for model in (second, plan):
        assert model.signature == first.signature
        np.testing.assert_array_equal(execute(model, **inputs)["y"], expected)
    assert plan.memory == {"GPU:0": kept.stat().st_size}


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_damaged_plans(damage: str, load: Loader) -> None:
    """The owner of an engine that does not load reads why, and that a model.onnx would be built here."""
    file = load.file("model.onnx", perceptron())
    load.reload(file, **GPU)
    (kept,) = file.parent.glob(".*.plan")
    whole = kept.read_bytes()
    content = {"garbage": b"(no engine", "truncated": whole[: len(whole) // 2], "empty": b""}[damage]
    with pytest.raises(LoadError, match=r"^model\.plan: .* does not load the engine on .*give model\.onnx") as caught:
        load("model.plan", content, device="cuda:0")
    assert "\n" not in str(caught.value)


def test_a_full_gpu(load: Loader, gpu: Any, free: Callable[[], int], execute: Any) -> None:
    """A model that finds no room is refused in a line that says how much is free; with room it loads."""
    import pycuda.driver as drv  # noqa: PLC0415  # needs a driver

    content = perceptron(hidden=1_000_000)  # 80 MB of weights
    file = load.file("model.onnx", content)
    load.reload(file, close=False, **GPU).close()  # builds the engine, which takes room too
    with gpu.current():
        ballast = drv.mem_alloc(free() - 64 * MIB)
    try:
        with pytest.raises(LoadError, match=r"(?i)memory") as caught:
            instances(load.reload(file, **GPU))
        assert "\n" not in str(caught.value)
    finally:
        with gpu.current():
            ballast.free()
    inputs = random_rows(content, 2)
    np.testing.assert_allclose(
        execute(load.reload(file, **GPU), **inputs)["y"], by_onnxruntime(content, inputs)["y"], rtol=0.05, atol=0.5
    )


def test_beside_torch(load: Loader) -> None:
    """PyTorch's work and an engine's on one thread, in turn, do not disturb each other."""
    content = perceptron()
    (instance,) = instances(load("model.onnx", content, {"tf32": "false"}, preferred_batch_sizes=(4,), **GPU))
    total = torch.zeros(4, 4, device="cuda")
    expected = np.zeros((4, 4), np.float32)
    try:
        for seed in range(50):
            y = instance.execute(random_rows(content, 4, seed))["y"]
            total += torch.from_numpy(y).to("cuda", non_blocking=True)
            expected += y
    finally:
        instance.close()
    np.testing.assert_allclose(total.cpu().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_depend_on_the_data(load: Loader) -> None:
    """A model whose outputs are as large as the data make them is refused when it is loaded."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])
    content = onnx_model([helper.make_node("NonZero", ["x"], ["y"])], [x], [y])
    with pytest.raises(LoadError, match=r"size depends on the data|model\.onnx: "):
        instances(load("model.onnx", content, **GPU))


def test_fixed_batch(load: Loader, execute: Any) -> None:
    """An engine for batches of one size says so in its signature, and computes them."""
    content = perceptron(rows=4)
    model = load("model.onnx", content, {"tf32": "false"}, preferred_batch_sizes=(4,), **GPU)
    assert model.signature.max_batch_size == 0
    assert model.signature.inputs == (("x", np.float32, (4, 16)),)
    inputs = {"x": random_rows(perceptron(), 4)["x"]}
    np.testing.assert_allclose(
        execute(model, **inputs)["y"], by_onnxruntime(content, inputs)["y"], rtol=1e-4, atol=1e-5
    )


def test_misspelt_parameters(load: Loader, caplog: pytest.LogCaptureFixture) -> None:
    """The owner of a misspelt parameter finds it in the log beside those there are."""
    load("model.onnx", perceptron(), {"max_shape": "x:8x16"}, **GPU)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    known = "min_shapes, opt_shapes, max_shapes, tf32, cuda_graphs"
    assert warnings == [f"model m/1: unknown parameter 'max_shape' is ignored; known: {known}"]


def test_a_read_only_copy(load: Loader, tmp_path: Path, execute: Any) -> None:
    """A version folder copied with its engine, as into an image, is served from that engine."""
    file = load.file("model.onnx", perceptron())
    expected = execute(load.reload(file, **GPU), **random_rows(perceptron(), 3))["y"]
    shutil.copytree(file.parent, tmp_path / "copy")
    (tmp_path / "copy").chmod(0o555)
    outputs = execute(load.reload(tmp_path / "copy" / file.name, **GPU), **random_rows(perceptron(), 3))
    np.testing.assert_array_equal(outputs["y"], expected)
