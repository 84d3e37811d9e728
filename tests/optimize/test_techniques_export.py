"""Exports: every file serves what the network gives, at any size of batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.techniques import accuracy_of, apply, served
from torch import Tensor, nn

from backends.optimize.check import checked
from backends.optimize.export_onnx import OnnxExport
from backends.optimize.export_pt2 import AotInductor, TorchExport
from backends.optimize.export_tensorrt import TensorRtEngine
from backends.optimize.export_torchscript import TorchScript
from backends.optimize.onnx_int8 import DynamicInt8, StaticInt8
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Technique, TechniqueFailed, Variant


def rows(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Inputs of so many rows."""
    return {name: tensor[:count] for name, tensor in recipe.calibration.items()}


@pytest.mark.parametrize("technique", [TorchExport(), OnnxExport(), TorchScript()], ids=lambda t: t.name)
def test_digits(technique: Technique, digits: Recipe, folder: Path) -> None:
    """A classifier is as right in any format as it was in PyTorch."""
    original = accuracy_of(digits, Variant(module=digits.model))
    variant = apply(technique, digits, folder)
    assert variant.name == technique.name
    assert variant.module is None
    assert accuracy_of(digits, variant) == pytest.approx(original, abs=1e-9)
    assert original > 0.95


@pytest.mark.parametrize("technique", [TorchExport(), OnnxExport(), TorchScript(), AotInductor()], ids=lambda t: t.name)
def test_several_tensors(technique: Technique, sentences: Recipe, folder: Path) -> None:
    """Clients find inputs and outputs by the recipe's names, though layers inside are called the same."""
    variant = apply(technique, sentences, folder)
    for count in (1, 2, 20):
        inputs = rows(sentences, count)
        given = served(variant.artifact, sentences, inputs)
        for name, right in sentences.run(sentences.model, inputs).items():
            np.testing.assert_allclose(given[name], right, atol=1e-4)


def test_sample_left_out(digits: Recipe, folder: Path) -> None:
    """A .pt2 has the size of the weights, not of the data set that the sample is a part of."""
    variant = apply(TorchExport(), digits, folder)
    weights = sum(tensor.nbytes for tensor in digits.model.state_dict().values())
    assert variant.artifact.file.stat().st_size < 1.5 * weights + 60_000 < digits.training.inputs[0].nbytes


class Fixed(nn.Module):
    """Its numbers depend on the size of the batch in a way that no trace sees."""

    def forward(self, x: Tensor) -> Tensor:
        """Not what a model for batches should give."""
        return x * int(x.shape[0])


def test_mismatch(folder: Path) -> None:
    """A file that gives something else than the network is refused with the numbers, instead of served."""
    sample = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    recipe = Recipe("fixed", Fixed().eval(), sample, ("y",), lambda _: 1.0, sample)
    said = r"output 'y' for a batch of 1 differs by up to 2 from the original, whose largest value is 2; 0.002 would do"
    with pytest.raises(TechniqueFailed, match=said):
        apply(TorchScript(), recipe, folder)


def test_nan(sentences: Recipe, sentences_onnx: Variant) -> None:
    """A file that gives NaN is refused, whatever exactness was asked for."""
    with pytest.raises(TechniqueFailed, match="holds NaN or infinity where the original holds numbers, or the reverse"):
        checked(
            sentences_onnx.artifact,
            lambda inputs: {name: value * np.nan for name, value in sentences.run(sentences.model, inputs).items()},
            sentences,
        )


def test_damaged(digits: Recipe, tmp_path: Path) -> None:
    """A file that its backend does not take is refused with the backend's words."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TechniqueFailed, match=r"model\.onnx does not serve: "):
        checked(Artifact(tmp_path / "model.onnx", "onnxruntime"), lambda _: {}, digits)


def test_engine(digits: Recipe, digits_onnx: Variant, folder: Path) -> None:
    """An engine is built of an export as it is and of its int8 form; where no GPU is, the report says it never ran."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")
    int8 = apply(StaticInt8(symmetric=True), digits, folder, digits_onnx)
    engines = [apply(TensorRtEngine(), digits, folder, variant) for variant in (digits_onnx, int8)]
    assert [engine.name for engine in engines] == ["onnx_tensorrt", "onnx_int8-static-symmetric_tensorrt"]
    for engine in engines:
        assert engine.artifact.file.name == "model.plan"
        assert engine.artifact.max_batch_size == 32
        assert engine.notes[-1].startswith(("tensorrt: built, not executed: ", "tensorrt: outputs differ by up to "))
    plans = [engine.artifact.file.stat().st_size for engine in engines]
    assert plans[0] > 0.9 * sum(p.numel() * 4 for p in digits.model.parameters())


def test_engine_of_dynamic_int8(digits: Recipe, digits_onnx: Variant, folder: Path) -> None:
    """TensorRT takes no dynamic int8; the reason names the operator."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")
    variant = apply(DynamicInt8(), digits, folder, digits_onnx)
    with pytest.raises(TechniqueFailed, match="DynamicQuantizeLinear"):
        apply(TensorRtEngine(), digits, folder, variant)


def test_wrong_order(digits: Recipe, folder: Path) -> None:
    """A file cannot be exported again, and a network has to be exported before it is converted: each is said."""
    with pytest.raises(TechniqueFailed, match="'original' is only a module so far: export it first"):
        apply(DynamicInt8(), digits, folder)
    exported = replace(Variant(), steps=("onnx",))
    with pytest.raises(TechniqueFailed, match="'onnx' is only a file: exports and training work on modules"):
        apply(TorchExport(), digits, folder, exported)
