"""A server of the protocol that does what a test tells it: fail, hold back, answer out of order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np

from tensorgate_client.tensors import from_raw, to_raw
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

Requests = Iterator[pb.ModelInferRequest]
Responses = Iterator[pb.ModelStreamInferResponse]


def double(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The only model: `y` is twice `x`."""
    (tensor,) = request.inputs
    x = from_raw(request.raw_input_contents[0], tensor.datatype, tensor.shape)
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    response.outputs.add(name="y", datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.append(bytes(to_raw(2 * x)))
    return response


def doubled(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
    """Its answer within a stream."""
    return pb.ModelStreamInferResponse(infer_response=double(request))


def refused(request: pb.ModelInferRequest, message: str) -> pb.ModelStreamInferResponse:
    """An error within a stream."""
    return pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse(id=request.id))


class FakeInference(GRPCInferenceServiceServicer):
    """Serves the model `double`, from `x` FP32 [-1,2] to `y`, and remembers what it was asked.

    Attributes:
        failures: statuses of the next calls of ModelInfer, before it answers well.
        held: while it is cleared, ModelInfer gives no answer.
        streaming: what ModelStreamInfer does; by default it answers each request as it comes.
        asked: names of the RPCs that came, in their order.
        metadata: of the last RPC.
        left: seconds that the caller of the last RPC still waits; None without a deadline.
        ready: what it says of itself and its model. Such questions are not remembered.
        requests: of all streams, in their order.
        ended: set when an RPC has ended, also by cancellation.
    """

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.held = threading.Event()
        self.held.set()
        self.streaming: Callable[[Requests, grpc.ServicerContext], Responses] = lambda requests, _: map(
            doubled, requests
        )
        self.asked: list[str] = []
        self.metadata: dict[str, str] = {}
        self.left: float | None = None
        self.ready = True
        self.requests: list[pb.ModelInferRequest] = []
        self.inputs = [pb.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1, 2])]
        self.outputs = [pb.ModelMetadataResponse.TensorMetadata(name="y", datatype="FP32", shape=[-1, 2])]
        self.ended = threading.Event()
        self.begun = threading.Event()

    def _note(self, rpc: str, context: grpc.ServicerContext) -> None:
        self.asked.append(rpc)
        self.metadata = dict(context.invocation_metadata())
        self.left = context.time_remaining()

    def ModelMetadata(self, request, context):  # noqa: N802  # gRPC's names
        """Describe the model, whatever its name."""
        self._note("ModelMetadata", context)
        return pb.ModelMetadataResponse(name=request.name, inputs=self.inputs, outputs=self.outputs)

    def ModelConfig(self, request, context):  # noqa: N802
        """An extension that it does not have."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such extension")

    def ServerReady(self, request, context):  # noqa: N802
        """As told."""
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, context):  # noqa: N802
        """As told, whatever the model's name."""
        return pb.ModelReadyResponse(ready=self.ready)

    def ModelInfer(self, request, context):  # noqa: N802
        """Fail, wait, or answer."""
        self._note("ModelInfer", context)
        if self.failures:
            context.abort(self.failures.pop(0), "as told")
        context.add_callback(self.ended.set)
        self.begun.set()
        self.held.wait(60)
        return double(request)

    def ModelStreamInfer(self, requests, context):  # noqa: N802
        """Do as told."""
        self._note("ModelStreamInfer", context)
        context.add_callback(self.ended.set)
        return self.streaming(self._noted(requests), context)

    def _noted(self, requests: Requests) -> Requests:
        for request in requests:
            self.requests.append(request)
            yield request

    @property
    def numbers(self) -> list[float]:
        """The first number of each request that came by a stream."""
        return [float(np.frombuffer(request.raw_input_contents[0], np.float32)[0]) for request in self.requests]


@contextmanager
def serving_fake(
    servicer: FakeInference,
    credentials: grpc.ServerCredentials | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """Its address, while it serves; on a free port if none is given."""
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    if credentials:
        port = server.add_secure_port(f"{host}:{port}", credentials)
    else:
        port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield f"{host}:{port}"
    finally:
        servicer.held.set()
        server.stop(None).wait()
        pool.shutdown()
