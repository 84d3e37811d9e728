"""Convolutions taken apart: one filter for each channel, then a mixture of the channels, as in MobileNet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backends.optimize.export import module_of
from backends.optimize.recipe import Recipe
from backends.optimize.training import copy_of, fine_tune
from backends.optimize.variant import TechniqueFailed, Variant

_FEW_CHANNELS = 4
"""Of pictures: one filter for each of them leaves the next layer nothing to mix."""


class DepthwiseSeparable(nn.Module):
    """In place of an `nn.Conv2d`: [n, in, h, w] to [n, out, h', w'], at 1 / out + 1 / k² of its cost."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **more: Any) -> None:
        """As `nn.Conv2d`, without `groups`; a `bias` belongs to the mixture."""
        super().__init__()
        bias = more.pop("bias", True)
        more |= {"kernel_size": kernel_size, "groups": in_channels, "bias": False}
        self.depthwise = nn.Conv2d(in_channels, in_channels, **more)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The mixture of what the filters give."""
        mixed: Tensor = self.pointwise(self.depthwise(x))
        return mixed

    @classmethod
    def nearest(cls, convolution: nn.Conv2d) -> DepthwiseSeparable:
        """The one whose filters are nearest to those of a convolution: for each input channel, its best rank-1 fit."""
        made = cls(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,
            stride=convolution.stride,
            padding=convolution.padding,
            dilation=convolution.dilation,
            padding_mode=convolution.padding_mode,
            bias=convolution.bias is not None,
        )
        with torch.no_grad():
            filters = convolution.weight.flatten(2).transpose(0, 1)  # [in, out, k * k]
            mixtures, sizes, shapes = torch.linalg.svd(filters, full_matrices=False)
            root = sizes[:, :1].sqrt()
            made.pointwise.weight.copy_((mixtures[:, :, 0] * root).T[:, :, None, None])
            made.depthwise.weight.copy_((shapes[:, 0] * root).unflatten(1, convolution.kernel_size)[:, None])
            if made.pointwise.bias is not None and convolution.bias is not None:
                made.pointwise.bias.copy_(convolution.bias)
        return made.train(convolution.training)


@dataclass(frozen=True, slots=True)
class Separate:
    """Replaces every standard convolution by a depthwise and a pointwise one, begun from its weights, and fine-tunes.

    The first layer of a network for pictures stays, as in MobileNet.

    Attributes:
        rounds: the recipe's epochs this many times: more is lost at first than by pruning.
    """

    rounds: int = 3
    name: ClassVar = "depthwise"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:
        """No training data: the nearest weights alone are far off."""
        return "" if recipe.training else "it needs training data: give the recipe `training`"

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:  # noqa: ARG002  # it writes no file
        """Replace convolutions in a copy of the module.

        Raises:
            TechniqueFailed: there is none to replace.
        """
        if recipe.training is None:
            raise TechniqueFailed(self.obstacle(recipe))
        module = copy_of(module_of(variant))
        replaced = separated(module)
        if not replaced:
            raise TechniqueFailed("the network has no convolutions that are not depthwise or 1 x 1 already")
        fine_tune(module, recipe.training, self.rounds)
        note = f"{self.name}: {replaced} convolutions replaced."
        return replace(variant, steps=(*variant.steps, self.name), module=module, notes=(*variant.notes, note))


def separated(module: nn.Module) -> int:
    """Replace the standard convolutions inside a module; how many there were."""
    found = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Conv2d and _worthwhile(layer)
    ]
    for parent, name, layer in found:
        setattr(parent, name, DepthwiseSeparable.nearest(layer))
    return len(found)


def _worthwhile(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.kernel_size != (1, 1) and layer.in_channels > _FEW_CHANNELS
