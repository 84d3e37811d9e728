"""Requests of concurrent callers that share batches: what each of them gets, whatever happens to the others."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
import torch
from support.calls import Gate, eventually, first_output, infer, load, refusal, request, unload
from support.concurrent import POISON, UNFIT, arrived, batches, in_turn, moody, start, statistics, values
from support.models import RepositoryBuilder, linear
from support.server import Gateway, serving
from support.zoo import LINEAR_CONFIG, add_linears, onnx_classifier

from tensorgate_client.wire import inference_pb2 as pb

Code = grpc.StatusCode
EIGHT = "max_batch_size: 8\n"
WHEN_FULL = "dynamic_batching { max_queue_delay_microseconds: 50000000 }\n"
EXPLICIT = ("--model-control", "explicit", "--load-model", "*")
NUMBERS = np.random.default_rng(5).normal(size=(16, 4)).astype(np.float32)

DOUBLE = """
class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        return {"y": inputs["x"] * 2}
"""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up models."""
    return Gate(tmp_path / "gate")


@pytest.fixture(scope="module")
def every_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A model of each backend and format, which all wait until eight rows are there."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    add_linears(repository)
    repository.add("linear_pt2", config=EIGHT + WHEN_FULL)
    repository.add("linear_pt", config=LINEAR_CONFIG.replace("64", "8") + WHEN_FULL)
    repository.add("onnx", {"model.onnx": onnx_classifier()}, EIGHT + WHEN_FULL)
    repository.add("python", {"model.py": DOUBLE}, EIGHT + WHEN_FULL)
    repository.add("echo", config='backend: "echo"\n' + EIGHT + WHEN_FULL)
    with serving(repository.root) as gateway:
        yield gateway


def by_onnxruntime(rows: np.ndarray) -> np.ndarray:
    """The classifier's logits without a server."""
    return onnxruntime.InferenceSession(onnx_classifier()).run(["logits"], {"x": rows})[0]


def by_torch(rows: np.ndarray) -> np.ndarray:
    """The linear layer's outputs without a server."""
    with torch.inference_mode():
        return linear()(torch.from_numpy(rows)).numpy()


MODELS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "onnx": ("x", by_onnxruntime),
    "linear_pt2": ("input", by_torch),
    "linear_pt": ("x", by_torch),
    "python": ("x", lambda rows: rows * 2),
    "echo": ("INPUT0", lambda rows: rows),
}


@pytest.mark.parametrize("model", MODELS)
def test_concurrent_rows_share_batches(every_backend: Gateway, model: str) -> None:
    """Rows that sixteen callers send at once run as two batches of eight, and each caller gets the own row's answer."""
    name, reference = MODELS[model]
    calls = [start(every_backend, model, row, name=name) for row in NUMBERS]
    answers = np.array([first_output(call.result(60))[0] for call in calls])
    np.testing.assert_allclose(answers, reference(NUMBERS), atol=1e-5)
    assert batches(every_backend, model) == {8: 2}


def test_callers_of_several_rows_get_their_own(repository: RepositoryBuilder, gate: Gate) -> None:
    """Requests of different numbers of rows share batches up to the limit, none is torn, each gets its own rows."""
    repository.add("gated", moody(gate), EIGHT + gate.config)
    with serving(repository.root) as gateway:
        first = start(gateway, "gated", 0)
        eventually(gate.begun)
        sent = [list(range(base, base + rows)) for base, rows in ((10, 3), (20, 5), (30, 1), (40, 8), (50, 6), (60, 2))]
        calls = in_turn(gateway, "gated", *sent)
        gate.open()
        assert values(first) == [0]
        assert [values(call) for call in calls] == [[2 * value for value in rows] for rows in sent]
        assert batches(gateway, "gated") == {1: 2, 8: 3}


def test_interleaved_shapes_gather_their_like(repository: RepositoryBuilder, gate: Gate) -> None:
    """Callers who alternate between two shapes still share batches, each with those of its own shape."""
    text = gate.MODEL.replace("(-1,)", "(-1, -1)").replace('*inputs["x"]', '*inputs["x"].ravel()')
    repository.add("gated", {"model.py": text}, EIGHT + gate.config)
    with serving(repository.root) as gateway:
        first = start(gateway, "gated", [0])
        eventually(gate.begun)
        sent = [[number] * (number % 2 + 1) for number in range(8)]
        calls = [start(gateway, "gated", row) for row in sent]
        arrived(gateway)
        gate.open()
        assert [values(call) for call in (first, *calls)] == [[row] for row in ([0], *sent)]
        assert batches(gateway, "gated") == {1: 1, 4: 2}


def test_each_instance_takes_a_batch(repository: RepositoryBuilder, gate: Gate) -> None:
    """With two instances two batches execute at once, and what comes meanwhile goes to whichever is free first."""
    repository.add("gated", gate.files, EIGHT + "instance_group { count: 2 }\n" + gate.config)
    with serving(repository.root) as gateway:
        calls = []
        for number in range(2):
            calls.append(start(gateway, "gated", number))
            eventually(lambda number=number: len(gate.begun()) == number + 1)
        calls += [start(gateway, "gated", value) for value in (2, 3)]
        arrived(gateway)
        assert len(gate.begun()) == 2
        gate.open()
        assert [values(call) for call in calls] == [[0], [1], [2], [3]]


def test_poison_fails_alone(repository: RepositoryBuilder, gate: Gate) -> None:
    """A request that breaks the model, and one that it refuses, fail each for its own reason; the rest is answered."""
    repository.add("gated", moody(gate), EIGHT + WHEN_FULL + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, "gated", value) for value in (1, 2, POISON, 3, UNFIT, 4, POISON, 5)]
        eventually(gate.begun)
        assert len(gate.begun()[0].split()) == 8
        gate.open()
        assert [values(calls[index]) for index in (0, 1, 3, 5, 7)] == [[2], [4], [6], [8], [10]]
        assert calls[4].code() is Code.INVALID_ARGUMENT
        assert calls[4].details() == "model 'gated': x: expected anything but 404"
        assert [calls[index].code() for index in (2, 6)] == [Code.INTERNAL] * 2
        ids = {re.search(r"id (\w{12});", calls[index].details())[1] for index in (2, 6)}
        assert len(ids) == 2
        for id_ in ids:
            gateway.server.wait_for_log(f"id {id_}")
        assert "secret" not in calls[2].details()
        assert "secret" in gateway.server.log


@pytest.mark.usefixtures("transport")
def test_a_caller_leaves_an_executing_batch(repository: RepositoryBuilder, gate: Gate) -> None:
    """Callers who leave while their batch executes do not disturb the others in it, nor those that come after."""
    repository.add("gated", moody(gate), "max_batch_size: 4\n" + WHEN_FULL + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, "gated", value) for value in range(4)]
        eventually(gate.begun)
        for index in (0, 2):
            calls[index].cancel()
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count == 2)
        gate.open()
        assert [values(calls[index]) for index in (1, 3)] == [[2], [6]]
        later = [start(gateway, "gated", value) for value in range(4)]
        assert [values(call) for call in later] == [[0], [2], [4], [6]]


@pytest.mark.usefixtures("transport")
def test_a_caller_leaves_a_failing_batch(repository: RepositoryBuilder, gate: Gate) -> None:
    """Of a batch that fails, whoever has left is not tried again, and everyone else is."""
    repository.add("gated", moody(gate), "max_batch_size: 4\n" + WHEN_FULL + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, "gated", value) for value in (1, POISON, 2, 3)]
        eventually(gate.begun)
        calls[1].cancel()
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count == 1)
        gate.open()
        assert [values(calls[index]) for index in (0, 2, 3)] == [[2], [4], [6]]
        assert f"{POISON:g}" not in "\n".join(gate.begun()[1:])


@pytest.mark.usefixtures("transport")
def test_a_caller_leaves_the_queue(repository: RepositoryBuilder, gate: Gate) -> None:
    """What a caller asked for who left before its turn is never computed; those around it are answered."""
    repository.add("gated", moody(gate), EIGHT + gate.config)
    with serving(repository.root) as gateway:
        first = start(gateway, "gated", 0)
        eventually(gate.begun)
        calls = [start(gateway, "gated", value) for value in (1, 2, 3)]
        arrived(gateway)
        calls[1].cancel()
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count == 1)
        gate.open()
        assert [values(call) for call in (first, calls[0], calls[2])] == [[0], [2], [6]]
        assert gate.begun() in (["0", "1 3"], ["0", "3 1"])  # requests sent at once may arrive in any order


def leave(gateway: Gateway, how: str, model: Callable[[], object]) -> threading.Thread:
    """Take the busy model out of service; the thread ends once the server says that it is done."""
    if how == "stop":
        gateway.server.signal(signal.SIGTERM)
        gateway.server.wait_for_log("stopping")
        return threading.Thread(target=gateway.server.wait)
    if how == "reload":
        model()
    return threading.Thread(target=load if how == "reload" else unload, args=(gateway, "gated"))


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("how", ["unload", "reload", "stop"])
def test_nothing_accepted_is_lost(repository: RepositoryBuilder, gate: Gate, how: str) -> None:
    """Everything that waits when a model is unloaded or replaced, or the server stops, is answered by that model."""
    repository.add("gated", moody(gate), EIGHT + WHEN_FULL + gate.config)
    with serving(repository.root, *EXPLICIT, "--shutdown-grace-s", "10") as gateway:
        calls = [start(gateway, "gated", value) for value in range(27)]  # three batches and a rest
        eventually(gate.begun)
        arrived(gateway)
        files = {"model.py": moody(gate)["model.py"].replace("* 2", "* 7")}
        leaving = leave(gateway, how, lambda: repository.add("gated", files))
        leaving.start()
        if how == "unload":
            eventually(lambda: not gateway.stub.ModelReady(pb.ModelReadyRequest(name="gated")).ready)
            assert refusal(lambda: infer(gateway, "gated", np.float32([1]), "x"))[0] is Code.NOT_FOUND
        elif how == "reload":
            leaving.join(60)  # a load returns when the new model serves, however long the former one still works
        assert not any(call.done() for call in calls)
        gate.open()
        began = time.monotonic()
        assert [values(call) for call in calls] == [[2 * value] for value in range(27)]
        assert time.monotonic() - began < 15  # the rest waits for nobody to join any more, else it were half a minute
        leaving.join(60)
        assert not leaving.is_alive()
        assert how != "stop" or gateway.server.wait() == 0


def test_reloads_under_load_fail_nobody(repository: RepositoryBuilder, gate: Gate) -> None:
    """Callers who keep calling while a model is replaced again and again are all answered, by one of its versions."""
    text = moody(gate)["model.py"]
    repository.add("gated", {"model.py": text}, EIGHT + gate.config)
    gate.open()
    with serving(repository.root, *EXPLICIT) as gateway:
        over = threading.Event()
        wrong: list[object] = []
        answered = [0] * 4

        def keep_calling(number: int) -> None:
            while not over.is_set():
                try:
                    answer = first_output(gateway.stub.ModelInfer(request("gated", {"x": np.float32([7])}), timeout=60))
                    wrong.extend([] if answer in range(14, 7 * 13, 7) else [answer])
                    answered[number] += 1
                except grpc.RpcError as error:
                    wrong.append((error.code(), error.details()))

        threads = [threading.Thread(target=keep_calling, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for factor in range(3, 13):
            repository.add("gated", {"model.py": text.replace("* 2", f"* {factor}")})
            load(gateway, "gated")
            before = list(answered)
            eventually(lambda before=before: wrong or all(a > b for a, b in zip(answered, before, strict=True)))
        over.set()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert infer(gateway, "gated", np.float32([7]), "x") == 7 * 12
