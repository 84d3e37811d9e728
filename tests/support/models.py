"""Small real model files, made where they are needed, and repositories to put them in."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


class RepositoryBuilder:
    """A model repository under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, files: Mapping[str, bytes | str | Path] = {}, config: str = "", version: int = 1) -> Path:
        """Add a model: `files` go into its version folder (a Path is copied). Its folder."""
        folder = self.root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        for filename, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            (folder / filename).write_bytes(data.encode() if isinstance(data, str) else data)
        if config:
            (self.root / name / "config.pbtxt").write_text(config)
        return self.root / name


def onnx_identity(datatype: str = "FP32", shape: Sequence[int | str] = ("batch", 4)) -> bytes:
    """An ONNX model that gives `x` back as `y`; a string is an open size."""
    element = ONNX_TYPES[datatype]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", element, list(shape))],
        [helper.make_tensor_value_info("y", element, list(shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def linear() -> nn.Module:
    """A linear layer from 4 to 3 numbers, the same every time."""
    torch.manual_seed(0)
    return nn.Linear(4, 3).eval()


def save_exported(module: nn.Module, path: Path, *example: torch.Tensor, max_batch: int = 64) -> None:
    """Write `module` as a torch.export archive with an open batch dimension."""
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=tuple({0: batch} for _ in example)), path)


def save_torchscript(module: nn.Module, path: Path) -> None:
    """Write `module` as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))


def save_onnx(module: nn.Module, path: Path, example: torch.Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    """Write `module` as ONNX with an open batch dimension."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
        )


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> bytes:
    """An ONNX model of the given nodes."""
    graph = helper.make_graph(list(nodes), "model", list(inputs), list(outputs), initializer=list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


THIRD_PARTY = {
    "scale_backend.py": """
class Signature:
    inputs = [("x", "float32", [-1, 4])]
    outputs = [("y", "float32", [-1, 4])]
    max_batch_size = 16

class Backend:
    signature = Signature

    def load(self, source):
        model = Backend()
        factor, *sizes = source.file.read_text().split()
        model.factor = float(factor)
        if sizes:
            model.signature = type("Sized", (Signature,), {"batch_sizes": tuple(map(int, sizes))})
        return model

    def instance(self):
        return self

    def execute(self, inputs):
        assert len(inputs["x"]) in getattr(self.signature, "batch_sizes", range(17))
        return {"y": inputs["x"] * self.factor}

    def close(self):
        pass
""",
    "scale_backend-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: scale-backend\nVersion: 1.0\n",
    "scale_backend-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "scale_backend-1.0.dist-info/entry_points.txt": "[tensorgate.backends]\nscale = scale_backend:Backend\n",
}


def install_third_party(folder: Path) -> Path:
    """Install a distribution that brings a backend, `scale` for files `model.scale`; the folder to import it from."""
    wheel = folder / "scale_backend-1.0-py3-none-any.whl"
    record = "scale_backend-1.0.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in THIRD_PARTY.items():
            archive.writestr(name, text)
        archive.writestr(record, "".join(f"{name},,\n" for name in (*THIRD_PARTY, record)))
    target = folder / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    return target
