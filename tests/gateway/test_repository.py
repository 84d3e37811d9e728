"""What the gateway makes of model folders and their config.pbtxt, seen through the API."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from support import repository_cases as cases
from support.calls import index, infer, ready, refusal, request
from support.models import RepositoryBuilder, linear, onnx_identity, save_exported
from support.server import Gateway, serving

from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import model_config_pb2 as config_pb

EXPORTED = {"exported": "", "triton_torch_platform": 'platform: "pytorch_libtorch"'}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server over every good and bad model of this module."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("repository") / "models")
    for name, config in EXPORTED.items():
        save_exported(linear(), builder.add(name, config=config) / "1" / "model.pt2", torch.zeros(2, 4))
    for name, case in cases.GOOD.items():
        for version in case.versions:
            builder.add(name, case.files, case.config, version)
    for name, case in cases.BAD.items():
        builder.add(name, case.files, case.config)
    (builder.root / "empty").mkdir()
    (builder.root / ".hidden" / "1").mkdir(parents=True)
    (builder.root / "README.md").write_text("not a model")
    with serving(builder.root) as running:
        yield running


def config_of(gateway: Gateway, name: str) -> config_pb.ModelConfig:
    """What ModelConfig says."""
    return gateway.stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=60).config


def metadata_of(gateway: Gateway, name: str) -> pb.ModelMetadataResponse:
    """What ModelMetadata says."""
    return gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=60)


def tensors(rows: Iterable[pb.ModelMetadataResponse.TensorMetadata]) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each."""
    return [(row.name, row.datatype, list(row.shape)) for row in rows]


@pytest.mark.parametrize(
    ("model", "kind", "inputs", "outputs"),
    [
        ("onnx", ("onnxruntime_onnx", "onnxruntime", "model.onnx"), ("x", "FP32", [-1, 4]), ("y", "FP32", [-1, 4])),
        ("exported", ("pytorch_libtorch", "torch", "model.pt2"), ("input", "FP32", [-1, 4]), None),
        ("python", ("python", "python", "model.py"), ("text", "BYTES", [-1, 1]), ("length", "INT64", [-1, 1])),
    ],
)
def test_model_without_config_describes_itself(gateway, model, kind, inputs, outputs):
    """A model file alone is enough: metadata and configuration are complete without a config.pbtxt."""
    platform, backend, file = kind
    metadata, config = metadata_of(gateway, model), config_of(gateway, model)
    assert (metadata.name, metadata.platform, metadata.versions) == (model, platform, ["1"])
    assert tensors(metadata.inputs) == [inputs]
    if outputs:
        assert tensors(metadata.outputs) == [outputs]
    assert (config.name, config.backend, config.default_model_filename) == (model, backend, file)
    assert list(config.input[0].dims) == inputs[2][1:]
    assert config.version_policy.latest.num_versions == 1
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, config_pb.ModelInstanceGroup.KIND_CPU)
    ]


def test_exported_archive_knows_its_own_batch_limit(gateway):
    """A .pt2 file exported for at most 64 rows takes 64, whatever the default for models without a limit."""
    assert config_of(gateway, "exported").max_batch_size == 64
    answer = infer(gateway, "exported", np.ones((2, 4), np.float32), "input")
    np.testing.assert_allclose(answer, linear()(torch.ones(2, 4)).detach().numpy(), rtol=1e-5)


def test_config_narrows_what_the_model_takes(gateway):
    """A config.pbtxt may name a smaller batch and fixed sizes; requests beyond them are refused."""
    assert tensors(metadata_of(gateway, "narrowed").inputs) == [("x", "FP32", [-1, 4])]
    assert infer(gateway, "narrowed", np.ones((2, 4), np.float32), "x").shape == (2, 4)
    for shape in ((3, 4), (1, 5)):
        code, details = refusal(lambda shape=shape: infer(gateway, "narrowed", np.ones(shape, np.float32), "x"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "model 'narrowed'" in details


def test_outputs_alone_may_be_declared(gateway):
    """A config.pbtxt with outputs only is completed with the model's inputs."""
    config = config_of(gateway, "outputs_only")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("x", [-1, 4])]
    assert config.max_batch_size == 0


def test_explicit_zero_turns_batching_off(gateway):
    """`max_batch_size: 0` is not the same as leaving it out: the first dimension becomes an ordinary one."""
    assert config_of(gateway, "unbatched").max_batch_size == 0
    assert tensors(metadata_of(gateway, "unbatched").inputs) == [("x", "FP32", [-1, 4])]
    assert infer(gateway, "unbatched", np.ones((0, 4), np.float32), "x").shape == (0, 4)


def test_batch_size_in_a_string_is_not_a_statement(gateway):
    """A parameter whose text mentions max_batch_size does not switch batching off."""
    assert config_of(gateway, "mentions_batch").max_batch_size == 32


@pytest.mark.parametrize(
    ("model", "wire", "runtime"),
    [("reshape_scalar", (3, 1), [3]), ("reshape_open", (2, 6, 5), [2, 2, 5, 3]), ("reshape_both", (4, 4), [4, 2, 2])],
)
def test_reshape_translates_between_wire_and_model(gateway, model, wire, runtime):
    """Clients send the shape of `dims`, the model sees the shape of `reshape`, and answers come back as `dims`."""
    array = np.arange(np.prod(wire), dtype=np.float32).reshape(wire)
    response = gateway.stub.ModelInfer(request(model, {"x": array}), timeout=60)
    rows = zip(response.outputs, response.raw_output_contents, strict=True)
    outputs = {row.name: (list(row.shape), raw) for row, raw in rows}
    assert outputs["y"] == (list(wire), array.tobytes())
    assert np.frombuffer(outputs["seen"][1], np.int64)[: len(runtime)].tolist() == runtime


def test_optional_inputs_may_be_left_out(gateway):
    """An input marked `optional` may be missing; the model decides what that means."""
    x = np.float32([[2]])
    both = gateway.stub.ModelInfer(request("optional", {"x": x, "factor": np.float32([[5]])}), timeout=60)
    alone = gateway.stub.ModelInfer(request("optional", {"x": x}), timeout=60)
    assert [np.frombuffer(r.raw_output_contents[0], np.float32).item() for r in (both, alone)] == [10, 2]


@pytest.mark.parametrize(
    ("model", "name", "columns"),
    [
        ("triton_onnx_platform", "x", 4),
        ("triton_torch_platform", "input", 3),
        ("triton_identity", "INPUT0", 4),
        ("other_filename", "x", 4),
        ("only_filename", "x", 4),
    ],
)
def test_triton_spellings_are_understood(gateway, model, name, columns):
    """Platforms, backend aliases and file names of an existing Triton repository work as they are."""
    assert infer(gateway, model, name=name).shape == (1, columns)


@pytest.mark.parametrize(
    ("model", "versions"), [("policy_default", [3]), ("policy_latest", [2, 3]), ("policy_all", [1, 2, 3])]
)
def test_version_policy_chooses_versions(gateway, model, versions):
    """version_policy decides which version folders answer; a call without a version gets the newest of them."""
    assert [row for row in index(gateway) if row.startswith(f"{model}/")] == [f"{model}/{v}" for v in versions]
    assert metadata_of(gateway, model).versions == [str(version) for version in versions]
    assert gateway.stub.ModelInfer(request(model, {"INPUT0": np.ones((1, 4), np.float32)})).model_version == "3"
    for version in (1, 2, 3):
        assert ready(gateway, model, str(version)) == (version in versions)


def test_missing_specific_version_is_listed_beside_the_others(gateway):
    """A version that version_policy asks for and nobody delivered is shown with its reason; the others answer."""
    rows = index(gateway)
    assert rows["policy_specific/1"] == ("READY", "")
    assert rows["policy_specific/7"] == (
        "UNAVAILABLE",
        "version_policy asks for version 7, but there is no folder policy_specific/7",
    )
    assert infer(gateway, "policy_specific").shape == (1, 4)
    code, details = refusal(lambda: infer(gateway, "policy_specific", version="7"))
    assert (code, "version 7 failed to load" in details) == (grpc.StatusCode.UNAVAILABLE, True)


def test_instances_run_side_by_side(gateway):
    """instance_group count 2 means that two requests execute at the same time: each waits for the other here."""
    x = np.ones((1, 1), np.float32)
    first, second = (gateway.stub.ModelInfer.future(request("meeting", {"x": x}), timeout=60) for _ in range(2))
    assert {r.result().raw_output_contents[0] for r in (first, second)} == {np.float32(2).tobytes()}


def test_parameters_reach_the_model(gateway):
    """`parameters` of config.pbtxt are what the model's code reads."""
    assert infer(gateway, "parameters", np.ones((1, 1), np.float32), "x").tolist() == [[42]]


@pytest.mark.parametrize("name", cases.BAD)
def test_bad_model_is_listed_with_its_reason(gateway, name):
    """A model that cannot be served says why in RepositoryIndex, in words that tell what to write instead."""
    state, reason = next(row for key, row in index(gateway).items() if key.startswith(f"{name}/"))
    assert state == "UNAVAILABLE"
    assert cases.BAD[name].reason in reason
    assert str(Path.cwd()) not in reason
    assert "/pytest-" not in reason
    assert not ready(gateway, name)
    code, details = refusal(lambda: infer(gateway, name))
    assert (code, "failed to load" in details) == (grpc.StatusCode.UNAVAILABLE, True)


def test_index_lists_models_once_and_filters_ready_ones(gateway):
    """RepositoryIndex has every folder that is a model, and with `ready` only those that answer."""
    rows, usable = index(gateway), index(gateway, ready=True)
    assert rows["empty/"] == (
        "UNAVAILABLE",
        "no version folder: expected a number with the model in it, as empty/1/model.onnx",
    )
    names = {key.partition("/")[0] for key in rows}
    assert names == {"empty", *EXPORTED, *cases.GOOD, *cases.BAD}
    assert {key.partition("/")[0] for key in usable} == {*EXPORTED, *cases.GOOD}
    assert set(usable.values()) == {("READY", "")}


def test_bad_models_leave_a_clear_log_and_a_clean_exit(repository):
    """Beside broken models the server starts, logs one line for each without a traceback, and ends with 0."""
    repository.add("good", {"model.onnx": onnx_identity()})
    repository.add("corrupt", {"model.onnx": b"not a model"})
    repository.add("garbled", {"model.onnx": onnx_identity()}, config="max_batch_size: many")
    (repository.root / "empty").mkdir()
    with serving(repository.root) as gateway:
        assert infer(gateway, "good", name="x").tolist() == [[1, 1, 1, 1]]
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.wait() == 0
    log = gateway.server.log
    assert "1 model ready, 3 with errors: corrupt, empty, garbled" in log
    assert len([line for line in log.splitlines() if " ERROR " in line]) == 3
    assert "Traceback" not in log
