"""What tests of the gateway do over and over: call it, and wait until something is so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from support.server import Gateway
from tensorgate_client.tensors import datatype_of, from_raw, to_raw
from tensorgate_client.wire import inference_pb2 as pb

ECHO = 'backend: "echo"\n'

ONES = np.ones((1, 4), np.float32)


def request(model: str, inputs: Mapping[str, np.ndarray], version: str = "") -> pb.ModelInferRequest:
    """A request with raw contents."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        message.raw_input_contents.append(bytes(to_raw(array)))
    return message


def infer(gateway: Gateway, model: str, array: np.ndarray = ONES, name: str = "INPUT0", **options: Any) -> np.ndarray:
    """The first output for one input."""
    message = request(model, {name: array}, options.pop("version", ""))
    return first_output(gateway.stub.ModelInfer(message, timeout=60, **options))


def first_output(response: pb.ModelInferResponse) -> np.ndarray:
    """The first output as an array."""
    output = response.outputs[0]
    return from_raw(response.raw_output_contents[0], output.datatype, output.shape)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status that `call` is refused with."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"not refused: {answer}")


def index(gateway: Gateway, *, ready: bool = False) -> dict[str, tuple[str, str]]:
    """State and reason by "name/version"."""
    response = gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready), timeout=60)
    return {f"{row.name}/{row.version}": (row.state, row.reason) for row in response.models}


def ready(gateway: Gateway, model: str, version: str = "") -> bool:
    """What ModelReady says."""
    return gateway.stub.ModelReady(pb.ModelReadyRequest(name=model, version=version), timeout=60).ready


def load(gateway: Gateway, model: str, config: object = None) -> None:
    """Load a model by RPC, `config` as JSON in the place of its config.pbtxt."""
    message = pb.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        message.parameters["config"].string_param = config if isinstance(config, str) else json.dumps(config)
    gateway.stub.RepositoryModelLoad(message, timeout=60)


def unload(gateway: Gateway, model: str) -> None:
    """Unload a model by RPC."""
    gateway.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model), timeout=60)


def eventually(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """The first true result of `condition`."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not so within {timeout} s: {condition}"
        time.sleep(0.01)
    return result


class Gate:
    """Holds python models up until a test lets them through, and knows what they have begun to do."""

    MODEL = """
import time
from pathlib import Path

class Model:
    inputs = [("x", "float32", (-1,))]
    outputs = [("y", "float32", (-1,))]

    def load(self, source):
        self.folder = Path(source.parameters["gate"])
        self.stage = source.parameters["stage"]
        self.pass_through("load", source.version)

    def execute(self, inputs):
        self.pass_through("execute", *inputs["x"])
        return {"y": inputs["x"]}

    def pass_through(self, stage, *values):
        with (self.folder / stage).open("a") as file:
            print(*(f"{value:g}" for value in values), file=file)
        while stage == self.stage and not (self.folder / "open").exists():
            time.sleep(0.005)

    def close(self):
        (self.folder / "closed").touch()
"""

    def __init__(self, folder: Path, stage: str = "execute") -> None:
        folder.mkdir()
        self._folder = folder
        self.files = {"model.py": self.MODEL}
        self.config = "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in (("gate", folder), ("stage", stage))
        )

    def open(self) -> None:
        """Let everything through from now on."""
        (self._folder / "open").touch()

    def shut(self) -> None:
        """Hold up what comes from now on."""
        (self._folder / "open").unlink()

    def begun(self, stage: str = "execute") -> list[str]:
        """What has begun, one line each."""
        file = self._folder / stage
        return file.read_text().splitlines() if file.exists() else []

    @property
    def closed(self) -> bool:
        """Whether the model was closed."""
        return (self._folder / "closed").exists()
