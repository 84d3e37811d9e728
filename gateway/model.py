"""One loaded version of a model, and what its requests share: cache, batcher, statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TypeAlias

from gateway import parameters
from gateway.batch import BatchLayout
from gateway.batcher import Batcher
from gateway.batching_policy import BatchingPolicy
from gateway.cache import ModelCache, ResponseCache
from gateway.decode import is_unordered
from gateway.encode import Encoder
from gateway.errors import InvalidRequest
from gateway.heads import KnownHeads
from gateway.inference import Inference, Told
from gateway.logs import about
from gateway.message import Message
from gateway.padding import Padding
from gateway.request import Stages
from gateway.runtime import Runtime
from gateway.shared_memory import Regions
from gateway.stats import ModelStatistics
from gateway.tensor_rules import TensorRule, rules
from tensorgate_client.wire import model_config_pb2 as pb


class ServedModel:
    """A version that answers requests until it is closed.

    Args:
        version: its number.
        config: completed.
        runtime: the loaded model and its instances; the served model closes it.
        cache: the server's, or None for a model whose responses are not to be kept.
        regions: of shared memory; None if tensors may not lie there.

    Raises:
        LoadError: a setting of batching or padding does not hold.
    """

    def __init__(
        self,
        version: int,
        config: pb.ModelConfig,
        runtime: Runtime,
        cache: ResponseCache | None,
        regions: Regions | None,
    ) -> None:
        self.name = config.name
        self.version = version
        self.described = str(version), config.backend
        self.config = config
        self.runtime = runtime
        batches = config.max_batch_size > 0
        self.inputs: Mapping[str, TensorRule] = rules(config.input, batches=batches)
        self.outputs: Mapping[str, TensorRule] = rules(config.output, batches=batches)
        self.max_batch_size: int = config.max_batch_size
        self.layout = BatchLayout(self.inputs, self.outputs, Padding.of(config))
        self.stats = ModelStatistics()
        self.batcher = Batcher(runtime.instances, BatchingPolicy.of(config), self.layout, self.stats.executed)
        self.batcher.about = about(model=self.name, version=str(version))
        self.encoder = Encoder(self.name, version)
        self.heads = KnownHeads()
        self.regions = regions
        self.cache: ModelCache | None = None
        if cache is not None:
            ttl_s = parameters.cache_ttl_s(config)
            self.cache = ModelCache(cache, self.batcher, self.encoder.encode, self.stats, ttl_s)

    def __repr__(self) -> str:
        return f"<ServedModel {self.name}/{self.version} {self.batcher!r} {self.cache!r}>"

    def infer(
        self, message: Message, stages: Stages, told: Told, deadline: float = inf, *, windowed: bool = False
    ) -> Inference:
        """Answer a request.

        Args:
            message: the request.
            stages: began when the message arrived.
            told: gets a serialized ModelInferResponse or one of these errors, at once if it is known.
            deadline: when the caller stops waiting (`time.perf_counter`).
            windowed: whether its sender keeps to a window, so that no limit of the queue need apply.

        Returns:
            What to cancel if the caller goes away; that disturbs nobody else.

        Errors:
            InvalidRequest: the message is no ModelInferRequest, or the request does not fit the model.
            NotOffered: it wants an extension this server lacks.
            RequestTooLarge: its inputs in shared memory are larger than a message may be.
            ModelNotReady: the version is being closed.
            QueueFull: too many requests wait for the model.
            DeadlineExceeded: the request was not executed in time, or could not be any more.
            InvalidInput: the backend finds the caller's data at fault.
            ExecutionFailed: the backend fails on this request.
        """
        inference = Inference(self, stages, told)
        inference.begin(message, deadline, windowed=windowed)
        return inference

    @property
    def waiting(self) -> int:
        """Requests that wait to be executed."""
        return self.batcher.waiting

    def is_unordered(self, message: Message) -> bool:
        """Whether a stream may answer a message before those that came earlier."""
        if head := self.heads.of(message):
            return head.request.unordered
        return is_unordered(message)

    def rows(self, message: Message) -> int | None:
        """How many rows a message says that it has, for the log."""
        if head := self.heads.of(message):
            return head.request.rows
        try:
            return message.parsed.proto.inputs[0].shape[0] if self.max_batch_size else 1
        except (InvalidRequest, IndexError):
            return None

    def flush(self) -> None:
        """Hold nothing back for larger batches: no further request will come."""
        self.batcher.flush()

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, free the model."""
        await self.batcher.aclose()
        if self.cache:
            await self.cache.aclose()
        await self.runtime.aclose()


FindModel: TypeAlias = Callable[[str, str], ServedModel]
"""A model by its name and version."""
