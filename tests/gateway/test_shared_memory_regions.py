"""Regions of shared memory: what may be registered, under which names, by whom, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import ECHO, refusal
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.shared_memory import SharedObject, placed_request, refused, register, status, there_and_back, unregister

from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server that allows shared memory."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("echo", config=ECHO)
    with serving(repository.root, "--allow-shared-memory") as served:
        yield served


@pytest.fixture
def memory(gateway: Gateway) -> Iterator[SharedObject]:
    """An object of 4 KB, registered as `m`."""
    with SharedObject(4096) as memory:
        register(gateway, "m", memory)
        yield memory


@pytest.fixture(autouse=True)
def emptied(gateway: Gateway) -> Iterator[None]:
    """No region is left, and the same process goes on."""
    yield
    unregister(gateway)
    assert status(gateway) == {}
    assert gateway.server.process.poll() is None


def test_metadata_names_the_extension(gateway):
    """Clients learn from the server's metadata that it takes tensors from shared memory."""
    assert "system_shared_memory" in gateway.stub.ServerMetadata(pb.ServerMetadataRequest()).extensions


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "/..", "../../etc/passwd", "/../shm/x", "/a/b", "//a//b", "x\0y", "x\ny", "/" + "x" * 256],
)
def test_a_key_is_a_plain_name(gateway, key):
    """No key leads out of the machine's shared memory, or anywhere but to an object of that name."""
    message = pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=1)
    code, told = refusal(lambda: gateway.stub.SystemSharedMemoryRegister(message))
    assert code is Code.INVALID_ARGUMENT
    assert told == f"key {key[:100]!r}: expected the name of a shared memory object, as '/name'"


def test_only_an_object_is_opened(gateway, tmp_path):
    """Links, pipes and folders are no shared memory, whatever their name, and what is not there is not made."""
    with SharedObject(16) as memory:
        memory.path.unlink()
        told = _register_refused(gateway, memory)
        assert told == f"Unable to open shared memory region: '{memory.key}': No such file or directory"
        assert not memory.path.exists()
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(16))
        memory.path.symlink_to(secret)
        assert "Too many levels of symbolic links" in _register_refused(gateway, memory)
        memory.path.unlink()
        _make_pipe(memory)
        assert _register_refused(gateway, memory) == f"key '{memory.key}': it is no shared memory object"
        memory.path.unlink()
        memory.path.mkdir()
        try:
            assert "Is a directory" in _register_refused(gateway, memory)
        finally:
            memory.path.rmdir()


def _make_pipe(memory: SharedObject) -> None:
    os.mkfifo(memory.path)


def _register_refused(gateway: Gateway, memory: SharedObject) -> str:
    code, told = refusal(lambda: register(gateway, "r", memory))
    assert code is Code.INVALID_ARGUMENT
    return told


@pytest.mark.parametrize(("offset", "byte_size"), [(0, 0), (0, 65), (64, 1), (1, 64), (2**64 - 1, 1), (0, 2**64 - 1)])
def test_a_region_lies_within_its_object(gateway, offset, byte_size):
    """A region that is empty or goes beyond its object is refused, however large its numbers are."""
    with SharedObject(64) as memory:
        code, told = refusal(lambda: register(gateway, "r", memory, offset, byte_size))
    assert code is Code.INVALID_ARGUMENT
    assert f"has 64 bytes, expected a part of them, got {byte_size} from {offset} on" in told
    assert status(gateway) == {}


def test_a_name_is_taken_until_it_is_given_back(gateway, memory):
    """A second region of a name is refused as Triton does it; one that is not there can be unregistered."""
    code, told = refusal(lambda: register(gateway, "m", memory))
    assert (code, told) == (
        Code.ALREADY_EXISTS,
        "shared memory region 'm' already in manager: unregister it first",
    )
    unregister(gateway, "nobody")
    unregister(gateway, "m")
    assert refusal(lambda: status(gateway, "m")) == (
        Code.NOT_FOUND,
        "Unable to find system shared memory region: 'm'",
    )
    register(gateway, "m", memory, 8, 8)
    register(gateway, "n", memory)
    assert status(gateway) == {"m": (memory.key, 8, 8), "n": (memory.key, 0, 4096)}


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb"])
def test_a_region_has_a_plain_name(gateway, memory, name):
    """Names that would mean all regions, or could not be shown, are refused."""
    code, told = refusal(lambda: register(gateway, name, memory))
    assert (code, told) == (Code.INVALID_ARGUMENT, f"region name {name[:100]!r}: expected 1 to 255 printable bytes")


def test_regions_are_limited(gateway, memory):
    """One client cannot use up the server's file descriptors, which connections need."""
    for number in range(255):
        register(gateway, str(number), memory)
    code, told = refusal(lambda: register(gateway, "one more", memory))
    assert (code, told) == (
        Code.RESOURCE_EXHAUSTED,
        "256 shared memory regions are registered: unregister some first",
    )
    with grpc.insecure_channel(gateway.address) as channel:
        assert inference_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live


@pytest.mark.parametrize(("size", "told"), [(0, "input 'INPUT0'"), (1008, "output 'OUTPUT0'")])
def test_a_shrunk_object_is_an_error(gateway, memory, size, told):
    """An owner who shrinks an object harms nobody but his own requests, and it does not grow again."""
    gateway.stub.ModelInfer(there_and_back())
    memory.resize(size)
    code, message = refused(gateway, there_and_back())
    assert code is Code.INVALID_ARGUMENT
    needed = 16 if size == 0 else 1016
    assert message == (
        f"{told} of model 'echo': shared memory region 'm' has shrunk: object '{memory.key}' has {size} bytes, "
        f"expected {needed} or more"
    )
    assert memory.size == size
    memory.resize(4096)
    gateway.stub.ModelInfer(there_and_back())


def test_clients_share_names_not_tensors(gateway):
    """Two clients at once, each with a region of its own, get their own numbers."""
    with SharedObject(4096) as one, SharedObject(4096) as two:
        register(gateway, "one", one)
        register(gateway, "two", two)
        for turn in range(20):
            calls = []
            for value, (name, memory) in enumerate([("one", one), ("two", two)]):
                memory.put(0, np.full((1, 100), value + turn, np.float32))
                like = np.empty((1, 100), np.float32)
                message = placed_request("echo", ("INPUT0", name, like, 0), ("OUTPUT0", name, 400, 1000))
                calls.append(gateway.stub.ModelInfer.future(message))
            for value, (call, memory) in enumerate(zip(calls, [one, two], strict=True)):
                call.result()
                assert set(memory.get(1000, [100])) == {value + turn}


def test_cuda_memory_is_never_there(gateway):
    """Clients may look for regions of GPU memory and clear them up, as Triton's do; there are none to be had."""
    stub = gateway.stub
    assert not stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
    stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    assert refusal(lambda: stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="g"))) == (
        Code.NOT_FOUND,
        "Unable to find cuda shared memory region: 'g'",
    )
    assert refusal(lambda: stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="g"))) == (
        Code.UNIMPLEMENTED,
        "this server does not offer CudaSharedMemoryRegister",
    )
