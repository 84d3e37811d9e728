"""The recipe's calibration data, as static quantisation goes through it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from backends.optimize.recipe import Recipe

_ROWS = 8
"""Of a batch: what every operator gives is in memory meanwhile."""


def calibration_batches(recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """All rows, some at a time."""
    for start in range(0, _rows(recipe), _ROWS):
        yield {name: tensor[start : start + _ROWS] for name, tensor in recipe.calibration.items()}


def calibration_missing(recipe: Recipe) -> str:
    """What to add to a recipe that brings no rows; "" if it does."""
    return "" if _rows(recipe) else "it needs calibration data: give the recipe some rows of `calibration`"


def _rows(recipe: Recipe) -> int:
    return min((len(tensor) for tensor in recipe.calibration.values()), default=0)
