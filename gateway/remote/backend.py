"""Backend `remote`: a model whose instances are other servers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import inf
from typing import Any

import grpc

from backends.base import Array, Context, InvalidInput, LoadError, ModelSource, Signature
from gateway.errors import DeadlineExceeded, ExecutionFailed, GatewayError
from gateway.remote.failures import judge, said
from gateway.remote.fleet import Fleet
from gateway.remote.messages import encode_request
from gateway.remote.options import Options, addresses
from gateway.remote.reading import ServerReading
from gateway.remote.server import Server
from tensorgate_client.framing import parse_infer_response
from tensorgate_client.tensors import decode_infer_response

_PER_SERVER = 8
"""Batches that a server has at once, if nobody says how many."""


class RemoteBackend:
    """Loads models that other servers of the Open Inference Protocol have.

    Parameters:
        urls: "host-a:8001, host-b:8001": the servers.
        model, version: what it is called there; default: the same name, and the version that the server chooses.
        timeout_s: how long a batch may take at most; default 60.
        idempotent: false: a batch whose connection broke is not sent again, and one that a server failed on is not
            tried apart; default true.
        tls: true: encrypted connections; default false.
        tls_ca, tls_cert, tls_key: PEM files: who vouches for the servers, and who the gateway is to them.
        token_file: a file with a bearer token to send along, over encrypted connections alone.
    """

    def load(self, source: ModelSource) -> RemoteModel:
        """Connect to the servers; the first that answers says what the model takes and gives.

        Raises:
            LoadError: a parameter is wrong.
            NotReachable: no server is ready.
        """
        options = Options.of(source)
        fleet = Fleet(source.name, options)
        try:
            return RemoteModel(fleet, options)
        except LoadError:
            fleet.close()
            raise

    def instances(self, source: ModelSource) -> int:
        """Batches under way at once where config.pbtxt does not say: some for each server.

        Raises:
            LoadError: the parameter `urls` does not hold.
        """
        return _PER_SERVER * len(addresses(source))


class RemoteModel:
    """A model on other servers. An instance is a batch under way, on whichever of them is best then."""

    contextual = True

    def __init__(self, fleet: Fleet, options: Options) -> None:
        self.signature: Signature = fleet.signature()
        self._fleet = fleet
        self._options = options

    @property
    def servers(self) -> list[ServerReading]:
        """Every server at this moment, for the metrics."""
        return self._fleet.readings

    def instance(self) -> RemoteInstance:
        """A further batch under way at once."""
        return RemoteInstance(self._fleet, self._options)

    def close(self) -> None:
        """Close the connections."""
        self._fleet.close()


class RemoteInstance:
    """Sends a batch and waits for its answer."""

    def __init__(self, fleet: Fleet, options: Options) -> None:
        self._fleet = fleet
        self._options = options

    def execute(self, inputs: dict[str, Array], context: Context | None = None) -> Mapping[str, Array]:
        """The outputs that a server gives; another one's if the first is gone, and the batch may be sent again.

        Raises:
            InvalidInput: the server finds the inputs at fault.
            ModelNotReady: no server is ready.
            QueueFull: the server has too much to do.
            DeadlineExceeded: there was no answer in time, or nobody waits for it any more.
            RuntimeError: the server failed.
        """
        request = encode_request(self._options, inputs, context.outputs if context else ())
        limit = time.perf_counter() + self._options.timeout_s
        failed: list[Server] = []
        while True:
            deadline = min(limit, context.deadline if context else inf)
            left = deadline - time.perf_counter()
            if left <= 0:
                raise DeadlineExceeded("not answered in time by the server that it runs on")
            with self._fleet.chosen(failed, time.monotonic() + left) as server:
                try:
                    response = _call(server, request, context, deadline)
                except grpc.RpcError as error:
                    self._failed(server, error, deadline, first=not failed)
                    failed.append(server)
                    continue
                self._fleet.answered(server)
            return decode_infer_response(*parse_infer_response(response))

    def _failed(self, server: Server, error: grpc.RpcError, deadline: float, *, first: bool) -> None:
        """Note that a server has failed; raise what it means unless another is to be tried."""
        verdict, idempotent = judge(error, server.address, self._options.model), self._options.idempotent
        # Its time may be up for those who were there in the beginning, and not for others who have joined them since.
        over = isinstance(verdict.error, DeadlineExceeded) and time.perf_counter() >= deadline
        if verdict.fault:
            self._fleet.failed(server, said(error) if verdict.lost else "", rests=not over)
        else:
            self._fleet.answered(server)
        if (first and verdict.elsewhere(idempotent=idempotent)) or (over and idempotent):
            return
        if not idempotent and not isinstance(verdict.error, (GatewayError, InvalidInput)):
            raise ExecutionFailed("it failed on this request") from verdict.error  # so that nobody tries it apart
        raise verdict.error from error

    def close(self) -> None:
        """Nothing to free."""


def _call(server: Server, request: bytes, context: Context | None, deadline: float) -> bytes:
    """The server's answer.

    Raises:
        grpc.RpcError: there is none.
        DeadlineExceeded: nobody waits for it any more.
    """
    metadata = (("traceparent", context.traceparent),) if context and context.traceparent else None
    left = max(deadline - time.perf_counter(), 0)
    call: Any = server.infer(request, timeout=left, metadata=metadata)
    if context:
        context.on_abandoned(call.cancel)
    try:
        (response,) = call
    except grpc.RpcError:
        if call.cancelled():
            raise DeadlineExceeded("nobody waits for it any more") from None
        raise
    return bytes(response)
