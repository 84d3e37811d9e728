"""Loads and unloads a model through tritonclient; `control.py ADDRESS MODEL`."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

OVERRIDE = {"max_batch_size": 2, "parameters": {"owner": {"string_value": "me"}}}


def main(address: str, model: str) -> None:
    """Print what each step brings, in order."""
    client = triton.InferenceServerClient(address)
    steps = [
        lambda: client.get_model_repository_index(as_json=True),
        lambda: client.is_model_ready(model),
        lambda: rows(client, model, 1),
        lambda: client.load_model(model),
        lambda: client.is_model_ready(model),
        lambda: rows(client, model, 3),
        lambda: client.load_model(model, config=json.dumps(OVERRIDE)),
        lambda: client.get_model_config(model, as_json=True)["config"],
        lambda: rows(client, model, 3),
        lambda: rows(client, model, 2),
        lambda: client.load_model(model, config="{not json"),
        lambda: rows(client, model, 2),
        lambda: client.load_model(model, config="{}", files={"file:1/model.onnx": b"bytes"}),
        lambda: client.load_model("nobody"),
        lambda: client.unload_model(model),
        lambda: client.is_model_ready(model),
        lambda: client.get_model_repository_index(as_json=True),
        lambda: rows(client, model, 1),
        lambda: client.unload_model("nobody"),
        lambda: client.load_model(model),
        lambda: rows(client, model, 3),
    ]
    json.dump([outcome(step) for step in steps], sys.stdout)


def outcome(step: object) -> object:
    """What a step returns, or its error's status and message."""
    try:
        return step()
    except InferenceServerException as error:
        return [error.status(), error.message()]


def rows(client: triton.InferenceServerClient, model: str, count: int) -> int:
    """How many rows come back for `count`."""
    tensor = triton.InferInput("x", [count, 4], "FP32").set_data_from_numpy(np.ones((count, 4), np.float32))
    return client.infer(model, [tensor]).as_numpy("probabilities").shape[0]


main(*sys.argv[1:])
