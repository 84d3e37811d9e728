"""Backend `torch`: `model.pt2` (torch.export and AOTInductor packages) and `model.pt` (TorchScript)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from backends import torch_formats
from backends.base import Array, LoadError, ModelSource, Signature, require, warn_of_unknown, whole_number
from backends.torch_profiler import TorchProfiler
from backends.torch_program import Program, first_line, memory_of

_DEFAULT_THREADS = torch.get_num_threads()


class TorchBackend:
    """Loads PyTorch models.

    Parameters (all optional):
        device: "cpu" (default), "cuda" or "cuda:N".
        intra_op_thread_count: threads one operator of an instance uses; 0 (default) is torch's own choice.

    Pickles inside a file are held to tensors, which torch itself would give up for some .pt2 files; the environment
    variable TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 lets them run code. That makes no file safe that comes from a stranger: a
    model is a program whatever its format, and an AOTInductor package is native code.
    """

    def load(self, source: ModelSource) -> TorchModel:
        """Load the file onto the device.

        Raises:
            LoadError: torch cannot read the file, its inputs are no plain tensors, or config.pbtxt has to declare
                what the format does not carry.
        """
        if source.file is None:
            raise LoadError("backend 'torch' needs a model.pt2 or model.pt in the version folder")
        warn_of_unknown(source, ["device", "intra_op_thread_count"])
        device = _device(source.parameters.get("device", "cpu"))
        threads = whole_number(source, "intra_op_thread_count", 0) or _DEFAULT_THREADS
        return TorchModel(torch_formats.load(source, device), device, threads)


class TorchModel:
    """A loaded program, shared by its instances: its weights are only read."""

    def __init__(self, program: Program, device: torch.device, threads: int) -> None:
        self.signature: Signature = program.signature
        self.memory = memory_of(program.weights)
        self._program = program
        self._device = device
        self._threads = threads

    def instance(self) -> TorchInstance:
        """An instance whose thread uses the configured number of threads per operator."""
        # Holds for this thread and for those to come, hence set for each, wanted or not.
        torch.set_num_threads(self._threads)
        return TorchInstance(self._program, self._device)

    @property
    def profiler(self) -> TorchProfiler:
        """One over instances of this model."""
        return TorchProfiler(self.instance, self._device)

    def close(self) -> None:
        """The weights are freed with their last reference."""


class TorchInstance:
    """Executes batches on the model's device."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program = program
        self._device = device
        self._inputs = [spec.name for spec in program.signature.inputs]
        self._outputs = [spec.name for spec in program.signature.outputs]
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in program.weights}

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Run the program in inference mode.

        Raises:
            InvalidInput: a size is not one of those the program was exported for, or an input is missing.
            ValueError: the program gave another number of tensors than its signature has.
        """
        require(inputs, self._inputs)
        with torch.inference_mode():
            results = self._program.run([to_tensor(inputs[name], self._device) for name in self._inputs])
            # A model that gives back one of its own buffers may write into it the next time.
            own = [r.clone() if r.untyped_storage().data_ptr() in self._weights else r for r in results]
            arrays = [to_array(result) for result in own]
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        """Nothing of its own to free."""


def to_tensor(array: Array, device: torch.device) -> torch.Tensor:
    """A tensor of `array` on `device`."""
    if array.dtype == ml_dtypes.bfloat16:
        return to_tensor(array.view(np.uint16), device).view(torch.bfloat16)
    # A program may write into its inputs, and a read-only array is somebody else's memory.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def to_array(tensor: torch.Tensor) -> Array:
    """An array of `tensor`, sharing its memory where that is on the CPU."""
    if tensor.dtype == torch.bfloat16:
        return to_array(tensor.view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy(force=True))


def _device(text: str) -> torch.device:
    expected = f"parameter 'device': expected cpu, cuda or cuda:N, got '{text}'"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise LoadError(expected)
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        raise LoadError(f"{expected}: {first_line(error)}") from error
    return torch.device(text)
