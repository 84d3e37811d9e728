"""Whether a file still does what it was made of does, at more than one size of batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from backends.base import Array, BackendError
from backends.optimize.bare import arrays, opened
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, TechniqueFailed

EXPORTED = 1e-3
"""What an export that changes no number on purpose may differ by: worst difference over the largest value."""

Expected = Callable[[Mapping[str, Tensor]], Mapping[str, Array]]


def checked(artifact: Artifact, expected: Expected, recipe: Recipe, tolerance: float = math.inf) -> float:
    """Load an artifact as the gateway does and compare what it gives with what it should, for batches of several sizes.

    Args:
        artifact: to check.
        expected: the right outputs for some inputs, by name.
        recipe: brings the sample.
        tolerance: for the worst difference, as `EXPORTED`; without one, outputs still have to have the right names,
            shapes and datatypes, and no NaN or infinity of their own.

    Returns:
        The worst difference over the largest value of the same output.

    Raises:
        TechniqueFailed: it does not load, fails, or differs.
    """
    try:
        with opened(artifact, recipe) as call:
            return max(
                _worst(rows, expected(inputs), call(arrays(inputs)), tolerance)
                for rows, inputs in _batches(artifact, recipe)
            )
    except BackendError as error:
        raise TechniqueFailed(f"{artifact.file.name} does not serve: {error}") from error


def _batches(artifact: Artifact, recipe: Recipe) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The sample cut or repeated to the sizes that the file takes; to one row, its own and one more where any goes."""
    rows = min(len(tensor) for tensor in recipe.sample.values())
    for size in artifact.batch_sizes or (1, rows, rows + 1):
        if size > (artifact.max_batch_size or size):
            continue
        index = torch.arange(size) % rows
        yield size, {name: tensor[index] for name, tensor in recipe.sample.items()}


def _worst(rows: int, expected: Mapping[str, Array], got: Mapping[str, Array], tolerance: float) -> float:
    if missing := expected.keys() - got.keys():
        raise TechniqueFailed(f"it gives the outputs {', '.join(got)}, without {', '.join(sorted(missing))}")
    return max(
        _difference(f"output '{name}' for a batch of {rows}", right, got[name], tolerance)
        for name, right in expected.items()
    )


def _difference(where: str, right: Array, got: Array, tolerance: float) -> float:
    if (got.shape, got.dtype) != (right.shape, right.dtype):
        raise TechniqueFailed(f"{where}: expected {right.dtype} {[*right.shape]}, got {got.dtype} {[*got.shape]}")
    finite = np.isfinite(right)
    if not np.array_equal(finite, np.isfinite(got)):
        raise TechniqueFailed(f"{where} holds NaN or infinity where the original holds numbers, or the reverse")
    numbers = right[finite].astype(np.float64)
    worst = float(np.abs(numbers - got[finite].astype(np.float64)).max(initial=0))
    scale = float(np.abs(numbers).max(initial=0)) or 1.0
    if worst > tolerance * scale:
        raise TechniqueFailed(
            f"{where} differs by up to {worst:.3g} from the original, whose largest value is {scale:.3g}; "
            f"{tolerance * scale:.3g} would do"
        )
    return worst / scale
