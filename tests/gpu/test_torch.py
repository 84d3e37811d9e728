"""The backend `torch` on a GPU."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from support.contract import Case, Contract
from support.loading import Loader
from support.models import linear, save_exported, save_torchscript
from support.networks import Classifier, exact, pixels
from torch import nn

from backends.base import LoadError, Model, ModelSource, Signature, TensorSpec
from backends.registry import Registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("torch_gpu"),
    pytest.mark.filterwarnings("default"),  # the GPU's host has other releases than we do, whose warnings are their own
]

DECLARED = Signature(
    (TensorSpec.of("x", np.float32, (-1, 4)),), (TensorSpec.of("y", np.float32, (-1, 4)),), max_batch_size=16
)
IMAGES = Signature(
    (TensorSpec.of("pixels", np.float32, (-1, 3, 32, 32)),), (TensorSpec.of("OUTPUT__0", np.float32, (-1, 10)),), 64
)
PACKAGE = """
import sys
import torch
from support.models import linear
rows, x = {0: torch.export.Dim("batch", min=1, max=16)}, torch.zeros(2, 4, device="cuda")
program = torch.export.export(linear().cuda(), (x,), dynamic_shapes=(rows,))
torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1])
torch._inductor.aoti_load_package(sys.argv[1])(x)
"""
ERRORS = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1}  # convolutions in fp32 use TF32, torch's own default
GPU = {"device": "cuda:0"}


class Double(nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice `x`."""
        return x + x


class Same(nn.Module):
    """A copy of its input, whatever that is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As it came."""
        return x.clone()


EXPORTED = Case(
    "torch", "model.pt2", lambda p: save_exported(Double(), p, torch.zeros(2, 4), max_batch=16), 16, "OUTPUT__0"
)
CASES = {
    "pt2": replace(EXPORTED, device="cuda:0"),
    "own-choice": replace(EXPORTED, device=""),
    "torchscript": Case(
        "torch", "model.pt", lambda p: save_torchscript(Double(), p), 16, declared=DECLARED, device="cuda:0"
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    """Each format in turn."""
    return request.param


class TestContract(Contract):
    """The backend holds to it on a GPU."""


def classifier(path: Path) -> None:
    """Write the network in the format of the file's name."""
    if path.suffix == ".pt2":
        save_exported(Classifier().eval(), path, pixels(2))
    else:
        save_torchscript(Classifier().eval(), path)


@pytest.mark.parametrize("filename", ["model.pt2", "model.pt"])
@pytest.mark.parametrize("dtype", ERRORS)
def test_precisions(dtype: str, filename: str, load: Loader, execute: Any) -> None:
    """What a GPU computes in each precision is what the CPU computes in float32, as near as the precision allows."""
    declared = IMAGES if filename == "model.pt" else Signature((), ())
    model = load(filename, classifier, {"dtype": dtype}, declared=declared, **GPU)
    for rows in (1, 7, 32):
        (output,) = execute(model, pixels=pixels(rows, rows).numpy()).values()
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, exact(Classifier(), pixels(rows, rows)), rtol=0, atol=ERRORS[dtype])
    assert set(model.memory) == {"GPU:0"}


def test_precision_is_not_only_said(load: Loader, execute: Any) -> None:
    """16 bits halve the weights' memory, and show in the result."""
    models = [load("model.pt2", classifier, {"dtype": dtype}, **GPU) for dtype in ("fp32", "fp16", "bf16")]
    whole, *halves = (model.memory["GPU:0"] for model in models)
    assert all(abs(half * 2 - whole) < 64 for half in halves)  # a counter of batches stays what it is
    answers = [next(iter(execute(model, pixels=pixels(4).numpy()).values())) for model in models]
    errors = [np.abs(answer - exact(Classifier(), pixels(4)).numpy()).max() for answer in answers]
    assert errors[0] < errors[2]
    assert len({answer.tobytes() for answer in answers}) == 3


def test_compiled(load: Loader, execute: Any) -> None:
    """torch.compile makes kernels for the GPU; the answers stay as near."""
    model = load("model.pt2", classifier, {"compile": "true", "dtype": "fp16"}, **GPU)
    for rows in (1, 2, 5):
        (output,) = execute(model, pixels=pixels(rows).numpy()).values()
        np.testing.assert_allclose(output, exact(Classifier(), pixels(rows)), rtol=0, atol=ERRORS["fp16"])


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that was compiled for GPUs, once it is known that PyTorch by itself runs it."""
    path = tmp_path / "package.pt2"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PACKAGE, path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    if ended.returncode < 0:
        crash = signal.Signals(-ended.returncode).name
        pytest.skip(f"PyTorch {torch.__version__} by itself ends with {crash} where it loads its package with weights")
    assert ended.returncode == 0, ended.stderr
    return path


def test_aotinductor(package: Path, load: Loader, execute: Any) -> None:
    """A package that was compiled for GPUs runs on one, is found to, and is refused on the CPU."""
    three = Signature(DECLARED.inputs, (TensorSpec.of("y", np.float32, (-1, 3)),), 16)
    file = load.file("model.pt2", package)
    registry, x = Registry(), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    info, source = registry.for_files({file.name}), ModelSource("m", 1, file.parent, file)
    assert registry.obstacle(info, source, "cuda") == ""
    assert registry.obstacle(info, source, "cpu") == "the package was compiled for cuda"
    for device in ("cuda:0", ""):
        (output,) = execute(load.reload(file, declared=three, device=device), x=x).values()
        np.testing.assert_allclose(output, exact(linear(), torch.from_numpy(x)), rtol=1e-4, atol=1e-5)


DTYPES = [np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (0, 4)], ids=str)
def test_datatypes(dtype: Any, shape: tuple[int, ...], load: Loader, execute: Any) -> None:
    """A tensor goes to the GPU and comes back as it was, whatever its datatype, an empty one too."""
    declared = Signature((TensorSpec.of("x", dtype, (-1, 4)),), (TensorSpec.of("y", dtype, (-1, 4)),), 16)
    model = load("model.pt", lambda path: save_torchscript(Same(), path), declared=declared, **GPU)
    x = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    y = execute(model, x=x)["y"]
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert y.tobytes() == x.tobytes()


def test_inputs_in_any_layout(load: Loader, execute: Any) -> None:
    """Arrays that are views of others, their elements apart, are sent as what they are."""
    model = load("model.pt2", EXPORTED.write, **GPU)
    x = np.arange(64, dtype=np.float32).reshape(4, 16)[:, ::4].T
    np.testing.assert_array_equal(execute(model, x=x)["OUTPUT__0"], x * 2)


def test_outputs_are_the_gateways_own(load: Loader) -> None:
    """An answer stays what it was through later executions, and after its model has been closed."""
    model = load("model.pt2", EXPORTED.write, close=False, **GPU)
    instance = model.instance()
    inputs = [np.full((8, 4), value, np.float32) for value in range(200)]
    outputs = [instance.execute({"x": x})["OUTPUT__0"] for x in inputs]
    instance.close()
    model.close()
    for x, output in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(output, x * 2)
        assert output.flags.writeable


def test_no_such_gpu(load: Loader) -> None:
    """A GPU that is not there is refused in a line that names it."""
    with pytest.raises(LoadError, match=r"^no device 'cuda:99': .+") as caught:
        load("model.pt2", EXPORTED.write, device="cuda:99")
    assert "\n" not in str(caught.value)


def run(model: Model, batches: int) -> None:
    """Execute batches of changing sizes on two instances at once."""

    def one(seed: int) -> None:
        random = np.random.default_rng(seed)
        instance = model.instance()
        try:
            for _ in range(batches // 2):
                rows = int(random.integers(1, 17))
                x = np.full((rows, 4), rows, np.float32)
                assert (instance.execute({"x": x})["OUTPUT__0"] == 2 * rows).all()
        finally:
            instance.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one, range(2)))


def resident() -> int:
    """The process's memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_stays_flat(load: Loader) -> None:
    """Ten thousand batches take no more of the GPU's memory, nor of the machine's, than a thousand."""
    model = load("model.pt2", EXPORTED.write, **GPU)
    run(model, 1000)
    reserved, before = torch.cuda.memory_reserved(), resident()
    run(model, 10_000)
    assert torch.cuda.memory_reserved() <= reserved
    assert resident() - before < 32 * 2**20


def test_memory_comes_back(load: Loader) -> None:
    """A model that is unloaded gives the memory of its weights back."""
    wide = nn.Linear(4096, 4096)

    def once() -> None:
        model = load("model.pt2", lambda path: save_exported(wide, path, torch.zeros(2, 4096)), close=False, **GPU)
        assert model.memory["GPU:0"] == 4 * (4096 * 4096 + 4096)
        instance = model.instance()
        instance.execute({"input": np.zeros((1, 4096), np.float32)})
        instance.close()
        model.close()

    once()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        once()
    assert torch.cuda.memory_allocated() <= before
