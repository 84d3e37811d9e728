"""Knowledge distillation: a small network learns from the outputs of a large one beside the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.optimize.export import values_of
from backends.optimize.recipe import Recipe, Training
from backends.optimize.training import copy_of, train
from backends.optimize.variant import TechniqueFailed, Variant


@dataclass(frozen=True, slots=True)
class Distil:
    """Trains the recipe's student on what the recipe's model says of the training data, and on the labels.

    The first output of both has to be logits, classes last. See Hinton, Vinyals and Dean, https://arxiv.org/abs/1503.02531.

    Attributes:
        temperature: what both logits are divided by before they are compared: the higher, the more the small ones say.
        soft_weight: of the comparison with the teacher, 0 to 1; the loss on the labels has the rest.
        rounds: the recipe's epochs this many times, since a student starts from nothing.
    """

    temperature: float = 4.0
    soft_weight: float = 0.7
    rounds: int = 5
    name: ClassVar = "distil"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:
        """No student, or no training data."""
        if recipe.student is None:
            return "it needs a small network to train: give the recipe a `student`"
        return "" if recipe.training else "it needs training data: give the recipe `training`"

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:  # noqa: ARG002  # it writes no file
        """Train a copy of the student.

        Raises:
            TechniqueFailed: the variant is no longer the original, whose place the student takes; or the logits of
                student and teacher are of different shapes.
        """
        if variant.steps:
            raise TechniqueFailed("a student takes the place of the original: distil first, then go on")
        if recipe.student is None or recipe.training is None:
            raise TechniqueFailed(self.obstacle(recipe))
        training, student = recipe.training, copy_of(recipe.student)
        logits = _logits(recipe.model, training)
        _check(student, training, logits)

        def objective(outputs: Any, rows: Tensor) -> Tensor:
            soft = soft_loss(values_of(outputs)[0], logits[rows], self.temperature)
            hard = training.loss(outputs, training.labels[rows])
            return self.soft_weight * soft + (1 - self.soft_weight) * hard

        train(student, training, objective, self.rounds * training.epochs)
        return replace(variant, steps=(self.name,), module=student)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's distribution is from the teacher's, both softened: the mean Kullback-Leibler divergence.

    Times the square of the temperature, by which softening makes gradients smaller.

    Args:
        student: logits, classes last.
        teacher: the same.
        temperature: above 0.
    """
    classes = teacher.shape[-1]
    learnt = functional.log_softmax(student / temperature, -1).reshape(-1, classes)
    right = functional.log_softmax(teacher / temperature, -1).reshape(-1, classes)
    return functional.kl_div(learnt, right, reduction="batchmean", log_target=True) * temperature**2


def _logits(teacher: nn.Module, training: Training) -> Tensor:
    """What the teacher says of all training data."""
    batches = zip(*(tensor.split(training.batch_size) for tensor in training.inputs), strict=True)
    with torch.no_grad():
        return torch.cat([values_of(teacher.eval()(*batch))[0] for batch in batches])


def _check(student: nn.Module, training: Training, logits: Tensor) -> None:
    with torch.no_grad():
        given = values_of(student.eval()(*(tensor[:2] for tensor in training.inputs)))[0]
    if given.shape != logits[:2].shape:
        raise TechniqueFailed(
            f"the student's first output is {[*given.shape]} for two rows, the model's is {[*logits[:2].shape]}: they "
            "have to be the same to be compared"
        )
