"""Backend `torch`: `model.pt2` (torch.export and AOTInductor packages) and `model.pt` (TorchScript)."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from backends import torch_formats
from backends.base import (
    Array,
    Instance,
    LoadError,
    ModelSource,
    Signature,
    require,
    switch,
    warn_of_unknown,
    whole_number,
)
from backends.torch_cuda import CudaInstance
from backends.torch_precision import computing_in, precision
from backends.torch_profiler import TorchProfiler
from backends.torch_program import Program, Target, first_line, memory_of

_DEFAULT_THREADS = torch.get_num_threads()


class TorchBackend:
    """Loads PyTorch models.

    Parameters (all optional):
        dtype: fp32, fp16 or bf16: what products and convolutions are computed in; default: as in the file.
        compile: true: torch.compile makes kernels for the model, in its first executions; default false.
        intra_op_thread_count: threads one operator of an instance uses; 0 (default) is torch's own choice.

    Pickles inside a file are held to tensors, which torch itself would give up for some .pt2 files; the environment
    variable TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 lets them run code. That makes no file safe that comes from a stranger: a
    model is a program whatever its format, and an AOTInductor package is native code.
    """

    def obstacle(self, source: ModelSource, kind: str) -> str:
        """Why this PyTorch cannot load the source on a kind of device, "cuda" or "cpu"; "" if it can."""
        if kind == "cuda" and not torch.cuda.is_available():
            return "this PyTorch finds no GPU" if torch.version.cuda else "this PyTorch was built without CUDA"
        built_for = torch_formats.compiled_for(source.file) if source.file else ""
        return f"the package was compiled for {built_for}" if built_for not in ("", kind) else ""

    def load(self, source: ModelSource) -> TorchModel:
        """Load the file onto the device; of its own choice, onto the one it was compiled for, a GPU or the CPU.

        Raises:
            LoadError: torch cannot read the file, its inputs are no plain tensors, the device has no room, or
                config.pbtxt has to declare what the format does not carry.
        """
        if source.file is None:
            raise LoadError("backend 'torch' needs a model.pt2 or model.pt in the version folder")
        if "device" in source.parameters:
            raise LoadError(
                "parameter 'device' is now instance_group { kind: KIND_GPU gpus: [0] } or { kind: KIND_CPU }"
            )
        warn_of_unknown(source, ["dtype", "compile", "intra_op_thread_count"])
        threads = whole_number(source, "intra_op_thread_count", 0) or _DEFAULT_THREADS
        device = _device(source)
        target = Target(device, precision(source), switch(source, "compile", default=False))
        try:
            program = torch_formats.load(source, target)
        except torch.OutOfMemoryError as error:
            raise LoadError(f"{device} has no room for the model: {first_line(error)}") from error
        if target.dtype:
            program = computing_in(target.dtype, program, device, source.declared)
        return TorchModel(program, device, threads)


class TorchModel:
    """A loaded program, shared by its instances: its weights are only read."""

    def __init__(self, program: Program, device: torch.device, threads: int) -> None:
        self.signature: Signature = program.signature
        self.memory = memory_of(program.weights)
        self._program = program
        self._device = device
        self._threads = threads
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # instances have streams of their own, which wait for nobody

    def instance(self) -> Instance:
        """An instance whose thread uses the configured number of threads per operator."""
        # Holds for this thread and for those to come, hence set for each, wanted or not.
        torch.set_num_threads(self._threads)
        return CudaInstance(self._program, self._device) if self._device.type == "cuda" else CpuInstance(self._program)

    @property
    def profiler(self) -> TorchProfiler:
        """One over instances of this model."""
        return TorchProfiler(self.instance, self._device)

    def close(self) -> None:
        """Free the weights; those on a GPU go back to the driver, for other runtimes to use."""
        if self._device.type == "cuda":
            for weight in self._program.weights:  # of modules that hold each other: they go when Python next looks
                weight.untyped_storage().resize_(0)
            torch.cuda.empty_cache()
        del self._program


class CpuInstance:
    """Executes batches on the CPU, in the arrays' own memory."""

    def __init__(self, program: Program) -> None:
        self._program = program
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
            results = self._program.run([to_tensor(inputs[name]) for name in self._inputs])
            # A model that gives back one of its own buffers may write into it the next time.
            own = [r.clone() if r.untyped_storage().data_ptr() in self._weights else r for r in results]
            arrays = [to_array(result) for result in own]
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        """Give up the program, which the model shares."""
        del self._program


def to_tensor(array: Array) -> torch.Tensor:
    """A tensor of `array`, over its memory unless that is read-only."""
    if array.dtype == ml_dtypes.bfloat16:
        return to_tensor(array.view(np.uint16)).view(torch.bfloat16)
    # A program may write into its inputs, and a read-only array is somebody else's memory.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_array(tensor: torch.Tensor) -> Array:
    """An array of `tensor`, over its memory where that is on the CPU."""
    if tensor.dtype == torch.bfloat16:
        return to_array(tensor.view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy(force=True))


def _device(source: ModelSource) -> torch.device:
    """Where to load the source.

    Raises:
        LoadError: torch has no such device.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = source.device or (source.file and torch_formats.compiled_for(source.file)) or usual
    try:
        # Asked of a tensor: it knows the number of the GPU, and whether there is one.
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        raise LoadError(f"no device '{wanted}': {first_line(error)}") from error
