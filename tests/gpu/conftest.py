"""What tests on a GPU need. Each of them is marked `gpu`; without a GPU they are skipped and say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import loading
from support.engines import perceptron, source
from support.loading import Loader

from backends.base import LoadError
from backends.registry import Registry
from gateway.gpus import NoGpus, visible


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The first GPU."""
    try:
        from backends import tensorrt_cuda  # noqa: PLC0415  # needs a driver

        return tensorrt_cuda.gpu(0)
    except (ImportError, LoadError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def torch_gpu() -> str:
    """The first GPU by PyTorch's name."""
    import torch  # noqa: PLC0415  # takes seconds

    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU" if torch.version.cuda else "this PyTorch was built without CUDA")
    return "cuda:0"


@pytest.fixture(scope="session")
def onnx_gpu() -> str:
    """The first GPU, once it is known that ONNX Runtime can use one."""
    import onnxruntime  # noqa: PLC0415

    offered = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in offered:
        pytest.skip(f"this onnxruntime offers {', '.join(offered)}")
    try:
        if not visible():
            pytest.skip("this process sees no GPU")
    except NoGpus as error:
        pytest.skip(str(error))
    return "cuda:0"


@pytest.fixture(scope="session")
def engines(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The backend `tensorrt`, once it is known that its library executes anything on this GPU."""
    registry = Registry()
    try:
        backend = registry.backend(registry.info("tensorrt"))
    except LoadError as error:
        pytest.skip(str(error))
    file = tmp_path_factory.mktemp("probe") / "model.onnx"
    file.write_bytes(perceptron())
    try:
        model = backend.load(source(file, 8))
        try:
            model.instance().close()
        finally:
            model.close()
    except LoadError as error:
        pytest.skip(f"{gpu.kind}: {error}")
    return backend


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    """Loads models and closes them when the test ends."""
    with ExitStack() as closing:
        yield Loader(tmp_path / "versions", closing)


@pytest.fixture
def execute() -> Callable[..., Mapping[str, Any]]:
    """Executes one batch in an instance of its own, on a thread of its own."""
    return loading.execute


@pytest.fixture
def free(gpu: Any) -> Callable[[], int]:
    """How many bytes of the GPU's memory are free."""
    import pycuda.driver as drv  # noqa: PLC0415  # needs a driver

    def free() -> int:
        with gpu.current():
            return int(drv.mem_get_info()[0])

    return free
