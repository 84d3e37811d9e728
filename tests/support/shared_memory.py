"""Shared memory objects of a client of the gateway, and requests with tensors in them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from support.calls import refusal
from support.server import Gateway
from support.streams import StreamCall
from tensorgate_client.tensors import datatype_of
from tensorgate_client.wire import inference_pb2 as pb

FOLDER = Path("/dev/shm")  # noqa: S108

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)


class SharedObject:
    """An object of `size` bytes, all 0xEE, until the `with` block is left."""

    def __init__(self, size: int) -> None:
        self.name = f"tensorgate-test-{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.path = FOLDER / self.name
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.put(0, np.full(size, 0xEE, np.uint8))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return os.fstat(self._file).st_size

    def put(self, offset: int, array: np.ndarray) -> None:
        """Write an array."""
        os.pwrite(self._file, array.tobytes(), offset)

    def get(self, offset: int, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Read an array."""
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(os.pread(self._file, length, offset), dtype).reshape(shape)

    def untouched(self) -> bool:
        """Whether nobody has written to it."""
        return set(os.pread(self._file, self.size, 0)) <= {0xEE}

    def resize(self, size: int) -> None:
        """Shrink it, or let it grow."""
        os.ftruncate(self._file, size)


def register(gateway: Gateway, name: str, memory: SharedObject, offset: int = 0, byte_size: int | None = None) -> None:
    """Register a part of an object, by default all of it."""
    size = memory.size if byte_size is None else byte_size
    message = pb.SystemSharedMemoryRegisterRequest(name=name, key=memory.key, offset=offset, byte_size=size)
    gateway.stub.SystemSharedMemoryRegister(message, timeout=60)


def unregister(gateway: Gateway, name: str = "") -> None:
    """Unregister a region, or all of them."""
    gateway.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=name), timeout=60)


def status(gateway: Gateway, name: str = "") -> dict[str, tuple[str, int, int]]:
    """Key, offset and size of a region, or of all of them."""
    response = gateway.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name=name), timeout=60)
    return {told: (region.key, region.offset, region.byte_size) for told, region in response.regions.items()}


def place(parameters: Any, region: str, byte_size: int, offset: int = 0) -> None:
    """Say that a tensor lies in shared memory, as tritonclient does."""
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def placed_request(
    model: str, source: tuple[str, str, Any, int] | None = None, target: tuple[str, str, int, int] | None = None
) -> pb.ModelInferRequest:
    """A request with an input or output in shared memory.

    Args:
        model: to send it to.
        source: the input's name, its region, an array like it and its offset.
        target: the output's name, its region, the bytes there are for it and its offset.
    """
    message = pb.ModelInferRequest(model_name=model)
    if source:
        name, region, like, offset = source
        tensor = message.inputs.add(name=name, datatype=datatype_of(like.dtype), shape=like.shape)
        place(tensor.parameters, region, like.nbytes, offset)
    if target:
        name, region, byte_size, offset = target
        place(message.outputs.add(name=name).parameters, region, byte_size, offset)
    return message


def there_and_back(offset: int = 0, target: int = 1000) -> pb.ModelInferRequest:
    """A request to echo with everything in `m`."""
    return placed_request("echo", ("INPUT0", "m", ROW, offset), ("OUTPUT0", "m", ROW.nbytes, target))


def refused(gateway: Gateway, message: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Status and message that a request is refused with, which must be the same in a stream."""
    told = refusal(lambda: gateway.stub.ModelInfer(message, timeout=60))
    with StreamCall(gateway) as stream:
        stream.send_message(message)
        assert stream.next().error_message == told[1]
    return told
