"""Streams, against a server that answers as each test tells it; both clients are held to all of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from grpc import StatusCode
from support.both_clients import Awaited
from support.calls import eventually
from support.fake_inference import FakeInference, doubled, refused

from tensorgate_client import InferenceError, StreamResult, aio
from tensorgate_client.wire import inference_pb2 as pb

UNFIT = np.ones((1, 3), np.float32)


def batch(number: float) -> dict[str, np.ndarray]:
    """A batch of one row that begins with a number."""
    return {"x": np.array([[number, 0]], np.float32)}


def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches from 0 on."""
    return map(batch, range(count))


def answer(result: StreamResult) -> tuple[int, float]:
    """Whose it is, and its first number."""
    return result.index, float(result.outputs["y"][0, 0])


@pytest.fixture
def client(connect, address):
    """A client of the fake server."""
    return connect(address)


def reversing(size: int):
    """A server that answers groups of requests from their last to their first."""

    def stream(requests, _):
        held = []
        for request in requests:
            held.append(request)
            if len(held) == size:
                while held:
                    yield doubled(held.pop())

    return stream


def test_results_come_in_order(client, fake):
    """Each of many batches has its result, in the order of the batches, over one call."""
    results = client.stream("double", batches(200), window=8)
    assert [answer(result) for result in results] == [(number, 2 * number) for number in range(200)]
    assert fake.asked == ["ModelMetadata", "ModelStreamInfer"]
    assert fake.numbers == list(range(200))


def test_order_does_not_depend_on_the_server(client, fake):
    """Results are in order also if the server answers out of order."""
    fake.streaming = reversing(4)
    results = client.stream("double", batches(20), window=4)
    assert [answer(result) for result in results] == [(number, 2 * number) for number in range(20)]
    assert not fake.requests[0].parameters


def test_results_as_they_are_ready(client, fake):
    """Without order, results come as the server gives them, and still say whose they are."""
    fake.streaming = reversing(4)
    results = client.stream("double", batches(8), window=4, ordered=False)
    assert [answer(result) for result in results] == [(number, 2 * number) for number in (3, 2, 1, 0, 7, 6, 5, 4)]
    assert all(request.parameters["tensorgate_unordered"].bool_param for request in fake.requests)


def test_results_come_while_batches_are_sent(client):
    """The first result is there before the second batch has been made."""
    first = threading.Event()

    def waiting():
        yield batch(0)
        assert first.wait(60)
        yield batch(1)

    for result in client.stream("double", waiting()):
        assert answer(result) == (result.index, 2 * result.index)
        first.set()
    assert first.is_set()


def test_a_batch_that_is_refused_here_is_known_at_once(client):
    """So is a batch that is not even sent: its error is there before the next batch has been made."""
    first = threading.Event()

    def waiting():
        yield {"x": UNFIT}
        assert first.wait(60)
        yield batch(1)

    results = client.stream("double", waiting())
    assert next(results).error.code is StatusCode.INVALID_ARGUMENT
    first.set()
    assert answer(next(results)) == (1, 2)


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_than_the_window_is_under_way(client, fake, ordered):
    """A million batches need no more memory than the window: only so many are taken ahead of their results."""
    taken, unanswered = [], []
    full = threading.Event()

    def stream(requests, _):
        held = []
        for request in requests:
            held.append(request)
            unanswered.append(len(held))
            if len(held) == 5:
                full.set()
                yield doubled(held.pop(0))
        yield from map(doubled, held)

    def counted():
        for number in range(100):
            assert len(taken) < 5 or full.is_set()
            taken.append(number)
            yield batch(number)

    fake.streaming = stream
    results = client.stream("double", counted(), window=5, ordered=ordered)
    assert [result.index for result in results] == list(range(100))
    assert max(unanswered) == 5


def test_a_caller_who_stops_reading_stops_the_sending(client, fake):
    """Batches are not taken while nobody reads the results of earlier ones."""
    taken, busy = [], client.busy()
    results = client.stream("double", (taken.append(n) or batch(n) for n in range(100)), window=4)
    assert answer(next(results)) == (0, 0)
    eventually(lambda: len(fake.requests) == 5)
    assert answer(next(results)) == (1, 2)
    eventually(lambda: len(fake.requests) == 6)
    results.close()
    eventually(lambda: client.busy() == busy)
    assert len(taken) == 6


def test_leaving_early_cancels_the_stream(client, fake):
    """After `break` the server sees the call cancelled, and neither thread nor task is left."""
    busy = client.busy()

    def stream(requests, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        for request in requests:
            yield doubled(request)
            assert request.id != "5" or gone.wait(60)

    fake.streaming = stream
    for result in client.stream("double", batches(10**9)):
        if result.index == 3:
            break
    else:
        pytest.fail("the stream ended by itself")
    eventually(fake.ended.is_set)
    eventually(lambda: client.busy() == busy)


def test_a_failure_of_the_callers_own(client, fake):
    """What the batches' iterator raises reaches the caller as it is, and the server sees the call cancelled."""
    busy = client.busy()

    def failing():
        yield batch(0)
        eventually(lambda: fake.requests)
        raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file"):
        list(client.stream("double", failing()))
    eventually(fake.ended.is_set)
    eventually(lambda: client.busy() == busy)


def test_one_bad_batch_fails_alone(client, fake):
    """A batch that the server or the client refuses has an error for a result; those before and after have answers."""
    fake.streaming = lambda requests, _: (
        refused(request, "too bright") if b"\0\0\x80?" in request.raw_input_contents[0] else doubled(request)
        for request in requests
    )
    results = list(client.stream("double", [batch(0), batch(1), {"x": UNFIT}, batch(3)]))
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [answer(results[0]), answer(results[3])] == [(0, 0), (3, 6)]
    assert results[0].error is None
    with pytest.raises(InferenceError, match="too bright"):
        _ = results[1].outputs
    assert results[2].error.code is StatusCode.INVALID_ARGUMENT
    assert results[2].error.message == "input 'x' of model 'double': expected FP32 [-1,2], got FP32 [1,3]"
    assert len(fake.requests) == 3


def test_a_broken_answer_fails_alone(client, fake):
    """An answer that cannot be read is that batch's error."""

    def stream(requests, _):
        for request in requests:
            response = doubled(request)
            if request.id == "0":
                response.infer_response.raw_output_contents[0] = b""
            yield response

    fake.streaming = stream
    results = list(client.stream("double", batches(2)))
    assert results[0].error.code is StatusCode.INTERNAL
    assert answer(results[1]) == (1, 2)


@pytest.mark.parametrize("inputs", [[], [{"x": UNFIT}] * 3], ids=["nothing", "nothing that fits"])
def test_a_stream_of_nothing_ends(client, inputs):
    """A stream without batches to send ends by itself."""
    assert len(list(client.stream("double", inputs, window=1))) == len(inputs)


def test_a_stream_that_breaks(client, fake):
    """What came before is handed out; then the caller learns why the stream broke."""
    busy = client.busy()

    def stream(requests, context):
        yield doubled(next(requests))
        context.abort(StatusCode.UNAVAILABLE, "going down")

    fake.streaming = stream
    results = client.stream("double", batches(10**9))
    assert answer(next(results)) == (0, 0)
    with pytest.raises(InferenceError, match=r"UNAVAILABLE: 127\.0\.0\.1:\d+: going down"):
        next(results)
    eventually(lambda: client.busy() == busy)


FAULTS = {
    "ends early": (lambda requests, _: iter([doubled(next(requests))]), "the server ended the stream with"),
    "strange id": (
        lambda _, __: iter([pb.ModelStreamInferResponse(error_message="?")]),
        "the server answered a batch with id ''",
    ),
    "answers twice": (
        lambda requests, _: iter([doubled(next(requests))] * 2),
        "the server answered a batch with id '0', .* more than once",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_server_that_keeps_no_order(client, fake, case):
    """A server that leaves batches unanswered, or answers what was not asked, does not leave the caller hanging."""
    fake.streaming, message = FAULTS[case]
    with pytest.raises(InferenceError, match=message):
        list(client.stream("double", batches(10**9)))


def test_a_streams_deadline(client, fake):
    """A stream may be given a time to be done in."""
    done = threading.Event()
    fake.streaming = lambda requests, _: (doubled(request) for request in requests if done.wait(60))
    with pytest.raises(InferenceError, match=r"DEADLINE_EXCEEDED: no answer from \S+ within 300 ms"):
        list(client.stream("double", batches(3), deadline_ms=300))
    done.set()


def test_the_clients_deadline_is_not_the_streams(connect, address, fake):
    """A client's deadline for calls does not end a stream that takes longer."""
    hasty = connect(address, deadline_ms=10_000)
    list(hasty.stream("double", batches(1)))
    left = []
    fake.streaming = lambda requests, context: (left.append(context.time_remaining()) or doubled(r) for r in requests)
    list(hasty.stream("double", batches(1)))
    assert left[0] > 10**9  # gRPC's "none"


def test_a_window_of_nothing(client):
    """A window that lets nothing through is refused when the stream is asked for."""
    with pytest.raises(ValueError, match="window is 0, expected 1 or more"):
        client.stream("double", [], window=0)


def test_closing_the_client_ends_its_streams(connect, fake, address):
    """Whoever waits for a stream's next result learns that its client was closed."""
    client = connect(address)
    held = threading.Event()
    fake.streaming = lambda requests, _: (doubled(r) for r in requests if r.id == "0" or held.wait(60))
    results = client.stream("double", batches(2))
    next(results)
    client.close()
    with pytest.raises(InferenceError) as caught:
        next(results)
    assert caught.value.code is StatusCode.CANCELLED
    held.set()


def test_aio_takes_plain_iterables(address):
    """The aio client streams from a list or generator, too."""

    async def stream() -> list[tuple[int, float]]:
        async with aio.InferenceClient(address) as client:
            return [answer(result) async for result in client.stream("double", batches(5))]

    assert asyncio.run(stream()) == [(number, 2 * number) for number in range(5)]


def test_cancelling_a_task_cancels_its_stream(fake: FakeInference, address):
    """A task that is cancelled while it waits for batches that do not come lets the server know."""
    client = Awaited(address)

    async def endless():
        yield batch(0)
        await asyncio.Event().wait()

    async def give_up() -> None:
        first = asyncio.Event()

        async def work() -> None:
            async for _ in client.client.stream("double", endless()):
                first.set()

        task = asyncio.create_task(work())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    client.run(give_up())
    eventually(fake.ended.is_set)
    eventually(lambda: client.busy() == 0)
    client.end()
