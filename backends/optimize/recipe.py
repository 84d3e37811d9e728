"""A recipe: the plain Python file that says what to optimise, with which data, and what a good result is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.base import Array

if TYPE_CHECKING:
    from backends.optimize.variant import Technique

Predict = Callable[..., Any]
"""Given to `evaluate`: takes the inputs as arrays, by position or by name, any number of rows; gives the only output's
array, or a dict of arrays by name where there are several."""

Loss = Callable[[Any, Tensor], Tensor]
"""Of the module's outputs and the labels: a scalar."""


@dataclass(frozen=True, slots=True)
class Training:
    """What fine-tuning and distillation work with.

    Attributes:
        inputs: a tensor for each input, rows first.
        labels: a row for each row of the inputs.
        loss: what is to become small; the cross-entropy of the first output by default.
        epochs, batch_size, learning_rate: of each training.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    loss: Loss
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe file defines.

    Attributes:
        name: the file's name without its ending; names the models in the repository.
        model: the trained network, fp32, in evaluation mode.
        sample: a tensor for each input by name, two rows or more; every first dimension is the batch.
        outputs: names of the outputs, in the module's order.
        evaluate: gives the score through `predict`: one number, or a number for each example, whose mean is the score.
        calibration: as `sample`, with as many rows as static quantisation is to see.
        training: None where the recipe brings no training data.
        student: a small untrained network with the same inputs and outputs, for distillation; None without one.
        techniques: steps of the recipe's own, tried like ours.
    """

    name: str
    model: nn.Module
    sample: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    evaluate: Callable[[Predict], float | NDArray[Any]]
    calibration: Mapping[str, Tensor]
    training: Training | None = None
    student: nn.Module | None = None
    techniques: tuple[Technique, ...] = ()

    def run(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """The module's outputs by name, as arrays."""
        with torch.inference_mode():
            result = module.eval()(*inputs.values())
        values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else (result,)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}
