"""`model.pt`: TorchScript, for those who still load it elsewhere; PyTorch itself goes on with torch.export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from backends.optimize.export import exported, module_of, quiet, values_of
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant


@dataclass(frozen=True, slots=True)
class TorchScript:
    """A trace of the sample; config.pbtxt has to declare inputs and outputs, in the recipe's order."""

    name: ClassVar = "torchscript"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002  # torch is there: the recipe is made with it
        """None."""
        return ""

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Trace the module: what depends on values or on the batch's size is caught by the check of other batches."""
        file = folder / "model.pt"
        module = _Flat(module_of(variant)).eval()
        with quiet(), torch.no_grad():
            torch.jit.trace(module, tuple(recipe.sample.values()), check_trace=False).save(str(file))
        return exported(variant, self.name, Artifact(file, "torch"), recipe)


class _Flat(nn.Module):
    """A module that returns a tensor, or a tuple of several: the keys of a dict need not be the recipe's names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: tuple[Tensor, ...] = values_of(self.module(*inputs))
        return values if len(values) > 1 else values[0]
