"""One loaded version of a model, and the one pipeline its requests take: cache -> batcher -> backend."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from backends import base
from backends.base import Array, InvalidInput, LoadError
from backends.registry import Registry
from gateway import layout, model_config, warmup
from gateway.errors import ExecutionFailed, ModelNotReady
from gateway.instances import Batch, Instance, ThreadInstance, Worker
from gateway.request import InferenceRequest
from gateway.tensor_rules import TensorRule, rules
from tensorgate_client.tensors import datatype_of, shown
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)


class ServedModel:
    """A version that answers requests until it is closed."""

    def __init__(
        self, version: int, config: pb.ModelConfig, platform: str, instances: Sequence[Instance], model: base.Model
    ) -> None:
        self.name = config.name
        self.version = version
        self.config = config
        self.platform = platform
        batches = config.max_batch_size > 0
        self.inputs: Mapping[str, TensorRule] = rules(config.input, batches=batches)
        self.outputs: Mapping[str, TensorRule] = rules(config.output, batches=batches)
        self.max_batch_size: int = config.max_batch_size
        self._model = model
        self._instances = instances
        self._idle = list(instances)
        # First come, first served, even against a newcomer: `aclose` queues behind the last request.
        self._turns = asyncio.Semaphore(len(instances))
        self._closing = False

    def __repr__(self) -> str:
        busy = len(self._instances) - len(self._idle)
        return f"<ServedModel {self.name}/{self.version} instances={len(self._instances)} busy={busy}>"

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """All outputs by name, as clients shape them.

        Raises:
            ModelNotReady: the version is being closed.
            InvalidInput: the backend finds the caller's data at fault.
            ExecutionFailed: the backend fails on this request.
        """
        if self._closing:
            raise ModelNotReady(f"model '{self.name}' version {self.version} is being unloaded")
        request.stages.cache = time.perf_counter_ns()
        batch = Batch(request.inputs)
        try:
            outputs = await self._run(batch)
            wire = self._checked(outputs, request)
        except InvalidInput as error:
            raise InvalidInput(f"model '{self.name}': {error}") from error
        except Exception as error:
            raise ExecutionFailed(f"model '{self.name}' failed on this request") from error
        request.stages.queue, request.stages.execute = batch.started_ns, batch.finished_ns
        return wire

    async def _run(self, batch: Batch) -> Mapping[str, Array]:
        await self._turns.acquire()
        instance = self._idle.pop()
        running = instance.run(batch)
        # A cancelled caller leaves at once; its instance is busy until the backend is through.
        running.add_done_callback(lambda _: self._release(instance))
        return await asyncio.shield(running)

    def _release(self, instance: Instance) -> None:
        self._idle.append(instance)
        self._turns.release()

    def _checked(self, outputs: Mapping[str, Array], request: InferenceRequest) -> Mapping[str, Array]:
        """The requested outputs, once the backend is known to have kept its own promises about them."""
        wire = {}
        for name in request.outputs:
            rule = self.outputs[name]
            if name not in outputs:
                raise ValueError(f"the backend gave no output '{name}', only {', '.join(outputs) or 'none'}")
            array = rule.to_wire(outputs[name])
            datatype = datatype_of(array.dtype)
            if not rule.admits(datatype, array.shape):
                raise ValueError(f"output '{name}': expected {rule}, the backend gave {datatype} {shown(array.shape)}")
            if rule.batches and array.shape[0] != request.rows:
                raise ValueError(f"output '{name}': expected {request.rows} rows, the backend gave {array.shape[0]}")
            wire[name] = array
        return wire

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, free the model."""
        self._closing = True
        for _ in self._instances:
            await self._turns.acquire()
        await _free(self.name, self._instances, self._model)


async def load(
    folder: layout.ModelFolder, version: int, registry: Registry, default_max_batch_size: int
) -> ServedModel:
    """Load a version, start its instances and warm them up.

    Raises:
        Exception: whatever the backend raises, LoadError if it foresaw it; nothing is left behind.
        CancelledError: the server is going down. What the backend is busy with is left to end with the process.
    """
    worker = Worker(f"{folder.name}/{version}#0")
    instances: list[ThreadInstance] = []
    model: base.Model | None = None
    try:
        info, source = await worker.submit(lambda: layout.source(folder, version, registry))
        model = await worker.submit(lambda: registry.backend(info).load(source))
        config = model_config.complete(folder.declared, _normalised(model.signature), default_max_batch_size)
        _name(config, folder.name, info.name, source.file.name if source.file else "")
        count = sum(group.count for group in config.instance_group)
        for index in range(count):
            owner = worker if index == 0 else Worker(f"{folder.name}/{version}#{index}")
            instances.append(await ThreadInstance.start(owner, model))
        served = ServedModel(version, config, info.platform or info.name, instances, model)
        for instance in instances:
            await warmup.run(served, instance, folder.path)
    except Exception:
        await _free(folder.name, instances, model)
        worker.stop()
        raise
    return served


async def _free(name: str, instances: Sequence[Instance], model: base.Model | None) -> None:
    """Close what a model holds, whatever its own `close` methods do."""
    for instance in instances:
        try:
            await instance.aclose()
        except Exception:
            _log.warning("model %s: an instance failed to close", name, exc_info=True)
    if model is None:
        return
    worker = Worker(f"{name} close")  # freeing weights can take a while, which the event loop does not have
    try:
        await worker.submit(model.close)
    except Exception:
        _log.warning("model %s failed to close", name, exc_info=True)
    finally:
        worker.stop()


def _normalised(signature: base.Signature) -> base.Signature:
    """The signature in our own types: a foreign backend may give plain tuples."""
    try:
        return base.Signature(
            tuple(base.TensorSpec.of(*spec) for spec in signature.inputs),
            tuple(base.TensorSpec.of(*spec) for spec in signature.outputs),
            signature.max_batch_size,
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
