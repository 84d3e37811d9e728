"""Pruning single weights, the smallest first; and the schedule and the fine-tuning that all pruning has in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn
from torch.nn.utils import prune

from backends.optimize.export import module_of
from backends.optimize.recipe import Recipe
from backends.optimize.training import copy_of, fine_tune
from backends.optimize.variant import TechniqueFailed, Variant

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that are pruned."""

NOT_TUNED = "pruned in one go and not fine-tuned, since the recipe brings no training data."


@dataclass(frozen=True, slots=True)
class PruneWeights:
    """Sets the weights of least magnitude in the whole network to zero, in several steps of prune and fine-tune.

    Attributes:
        sparsity: share of the weights of convolutions and linear layers that is to be zero, above 0 and below 1.
        steps: of the schedule; one without training data.
    """

    sparsity: float = 0.5
    steps: int = 3
    takes: ClassVar = "module"

    @property
    def name(self) -> str:
        """With the sparsity in percent."""
        return f"prune-{self.sparsity * 100:.0f}"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002  # without training data there is less to it
        """None."""
        return ""

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:  # noqa: ARG002  # it writes no file
        """Prune a copy of the module.

        Raises:
            TechniqueFailed: there are no such layers.
        """
        module = copy_of(module_of(variant))
        layers = [(layer, "weight") for layer in module.modules() if isinstance(layer, WEIGHTED)]
        if not layers:
            raise TechniqueFailed("the network has no convolutions or linear layers, whose weights it prunes")
        for sparsity in schedule(self.sparsity, self.steps if recipe.training else 1):
            # Zeros of the step before are the smallest weights there are, hence among these.
            prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)
            if recipe.training:
                fine_tune(module, recipe.training)
            for layer, name in layers:
                prune.remove(layer, name)
        note = "zeros take as much room and time as other numbers: what they save is seen once the file is compressed."
        return pruned(variant, self.name, module, recipe, note)


def schedule(target: float, steps: int) -> Iterator[float]:
    """The share that is to be gone after each step: fast while there is much to spare, slow towards the end.

    Zhu and Gupta's cubic schedule, https://arxiv.org/abs/1710.01878.
    """
    return (target * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1))


def pruned(variant: Variant, step: str, module: nn.Module, recipe: Recipe, note: str) -> Variant:
    """The variant with another module, and what its reader should know."""
    notes = (f"{step}: {note}", *(() if recipe.training else (f"{step}: {NOT_TUNED}",)))
    return replace(variant, steps=(*variant.steps, step), module=module.eval(), notes=(*variant.notes, *notes))
