"""Models to profile, their operators known, and some that are not as they should be."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from support.commands import MOODY, TWO, WHOLE
from support.models import RepositoryBuilder, onnx_model
from support.zoo import add_linears, onnx_classifier

SIZED = """
class Model:
    inputs, outputs = [("x", "float32", (-1, -1))], [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        raise ValueError(f"no {inputs['x'].shape}")
"""

TIMED = """
class Signature:
    inputs = [("x", "float32", [-1, 4])]
    outputs = [("y", "float32", [-1, 4])]
    max_batch_size = 16

class Backend:
    signature = Signature
    name, traces = "a stopwatch", False

    def load(self, source):
        model = Backend()
        model.profiler = model
        return model

    def instance(self, by_node=False):
        return Backend()

    def start(self):
        self.count = 0

    def execute(self, inputs):
        self.count = getattr(self, "count", 0) + 1
        return {"y": inputs["x"]}

    def stop(self, trace):
        return [("Copy", self.count, 2.0 * self.count, 1.0 * self.count)]

    def close(self):
        pass
"""
"""A backend with a profiler, which imports nothing of ours."""


def onnx_dense() -> bytes:
    """A Gemm and a Relu, which the runtime makes one operator of unless it is told to leave the graph alone."""
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], "dense"), helper.make_node("Relu", ["h"], ["y"], "cut")]
    return onnx_model(nodes, [x], [y], [weights])


def onnx_loop() -> bytes:
    """A matrix product three times, in a Loop."""
    matrix = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in ("h", "h_next")]
    go = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "go_next")]
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    inside = [helper.make_node("MatMul", ["h", "h"], ["h_next"]), helper.make_node("Identity", ["go"], ["go_next"])]
    body = helper.make_graph(inside, "body", [turn, go[0], matrix[0]], [go[1], matrix[1]])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xy")
    three = numpy_helper.from_array(np.array(3, np.int64), "three")
    yes = numpy_helper.from_array(np.ones((), bool), "yes")
    return onnx_model([helper.make_node("Loop", ["three", "yes", "x"], ["y"], body=body)], [x], [y], [three, yes])


def add_profiled(repository: RepositoryBuilder) -> RepositoryBuilder:
    """Real models of every backend, and some that do not load or run."""
    add_linears(repository)
    unfused = 'parameters { key: "graph_optimization_level" value { string_value: "disable" } }'
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    repository.add("classifier", {"model.onnx": onnx_dense()}, version=2)
    repository.add("fused", {"model.onnx": onnx_dense()})
    repository.add("unfused", {"model.onnx": onnx_dense()}, unfused)
    repository.add("loop", {"model.onnx": onnx_loop()})
    for name, source in {"two": TWO, "moody": MOODY, "whole": WHOLE}.items():
        repository.add(name, {"model.py": source}, "max_batch_size: 0" if name == "whole" else "")
    repository.add("sized", {"model.py": SIZED})
    repository.add("echo", config='backend: "echo"')
    repository.add("broken", {"model.onnx": b"(no model"})
    repository.add("undeclared", {"model.pt": repository.root / "linear_pt" / "1" / "model.pt"})
    repository.add("misnamed", {"model.onnx": onnx_dense()}, 'name: "other"')
    repository.add("empty")
    return repository
