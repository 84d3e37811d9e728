"""An engine as it is loaded: what it takes and gives, in which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.base import LoadError, Signature, TensorSpec
from backends.tensorrt_library import IS_RTX, LOGGER, VERSION, Errors, tensor_spec, trt
from backends.tensorrt_profile import Range, Shape

Shapes = tuple[Shape, ...]


@dataclass(slots=True)
class Engine:
    """An engine in a GPU's memory.

    Attributes:
        runtime, engine: the library's; the first has to live as long as the second.
        errors: what the library reports of them.
        configuration: of the library's execution contexts; None where it has none.
        signature: what the engine takes and gives.
        ranges: the shapes it takes, in the order of its inputs.
        recorded_rows: sizes of batches whose executions are recorded as CUDA graphs.
    """

    runtime: Any
    engine: Any
    errors: Errors
    configuration: Any
    signature: Signature
    ranges: tuple[Range, ...]
    recorded_rows: frozenset[int]

    def free(self) -> None:
        """Give back the GPU's memory, whoever still holds this object; needs the context current."""
        self.configuration = self.engine = None
        self.runtime = None

    @property
    def largest(self) -> Shapes:
        """The largest shapes it takes."""
        return tuple(range_.high for range_ in self.ranges)

    @property
    def expected(self) -> list[Shapes]:
        """The shapes that executions will mostly have."""
        usual = tuple(range_.usual for range_ in self.ranges)
        rows = sorted(self.recorded_rows) if self.signature.max_batch_size else []
        return [usual, *(tuple((size, *shape[1:]) for shape in usual) for size in rows)]

    def records(self, shapes: Shapes) -> bool:
        """Whether executions of inputs of these shapes are to be recorded."""
        return bool(shapes) and shapes[0][:1] != () and shapes[0][0] in self.recorded_rows


def open_engine(plan: Any, gpu: str, recorded_rows: Sequence[int]) -> Engine:
    """Load a plan, a buffer, onto the GPU whose context is current.

    Args:
        plan: the engine, serialized.
        gpu: what to call the GPU.
        recorded_rows: sizes of batches that should run as CUDA graphs.

    Raises:
        LoadError: it was built for another GPU or version or is damaged, the memory does not suffice, or it has a
            tensor that cannot be served.
    """
    runtime, errors = trt.Runtime(LOGGER), Errors()
    runtime.error_recorder = errors
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise LoadError(f"{VERSION} does not load the engine on {gpu}: {errors.told()}")
    inputs, outputs = _tensors(engine)
    ranges = tuple(_range(engine, spec) for spec in inputs)
    signature = Signature.of(inputs, outputs)
    if signature.max_batch_size:
        signature = replace(signature, max_batch_size=min(range_.high[0] for range_ in ranges))
    recorded = frozenset(
        rows for rows in recorded_rows if all(range_.low[:1] <= (rows,) <= range_.high[:1] for range_ in ranges)
    )
    return Engine(runtime, engine, errors, _configuration(engine, recorded), signature, ranges, recorded)


def _tensors(engine: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.is_shape_inference_io(name) or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise LoadError(f"tensor '{name}' holds sizes of other tensors, which cannot be served")
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            described = engine.get_tensor_format_desc(name)
            raise LoadError(f"tensor '{name}' is not laid out row by row: {described}")
        spec = tensor_spec(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(spec)
    return inputs, outputs


def _range(engine: Any, spec: TensorSpec) -> Range:
    """What the first profile says; an engine may have more, of which an execution uses one."""
    if -1 not in spec.shape:
        return Range(spec.shape, spec.shape, spec.shape)
    return Range(*(tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, 0)))


def _configuration(engine: Any, recorded_rows: frozenset[int]) -> Any:
    if not IS_RTX:
        return None
    configuration = engine.create_runtime_config()
    # So that instances do not each compile the same kernels.
    configuration.set_runtime_cache(configuration.create_runtime_cache())
    if recorded_rows:
        # By default a shape runs on makeshift kernels until its own are compiled, and a recording would keep those.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        configuration.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return configuration
