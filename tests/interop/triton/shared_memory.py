"""Has tensors in shared memory, as tritonclient's own examples do; `shared_memory.py ADDRESS MODEL TEXTS`.

MODEL has the inputs a and b and gives them back as c and d; TEXTS gives its BYTES x back as y.
"""

import asyncio
import json
import os
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient import utils
from tritonclient.utils import shared_memory as shm

KEYS = [f"/tensorgate-test-{os.getpid()}-{use}" for use in ("in", "out")]
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.array([[5], [6]], np.int64)
TEXTS = np.array([[b"shared", "größe".encode()]], object)


def main(address: str, model: str, texts: str) -> None:
    """Print what each way of calling brought, and what is told of the regions."""
    client = triton.InferenceServerClient(address)
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    regions = [shm.create_shared_memory_region(f"r{i}", key, 1024) for i, key in enumerate(KEYS)]
    try:
        for name, key in zip(("in", "out"), KEYS, strict=True):
            client.register_system_shared_memory(name, key, 1024)
        told = {"extensions": list(client.get_server_metadata().extensions)}
        status = client.get_system_shared_memory_status(as_json=True)["regions"]
        told["status"] = {name: (region["key"] in KEYS, region["byte_size"]) for name, region in status.items()}
        ways = {"sync": sync, "async": by_callback, "stream": by_stream, "asyncio": by_asyncio}
        for turn, (way, call) in enumerate(ways.items()):
            told[way] = numbers(regions, turn, lambda *given, call=call: call(client, address, model, *given))
        told["texts"] = in_texts(client, texts, regions)
        told["refusals"] = [refusal(step) for step in mistakes(client, model)]
        client.unregister_system_shared_memory("in")
        told["left"] = list(client.get_system_shared_memory_status().regions)
        client.unregister_system_shared_memory()
        told["cuda"] = client.get_cuda_shared_memory_status(as_json=True)
    finally:
        for region in regions:
            shm.destroy_shared_memory_region(region)
    json.dump(told, sys.stdout)


def numbers(regions: list, turn: int, call: object) -> list:
    """A comes from shared memory, c goes there; b and d are sent. Whether the right numbers came back."""
    shm.set_shared_memory_region(regions[0], [A + turn], offset=16)
    first, second = triton.InferInput("a", A.shape, "FP32"), triton.InferInput("b", B.shape, "INT64")
    first.set_shared_memory("in", A.nbytes, offset=16)
    second.set_data_from_numpy(B + turn)
    c, d = triton.InferRequestedOutput("c"), triton.InferRequestedOutput("d")
    c.set_shared_memory("out", A.nbytes, offset=64)
    result = call([first, second], [c, d])
    placed = result.get_output("c")
    written = shm.get_contents_as_numpy(regions[1], utils.triton_to_np_dtype(placed.datatype), placed.shape, offset=64)
    return [np.array_equal(written, A + turn), np.array_equal(result.as_numpy("d"), B + turn)]


def sync(client: object, _: str, model: str, inputs: list, outputs: list) -> object:
    """One call that waits."""
    return client.infer(model, inputs, outputs=outputs)


def by_callback(client: object, _: str, model: str, inputs: list, outputs: list) -> object:
    """One call whose answer comes to a callback."""
    got = queue.Queue()
    client.async_infer(model, inputs, lambda result, error: got.put((result, error)), outputs=outputs)
    return first(got)


def by_stream(client: object, _: str, model: str, inputs: list, outputs: list) -> object:
    """One request of a stream."""
    got = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    client.async_stream_infer(model, inputs, outputs=outputs)
    result = first(got)
    client.stop_stream()
    return result


def by_asyncio(_: object, address: str, model: str, inputs: list, outputs: list) -> object:
    """One call through the asyncio client."""

    async def call() -> object:
        async with triton_aio.InferenceServerClient(address) as client:
            return await client.infer(model, inputs, outputs=outputs)

    return asyncio.run(call())


def first(got: queue.Queue) -> object:
    """The first answer."""
    result, error = got.get(timeout=30)
    if error:
        raise error
    return result


def in_texts(client: object, model: str, regions: list) -> list:
    """Texts through shared memory."""
    serialized = utils.serialize_byte_tensor(TEXTS)
    shm.set_shared_memory_region(regions[0], [serialized], offset=100)
    tensor, output = triton.InferInput("x", TEXTS.shape, "BYTES"), triton.InferRequestedOutput("y")
    tensor.set_shared_memory("in", utils.serialized_byte_size(serialized), offset=100)
    output.set_shared_memory("out", 500, offset=300)
    placed = client.infer(model, [tensor], outputs=[output]).get_output("y")
    back = shm.get_contents_as_numpy(regions[1], utils.triton_to_np_dtype("BYTES"), placed.shape, offset=300)
    return [text.decode() for text in back.ravel()]


def mistakes(client: object, model: str) -> list:
    """Steps that are to be refused."""

    def placed(region: str, *where: int) -> list:
        return [triton.InferInput("a", A.shape, "FP32").set_shared_memory(region, *where)]

    return [
        lambda: client.register_system_shared_memory("in", KEYS[0], 1024),
        lambda: client.register_system_shared_memory("new", KEYS[0], 2048),
        lambda: client.register_system_shared_memory("new", "/nobody", 1024),
        lambda: client.get_system_shared_memory_status("nobody"),
        lambda: client.infer(model, placed("nobody", A.nbytes)),
        lambda: client.infer(model, placed("in", A.nbytes, 1000)),
        lambda: client.infer(model, placed("in", A.nbytes + 4)),
        lambda: client.register_cuda_shared_memory("gpu", b"AA==", 0, 64),
    ]


def refusal(step: object) -> list:
    """Status and message of a step's error."""
    try:
        step()
    except utils.InferenceServerException as error:
        return [error.status(), error.message()]
    return []


main(*sys.argv[1:])
