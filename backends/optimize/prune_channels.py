"""Pruning whole channels and neurons, which makes the network's tensors smaller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backends.optimize.export import module_of, values_of
from backends.optimize.packages import missing
from backends.optimize.prune import pruned, schedule
from backends.optimize.recipe import Recipe
from backends.optimize.training import copy_of, fine_tune
from backends.optimize.variant import TechniqueFailed, Variant

_ROOTS = (nn.Conv2d, nn.Linear)
"""Layers whose outputs are pruned; those that depend on them follow."""

_MULTIPLE = 8
"""What is left of a layer's channels is a multiple of this: of odd numbers, runtimes' vectors make slow work."""


@dataclass(frozen=True, slots=True)
class PruneChannels:
    """Removes the channels and neurons of least L1 norm in each layer, in several steps of prune and fine-tune.

    What depends on a channel goes with it: norms, depthwise convolutions, the inputs of later layers, the other side of
    an addition. A layer whose channels the network's outputs or a reshape count on keeps all.

    Attributes:
        ratio: share of each layer's channels that is to go, above 0 and below 1, rounded up so that a multiple of 8 is
            left; a layer of less than that keeps all.
        steps: of the schedule; one without training data.
    """

    ratio: float = 0.3
    steps: int = 3
    takes: ClassVar = "module"

    @property
    def name(self) -> str:
        """With the ratio in percent."""
        return f"prune-channels-{self.ratio * 100:.0f}"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002  # without training data there is less to it
        """A missing package."""
        return missing("torch_pruning")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:  # noqa: ARG002  # it writes no file
        """Prune a copy of the module.

        Raises:
            TechniqueFailed: no layer can lose a channel.
        """
        module = copy_of(module_of(variant))
        inputs = tuple(tensor[:2] for tensor in recipe.sample.values())
        before, steps = _weights(module), self.steps if recipe.training else 1
        pruner = _pruner(module, inputs, self, steps)
        for _ in range(steps):
            pruner.step()
            if recipe.training:
                fine_tune(module, recipe.training)
        if (after := _weights(module)) == before:
            raise TechniqueFailed("no layer can lose a channel without changing the shape of an output")
        note = f"{after / before:.0%} of the {before:,} weights are left."
        return pruned(variant, self.name, module, recipe, note)


def _pruner(module: nn.Module, inputs: tuple[Tensor, ...], how: PruneChannels, steps: int) -> Any:
    import torch_pruning  # noqa: PLC0415  # only where it is used

    layers = dict(module.named_modules())
    return torch_pruning.pruner.BasePruner(
        module,
        inputs,
        torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=how.ratio,
        iterative_steps=steps,
        iterative_pruning_ratio_scheduler=lambda ratio, steps: [0.0, *schedule(ratio, steps)],
        ignored_layers=[layers[name] for name in _indivisible(module, inputs)],
        root_module_types=list(_ROOTS),
        round_to=_MULTIPLE,
        in_channel_groups={},  # its own defaults are shared between pruners, and keep their networks alive
        out_channel_groups={},
        num_heads={},
    )


def _indivisible(module: nn.Module, inputs: tuple[Tensor, ...]) -> set[str]:
    """Names of layers that cannot lose a channel: the network fails without it, or gives other shapes."""
    kept: set[str] = set()
    tried: set[str] = set()
    while (layer := _first_to_fail(module, inputs, kept, tried)) is not None:
        kept.add(layer)
    return kept


def _first_to_fail(module: nn.Module, inputs: tuple[Tensor, ...], kept: set[str], tried: set[str]) -> str | None:
    """Take a channel from one layer after the other, in a copy; the first that cannot lose it.

    Args:
        module: the network.
        inputs: what to try it on.
        kept: layers known to be such.
        tried: those that need no further trial; the ones tried now are added.
    """
    import torch_pruning  # noqa: PLC0415

    trial = copy_of(module)
    shapes = _shapes(trial, inputs)
    names = {layer: name for name, layer in trial.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(trial, inputs)
    ignored = [layer for layer, name in names.items() if name in kept]
    for group in list(graph.get_all_groups(ignored, _ROOTS)):
        root, function = group[0].dep.target.module, group[0].dep.handler
        if names[root] in tried:
            continue
        tried.add(names[root])
        one = graph.get_pruning_group(root, function, [0])
        if not graph.check_pruning_group(one):
            continue  # it has but one
        try:
            one.prune()
            same = _shapes(trial, inputs) == shapes
        except (RuntimeError, IndexError, ValueError):  # of an operator that counts on the number of channels
            same = False
        if not same:
            return str(names[root])
    return None


def _shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[torch.Size]:
    with torch.no_grad():
        return [value.shape for value in values_of(module.eval()(*inputs))]


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
