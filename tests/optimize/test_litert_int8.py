"""int8 of .tflite files: what it saves, what it costs, and that every size of batch gives the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from support.litert_networks import Convolved, Gated, as_file, recipe

from backends.optimize.bare import opened
from backends.optimize.litert_int8 import LitertInt8
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Variant

BOTH = [LitertInt8(), LitertInt8(static=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For what a technique writes."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def answers(variant: Variant, of: Recipe, rows: int) -> np.ndarray:
    """The output for the sample's first four rows, in batches of so many."""
    ((name, tensor),) = of.sample.items()
    with opened(variant.artifact, of) as call:
        return np.concatenate([next(iter(call({name: part.numpy()}).values())) for part in tensor[:4].split(rows)])


def difference(variant: Variant) -> float:
    """What the note says of the worst difference, in percent."""
    (note,) = variant.notes
    match = re.fullmatch(rf"{variant.steps[-1]}: outputs differ by up to ([\d.]+)% of the largest value .*", note)
    assert match
    return float(match[1])


def kinds(variant: Variant) -> list[np.dtype]:
    """Datatypes of the tensors between inputs and outputs that are no constants, in the file's first signature."""
    interpreter = Interpreter(model_path=str(variant.artifact.file))
    return [np.dtype(d["dtype"]) for d in interpreter.get_tensor_details() if d["name"] in ("b1/middle", "b1/flat")]


@pytest.mark.parametrize("int8", BOTH, ids=lambda int8: int8.name)
def test_network_of_convolutions(int8: LitertInt8, tmp_path: Path, folder: Path) -> None:
    """A network of convolutions gets three to four times smaller and changes little; inputs and outputs stay floats."""
    module = Convolved()
    of, before = recipe(module, 8, 8, 4), as_file(module, tmp_path / "given")
    after = int8.apply(before, of, folder)
    assert after.name == f"litert_{int8.name}"
    assert after.artifact.batch_sizes == (1, 4)
    sizes = [variant.artifact.file.stat().st_size for variant in (before, after)]
    assert 3 < sizes[0] / sizes[1] < 4.2
    right, got = of.run(module, of.sample)["logits"][:4], answers(after, of, 1)
    assert 0 < np.abs(right - got).max() < 0.05 * np.abs(right).max()
    assert 0 < difference(after) < 5
    assert (np.dtype(np.int8) in kinds(after)) == int8.static


@pytest.mark.parametrize("int8", BOTH, ids=lambda int8: int8.name)
def test_every_size_of_batch_gives_the_same(int8: LitertInt8, tmp_path: Path, folder: Path) -> None:
    """Nobody's answer depends on how many others shared the batch: all signatures are quantised alike."""
    module = Convolved()
    of, before = recipe(module, 8, 8, 4), as_file(module, tmp_path / "given")
    after = int8.apply(before, of, folder)
    np.testing.assert_allclose(answers(after, of, 1), answers(after, of, 4), atol=1e-5)


def test_masks_keep_their_place(tmp_path: Path, folder: Path) -> None:
    """A network that masks with -3e38 survives static int8: what holds the mask stays float."""
    module = Gated()
    of, before = recipe(module, 64, name="x", output="y"), as_file(module, tmp_path / "given")
    after = LitertInt8(static=True).apply(before, of, folder)
    assert difference(after) < 10
    assert before.artifact.file.stat().st_size / after.artifact.file.stat().st_size > 2.5


def test_calibration_that_is_unlike_the_data(tmp_path: Path, folder: Path) -> None:
    """Calibration data a hundred times too small shows as a large difference in the report's note."""
    module = Convolved()
    right, wrong = recipe(module, 8, 8, 4), recipe(module, 8, 8, 4, scale=0.01)
    good = LitertInt8(static=True).apply(as_file(module, tmp_path / "given"), right, folder)
    (tmp_path / "bad").mkdir()
    bad = LitertInt8(static=True).apply(as_file(module, tmp_path / "again"), wrong, tmp_path / "bad")
    assert difference(bad) > 50 > 10 * difference(good)


def test_what_it_needs() -> None:
    """Static int8 of a recipe without calibration data is a row that says so; dynamic int8 needs none."""
    of = replace(recipe(Convolved(), 8, 8, 4), calibration={"pixels": torch.zeros(0, 8, 8, 4)})
    assert LitertInt8(static=True).obstacle(of).startswith("it needs calibration data: give the recipe some rows")
    assert LitertInt8().obstacle(of) == ""
