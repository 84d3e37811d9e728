"""Large batches are put together in the same memory again and again, and nobody's tensors change under them."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.batching import LAYOUT

from gateway.batch import Batch
from gateway.request import InferenceRequest
from gateway.workspace import Workspace

WIDTH = 400_000


def batch(*values: float, width: int = WIDTH) -> Batch:
    """Requests of a row of each value, 1.6 MB wide."""
    rows = [np.full((1, width), value, np.float32) for value in values]
    return Batch([InferenceRequest("", {"x": row}, 1, ("y",)) for row in rows], LAYOUT)


def run(workspace: Workspace, wanted: Batch, execute: Any) -> list[list[float]]:
    """What each request was answered, as the values that occur in it."""
    return [np.unique(answer["y"]).tolist() for answer in wanted.run(execute, workspace)]


def address(array: np.ndarray) -> int:
    """Where it lies."""
    return array.__array_interface__["data"][0]


def test_the_same_memory_serves_one_batch_after_another():
    """A server under load does not ask the system for the memory of every batch."""
    workspace, places = Workspace(), set()

    def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        places.add(address(inputs["x"]))
        return {"y": 2 * inputs["x"]}

    for number in range(5):
        assert run(workspace, batch(number, number + 0.5), execute) == [[2 * number], [2 * number + 1]]
    assert run(workspace, batch(7, 8, width=WIDTH // 2), execute) == [[14], [16]]
    assert len(places) == 1


def test_a_model_that_gives_back_its_inputs_answers_right():
    """An identity's answers are still on their way when the next batch is put together."""
    workspace = Workspace()
    answers = [batch(number, number + 0.5).run(lambda inputs: {"y": inputs["x"]}, workspace) for number in range(5)]
    for number, (first, second) in enumerate(answers):
        assert np.unique(first["y"]).tolist() == [number]
        assert np.unique(second["y"]).tolist() == [number + 0.5]


def test_a_model_that_keeps_its_inputs_keeps_what_it_was_given():
    """A model that remembers, say, the latest batches, or a part of each, is not surprised by others in their place."""
    workspace, kept = Workspace(), []

    def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept.append(inputs["x"][1:, :3].T)
        return {"y": inputs["x"] + 1}

    for number in range(5):
        assert run(workspace, batch(number, number + 0.5), execute) == [[number + 1], [number + 1.5]]
    assert [part.ravel().tolist() for part in kept] == [[number + 0.5] * 3 for number in range(5)]


def test_much_more_than_is_needed_is_given_back():
    """A single huge batch does not keep its memory for ever."""
    workspace = Workspace()
    run(workspace, batch(*range(16)), lambda inputs: {"y": inputs["x"]})
    run(workspace, batch(1, 2), lambda inputs: {"y": inputs["x"] + 1})
    assert repr(workspace) == f"<Workspace bytes={2 * 4 * WIDTH}>"
