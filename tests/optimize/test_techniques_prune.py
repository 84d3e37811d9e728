"""Pruning: weights become zero, or channels go for good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.techniques import accuracy_of, apply
from torch import nn

from backends.optimize.export_onnx import OnnxExport
from backends.optimize.prune import WEIGHTED, PruneWeights, schedule
from backends.optimize.prune_channels import PruneChannels
from backends.optimize.recipe import Recipe
from backends.optimize.variant import TechniqueFailed, Variant


def zeros(module: nn.Module) -> float:
    """Share of the weights of convolutions and linear layers that are zero."""
    weights = torch.cat([layer.weight.flatten() for layer in module.modules() if isinstance(layer, WEIGHTED)])
    return (weights == 0).double().mean().item()


def count(module: nn.Module) -> int:
    """Numbers in all of its weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_sparsity(digits: Recipe, folder: Path) -> None:
    """Fine-tuning leaves as many zeros as were asked for, and as much accuracy as there was."""
    variant = apply(PruneWeights(0.8), digits, folder)
    assert variant.name == "prune-80"
    assert zeros(variant.module) == pytest.approx(0.8, abs=1e-3)
    assert accuracy_of(digits, variant) > 0.94
    assert not any("_orig" in name or "_mask" in name for name in variant.module.state_dict())
    assert "once the file is compressed" in variant.notes[0]


def test_schedule() -> None:
    """Most is pruned in the first step and little in the last, where it hurts."""
    assert list(schedule(0.8, 4)) == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    assert list(schedule(0.3, 1)) == [0.3]


def test_channels(digits: Recipe, digits_onnx: Variant, folder: Path) -> None:
    """With half of the channels gone tensors and file are smaller; fine-tuning brings back what accuracy that costs."""
    variant = apply(PruneChannels(0.5), digits, folder)
    assert variant.name == "prune-channels-50"
    module = variant.module
    assert module.hidden.weight.shape == (32, 256)
    assert module.depthwise[0].weight.shape == (16, 1, 3, 3)  # with the layer before it
    assert module.stem[1].running_mean.shape == (8,)
    assert module.head.weight.shape == (10, 32)  # digits are still ten
    assert count(module) < 0.3 * count(digits.model)
    assert f"of the {count(digits.model):,} weights are left" in variant.notes[0]
    assert accuracy_of(digits, variant) > 0.93
    files = [v.artifact.file.stat().st_size for v in (digits_onnx, apply(OnnxExport(), digits, folder, variant))]
    assert files[1] < 0.5 * files[0]


@pytest.mark.parametrize("technique", [PruneWeights(0.95), PruneChannels(0.5)], ids=lambda t: t.name)
def test_without_training(technique: PruneWeights | PruneChannels, digits: Recipe, folder: Path) -> None:
    """Without training data pruning is done in one go, and both the note and the accuracy show it."""
    untrained = replace(digits, training=None)
    assert technique.obstacle(untrained) == ""
    variant = apply(technique, untrained, folder)
    assert "not fine-tuned, since the recipe brings no training data" in variant.notes[-1]
    assert accuracy_of(digits, variant) < accuracy_of(digits, Variant(module=digits.model)) - 0.05


def test_attention(sentences: Recipe, folder: Path) -> None:
    """In a transformer the hidden neurons go, and what attention and the outputs count on stays."""
    module = apply(PruneChannels(0.5), sentences, folder).module
    assert module.grow.weight.shape == (32, 32)
    assert module.shrink.weight.shape == (32, 32)
    assert module.queries.weight.shape == module.values.weight.shape == (32, 32)
    given = sentences.run(module, sentences.sample)
    right = sentences.run(sentences.model, sentences.sample)
    assert {name: value.shape for name, value in given.items()} == {name: value.shape for name, value in right.items()}


def test_nothing_to_prune(folder: Path) -> None:
    """A network that cannot lose a channel, or has no such layers, is told apart from one that can."""
    sample = {"x": torch.randn(2, 4)}
    recipe = Recipe("linear", nn.Linear(4, 3).eval(), sample, ("y",), lambda _: 1.0, sample)
    with pytest.raises(TechniqueFailed, match="no layer can lose a channel"):
        apply(PruneChannels(), recipe, folder)
    with pytest.raises(TechniqueFailed, match="no convolutions or linear layers"):
        apply(PruneWeights(), replace(recipe, model=nn.ReLU()), folder)
