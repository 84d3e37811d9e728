"""What a loaded version holds: the backend's models, and their instances."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from backends import base
from gateway.contract import memory_of
from gateway.instances import ThreadInstance, Worker
from gateway.remote.reading import ServerReading

_log = logging.getLogger(__name__)


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
        self.memory.update(memory_of(model))

    @property
    def available(self) -> int:
        """How many instances can run a batch now, or soon will: the others are away, and come back by themselves."""
        if (servers := self.servers) and not any(server.healthy for server in servers):
            return 0
        return sum(instance.available for instance in self.instances)

    @property
    def servers(self) -> list[ServerReading]:
        """The servers that the model runs on; none if it runs here."""
        return [server for model in self.models.values() for server in getattr(model, "servers", ())]

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
