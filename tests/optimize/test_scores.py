"""How sure the figures are: their intervals hold what they promise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from backends.optimize import scores
from backends.optimize.recipe import Recipe
from backends.optimize.scores import Evaluation, InvalidScore


def recipe_of(evaluate):
    """A recipe with one input, `x`."""
    sample = {"x": torch.ones(2, 3)}
    return Recipe("r", nn.Identity(), sample, ("y",), evaluate, sample)


def scored(examples):
    """An evaluation of these scores."""
    examples = np.asarray(examples, np.float64)
    return Evaluation(float(examples.mean()), examples)


def twice(inputs):
    """Predicts the double."""
    return {"y": inputs["x"] * 2}


def test_predict():
    """`predict` takes any number of rows, by position or by name, in batches of what the model takes."""
    seen = []

    def call(inputs):
        seen.append(inputs["x"].shape)
        assert inputs["x"].dtype == np.float32
        return twice(inputs)

    def evaluate(predict):
        rows = np.arange(15.0).reshape(5, 3)
        assert (predict(rows) == rows * 2).all()
        assert (predict(x=rows[:1]) == rows[:1] * 2).all()
        return [True, False]

    found = scores.evaluate(recipe_of(evaluate), call, 2)
    assert (seen, found.score) == ([(2, 3), (2, 3), (1, 3), (1, 3)], 0.5)


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (lambda _: "good", "evaluate returned str, expected a number"),
        (lambda _: None, "evaluate returned NaN or infinity, expected a number"),
        (lambda _: [], "evaluate returned an array of shape [0]"),
        (lambda _: np.ones((2, 2)), "evaluate returned an array of shape [2, 2]"),
        (lambda predict: predict(), "predict got no 'x': expected x"),
        (lambda predict: predict(np.ones((1, 3)), np.ones((1, 3))), "predict got 2 inputs"),
        (lambda predict: predict(z=np.ones((1, 3))), "predict got 0 inputs and z: expected ['x']"),
        (lambda predict: predict(np.ones((0, 3))), "predict got x [0, 3]: expected equally many rows, one or more"),
    ],
)
def test_mistakes(evaluate, expected):
    """A score that is none, and inputs that the model does not have, are told in words."""
    with pytest.raises(InvalidScore) as refused:
        scores.evaluate(recipe_of(evaluate), twice, 8)
    assert str(refused.value).startswith(expected)


def test_intervals_cover():
    """Nearly all intervals, 95 of 100, hold the true value: of an accuracy, and of a drop over the same examples."""
    random = np.random.default_rng(0)
    accuracies = drops = 0
    for _ in range(60):
        before = random.random(150) < 0.9
        after = np.where(random.random(150) < 0.1, random.random(150) < 0.4, before)  # 5 points lower on average
        accuracy, drop = scores.accuracy(scored(before)), scores.drop(scored(after), scored(before))
        accuracies += accuracy.low <= 0.9 <= accuracy.high
        drops += drop.low <= 0.05 <= drop.high
    assert accuracies >= 52
    assert drops >= 50


def test_pairs_tell_more_than_two_accuracies():
    """A drop that the accuracies' own intervals would hide shows where the same examples are compared."""
    before = np.repeat([1, 0], [900, 100])
    after = before.copy()
    after[:10] = 0
    found = scores.drop(scored(after), scored(before))
    assert 0 < found.low < 0.01 < found.high
    assert scores.accuracy(scored(after)).high > scores.accuracy(scored(before)).low


def test_no_change_is_not_certainty():
    """Where none of n examples changed the drop is 0, give or take three in n; ten examples prove little."""
    same = scored(np.ones(10))
    assert dataclasses.astuple(scores.drop(same, same)) == (0, -0.3, 0.3)
    assert scores.accuracy(same).low < 0.8


def test_scores_that_are_no_shares():
    """Equal scores of any size differ by nothing, and no rule for right and wrong answers is put on them."""
    same = scored([0.2, 7.5, 3.1])
    assert dataclasses.astuple(scores.drop(same, same)) == (0, 0, 0)
    assert scores.accuracy(same).low < same.score < scores.accuracy(same).high


def test_a_plain_number_has_no_interval():
    """One number for all says nothing of how it varies."""
    found = scores.drop(Evaluation(0.8), Evaluation(0.9))
    assert (found.value, found.low, found.high) == (pytest.approx(0.1), None, None)


def test_agreement():
    """Rows are compared with the original's: the place of the largest element, the angle, the largest difference."""

    def evaluate(predict):
        return float(predict(np.array([[1, 2, 3], [3, 2, 1]])).sum())

    def turned(inputs):
        outputs = twice(inputs)["y"]
        return {"y": np.stack([outputs[0], outputs[1][::-1]])}

    original = scores.evaluate(recipe_of(evaluate), twice, 8)
    found = scores.agreement(scores.evaluate(recipe_of(evaluate), turned, 8), original)
    assert found["y"].same_argmax == 0.5
    assert found["y"].worst_cosine == pytest.approx(10 / 14)
    assert found["y"].worst_difference == 4


def test_agreement_needs_the_same_samples():
    """Where evaluate sends other samples each time nothing is said to agree."""
    random = np.random.default_rng(0)
    recipe = recipe_of(lambda predict: float(predict(random.random((4, 3))).sum()))
    first, second = (scores.evaluate(recipe, twice, 8) for _ in range(2))
    assert scores.agreement(second, first) is None


def test_outputs_that_are_no_numbers():
    """NaN where the original has none is a failure, not a row of figures."""
    recipe = recipe_of(lambda predict: float(predict(np.ones((1, 3))).shape[0]))
    original = scores.evaluate(recipe, twice, 8)
    broken = scores.evaluate(recipe, lambda inputs: {"y": inputs["x"] * np.float32("nan")}, 8)
    with pytest.raises(InvalidScore, match="has NaN or infinity where the original's has none"):
        scores.agreement(broken, original)
