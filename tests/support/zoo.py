"""A repository with a model for every datatype and backend, and arrays to call them with."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from support.models import RepositoryBuilder, linear, onnx_identity, save_exported, save_torchscript
from tensorgate_client.tensors import DTYPES

LINEAR_CONFIG = """
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""


def onnx_classifier() -> bytes:
    """An ONNX model from `x` [batch,4] to `logits` [batch,3] and `probabilities` [batch,3]."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    bias = np.array([0.1, -0.2, 0.3], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
        ],
        [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def add_identities(repository: RepositoryBuilder) -> None:
    """`identity_FP32` and its like, from `x` to `y`, one for each datatype."""
    for datatype in DTYPES:
        repository.add(f"identity_{datatype}", {"model.onnx": onnx_identity(datatype)})


def add_linears(repository: RepositoryBuilder) -> None:
    """`support.models.linear` as `linear_pt2` and `linear_pt`."""
    module = linear()
    save_exported(module, repository.add("linear_pt2") / "1" / "model.pt2", torch.zeros(2, 4))
    save_torchscript(module, repository.add("linear_pt", config=LINEAR_CONFIG) / "1" / "model.pt")


def sample(datatype: str) -> np.ndarray:
    """Three rows of four values that a careless conversion would change."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        texts = [b"", b"a", "größe".encode(), b"\0", b"a\0b", b"\0\0c", b" ", b"\n", b"x" * 300, b"7", b"nul\0", b"0"]
        array = np.empty(12, object)
        array[:] = texts
    elif datatype == "BOOL":
        array = np.arange(12) % 3 == 0
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.array([limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1, *range(2, 8)], dtype)
    else:
        limits = ml_dtypes.finfo(dtype)
        special = [np.nan, np.inf, -np.inf, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal]
        array = np.array([*special, 1 / 3, -1.5, 2.0, 1e-3], dtype)
    return array.reshape(3, 4)
