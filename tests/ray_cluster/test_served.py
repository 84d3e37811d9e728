"""Models whose instances are actors on two nodes: for callers, all is as with threads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from support import faults
from support.calls import ONES, eventually, first_output, index, infer, load, ready, refusal, request, unload
from support.concurrent import parameter
from support.metrics import of_model, scrape
from support.models import ONNX_TYPES, RepositoryBuilder, onnx_identity
from support.otlp import Collector, collecting
from support.server import Gateway, serving

from tensorgate_client import decode_infer_response
from tensorgate_client.tensors import DTYPES
from tensorgate_client.wire import inference_pb2 as pb

SLIM = parameter("ray_num_cpus", 0)

PLACE = """
import os, time
import numpy as np
import ray

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("node", object, (-1, 1)), ("gpus", object, (-1, 1))]

    def execute(self, inputs):
        time.sleep(0.3)
        told = ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
        node, gpus = (np.array([[text.encode()]] * len(inputs["x"]), object) for text in told)
        return {"node": node, "gpus": gpus}
"""
"""Says where it is."""

CRASHING = """
import os
import numpy as np

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        if (inputs["x"] == 666).any():
            os._exit(1)
        return {"y": inputs["x"] * 2}
"""
"""Ends its process for a request of 666."""

FILES = """
from pathlib import Path
import numpy as np
from . import helper

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("files", object, (-1, 1))]

    def load(self, source):
        above = source.directory.parent
        self.files = " ".join(sorted(str(path.relative_to(above)) for path in above.rglob("[!._]*") if path.is_file()))
        link, large = source.directory / "link.txt", source.directory / "large"
        self.files += f" {helper.WORD} {link.read_text()} {large.stat().st_size}"

    def execute(self, inputs):
        return {"files": np.array([[self.files.encode()]] * len(inputs["x"]), object)}
"""
"""Says which files came along, and what is in them."""

VERSIONED = """
class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        return {"y": inputs["x"] * FACTOR}
"""

WARMED = f"""
    {SLIM}
    instance_group {{ count: 2 }}
    model_warmup {{
        name: "zeros" batch_size: 1 inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: 4 zero_data: true }} }}
    }}
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """What gateways send their spans to."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def two_nodes(nodes: Any) -> list[str]:
    """Two nodes, of which the second has GPUs, as far as it knows."""
    return [nodes.add(4), nodes.add(4, 2)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> RepositoryBuilder:
    """A repository of models that mostly share a processor."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("ray") / "models")
    for datatype in ONNX_TYPES:
        builder.add(datatype, {"model.onnx": onnx_identity(datatype)}, SLIM)
    builder.add("place", {"model.py": PLACE}, "instance_group { count: 2 }")
    builder.add("gpu", {"model.py": PLACE}, "instance_group { kind: KIND_MODEL }" + parameter("ray_num_gpus", 1))
    builder.add("where", {"model.where": ""}, 'backend: "where" instance_group { kind: KIND_GPU }')
    builder.add(
        "half", {"model.where": ""}, "instance_group { kind: KIND_GPU count: 2 }" + parameter("ray_num_gpus", 0.5)
    )
    builder.add("chosen", {"model.where": ""}, "instance_group { kind: KIND_GPU gpus: [ 0 ] }")
    builder.add("unable", {"model.py": PLACE}, "instance_group { kind: KIND_GPU }")
    builder.add("amount", {"model.py": PLACE}, parameter("ray_num_cpus", "1.5"))
    builder.add("crashing", {"model.py": CRASHING}, "instance_group { count: 2 }" + SLIM)
    builder.add("contrary", {"model.py": PLACE}, 'input { name: "z" data_type: TYPE_FP32 dims: 4 }')
    builder.add("broken", {"model.py": "import no_such_module\n"})
    folder = builder.add("files", {"model.py": FILES, "helper.py": "WORD = 'help'\n", "large": bytes(65 << 20)}, SLIM)
    builder.add("files", {"model.py": "not this one"}, version=3)
    (folder / "config.pbtxt").write_text(SLIM + "version_policy { specific { versions: [ 1 ] } }")
    (folder / "shared.txt").write_text("shared")
    (folder / "1" / "link.txt").symlink_to(folder / "shared.txt")
    (folder / "1" / "below").mkdir()
    (folder / "1" / "below" / "round").symlink_to(folder / "1")
    (folder / "1" / "below" / "deep.txt").write_text("deep")
    builder.add("versioned", {"model.py": VERSIONED.replace("FACTOR", "1")}, WARMED)
    return builder


@pytest.fixture(scope="module")
def gateway(nodes: Any, two_nodes: list[str], repository: RepositoryBuilder, collector: Collector) -> Iterator[Gateway]:
    """A gateway that has loaded nothing yet."""
    environment = {**nodes.environment, **collector.environment()}
    flags = ("--engine", "ray", "--ray-address", nodes.address, "--model-control", "explicit", "--trace-rate", "1")
    with serving(repository.root, *flags, environment=environment) as gateway:
        yield gateway


@pytest.fixture
def loaded(gateway: Gateway) -> Iterator[Any]:
    """Loads models, and unloads them afterwards."""
    names = []

    def one(name: str) -> Gateway:
        names.append(name)
        load(gateway, name)
        return gateway

    yield one
    for name in names:
        unload(gateway, name)


def located(gateway: Gateway, model: str, calls: int = 1) -> list[dict[str, str]]:
    """What calls at the same time are told of where they were."""
    futures = [gateway.stub.ModelInfer.future(request(model, {"x": ONES}), timeout=60) for _ in range(calls)]
    answers = [decode_infer_response(future.result()) for future in futures]
    return [{name: array[0, 0].decode() for name, array in answer.items()} for answer in answers]


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_tensors_come_back_as_they_were(loaded: Any, datatype: str) -> None:
    """Tensors of every datatype reach an actor and come back unchanged."""
    dtype = DTYPES[datatype]
    array = np.arange(8).reshape(2, 4).astype(dtype if not dtype.hasobject else np.int64)
    if dtype.hasobject:
        array = np.array([[b"", b"\x00", "grün".encode(), b"y" * 200_000]] * 2, object)
    assert np.array_equal(infer(loaded(datatype), datatype, array, "x"), array)


def test_large_tensors_come_back_as_they_were(loaded: Any) -> None:
    """So do tensors of 16 MB, which travel by shared memory."""
    array = np.random.default_rng(0).random((1_000_000, 4), np.float32)
    gateway = loaded("FP32")
    load(gateway, "FP32", {"max_batch_size": 1_000_000})
    assert np.array_equal(infer(gateway, "FP32", array, "x"), array)


def test_instances_are_on_both_nodes(loaded: Any, nodes: Any, two_nodes: list[str], collector: Collector) -> None:
    """Two instances are on two nodes, busy at the same time; traces say where, and metrics that both are there."""
    gateway = loaded("place")
    assert nodes.free() == (6, 2)
    found = {answer["node"] for answer in located(gateway, "place", 2)}
    assert found == set(two_nodes)
    spans = collector.wait("batch", 2, lambda span: span.attributes["tensorgate.model.name"] == "place")
    told = " ".join(span.attributes["tensorgate.instance"] for span in spans)
    assert all(f"(node {node[:8]})" in told for node in two_nodes)
    samples = scrape(gateway)
    for name in ("tensorgate_instances", "tensorgate_instances_available"):
        assert of_model(samples, name, "place")[""] == 2


def test_unloading_ends_actors(gateway: Gateway, nodes: Any) -> None:
    """What a model had of the cluster is free again when it is unloaded."""
    load(gateway, "place")
    assert nodes.free() == (6, 2)
    unload(gateway, "place")
    eventually(lambda: nodes.free() == (8, 2))


def test_gpus_are_chosen_by_the_cluster(loaded: Any, nodes: Any) -> None:
    """An instance on a GPU has one of the cluster's for itself, or a part of one, and loads its model there."""
    gateway = loaded("where")
    assert (
        decode_infer_response(gateway.stub.ModelInfer(request("where", {"x": ONES[:, :1]})))["where"][0, 0]
        == b"cuda:0 0"
    )
    assert located(loaded("gpu"), "gpu")[0]["gpus"] in ("0", "1")
    assert nodes.free()[1] == 0
    unload(gateway, "gpu")
    loaded("half")
    eventually(lambda: nodes.free()[1] == 0)


REFUSED = {
    "chosen": "instance_group gpus [0]: with --engine ray the cluster chooses GPUs: say KIND_GPU and leave gpus out",
    "unable": "backend 'python' uses no GPU: say KIND_CPU",
    "amount": "parameter 'ray_num_cpus': expected a number from 0, above 1 a whole one, as '0.5' or '2', got '1.5'",
    "contrary": "config.pbtxt: the model has no input 'z': expected 'x'",
    "broken": "model.py line 1 does not import: ModuleNotFoundError: No module named 'no_such_module'",
}


@pytest.mark.parametrize("model", REFUSED)
def test_what_cannot_be_had_is_refused(gateway: Gateway, nodes: Any, model: str) -> None:
    """A model that cannot load says why, as with threads, and leaves nothing in the cluster."""
    code, details = refusal(lambda: load(gateway, model))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details.endswith(REFUSED[model])
    eventually(lambda: nodes.free() == (8, 2))


def test_who_waits_for_room_is_told_so(gateway: Gateway) -> None:
    """A model that is too large for the cluster at the moment waits for room, and the log says what it lacks."""
    config = {"parameters": {"ray_num_cpus": {"string_value": "5"}}}
    with pytest.raises(grpc.RpcError):
        gateway.stub.RepositoryModelLoad(request_load("place", config), timeout=1)
    gateway.server.wait_for_log(r"no node of the cluster has 5 CPU, 0 GPU free for place/1#0; .* waiting for one")
    eventually(lambda: index(gateway)["place/1"][0] == "UNAVAILABLE", timeout=90)
    assert "no node of the cluster has 5 CPU" in index(gateway)["place/1"][1]


def request_load(model: str, config: object) -> pb.RepositoryModelLoadRequest:
    """To load a model by a configuration."""
    message = pb.RepositoryModelLoadRequest(model_name=model)
    message.parameters["config"].string_param = json.dumps(config)
    return message


def test_a_version_has_its_files(loaded: Any) -> None:
    """A version finds its files and those beside it on its node, links followed, and no other version's."""
    gateway = loaded("files")
    message = request("files", {"x": ONES})
    files = first_output(gateway.stub.ModelInfer(message, timeout=60))[0, 0].decode().split()
    expected = ["1/below/deep.txt", "1/helper.py", "1/large", "1/link.txt", "1/model.py", "config.pbtxt", "shared.txt"]
    assert files == [*expected, "help", "shared", str(65 << 20)]


def test_a_process_that_ends_takes_nobody_along(loaded: Any) -> None:
    """A request that ends its process fails, those in its batch and after it do not, and the process comes back."""
    gateway = loaded("crashing")
    fatal = ONES * 666
    assert refusal(lambda: infer(gateway, "crashing", fatal, "x"))[0] is grpc.StatusCode.INTERNAL
    futures = [
        gateway.stub.ModelInfer.future(request("crashing", {"x": fatal if i == 9 else ONES * i}), timeout=120)
        for i in range(20)
    ]
    outcomes = [
        refusal(future.result)[0] if i == 9 else first_output(future.result()) for i, future in enumerate(futures)
    ]
    assert outcomes.pop(9) is grpc.StatusCode.INTERNAL
    assert np.array_equal(np.concatenate(outcomes)[:, 0], [i * 2 for i in range(20) if i != 9])
    eventually(lambda: of_model(scrape(gateway), "tensorgate_instances_available", "crashing")[""] == 2)
    assert ready(gateway, "crashing")


def test_a_reload_drops_nothing(loaded: Any, repository: RepositoryBuilder) -> None:
    """While a version's successor loads and takes over, each request is answered by one or the other."""
    gateway = loaded("versioned")
    repository.add("versioned", {"model.py": VERSIONED.replace("FACTOR", "2")}, WARMED)
    loading = gateway.stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="versioned"), timeout=60)
    factors = []
    while not loading.done():
        factors.append(float(infer(gateway, "versioned", ONES, "x")[0, 0]))
    loading.result()
    factors.append(float(infer(gateway, "versioned", ONES, "x")[0, 0]))
    assert factors == sorted(factors)
    assert set(factors) == {1, 2}


def test_mistakes_are_answered_as_with_threads(nodes: Any, two_nodes: list[str], tmp_path_factory: Any) -> None:
    """Whatever a model or a caller gets wrong, code and message are those of a gateway with its models in itself."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("faults") / "models")
    for name, body in (*faults.BODIES.items(), ("exits", "__import__('sys').exit(3)")):
        builder.add(name, {"model.py": faults.PYTHON_MODEL.replace("BODY", body)}, SLIM)
    told = []
    for flags in ((), ("--engine", "ray", "--ray-address", nodes.address)):
        with serving(builder.root, *flags, environment=nodes.environment) as gateway:
            calls = [(name, array) for name in sorted(faults.BODIES) for array in (ONES, ONES.astype(np.int32))]
            calls.append(("exits", ONES))
            told.append(
                [refusal(lambda name=name, array=array: infer(gateway, name, array, "x")) for name, array in calls]
            )
            assert f"invalid literal for int() with base 10: '{faults.CONFIDENTIAL}'" in gateway.server.log
    with_threads, with_ray = ([(code, re.sub("id [0-9a-f]{12}", "id", text)) for code, text in each] for each in told)
    assert with_ray == with_threads
