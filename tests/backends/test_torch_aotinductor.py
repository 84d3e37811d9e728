"""`model.pt2` compiled by AOTInductor: code without datatypes and shapes, which config.pbtxt declares."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backends.base import LoadError, ModelSource
from backends.registry import Registry


class Compiled(nn.Module):
    """Not the same when inputs or outputs are swapped."""

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Two outputs by key."""
        return {"scaled": x * scale, "shifted": x + 1}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package compiled once for all tests."""
    path = tmp_path_factory.mktemp("aotinductor") / "model.pt2"
    rows = {0: torch.export.Dim("batch", min=1, max=8)}
    example = (torch.zeros(2, 4),), {"scale": torch.zeros(2, 1)}
    program = torch.export.export(Compiled(), *example, dynamic_shapes={"x": rows, "scale": rows})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own business
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


X, SCALE = ("float32", (-1, 4)), ("float32", (-1, 1))
TWO = np.full((1, 1), 2, np.float32)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"INPUT__0": X, "scale": SCALE}, {"scaled": X, "shifted": X}),
        ({"scale": SCALE, "INPUT__0": X}, {"shifted": X, "scaled": X}),
        ({"pixels": X, "factor": SCALE}, {"scaled": X, "shifted": X}),
        ({"INPUT__1": SCALE, "INPUT__0": X}, {"OUTPUT__1": X, "OUTPUT__0": X}),
    ],
    ids=["by-name", "any-order", "in-order", "by-index"],
)
def test_declared(package: Path, inputs: Any, outputs: Any, *, load: Any, execute: Any, declare: Any) -> None:
    """A compiled model serves with the tensors that config.pbtxt declares, in whatever order its lines stand."""
    declared = declare(inputs, outputs)
    model = load("model.pt2", package, declared=declared)
    assert model.signature == declared
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    scale = np.full((3, 1), 7, np.float32)
    feed = {name: scale if tensor is SCALE else x for name, tensor in inputs.items()}
    got = execute(model, **feed)
    expected = {"scaled": x * scale, "OUTPUT__0": x * scale, "shifted": x + 1, "OUTPUT__1": x + 1}
    assert list(got) == list(outputs)
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5)


def test_lines_to_write(package: Path, load: Any) -> None:
    """Whoever serves a package without a configuration reads the lines to write, with the names it does know."""
    with pytest.raises(LoadError) as caught:
        load("model.pt2", package)
    assert str(caught.value).splitlines()[1:] == [
        "  max_batch_size: 32",
        '  input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        '  input [ { name: "scale" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        '  output [ { name: "scaled" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        '  output [ { name: "shifted" data_type: TYPE_FP32 dims: [ -1 ] } ]',
    ]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a", "b", "c"], ["scaled"], r"the package has inputs \(INPUT__0, scale\)"),
        (["INPUT__5", "INPUT__0"], ["scaled"], r"the package has inputs \(INPUT__0, scale\)"),
        (["INPUT__0", "scale"], ["a", "b", "c"], r"the package has outputs \(scaled, shifted\)"),
    ],
)
def test_wrong_number(package: Path, inputs: Any, outputs: Any, message: str, *, load: Any, declare: Any) -> None:
    """Tensors declared for a package that has others are refused with the list of those it has."""
    with pytest.raises(LoadError, match=message):
        load("model.pt2", package, declared=declare(dict.fromkeys(inputs, X), dict.fromkeys(outputs, X)))


def test_profiler(package: Path, load: Any, declare: Any) -> None:
    """A compiled model runs under the profiler as ever, whether its operators were compiled to be seen or not."""
    model = load("model.pt2", package, declared=declare({"INPUT__0": X, "scale": SCALE}, {"scaled": X, "shifted": X}))
    instance = model.profiler.instance(by_node=False)
    instance.start()
    feed = {"INPUT__0": np.ones((3, 4), np.float32), "scale": np.full((3, 1), 7, np.float32)}
    np.testing.assert_array_equal(instance.execute(feed)["scaled"], np.full((3, 4), 7, np.float32))
    assert all(name and calls for name, calls, _, _ in instance.stop(None))
    instance.close()


def test_its_device(package: Path, load: Any, execute: Any, declare: Any) -> None:
    """A package runs on what it was compiled for alone: beside a GPU, too, one for the CPU is on the CPU."""
    registry = Registry()
    file = load.file("model.pt2", package)
    info, source = registry.for_files({file.name}), ModelSource("m", 1, file.parent, file)
    assert registry.obstacle(info, source, "cpu") == ""
    assert registry.obstacle(info, source, "cuda")
    declared = declare({"x": X, "scale": SCALE}, {"scaled": X, "shifted": X})
    outputs = execute(load.reload(file, declared=declared, device=""), x=np.ones((1, 4), np.float32), scale=TWO)
    assert outputs["scaled"].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("parameters", [{"dtype": "bf16"}, {"compile": "true"}])
def test_what_was_decided_when_it_was_compiled(parameters: dict[str, str], package: Path, load: Any) -> None:
    """Parameters that come too late for a compiled package are refused."""
    with pytest.raises(LoadError, match=r"^parameters 'dtype' and 'compile': an AOTInductor package"):
        load("model.pt2", package, parameters)
