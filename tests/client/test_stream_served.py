"""Streams to a real server; both clients are held to all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode
from support.calls import Gate
from support.concurrent import POISON, UNFIT, moody
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client import InferenceError

SLOW_ZERO = """
import time
from pathlib import Path

class Model:
    inputs = [("x", "float32", (-1, 1))]
    outputs = [("y", "float32", (-1, 1))]

    def load(self, source):
        self.open = Path(source.parameters["open"])

    def execute(self, inputs):
        while not inputs["x"].all() and not self.open.exists():
            time.sleep(0.005)
        return {"y": inputs["x"] * 2}
"""

TWO_AT_A_TIME = "max_batch_size: 0\ninstance_group { count: 2 }\n"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that lets zeros through once it is there."""
    return tmp_path_factory.mktemp("opened") / "open"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, opened: Path) -> Iterator[Gateway]:
    """Serves `moody`, which doubles but for some values, and `slow_zero`, which is busy with zeros for as long."""
    folder = tmp_path_factory.mktemp("served")
    builder = RepositoryBuilder(folder / "models")
    gate = Gate(folder / "gate")
    gate.open()
    builder.add("moody", moody(gate), gate.config)
    parameter = f'parameters {{ key: "open" value {{ string_value: "{opened}" }} }}\n'
    builder.add("slow_zero", {"model.py": SLOW_ZERO}, TWO_AT_A_TIME + parameter)
    with serving(builder.root) as running:
        yield running


@pytest.fixture
def client(connect, gateway, opened):
    """A client of it, with zeros held up."""
    opened.unlink(missing_ok=True)
    yield connect(gateway.address)
    opened.touch()  # or the server would be busy with them for ever


def batch(*numbers: float) -> dict[str, np.ndarray]:
    """A batch for `moody`."""
    return {"x": np.array(numbers, np.float32)}


def rows(*numbers: float) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one row for `slow_zero`."""
    return ({"x": np.array([[number]], np.float32)} for number in numbers)


@pytest.mark.parametrize("ordered", [True, False])
def test_each_batch_gets_its_own_answer(client, ordered):
    """Of many batches of different sizes each is answered, and results say which is whose."""
    sent = [batch(*range(number, number + 1 + number % 3)) for number in range(300)]
    results = list(client.stream("moody", sent, window=16, ordered=ordered))
    assert sorted(result.index for result in results) == list(range(300))
    assert not ordered or [result.index for result in results] == list(range(300))
    for result in results:
        np.testing.assert_array_equal(result.outputs["y"], sent[result.index]["x"] * 2)


def test_a_slow_batch_holds_up_those_behind_it(client, opened):
    """In order, batches behind a slow one are computed beside it and handed out after it."""

    def sent() -> Iterator[dict[str, np.ndarray]]:
        yield from rows(0, 1, 2, 3)
        opened.touch()

    assert [result.index for result in client.stream("slow_zero", sent())] == [0, 1, 2, 3]


def test_without_order_nothing_waits_for_a_slow_batch(client, opened):
    """Without order, batches overtake a slow one."""
    results = client.stream("slow_zero", rows(0, 1, 2, 3), ordered=False)
    assert {next(results).index for _ in range(3)} == {1, 2, 3}
    opened.touch()
    assert [result.index for result in results] == [0]


@pytest.mark.parametrize("ordered", [True, False])
def test_bad_batches_fail_alone(client, ordered):
    """A batch that the model fails on or refuses has the server's message; the others have their answers."""
    sent = [batch(1), batch(POISON), batch(2), batch(UNFIT), {"x": np.ones(1)}, batch(3)]
    results = sorted(client.stream("moody", sent, ordered=ordered), key=lambda result: result.index)
    assert [results[index].outputs["y"].tolist() for index in (0, 2, 5)] == [[2], [4], [6]]
    assert "model 'moody': it failed on this request: internal error, id " in results[1].error.message
    assert "expected anything but 404" in results[3].error.message
    assert [results[index].error.code for index in (1, 3, 4)] == [
        StatusCode.INTERNAL,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.INVALID_ARGUMENT,
    ]
    assert results[4].error.message == "input 'x' of model 'moody': expected FP32 [-1], got FP64 [1]"


def test_leaving_early_disturbs_nobody(client):
    """After a stream was left, the next one is answered."""
    for _ in range(3):
        results = client.stream("moody", (batch(number) for number in range(10**9)))
        assert next(results).outputs["y"].tolist() == [0]
        results.close()


def test_an_unknown_model(client):
    """A stream to a model that is not there says so before it takes a batch."""
    with pytest.raises(InferenceError, match="Request for unknown model: 'phantom' is not found") as caught:
        list(client.stream("phantom", [batch(1)]))
    assert caught.value.code is StatusCode.NOT_FOUND
