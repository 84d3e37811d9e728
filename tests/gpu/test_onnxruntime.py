"""The backend `onnxruntime` with the CUDA provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.contract import Case, Contract, doubling
from support.engines import convolutions
from support.loading import Loader
from support.models import onnx_identity
from support.zoo import sample

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("onnx_gpu")]

GPU = {"device": "cuda:0"}


@pytest.fixture
def case() -> Case:
    """The one format."""
    return Case("onnxruntime", "model.onnx", doubling, -1, device="cuda:0")


class TestContract(Contract):
    """The backend holds to it on a GPU."""


def images(rows: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(rows).normal(size=(rows, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("parameters", [{}, {"cuda.use_tf32": "0", "cuda.gpu_mem_limit": str(2**30)}], ids=str)
def test_as_on_the_cpu(parameters: dict[str, str], load: Loader, execute: Any) -> None:
    """The GPU's answers are the CPU's, with the provider's options as well."""
    file = load.file("model.onnx", convolutions())
    on_gpu, on_cpu = load.reload(file, parameters, **GPU), load.reload(file)
    for rows in (1, 7, 32):
        expected = execute(on_cpu, x=images(rows))["y"]
        np.testing.assert_allclose(execute(on_gpu, x=images(rows))["y"], expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT64", "BOOL", "BYTES"])
def test_datatypes(datatype: str, load: Loader, execute: Any) -> None:
    """Tensors go to the GPU and come back as they were; strings stay on the CPU."""
    file = load.file("model.onnx", onnx_identity(datatype))
    model = load.reload(file, **GPU)
    x = sample(datatype)
    y = execute(model, x=x)["y"]
    assert y.dtype == x.dtype
    assert y.tolist() == x.tolist() if x.dtype.hasobject else y.tobytes() == x.tobytes()


def test_a_wrong_option(load: Loader) -> None:
    """An option that the provider does not know is refused with its name, not ignored."""
    with pytest.raises(Exception, match="no_such_option"):
        load("model.onnx", onnx_identity(), {"cuda.no_such_option": "1"}, **GPU)


def test_profile_file(load: Loader, tmp_path: Path) -> None:
    """The profiler's session computes on the GPU, as the model's own does."""
    model = load("model.onnx", convolutions(), **GPU)
    instance = model.profiler.instance(by_node=True)
    instance.execute({"x": images(2)})
    instance.start()
    instance.execute({"x": images(2)})
    names = [operation.name for operation in instance.stop(tmp_path / "trace.json")]
    instance.close()
    assert any("Conv" in name for name in names)
    assert "CUDAExecutionProvider" in (tmp_path / "trace.json").read_text()
