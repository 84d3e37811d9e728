"""Schedules requests to a model that a gate holds up, and reads its statistics; `schedule.py ADDRESS MODEL GATE`.

The gate is a folder: the model notes in its file `execute` what it begins, and goes on once there is a file `open`.
"""

import json
import queue
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MINUTE = 60_000_000  # microseconds


def main(address: str, model: str, gate: str) -> None:
    """Print what the calls brought."""
    client = triton.InferenceServerClient(address)
    answers = queue.Queue()
    start(client, model, answers, 0.0)
    while not (Path(gate) / "execute").exists():
        time.sleep(0.01)
    start(client, model, answers, 9.0, priority=9)  # no such level: the default one, the least urgent of the three
    start(client, model, answers, 2.0, priority=2, timeout=MINUTE)
    start(client, model, answers, 1.0, priority=1)
    result = {"too_short": refused(client, model, 8.0, timeout=50_000), "bad": refused(client, model, 7.0, timeout=-1)}
    (Path(gate) / "open").touch()
    result["answered"] = sorted(answers.get(timeout=60) for _ in range(4))
    result["json"] = client.get_inference_statistics(model, "1", as_json=True)
    result["message"] = client.get_inference_statistics(model).model_stats[0].inference_stats.success.count
    json.dump(result, sys.stdout)


def tensor(value: float) -> list:
    """The inputs: one row."""
    return [triton.InferInput("x", [1], "FP32").set_data_from_numpy(np.float32([value]))]


def start(client: object, model: str, answers: queue.Queue, value: float, **options: object) -> None:
    """Send a request without waiting; its answer's value comes by the queue."""
    done = lambda result, error: answers.put(str(error) if error else float(result.as_numpy("y")[0]))  # noqa: E731
    client.async_infer(model, tensor(value), done, **options)


def refused(client: object, model: str, value: float, **options: object) -> list:
    """Status and message of a request that is not answered."""
    try:
        client.infer(model, tensor(value), **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return []


main(*sys.argv[1:])
