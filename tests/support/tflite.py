"""Small .tflite files, made where they are needed, by the schema that comes with the runtime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ai_edge_litert import schema_py_generated as schema

Type = schema.TensorType
Code = schema.BuiltinOperator

_NUMPY = {Type.FLOAT32: np.float32, Type.INT8: np.int8, Type.INT32: np.int32, Type.INT64: np.int64}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph; a size of -1 is open, and stands as 1 until it is resized. `values` make it a constant."""

    name: str
    shape: Sequence[int]
    type: int = Type.FLOAT32
    values: np.ndarray | None = None
    scale: float = 0.0
    """Of a quantised one; 0 if it is none."""


@dataclass(frozen=True)
class Operator:
    """One operation on tensors that it knows by name; `custom` names one that is not built in."""

    code: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Any = None
    custom: str = ""


@dataclass(frozen=True)
class Graph:
    """What one signature computes; without the name of one, a graph is only found by its position.

    In the file, tensors of a signature are called "signature/name", so that no two have one name.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    operators: Sequence[Operator]
    inner: Sequence[Tensor] = ()
    signature: str = ""


def tflite_model(*graphs: Graph) -> bytes:
    """A model of these graphs. Constants of one name are stored once, for all graphs."""
    model = schema.ModelT(version=3, subgraphs=[], operatorCodes=[], buffers=[schema.BufferT()], signatureDefs=[])
    buffers: dict[str, int] = {}
    codes: dict[tuple[int, str], int] = {}
    for graph in graphs:
        tensors = (*graph.inputs, *graph.outputs, *graph.inner)
        for constant in (tensor for tensor in tensors if tensor.values is not None and tensor.name not in buffers):
            buffers[constant.name] = len(model.buffers)
            model.buffers.append(schema.BufferT(data=list(np.asarray(constant.values).tobytes())))
        for operator in graph.operators:
            if (operator.code, operator.custom) not in codes:
                codes[operator.code, operator.custom] = len(codes)
                model.operatorCodes.append(_code(operator))
        model.subgraphs.append(_subgraph(graph, tensors, buffers, codes))
        if graph.signature:
            model.signatureDefs.append(_signature(graph, tensors, len(model.subgraphs) - 1))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(operator: Operator) -> Any:
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(operator.code, 127), builtinCode=operator.code, customCode=operator.custom or None
    )


def _subgraph(
    graph: Graph, tensors: Sequence[Tensor], buffers: Mapping[str, int], codes: Mapping[tuple[int, str], int]
) -> Any:
    index = {tensor.name: position for position, tensor in enumerate(tensors)}
    return schema.SubGraphT(
        tensors=[_tensor(tensor, buffers.get(tensor.name, 0), graph.signature) for tensor in tensors],
        inputs=[index[tensor.name] for tensor in graph.inputs],
        outputs=[index[tensor.name] for tensor in graph.outputs],
        operators=[
            schema.OperatorT(
                opcodeIndex=codes[operator.code, operator.custom],
                inputs=[index[name] for name in operator.inputs],
                outputs=[index[name] for name in operator.outputs],
                builtinOptionsType=_options_type(operator.options),
                builtinOptions=operator.options,
            )
            for operator in graph.operators
        ],
        name=graph.signature or "main",
    )


def _tensor(tensor: Tensor, buffer: int, signature: str) -> Any:
    quantization = schema.QuantizationParametersT(scale=[tensor.scale], zeroPoint=[0]) if tensor.scale else None
    return schema.TensorT(
        shape=[1 if size == -1 else size for size in tensor.shape],
        shapeSignature=list(tensor.shape) if -1 in tensor.shape else None,
        type=tensor.type,
        buffer=buffer,
        name=f"{signature}/{tensor.name}" if signature else tensor.name,
        quantization=quantization,
        hasRank=True,
    )


def _options_type(options: Any) -> int:
    return getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")) if options else 0


def _signature(graph: Graph, tensors: Sequence[Tensor], subgraph: int) -> Any:
    index = {tensor.name: position for position, tensor in enumerate(tensors)}

    def maps(named: Sequence[Tensor]) -> list[Any]:
        return [schema.TensorMapT(name=t.name, tensorIndex=index[t.name]) for t in named]

    return schema.SignatureDefT(
        inputs=maps(graph.inputs), outputs=maps(graph.outputs), signatureKey=graph.signature, subgraphIndex=subgraph
    )


def doubled(rows: int, signature: str = "", width: int = 4) -> Graph:
    """One graph of y = x + x; -1 rows are open."""
    return Graph(
        [Tensor("x", (rows, width))],
        [Tensor("y", (rows, width))],
        [Operator(Code.ADD, ["x", "x"], ["y"], schema.AddOptionsT())],
        signature=signature,
    )
