"""Asks a server everything there is to ask about it through tritonclient; `survey.py ADDRESS MODEL`."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main(address: str, model: str) -> None:
    """Print the answers, by call; errors as their status and message."""
    client = triton.InferenceServerClient(address)
    calls = {
        "live": client.is_server_live,
        "ready": client.is_server_ready,
        "model_ready": lambda: client.is_model_ready(model),
        "version_ready": lambda: client.is_model_ready(model, "1"),
        "other_version_ready": lambda: client.is_model_ready(model, "2"),
        "unknown_ready": lambda: client.is_model_ready("nobody"),
        "server": lambda: client.get_server_metadata(as_json=True),
        "metadata": lambda: client.get_model_metadata(model, as_json=True),
        "config": lambda: client.get_model_config(model, as_json=True),
        "index": lambda: client.get_model_repository_index(as_json=True),
        "unknown_metadata": lambda: client.get_model_metadata("nobody"),
        "unknown_config": lambda: client.get_model_config("nobody"),
        "load": lambda: client.load_model(model),
        "unload": lambda: client.unload_model(model),
        "statistics": lambda: client.get_inference_statistics(as_json=True),
        "unknown_statistics": lambda: client.get_inference_statistics("nobody"),
        "trace": lambda: client.get_trace_settings(as_json=True),
        "set_trace": lambda: client.update_trace_settings(
            model, {"trace_level": ["TIMESTAMPS"], "trace_rate": "1000", "trace_count": "5"}, as_json=True
        ),
        "clear_trace": lambda: client.update_trace_settings(
            model, {"trace_level": None, "trace_rate": None, "trace_count": None}, as_json=True
        ),
        "trace_file": lambda: client.update_trace_settings(settings={"trace_file": "/t"}),
        "shm": client.get_system_shared_memory_status,
        "register_shm": lambda: client.register_system_shared_memory("r", "/r", 64),
        "unregister_shm": client.unregister_system_shared_memory,
        "cuda": client.get_cuda_shared_memory_status,
        "register_cuda": lambda: client.register_cuda_shared_memory("r", b"AA==", 0, 64),
        "unregister_cuda": client.unregister_cuda_shared_memory,
        "deadline": lambda: client.infer("slow", [row("INPUT0")], client_timeout=0.2).get_response(as_json=True),
    }
    answers = {}
    for name, call in calls.items():
        try:
            answers[name] = call()
        except InferenceServerException as error:
            answers[name] = {"status": error.status(), "message": error.message()}
    json.dump(answers, sys.stdout)


def row(name: str) -> triton.InferInput:
    """An input of one row."""
    return triton.InferInput(name, [1, 4], "FP32").set_data_from_numpy(np.zeros((1, 4), np.float32))


main(*sys.argv[1:])
