"""Backend `tensorrt`: `model.plan`, an engine, or `model.onnx`, which it builds one from. On NVIDIA GPUs."""

from __future__ import annotations

import importlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from backends.base import LoadError, ModelSource, switch, warn_of_unknown
from backends.tensorrt_build import Recipe, build
from backends.tensorrt_cache import EngineCache
from backends.tensorrt_engine import Engine, open_engine
from backends.tensorrt_library import VERSION
from backends.tensorrt_profile import PARAMETERS, Sizes

if TYPE_CHECKING:
    from backends.tensorrt_cuda import Gpu
    from backends.tensorrt_instance import TensorRtInstance

_ONLY_GPUS = "backend 'tensorrt' runs on NVIDIA GPUs alone: say KIND_GPU"
_HINT = "an engine runs with the library and on the kind of GPU it was built for: give model.onnx to build it here"


class TensorRtBackend:
    """Loads engines.

    An engine built from ONNX computes in the precision that the file states. It is kept beside the file and used again
    for the same content, library, GPU, sizes and precision.

    Parameters (all optional):
        max_shapes, opt_shapes, min_shapes: of the inputs, as "ids:32x128,mask:32x128": the largest that the engine
            takes, the ones it is fastest with, the smallest. Without them the batch goes up to max_batch_size and is
            fastest at the largest preferred_batch_size; other open sizes need max_shapes, or dims that fix them.
        tf32: true (default) or false: whether FP32 is multiplied as TF32, faster and with three digits less.
        cuda_graphs: true (default) or false: whether batches of preferred_batch_size rows run as CUDA graphs.
    """

    def obstacle(self, source: ModelSource, kind: str) -> str:  # noqa: ARG002  # of no source in particular
        """Why nothing can be loaded on a kind of device, "cuda" or "cpu"; "" if it can."""
        if kind != "cuda":
            return _ONLY_GPUS
        try:
            _cuda().count()
        except LoadError as error:
            return str(error)
        return ""

    def load(self, source: ModelSource) -> TensorRtModel:
        """Load the engine onto the GPU, built first if need be.

        Raises:
            LoadError: there is no GPU to use, the file is nothing that the library executes on it, or a parameter is
                wrong.
        """
        if source.file is None:
            raise LoadError("backend 'tensorrt' needs a model.plan or model.onnx in the version folder")
        warn_of_unknown(source, (*PARAMETERS, "tf32", "cuda_graphs"))
        recorded_rows = source.preferred_batch_sizes if switch(source, "cuda_graphs", default=True) else ()
        recipe = Recipe(Sizes.of(source), tf32=switch(source, "tf32", default=True), graphs=bool(recorded_rows))
        about = f"model {source.name}/{source.version}"
        gpu = _gpu(source.device)

        def opened(plan: Any) -> TensorRtModel:
            return TensorRtModel(open_engine(plan, gpu.kind, recorded_rows), gpu, memoryview(plan).nbytes, about)

        with gpu.current():
            if source.file.suffix == ".onnx":
                cache = EngineCache(source.file, VERSION, gpu.kind, recipe)
                return cache.engine(partial(build, source.file, recipe, about), opened, about)
            try:
                return opened(source.file.read_bytes())
            except LoadError as error:
                raise LoadError(f"{source.file.name}: {error} ({_HINT})") from error


class TensorRtModel:
    """An engine, whose weights its instances share."""

    def __init__(self, engine: Engine, gpu: Gpu, plan_size: int, about: str) -> None:
        self.signature = engine.signature
        self.memory = {f"GPU:{gpu.ordinal}": plan_size}  # of the weights, and little else
        self._engine = engine
        self._gpu = gpu
        self._about = about

    def instance(self) -> TensorRtInstance:
        """An execution context with a stream and buffers of its own.

        Raises:
            LoadError: the GPU has too little memory for it, or does not execute the engine.
        """
        from backends.tensorrt_instance import TensorRtInstance  # noqa: PLC0415  # needs a driver

        return TensorRtInstance(self._engine, self._gpu, self._about)

    def close(self) -> None:
        """Free the weights."""
        with self._gpu.current():
            self._engine.free()


def _gpu(device: str) -> Gpu:
    match = re.fullmatch(r"(?:cuda(?::(\d+))?)?", device)
    if match is None:
        raise LoadError(_ONLY_GPUS)
    gpu: Gpu = _cuda().gpu(int(match[1] or 0))
    return gpu


def _cuda() -> Any:
    try:
        # Not `from backends import`: of two threads that fail at once, one would be told that there is no such name.
        return importlib.import_module("backends.tensorrt_cuda")
    except ModuleNotFoundError as error:
        raise LoadError(f"backend 'tensorrt' needs {error.name} too: pip install 'tensorgate[tensorrt]'") from error
    except ImportError as error:
        raise LoadError(f"backend 'tensorrt' needs an NVIDIA GPU and its driver: {error}") from error
