"""A repository for callers who make mistakes, and what requests are built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.models import RepositoryBuilder
from support.zoo import onnx_classifier
from tensorgate_client.wire import inference_pb2 as pb

Request = pb.ModelInferRequest

CONFIDENTIAL = "patient 4711"

PYTHON_MODEL = """
import numpy as np
from backends.base import InvalidInput

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", object, (-1, 1))]

    def execute(self, inputs):
        return {"y": BODY}
"""

BODIES = {
    "raises": f"1 / 0 if not '{CONFIDENTIAL}' else int('{CONFIDENTIAL}')",
    "refuses": '(_ for _ in ()).throw(InvalidInput("x: expected values of at most 1, got 7"))',
    "odd_output": "np.array([[object()]])",
    "no_dict": "np.ones((9, 9, 9), object)",
    "too_many_rows": "np.full((7, 1), b'somebody else')",
    "huge_output": "np.array([[b'y' * 70_000_000]], object)",
}


def echo_config(*tensors: tuple[str, str, list[int]], max_batch_size: int = 0) -> str:
    """The config.pbtxt of an echo model: `in_NAME` comes back as `out_NAME`, or `x` as `y`."""
    lines = ['backend: "echo"', f"max_batch_size: {max_batch_size}"]
    for name, data_type, dims in tensors:
        lines.append(f'input {{ name: "in_{name}" data_type: TYPE_{data_type} dims: {dims} }}')
        lines.append(f'output {{ name: "out_{name}" data_type: TYPE_{data_type} dims: {dims} }}')
    return "\n".join(lines)


def build(root: Path) -> RepositoryBuilder:
    """The repository."""
    repository = RepositoryBuilder(root)
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    repository.add("pair", config=echo_config(("a", "FP32", [2]), ("b", "INT8", [1]), max_batch_size=4))
    repository.add("open", config=echo_config(("a", "FP32", [-1, -1])))
    repository.add("text", config=echo_config(("a", "STRING", [-1])))
    repository.add("half", config=echo_config(("a", "FP16", [2])))
    repository.add("tiny", config=echo_config(("a", "UINT8", [2])))
    repository.add("größe 数", config=echo_config(("é", "FP32", [2])))
    for name, body in BODIES.items():
        repository.add(name, {"model.py": PYTHON_MODEL.replace("BODY", body)})
    return repository


def tensor(name: str = "x", datatype: str = "FP32", shape: Sequence[int] = (1, 4), **contents: Any) -> Any:
    """An input; `fp32_contents=[...]` and its like are its typed contents, `int64_param` no parameter of it."""
    typed = pb.InferTensorContents(**contents) if contents else None
    return Request.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=typed)


def request(
    *inputs: Any, model: str = "classifier", raw: Sequence[bytes] = (), outputs: Sequence[Any] = (), **fields: Any
) -> Request:
    """A request; outputs are names or messages."""
    wanted = [Request.InferRequestedOutputTensor(name=o) if isinstance(o, str) else o for o in outputs]
    return Request(model_name=model, inputs=inputs, outputs=wanted, raw_input_contents=raw, **fields)


def with_parameter(message: Any, key: str, **value: Any) -> Any:
    """The message with a parameter, as `int64_param=3`."""
    message.parameters[key].CopyFrom(pb.InferParameter(**value))
    return message


ROW = bytes(16)  # [1,4] FP32
X = tensor()
GOOD = request(X, raw=[ROW])
