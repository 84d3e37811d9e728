"""Sends arrays to models in every way tritonclient has; `infer.py ADDRESS WAY IN OUT`.

IN is a pickle of {model: (input, datatype, array)}, OUT one of {model: (id, {output: array})}.
"""

import asyncio
import json
import pickle
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def tensor(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    """An input."""
    return triton.InferInput(name, array.shape, datatype).set_data_from_numpy(array)


def outputs(result: triton.InferResult) -> tuple:
    """The id and all outputs of a result."""
    response = result.get_response()
    return response.id, {output.name: result.as_numpy(output.name).copy() for output in response.outputs}


def sync(client: triton.InferenceServerClient, model: str, given: tuple, **options: object) -> tuple:
    """One call that waits."""
    return outputs(client.infer(model, [tensor(*given)], request_id=model, client_timeout=30, **options))


def callback(client: triton.InferenceServerClient, model: str, given: tuple) -> tuple:
    """One call whose answer comes to a callback."""
    got = queue.Queue()
    client.async_infer(model, [tensor(*given)], lambda result, error: got.put((result, error)), request_id=model)
    result, error = got.get(timeout=30)
    if error:
        raise error
    return outputs(result)


async def gathered(address: str, requests: dict) -> dict:
    """All calls at once through the asyncio client."""
    async with triton_aio.InferenceServerClient(address) as client:
        calls = [client.infer(model, [tensor(*given)], request_id=model) for model, given in requests.items()]
        return dict(zip(requests, map(outputs, await asyncio.gather(*calls)), strict=True))


def typed(client: triton.InferenceServerClient, model: str, given: tuple) -> tuple:
    """One call with typed contents, through tritonclient's own messages."""
    request = service_pb2.ModelInferRequest(model_name=model, id=model)
    name, datatype, array = given
    message = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    getattr(message.contents, FIELDS[datatype]).extend(array.ravel().tolist())
    stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
    return outputs(triton.InferResult(stub.ModelInfer(request, timeout=30)))


def named(client: triton.InferenceServerClient, model: str, given: tuple) -> tuple:
    """One call that asks for a single output, with parameters that every Triton client may send."""
    wanted = [triton.InferRequestedOutput("probabilities")]
    extra = {"outputs": wanted, "priority": 1, "timeout": 30_000_000, "parameters": {"note": "x", "n": 1, "f": 0.5}}
    return sync(client, model, given, **extra)


def main(address: str, way: str, source: str, target: str) -> None:
    """Send everything the given way."""
    requests = pickle.loads(Path(source).read_bytes())  # noqa: S301 - the test's own
    if way == "asyncio":
        answers = asyncio.run(gathered(address, requests))
    else:
        client = triton.InferenceServerClient(address)
        compressed = lambda *arguments: sync(*arguments, compression_algorithm=way)  # noqa: E731
        send = {"sync": sync, "async": callback, "typed": typed, "named": named}.get(way, compressed)
        answers = {model: send(client, model, given) for model, given in requests.items()}
    Path(target).write_bytes(pickle.dumps(answers))
    json.dump(len(answers), sys.stdout)


main(*sys.argv[1:])
