"""What every export of a module has in common: the recipe's names, an open batch, and a check of what came out."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backends.optimize.bare import arrays, opened
from backends.optimize.check import EXPORTED, checked
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, TechniqueFailed, Variant


class Named(nn.Module):
    """A module whose arguments, and the keys of what it returns, are the recipe's names."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.module = module
        outputs = recipe.outputs

        def forward(*inputs: Tensor) -> dict[str, Any]:
            return dict(zip(outputs, values_of(self.module(*inputs)), strict=True))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in recipe.sample]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # where exporters look
        self.forward = forward
        self.training = False  # as the module is, which may be a graph that refuses to be told


def values_of(result: Any) -> tuple[Any, ...]:
    """The outputs in order, of a module that returns a tensor, a tuple or a mapping."""
    return tuple(result.values()) if isinstance(result, Mapping) else result if isinstance(result, tuple) else (result,)


def open_batch(recipe: Recipe) -> tuple[dict[int, Any], ...]:
    """For each input: its first dimension is the batch, of any size; the others are as in the sample."""
    batch = torch.export.Dim("batch", min=1)
    return tuple({0: batch} for _ in recipe.sample)


def program_of(module: nn.Module, recipe: Recipe) -> torch.export.ExportedProgram:
    """A module as a program of torch.export, by the recipe's names and with an open batch."""
    with quiet(), torch.no_grad():
        return torch.export.export(
            Named(module, recipe), tuple(recipe.sample.values()), dynamic_shapes=open_batch(recipe)
        )


def module_of(variant: Variant) -> nn.Module:
    """The variant's module.

    Raises:
        TechniqueFailed: it is only a file any more.
    """
    if variant.module is None:
        raise TechniqueFailed(f"'{variant.name}' is only a file: exports and training work on modules")
    return variant.module


def artifact_of(variant: Variant) -> Artifact:
    """The variant's file.

    Raises:
        TechniqueFailed: it is only a module so far.
    """
    if variant.artifact is None:
        raise TechniqueFailed(f"'{variant.name}' is only a module so far: export it first")
    return variant.artifact


def exported(variant: Variant, step: str, artifact: Artifact, recipe: Recipe) -> Variant:
    """The variant as a file, which is checked against its module.

    Raises:
        TechniqueFailed: the file does not load or gives something else.
    """
    module = module_of(variant)
    checked(artifact, lambda inputs: recipe.run(module, inputs), recipe, EXPORTED)
    return replace(variant, steps=(*variant.steps, step), module=None, artifact=artifact)


def converted(variant: Variant, step: str, artifact: Artifact, recipe: Recipe, tolerance: float = math.inf) -> Variant:
    """The variant as another file, less exact on purpose; it is checked to serve, and the difference noted.

    Raises:
        TechniqueFailed: the file does not load, or gives tensors of other shapes or no numbers.
    """
    with opened(artifact_of(variant), recipe) as original:
        worst = checked(artifact, lambda inputs: original(arrays(inputs)), recipe, tolerance)
    notes = (*variant.notes, difference(step, worst))
    return replace(variant, steps=(*variant.steps, step), artifact=artifact, notes=notes)


def difference(step: str, worst: float) -> str:
    """The note on a file that is less exact than what it was made of."""
    return f"{step}: outputs differ by up to {worst:.2%} of the largest value on the sample."


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' deprecation notes and remarks about packages that are not installed."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
