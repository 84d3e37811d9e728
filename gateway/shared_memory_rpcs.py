"""The RPCs about shared memory, where it is allowed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from gateway.errors import RegionNotFound
from gateway.shared_memory import Regions
from tensorgate_client.wire import inference_pb2 as pb


class SharedMemoryRpcs:
    """Answers them.

    Of CUDA's memory there is none: what it is asked for that is true all the same, since clients clear it up together
    with the system's.

    Args:
        regions: the registered ones.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def by_name(self) -> dict[str, Callable[[Any], Awaitable[Message]]]:
        """Those that are answered, by name."""
        return {
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "SystemSharedMemoryStatus": self.status,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryUnregister": self.cuda_unregister,
        }

    async def register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        """SystemSharedMemoryRegister."""
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """SystemSharedMemoryUnregister."""
        self._regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """SystemSharedMemoryStatus."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.listed(request.name):
            told = response.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def cuda_status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """CudaSharedMemoryStatus: no region."""
        if request.name:
            raise RegionNotFound(f"Unable to find cuda shared memory region: '{request.name}'")
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_unregister(self, _: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
        """CudaSharedMemoryUnregister: nothing is registered then."""
        return pb.CudaSharedMemoryUnregisterResponse()
