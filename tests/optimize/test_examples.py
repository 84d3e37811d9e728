"""The recipes that the documentation shows hold, and find their networks as good as they are known to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backends.optimize import recipe_file
from backends.optimize.recipe import Recipe

SCORES = {"mnist": (0.96, 1), "minilm": (0.999, 1), "efficientnet": (0.96, 1)}
ROWS = {"mnist": 1000, "minilm": 150, "efficientnet": 135}


@pytest.fixture(scope="module", params=SCORES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each of them."""
    return recipe_file.load(Path(recipe_file.__file__).parent / "examples" / f"{request.param}.py")


class Original:
    """Predicts as the original does, which is asked once; with noise of so much of the outputs' spread added."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._output: np.ndarray | None = None
        self.noise = 0.0

    def __call__(self, *arrays: np.ndarray, **named: np.ndarray) -> np.ndarray:
        """The outputs of the rows that `evaluate` always sends."""
        if self._output is None:
            recipe, inputs = self._recipe, named or dict(zip(self._recipe.sample, arrays, strict=True))
            parts = zip(*(torch.from_numpy(inputs[name]).split(25) for name in recipe.sample), strict=True)
            given = [recipe.run(recipe.model, dict(zip(recipe.sample, part, strict=True))) for part in parts]
            self._output = np.concatenate([part[recipe.outputs[0]] for part in given])
        random = np.random.default_rng(0).normal(size=self._output.shape).astype(np.float32)
        return self._output + self.noise * self._output.std() * random


def test_recipe(recipe: Recipe) -> None:
    """The original's score is a known one, of many examples, and a network that is disturbed scores less."""
    predict = Original(recipe)
    scores = np.asarray(recipe.evaluate(predict), float)
    low, high = SCORES[recipe.name]
    assert len(scores) >= ROWS[recipe.name]
    assert low <= scores.mean() <= high
    predict.noise = 1
    assert np.asarray(recipe.evaluate(predict), float).mean() < scores.mean() - 0.01


def test_calibration_data(recipe: Recipe) -> None:
    """There are rows enough to calibrate with."""
    assert {len(tensor) >= 32 for tensor in recipe.calibration.values()} == {True}
