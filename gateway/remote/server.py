"""One server of a fleet: its connection, what is known of it, and the questions that it is asked in the background."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import grpc

from backends.base import LoadError, Signature
from gateway.remote.failures import said
from gateway.remote.options import Options
from gateway.remote.reading import ServerReading
from gateway.remote.signatures import signature_of
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub

_PROBE_S = 5.0
_REST_S, _LONGEST_REST_S = 0.1, 5.0

_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(slots=True, eq=False)
class Server:
    """A server. Its fleet's lock guards what changes. Times are `time.monotonic`.

    Attributes:
        address: "host:port".
        channel: to it.
        problem: why it is sent nothing; "" while it is.
        probed: whether it has been asked at all.
        told: whether it is used, as the log has it; None if that has said nothing yet.
        in_flight, calls, failures: as `ServerReading`.
        in_a_row: failures since it last answered.
        turn: when it was last chosen, as a number that grows.
        rests_until: before that it is passed over where there are others.
        answered, failed: when it last answered a batch well, or turned out to be of no use.
    """

    address: str
    channel: grpc.Channel
    problem: str = "not asked yet"
    probed: bool = False
    told: bool | None = None
    in_flight: int = 0
    calls: int = 0
    failures: int = 0
    in_a_row: int = 0
    turn: int = 0
    rests_until: float = 0.0
    answered: float = -inf
    failed: float = -inf
    infer: Any = field(init=False, repr=False)
    stub: GRPCInferenceServiceStub = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Bytes as they are, both ways. As a stream of one response it can be cancelled, and takes a third less
        # processor time than the future of a unary call, which passes through a thread of gRPC's.
        self.infer = self.channel.unary_stream(_INFER)
        self.stub = GRPCInferenceServiceStub(self.channel)

    @property
    def reading(self) -> ServerReading:
        """What the metrics show."""
        return ServerReading(self.address, not self.problem, self.in_flight, self.calls, self.failures)

    def rest(self, now: float) -> None:
        """Have it passed over: what fails at once would otherwise look as if it had the least to do."""
        self.in_a_row += 1
        self.rests_until = now + min(_REST_S * 2.0 ** min(self.in_a_row - 1, 10), _LONGEST_REST_S)

    def probe(self, options: Options) -> str:
        """Why it cannot be sent batches; "" if it can."""
        began = time.monotonic()
        try:
            if not self.stub.ServerReady(pb.ServerReadyRequest(), timeout=_PROBE_S).ready:
                return "the server is not ready"
            asked = pb.ModelReadyRequest(name=options.model, version=options.version)
            if not self.stub.ModelReady(asked, timeout=_PROBE_S).ready:
                version = f" version {options.version}" if options.version else ""
                return f"model '{options.model}'{version} is not ready there"
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return "" if late and self.answered >= began else said(error)  # it had only too much to do
        return ""

    def connect(self, seconds: float) -> None:
        """Go on connecting for so long, or until it answers: a channel that nobody waits for does so every 5 s."""
        with suppress(grpc.RpcError, ValueError):  # the latter if the channel was closed meanwhile
            self.stub.ServerReady(pb.ServerReadyRequest(), timeout=seconds, wait_for_ready=True)

    def signature(self, options: Options) -> Signature:
        """What its model takes and gives.

        Raises:
            LoadError: it does not say, or what it says is not for this backend.
        """
        try:
            return signature_of(self.stub, options, _PROBE_S)
        except grpc.RpcError as error:
            raise LoadError(f"what the model takes cannot be read: {said(error)}") from error
