"""Tensors in shared memory: read and written where a request says, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from grpc import StatusCode as Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.calls import ECHO, infer, request
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.shared_memory import (
    ROW,
    SharedObject,
    place,
    placed_request,
    refused,
    register,
    status,
    there_and_back,
    unregister,
)
from support.streams import StreamCall

from tensorgate_client.tensors import from_raw, to_raw
from tensorgate_client.wire import inference_pb2 as pb

PAIR = """
backend: "echo"
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "b" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "c" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "d" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
TEXT = """
backend: "echo"
input [ { name: "a" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "b" data_type: TYPE_STRING dims: [ -1 ] } ]
"""


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server that allows shared memory, with models that give back what they get."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("echo", config=ECHO)
    repository.add("cached", config=PAIR + "response_cache { enable: true }")
    repository.add("pair", config=PAIR)
    repository.add("text", config=TEXT)
    with serving(repository.root, "--allow-shared-memory", "--max-message-mb", "2") as served:
        yield served


@pytest.fixture(autouse=True)
def unharmed(gateway: Gateway) -> Iterator[None]:
    """Whatever a test does to it, the same process answers the next request, and no region is left."""
    yield
    unregister(gateway)
    assert status(gateway) == {}
    assert np.array_equal(infer(gateway, "echo", ROW), ROW)
    assert gateway.server.process.poll() is None


@pytest.fixture
def memory(gateway: Gateway) -> Iterator[SharedObject]:
    """An object of 4 KB, registered as `m`."""
    with SharedObject(4096) as memory:
        register(gateway, "m", memory)
        yield memory


@pytest.mark.parametrize("streamed", [False, True])
def test_tensors_pass_through_memory(gateway, memory, streamed):
    """An input is read from where it lies, the output written where it is wanted, and the response says so."""
    memory.put(64, ROW)
    message = there_and_back(64, 128)
    message.id = "seven"
    message.outputs[0].parameters["shared_memory_byte_size"].int64_param = 100
    if streamed:
        with StreamCall(gateway) as stream:
            stream.send_message(message)
            response = stream.next().infer_response
    else:
        response = gateway.stub.ModelInfer(message)
    (output,) = response.outputs
    assert (response.id, output.name, output.datatype, list(output.shape)) == ("seven", "OUTPUT0", "FP32", [1, 4])
    told = {key: value.string_param or value.int64_param for key, value in output.parameters.items()}
    assert told == {"shared_memory_region": "m", "shared_memory_byte_size": 16, "shared_memory_offset": 128}
    assert list(response.raw_output_contents) == [b""]
    assert np.array_equal(memory.get(128, ROW.shape), ROW)
    assert set(memory.get(144, [2000], np.uint8)) == {0xEE}


def test_a_region_is_a_part_of_its_object(gateway, memory):
    """Offsets of tensors count from where the region begins, not from where its object does."""
    register(gateway, "part", memory, 1024, 64)
    assert status(gateway, "part") == {"part": (memory.key, 1024, 64)}
    memory.put(1024 + 16, ROW)
    gateway.stub.ModelInfer(placed_request("echo", ("INPUT0", "part", ROW, 16), ("OUTPUT0", "part", 16, 48)))
    assert np.array_equal(memory.get(1024 + 48, ROW.shape), ROW)


def test_what_is_read_again_is_read_anew(gateway, memory):
    """The same request brings other numbers once others lie in the memory, however often it was sent before."""
    for value in range(5):
        memory.put(0, np.full_like(ROW, value))
        gateway.stub.ModelInfer(there_and_back())
        assert set(memory.get(1000, [4])) == {value}


def test_texts_lie_in_memory(gateway, memory):
    """BYTES tensors lie there as they are sent: each element behind its length."""
    texts = np.array([b"", b"shared", "größe".encode()], object)
    raw = np.frombuffer(to_raw(texts), np.uint8)
    memory.put(8, raw)
    message = placed_request("text", ("a", "m", raw, 8), ("b", "m", 1000, 2000))
    message.inputs[0].datatype, message.inputs[0].shape[:] = "BYTES", [3]
    output = gateway.stub.ModelInfer(message).outputs[0]
    length = output.parameters["shared_memory_byte_size"].int64_param
    back = from_raw(memory.get(2000, [length], np.uint8).tobytes(), "BYTES", output.shape)
    assert back.tolist() == texts.tolist()


def test_input_and_output_may_overlap(gateway, memory):
    """Inputs are read before anything is written, so that an output may take an input's place."""
    memory.put(0, ROW)
    gateway.stub.ModelInfer(there_and_back(0, 4))
    assert np.array_equal(memory.get(4, ROW.shape), ROW)


@pytest.fixture
def room(gateway: Gateway) -> Iterator[SharedObject]:
    """An object of 80 KB, registered as `room`."""
    with SharedObject(80_000) as room:
        register(gateway, "room", room)
        yield room


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_tensor_goes_its_own_way(gateway, room, data):
    """Tensors of one request, large or small, each sent or in memory, come back unmixed; with a cache, too."""
    value = data.draw(st.integers(0, 5))
    a, b = np.full((2, data.draw(st.sampled_from([3, 2000]))), value, np.float32), np.array([[value], [7]])
    message = request(data.draw(st.sampled_from(["pair", "cached"])), {})
    for name, datatype, array, offset in [("a", "FP32", a, 0), ("b", "INT64", b, 20_000)]:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if data.draw(st.booleans()):
            room.put(offset, array)
            place(tensor.parameters, "room", array.nbytes, offset)
        else:
            message.raw_input_contents.append(array.tobytes())
    room.put(40_000, np.full(40_000, 0xEE, np.uint8))
    for name, array, offset in [("c", a, 40_000), ("d", b, 60_000)]:
        output = message.outputs.add(name=name)
        if data.draw(st.booleans()):
            place(output.parameters, "room", array.nbytes, offset)
    response = gateway.stub.ModelInfer(message)
    answers = zip(message.outputs, [a, b], [40_000, 60_000], response.raw_output_contents, strict=True)
    for output, array, offset, sent in answers:
        in_memory = room.get(offset, [array.nbytes], np.uint8).tobytes()
        assert (in_memory if output.parameters else sent) == array.tobytes()


def test_the_cache_goes_by_contents(gateway, memory):
    """Equal inputs are computed once, wherever they lie, and an answer out of the cache lands in memory, too."""
    a, b = np.full((1, 3), 77, np.float32), np.array([[78]])
    hits = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="cached")).model_stats[0].inference_stats
    sent = request("cached", {"a": a, "b": b})
    sent.outputs.add(name="c")
    gateway.stub.ModelInfer(sent)
    placed = placed_request("cached", ("a", "m", a, 0), ("c", "m", a.nbytes, 500))
    placed.inputs.add(name="b", datatype="INT64", shape=[1, 1])
    placed.raw_input_contents.append(b.tobytes())
    memory.put(0, a)
    gateway.stub.ModelInfer(placed)
    assert np.array_equal(memory.get(500, a.shape), a)
    memory.put(0, a + 1)
    gateway.stub.ModelInfer(placed)
    assert np.array_equal(memory.get(500, a.shape), a + 1)
    after = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="cached")).model_stats[0].inference_stats
    assert after.cache_hit.count - hits.cache_hit.count == 1
    assert after.cache_miss.count - hits.cache_miss.count == 2


def test_statistics_count_them(gateway, memory):
    """Requests with tensors in memory succeed and fail in the statistics like others."""

    def counted():
        stats = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="echo")).model_stats[0].inference_stats
        return np.array([stats.success.count, stats.fail.count])

    before = counted()
    gateway.stub.ModelInfer(there_and_back())
    refused(gateway, there_and_back(5000))
    refused(gateway, placed_request("echo", ("INPUT0", "m", ROW, 0), ("OUTPUT0", "m", 3, 0)))
    assert (counted() - before).tolist() == [1, 4]


INPUT, OUTPUT = "input 'INPUT0' of model 'echo': ", "output 'OUTPUT0' of model 'echo': "
UNKNOWN = "Unable to find shared memory region: 'nobody'"
BEYOND = "shared memory region 'm' has 4096 bytes, expected a part of them, got "
WRONG = {
    "unknown input region": (
        placed_request("echo", ("INPUT0", "nobody", ROW, 0)),
        (Code.NOT_FOUND, INPUT + UNKNOWN),
    ),
    "unknown output region": (
        placed_request("echo", None, ("OUTPUT0", "nobody", 16, 0)),
        (Code.NOT_FOUND, OUTPUT + UNKNOWN),
    ),
    "input beyond": (there_and_back(4090), (Code.INVALID_ARGUMENT, f"{INPUT}{BEYOND}16 from 4090 on")),
    "output beyond": (there_and_back(0, 4081), (Code.INVALID_ARGUMENT, f"{OUTPUT}{BEYOND}16 from 4081 on")),
    "offset that overflows": (
        there_and_back(2**63 - 1),
        (Code.INVALID_ARGUMENT, f"{INPUT}{BEYOND}16 from {2**63 - 1} on"),
    ),
    "negative offset": (
        there_and_back(-16),
        (
            Code.INVALID_ARGUMENT,
            f"{INPUT}parameter 'shared_memory_offset': expected int64_param, at least 0, got int64_param: -16",
        ),
    ),
    "too few bytes": (
        placed_request("echo", ("INPUT0", "m", ROW, 0)),
        (Code.INVALID_ARGUMENT, f"{INPUT}FP32 [1,4] takes 16 bytes of raw contents, got 12"),
    ),
    "too small a place": (
        placed_request("echo", ("INPUT0", "m", ROW, 0), ("OUTPUT0", "m", 15, 100)),
        (Code.INVALID_ARGUMENT, "output 'OUTPUT0' of model 'echo' takes 16 bytes, shared_memory_byte_size is 15"),
    ),
    "no size": (
        there_and_back(),
        (
            Code.INVALID_ARGUMENT,
            f"{INPUT}parameter 'shared_memory_region' needs 'shared_memory_byte_size' beside it",
        ),
    ),
    "no region": (
        there_and_back(),
        (
            Code.INVALID_ARGUMENT,
            f"{OUTPUT}parameter 'shared_memory_byte_size' says nothing without 'shared_memory_region'",
        ),
    ),
    "region by number": (
        there_and_back(),
        (Code.INVALID_ARGUMENT, f"{INPUT}parameter 'shared_memory_region': expected string_param, got int64_param"),
    ),
    "sent as well": (
        there_and_back(),
        (
            Code.INVALID_ARGUMENT,
            "model 'echo': 0 inputs outside of shared memory but 1 raw_input_contents: expected one each",
        ),
    ),
    "typed as well": (
        there_and_back(),
        (
            Code.INVALID_ARGUMENT,
            "input 'INPUT0' of model 'echo' lies in shared memory and has typed contents: send one",
        ),
    ),
    "typed output": (
        there_and_back(),
        (Code.INVALID_ARGUMENT, f"{OUTPUT}what lies in shared memory is raw: leave out 'binary_data_output'"),
    ),
    "too large": (
        placed_request("echo", ("INPUT0", "large", np.empty((1, 2**20), np.float32), 0)),
        (
            Code.RESOURCE_EXHAUSTED,
            f"request larger than max ({2**22} vs. {2**21}): --max-message-mb sets the limit",
        ),
    ),
}
del WRONG["no size"][0].inputs[0].parameters["shared_memory_byte_size"]
del WRONG["no region"][0].outputs[0].parameters["shared_memory_region"]
WRONG["too few bytes"][0].inputs[0].parameters["shared_memory_byte_size"].int64_param = 12
WRONG["region by number"][0].inputs[0].parameters["shared_memory_region"].int64_param = 1
WRONG["sent as well"][0].raw_input_contents.append(ROW.tobytes())
WRONG["typed as well"][0].inputs[0].contents.fp32_contents.extend([0] * 4)
WRONG["typed output"][0].parameters["binary_data_output"].bool_param = False


@pytest.mark.parametrize(("message", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_place_is_explained(gateway, memory, message, expected):
    """A caller whose request contradicts its memory reads what is wrong, and nothing is written."""
    with SharedObject(0) as large:
        large.resize(2**30)  # costs nothing: nobody has written to it
        register(gateway, "large", large)
        assert refused(gateway, message) == expected
    assert memory.untouched()
