"""What the `tensorrt` backend needs of CUDA: a GPU's context, streams, buffers, recorded executions."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import numpy as np
import pycuda.driver as drv
from cuda.bindings import driver

from backends.base import Array, LoadError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda has no name for

_gpus: dict[int, Gpu] = {}
_lock = threading.Lock()


class Gpu:
    """A GPU and its primary context, which PyTorch and ONNX Runtime use too. It is kept until the process ends."""

    def __init__(self, ordinal: int) -> None:
        device = drv.Device(ordinal)
        major, minor = device.compute_capability()
        self.ordinal = ordinal
        self.kind = f"{device.name()} (compute capability {major}.{minor})"
        self._context = device.retain_primary_context()
        atexit.register(self._context.detach)  # left to its destructor, pycuda would detach it as if it were its own

    def __repr__(self) -> str:
        return f"<Gpu {self.ordinal} {self.kind}>"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's for a while; what was current before is so again afterwards."""
        self._context.push()
        try:
            yield
        finally:
            drv.Context.pop()

    def memory(self) -> str:
        """How much of its memory is free, for a message. Needs the context current."""
        try:
            free, total = drv.mem_get_info()
        except drv.Error as error:  # after a fault CUDA refuses everything in the process
            return f"GPU {self.ordinal} does not answer: {error}"
        return f"{free >> 20} of {total >> 20} MiB are free on GPU {self.ordinal}"


def count() -> int:
    """How many GPUs there are.

    Raises:
        LoadError: none can be used.
    """
    try:
        drv.init()
        return int(drv.Device.count())
    except drv.Error as error:
        raise LoadError(f"no GPU can be used: {error}") from error


def gpu(ordinal: int) -> Gpu:
    """A GPU; one object for all who ask.

    Raises:
        LoadError: there is none of that number, or it cannot be used.
    """
    with _lock:
        if ordinal not in _gpus:
            if ordinal >= (found := count()):
                raise LoadError(f"there is no GPU {ordinal}: {found} found, numbered from 0")
            try:
                _gpus[ordinal] = Gpu(ordinal)
            except drv.Error as error:
                raise LoadError(f"GPU {ordinal} cannot be used: {error}") from error
        return _gpus[ordinal]


class Buffer:
    """Memory for a tensor: pinned on the host and as much on the GPU. Made, used and closed with the context current.

    Attributes:
        address: of the memory on the GPU.
    """

    def __init__(self, size: int) -> None:
        with ExitStack() as undo:
            self._host: Array = drv.pagelocked_empty(size, np.uint8)
            self._pinned: Any = self._host.base
            undo.callback(self._pinned.free)
            self._device = drv.mem_alloc(size)
            undo.pop_all()
        self._host[:] = 0  # what warm-up runs on
        self.address = int(self._device)

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The host's memory as a tensor."""
        return self._bytes(shape, dtype).view(dtype).reshape(shape)

    def upload(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> None:
        """Copy as much as such a tensor takes to the GPU, when the stream gets to it."""
        drv.memcpy_htod_async(self.address, self._bytes(shape, dtype), stream.stream)

    def download(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> None:
        """Copy as much as such a tensor takes from the GPU, when the stream gets to it."""
        drv.memcpy_dtoh_async(self._bytes(shape, dtype), self.address, stream.stream)

    def _bytes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._host[: prod(shape) * dtype.itemsize]

    def close(self) -> None:
        """Free both."""
        self._device.free()
        self._host = np.empty(0, np.uint8)
        self._pinned.free()


class Stream:
    """Work in order, beside that of other streams. Made, used and closed with the context current.

    It does not wait for the default stream, which PyTorch works on, nor that for it.
    """

    def __init__(self) -> None:
        self.stream: Any = drv.Stream(_NON_BLOCKING)
        flags = drv.event_flags
        self._done: Any = drv.Event(int(flags.BLOCKING_SYNC) | int(flags.DISABLE_TIMING))

    @property
    def handle(self) -> int:
        """As C knows it."""
        return int(self.stream.handle)

    def wait(self) -> None:
        """Until all that was given to it is done; the thread sleeps, and other threads run.

        Raises:
            pycuda.driver.Error: some of it failed.
        """
        self._done.record(self.stream)
        self._done.synchronize()

    def close(self) -> None:
        """Free it; pycuda does with the last reference."""
        self.stream = self._done = None


class Recording:
    """Work that was recorded as a CUDA graph, to be started again by a single call.

    Args:
        work: gives a stream its work, all of it asynchronous and done before in just this way.
        stream: that stream.

    Raises:
        RuntimeError: some of it cannot be recorded; the stream can be used as before.
    """

    def __init__(self, work: Callable[[], object], stream: Stream) -> None:
        # Other threads may allocate meanwhile: only this one is held to what can be recorded.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream.handle, mode))
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(stream.handle)  # gives nothing: what was recorded is in pieces
            raise
        graph = _checked(driver.cuStreamEndCapture(stream.handle))
        try:
            self._graph = _checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)

    def start(self, stream: Stream) -> None:
        """Give a stream the work once more."""
        _checked(driver.cuGraphLaunch(self._graph, stream.handle))

    def close(self) -> None:
        """Free it."""
        driver.cuGraphExecDestroy(self._graph)


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call gave beside its status."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
