"""Where models' instances run: on threads of this process, or wherever another engine has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from backends import base
from backends.base import ModelSource
from backends.registry import BackendInfo, Registry
from gateway import placement
from gateway.instances import ThreadInstance, Worker
from tensorgate_client.wire import model_config_pb2 as pb


class EngineUnavailable(Exception):
    """The engine that was asked for cannot be had; the message says what to do, one line per fact."""


class Engine(Protocol):
    """Loads models and makes their instances.

    Attributes:
        registry: the backends; where it needs none of their runtimes here, it imports none.
    """

    registry: Registry

    def settle(
        self, info: BackendInfo, source: ModelSource, declared: Sequence[pb.ModelInstanceGroup]
    ) -> tuple[list[pb.ModelInstanceGroup], list[str]]:
        """The instance groups as they really are, and the device of each instance, as `placement.settle`.

        Raises:
            LoadError: a group asks for what cannot be had.
        """
        ...

    def backend(self, info: BackendInfo, config: pb.ModelConfig, devices: Sequence[str]) -> base.Backend:
        """What loads a model for instances on these devices, whose configuration is `config`.

        Raises:
            LoadError: there is none.
        """
        ...

    async def start(self, worker: Worker, model: base.Model) -> ThreadInstance:
        """A new instance of a model that the engine's backend has loaded; the worker is its own.

        Raises:
            Exception: whatever the backend raises; the worker is stopped.
        """
        ...

    def close(self) -> None:
        """Let go of what the engine holds, once its models are closed."""
        ...


class Threads:
    """Models in this process, a thread for each instance."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def settle(
        self, info: BackendInfo, source: ModelSource, declared: Sequence[pb.ModelInstanceGroup]
    ) -> tuple[list[pb.ModelInstanceGroup], list[str]]:
        """As `Engine.settle`, by this machine's GPUs."""
        obstacle = partial(self.registry.obstacle, info, source)
        return placement.settle(declared, source.name, obstacle, self.registry.instances(info, source))

    def backend(self, info: BackendInfo, _config: pb.ModelConfig, _devices: Sequence[str]) -> base.Backend:
        """The backend itself."""
        return self.registry.backend(info)

    async def start(self, worker: Worker, model: base.Model) -> ThreadInstance:
        """As `Engine.start`."""
        return await ThreadInstance.start(worker, model)

    def close(self) -> None:
        """There is nothing to let go of."""
