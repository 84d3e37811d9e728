"""Random streams at the same time: everyone gets exactly the own answers, in the order asked for."""

from __future__ import annotations

import os
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest
from support.calls import Gate
from support.concurrent import POISON, UNFIT, batches, counts, moody, statistics
from support.server import Gateway, serving
from support.streams import StreamCall, failure, infer_request, value

from tensorgate_client.wire import inference_pb2 as pb

pytestmark = pytest.mark.usefixtures("transport")

_STREAMS, _MESSAGES = 12, 400
_SEED = os.environ.get("TENSORGATE_TEST_SEED") or os.urandom(4).hex()
_MODELS = ("batched", "single", "cached")
_GARBAGE = b"\xff\xff\xff"

_FAULTS = {
    "poison": (POISON, "INTERNAL"),
    "unfit": (UNFIT, "INVALID_ARGUMENT"),
    "nobody": (1.0, "NOT_FOUND"),
}


@dataclass
class Expected:
    """What is still to come on a stream.

    Attributes:
        in_order: id and value or status, in turn.
        at_any_time: value or status by id.
    """

    in_order: deque[tuple[str, object]] = field(default_factory=deque)
    at_any_time: dict[str, object] = field(default_factory=dict)

    def add(self, name: str, answer: object, *, unordered: bool) -> None:
        """A request was sent."""
        if unordered:
            self.at_any_time[name] = answer
        else:
            self.in_order.append((name, answer))

    def check(self, response: pb.ModelStreamInferResponse) -> None:
        """A response has come."""
        name = response.infer_response.id
        answer = failure(response)[1] if response.error_message else value(response)
        if name in self.at_any_time:
            assert self.at_any_time.pop(name) == answer
        else:
            assert self.in_order.popleft() == (name, answer)


def run(gateway: Gateway, seed: str) -> None:
    """One stream, which may leave midway."""
    chance = random.Random(seed)  # noqa: S311
    leaves_after = chance.randrange(_MESSAGES) if chance.random() < 0.25 else _MESSAGES
    expected = Expected()
    with StreamCall(gateway, timeout=120) as stream:
        for number in range(_MESSAGES):
            unordered = chance.random() < 0.3
            name = f"{seed}.{number}"
            if chance.random() < 0.03:
                stream.send_message(_GARBAGE)
                expected.add("", "INVALID_ARGUMENT", unordered=False)
                continue
            fault = chance.choice(list(_FAULTS)) if chance.random() < 0.05 else ""
            numbers = [float(chance.randrange(400)) for _ in range(chance.randint(1, 3))]
            answer: object = [2 * one for one in numbers]
            if fault:
                numbers[0], answer = _FAULTS[fault]
            model = "nobody" if fault == "nobody" else chance.choice(_MODELS)
            message = infer_request(model, *numbers, id=name)
            if unordered or chance.random() < 0.1:
                message.parameters["tensorgate_unordered"].bool_param = unordered
            stream.send_message(message)
            expected.add(name, answer, unordered=unordered)
        stream.close()
        for _ in range(leaves_after):
            expected.check(stream.next())
        if leaves_after == _MESSAGES:
            assert stream.end() == (grpc.StatusCode.OK, "")
            assert expected == Expected()


def test_everyone_gets_the_own_answers(repository, tmp_path):
    """Whatever others send, fail with or break off, each message of a stream gets its own answer, once, in order."""
    gate = Gate(tmp_path / "gate")
    gate.open()
    repository.add("batched", moody(gate), gate.config)
    repository.add("single", moody(gate), "max_batch_size: 3\n" + gate.config)
    repository.add("cached", moody(gate), "response_cache { enable: true }\n" + gate.config)
    with serving(repository.root, "--stream-window", "32") as gateway:
        with ThreadPoolExecutor(_STREAMS) as threads:
            running = [threads.submit(run, gateway, f"{_SEED}.{number}") for number in range(_STREAMS)]
        for one in running:
            assert one.exception() is None, f"TENSORGATE_TEST_SEED={_SEED}: {one.exception()!r}"
        for model in _MODELS:
            told = counts(statistics(gateway, model))
            assert told["success"] == told.get("compute_infer", 0) + told.get("cache_hit", 0)
        assert max(batches(gateway, "batched")) > 1
        assert gateway.server.log.count("failed, id") > 0
        assert "never retrieved" not in gateway.server.log
        gateway.server.signal()
        assert gateway.server.wait() == 0
