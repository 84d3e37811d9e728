"""What models do that they should not, and what their callers see of it: nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import infer, refusal
from support.models import RepositoryBuilder
from support.server import serving

REUSING = """
import numpy as np

class Model:
    inputs = [("x", "float32", (-1, 8))]
    outputs = [("y", "float32", (-1, 8))]

    def __init__(self):
        self.buffer = np.empty((32, 8), "float32")

    def execute(self, inputs):
        rows = len(inputs["x"])
        np.multiply(inputs["x"], 2, out=self.buffer[:rows])
        return {"y": self.buffer[:rows]}
"""

WRITING = """
class Model:
    inputs = [("x", "float32", (-1, 8))]
    outputs = [("y", "float32", (-1, 8))]

    def execute(self, inputs):
        inputs["x"] *= 2
        return inputs
"""

UNSPEAKABLE = """
class Unspeakable(BaseException):
    def __str__(self):
        raise ValueError("no words")

class Untouchable(Exception):
    def __getattribute__(self, name):
        raise ValueError(name)

class Model:
    inputs = [("x", "float32", (-1, 8))]
    outputs = [("y", "float32", (-1, 8))]

    def execute(self, inputs):
        if inputs["x"][0, 0] == 1:
            raise Unspeakable
        if inputs["x"][0, 0] == 2:
            raise Untouchable
        return {"y": inputs["x"]}
"""


def row(value: float) -> np.ndarray:
    """One row of a value."""
    return np.full((1, 8), value, np.float32)


@pytest.mark.parametrize("config", ["", "max_batch_size: 32\ninstance_group { count: 2 }"])
def test_a_model_that_reuses_its_output_buffer_gives_everybody_his_own(
    repository: RepositoryBuilder, config: str
) -> None:
    """Preallocated outputs, a common way to save time, never show one caller what was computed for the next."""
    repository.add("reusing", {"model.py": REUSING}, config)
    with serving(repository.root) as gateway, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda value: infer(gateway, "reusing", row(value), "x"), range(600)))
    assert [float(answer[0, 0]) for answer in answers] == [2.0 * value for value in range(600)]


def test_writing_into_inputs_fails_alone_and_in_company(repository: RepositoryBuilder) -> None:
    """A model that changes its inputs fails on the first try, not only once it is under load."""
    held = "max_batch_size: 8\ndynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 30000000 }"
    repository.add("alone", {"model.py": WRITING})
    repository.add("together", {"model.py": WRITING}, held)
    with serving(repository.root) as gateway, ThreadPoolExecutor(8) as pool:
        codes = [refusal(lambda: infer(gateway, "alone", row(1), "x"))[0]]
        ask = lambda value: refusal(lambda: infer(gateway, "together", row(value), "x"))[0]  # noqa: E731
        codes += pool.map(ask, range(8))
    assert set(codes) == {grpc.StatusCode.INTERNAL}


@pytest.mark.parametrize("value", [1, 2])
def test_an_exception_that_is_itself_broken_fails_its_request_only(repository: RepositoryBuilder, value: int) -> None:
    """Whatever a model raises, its caller gets an answer and the next one is served."""
    repository.add("unspeakable", {"model.py": UNSPEAKABLE})
    with serving(repository.root) as gateway:
        code, _ = refusal(lambda: infer(gateway, "unspeakable", row(value), "x"))
        assert code is grpc.StatusCode.INTERNAL
        assert infer(gateway, "unspeakable", row(5), "x")[0, 0] == 5


FAILING = """
class Model:
    inputs = [("x", "float32", (-1, -1))]
    outputs = [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        raise RuntimeError("always")
"""


def test_failed_requests_leave_no_memory_behind(repository: RepositoryBuilder) -> None:
    """A broken model does not fill the server's memory with the requests it failed on."""
    repository.add("failing", {"model.py": FAILING})
    large = np.zeros((1, 10_000_000), np.float32)  # 40 MB, which the allocator gives back to the system when freed
    with serving(repository.root) as gateway:
        statm = Path(f"/proc/{gateway.server.process.pid}/statm")
        resident = lambda: int(statm.read_text().split()[1]) * 4096 / 2**20  # noqa: E731
        before = resident()
        grown = []
        for _ in range(10):
            assert refusal(lambda: infer(gateway, "failing", large, "x"))[0] is grpc.StatusCode.INTERNAL
            grown.append(resident() - before)
        assert max(grown) < 160, "MB, of 400 sent"
