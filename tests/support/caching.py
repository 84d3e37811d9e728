"""A response cache in front of a batcher over fake instances, and calls that check their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from gateway.cache import ModelCache, ResponseCache
from gateway.digest import question
from gateway.encode import Encoder
from gateway.flight import Waiting
from gateway.request import InferenceRequest
from gateway.stats import ModelStatistics
from support.batching import Call, Rig, request
from support.fake_clock import fake_loop
from tensorgate_client import encode_infer_request, framing
from tensorgate_client.tensors import from_raw
from tensorgate_client.wire import inference_pb2 as pb


def encode_response(wanted: InferenceRequest, outputs: Mapping[str, Any]) -> bytes:
    """As the gateway does it."""
    return Encoder("model", 1).encode(wanted, outputs)


def key_of(cache: ModelCache, wanted: InferenceRequest) -> bytes:
    """The key of a request as its caller sends it."""
    outputs = () if wanted.outputs == ("y",) else wanted.outputs
    message = encode_infer_request("model", wanted.inputs, outputs=outputs, request_id=wanted.id)
    return cache.key(question(framing.parse_infer_request(message.SerializeToString())), typed=wanted.typed)


def output(response: bytes) -> np.ndarray:
    """The answer's first output."""
    message = pb.ModelInferResponse.FromString(response)
    first = message.outputs[0]
    return from_raw(message.raw_output_contents[0], first.datatype, first.shape)


class _Asker:
    """Passes the cache's answer on to a future."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.set_response = self.answer.set_result
        self.set_exception = self.answer.set_exception

    @property
    def answered(self) -> bool:
        """Whether a response came, even if just then its caller left."""
        return self.answer.done() and not self.answer.cancelled() and not self.answer.exception()


class CachedCall(Call):
    """A request under way; `hit` tells whether the response was another's."""

    hit = False
    _waiting: Waiting | None = None

    async def _run(self, cache: Any) -> float:
        key = key_of(cache, self.request)
        asker = _Asker()
        self._waiting = cache.ask(key, self.request, lambda: None, asker)  # it has its tensors
        try:
            response = await asker.answer
        finally:
            self.leave()
            self.hit = asker.answered and self.request.stages.outcome != "miss"
        x = self.request.inputs["x"]
        np.testing.assert_array_equal(output(response), self.expected(x))
        return float(x.flat[0])

    def leave(self) -> None:
        """Tell the cache that nobody waits any more."""
        if self._waiting:
            self._waiting.leave()

    def expected(self, x: np.ndarray) -> np.ndarray:
        """What the model makes of it."""
        return 2 * x + 1


class CachedRig(Rig):
    """A model version whose responses are kept.

    Args:
        config: as in config.pbtxt.
        takes: virtual seconds of a batch.
        store: the server's cache, if versions are to share one.
        ttl_s: how long a response holds.
        parts: more of what `Rig` takes.
    """

    def __init__(
        self,
        config: str = "max_batch_size: 1",
        takes: Any = 1.0,
        store: ResponseCache | None = None,
        ttl_s: float = inf,
        **parts: Any,
    ) -> None:
        super().__init__(config, takes, **parts)
        self.store = store or ResponseCache(1_000_000, fake_loop().time)
        self.stats = ModelStatistics()
        self.cache = ModelCache(self.store, self.batcher, encode_response, self.stats, ttl_s)
        fake_loop().watched.append(self.cache)

    def ask(self, value: float, rows: int = 1, width: int = 2, **limits: Any) -> CachedCall:
        """Send a request, as `request` makes it."""
        return self.send(request(value, rows, width, **limits))

    def send(self, wanted: InferenceRequest) -> CachedCall:
        """Send a request."""
        call = CachedCall(self.cache, wanted)
        self.calls.append(call)
        return call

    async def finish(self) -> None:
        """Close the version, which must leave nothing in flight."""
        await asyncio.wait([call.task for call in self.calls])
        await self.batcher.aclose()
        assert repr(self.batcher) == "<Batcher waiting=0 running=0 retrying=0>"
        assert repr(self.cache).startswith("<ModelCache in_flight=0 ")
        await self.cache.aclose()
