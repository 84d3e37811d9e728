"""Execution providers of ONNX Runtime: which one computes where, and what is said if it cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.models import onnx_identity

from backends.base import LoadError, ModelSource
from backends.registry import Registry

GPU = "CUDAExecutionProvider"
MISSING = r"this onnxruntime offers .*CPU; .*: pip install onnxruntime-gpu in the place of onnxruntime$"


@pytest.fixture
def without_gpu() -> None:
    """Tests of what an onnxruntime lacks need one that does."""
    if GPU in ort.get_available_providers():
        pytest.skip("the onnxruntime that is installed has CUDA")


@pytest.fixture
def pretended(without_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that says it has CUDA and then does not start it, as one whose libraries are missing."""
    offered = [GPU, *ort.get_available_providers()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)


def obstacle(file: Path, kind: str, parameters: dict[str, str]) -> str:
    """Why the model cannot be loaded on a kind of device."""
    registry = Registry()
    return registry.obstacle(
        registry.info("onnxruntime"), ModelSource("m", 1, file.parent, file, parameters=parameters), kind
    )


@pytest.mark.parametrize("providers", ["CUDA, CPU", "TensorRT,CUDA,CPU", "CPU, CUDA"])
def test_gpus_where_there_are_some(providers: str, load: Any, execute: Any) -> None:
    """A model that names providers for GPUs and for the CPU is served on the CPU where the instance group says so."""
    model = load("model.onnx", onnx_identity(), {"execution_providers": providers})
    assert execute(model, x=np.ones((1, 4), np.float32))["y"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("providers", "kind", "reason"),
    [
        ("", "cpu", ""),
        ("", "cuda", MISSING),
        ("CUDA", "cuda", MISSING),
        ("CUDA, CPU", "cuda", MISSING),
        ("CUDA, CPU", "cpu", ""),
        ("CPU", "cuda", "^parameter 'execution_providers' is 'CPU', which has none for a GPU$"),
        ("TensorRT, CUDA", "cpu", "^parameter 'execution_providers' is 'TensorRT, CUDA', which has none for the CPU$"),
    ],
)
@pytest.mark.usefixtures("without_gpu")
def test_what_stands_in_the_way(providers: str, kind: str, reason: str, load: Any) -> None:
    """An instance group and providers that cannot go together are told apart from a runtime that lacks one."""
    parameters = {"execution_providers": providers} if providers else {}
    file = load.file("model.onnx", onnx_identity())
    assert re.search(reason or "^$", obstacle(file, kind, parameters))
    device = {"cpu": "cpu", "cuda": "cuda:0"}[kind]
    if not reason:
        load.reload(file, parameters, device=device)
        return
    with pytest.raises(LoadError, match=reason):
        load.reload(file, parameters, device=device)


@pytest.mark.parametrize("option", ["cuda.device_id", "cuda.enable_cuda_graph", "tensorrt.trt_cuda_graph_enable"])
def test_options_that_are_the_gateways(option: str, load: Any) -> None:
    """A provider's option that the instance group decides, or that the gateway would break, is refused."""
    with pytest.raises(LoadError, match=f"^parameter '{option}': leave it out, "):
        load("model.onnx", onnx_identity(), {option: "1"})


def test_options_of_providers_are_known(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An option of a listed provider is no stray parameter, whether or not there is a GPU to heed it."""
    load("model.onnx", onnx_identity(), {"execution_providers": "CUDA, CPU", "cuda.gpu_mem_limit": "1000000"})
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(("providers", "device"), [("", "cuda:0"), ("CUDA, CPU", "cuda:0"), ("CUDA", "")])
def test_a_provider_that_does_not_start(providers: str, device: str, load: Any) -> None:
    """A model that was to be on a GPU is never on the CPU in secret: it does not load, and says what to install."""
    with pytest.raises(LoadError, match=r"^cuda did not start on GPU 0, the log has the reason; .*\[cuda,cudnn\]'$"):
        load("model.onnx", onnx_identity(), {"execution_providers": providers} if providers else {}, device=device)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("pretended")
def test_a_provider_that_may_fail(load: Any, execute: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where the owner leaves the choice to the runtime and lists the CPU as well, it serves, and the log says where."""
    model = load("model.onnx", onnx_identity(), {"execution_providers": "CUDA, CPU"}, device="")
    assert execute(model, x=np.ones((1, 4), np.float32))["y"].tolist() == [[1, 1, 1, 1]]
    (record,) = caplog.records
    assert record.getMessage().startswith("model m/1: it runs on the CPU: cuda did not start on GPU 0, the log has")
