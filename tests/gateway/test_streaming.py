"""ModelStreamInfer: who gets which response when, and what becomes of errors."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from support.bad_requests import INVALID
from support.calls import Gate, eventually
from support.concurrent import POISON, UNFIT, arrived, batches, counts, in_turn, moody, statistics, values
from support.faults import CONFIDENTIAL, ROW, X, build, request, with_parameter
from support.server import serving
from support.streams import DOUBLE, StreamCall, failure, value

Code = grpc.StatusCode
pytestmark = pytest.mark.usefixtures("transport")
EIGHT = "max_batch_size: 8\n"


@pytest.fixture
def gate(tmp_path) -> Gate:
    """Holds up the model `slow`."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def models(repository, gate):
    """Models that double their rows: `slow` once the gate is open, `quick` and `cached` at once."""
    repository.add("slow", moody(gate), EIGHT + gate.config)
    repository.add("quick", {"model.py": DOUBLE})
    repository.add("cached", {"model.py": DOUBLE}, "response_cache { enable: true }\n")
    return repository.root


@pytest.fixture(scope="module")
def faulty(transport, tmp_path_factory):
    """A server for callers who make mistakes."""
    with serving(build(tmp_path_factory.mktemp("models")).root) as gateway:
        yield gateway


def test_responses_come_in_the_order_of_requests(models):
    """A stream of many requests brings each its own answer and id, in order, and ends well once all are answered."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        for number in range(1000):
            stream.send("quick", number, id=str(number))
        stream.close()
        responses = stream.rest()
        assert [value(response) for response in responses] == [[2 * number] for number in range(1000)]
        assert [response.infer_response.id for response in responses] == [str(number) for number in range(1000)]
        told = counts(statistics(gateway, "quick"))
        assert (told["success"], told["queue"], told.get("fail", 0)) == (1000, 1000, 0)


def test_responses_are_marked_as_final(models):
    """Programs written for Triton, which look for the last response to a request, find that every one is."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        for model in ("quick", "cached", "cached", "nobody"):
            stream.send(model, 1)
            response = stream.next().infer_response
            assert response.parameters["triton_final_response"].bool_param
            assert response.model_name == model


def test_requests_of_streams_and_others_share_batches(models, gate):
    """What comes by one stream, by another and by unary calls at the same time is computed together."""
    with serving(models) as gateway, StreamCall(gateway) as one, StreamCall(gateway) as two:
        first = in_turn(gateway, "slow", [0])
        eventually(gate.begun)
        for number in (1, 2):
            one.send("slow", number)
            two.send("slow", 10 * number)
        unary = in_turn(gateway, "slow", [100])
        one.send("quick", 7, unordered=True)
        two.send("quick", 7, unordered=True)
        assert [one.value(), two.value()] == [[14], [14]]
        gate.open()
        assert [one.value(), one.value(), two.value(), two.value()] == [[2], [4], [20], [40]]
        assert [values(call) for call in first + unary] == [[0], [200]]
        assert batches(gateway, "slow") == {1: 1, 5: 1}


def test_what_is_done_early_waits_for_its_turn(models, gate):
    """By default a response waits until those to earlier requests have been sent."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        stream.send("quick", 2)
        stream.send("nobody", 3)
        eventually(lambda: "success" in counts(statistics(gateway, "quick")))
        gate.open()
        assert [stream.value(), stream.value()] == [[2], [4]]
        assert failure(stream.next())[1] == "NOT_FOUND"


def test_unordered_responses_overtake(models, gate):
    """A request with `tensorgate_unordered` is answered as soon as it can be; the others keep their order."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        stream.send("quick", 2)
        stream.send("slow", 3, unordered=True)
        stream.send("quick", 4, unordered=True)
        assert stream.value() == [8]
        stream.send("nobody", 5, unordered=True, id="lost")
        assert failure(stream.next())[0] == "lost"
        gate.open()
        stream.close()
        left = [value(response) for response in stream.rest()]
        assert sorted(left) == [[2], [4], [6]]
        assert left.index([2]) < left.index([4])


def test_order_is_no_part_of_a_request(models):
    """Asking for a response out of order changes nothing else of it: the cache takes it for the same request."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        stream.send("cached", 1, id="a")
        first = stream.next().infer_response
        stream.send("cached", 1, id="b", unordered=True)
        second = stream.next().infer_response
        assert (first.id, second.id) == ("a", "b")
        assert first.raw_output_contents == second.raw_output_contents
        assert counts(statistics(gateway, "cached"))["cache_hit"] == 1


@pytest.mark.parametrize("fault", INVALID)
def test_errors_say_what_unary_calls_say(faulty, fault):
    """A bad request in a stream gets its own id back with the message of a unary call, and the stream goes on."""
    message, expected = INVALID[fault]
    message.id = "bad"
    with StreamCall(faulty) as stream:
        stream.send_message(message)
        stream.send_message(request(X, raw=[ROW]))
        assert failure(stream.next()) == ("bad", "INVALID_ARGUMENT", expected)
        assert len(stream.next().infer_response.outputs) == 2


def test_failures_of_models_stay_secret(faulty):
    """A model's own failure reaches the stream as an id only, which the server's log explains."""
    with StreamCall(faulty) as stream:
        stream.send_message(with_id(request(X, model="raises", raw=[ROW]), "r"))
        request_id, status, message = failure(stream.next())
        assert (request_id, status) == ("r", "INTERNAL")
        assert CONFIDENTIAL not in message
        correlation = message.partition("id ")[2].partition(";")[0]
        assert faulty.server.wait_for_log(f"ModelStreamInfer failed, id {correlation}")


def test_a_message_that_is_none_is_told(faulty):
    """Bytes that are no request are answered with an error, without an id; so is an empty message."""
    with StreamCall(faulty) as stream:
        stream.send_message(b"\xff\xff\xff")
        stream.send_message(b"")
        stream.send_message(request(X, raw=[ROW]))
        told = "ModelStreamInfer: the request is not a valid protobuf message of this RPC"
        assert failure(stream.next()) == ("", "INVALID_ARGUMENT", told)
        assert failure(stream.next())[2] == "model_name is empty: name the model to call"
        assert not stream.next().error_message


@pytest.mark.parametrize("unary", [False, True])
def test_the_parameter_is_yes_or_no(faulty, unary):
    """Whoever writes `tensorgate_unordered` as text or number is told what it must be."""
    message = with_parameter(request(X, raw=[ROW]), "tensorgate_unordered", string_param="true")
    expected = "model 'classifier': parameter 'tensorgate_unordered': expected bool_param, got string_param"
    if unary:
        with pytest.raises(grpc.RpcError, match="expected bool_param"):
            faulty.stub.ModelInfer(message, timeout=60)
        return
    with StreamCall(faulty) as stream:
        stream.send_message(with_id(message, "odd"))
        assert failure(stream.next()) == ("odd", "INVALID_ARGUMENT", expected)


def test_errors_as_status_end_the_stream(models, gate):
    """With `triton_grpc_error` the first failure is the stream's status, once those before it are answered."""
    with serving(models) as gateway, StreamCall(gateway, triton_grpc_error="true") as stream:
        stream.send("slow", 1)
        stream.send("nobody", 2)
        stream.send("slow", 3)
        arrived(gateway)
        gate.open()
        assert stream.value() == [2]
        assert stream.end() == (Code.NOT_FOUND, "Request for unknown model: 'nobody' is not found")


@pytest.mark.parametrize("said", ["false", "1", ""])
def test_errors_are_messages_unless_asked_otherwise(faulty, said):
    """Any other value of `triton_grpc_error` means no, as in Triton."""
    with StreamCall(faulty, triton_grpc_error=said) as stream:
        stream.send_message(request(X, model="nobody", raw=[ROW]))
        assert failure(stream.next())[1] == "NOT_FOUND"


def test_one_poisonous_request_fails_alone(models, gate):
    """Of requests of a stream that share a batch, the one that the model fails on fails, and no other."""
    with serving(models) as gateway, StreamCall(gateway) as stream:
        held = in_turn(gateway, "slow", [0])
        eventually(gate.begun)
        sent = [1, POISON, 3, UNFIT, 5]
        for number in sent:
            stream.send("slow", number)
        stream.send("quick", 0, unordered=True)
        assert stream.value() == [0]
        gate.open()
        responses = [stream.next() for _ in sent]
        assert [value(responses[at]) for at in (0, 2, 4)] == [[2], [6], [10]]
        assert [failure(responses[at])[1] for at in (1, 3)] == ["INTERNAL", "INVALID_ARGUMENT"]
        assert [values(call) for call in held] == [[0]]


def test_priorities_and_time_outs_hold(repository, gate):
    """`priority` and `timeout` mean the same as in unary calls: the urgent run first, who waited too long is told."""
    config = "max_batch_size: 1\ndynamic_batching { priority_levels: 3 default_priority_level: 2 }\n"
    repository.add("slow", gate.files, config + gate.config)
    with serving(repository.root) as gateway, StreamCall(gateway) as stream:
        stream.send("slow", 1)
        eventually(gate.begun)
        for number, priority in ((2, 3), (3, 2), (4, 1)):
            stream.send("slow", number, priority=priority, unordered=True)
        stream.send("slow", 5, timeout_us=20_000, unordered=True, id="late")
        request_id, status, message = failure(stream.next())
        assert (request_id, status) == ("late", "DEADLINE_EXCEEDED")
        assert "not executed within" in message
        gate.open()
        assert [stream.value() for _ in range(4)] == [[1], [4], [3], [2]]
        assert gate.begun() == ["1", "4", "3", "2"]


def test_a_response_too_large_is_told(repository):
    """A response beyond the limit of messages becomes an error of its request, and the stream goes on."""
    repository.add("wide", {"model.py": WIDE})
    with serving(repository.root, "--max-message-mb", "1") as gateway, StreamCall(gateway) as stream:
        stream.send("wide", 300_000, id="huge")
        request_id, status, message = failure(stream.next())
        assert (request_id, status) == ("huge", "RESOURCE_EXHAUSTED")
        assert message.endswith("--max-message-mb sets the limit")
        stream.send("wide", 3)  # not before: in one batch with the other it would be as wide
        assert stream.value() == [[1, 1, 1]]


WIDE = """
import numpy as np

class Model:
    inputs = [("x", "float32", (-1,))]
    outputs = [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        return {"y": np.ones((len(inputs["x"]), int(inputs["x"][0])), np.float32)}
"""


def test_a_request_too_large_ends_the_stream(models):
    """A request beyond the limit of messages ends the stream with a status, as gRPC prescribes."""
    with serving(models, "--max-message-mb", "1") as gateway, StreamCall(gateway) as stream:
        stream.send("quick", *np.zeros(300_000))
        code, details = stream.end()
        assert code is Code.RESOURCE_EXHAUSTED
        assert "larger than max" in details


def with_id(message, request_id: str):
    """A request with an id."""
    message.id = request_id
    return message
