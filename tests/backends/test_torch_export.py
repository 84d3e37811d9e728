"""`model.pt2` from torch.export: everything is read from the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from backends.base import UNBOUNDED, InvalidInput, LoadError, Signature, TensorSpec

Write = Callable[[Path], None]
BATCH = Dim("batch", min=1, max=32)


class Nested(nn.Module):
    """Positional, nested and keyword arguments."""

    def forward(self, x: torch.Tensor, extra: dict[str, Any], *, scale: torch.Tensor) -> dict[str, Any]:
        """A dictionary with a tuple in it."""
        first, second = extra["pair"]
        return {"sum": x + extra["shift"], "both": (first * scale, second - x)}


class Optional(nn.Module):
    """Arguments that are no tensors, and an output that is none."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, times: int = 1, mode: str = "up") -> tuple[Any, ...]:
        """`x` several times."""
        result = x * times if mode == "up" else x / times
        return None, result if mask is None else result * mask, times


class Classifier(nn.Module):
    """A small network that is not exactly computable by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        return self.layers(pixels).softmax(1)


class Function(nn.Module):
    """A module made of a function of one tensor."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        """What the function says."""
        return self.function(x)


def exported(module: nn.Module, args: tuple[Any, ...], dynamic: Any = None, kwargs: Any = None) -> Write:
    """What writes `module` as a torch.export archive."""
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    return lambda path: torch.export.save(program, path)


def of_function(function: Callable[[torch.Tensor], Any], size: Any = BATCH, example: Any = None) -> Write:
    """What writes a function of one batch of four numbers per row."""
    return exported(Function(function), (torch.zeros(5, 4) if example is None else example,), ({0: size},))


def ones(*shape: int) -> np.ndarray:
    """Read-only ones."""
    array = np.ones(shape, np.float32)
    array.setflags(write=False)
    return array


def test_names_of_nested_arguments(load: Any, execute: Any) -> None:
    """Arguments inside dicts and tuples, and keyword arguments, are tensors with names of their own."""
    row = {0: BATCH}
    dynamic = {"x": row, "extra": {"shift": row, "pair": (row, row)}, "scale": row}
    example = [torch.zeros(2, 3) for _ in range(4)]
    args = (example[0], {"shift": example[1], "pair": (example[2], example[3])})
    model = load("model.pt2", exported(Nested(), args, dynamic, {"scale": torch.zeros(2, 1)}))
    names = [spec.name for spec in model.signature.inputs]
    assert names == ["x", "extra_shift", "extra_pair_0", "extra_pair_1", "scale"]
    assert model.signature.inputs[4].shape == (-1, 1)
    assert [spec.name for spec in model.signature.outputs] == ["sum", "both_0", "both_1"]
    assert model.signature.max_batch_size == 32
    inputs = {name: ones(1, 3) * (i + 1) for i, name in enumerate(names[:4])}
    outputs = execute(model, scale=ones(1, 1) * 10, **inputs)
    assert {name: array.tolist() for name, array in outputs.items()} == {
        "sum": [[3, 3, 3]],
        "both_0": [[30, 30, 30]],
        "both_1": [[3, 3, 3]],
    }


@pytest.mark.parametrize(
    ("function", "declared", "names"),
    [
        (lambda x: x + 1, [], ["OUTPUT__0"]),
        (lambda x: (x + 1, x + 2), [], ["OUTPUT__0", "OUTPUT__1"]),
        (lambda x: (x + 1, x + 2), ["a", "b"], ["a", "b"]),
        (lambda x: (x + 1, x + 2), ["a"], ["OUTPUT__0", "OUTPUT__1"]),
        (lambda x: {"z": x + 1, "a": x + 2}, ["a", "z"], ["z", "a"]),
        (lambda x: [x + 1, {"a": x + 2}], [], ["OUTPUT__0", "OUTPUT__1"]),
    ],
)
def test_names_of_outputs(function: Any, declared: list[str], names: list[str], load: Any, execute: Any) -> None:
    """Outputs are called after the model's dict keys, else as config.pbtxt declares them, else by their position."""
    outputs = tuple(TensorSpec.of(name, "float32", (-1, 4)) for name in declared)
    model = load("model.pt2", of_function(function), declared=Signature((), outputs))
    assert [spec.name for spec in model.signature.outputs] == names
    assert {name: array[0, 0] for name, array in execute(model, x=ones(1, 4)).items()} == {
        n: i + 2 for i, n in enumerate(names)
    }


def test_arguments_that_are_no_tensors(load: Any, execute: Any) -> None:
    """A model exported with None, numbers or strings for some arguments serves with those values built in."""
    model = load("model.pt2", exported(Optional(), (torch.zeros(2, 3), None, 3), ({0: BATCH}, None, None)))
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    assert model.signature.outputs == (("OUTPUT__1", np.float32, (-1, 3)),)
    assert execute(model, x=ones(2, 3))["OUTPUT__1"].tolist() == [[3, 3, 3]] * 2


def test_equals_eager_torch(load: Any, execute: Any) -> None:
    """Probabilities served are those that the model itself computes."""
    module = Classifier().eval()
    model = load("model.pt2", exported(module, (torch.zeros(2, 1, 8, 8),), ({0: BATCH},)))
    pixels = np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(execute(model, pixels=pixels)["OUTPUT__0"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), ()], ids=["matrix", "scalar"])
@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float64",
        "bfloat16",
    ],
)
def test_every_datatype(dtype: str, shape: tuple[int, ...], load: Any, execute: Any) -> None:
    """Every datatype of the protocol but BYTES passes through a model unchanged."""
    model = load("model.pt2", exported(Function(torch.clone), (torch.ones(shape, dtype=getattr(torch, dtype)),)))
    expected = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    assert model.signature.inputs == (("x", expected, shape),)
    array = np.array(np.arange(6).reshape(2, 3) if shape else 5).astype(expected)
    array.setflags(write=False)
    np.testing.assert_array_equal(execute(model, x=array)["OUTPUT__0"], array, strict=True)


def test_datatypes_that_the_protocol_lacks(load: Any) -> None:
    """A model with complex numbers is refused when it is loaded, naming the tensor."""
    with pytest.raises(LoadError, match=r"^'x' is torch\.complex64: only tensors of the protocol's datatypes"):
        load("model.pt2", of_function(torch.abs, example=torch.zeros(5, 4, dtype=torch.complex64)))


@pytest.mark.parametrize(
    ("size", "limit"),
    [
        (Dim("batch", min=1, max=7), 7),
        (Dim("batch", max=7), 7),
        (Dim("batch"), UNBOUNDED),
        (Dim.AUTO, UNBOUNDED),
        (Dim.DYNAMIC, UNBOUNDED),
        (Dim.STATIC, 0),
    ],
    ids=["min-max", "max", "open", "auto", "dynamic", "static"],
)
def test_batch_limit(size: Any, limit: int, load: Any, execute: Any) -> None:
    """The batch limit is the one that the model was exported with, and a single row can be served."""
    model = load("model.pt2", of_function(lambda x: x * 2, size))
    assert model.signature.max_batch_size == limit
    rows = 1 if limit else 5
    assert execute(model, x=ones(rows, 4))["OUTPUT__0"].tolist() == [[2, 2, 2, 2]] * rows


def test_smallest_batch_has_to_be_one(load: Any) -> None:
    """The owner of a model that cannot take a single row is told how to export it."""
    with pytest.raises(LoadError, match=r"exported for batches of at least 3: .*Dim\('batch', min=1\)"):
        load("model.pt2", of_function(lambda x: x * 2, Dim("batch", min=3, max=9)))


@pytest.mark.parametrize(
    "function", [lambda x: x.repeat(2, 1), lambda x: x.sum(0), torch.sum, lambda x: (x, x[:2])], ids=range(4)
)
def test_rows_that_do_not_correspond(function: Any, load: Any) -> None:
    """A model whose outputs have other rows than its inputs is never fed the rows of several callers at once."""
    model = load("model.pt2", of_function(function))
    assert model.signature.max_batch_size == 0
    assert model.signature.inputs[0].shape == (-1, 4)


def test_sizes_it_was_not_exported_for(load: Any, execute: Any) -> None:
    """A caller whose sizes the model was not exported for is told the input and the limit."""
    dims = {0: BATCH, 1: Dim("length", min=3, max=9)}
    write = exported(Function(lambda x: x + 1 if x.shape[1] > 2 else x - 1), (torch.zeros(2, 5),), (dims,))
    model = load("model.pt2", write)
    assert execute(model, x=ones(1, 3))["OUTPUT__0"].tolist() == [[2, 2, 2]]
    with pytest.raises(InvalidInput, match=r"^Expected input at 'x'\.shape\[1\] to be >= 3, but got 2$"):
        execute(model, x=ones(1, 2))
    with pytest.raises(InvalidInput, match=r"^Expected input at 'x'\.shape\[1\] to be <= 9, but got 10$"):
        execute(model, x=ones(1, 10))


def test_sizes_that_have_to_agree(load: Any, execute: Any) -> None:
    """A caller whose two inputs do not go together is told so by their names, also those inside containers."""
    row = {0: BATCH, 1: Dim("length")}
    dynamic = {"x": row, "extra": {"shift": row, "pair": (row, row)}, "scale": row}
    x = torch.zeros(2, 3)
    model = load("model.pt2", exported(Nested(), (x, {"shift": x, "pair": (x, x)}), dynamic, {"scale": x}))
    inputs = {spec.name: ones(1, 3) for spec in model.signature.inputs}
    for name in ("scale", "extra_pair_1"):
        with pytest.raises(
            InvalidInput, match=rf"^Expected input at '{name}'\.shape\[1\] to be equal to 3, but got 1$"
        ):
            execute(model, **{**inputs, name: ones(1, 1)})


def test_its_own_failures_are_not_the_callers(load: Any, execute: Any) -> None:
    """An error inside the model is not blamed on the caller."""
    table = torch.zeros(3, 2)
    model = load("model.pt2", of_function(lambda x: table[x.long()], example=torch.zeros(5, 4)))
    with pytest.raises(IndexError):
        execute(model, x=ones(1, 4) * 7)


@pytest.mark.parametrize("function", [lambda x: x.add_(1), lambda x: x[:, :2].zero_() + 2, lambda x: x], ids=range(3))
def test_writing_into_inputs(function: Any, load: Any, execute: Any) -> None:
    """A model that writes into its input never changes the request's memory."""
    batch = ones(2, 4)
    result = execute(load("model.pt2", of_function(function)), x=batch)["OUTPUT__0"]
    assert result[0, 0] == function(torch.ones(2, 4))[0, 0]
    assert batch.tolist() == [[1, 1, 1, 1]] * 2
