"""Executing PyTorch programs on an NVIDIA GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from backends.base import Array, require
from backends.torch_program import DTYPES, Program

_spare: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams of closed instances, for the next ones: torch keeps memory for every stream that there ever was, and cuBLAS
32 MiB more."""

_TORCH_DTYPES = {numpy: dtype for dtype, numpy in DTYPES.items()}


class CudaInstance:
    """Executes batches on a GPU, on a stream of its own: instances' copies and kernels run side by side.

    What goes to the GPU and comes back lies in page-locked memory, which the GPU reads and writes by itself. torch
    keeps it for further use, and an output is the gateway's own until it is dropped.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program = program
        self._device = device
        self._stream = _spare[device].pop() if _spare[device] else torch.cuda.Stream(device)
        self._inputs = [spec.name for spec in program.signature.inputs]
        self._outputs = [spec.name for spec in program.signature.outputs]

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Run the program in inference mode.

        Raises:
            InvalidInput: a size is not one of those the program was exported for, or an input is missing.
            ValueError: the program gave another number of tensors than its signature has.
        """
        require(inputs, self._inputs)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            sent = [_page_locked(inputs[name]) for name in self._inputs]
            results = self._program.run([tensor.to(self._device, non_blocking=True) for tensor in sent])
            hosts = [_fetched(result) for result in results]
            self._stream.synchronize()
        return dict(zip(self._outputs, map(_array, hosts), strict=True))

    def close(self) -> None:
        """Give up the program, which the model shares, and the stream, which has nothing left to do."""
        del self._program
        _spare[self._device].append(self._stream)


def _page_locked(array: Array) -> torch.Tensor:
    tensor = torch.empty(array.shape, dtype=_TORCH_DTYPES[array.dtype], pin_memory=True)
    _array(tensor)[...] = array
    return tensor


def _fetched(result: torch.Tensor) -> torch.Tensor:
    """The result in page-locked memory, once the stream gets there."""
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    return host.copy_(result, non_blocking=True)


def _array(host: torch.Tensor) -> Array:
    """An array over the tensor's memory."""
    if host.dtype == torch.bfloat16:  # which numpy has not
        return np.asarray(host.view(torch.uint16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(host.numpy())
