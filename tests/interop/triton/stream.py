"""Streams through both of tritonclient's clients; `stream.py ADDRESS MODEL SLOW`.

MODEL gives `x` back as `y`; SLOW, which gives INPUT0 back as OUTPUT0, takes longer than anyone waits here.
"""

import asyncio
import contextlib
import json
import queue
import sys
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

COUNT = 50


def main(address: str, model: str, slow: str) -> None:
    """Print what came of each stream."""
    client = triton.InferenceServerClient(address)
    runs = {
        "plain": lambda: collected(client, [{"model_name": model}] * COUNT),
        "final": lambda: collected(client, [{"model_name": model, "enable_empty_final_response": True}] * COUNT),
        "unordered": lambda: collected(client, [{"model_name": model, "parameters": {"tensorgate_unordered": True}}]),
        "error": lambda: collected(client, [{"model_name": name} for name in (model, "nobody", model)]),
        "status": lambda: collected(
            client, [{"model_name": name} for name in (model, "nobody")], headers={"triton_grpc_error": "true"}
        ),
        "timeout": lambda: collected(client, [{"model_name": slow}], stream_timeout=0.5),
        "cancelled": lambda: collected(client, [{"model_name": slow}] * 3, cancel=True),
        "asyncio": lambda: asyncio.run(gathered(address, model)),
    }
    json.dump({name: run() for name, run in runs.items()}, sys.stdout)


def inputs(model: str, number: int) -> list:
    """One row of four."""
    name = "INPUT0" if model == "slow" else "x"
    tensor = triton.InferInput(name, [1, 4], "FP32").set_data_from_numpy(np.full((1, 4), number, np.float32))
    return [tensor]


def told(result: object, error: object) -> list:
    """Id, value and whether it is the last response to its request; or an error's status and message."""
    if error:
        return [error.status(), error.message()]
    response = result.get_response()
    final = response.parameters["triton_final_response"].bool_param
    return [response.id, float(result.as_numpy("y")[0, 0]), final]


def collected(client: triton.InferenceServerClient, requests: list, *, cancel: bool = False, **options: object) -> list:
    """What the callback of a stream gets for these requests."""
    got = queue.Queue()
    client.start_stream(lambda result, error: got.put(told(result, error)), **options)
    for number, request in enumerate(requests):
        # A stream that has ended with a status takes no more.
        with contextlib.suppress(InferenceServerException):
            client.async_stream_infer(inputs=inputs(request["model_name"], number), request_id=str(number), **request)
    answers = [] if cancel else [got.get(timeout=30) for _ in requests]
    client.stop_stream(cancel_requests=cancel)
    return answers + list(drained(got))


def drained(got: queue.Queue) -> Iterator:
    """What is left in a queue."""
    while not got.empty():
        yield got.get()


async def gathered(address: str, model: str) -> list:
    """The same through the asyncio client."""

    async def requests() -> Iterator:
        for number, name in enumerate([model, "nobody", model]):
            yield {"model_name": name, "inputs": inputs(name, number), "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        return [told(*pair) async for pair in client.stream_infer(requests(), stream_timeout=30)]


main(*sys.argv[1:])
