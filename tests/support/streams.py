"""A ModelStreamInfer stream, driven by hand."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from support.calls import first_output, request
from support.server import Gateway
from tensorgate_client.wire import inference_pb2 as pb

_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
_END = object()


class StreamCall:
    """An open stream. Messages leave as soon as the server takes them; responses wait until they are asked for."""

    def __init__(self, gateway: Gateway, timeout: float | None = 60, **metadata: str) -> None:
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.taken = 0
        rpc = gateway.channel.stream_stream(_PATH, response_deserializer=pb.ModelStreamInferResponse.FromString)
        self.call = rpc(self._outgoing(), timeout=timeout, metadata=tuple(metadata.items()))

    def __enter__(self) -> StreamCall:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self.close()

    def _outgoing(self) -> Iterator[bytes]:
        while (message := self._messages.get()) is not _END:
            self.taken += 1
            yield message

    def send(self, model: str, *rows: Any, name: str = "x", unordered: bool = False, **fields: Any) -> None:
        """Send rows. `priority` and `timeout_us` become parameters of the request, other fields its own."""
        message = infer_request(model, *rows, name=name, **fields)
        if unordered:
            message.parameters["tensorgate_unordered"].bool_param = True
        self.send_message(message)

    def send_message(self, message: pb.ModelInferRequest | bytes) -> None:
        """Send a message, or bytes that may be none."""
        self._messages.put(message if isinstance(message, bytes) else message.SerializeToString())

    def close(self) -> None:
        """Nothing more comes."""
        self._messages.put(_END)

    def next(self) -> pb.ModelStreamInferResponse:
        """The next response."""
        return next(self.call)

    def value(self) -> Any:
        """The first output of the next response, which must be a good one."""
        return value(self.next())

    def rest(self) -> list[pb.ModelStreamInferResponse]:
        """Everything that still comes until the server ends the stream well."""
        return list(self.call)

    def end(self) -> tuple[grpc.StatusCode, str]:
        """The status that the stream ends with, after no further response."""
        try:
            response = next(self.call, None)
        except grpc.RpcError:
            response = None
        assert response is None, response
        return self.call.code(), self.call.details()


def infer_request(model: str, *rows: Any, name: str = "x", **fields: Any) -> pb.ModelInferRequest:
    """A request with these rows."""
    message = request(model, {name: np.array(rows, np.float32)}, fields.pop("version", ""))
    message.id = fields.pop("id", "")
    for key, number in (("priority", fields.pop("priority", 0)), ("timeout", fields.pop("timeout_us", 0))):
        if number:
            message.parameters[key].int64_param = number
    assert not fields
    return message


def value(response: pb.ModelStreamInferResponse) -> Any:
    """The first output of a good response."""
    assert not response.error_message, response
    return first_output(response.infer_response).tolist()


def failure(response: pb.ModelStreamInferResponse) -> tuple[str, str, str]:
    """Id, status and message of a failed request's response."""
    assert response.error_message, response
    told = response.infer_response
    return told.id, told.parameters["tensorgate_status"].string_param, response.error_message


DOUBLE = """
class Model:
    inputs = [("x", "float32", (-1,))]
    outputs = [("y", "float32", (-1,))]

    def execute(self, inputs):
        return {"y": inputs["x"] * 2}
"""
"""A model that doubles its rows, at once."""
