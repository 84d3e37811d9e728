"""How good a variant is, how sure that is, and how far it agrees with the original."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import Array
from backends.optimize.child import StepFailed
from backends.optimize.recipe import Recipe

Call = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Outputs by name for inputs by name, up to so many rows."""

_RESAMPLES = 2000
_BOUNDS = (2.5, 97.5)  # percent: a 95 % interval
_Z = 1.96  # of a normal distribution, likewise


class InvalidScore(Exception):
    """`evaluate` failed or gave something that is no score; the message says what."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the 95 % confidence interval it is in; without one where it is not known how it varies."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a variant's outputs compare with the original's, over all rows that `evaluate` sent, of one output.

    Attributes:
        rows: how many.
        same_argmax: share of the rows whose largest element is at the same place; None for outputs of one element.
        worst_cosine: the least cosine between a row and the original's.
        worst_difference: the largest absolute difference of an element.
    """

    rows: int
    same_argmax: float | None
    worst_cosine: float
    worst_difference: float


@dataclass(slots=True)
class Evaluation:
    """What `evaluate` found, and all that it saw.

    Attributes:
        score: its mean, or its only number.
        examples: a score for each example; None where it gave only one number.
        digests: of the inputs of each call of `predict`.
        outputs: of each call.
    """

    score: float = 0.0
    examples: NDArray[np.float64] | None = None
    digests: list[bytes] = field(default_factory=list)
    outputs: list[Mapping[str, Array]] = field(default_factory=list)


def evaluate(recipe: Recipe, call: Call, max_rows: int) -> Evaluation:
    """Run the recipe's `evaluate` on something that predicts batches of up to `max_rows`.

    Raises:
        InvalidScore: it raised, or gave neither a number nor a number for each example.
        StepFailed: what predicts does not.
    """
    found = Evaluation()

    def predict(*args: Any, **kwargs: Any) -> Any:
        inputs = _inputs(recipe, args, kwargs)
        outputs = _in_batches(call, inputs, max_rows)
        found.digests.append(_digest(inputs))
        found.outputs.append(outputs)
        return dict(outputs) if len(outputs) > 1 else next(iter(outputs.values()))

    try:
        result = recipe.evaluate(predict)
    except (InvalidScore, StepFailed):
        raise
    except Exception as error:  # anybody's code
        raise InvalidScore(f"evaluate failed: {type(error).__name__}: {error}") from error
    try:
        scores = np.asarray(result, np.float64)
    except (TypeError, ValueError):
        raise InvalidScore(f"evaluate returned {type(result).__name__}, {_EXPECTED}") from None
    if scores.ndim > 1 or not scores.size or not np.isfinite(scores).all():
        what = "NaN or infinity" if scores.size and scores.ndim <= 1 else f"an array of shape {list(scores.shape)}"
        raise InvalidScore(f"evaluate returned {what}, {_EXPECTED}")
    found.score, found.examples = float(scores.mean()), scores if scores.ndim else None
    return found


_EXPECTED = "expected a number, or an array with a number for each example"


def accuracy(evaluation: Evaluation) -> Estimate:
    """The score and its interval: Wilson's where examples are right or wrong, else by bootstrap."""
    scores = evaluation.examples
    if scores is None:
        return Estimate(evaluation.score)
    if _right_or_wrong(scores):
        return Estimate(evaluation.score, *_wilson(evaluation.score, len(scores)))
    return Estimate(evaluation.score, *_bootstrap(scores))


def drop(evaluation: Evaluation, original: Evaluation) -> Estimate:
    """How far the score is below the original's, and its interval from the same examples in pairs, by bootstrap.

    Where examples are right or wrong and none has changed, a bootstrap sees no variation at all; the interval is then
    what 95 % of the samples of so many examples without a change allow, three in n either way.
    """
    value = original.score - evaluation.score
    before, after = original.examples, evaluation.examples
    if before is None or after is None or len(before) != len(after):
        return Estimate(value)
    if (before == after).all() and _right_or_wrong(after):
        return Estimate(0.0, -3 / len(after), 3 / len(after))
    return Estimate(value, *_bootstrap(before - after))


def agreement(evaluation: Evaluation, original: Evaluation) -> dict[str, Agreement] | None:
    """By output; None if `evaluate` did not send both the same samples in the same calls.

    Raises:
        InvalidScore: an output is of another shape, or not finite where the original's is.
    """
    if evaluation.digests != original.digests or not original.outputs:
        return None
    return {
        name: _agreement(name, _rows(evaluation.outputs, name), _rows(original.outputs, name))
        for name in original.outputs[0]
    }


def _agreement(name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Agreement:
    if ours.shape != theirs.shape:
        raise InvalidScore(f"output '{name}' has {list(ours.shape)}, the original's {list(theirs.shape)}")
    if (np.isfinite(theirs) & ~np.isfinite(ours)).any():
        raise InvalidScore(f"output '{name}' has NaN or infinity where the original's has none")
    ours, theirs = np.nan_to_num(ours), np.nan_to_num(theirs)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    same = (ours == theirs).all(1)
    cosines = np.where(same, 1.0, (ours * theirs).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny))
    argmax = float((ours.argmax(1) == theirs.argmax(1)).mean()) if ours.shape[1] > 1 else None
    return Agreement(len(ours), argmax, float(cosines.min()), float(np.abs(ours - theirs).max()))


def _rows(calls: list[Mapping[str, Array]], name: str) -> NDArray[np.float64]:
    return np.concatenate([outputs[name].reshape(len(outputs[name]), -1).astype(np.float64) for outputs in calls])


def _inputs(recipe: Recipe, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
    """What `predict` was given, by name, in the datatypes that the model takes."""
    names = list(recipe.sample)
    if len(args) > len(names) or set(kwargs) - set(names) or set(names[: len(args)]) & set(kwargs):
        raise InvalidScore(f"predict got {len(args)} inputs and {', '.join(kwargs) or 'no name'}: expected {names}")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if missing := [name for name in names if name not in given]:
        raise InvalidScore(f"predict got no '{missing[0]}': expected {', '.join(names)}")
    arrays = {name: np.ascontiguousarray(given[name], recipe.sample[name].numpy().dtype) for name in names}
    if len({len(array) for array in arrays.values()}) != 1 or not len(arrays[names[0]]):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidScore(f"predict got {shapes}: expected equally many rows, one or more")
    return arrays


def _in_batches(call: Call, inputs: Mapping[str, Array], most: int) -> dict[str, Array]:
    rows = len(next(iter(inputs.values())))
    parts = [
        call({name: array[start : start + most] for name, array in inputs.items()}) for start in range(0, rows, most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _digest(inputs: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256()
    for name, array in inputs.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _right_or_wrong(examples: NDArray[np.float64]) -> bool:
    return bool(np.isin(examples, (0, 1)).all())


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Bounds that hold for shares near 0 and 1, too."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds of the mean, from the means of samples of the same size drawn again from the values."""
    random = np.random.default_rng(0)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, _BOUNDS)
    return float(low), float(high)
