"""The backend `tensorrt` where there is no GPU: what it says, and that nothing else suffers. With one: tests/gpu."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest
from support.calls import ECHO, infer
from support.engines import perceptron, source
from support.models import RepositoryBuilder
from support.server import serving

from backends.base import LoadError
from backends.registry import Registry
from tensorgate_client.wire import inference_pb2 as pb

NAMES = ("tensorrt", "tensorrt_rtx")
NO_GPU = r"backend 'tensorrt' needs (pycuda|cuda\S*|an NVIDIA GPU and its driver)\b.*"


def _driver() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


without_a_gpu = pytest.mark.skipif(_driver(), reason="this machine has a GPU, with which nothing fails: see tests/gpu")


@pytest.fixture
def backend() -> Any:
    """The backend."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")
    registry = Registry()
    return registry.backend(registry.info("tensorrt"))


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has neither of the libraries is told the command that installs one."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)  # what an import sees where nothing is installed
    registry = Registry()
    info = registry.info("tensorrt")
    assert not info.installed
    with pytest.raises(LoadError) as caught:
        registry.backend(info)
    assert str(caught.value) == "backend 'tensorrt' is not installed: pip install 'tensorgate[tensorrt]'"


@pytest.mark.parametrize("module", ["pycuda", "pycuda.driver", "cuda.bindings"])
def test_without_pycuda(module: str, backend: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the library but not what drives the GPU is told the command that installs it."""
    monkeypatch.delitem(sys.modules, "backends.tensorrt_cuda", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LoadError, match=NO_GPU):
        load("model.onnx", perceptron(), backend="tensorrt", device="cuda:0")
    assert backend.obstacle(source(Path("m/1/model.onnx")), "cuda")


@without_a_gpu
@pytest.mark.parametrize("device", ["", "cuda", "cuda:0", "cuda:7"])
def test_without_a_gpu(device: str, load: Any) -> None:
    """On a machine without a GPU a model is refused in a line that says what is missing, before anything is built."""
    file = load.file("model.onnx", perceptron())
    with pytest.raises(LoadError, match=f"^{NO_GPU}$"):
        load.reload(file, backend="tensorrt", device=device)
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_on_the_cpu(backend: Any, load: Any) -> None:
    """An instance group on the CPU is refused: there is nothing that this backend could do there."""
    message = "backend 'tensorrt' runs on NVIDIA GPUs alone: say KIND_GPU"
    assert backend.obstacle(source(Path("m/1/model.onnx")), "cpu") == message
    with pytest.raises(LoadError, match=f"^{message}$"):
        load("model.onnx", perceptron(), backend="tensorrt", device="cpu")


@without_a_gpu
def test_a_plan_without_a_driver(tmp_path: Path, backend: Any) -> None:
    """An engine that the library cannot load gives the library's reason, here that there is no driver."""
    from backends.tensorrt_build import Recipe, build  # noqa: PLC0415  # after `backend` has seen that they import
    from backends.tensorrt_engine import open_engine  # noqa: PLC0415
    from backends.tensorrt_profile import Sizes  # noqa: PLC0415

    file = tmp_path / "model.onnx"
    file.write_bytes(perceptron())
    plan = build(file, Recipe(Sizes.of(source(file))), "model m/1")
    with pytest.raises(LoadError, match=r"^tensorrt_rtx \S+ does not load the engine on the GPU: .*cudaError 35"):
        open_engine(plan, "the GPU", ())


@pytest.mark.parametrize("content", [b"(no engine", b"", b"\0" * 4096], ids=["garbage", "empty", "zeros"])
def test_a_damaged_plan(content: bytes, backend: Any) -> None:
    """The owner of a damaged engine reads in a line what the library found wrong with it."""
    from backends.tensorrt_engine import open_engine  # noqa: PLC0415  # after `backend` has seen that it imports

    with pytest.raises(LoadError, match=r"^tensorrt_rtx \S+ does not load the engine on the GPU: .{20,}") as caught:
        open_engine(content, "the GPU", ())
    for unwanted in ("it does not say why", "\n", "Error Code", ".cpp"):
        assert unwanted not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tf32": "maybe"}, "parameter 'tf32': expected one of true, false"),
        ({"cuda_graphs": "2"}, "parameter 'cuda_graphs': expected one of true, false"),
        ({"max_shapes": "x"}, "parameter 'max_shapes': expected INPUT:SIZExSIZE"),
    ],
)
def test_wrong_parameters(parameters: dict[str, str], message: str, backend: Any, load: Any) -> None:
    """A parameter that makes no sense is refused with what would, whether or not there is a GPU."""
    with pytest.raises(LoadError, match=f"^{message}"):
        load("model.onnx", perceptron(), parameters, backend="tensorrt", device="")


def test_files_it_takes(backend: Any, load: Any) -> None:
    """Whoever names the backend without a file of its kind reads which there could be."""
    with pytest.raises(LoadError, match=r"needs a model\.plan or model\.onnx in the version folder"):
        load.reload(load.file("other", b"").with_name("missing"), backend="tensorrt")


@without_a_gpu
def test_in_a_server(repository: RepositoryBuilder) -> None:
    """A server without a GPU lists such models with the reason, and serves the others."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")
    repository.add("built", {"model.onnx": perceptron()}, 'backend: "tensorrt"')
    repository.add("triton", {"model.plan": b"an engine"}, 'platform: "tensorrt_plan" max_batch_size: 8')
    repository.add("found", {"model.plan": b"an engine"})
    repository.add("nothing", {"labels.txt": "a"}, 'backend: "tensorrt"')
    repository.add("echo", config=ECHO)
    with serving(repository.root) as gateway:
        assert infer(gateway, "echo").shape == (1, 4)
        index = gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        reasons = {model.name: model.reason for model in index}
    assert reasons.pop("echo") == ""
    assert reasons.pop("nothing") == "expected model.plan or model.onnx, found labels.txt"
    for reason in reasons.values():
        assert "backend 'tensorrt' needs" in reason
    assert len(reasons) == 3
