"""Engines behind a server: batches, fixed sizes, several instances, bad models beside good ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.calls import infer, refusal, request
from support.engines import perceptron
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client.tensors import from_raw
from tensorgate_client.wire import inference_pb2 as pb

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("engines")]

EXACT = 'parameters { key: "tf32" value { string_value: "false" } }'
CONFIGS = {
    "batched": (
        perceptron(),
        f"""backend: "tensorrt" max_batch_size: 16 instance_group {{ count: 2 }} {EXACT}
        dynamic_batching {{ preferred_batch_size: [4, 16] max_queue_delay_microseconds: 20000 }}""",
    ),
    "padded": (
        perceptron(rows=4),
        f"""backend: "tensorrt" max_batch_size: 4 {EXACT}
        parameters {{ key: "batch_sizes" value {{ string_value: "4" }} }}""",
    ),
    "sized": (
        perceptron(),
        f"""backend: "tensorrt" max_batch_size: 8 {EXACT}
        parameters {{ key: "batch_sizes" value {{ string_value: "1 8" }} }}""",
    ),
}


@pytest.fixture(scope="module")
def gateway(engines: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server over all of them, and a bad one."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("repository") / "models")
    for name, (content, config) in CONFIGS.items():
        builder.add(name, {"model.onnx": content}, config)
    builder.add("damaged", {"model.plan": b"(no engine"})
    builder.add("onnxruntime", {"model.onnx": perceptron()})
    with serving(builder.root) as running:
        yield running


def x(rows: int, seed: int) -> np.ndarray:
    """Random rows."""
    return np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)


def expected(array: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes on the CPU."""
    return ort.InferenceSession(perceptron()).run(None, {"x": array})[0]


def test_many_callers(gateway: Gateway) -> None:
    """Requests of all sizes at once share batches on two instances, and each gets its own rows back."""
    arrays = [x(1 + seed % 5, seed) for seed in range(200)]
    calls = [gateway.stub.ModelInfer.future(request("batched", {"x": array}), timeout=150) for array in arrays]
    for array, call in zip(arrays, calls, strict=True):
        response = call.result()
        y = from_raw(response.raw_output_contents[0], "FP32", response.outputs[0].shape)
        np.testing.assert_allclose(y, expected(array), rtol=1e-4, atol=1e-5)
    (statistics,) = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="batched")).model_stats
    assert statistics.inference_count == sum(len(array) for array in arrays)
    assert statistics.execution_count < len(arrays)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_padded_to_a_fixed_batch(rows: int, gateway: Gateway) -> None:
    """An engine that was built for four rows serves callers with fewer."""
    array = x(rows, rows)
    np.testing.assert_allclose(infer(gateway, "padded", array, "x"), expected(array), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_padded_to_recorded_batches(rows: int, gateway: Gateway) -> None:
    """With batches of set sizes alone every one of them runs as a CUDA graph, and is right."""
    array = x(rows, rows)
    for _ in range(3):
        np.testing.assert_allclose(infer(gateway, "sized", array, "x"), expected(array), rtol=1e-4, atol=1e-5)
    assert "without CUDA graphs" not in gateway.server.log


def test_a_bad_model_beside_good_ones(gateway: Gateway) -> None:
    """A plan that does not load is listed with its reason; the other models are served."""
    index = gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    reasons = {model.name: model.reason for model in index}
    assert reasons["damaged"].startswith("model.plan: ")
    assert "does not load the engine on" in reasons["damaged"]
    assert [name for name, reason in reasons.items() if reason] == ["damaged"]
    assert "failed to load" in refusal(lambda: infer(gateway, "damaged", x(1, 0), "x"))[1]
    np.testing.assert_allclose(infer(gateway, "onnxruntime", x(2, 0), "x"), expected(x(2, 0)), rtol=1e-4, atol=1e-5)
