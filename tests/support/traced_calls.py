"""Calls of every kind to a gateway that traces them, and what a tracing backend has of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gateway.demo.digits import Network
from support.calls import refusal, request
from support.models import RepositoryBuilder, save_onnx
from support.otlp import Span
from support.server import Gateway
from support.streams import StreamCall
from tensorgate_client.wire import inference_pb2 as pb

MEMBERS = 64
BATCHES = 4
ROWS = 32
"""Images a request, enough for the model to take milliseconds for a batch."""

_BATCHED = f"""
max_batch_size: {ROWS * MEMBERS // BATCHES}
dynamic_batching {{
  preferred_batch_size: {ROWS * MEMBERS // BATCHES}
  max_queue_delay_microseconds: 30000000
}}
"""
_BROKEN = """
class Model:
    inputs = [("x", "float32", (-1,))]
    outputs = [("y", "float32", (-1,))]

    def execute(self, inputs):
        raise RuntimeError("secret")
"""
_INFER = "inference.GRPCInferenceService/ModelInfer"
_CALLS = MEMBERS + 3  # without the stream


@dataclass(frozen=True)
class Traces:
    """What the backend has of all calls."""

    spans: list[Span]

    def named(self, name: str) -> list[Span]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]

    def request(self, number: str) -> Span:
        """The span of the request of an id."""
        (span,) = (span for span in self.spans if span.attributes.get("tensorgate.request.id") == number)
        return span

    def below(self, parent: Span) -> list[Span]:
        """The spans right below one, in the order of their beginnings."""
        children = (span for span in self.spans if (span.trace, span.parent) == parent.key)
        return sorted(children, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def stages(self, parent: Span) -> list[str]:
        """The names of those."""
        return [span.name for span in self.below(parent)]

    @property
    def members(self) -> list[Span]:
        """The requests that were sent at once."""
        return [self.request(f"member {number}") for number in range(MEMBERS)]

    @property
    def complete(self) -> bool:
        """Whether all calls are there and all that their links lead to."""
        known = {span.key for span in self.spans}
        streams = self.named("inference.GRPCInferenceService/ModelStreamInfer")
        return (
            len(self.named(_INFER)) == _CALLS
            and len(streams) == 1
            and all(link in known for span in self.spans for link in span.links)
        )


def models(folder: Path) -> RepositoryBuilder:
    """The demo's network twice, and a model that fails."""
    repository = RepositoryBuilder(folder / "models")
    torch.manual_seed(0)
    file = folder / "digits.onnx"
    save_onnx(Network().eval(), file, torch.zeros(2, 1, 8, 8), ("pixels", "logits"))
    repository.add("digits", {"model.onnx": file}, _BATCHED)
    repository.add("digits_cached", {"model.onnx": file}, "response_cache { enable: true }")
    repository.add("broken", {"model.py": _BROKEN})
    return repository


def call_all(gateway: Gateway) -> None:
    """A miss of the cache and a hit, a request that fails, a stream of three, and many requests at once."""
    for number in ("miss", "hit"):
        gateway.stub.ModelInfer(_digits("digits_cached", number), timeout=60)
    broken = request("broken", {"x": np.ones(1, np.float32)})
    broken.id = "failed"
    refusal(lambda: gateway.stub.ModelInfer(broken, timeout=60))
    with StreamCall(gateway) as stream:
        for position in range(3):
            stream.send_message(_digits("digits_cached", f"position {position}", seed=position + 1))
        stream.close()
        assert len(stream.rest()) == 3
    members = [_digits("digits", f"member {number}") for number in range(MEMBERS)]
    for call in [gateway.stub.ModelInfer.future(member, timeout=60) for member in members]:
        call.result()


def _digits(model: str, number: str, seed: int = 0) -> pb.ModelInferRequest:
    pixels = np.random.default_rng(seed).uniform(0, 16, (ROWS, 1, 8, 8)).astype(np.float32)
    message = request(model, {"pixels": pixels})
    message.id = number
    return message
