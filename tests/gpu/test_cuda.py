"""What the backend `tensorrt` does with CUDA: memory, streams, recordings, and one context with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from support.engines import perceptron

from backends.base import LoadError

pytestmark = pytest.mark.gpu

cuda = pytest.importorskip(
    "backends.tensorrt_cuda", reason="needs an NVIDIA GPU, its driver, pycuda and cuda-bindings", exc_type=ImportError
)
drv = pytest.importorskip("pycuda.driver", exc_type=ImportError)
driver = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)

MIB = 2**20


@pytest.fixture
def stream(gpu: Any) -> Iterator[Any]:
    """A stream, with the GPU's context current."""
    with gpu.current():
        stream = cuda.Stream()
        yield stream
        stream.close()


def there_and_back(buffer: Any, array: np.ndarray, stream: Any) -> np.ndarray:
    """What comes back from the GPU after an array has been copied there and its copy on the host been overwritten."""
    host = buffer.tensor(array.shape, array.dtype)
    host[...] = array
    buffer.upload(array.shape, array.dtype, stream)
    stream.wait()
    host[...] = np.zeros((), array.dtype)
    buffer.download(array.shape, array.dtype, stream)
    stream.wait()
    return host.copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (64, 3, 32, 32)], ids=str)
def test_copies(shape: tuple[int, ...], dtype: Any, stream: Any) -> None:
    """A tensor comes back from the GPU as it went there, whatever its datatype and shape."""
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    with closing(cuda.Buffer(array.nbytes + 100)) as buffer:
        result = there_and_back(buffer, array, stream)
    assert (result.shape, result.dtype) == (array.shape, array.dtype)
    assert result.tobytes() == array.tobytes()


def test_streams_side_by_side(gpu: Any) -> None:
    """Instances on threads of their own copy at the same time, each its own data."""

    def work(seed: int) -> bool:
        random = np.random.default_rng(seed)
        with gpu.current(), closing(cuda.Stream()) as stream, closing(cuda.Buffer(4 * MIB)) as buffer:
            arrays = [random.normal(size=(1 + i % 7, 1000)).astype(np.float32) for i in range(100)]
            return all((there_and_back(buffer, array, stream) == array).all() for array in arrays)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_recording(stream: Any) -> None:
    """Recorded copies move what is in the buffers when they are started, and no longer what was there before."""
    shape, dtype = (1000,), np.dtype(np.float32)
    with closing(cuda.Buffer(4000)) as sent, closing(cuda.Buffer(4000)) as received:

        def work() -> None:
            sent.upload(shape, dtype, stream)
            drv.memcpy_dtod_async(received.address, sent.address, 4000, stream.stream)
            received.download(shape, dtype, stream)

        with closing(cuda.Recording(work, stream)) as recording:
            stream.wait()
            assert not received.tensor(shape, dtype).any()
            for seed in range(3):
                array = np.random.default_rng(seed).normal(size=shape).astype(dtype)
                sent.tensor(shape, dtype)[...] = array
                recording.start(stream)
                stream.wait()
                np.testing.assert_array_equal(received.tensor(shape, dtype), array)


def test_what_cannot_be_recorded(stream: Any) -> None:
    """Work that waits cannot be recorded; the stream can be used as if nobody had tried."""
    array = np.arange(10, dtype=np.float32)
    with closing(cuda.Buffer(array.nbytes)) as buffer:
        with pytest.raises((RuntimeError, drv.Error)):
            cuda.Recording(lambda: there_and_back(buffer, array, stream), stream)
        np.testing.assert_array_equal(there_and_back(buffer, array, stream), array)


def test_memory_comes_back(gpu: Any, free: Callable[[], int]) -> None:
    """A thousand instances that come and go leave no memory behind."""

    def once() -> None:
        with gpu.current(), closing(cuda.Stream()), closing(cuda.Buffer(8 * MIB)):
            pass

    once()
    before = free()
    with ThreadPoolExecutor(1) as thread:
        for _ in range(1000):
            thread.submit(once).result()
    assert before - free() <= 2 * MIB


def test_out_of_memory(gpu: Any, free: Callable[[], int]) -> None:
    """A GPU that is full says so, and what was already allocated for the tensor is given back."""
    before = free()
    with gpu.current():
        ballast = drv.mem_alloc(before - 64 * MIB)
        try:
            with pytest.raises(drv.MemoryError, match="out of memory"):
                cuda.Buffer(256 * MIB)
            assert "MiB are free on GPU 0" in gpu.memory()
            with closing(cuda.Buffer(MIB)):
                pass
        finally:
            ballast.free()
    assert before - free() <= 2 * MIB


def test_no_such_gpu() -> None:
    """A GPU that is not there is refused with how many there are."""
    with pytest.raises(LoadError, match=r"^there is no GPU 99: \d+ found, numbered from 0$"):
        cuda.gpu(99)


def current() -> int:
    """The context that is this thread's now; 0 for none."""
    status, context = driver.cuCtxGetCurrent()
    assert status == driver.CUresult.CUDA_SUCCESS
    return int(context)


def test_one_context_with_torch(gpu: Any) -> None:
    """PyTorch and this backend share a GPU's one context, and leave each other's threads as they were."""
    assert torch.cuda.is_available()
    matrix = torch.eye(64, device="cuda") * 2
    torchs = current()
    assert torchs
    with gpu.current():
        assert current() == torchs
        assert torch.equal(matrix @ matrix, torch.eye(64, device="cuda") * 4)
        with gpu.current():
            assert current() == torchs
        assert current() == torchs
    assert current() == torchs
    assert torch.equal((matrix + 1)[0, :2].cpu(), torch.tensor([3.0, 1.0]))

    def on_a_new_thread() -> tuple[int, int, int]:
        before = current()
        with gpu.current():
            return before, current(), torch.ones(3, device="cuda").sum().int().item()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(on_a_new_thread).result() == (0, torchs, 3)


def test_beside_torch_and_onnxruntime(gpu: Any, tmp_path: Path) -> None:
    """PyTorch, ONNX Runtime and this backend's copies work at once in one process, and all are right."""
    (tmp_path / "model.onnx").write_bytes(perceptron())
    offered = [name for name in ort.get_available_providers() if name != "TensorrtExecutionProvider"]
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=offered)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    (expected,) = session.run(None, {"x": x})

    def of_torch(seed: int) -> bool:
        tensor = torch.full((256, 256), float(seed), device="cuda")
        return bool(((tensor @ tensor) == 256.0 * seed * seed).all())

    def of_onnxruntime(_: int) -> bool:
        return np.allclose(session.run(None, {"x": x})[0], expected)

    def of_ours(seed: int) -> bool:
        array = np.full((100, 100), seed, np.int32)
        with gpu.current(), closing(cuda.Stream()) as stream, closing(cuda.Buffer(array.nbytes)) as buffer:
            return bool((there_and_back(buffer, array, stream) == array).all())

    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(work, seed) for seed in range(100) for work in (of_torch, of_onnxruntime, of_ours)]
        assert all(answer.result() for answer in answers)
