"""Loads versions of models: from a folder of the repository to a `ServedModel`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from backends import base
from backends.base import LoadError
from backends.registry import BackendInfo
from gateway import layout, model_config, parameters, warmup
from gateway.cache import ResponseCache
from gateway.contract import signature_of
from gateway.engine import Engine
from gateway.instances import Worker
from gateway.model import ServedModel
from gateway.runtime import Runtime
from gateway.shared_memory import Regions
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions of models.

    Attributes:
        engine: where instances run.
        default_max_batch_size: rows, for a batching model that names no limit.
        cache: the server's.
        regions: of shared memory; None if tensors may not lie there.
    """

    engine: Engine
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
            info, source = await worker.submit(lambda: layout.source(folder, version, self.engine.registry))
            runtime = Runtime(folder.name, info.platform or info.name)
            signature, config, devices = await self._load(folder, info, source, runtime, worker)
            for index, device in enumerate(devices):
                owner = worker if index == 0 else Worker(f"{folder.name}/{version}#{index}")
                runtime.instances.append(await self.engine.start(owner, runtime.models[device]))
            served = ServedModel(version, config, runtime, self._cache_for(config, signature), self.regions)
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
        declared = folder.declared.proto
        groups, devices = await worker.submit(lambda: self.engine.settle(info, source, declared.instance_group))
        backend = await worker.submit(lambda: self.engine.backend(info, declared, devices))
        for device in dict.fromkeys(devices):
            runtime.add(device, await worker.submit(partial(backend.load, replace(source, device=device))))
        signature = _common({device: signature_of(model) for device, model in runtime.models.items()})
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
