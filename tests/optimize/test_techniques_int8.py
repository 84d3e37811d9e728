"""int8 and fp16: smaller files that still give nearly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.techniques import accuracy_of, apply, served
from torch import nn

from backends.optimize.export_onnx import OnnxExport
from backends.optimize.export_pt2 import TorchExport
from backends.optimize.onnx_fp16 import Fp16
from backends.optimize.onnx_int8 import DynamicInt8, StaticInt8
from backends.optimize.recipe import Recipe
from backends.optimize.torch_int8 import TorchDynamicInt8, TorchStaticInt8
from backends.optimize.variant import Technique, TechniqueFailed, Variant


class Uneven(nn.Module):
    """Output channels whose weights are of very different sizes, as trained networks have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 1024), nn.Linear(1024, 64)
        with torch.no_grad():
            self.second.weight.mul_(torch.logspace(-2, 0, 64)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [n,64] to [n,64]."""
        return self.second(self.first(x).relu())


@pytest.fixture
def uneven() -> Recipe:
    """A recipe with that network."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return Recipe("uneven", Uneven().eval(), {"x": x[:4]}, ("y",), lambda _: 1.0, {"x": x})


def size(variant: Variant) -> int:
    """Bytes of its file."""
    return variant.artifact.file.stat().st_size


def error(variant: Variant, recipe: Recipe) -> float:
    """How far outputs are from the original's: the mean over the channels of each one's share of error."""
    right = recipe.run(recipe.model, recipe.calibration)
    given = served(variant.artifact, recipe, recipe.calibration)
    return max(float(np.sqrt(((given[n] - r) ** 2).mean(0) / (r**2).mean(0)).mean()) for n, r in right.items())


def test_per_channel(uneven: Recipe, folder: Path) -> None:
    """Both dynamic int8 files have a quarter of the size; the one with a scale for each channel is nearer."""
    original = apply(OnnxExport(), uneven, folder)
    per_tensor, per_channel = (apply(DynamicInt8(channel), uneven, folder, original) for channel in (False, True))
    assert [per_tensor.name, per_channel.name] == ["onnx_int8-per-tensor", "onnx_int8-per-channel"]
    for variant in (per_tensor, per_channel):
        assert size(variant) < 0.4 * size(original)
        assert "outputs differ by up to" in variant.notes[-1]
    assert 0 < error(per_channel, uneven) < 0.5 * error(per_tensor, uneven)


def test_embeddings(sentences: Recipe, sentences_onnx: Variant, folder: Path) -> None:
    """A transformer's embeddings become int8 as well: they are half of a small one."""
    int8 = apply(DynamicInt8(), sentences, folder, sentences_onnx)
    floats = sum(p.numel() * 4 for p in sentences.model.parameters())
    assert size(sentences_onnx) - size(int8) > 0.6 * floats
    assert error(int8, sentences) < 0.05


@pytest.mark.parametrize("technique", [StaticInt8(), StaticInt8(symmetric=True), Fp16()], ids=lambda t: t.name)
def test_converted_digits(technique: Technique, digits: Recipe, digits_onnx: Variant, folder: Path) -> None:
    """A classifier of convolutions keeps its accuracy in a smaller file, which takes and gives fp32 as before."""
    variant = apply(technique, digits, folder, digits_onnx)
    saved = size(digits_onnx) - size(variant)
    assert saved > (0.45 if technique.name == "fp16" else 0.6) * sum(p.numel() * 4 for p in digits.model.parameters())
    assert accuracy_of(digits, variant) > accuracy_of(digits, digits_onnx) - 0.02


def test_static_transformer(sentences: Recipe, sentences_onnx: Variant, folder: Path) -> None:
    """Static int8 of a transformer is not spoilt by the huge numbers of its attention mask."""
    int8 = apply(StaticInt8(), sentences, folder, sentences_onnx)
    assert error(int8, sentences) < 0.1


def test_overflow(uneven: Recipe, folder: Path) -> None:
    """A network whose numbers are too large for fp16 is refused, instead of served with what is left of them."""
    with torch.no_grad():
        uneven.model.first.weight.mul_(1e5)
        uneven.model.second.weight.mul_(1e-5)
    original = apply(OnnxExport(), uneven, folder)
    with pytest.raises(TechniqueFailed, match="output 'y' for a batch of 1 differs by up to"):
        apply(Fp16(), uneven, folder, original)


@pytest.mark.parametrize("technique", [TorchDynamicInt8(), TorchStaticInt8()], ids=lambda t: t.name)
def test_torch(technique: Technique, digits: Recipe, uneven: Recipe, folder: Path) -> None:
    """The int8 of torchao is served from a smaller .pt2, by a server without torchao, as accurately as before."""
    assert size(apply(technique, uneven, folder)) < 0.4 * size(apply(TorchExport(), uneven, folder))
    variant = apply(technique, digits, folder)
    assert accuracy_of(digits, variant) > accuracy_of(digits, Variant(module=digits.model)) - 0.02


def test_nothing_to_quantise(digits: Recipe, folder: Path) -> None:
    """Where there is nothing to quantise, the reason is told."""
    sample = {"x": torch.randn(2, 3, 8, 8)}
    recipe = Recipe("conv", nn.Conv2d(3, 4, 3).eval(), sample, ("y",), lambda _: 1.0, sample)
    with pytest.raises(TechniqueFailed, match="none of the operators it quantises: MatMul, Gemm, Gather"):
        apply(DynamicInt8(), recipe, folder, apply(OnnxExport(), recipe, folder))
    with pytest.raises(TechniqueFailed, match="no linear layers"):
        apply(TorchDynamicInt8(), recipe, folder)


def test_obstacles(digits: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said before anything is tried: calibration data, a package, a compiler."""
    bare = replace(digits, calibration={})
    for technique in (StaticInt8(), TorchStaticInt8()):
        assert technique.obstacle(digits) == ""
        assert "give the recipe some rows of `calibration`" in technique.obstacle(bare)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert Fp16().obstacle(digits) == "onnx, onnxruntime not installed: pip install 'tensorgate[optimize]'"
    assert TorchDynamicInt8().obstacle(digits) == "torchao not installed: pip install 'tensorgate[optimize]'"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert TorchDynamicInt8(compiled=True).obstacle(digits) == "it needs a C++ compiler: install g++"
