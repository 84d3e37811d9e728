"""tritonclient.grpc, unchanged and in its own process, against a running gateway."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import RepositoryBuilder, linear
from support.server import Gateway, serving
from support.zoo import add_identities, add_linears, onnx_classifier, sample

from tensorgate_client.tensors import DTYPES, TYPED_FIELDS

pytestmark = pytest.mark.timeout(120)
ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
SWITCH = " without --allow-shared-memory"
UNIMPLEMENTED = {
    **{"shm": f"SystemSharedMemoryStatus{SWITCH}", "register_shm": f"SystemSharedMemoryRegister{SWITCH}"},
    **{"unregister_shm": f"SystemSharedMemoryUnregister{SWITCH}", "cuda": "CudaSharedMemoryStatus"},
    **{"register_cuda": "CudaSharedMemoryRegister", "unregister_cuda": "CudaSharedMemoryUnregister"},
}


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server with a model for every datatype, a classifier and a linear layer in torch's formats."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    add_identities(repository)
    add_linears(repository)
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    repository.add("slow", config='backend: "echo" parameters { key: "delay_ms" value { string_value: "2000" } }')
    with serving(repository.root) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def survey(gateway: Gateway, tritonclient: Any) -> dict[str, Any]:
    """What tritonclient learns about the server."""
    return tritonclient("survey.py", gateway.address, "classifier")


@pytest.fixture
def infer(gateway: Gateway, tritonclient: Any, tmp_path: Path) -> Any:
    """Sends {model: (input, datatype, array)} in one of tritonclient's ways; {model: (id, outputs)}."""

    def send(
        way: str, requests: dict[str, tuple[str, str, np.ndarray]]
    ) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
        (tmp_path / "requests").write_bytes(pickle.dumps(requests))
        tritonclient("infer.py", gateway.address, way, tmp_path / "requests", tmp_path / "answers")
        return pickle.loads((tmp_path / "answers").read_bytes())  # noqa: S301 - our own script's

    return send


def test_health_is_told(survey: dict[str, Any]) -> None:
    """Probes through tritonclient tell a live server and ready models from unknown ones, without an error."""
    assert [survey[name] for name in ("live", "ready", "model_ready", "version_ready")] == [True] * 4
    assert [survey[name] for name in ("other_version_ready", "unknown_ready")] == [False, False]


def test_metadata_is_true(survey: dict[str, Any]) -> None:
    """A caller reads which extensions work, and names, datatypes and shapes of a model's tensors."""
    assert survey["server"]["name"] == "tensorgate"
    assert sorted(survey["server"]["extensions"]) == [
        "binary_tensor_data",
        "logging",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
        "trace",
    ]
    assert survey["metadata"] == {
        "name": "classifier",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": ["-1", "3"]},
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "3"]},
        ],
    }


def test_configuration_is_complete(survey: dict[str, Any]) -> None:
    """Tools that read a model's configuration get a whole one, though nobody wrote a config.pbtxt."""
    config = survey["config"]["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("classifier", "onnxruntime", 32)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert [output["name"] for output in config["output"]] == ["logits", "probabilities"]


def test_every_model_is_listed(survey: dict[str, Any]) -> None:
    """The repository index names every model with its version and state, and there are statistics of each."""
    rows = {row["name"]: (row["version"], row["state"]) for row in survey["index"]["models"]}
    expected = {"classifier", "slow", "linear_pt", "linear_pt2", *(f"identity_{datatype}" for datatype in DTYPES)}
    assert rows == dict.fromkeys(expected, ("1", "READY"))
    counted = {row["name"]: row["version"] for row in survey["statistics"]["model_stats"]}
    assert counted == dict.fromkeys(expected, "1")


@pytest.mark.parametrize("call", ["unknown_metadata", "unknown_config", "unknown_statistics"])
def test_unknown_models_are_not_found(survey: dict[str, Any], call: str) -> None:
    """Existing programs recognise an unknown model by status and phrase."""
    assert survey[call] == {
        "status": "StatusCode.NOT_FOUND",
        "message": "Request for unknown model: 'nobody' is not found",
    }


@pytest.mark.parametrize("call", ["load", "unload"])
def test_control_needs_explicit_mode(survey: dict[str, Any], call: str) -> None:
    """Loading by RPC on a server that does not allow it says how to allow it."""
    assert survey[call] == {
        "status": "StatusCode.FAILED_PRECONDITION",
        "message": "loading and unloading by RPC is off: start the server with --model-control explicit",
    }


def test_a_time_limit_is_kept(survey: dict[str, Any]) -> None:
    """A caller with a time limit gets an error when it is over, not a late answer."""
    assert survey["deadline"] == {"status": "StatusCode.DEADLINE_EXCEEDED", "message": "Deadline Exceeded"}


def test_trace_settings_are_read_and_changed(survey: dict[str, Any]) -> None:
    """A script for Triton's trace settings does its work here, too, for one model and back, and is told what is not."""

    def told(answer: dict[str, Any]) -> dict[str, str]:
        return {name: setting["value"][0] for name, setting in answer["settings"].items()}

    off = {"trace_level": "OFF", "trace_rate": "1", "trace_count": "-1", "trace_mode": "opentelemetry"}
    assert told(survey["trace"]) == off
    assert told(survey["set_trace"]) == {**off, "trace_level": "TIMESTAMPS", "trace_rate": "1000", "trace_count": "5"}
    assert told(survey["clear_trace"]) == off
    assert survey["trace_file"]["status"] == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("call", UNIMPLEMENTED)
def test_what_is_missing_is_unimplemented(survey: dict[str, Any], call: str) -> None:
    """An RPC that the server lacks is answered at once, and by name, so that tools can do without it."""
    assert survey[call] == {
        "status": "StatusCode.UNIMPLEMENTED",
        "message": f"this server does not offer {UNIMPLEMENTED[call]}",
    }


@pytest.mark.parametrize("way", ["sync", "async", "asyncio", "gzip", "deflate", "typed"])
def test_every_datatype_comes_back(infer: Any, way: str) -> None:
    """Tensors of all datatypes pass unchanged through a model, and the request id is echoed, however they are sent."""
    datatypes = [datatype for datatype in DTYPES if way != "typed" or datatype in TYPED_FIELDS]
    answers = infer(way, {f"identity_{datatype}": ("x", datatype, sample(datatype)) for datatype in datatypes})
    assert len(answers) == len(datatypes)
    for datatype in datatypes:
        request_id, outputs = answers[f"identity_{datatype}"]
        sent, received = sample(datatype), outputs["y"]
        assert request_id == f"identity_{datatype}"
        assert received.shape == sent.shape
        assert received.dtype == sent.dtype
        if datatype == "BYTES":
            assert received.tolist() == sent.tolist()
        else:
            assert received.tobytes() == sent.tobytes()


def test_onnx_outputs_are_the_runtimes_own(infer: Any) -> None:
    """A model gives the very numbers that ONNX Runtime gives without a server, to the last bit."""
    _, outputs = infer("sync", {"classifier": ("x", "FP32", ROWS)})["classifier"]
    logits, probabilities = onnxruntime.InferenceSession(onnx_classifier()).run(None, {"x": ROWS})
    assert outputs["logits"].tobytes() == logits.tobytes()
    assert outputs["probabilities"].tobytes() == probabilities.tobytes()


def test_torch_outputs_are_torchs_own(infer: Any) -> None:
    """A torch model gives torch's own numbers, whichever format it was saved in."""
    answers = infer("sync", {"linear_pt2": ("input", "FP32", ROWS), "linear_pt": ("x", "FP32", ROWS)})
    with torch.inference_mode():
        expected = linear()(torch.from_numpy(ROWS)).numpy()
    for _, outputs in answers.values():
        (received,) = outputs.values()
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_only_requested_outputs_come_back(infer: Any) -> None:
    """A caller who names one output gets that one, with the parameters that Triton's clients send along."""
    request_id, outputs = infer("named", {"classifier": ("x", "FP32", ROWS)})["classifier"]
    assert request_id == "classifier"
    assert outputs.keys() == {"probabilities"}
