"""`model.pt` with TorchScript: names from the schema, the rest from config.pbtxt."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import linear, save_torchscript
from torch import nn

from backends.base import LoadError

ROW = ("float32", (-1, 2))


class Weighted(nn.Module):
    """Two tensors needed, one optional, one number."""

    def forward(
        self, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None, factor: int = 10
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Not the same when the two are swapped."""
        result = left * factor + right
        return (result if bias is None else result + bias), left


class Keyed(nn.Module):
    """A dictionary of outputs."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """In an order of its own."""
        return {"plus": x + 1, "minus": x - 1}


class Unusual(nn.Module):
    """Its receiver has a name of its own."""

    def forward(s, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # noqa: N805  # what is tested
        """Not the same when the two are swapped."""
        return ids * 10 + mask


class Listed(nn.Module):
    """An argument that is no tensor."""

    def forward(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The first."""
        return tensors[0]


def script(module: nn.Module) -> Any:
    """What writes `module` as TorchScript."""
    return lambda path: save_torchscript(module, path)


@pytest.fixture
def weighted(load: Any, declare: Any) -> Any:
    """The model `Weighted` with the given names declared."""

    def weighted(inputs: tuple[str, ...], outputs: tuple[str, ...] = ("OUTPUT__0",)) -> Any:
        declared = declare(dict.fromkeys(inputs, ROW), dict.fromkeys(outputs, ROW))
        return load("model.pt", script(Weighted()), declared=declared)

    return weighted


def rows(*values: float) -> list[np.ndarray]:
    """One row per value, read-only."""
    arrays = [np.full((1, 2), value, np.float32) for value in values]
    for array in arrays:
        array.setflags(write=False)
    return arrays


@pytest.mark.parametrize(
    "names",
    [("left", "right"), ("INPUT__0", "INPUT__1"), ("a", "b")],
    ids=["by-name", "by-index", "in-order"],
)
def test_where_inputs_go(names: tuple[str, str], weighted: Any, execute: Any) -> None:
    """Declared inputs reach the arguments that they name, number or, failing that, line up with."""
    assert execute(weighted(names), **dict(zip(names, rows(1, 2), strict=True)))["OUTPUT__0"].tolist() == [[12, 12]]


@pytest.mark.parametrize("names", [("right", "left"), ("INPUT__1", "INPUT__0")], ids=["by-name", "by-index"])
def test_inputs_declared_in_another_order(names: tuple[str, str], weighted: Any, execute: Any) -> None:
    """The order of the lines in config.pbtxt does not matter where names or numbers say what is meant."""
    assert execute(weighted(names), **dict(zip(names, rows(1, 2), strict=True)))["OUTPUT__0"].tolist() == [[21, 21]]


def test_optional_argument(weighted: Any, execute: Any) -> None:
    """An argument with a default is an input if it is declared."""
    left, right, bias = rows(1, 2, 100)
    assert execute(weighted(("left", "right", "bias")), left=left, right=right, bias=bias)["OUTPUT__0"][0, 0] == 112


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("sum", "left"), (12, 1)), (("OUTPUT__1", "OUTPUT__0"), (1, 12)), (("OUTPUT__1",), (1,))],
    ids=["in-order", "by-index", "one-of-two"],
)
def test_where_outputs_come_from(names: tuple[str, ...], expected: Any, weighted: Any, execute: Any) -> None:
    """Declared outputs are those the model returns at their number, else in order."""
    left, right = rows(1, 2)
    outputs = execute(weighted(("left", "right"), names), left=left, right=right)
    assert {name: array[0, 0] for name, array in outputs.items()} == dict(zip(names, expected, strict=True))


def test_outputs_by_key(load: Any, execute: Any, declare: Any) -> None:
    """A model that returns a dictionary gives its entries by their keys, in whatever order they are declared."""
    declared = declare({"x": ROW}, {"minus": ROW, "plus": ROW})
    outputs = execute(load("model.pt", script(Keyed()), declared=declared), x=rows(5)[0])
    assert {name: array[0, 0] for name, array in outputs.items()} == {"minus": 4, "plus": 6}


def test_receiver_of_another_name(load: Any, execute: Any, declare: Any) -> None:
    """A model whose methods do not call their receiver `self` is served like any other."""
    model = load("model.pt", script(Unusual()), declared=declare({"INPUT__0": ROW, "INPUT__1": ROW}, {"y": ROW}))
    ids, mask = rows(1, 2)
    assert execute(model, INPUT__0=ids, INPUT__1=mask)["y"].tolist() == [[12, 12]]


def test_equals_eager_torch(load: Any, execute: Any, declare: Any) -> None:
    """Numbers served are those that the model itself computes, whether it was scripted or traced."""
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.inference_mode():
        expected = linear()(torch.from_numpy(x)).numpy()
    declared = declare({"input": ("float32", (-1, 4))}, {"y": ("float32", (-1, 3))})

    def trace(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(linear(), torch.zeros(2, 4)).save(path)

    for write in (script(linear()), trace):
        output = execute(load("model.pt", write, declared=declared), input=x)["y"]
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [("left",), ("left", "bias"), ("INPUT__0", "INPUT__9"), ("INPUT__0", "INPUT__00"), ("a", "b", "c", "d", "e")],
)
def test_inputs_that_do_not_fit(names: tuple[str, ...], weighted: Any) -> None:
    """Declared inputs that leave an argument open, or have none to go to, are refused with both lists."""
    with pytest.raises(LoadError) as caught:
        weighted(names)
    assert str(caught.value).startswith(
        f"forward takes (left, right, bias, factor), config.pbtxt declares inputs ({', '.join(names)}): name each after"
    )


def test_arguments_that_are_no_tensors(load: Any, weighted: Any, declare: Any) -> None:
    """A model that needs a list or a number from its callers is refused when it is loaded."""
    declared = declare({"tensors": ROW}, {"y": ROW})
    with pytest.raises(LoadError, match=r"^argument 'tensors' of forward is List\[Tensor\]: only tensors"):
        load("model.pt", script(Listed()), declared=declared)
    with pytest.raises(LoadError, match=r"^argument 'factor' of forward is int: only tensors"):
        weighted(("left", "right", "factor"))


def test_strings(load: Any, declare: Any) -> None:
    """A torch model declared to take strings is refused when it is loaded, with the way out."""
    declared = declare({"x": (object, (-1, 1))}, {"y": ROW})
    with pytest.raises(LoadError, match="'x' is TYPE_STRING, and torch has no strings: put a `python` model in front"):
        load("model.pt", script(Keyed()), declared=declared)


@pytest.mark.parametrize(
    ("module", "inputs", "outputs"),
    [
        (Weighted(), ["left", "right"], ["OUTPUT__0", "OUTPUT__1"]),
        (Unusual(), ["ids", "mask"], ["OUTPUT__0"]),
        (Keyed(), ["x"], ["OUTPUT__0"]),
    ],
)
def test_lines_to_write(module: nn.Module, inputs: list[str], outputs: list[str], load: Any) -> None:
    """Whoever serves TorchScript without a configuration reads the lines to write, with the real argument names."""
    with pytest.raises(LoadError) as caught:
        load("model.pt", script(module))
    assert "does not say which dtypes and shapes it takes" in str(caught.value)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "max_batch_size: 32",
        *(f'input [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]' for name in inputs),
        *(f'output [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]' for name in outputs),
    ]
