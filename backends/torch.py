"""Backend `torch`: `model.pt2` (torch.export and AOTInductor packages) and `model.pt` (TorchScript)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from backends import torch_formats
from backends.base import Array, InvalidInput, LoadError, ModelSource, Signature, whole_number


class TorchBackend:
    """Loads PyTorch models.

    Parameters (all optional):
        device: "cpu" (default), "cuda" or "cuda:N".
        intra_op_thread_count: threads one operator uses; 0 lets torch choose.

    Weights are tensors, never pickled code: `torch.load` is held to `weights_only`, which torch itself would give
    up for some .pt2 files. Set TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 to trust the repository instead.
    """

    def load(self, source: ModelSource) -> TorchModel:
        """Load the file onto the device.

        Raises:
            LoadError: torch cannot read the file, its inputs are no plain tensors, or config.pbtxt has to declare
                what the format does not carry.
        """
        if source.file is None:
            raise LoadError("backend 'torch' needs a model.pt2 or model.pt in the version folder")
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        device = _device(source.parameters.get("device", "cpu"))
        program = torch_formats.load(source, device)
        return TorchModel(program, device, whole_number(source, "intra_op_thread_count", 0))


class TorchModel:
    """A loaded program, shared by its instances: its weights are only read."""

    def __init__(self, program: torch_formats.Program, device: torch.device, threads: int) -> None:
        self.signature: Signature = program.signature
        self._program = program
        self._device = device
        self._threads = threads

    def instance(self) -> TorchInstance:
        """An instance whose thread uses the configured number of threads per operator."""
        if self._threads:
            torch.set_num_threads(self._threads)  # holds for the calling thread, which is the instance's own
        return TorchInstance(self._program, self._device)

    def close(self) -> None:
        """The weights are freed with their last reference."""


class TorchInstance:
    """Executes batches on the model's device."""

    def __init__(self, program: torch_formats.Program, device: torch.device) -> None:
        self._program = program
        self._device = device
        self._inputs = [spec.name for spec in program.signature.inputs]
        self._outputs = [spec.name for spec in program.signature.outputs]

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Run the program in inference mode.

        Raises:
            ValueError: the program gave another number of tensors than its signature has.
        """
        with torch.inference_mode():
            results = self._program.run([to_tensor(inputs[name], self._device) for name in self._inputs])
            arrays = [to_array(result) for result in results]
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        """Nothing of its own to free."""


def to_tensor(array: Array, device: torch.device) -> torch.Tensor:
    """A tensor of `array` on `device`.

    Raises:
        InvalidInput: torch has no tensors of this dtype.
    """
    if array.dtype == ml_dtypes.bfloat16:
        return to_tensor(array.view(np.uint16), device).view(torch.bfloat16)
    if array.dtype.hasobject:
        raise InvalidInput("torch models take no BYTES tensors: put a `python` model in front")
    # A program may write into its inputs, and a read-only array is somebody else's memory.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def to_array(tensor: torch.Tensor) -> Array:
    """An array of `tensor`, sharing its memory where that is on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return to_array(tensor.contiguous().view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise LoadError(
            f"parameter 'device': expected cpu, cuda or cuda:N on this machine, got '{text}': {reason}"
        ) from error
    return device
