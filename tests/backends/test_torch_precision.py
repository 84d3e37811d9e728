"""The parameters `dtype` and `compile` of PyTorch models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from support.models import linear, save_exported, save_torchscript
from torch import nn

from backends.base import InvalidInput, LoadError

FOUR, THREE = ("float32", (-1, 4)), ("float32", (-1, 3))


class Mixed(nn.Module):
    """Products and a norm around numbers of a type that the source names: cast as it stands, it would not run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.second = nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The result, and which rows it is of."""
        ones = torch.ones(64, dtype=torch.float32, device=x.device)
        hidden = self.norm(self.first(x)).to(torch.float32) * ones
        return {"y": self.second(hidden), "row": torch.arange(x.shape[0], device=x.device).reshape(-1, 1)}


def mixed(path: Path) -> None:
    """Write `Mixed` as a torch.export archive."""
    save_exported(Mixed().eval(), path, torch.zeros(2, 4))


def script(path: Path) -> None:
    """Write a linear layer as TorchScript."""
    save_torchscript(linear(), path)


def rows(count: int) -> np.ndarray:
    """Random rows."""
    return np.random.default_rng(3).normal(size=(count, 4)).astype(np.float32)


def exact(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """What the module gives in its own precision."""
    with torch.inference_mode():
        result = module(torch.from_numpy(x.copy()))
    return (result["y"] if isinstance(result, dict) else result).numpy()


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 5e-3), ("bf16", 5e-2)])
def test_the_precision_that_was_asked_for(dtype: str, error: float, load: Any, execute: Any) -> None:
    """A model is computed in the type that its owner asks for, and takes and gives what it always did."""
    model = load("model.pt2", mixed, {"dtype": dtype})
    assert [(spec.name, spec.dtype) for spec in model.signature.outputs] == [("y", np.float32), ("row", np.int64)]
    outputs, expected = execute(model, x=rows(5)), exact(Mixed().eval(), rows(5))
    assert outputs["y"].dtype == np.float32
    np.testing.assert_allclose(outputs["y"], expected, rtol=0, atol=error)
    assert np.array_equal(outputs["y"], expected) == (dtype == "fp32")
    assert outputs["row"].tolist() == [[0], [1], [2], [3], [4]]


def test_half_the_memory(load: Any) -> None:
    """ModelStatistics shows that weights of 16 bits take half of what they did."""
    whole, half = (load("model.pt2", mixed, parameters).memory["CPU:0"] for parameters in ({}, {"dtype": "bf16"}))
    assert half * 2 == whole


def test_torchscript_too(load: Any, execute: Any, declare: Any) -> None:
    """TorchScript is computed in the type that its owner asks for."""
    declared = declare({"input": FOUR}, {"OUTPUT__0": THREE})
    model = load("model.pt", script, {"dtype": "bf16"}, declared=declared)
    output, expected = execute(model, input=rows(3))["OUTPUT__0"], exact(linear(), rows(3))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, expected, rtol=0, atol=5e-2)
    assert not np.array_equal(output, expected)


def test_tensors_as_they_are_declared(load: Any, execute: Any, declare: Any) -> None:
    """Who declares 16-bit tensors in config.pbtxt sends and gets 16 bits."""
    declared = declare({"x": (np.float16, (-1, 4))}, {"y": (ml_dtypes.bfloat16, (-1, 3))})
    model = load("model.pt2", mixed, {"dtype": "fp16"}, declared=declared)
    output = execute(model, x=rows(2).astype(np.float16))["y"]
    assert output.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(output.astype(np.float32), exact(Mixed().eval(), rows(2)), rtol=0, atol=2e-2)


def test_what_cannot_be_raised(load: Any) -> None:
    """A file of 16-bit weights does not become more precise: its owner is told to export it anew."""

    def write(path: Path) -> None:
        save_exported(linear().half(), path, torch.zeros(2, 4).half())

    with pytest.raises(LoadError, match=r"^parameter 'dtype' is fp32, the file's weights are torch.float16: export it"):
        load("model.pt2", write, {"dtype": "fp32"})


@pytest.mark.parametrize(
    ("filename", "parameters", "message"),
    [
        ("model.pt2", {"dtype": "int8"}, "parameter 'dtype': expected one of fp32, fp16, bf16, got 'int8'"),
        ("model.pt2", {"compile": "max"}, "parameter 'compile': expected one of true, false"),
        ("model.pt", {"compile": "true"}, "parameter 'compile': torch.compile does not take TorchScript: export with"),
    ],
)
def test_wrong_parameters(filename: str, parameters: dict[str, str], message: str, load: Any, declare: Any) -> None:
    """What a parameter cannot be is refused with what it can be."""
    declared = declare({"input": FOUR}, {"OUTPUT__0": THREE})
    with pytest.raises(LoadError, match=f"^{message}"):
        load(filename, script if filename == "model.pt" else mixed, parameters, declared=declared)


@pytest.mark.filterwarnings("ignore")  # the compiler's own business
def test_compiled(load: Any, execute: Any) -> None:
    """A model that torch.compile made kernels for answers as ever, for any number of rows, and refuses what it did."""
    model = load("model.pt2", mixed, {"compile": "true", "dtype": "bf16"})
    for count in (1, 2, 7):
        outputs = execute(model, x=rows(count))
        np.testing.assert_allclose(outputs["y"], exact(Mixed().eval(), rows(count)), rtol=0, atol=5e-2)
        assert outputs["row"][-1] == count - 1
    with pytest.raises(InvalidInput, match=r"^Expected input at 'x'\.shape\[0\] to be <= 64, but got 65"):
        execute(model, x=rows(65))
