"""One execution context of an engine, with a stream and buffers of its own. Needs a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pycuda.driver as drv

from backends.base import Array, InvalidInput, LoadError, require
from backends.tensorrt_cuda import Buffer, Gpu, Recording, Stream
from backends.tensorrt_engine import Engine, Shapes
from backends.tensorrt_library import VERSION, Errors
from backends.tensorrt_profile import Range

_log = logging.getLogger(__name__)

_MOST_RECORDINGS = 32  # of shapes; each takes some memory on the GPU


@dataclass(slots=True)
class _Held:
    """What an instance holds on the GPU, made piece by piece."""

    stream: Stream | None = None
    context: Any = None
    buffers: dict[str, Buffer] = field(default_factory=dict)
    recordings: dict[Shapes, tuple[Recording, Shapes]] = field(default_factory=dict)

    def free(self) -> None:
        """All of it; needs the context current."""
        for recording, _ in self.recordings.values():
            recording.close()
        self.recordings.clear()
        self.context = None  # before the memory that it knows
        for buffer in self.buffers.values():
            buffer.close()
        self.buffers.clear()
        if self.stream:
            self.stream.close()
        self.stream = None


class TensorRtInstance:
    """Executes batches on its own stream, so that one instance's copies run beside another's kernels.

    Raises:
        LoadError: the GPU has too little memory, or the engine does not run on it.
    """

    def __init__(self, engine: Engine, gpu: Gpu, about: str) -> None:
        self._engine = engine
        self._gpu = gpu
        self._about = about
        self._inputs = engine.signature.inputs
        self._outputs = engine.signature.outputs
        self._held = _Held()
        self._errors = Errors()
        self._records = True
        with gpu.current():
            try:
                with self._explained():
                    self._set_up()
            except BaseException:
                self._held.free()
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what went wrong in a sentence."""
        try:
            yield
        except (drv.Error, RuntimeError) as error:
            raise LoadError(f"the engine does not run on {self._gpu.kind}: {error} ({self._gpu.memory()})") from error

    def _set_up(self) -> None:
        """Allocate for the largest shapes, then execute on zeros: what fails or is slow at first is so now."""
        held, engine = self._held, self._engine
        held.stream = Stream()
        if engine.configuration is None:
            held.context = engine.engine.create_execution_context()
        else:
            held.context = engine.engine.create_execution_context(engine.configuration)
        if held.context is None:
            raise RuntimeError(f"{VERSION} gives no execution context: {engine.errors.told()}")
        held.context.error_recorder = self._errors
        for spec, shape in zip(self._inputs, engine.largest, strict=True):
            held.buffers[spec.name] = Buffer(max(prod(shape), 1) * spec.dtype.itemsize)
        self._shape_inputs(engine.largest)
        for spec in self._outputs:
            if -1 in held.context.get_tensor_shape(spec.name):
                raise LoadError(f"output '{spec.name}': its size depends on the data, which cannot be served")
            held.buffers[spec.name] = Buffer(max(held.context.get_max_output_size(spec.name), spec.dtype.itemsize))
        for name, buffer in held.buffers.items():
            held.context.set_tensor_address(name, buffer.address)
        for shapes in engine.expected:
            self._run(shapes)

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Copy in, execute, copy out.

        Raises:
            InvalidInput: an input is missing, or has a size that the engine was not built for.
            RuntimeError: the engine fails.
        """
        require(inputs, [spec.name for spec in self._inputs])
        shapes = tuple(inputs[spec.name].shape for spec in self._inputs)
        for spec, shape, range_ in zip(self._inputs, shapes, self._engine.ranges, strict=True):
            _check(spec.name, shape, range_)
        with self._gpu.current():
            for spec, shape in zip(self._inputs, shapes, strict=True):
                self._held.buffers[spec.name].tensor(shape, spec.dtype)[...] = inputs[spec.name]
            outputs = self._run(shapes)
            return {
                # A copy: the buffer is written into by the next execution.
                spec.name: self._held.buffers[spec.name].tensor(shape, spec.dtype).copy()
                for spec, shape in zip(self._outputs, outputs, strict=True)
            }

    def _run(self, shapes: Shapes) -> Shapes:
        """Execute on what is in the buffers; the outputs' shapes."""
        stream, recordings = self._held.stream, self._held.recordings
        assert stream is not None  # noqa: S101  # until it is closed
        if shapes in recordings:
            recording, outputs = recordings[shapes]
            recording.start(stream)
            stream.wait()
            return outputs
        self._shape_inputs(shapes)
        outputs = tuple(tuple(self._held.context.get_tensor_shape(spec.name)) for spec in self._outputs)
        self._enqueue(stream, shapes, outputs)
        stream.wait()
        if self._records and self._engine.records(shapes):
            self._record(stream, shapes, outputs)
        return outputs

    def _shape_inputs(self, shapes: Shapes) -> None:
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if not self._held.context.set_input_shape(spec.name, shape):
                raise RuntimeError(f"{VERSION} refuses {shape} for '{spec.name}': {self._errors.told()}")

    def _enqueue(self, stream: Stream, shapes: Shapes, outputs: Shapes) -> None:
        """Give the stream the whole way of a batch, there and back."""
        for spec, shape in zip(self._inputs, shapes, strict=True):
            self._held.buffers[spec.name].upload(shape, spec.dtype, stream)
        if not self._held.context.execute_async_v3(stream.handle):
            raise RuntimeError(f"{VERSION} fails to execute: {self._errors.told()}")
        for spec, shape in zip(self._outputs, outputs, strict=True):
            self._held.buffers[spec.name].download(shape, spec.dtype, stream)

    def _record(self, stream: Stream, shapes: Shapes, outputs: Shapes) -> None:
        """Record what has just been executed, for the next batch of these shapes."""
        if len(self._held.recordings) >= _MOST_RECORDINGS:
            self._records = False
            return
        try:
            recording = Recording(lambda: self._enqueue(stream, shapes, outputs), stream)
        except (drv.Error, RuntimeError) as error:
            self._records = False
            _log.warning("%s runs without CUDA graphs: recording one failed: %s", self._about, error)
            return
        self._held.recordings[shapes] = recording, outputs

    def close(self) -> None:
        """Free the context, the buffers and the stream."""
        with self._gpu.current():
            self._held.free()


def _check(name: str, shape: Sequence[int], range_: Range) -> None:
    for dim, (size, low, high) in enumerate(zip(shape, range_.low, range_.high, strict=True)):
        if not low <= size <= high:
            expected = str(low) if low == high else f"{low} to {high}"
            raise InvalidInput(f"input '{name}': dimension {dim} is {size}, the engine was built for {expected}")
