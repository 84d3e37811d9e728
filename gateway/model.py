"""One loaded version of a model, and what its requests share: cache, batcher, statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

from backends import base
from backends.base import LoadError
from backends.registry import Registry
from gateway import layout, model_config, parameters, warmup
from gateway.batch import BatchLayout
from gateway.batcher import Batcher
from gateway.batching_policy import BatchingPolicy
from gateway.cache import ModelCache, ResponseCache
from gateway.decode import is_unordered
from gateway.encode import Encoder
from gateway.errors import InvalidRequest
from gateway.heads import KnownHeads
from gateway.inference import Inference, Told
from gateway.instances import ThreadInstance, Worker
from gateway.logs import about
from gateway.message import Message
from gateway.padding import Padding
from gateway.request import Stages
from gateway.shared_memory import Regions
from gateway.stats import ModelStatistics
from gateway.tensor_rules import TensorRule, rules
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)


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


@dataclass(slots=True)
class Runtime:
    """A loaded model and its instances, of which at least the first has a thread.

    Attributes:
        name: for logs.
        platform: what clients are told the model runs on.
        model, instances: what `aclose` frees.
        memory: bytes of the weights by kind of device and its number; empty if the backend cannot tell.
    """

    name: str
    platform: str
    model: base.Model
    instances: list[ThreadInstance] = field(default_factory=list)
    memory: Mapping[tuple[str, int], int] = field(default_factory=dict)

    async def aclose(self) -> None:
        """Close what the model holds, whatever its own `close` methods do."""
        for instance in self.instances:
            try:
                await instance.aclose()
            except Exception:
                _log.warning("model %s: an instance failed to close", self.name, exc_info=True)
        worker = Worker(f"{self.name} close")  # freeing weights can take a while, which the event loop does not have
        try:
            await worker.submit(self.model.close)
        except Exception:
            _log.warning("model %s failed to close", self.name, exc_info=True)
        finally:
            worker.stop()


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions of models.

    Attributes:
        registry: the backends.
        default_max_batch_size: rows, for a batching model that names no limit.
        cache: the server's.
        regions: of shared memory; None if tensors may not lie there.
    """

    registry: Registry
    default_max_batch_size: int
    cache: ResponseCache
    regions: Regions | None = None

    async def load(self, folder: layout.ModelFolder, version: int) -> ServedModel:
        """Load a version, start its instances and warm them up.

        Raises:
            Exception: whatever the backend raises, LoadError if it foresaw it; nothing is left behind.
            CancelledError: the server is going down. What the backend is busy with is left to end with the process.
        """
        worker = Worker(f"{folder.name}/{version}#0")
        runtime: Runtime | None = None
        try:
            info, source = await worker.submit(lambda: layout.source(folder, version, self.registry))
            model = await worker.submit(lambda: self.registry.backend(info).load(source))
            runtime = Runtime(folder.name, info.platform or info.name, model)
            runtime.memory = _memory(model)
            signature = _normalised(model.signature)
            config = model_config.complete(folder.declared, signature, self.default_max_batch_size)
            _name(config, folder.name, info.name, source.file.name if source.file else "")
            for index in range(sum(group.count for group in config.instance_group)):
                owner = worker if index == 0 else Worker(f"{folder.name}/{version}#{index}")
                runtime.instances.append(await ThreadInstance.start(owner, model))
            served = ServedModel(version, config, runtime, self._cache_for(config, signature), self.regions)
            for instance in runtime.instances:
                await warmup.run(served, instance, folder.path)
        except Exception:
            if runtime:
                await runtime.aclose()
            worker.stop()
            raise
        return served

    def _cache_for(self, config: pb.ModelConfig, signature: base.Signature) -> ResponseCache | None:
        deterministic = parameters.deterministic(config) and signature.deterministic
        if not config.response_cache.enable:
            return None
        if not deterministic:
            _log.warning("model %s is declared non-deterministic: its responses are not cached", config.name)
            return None
        return self.cache


def _memory(model: base.Model) -> dict[tuple[str, int], int]:
    """What the model says its weights take, checked: statistics are to come to no harm by it."""
    try:
        stated = dict(getattr(model, "memory", {}))  # optional in the contract
        devices = {device: device.partition(":") for device in stated}
        return {(kind, int(number or 0)): int(stated[device]) for device, (kind, _, number) in devices.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(f"the backend's `memory` is not as {{'CPU:0': bytes}}: {error}") from error


def _normalised(signature: base.Signature) -> base.Signature:
    """The signature in our own types: a foreign backend may give plain tuples."""
    deterministic = getattr(signature, "deterministic", True)  # a foreign one need not have it
    if not isinstance(deterministic, bool):
        raise LoadError(f"deterministic is {deterministic!r}, expected True or False")
    try:
        return base.Signature(
            tuple(base.TensorSpec.of(*spec) for spec in signature.inputs),
            tuple(base.TensorSpec.of(*spec) for spec in signature.outputs),
            signature.max_batch_size,
            deterministic,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(f"the backend's signature does not follow the contract: {error}") from error


def _name(config: pb.ModelConfig, name: str, backend: str, filename: str) -> None:
    """Fill in what is known without the model: names, version policy, instances."""
    config.name = name
    config.backend = config.backend or backend
    config.default_model_filename = config.default_model_filename or filename
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if not config.instance_group:
        config.instance_group.add()
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{name}_{index}"
        group.kind = pb.ModelInstanceGroup.KIND_CPU
        group.count = group.count or 1
