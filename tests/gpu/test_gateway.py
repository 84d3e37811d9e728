"""A server on a machine with a GPU: instance groups, answers, statistics, metrics, profiles."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from support.calls import index, infer, refusal, request
from support.metrics import scrape
from support.models import RepositoryBuilder, linear, save_exported, save_torchscript
from support.networks import Classifier, exact, pixels
from support.server import COMMAND, Gateway, serving
from torch import nn

from gateway.gpus import GpuMeter
from tensorgate_client import decode_infer_response
from tensorgate_client.wire import inference_pb2 as pb

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("torch_gpu"),
    pytest.mark.filterwarnings("default"),  # the GPU's host has other releases than we do, whose warnings are their own
]

WEIGHTS = (4 * 3 + 3) * 4  # bytes of a linear layer from 4 to 3 numbers
CPU, GPU = "instance_group { kind: KIND_CPU }\n", "instance_group { kind: KIND_GPU count: 2 }\n"
HALF = 'parameters { key: "dtype" value { string_value: "fp16" } }\n'
GREEDY_CONFIG = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""
CONFIGS = {"unsaid": "", "cpu": CPU, "gpu": GPU, "half": HALF, "beyond": "instance_group { kind: KIND_GPU gpus: 99 }\n"}


class Greedy(nn.Module):
    """Asks for 16 TB where its input is above 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As it came."""
        if bool((x > 0).any()):
            return x + torch.zeros([4398046511104], device=x.device)[:1]
        return x + 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> RepositoryBuilder:
    """A model by each of the configurations, and some others."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    for name, config in CONFIGS.items():
        save_exported(linear(), builder.add(name, config=config) / "1" / "model.pt2", torch.zeros(2, 4))
    save_exported(Classifier().eval(), builder.add("classifier", config=GPU) / "1" / "model.pt2", pixels(2))
    save_torchscript(Greedy(), builder.add("greedy", config=GREEDY_CONFIG) / "1" / "model.pt")
    builder.add("echo", config='backend: "echo"')
    return builder


@pytest.fixture(scope="module")
def gateway(models: RepositoryBuilder) -> Iterator[Gateway]:
    """One server over all of them."""
    with serving(models.root) as running:
        yield running


def groups(gateway: Gateway, model: str) -> list[tuple[str, int, list[int]]]:
    """The instance groups that ModelConfig shows: kind, count, gpus."""
    config = gateway.stub.ModelConfig(pb.ModelConfigRequest(name=model), timeout=60).config
    kind = config.instance_group[0].Kind.Name
    return [(kind(group.kind), group.count, list(group.gpus)) for group in config.instance_group]


def held(gateway: Gateway, model: str) -> list[tuple[str, int, int]]:
    """What ModelStatistics says of a model's memory."""
    (statistics,) = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name=model), timeout=60).model_stats
    return [(memory.type, memory.id, memory.byte_size) for memory in statistics.memory_usage]


def test_where_models_are(gateway: Gateway) -> None:
    """Models are where their groups say, on every GPU by default, and ModelConfig and ModelStatistics show it."""
    gpus = list(range(torch.cuda.device_count()))
    assert groups(gateway, "unsaid") == [("KIND_GPU", 1, gpus)]
    assert groups(gateway, "gpu") == [("KIND_GPU", 2, gpus)]
    assert groups(gateway, "cpu") == groups(gateway, "echo") == [("KIND_CPU", 1, [])]
    assert sorted(held(gateway, "gpu")) == [("GPU", number, WEIGHTS) for number in gpus]
    assert sorted(held(gateway, "half")) == [("GPU", number, WEIGHTS // 2) for number in gpus]
    assert held(gateway, "cpu") == [("CPU", 0, WEIGHTS)]
    assert index(gateway)["beyond/1"][1].startswith("instance_group KIND_GPU: there is no GPU 99: this server sees ")


@pytest.mark.parametrize(("model", "error"), [("unsaid", 1e-5), ("cpu", 1e-5), ("gpu", 1e-5), ("half", 1e-2)])
def test_answers(gateway: Gateway, model: str, error: float) -> None:
    """Whatever computes it, an answer is what PyTorch gives on the CPU."""
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = exact(linear(), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(infer(gateway, model, x, "input"), expected, rtol=0, atol=error)


def test_many_callers(gateway: Gateway) -> None:
    """Requests of all sizes at once share batches on two instances of a GPU, and each gets its own rows back."""
    images = [pixels(1 + seed % 5, seed) for seed in range(200)]
    calls = [
        gateway.stub.ModelInfer.future(request("classifier", {"pixels": image.numpy()}), timeout=60) for image in images
    ]
    answers = [decode_infer_response(call.result())["OUTPUT__0"] for call in calls]
    expected = exact(Classifier(), torch.cat(images)).numpy()
    np.testing.assert_allclose(np.concatenate(answers), expected, rtol=0, atol=5e-3)
    (statistics,) = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="classifier"), timeout=60).model_stats
    assert statistics.inference_count == sum(len(image) for image in images)
    assert statistics.execution_count < len(images)


def test_a_request_that_asks_for_too_much(gateway: Gateway) -> None:
    """A request for which the GPU has no memory fails alone; the model and the others go on."""
    good, bad = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert refusal(lambda: infer(gateway, "greedy", bad, "x"))[0] is grpc.StatusCode.INTERNAL
    gateway.server.wait_for_log("out of memory")
    assert infer(gateway, "greedy", good, "x").tolist() == [[0, 0, 0, 0]]
    assert infer(gateway, "unsaid", good, "input").shape == (1, 3)


def test_metrics(gateway: Gateway) -> None:
    """The metrics show each GPU with what its driver tells, and the memory that the models take of it."""
    told = {reading.uuid: reading for reading in GpuMeter().read()}
    assert len(told) == torch.cuda.device_count()
    scraped = scrape(gateway)
    for uuid, reading in told.items():
        assert scraped["nv_gpu_memory_total_bytes", uuid] == reading.memory_total
        assert 0 < scraped["nv_gpu_memory_used_bytes", uuid] < reading.memory_total
        for name, known in {
            "nv_gpu_utilization": reading.utilization,
            "nv_gpu_power_usage": reading.power_w,
            "nv_gpu_power_limit": reading.power_limit_w,
            "nv_energy_consumption": reading.energy_j,
        }.items():
            assert ((name, uuid) in scraped) == (known is not None), name


def test_hidden_gpus(models: RepositoryBuilder) -> None:
    """A server from which the GPUs are hidden serves on the CPU, and says so where a GPU was asked for."""
    with serving(models.root, environment={"CUDA_VISIBLE_DEVICES": ""}) as gateway:
        assert groups(gateway, "unsaid") == [("KIND_CPU", 1, [])]
        assert infer(gateway, "unsaid", np.zeros((1, 4), np.float32), "input").shape == (1, 3)
        assert index(gateway)["gpu/1"][1].startswith("instance_group KIND_GPU: ")
        assert not [key for key in scrape(gateway) if key[0].startswith("nv_gpu")]


def test_profile(models: RepositoryBuilder, tmp_path: Path) -> None:
    """`tensorgate profile` tells how long the kernels took that each operator started, and keeps the single ones."""
    trace = tmp_path / "trace.json"
    command = [*COMMAND, "profile", "classifier", "--model-repository", models.root, "--rows", "8", "--runs", "20"]
    command += ["--by", "node", "--json", "--trace", trace]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    operators = {line["operator"]: line for line in found["operators"]}
    convolution = [line for name, line in operators.items() if name.split()[0] == "aten::cudnn_convolution"]
    assert sum(line["calls"] for line in convolution) == 2 * 20
    assert all(line["self_ms"] > 0 for line in convolution)
    assert all(line["self_ms"] <= line["total_ms"] + 1e-3 for line in operators.values())
    assert found["outside_operators"]["self_ms"] >= 0
    assert any(event.get("cat") == "kernel" for event in json.loads(trace.read_text())["traceEvents"])
