"""What is learnt: distillation, depthwise-separable convolutions, and the one training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.techniques import accuracy_of, apply
from torch import nn

from backends.optimize.depthwise import DepthwiseSeparable, Separate
from backends.optimize.distil import Distil, soft_loss
from backends.optimize.prune import PruneWeights
from backends.optimize.recipe import Recipe
from backends.optimize.variant import TechniqueFailed, Variant


def test_soft_loss() -> None:
    """The loss is Hinton's: the divergence of the softened distributions, times the temperature squared."""
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    p = 1 / (1 + math.exp(2))  # softmax of (0, 2)
    q = 1 / (1 + math.exp(-1))  # softmax of (1, 0)
    by_hand = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-5)
    twice = soft_loss(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert twice.item() == pytest.approx(by_hand, rel=1e-5)  # a mean over the rows
    assert soft_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_distil(digits: Recipe, folder: Path) -> None:
    """A student a tenth of the size learns the task, and is nearer to its teacher than one that saw labels alone."""
    taught = apply(Distil(soft_weight=0.9), digits, folder)
    alone = apply(Distil(soft_weight=0.0), digits, folder)
    assert taught.name == "distil"
    assert sum(p.numel() for p in taught.module.parameters()) < 0.1 * sum(p.numel() for p in digits.model.parameters())
    assert accuracy_of(digits, taught) > 0.85
    images = digits.training.inputs[0]
    with torch.no_grad():
        teacher = digits.model(images)["logits"]
        apart = [soft_loss(variant.module(images), teacher, 4.0).item() for variant in (taught, alone)]
    assert apart[0] < 0.8 * apart[1]


def test_distil_refusals(digits: Recipe, folder: Path) -> None:
    """What distillation lacks is said: a student, training data, logits to compare, the original's place."""
    assert "give the recipe a `student`" in Distil().obstacle(replace(digits, student=None))
    assert "give the recipe `training`" in Distil().obstacle(replace(digits, training=None))
    assert Distil().obstacle(digits) == ""
    with pytest.raises(TechniqueFailed, match="distil first, then go on"):
        apply(Distil(), digits, folder, Variant(("prune-50",), digits.model))
    other = replace(digits, student=nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))
    with pytest.raises(TechniqueFailed, match=r"first output is \[2, 7\] for two rows, the model's is \[2, 10\]"):
        apply(Distil(), other, folder)


@pytest.mark.parametrize(
    "settings",
    [{}, {"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2, "bias": False}, {"padding_mode": "circular"}],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_nearest(settings: dict) -> None:
    """Filters that can be taken apart exactly are, and others better than by any scaling of one shared filter."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 12, 3, **settings)
    x = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        shared = convolution.weight.mean(0, keepdim=True)  # [1, 6, 3, 3]
        taken = DepthwiseSeparable.nearest(convolution)
        weights = taken.pointwise.weight[:, :, 0, 0][:, :, None, None] * taken.depthwise.weight[:, 0][None]
        left = (convolution.weight - weights).norm() / convolution.weight.norm()
        factor = (convolution.weight * shared).sum((2, 3), keepdim=True) / (shared**2).sum((2, 3), keepdim=True)
        assert left < (convolution.weight - factor * shared).norm() / convolution.weight.norm() < 1
        assert taken(x).shape == convolution(x).shape
        convolution.weight.copy_(torch.randn(12, 6, 1, 1) * shared)
        torch.testing.assert_close(DepthwiseSeparable.nearest(convolution)(x), convolution(x))


def test_separate(digits: Recipe, folder: Path) -> None:
    """A classifier with its convolutions taken apart is smaller and as good; the first layer stays as it was."""
    variant = apply(Separate(), digits, folder)
    assert isinstance(variant.module.reduce[0], DepthwiseSeparable)
    assert isinstance(variant.module.stem[0], nn.Conv2d)
    assert variant.notes == ("depthwise: 1 convolutions replaced.",)
    before = digits.model.reduce[0].weight.numel()
    assert sum(p.numel() for p in variant.module.reduce[0].parameters()) < 0.2 * before
    assert accuracy_of(digits, variant) > 0.94


def test_separate_refusals(digits: Recipe, folder: Path) -> None:
    """Without training data, or without such convolutions, the reason is told."""
    assert "give the recipe `training`" in Separate().obstacle(replace(digits, training=None))
    with pytest.raises(TechniqueFailed, match="no convolutions that are not depthwise or 1 x 1 already"):
        apply(Separate(), digits, folder, Variant(module=digits.student))


def test_same_again(digits: Recipe, folder: Path) -> None:
    """Whoever runs a recipe twice gets the same networks, and random numbers of their own are not disturbed."""
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    first = apply(PruneWeights(steps=1), digits, folder).module.state_dict()
    assert torch.equal(torch.rand(3), undisturbed)
    second = apply(PruneWeights(steps=1), digits, folder).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_diverged(digits: Recipe, folder: Path) -> None:
    """A training that diverges is a failure with a hint, and no variant of NaNs."""
    wild = replace(digits, training=replace(digits.training, learning_rate=1e30))
    with pytest.raises(
        TechniqueFailed, match=r"training diverged, its loss is (nan|inf): a learning_rate below 1e\+30"
    ):
        apply(PruneWeights(steps=1), wild, folder)
