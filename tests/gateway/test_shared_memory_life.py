"""Shared memory in the course of time: requests that are overtaken, restarts, servers that do not allow it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import ECHO, Gate, eventually, first_output, refusal, request
from support.server import Gateway, serving
from support.shared_memory import ROW, SharedObject, place, refused, register, status, there_and_back, unregister

from tensorgate_client.wire import inference_pb2 as pb


@pytest.fixture
def gate(tmp_path) -> Gate:
    """Holds the model up."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def gateway(transport, repository, gate) -> Iterator[Gateway]:
    """A server that allows shared memory, with a model that is held up."""
    repository.add("held", gate.files, gate.config)
    with serving(repository.root, "--allow-shared-memory") as served:
        yield served


@pytest.fixture
def memory(gateway) -> Iterator[SharedObject]:
    """An object of 4 KB, registered as `m`."""
    with SharedObject(4096) as memory:
        register(gateway, "m", memory)
        yield memory


def held_request(value: float, target: str) -> pb.ModelInferRequest:
    """A request to the model that is held up, with its output in shared memory."""
    message = request("held", {"x": np.float32([value])})
    place(message.outputs.add(name="y").parameters, target, 4)
    return message


@pytest.mark.parametrize("again", [False, True])
def test_an_unregistered_region_is_left_alone(gateway, gate, memory, again):
    """Once a region is unregistered, not even a request under way writes there, nor into another of the same name."""
    with SharedObject(64) as other:
        call = gateway.stub.ModelInfer.future(held_request(1, "m"), timeout=60)
        eventually(gate.begun)
        unregister(gateway, "m")
        if again:
            register(gateway, "m", other)
        gate.open()
        assert refusal(call.result) == (
            Code.NOT_FOUND,
            "output 'y' of model 'held': shared memory region 'm' was unregistered while the request was under way",
        )
        assert other.untouched()
        assert memory.untouched()


def test_what_is_cancelled_writes_nothing(gateway, gate, memory):
    """The memory of a call that its caller gave up is the caller's again, though the model goes on computing."""
    cancelled = gateway.stub.ModelInfer.future(held_request(1, "m"), timeout=60)
    eventually(gate.begun)
    cancelled.cancel()
    eventually(lambda: _cancellations(gateway))
    gate.open()
    assert first_output(gateway.stub.ModelInfer(request("held", {"x": np.float32([2])}))) == 2
    assert memory.untouched()


def _cancellations(gateway: Gateway) -> int:
    return (
        gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="held")).model_stats[0].inference_stats.fail.count
    )


def test_a_new_server_knows_no_region(transport, repository):
    """After a restart a client is told that its region is unknown, and goes on once it has registered it again."""
    repository.add("echo", config=ECHO)
    with SharedObject(4096) as memory:
        memory.put(0, ROW)
        for _ in range(2):
            with serving(repository.root, "--allow-shared-memory") as served:
                assert refusal(lambda served=served: served.stub.ModelInfer(there_and_back())) == (
                    Code.NOT_FOUND,
                    "input 'INPUT0' of model 'echo': Unable to find shared memory region: 'm'",
                )
                register(served, "m", memory)
                served.stub.ModelInfer(there_and_back())
                assert np.array_equal(memory.get(1000, ROW.shape), ROW)


def test_it_is_off_unless_allowed(transport, repository):
    """A server that was not told to allow it has no such extension, opens nothing, and says what would allow it."""
    repository.add("echo", config=ECHO)
    with serving(repository.root) as served, SharedObject(4096) as memory:
        assert "system_shared_memory" not in served.stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
        calls = {
            "SystemSharedMemoryRegister": lambda: register(served, "m", memory),
            "SystemSharedMemoryUnregister": lambda: unregister(served),
            "SystemSharedMemoryStatus": lambda: status(served),
        }
        for name, call in calls.items():
            told = f"this server does not offer {name} without --allow-shared-memory"
            assert refusal(call) == (Code.UNIMPLEMENTED, told)
        told = (
            "this server does not offer shared memory without --allow-shared-memory (parameter 'shared_memory_region')"
        )
        assert refused(served, there_and_back()) == (Code.UNIMPLEMENTED, f"input 'INPUT0' of model 'echo': {told}")
        assert memory.untouched()
