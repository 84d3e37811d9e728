"""One loaded version of a model, and the one pipeline its requests take: cache -> batcher -> backend."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

from backends import base
from backends.base import LoadError
from backends.registry import BackendInfo, Registry
from gateway import layout, model_config, parameters, placement, warmup
from gateway.batch import Batch, BatchLayout
from gateway.batcher import Batcher
from gateway.batching_policy import BatchingPolicy
from gateway.cache import ModelCache, ResponseCache
from gateway.decode import decode_head, decode_tensors, is_unordered
from gateway.digest import Question, question
from gateway.encode import Encoder
from gateway.errors import InvalidRequest, NotOffered, restated
from gateway.heads import KnownHeads
from gateway.instances import ThreadInstance, Worker
from gateway.logs import about
from gateway.message import Message
from gateway.padding import Padding
from gateway.request import InferenceRequest, Stages
from gateway.stats import ModelStatistics
from gateway.tensor_rules import TensorRule, rules
from tensorgate_client import framing
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)


class ServedModel:
    """A version that answers requests until it is closed.

    Args:
        version: its number.
        config: completed.
        runtime: the loaded model and its instances; the served model closes it.
        cache: the server's, or None for a model whose responses are not to be kept.

    Raises:
        LoadError: a setting of batching or padding does not hold.
    """

    def __init__(self, version: int, config: pb.ModelConfig, runtime: Runtime, cache: ResponseCache | None) -> None:
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
        self._batcher = Batcher(runtime.instances, BatchingPolicy.of(config), self.layout, self.stats.executed)
        self._batcher.about = about(model=self.name, version=str(version))
        self._encoder = Encoder(self.name, version)
        self._heads = KnownHeads()
        self._cache = cache and ModelCache(
            cache, self._batcher, self._encoder.encode, self.stats, parameters.cache_ttl_s(config)
        )

    def __repr__(self) -> str:
        return f"<ServedModel {self.name}/{self.version} {self._batcher!r} {self._cache!r}>"

    async def infer(self, message: Message, stages: Stages, deadline: float = inf, *, windowed: bool = False) -> bytes:
        """A serialized ModelInferResponse. A caller who is cancelled disturbs nobody else.

        Args:
            message: the request.
            stages: began when the message arrived.
            deadline: when the caller stops waiting (`time.perf_counter`).
            windowed: whether its sender keeps to a window, so that no limit of the queue need apply.

        Raises:
            InvalidRequest: the message is no ModelInferRequest, or the request does not fit the model.
            NotOffered: it wants an extension this server lacks.
            ModelNotReady: the version is being closed.
            QueueFull: too many requests wait for the model.
            DeadlineExceeded: the request was not executed in time, or could not be any more.
            InvalidInput: the backend finds the caller's data at fault.
            ExecutionFailed: the backend fails on this request.
        """
        try:
            head = self._heads.of(message)
            if head:
                request = head.decode_head(message, stages, deadline)
                decode = partial(head.decode_tensors, message, request)
            else:
                request = decode_head(self, message, stages, deadline)
                decode = partial(self._decode_and_learn, message, request)
            request.windowed = windowed
            if self._cache:
                asked = head.question(message) if head else question(message.parsed)
                response = await self._kept_or_computed(self._cache, asked, request, decode)
            else:
                decode()
                response = await self._computed(request)
        except BaseException as error:
            self.stats.failed(stages, error)
            if isinstance(error, Exception) and not isinstance(error, (InvalidRequest, NotOffered)):
                told = restated(error, f"model '{self.name}'")
                raise told from told.__cause__
            raise
        stages.encode = time.perf_counter_ns()
        self.stats.succeeded(stages)
        return response

    @property
    def waiting(self) -> int:
        """Requests that wait to be executed."""
        return self._batcher.waiting

    def is_unordered(self, message: Message) -> bool:
        """Whether a stream may answer a message before those that came earlier."""
        if head := self._heads.of(message):
            return head.request.unordered
        return is_unordered(message)

    def rows(self, message: Message) -> int | None:
        """How many rows a message says that it has, for the log."""
        if head := self._heads.of(message):
            return head.request.rows
        try:
            return message.parsed.proto.inputs[0].shape[0] if self.max_batch_size else 1
        except (InvalidRequest, IndexError):
            return None

    def _decode_and_learn(self, message: Message, request: InferenceRequest) -> None:
        decode_tensors(self, message, request)
        self._heads.learn(message, request)

    async def _computed(self, request: InferenceRequest) -> bytes:
        outputs, batch = await self._batcher.infer(request)
        response = self._encoder.encode(request, outputs, request.id)
        self._note(request, batch)
        return response

    async def _kept_or_computed(
        self, cache: ModelCache, asked: Question, request: InferenceRequest, decode: Callable[[], None]
    ) -> bytes:
        response, batch = await cache.infer(cache.key(asked, typed=request.typed), request, decode)
        if batch:
            self._note(request, batch)
        return framing.append_id(response, request.id)

    def _note(self, request: InferenceRequest, batch: Batch) -> None:
        request.stages.queue, request.stages.execute = batch.execution.started_ns, batch.execution.finished_ns
        self.stats.computed(request.stages, batch)

    def flush(self) -> None:
        """Hold nothing back for larger batches: no further request will come."""
        self._batcher.flush()

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, free the model."""
        await self._batcher.aclose()
        if self._cache:
            await self._cache.aclose()
        await self.runtime.aclose()


@dataclass(slots=True)
class Runtime:
    """A loaded model and its instances, of which at least the first has a thread.

    Attributes:
        name: for logs.
        platform: what clients are told the model runs on.
        models: by the device that each was loaded on.
        instances: of all of them; the first is the first model's.
        memory: bytes of the weights by kind of device and its number; empty if the backend cannot tell.
    """

    name: str
    platform: str
    models: dict[str, base.Model] = field(default_factory=dict)
    instances: list[ThreadInstance] = field(default_factory=list)
    memory: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, device: str, model: base.Model) -> None:
        """Take over a model.

        Raises:
            LoadError: what it says of its memory does not follow the contract.
        """
        self.models[device] = model
        self.memory.update(_memory(model))

    async def aclose(self) -> None:
        """Close what the model holds, whatever its own `close` methods do."""
        for instance in self.instances:
            try:
                await instance.aclose()
            except Exception:
                _log.warning("model %s: an instance failed to close", self.name, exc_info=True)
        worker = Worker(f"{self.name} close")  # freeing weights can take a while, which the event loop does not have
        for model in self.models.values():
            try:
                await worker.submit(model.close)
            except Exception:
                _log.warning("model %s failed to close", self.name, exc_info=True)
        worker.stop()


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions of models.

    Attributes:
        registry: the backends.
        default_max_batch_size: rows, for a batching model that names no limit.
        cache: the server's.
    """

    registry: Registry
    default_max_batch_size: int
    cache: ResponseCache

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
            runtime = Runtime(folder.name, info.platform or info.name)
            signature, config, devices = await self._load(folder, info, source, runtime, worker)
            for index, device in enumerate(devices):
                owner = worker if index == 0 else Worker(f"{folder.name}/{version}#{index}")
                runtime.instances.append(await ThreadInstance.start(owner, runtime.models[device]))
            served = ServedModel(version, config, runtime, self._cache_for(config, signature))
            for instance in runtime.instances:
                await warmup.run(served, instance, folder.path)
        except Exception:
            if runtime:
                await runtime.aclose()
            worker.stop()
            raise
        return served

    async def _load(
        self, folder: layout.ModelFolder, info: BackendInfo, source: base.ModelSource, runtime: Runtime, worker: Worker
    ) -> tuple[base.Signature, pb.ModelConfig, list[str]]:
        """Load a model for each device into the runtime; what they have in common, and each instance's device."""
        backend = await worker.submit(lambda: self.registry.backend(info))
        obstacle = partial(self.registry.obstacle, info, source)
        declared = folder.declared.proto.instance_group
        groups, devices = await worker.submit(lambda: placement.settle(declared, folder.name, obstacle))
        for device in dict.fromkeys(devices):
            runtime.add(device, await worker.submit(partial(backend.load, replace(source, device=device))))
        signature = _common({device: _normalised(model.signature) for device, model in runtime.models.items()})
        config = model_config.complete(folder.declared, signature, self.default_max_batch_size)
        _name(config, folder.name, info.name, source.file.name if source.file else "")
        del config.instance_group[:]
        config.instance_group.extend(groups)
        return signature, config, devices

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


def _common(signatures: Mapping[str, base.Signature]) -> base.Signature:
    """The one signature of models that were loaded from one file onto several devices."""
    (first, signature), *others = signatures.items()
    for device, other in others:
        if other != signature:
            raise LoadError(f"the model's tensors on {device} are not those on {first}: {other}, {signature}")
    return signature


def _name(config: pb.ModelConfig, name: str, backend: str, filename: str) -> None:
    """Fill in what is known without the model: names, version policy."""
    config.name = name
    config.backend = config.backend or backend
    config.default_model_filename = config.default_model_filename or filename
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
