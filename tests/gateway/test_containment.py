"""Nothing outside the model repository can be reached, by name or by link."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from support.calls import ECHO, index, infer, load, ready, refusal, request, unload
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, serving

from tensorgate_client.wire import inference_pb2 as pb

TRAP = "from pathlib import Path\nPath(__file__).with_name('was_read').touch()\n"

NAMES = [
    "..",
    ".",
    "../outside",
    "../models/good",
    "good/../good",
    "good/1",
    "./good",
    "..\\outside",
    "good\x00",
    "good\n",
    "\x1b[2Jgood",
    ".hidden",
    "x" * 256,
    "ü" * 200,
    "x" * 1_000_000,
]

CALLS: dict[str, Callable[[Gateway, str], object]] = {
    "infer": infer,
    "metadata": lambda gateway, name: gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=60),
    "config": lambda gateway, name: gateway.stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=60),
    "load": load,
    "unload": unload,
}


def outside_model(folder: Path) -> Path:
    """A model outside the repository that leaves a trace when anyone loads it."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(TRAP)
    (folder / "config.pbtxt").write_text(ECHO)
    (folder / "data").write_bytes(bytes(16))
    return folder


def lead_out(builder: RepositoryBuilder, outside: Path) -> None:
    """Models that reach for `outside` in every way that a link offers."""
    (builder.root / "model_folder").symlink_to(outside)
    builder.add("version_folder", config=ECHO)
    (builder.root / "version_folder" / "2").symlink_to(outside / "1")
    (builder.add("model_file") / "1" / "model.py").symlink_to(outside / "1" / "model.py")
    (builder.add("relative") / "1" / "model.py").symlink_to("../../../outside/1/model.py")
    (builder.add("config_file") / "config.pbtxt").symlink_to(outside / "config.pbtxt")
    (builder.add("hidden_file", config=ECHO) / "1" / ".data").symlink_to(outside / "data")
    warmup = 'model_warmup { name: "w" batch_size: 1 inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [4] '
    folder = builder.add("warmup_file", config=ECHO + warmup + 'input_data_file: "data" } } }')
    (folder / "warmup").mkdir()
    (folder / "warmup" / "data").symlink_to(outside / "data")
    folder = builder.add("linked_folder", config=ECHO)
    (folder / ".shared").mkdir()
    (folder / ".shared" / "file").symlink_to(outside / "data")
    (folder / "1" / "assets").symlink_to(folder / ".shared")
    (builder.add("two_steps", config=ECHO) / "1" / "model.py").symlink_to(
        builder.root / "model_file" / "1" / "model.py"
    )


def lead_nowhere(builder: RepositoryBuilder) -> None:
    """Models with links in circles and to nothing."""
    (builder.root / "loop").symlink_to("loop")
    (builder.root / "dangling").symlink_to("nothing")
    (builder.add("file_loop") / "1" / "model.py").symlink_to("model.py")


def stay_inside(builder: RepositoryBuilder) -> None:
    """Models whose links are all right."""
    builder.add("good", {"model.onnx": onnx_identity()})
    (builder.root / "alias").symlink_to("good")
    folder = builder.add("aliased_version", {"model.onnx": onnx_identity()})
    (folder / "2").symlink_to("1")
    folder = builder.add("circle", config=ECHO)
    (folder / "1" / "self").symlink_to(folder)
    (folder / ".#config.pbtxt").symlink_to("user@host.1234")  # an editor's lock
    mounted = builder.root / "configmap"  # as Kubernetes mounts a ConfigMap
    (mounted / "..2026_01_01").mkdir(parents=True)
    (mounted / "..2026_01_01" / "config.pbtxt").write_text('backend: "onnxruntime" max_batch_size: 5')
    (mounted / "..2026_01_01" / "model.onnx").write_bytes(onnx_identity())
    (mounted / "..data").symlink_to("..2026_01_01")
    (mounted / "config.pbtxt").symlink_to("..data/config.pbtxt")
    (mounted / "1").mkdir()
    (mounted / "1" / "model.onnx").symlink_to("../..data/model.onnx")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository; the folder `outside` lies beside it."""
    return tmp_path_factory.mktemp("containment") / "models"


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Gateway]:
    """A server in explicit mode over links of all kinds, everything loaded; nothing outside may have been read."""
    outside = outside_model(root.parent / "outside")
    builder = RepositoryBuilder(root)
    stay_inside(builder)
    lead_out(builder, outside)
    lead_nowhere(builder)
    with serving(builder.root, "--model-control", "explicit", "--load-model", "*") as running:
        yield running
        running.server.signal(signal.SIGTERM)
        assert running.server.wait() == 0
    assert not (outside / "1" / "was_read").exists()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
@pytest.mark.parametrize("call", CALLS)
def test_names_that_are_no_folder_are_refused(gateway, call, name):
    """A name that is a path, hidden, unprintable or over-long gets a short, plain refusal from every RPC."""
    code, details = refusal(lambda: CALLS[call](gateway, name))
    assert code is (grpc.StatusCode.INVALID_ARGUMENT if call == "load" else grpc.StatusCode.NOT_FOUND)
    assert "folder in the model repository" in details or "Request for unknown model" in details
    assert len(details) < 4000
    assert not ready(gateway, name)


@pytest.mark.parametrize("version", ["../1", "1/../1", "-1", "+1", "1.0", "٣", " 1", "1" * 100_000])
def test_versions_that_are_no_number_are_refused(gateway, version):
    """A version is a number, never a path: anything else is refused, and the server goes on."""
    code, details = refusal(lambda: infer(gateway, "good", name="x", version=version))
    assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert len(details) < 4000
    assert infer(gateway, "good", name="x", version="1").shape == (1, 4)


@pytest.mark.parametrize(
    ("model", "link"),
    [
        ("model_folder", "model_folder"),
        ("version_folder", "2"),
        ("model_file", "model.py"),
        ("relative", "model.py"),
        ("config_file", "config.pbtxt"),
        ("hidden_file", ".data"),
        ("warmup_file", "data"),
        ("linked_folder", "file"),
        ("two_steps", "model.py"),
    ],
)
def test_links_that_lead_out_are_not_followed(gateway, model, link):
    """A model with a link out of the repository is not loaded, says which link it is, and not where it leads."""
    state, reason = next(row for key, row in index(gateway).items() if key.startswith(f"{model}/"))
    assert (state, reason) == ("UNAVAILABLE", f"{link}: the link leads out of the model repository")
    code, details = refusal(lambda: load(gateway, model))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == f"failed to load '{model}': {reason}"


@pytest.mark.parametrize(("model", "link"), [("loop", "loop"), ("dangling", "dangling"), ("file_loop", "model.py")])
def test_links_that_lead_nowhere_are_named(gateway, model, link):
    """A link to itself or to nothing stops its own model only, and is named as the reason."""
    state, reason = next(row for key, row in index(gateway).items() if key.startswith(f"{model}/"))
    assert (state, reason) == ("UNAVAILABLE", f"{link}: the link leads nowhere")


@pytest.mark.parametrize(
    ("model", "version", "name"),
    [
        ("alias", "1", "x"),
        ("aliased_version", "2", "x"),
        ("circle", "1", "INPUT0"),
        ("configmap", "1", "x"),
    ],
)
def test_links_inside_the_repository_work(gateway, model, version, name):
    """Links that stay inside serve as if they were folders, a Kubernetes ConfigMap's layout included."""
    response = gateway.stub.ModelInfer(request(model, {name: np.ones((1, 4), np.float32)}), timeout=60)
    assert (response.model_name, response.model_version) == (model, version)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"backend": "python", "default_model_filename": "../../../outside/1/model.py"}, "version 1: expected ../"),
        ({"backend": "python", "default_model_filename": "{outside}"}, "version 1: expected "),
        ({"backend": "python", "default_model_filename": ".."}, "version 1: expected .."),
        ({"backend": "echo", "model_warmup": "../../../outside/data"}, "expected the name of a file in warmup/"),
        ({"backend": "echo", "model_warmup": "{outside}"}, "expected the name of a file in warmup/"),
        ({"backend": "echo", "model_warmup": ".."}, "expected the name of a file in warmup/"),
    ],
)
def test_file_names_in_a_configuration_are_plain(gateway, tmp_path, config, reason):
    """default_model_filename and input_data_file cannot be paths, even where a client sends the configuration."""
    config = {key: value.replace("{outside}", str(tmp_path)) for key, value in config.items()}
    if file := config.pop("model_warmup", None):
        data = {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": file}
        config["model_warmup"] = [{"name": "w", "batch_size": 1, "inputs": {"INPUT0": data}}]
    code, details = refusal(lambda: load(gateway, "good", config))
    assert (code, reason in details) == (grpc.StatusCode.FAILED_PRECONDITION, True), details
    assert infer(gateway, "good", name="x").shape == (1, 4)


@pytest.mark.parametrize("location", ["weights", "../../../outside/data", "/etc/passwd"])
def test_weights_of_an_onnx_model_stay_inside(gateway, root, location):
    """External weights of an ONNX file are read from beside it and from nowhere else."""
    name = f"external_{location.count('/')}"
    RepositoryBuilder(root).add(name, {"model.onnx": onnx_with_weights_in(location), "weights": bytes(16)})
    if location == "weights":
        load(gateway, name)
        assert infer(gateway, name, name="x").tolist() == [[1, 1, 1, 1]]
        return
    code, details = refusal(lambda: load(gateway, name))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(root.parent) not in details


def onnx_with_weights_in(location: str) -> bytes:
    """A model that adds four numbers from another file to its input."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
