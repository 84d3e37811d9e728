"""`instance_group`: which devices a model computes on, and how many instances each has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.calls import ONES, index, infer, request
from support.gpus import Machine
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client import decode_infer_response
from tensorgate_client.wire import inference_pb2 as pb

TWO = [{"uuid": "GPU-aaaa"}, {"uuid": "GPU-bbbb"}]
WHERE = 'backend: "where"\n'
NO_CUDA = 'parameters { key: "no_cuda" value { string_value: "this runtime was built without CUDA" } }\n'
NO_CPU = 'parameters { key: "no_cpu" value { string_value: "it knows GPUs alone" } }\n'


def meeting(instances: int) -> str:
    """Each of so many instances waits until all of them have a request."""
    return f'parameters {{ key: "instances" value {{ string_value: "{instances}" }} }}\n'


KINDS = {  # config, devices of the instances, groups as clients see them: kind, count, gpus
    "all": ("instance_group { kind: KIND_GPU count: 2 }", ["cuda:0"] * 2 + ["cuda:1"] * 2, [("KIND_GPU", 2, [0, 1])]),
    "second": ("instance_group { kind: KIND_GPU gpus: [ 1 ] }", ["cuda:1"], [("KIND_GPU", 1, [1])]),
    "mixed": (
        "instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_GPU gpus: [ 0 ] } ]",
        ["cpu", "cpu", "cuda:0"],
        [("KIND_CPU", 2, []), ("KIND_GPU", 1, [0])],
    ),
    "shared": (
        "instance_group [ { kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_GPU gpus: [ 0 ] } ]",
        ["cuda:0", "cuda:0"],
        [("KIND_GPU", 1, [0])] * 2,
    ),
    "unsaid": ("", ["cuda:0", "cuda:1"], [("KIND_GPU", 1, [0, 1])]),
    "automatic": ("instance_group { count: 2 gpus: [ 1 ] }", ["cuda:1"] * 2, [("KIND_GPU", 2, [1])]),
    "automatic_beyond": ("instance_group { gpus: [ 1, 2 ] }", ["cpu"], [("KIND_CPU", 1, [])]),
    "automatic_without": (NO_CUDA, ["cpu"], [("KIND_CPU", 1, [])]),
    "own_choice": ("instance_group { kind: KIND_MODEL }", ["own choice"], [("KIND_MODEL", 1, [])]),
}
REFUSED = {
    "beyond": (
        WHERE + "instance_group { kind: KIND_GPU gpus: [ 2 ] }",
        "instance_group KIND_GPU: there is no GPU 2: this server sees 2 (gpus: 0 to 1)",
    ),
    "unable": (
        WHERE + NO_CUDA + "instance_group { kind: KIND_GPU }",
        "instance_group KIND_GPU: this runtime was built without CUDA",
    ),
    "not_on_the_cpu": (
        WHERE + NO_CPU + "instance_group { kind: KIND_CPU }",
        "instance_group KIND_CPU: it knows GPUs alone",
    ),
    "echo": (
        'backend: "echo" instance_group { kind: KIND_GPU }',
        "instance_group KIND_GPU: backend 'echo' uses no GPU: say KIND_CPU",
    ),
    "cpu_with_gpus": (
        WHERE + "instance_group { kind: KIND_CPU gpus: [ 0 ] }",
        "config.pbtxt: instance_group KIND_CPU has gpus [0]: say KIND_GPU, or leave gpus out",
    ),
    "twice": (
        WHERE + "instance_group { kind: KIND_GPU gpus: [ 0, 0 ] }",
        "config.pbtxt: instance_group gpus [0,0]: expected numbers from 0, each once",
    ),
    "negative": (
        WHERE + "instance_group { gpus: [ -1 ] }",
        "config.pbtxt: instance_group gpus [-1]: expected numbers from 0, each once",
    ),
}
DIFFERENT = WHERE + 'parameters { key: "odd" value { string_value: "cuda:1" } }\n'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server that sees two GPUs."""
    folder = tmp_path_factory.mktemp("two-gpus")
    machine, repository = Machine(folder / "machine", TWO), RepositoryBuilder(folder / "models")
    for name, (config, devices, _) in KINDS.items():
        repository.add(name, {"model.where": ""}, WHERE + meeting(len(devices)) + config)
    for name, (config, _) in REFUSED.items():
        repository.add(name, {"model.where": ""}, config)
    repository.add("different", {"model.where": ""}, DIFFERENT)
    repository.add("plain", config='backend: "echo"')
    with serving(repository.root, environment=machine.environment) as server:
        yield server


def where(gateway: Gateway, model: str, instances: int) -> list[tuple[str, str]]:
    """The device of each instance, and which of the loaded models it belongs to."""
    message = request(model, {"x": np.ones((1, 1), np.float32)})
    calls = [gateway.stub.ModelInfer.future(message, timeout=60) for _ in range(instances)]
    texts = [decode_infer_response(call.result())["where"][0, 0].decode() for call in calls]
    return sorted(tuple(text.rsplit(" ", 1)) for text in texts)


def groups(gateway: Gateway, model: str) -> list[tuple[str, int, list[int]]]:
    """The instance groups that ModelConfig shows: kind, count, gpus."""
    config = gateway.stub.ModelConfig(pb.ModelConfigRequest(name=model), timeout=60).config
    kind = config.instance_group[0].Kind.Name
    return [(kind(group.kind), group.count, list(group.gpus)) for group in config.instance_group]


@pytest.mark.parametrize("name", KINDS)
def test_instances_are_where_the_group_says(gateway: Gateway, name: str) -> None:
    """A model has as many instances on each device as its groups say, loaded once a device, and clients can see it."""
    _, devices, shown = KINDS[name]
    found = where(gateway, name, len(devices))
    assert [device for device, _ in found] == devices
    assert len(set(found)) == len(set(devices))
    assert groups(gateway, name) == shown


def test_memory_is_told_of_each_device(gateway: Gateway) -> None:
    """ModelStatistics shows what a model holds on every device that it was loaded on."""
    answer = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="mixed"), timeout=60)
    held = [(memory.type, memory.id, memory.byte_size) for memory in answer.model_stats[0].memory_usage]
    assert sorted(held) == [("CPU", 0, 100), ("GPU", 0, 100)]


@pytest.mark.parametrize("name", REFUSED)
def test_groups_that_cannot_be(gateway: Gateway, name: str) -> None:
    """An instance group that cannot be had is refused with the reason, and the other models serve."""
    found = {model.partition("/")[0]: row for model, row in index(gateway).items()}
    assert found[name] == ("UNAVAILABLE", REFUSED[name][1])


def test_a_model_that_differs_between_devices(gateway: Gateway) -> None:
    """A file from which a backend makes different models on two GPUs is refused: answers would depend on chance."""
    state, reason = index(gateway)["different/1"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("the model's tensors on cuda:1 are not those on cuda:0: ")


def test_backends_without_a_gpu_go_on(gateway: Gateway) -> None:
    """A model whose backend uses no GPU serves on a machine that has some, without a word about it."""
    assert infer(gateway, "plain").tolist() == ONES.tolist()
    assert groups(gateway, "plain") == [("KIND_CPU", 1, [])]


CHOSEN = {
    "1": ["cuda:0"],
    "GPU-b, GPU-a": ["cuda:0", "cuda:1"],
    "1,7,0": ["cuda:0"],
    "0,1,1": ["cuda:0", "cuda:1"],
    "GPU-": ["cpu"],  # stands for both
    "MIG-1": ["cuda:0"],
    "MIG-2": ["cpu"],
    "": ["cpu"],
    "-1": ["cpu"],
}


@pytest.mark.parametrize("chosen", CHOSEN)
def test_cuda_visible_devices(chosen: str, tmp_path: Path, repository: RepositoryBuilder) -> None:
    """CUDA_VISIBLE_DEVICES hides GPUs from the server as it does from CUDA, and the rest are numbered from 0."""
    machine = Machine(tmp_path / "machine", TWO)
    repository.add("auto", {"model.where": ""}, WHERE + meeting(len(CHOSEN[chosen])))
    with serving(repository.root, environment={**machine.environment, "CUDA_VISIBLE_DEVICES": chosen}) as gateway:
        assert [device for device, _ in where(gateway, "auto", len(CHOSEN[chosen]))] == CHOSEN[chosen]


NOT_INSTALLED = """
import time
time.sleep(0.3)  # so that two models ask for it at once
raise ModuleNotFoundError("No module named 'pynvml'")
"""


@pytest.mark.parametrize("what", ["no module", "no driver", "no gpu"])
def test_machines_without_a_gpu(what: str, tmp_path: Path, repository: RepositoryBuilder) -> None:
    """Where there is no GPU, or no telling, KIND_GPU is refused with what is missing and KIND_AUTO means the CPU."""
    machine = Machine(tmp_path / "machine", [])
    if what == "no module":
        (tmp_path / "machine" / "pynvml.py").write_text(NOT_INSTALLED)
    if what == "no driver":
        machine.loses_its_driver()
    repository.add("auto", {"model.where": ""}, WHERE)
    repository.add("gpu", {"model.where": ""}, WHERE + "instance_group { kind: KIND_GPU }")
    with serving(repository.root, environment=machine.environment) as gateway:
        assert [device for device, _ in where(gateway, "auto", 1)] == ["cpu"]
        reason = index(gateway)["gpu/1"][1]
    assert (
        reason
        == "instance_group KIND_GPU: "
        + {
            "no module": "nvidia-ml-py is not installed: pip install 'tensorgate[gpu]'",
            "no driver": "there is no NVIDIA driver: Driver Not Loaded",
            "no gpu": "this server sees no GPU",
        }[what]
    )
