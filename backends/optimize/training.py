"""The one training loop: the same data, order and numbers every time, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from backends.optimize.recipe import Training
from backends.optimize.variant import TechniqueFailed

Objective = Callable[[Any, Tensor], Tensor]
"""Of the module's outputs for some rows of the training data, and which rows these are: a scalar to make small."""

_SEED = 0
_DIVERGED = "training diverged, its loss is {}: a learning_rate below {:g} may help"


def copy_of(module: nn.Module) -> nn.Module:
    """A module of the same weights that can be changed."""
    return deepcopy(module).requires_grad_(requires_grad=True)


def train(module: nn.Module, training: Training, objective: Objective, epochs: int) -> None:
    """Train a module in place; it is in evaluation mode afterwards.

    The learning rate falls from the recipe's to nothing by a cosine.

    Raises:
        TechniqueFailed: the loss is no number any more.
    """
    rows = len(training.labels)
    steps = epochs * len(list(_batches(torch.arange(rows), training.batch_size)))
    optimizer = torch.optim.Adam(module.parameters(), training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    module.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(_SEED)  # of dropout and the like, and of the order
        for _ in range(epochs):
            for batch in _batches(torch.randperm(rows), training.batch_size):
                loss = objective(module(*(tensor[batch] for tensor in training.inputs)), batch)
                if not torch.isfinite(loss):
                    raise TechniqueFailed(_DIVERGED.format(loss.item(), training.learning_rate))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    module.eval()


def fine_tune(module: nn.Module, training: Training, rounds: int = 1) -> None:
    """Train a module on the labels, for the recipe's number of epochs so many times."""
    train(
        module, training, lambda outputs, rows: training.loss(outputs, training.labels[rows]), rounds * training.epochs
    )


def _batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Rows in batches; a last one of a single row is left out, since batch norms cannot train on it."""
    return (batch for batch in rows.split(size) if len(batch) > 1 or len(rows) == 1)
