"""Backend `onnxruntime`: `model.onnx`."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from backends.base import (
    Array,
    InvalidInput,
    LoadError,
    ModelSource,
    Signature,
    TensorSpec,
    require,
    switch,
    warn_of_unknown,
)
from backends.onnxruntime_profiler import OnnxRuntimeProfiler
from backends.onnxruntime_session import INLINE, PARAMETERS, obstacle, opened, prefixes

_log = logging.getLogger(__name__)

_DTYPES: dict[str, Any] = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(string)": np.object_,
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, which numpy's buffer protocol cannot express


class OnnxRuntimeBackend:
    """Loads ONNX models.

    Outputs that config.pbtxt does not declare are not computed. Where it declares none, all are that are tensors of the
    protocol's datatypes; a warning names the others.

    Parameters (all optional):
        execution_providers: comma-separated, first choice first, as "TensorRT, CUDA, CPU"; by default "CUDA, CPU" on a
            GPU and "CPU" else. Those for GPUs are left out where the instance group is on the CPU.
        cuda.*, tensorrt.*, ...: a provider's own options, as `cuda.gpu_mem_limit`; `cuda.cudnn_conv_algo_search` is
            HEURISTIC unless set here, since each new size of batch would start a search.
        intra_op_thread_count, inter_op_thread_count: 0 lets the runtime choose.
        execution_mode: 0 sequential (default), 1 parallel.
        graph_optimization_level: disable, basic, extended or all (default).
        enable_mem_arena, enable_mem_pattern: true (default) or false.
        inline: true: short executions stay on the server's own thread; not for a model whose time depends on the
            values it gets, as with loops, since a caller could hold up everybody; default false.
        session.*, ep.*: any session configuration entry; `session.intra_op.allow_spinning` and its `inter_op` twin are
            0 unless set here, since spinning threads take the processor from the server's other work.
    """

    def load(self, source: ModelSource) -> OnnxRuntimeModel:
        """Open a session over `model.onnx`.

        Raises:
            LoadError: the file is not a model this runtime can execute, a parameter is wrong, or the protocol cannot
                carry an input, a declared output or any output.
        """
        if source.file is None:
            raise LoadError("backend 'onnxruntime' needs a model.onnx in the version folder")
        warn_of_unknown(source, PARAMETERS, prefixes(source))
        again = partial(opened, source, source.file)
        session = again()
        model = OnnxRuntimeModel(session, _outputs(session.get_outputs(), source), again)
        model.inline = switch(source, INLINE, default=False)
        return model

    def obstacle(self, source: ModelSource, kind: str) -> str:
        """Why this onnxruntime cannot load the source on a kind of device, "cuda" or "cpu"; "" if it can."""
        return obstacle(source, kind)


class OnnxRuntimeModel:
    """A session. Sessions may run on several threads at once, so every instance shares it."""

    inline = False

    def __init__(
        self, session: ort.InferenceSession, outputs: Sequence[TensorSpec], again: Callable[[str], ort.InferenceSession]
    ) -> None:
        self._session = session
        self._again = again
        self.signature = Signature.of(_specs(session.get_inputs()), outputs)
        self._shared = _shared_sizes(session.get_inputs())
        self._inputs = [spec.name for spec in self.signature.inputs]
        self._outputs = [spec.name for spec in self.signature.outputs]
        dtypes = {spec.dtype for spec in (*self.signature.inputs, *self.signature.outputs)}
        self._has_bfloat16 = np.dtype(ml_dtypes.bfloat16) in dtypes
        if self._has_bfloat16 and np.dtype(np.object_) in dtypes:
            raise LoadError("onnxruntime takes no BF16 and string tensors in one call: cast to float in the model")

    @property
    def profiler(self) -> OnnxRuntimeProfiler:
        """One over a session of its own, since the runtime profiles only those that were opened for it."""
        outputs = self.signature.outputs
        return OnnxRuntimeProfiler(self._again, lambda session: OnnxRuntimeModel(session, outputs, self._again))

    def instance(self) -> OnnxRuntimeModel:
        """The model itself."""
        return self

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Run the session; the runtime releases the GIL while it computes.

        Raises:
            InvalidInput: a BYTES element is not UTF-8, which the runtime's strings are, an input is missing, or the
                model fails over sizes that differ though it calls them by one name.
        """
        require(inputs, self._inputs)
        feed = {name: _decoded(name, array) if array.dtype.hasobject else array for name, array in inputs.items()}
        try:
            results = self._run(feed)
        except Exception:
            _check_sizes(self._shared, inputs)  # not before: a model may broadcast them all the same
            raise
        return {
            name: _encoded(result) if result.dtype.hasobject else result
            for name, result in zip(self._outputs, results, strict=True)
        }

    def _run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs' arrays; on the CPU over the runtime's own memory, and it reads the inputs where they are."""
        results: list[Array]
        if self._has_bfloat16:
            values = {name: _to_value(array) for name, array in feed.items()}
            results = [_from_value(value) for value in self._session.run_with_ort_values(self._outputs, values)]
        else:
            results = self._session.run(self._outputs, feed)
        # A graph may name one of its inputs as an output: that is then the caller's memory, which others get next.
        given = feed.values()
        return [out.copy() if any(np.may_share_memory(out, array) for array in given) else out for out in results]

    def close(self) -> None:
        """The session is freed with its last reference."""


def _outputs(nodes: Sequence[Any], source: ModelSource) -> list[TensorSpec]:
    """The outputs to compute: the declared ones; without any, those that the protocol can carry."""
    names = {spec.name for spec in source.declared.outputs}
    declared = _specs([node for node in nodes if node.name in names])
    if names and len(declared) == len(names):
        return declared
    # Of a declared name that the model lacks, the gateway says so, beside the names there are.
    carried = [node for node in nodes if node.type in _DTYPES]
    if carried and not names and len(carried) < len(nodes):
        left = ", ".join(f"'{node.name}' ({node.type})" for node in nodes if node.type not in _DTYPES)
        _log.warning("model %s/%d: the protocol cannot carry output %s: left out", source.name, source.version, left)
    return _specs(carried or nodes)


def _shared_sizes(nodes: Sequence[Any]) -> dict[str, list[tuple[str, int]]]:
    """Where the inputs have each open size that occurs more than once: input and dimension, by the size's name."""
    places: dict[str, list[tuple[str, int]]] = {}
    for node in nodes:
        for axis, size in enumerate(node.shape):
            if size and isinstance(size, str):
                places.setdefault(size, []).append((node.name, axis))
    return {size: found for size, found in places.items() if len(found) > 1}


def _check_sizes(shared: Mapping[str, Sequence[tuple[str, int]]], inputs: Mapping[str, Array]) -> None:
    """Refuse sizes that differ under one name: that is why the runtime failed somewhere inside the model."""
    for symbol, places in shared.items():
        # The runtime itself refuses another rank.
        sizes = [(name, axis, inputs[name].shape[axis]) for name, axis in places if axis < inputs[name].ndim]
        for name, axis, size in sizes[1:]:
            first, where, expected = sizes[0]
            if size != expected:
                raise InvalidInput(
                    f"input '{name}': dimension {axis} is {size}, expected {expected} as in dimension {where} of "
                    f"input '{first}' (both are '{symbol}')"
                )


def _specs(nodes: Sequence[Any]) -> list[TensorSpec]:
    return [_spec(node) for node in nodes]


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise LoadError(f"tensor '{node.name}' has type {node.type}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, np.dtype(_DTYPES[node.type]), shape)


def _decoded(name: str, array: Array) -> Array:
    """The runtime takes `str`; of `bytes` it would compute with their Python repr."""
    try:
        return _objects([element.decode() for element in array.flat], array.shape)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input '{name}': expected BYTES elements in UTF-8: {error}") from error


def _encoded(array: Array) -> Array:
    return _objects([element.encode() for element in array.flat], array.shape)


def _objects(elements: list[Any], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _to_value(array: Array) -> ort.OrtValue:
    """An array as the runtime's tensor. The runtime knows no numpy datatype for bfloat16: it gets the bits."""
    array = np.asarray(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: ort.OrtValue) -> Array:
    """The runtime's tensor as an array, over the same memory where numpy has the datatype."""
    if value.element_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape())
