"""A model's instance in a process of its own on some node of a Ray cluster: what runs there."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray

from backends import base
from backends.base import Array, InvalidInput, LoadError, ModelSource
from backends.registry import BackendInfo, Registry
from gateway import VERSION
from gateway.cluster.files import PackedModel, Unpacked
from gateway.contract import memory_of, signature_of
from gateway.instances import presentable


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process is.

    Attributes:
        node: its address and the beginning of its id in the cluster.
        version: of tensorgate there.
    """

    node: str
    version: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the actor's model is like.

    Attributes:
        signature: the model's.
        memory: bytes of its weights, by device: "GPU:0" is the first of those that this actor sees.
        log: level and message of what the backend logged meanwhile.
    """

    signature: base.Signature
    memory: Mapping[str, int]
    log: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception's text: the gateway may lack the module that its class comes from.

    Attributes:
        text: for the caller, or the model's owner.
        refused: whether the backend raised it on purpose.
        trace: for the log.
    """

    text: str
    refused: bool
    trace: str


class ModelActor:
    """Loads a version and executes batches on its one instance, all on one thread, as the contract wants it.

    Where its process or its node has ended Ray makes it anew, with nothing loaded.
    """

    def __init__(self) -> None:
        self._unpacked: Unpacked | None = None
        self._model: base.Model | None = None
        self._instance: base.Instance | None = None
        self._loaded: Loaded | None = None

    def place(self) -> Place:
        """Where this is."""
        context = ray.get_runtime_context()
        return Place(f"{ray.util.get_node_ip_address()} (node {context.get_node_id()[:8]})", VERSION)

    def load(self, info: BackendInfo, source: ModelSource, files: PackedModel) -> Loaded | Fault:
        """Load the model, unless it is loaded.

        Args:
            info: the backend.
            source: what to load; its folders are the gateway's.
            files: those that are in these folders.
        """
        if self._loaded is None:
            try:
                self._unpacked = Unpacked(files)
                folder = self._unpacked.folder / source.directory.name
                folder.mkdir(exist_ok=True)  # one without files has not come along
                file = folder / source.file.name if source.file else None
                self._loaded = self._load(info, replace(source, directory=folder, file=file))
            except BaseException as error:  # whatever a model raises, this process stays
                self.close()
                return _fault(error, LoadError)
        return self._loaded

    def _load(self, info: BackendInfo, source: ModelSource) -> Loaded:
        registry = Registry()
        kind = source.device.partition(":")[0]
        if kind and (problem := registry.obstacle(info, source, kind)):
            raise LoadError(problem)
        with _logged() as lines:
            self._model = registry.backend(info).load(source)
            self._instance = self._model.instance()
        memory = {f"{kind}:{number}": size for (kind, number), size in memory_of(self._model).items()}
        return Loaded(signature_of(self._model), memory, tuple(lines))

    def execute(self, inputs: dict[str, Array]) -> dict[str, Array] | Fault | None:
        """The backend's outputs for these inputs, as it gives them; None if the process is new, with nothing loaded."""
        if self._instance is None:
            return None
        try:
            return dict(self._instance.execute(inputs))
        except BaseException as error:  # not even sys.exit ends it: the next batch is others'
            return _fault(error, InvalidInput)

    def watch(self) -> None:
        """Never return: the call fails when this process ends, which is how the gateway hears of it."""
        threading.Event().wait()

    def close(self) -> None:
        """Free everything, whatever the backend's own `close` methods do."""
        for held in (self._instance, self._model, self._unpacked):
            try:
                if held is not None:
                    held.close()
            except Exception:
                logging.getLogger(__name__).exception("%r failed to close", held)
        self._instance = self._model = self._unpacked = self._loaded = None


@contextmanager
def _logged() -> Iterator[list[tuple[int, str]]]:
    """What backends log meanwhile, by level and message."""
    lines: list[tuple[int, str]] = []
    handler, logger = logging.Handler(logging.INFO), logging.getLogger("backends")
    handler.emit = lambda record: lines.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _fault(error: BaseException, foreseen: type[Exception]) -> Fault:
    trace = "".join(traceback.format_exception(error))
    error = presentable(error)
    refused = isinstance(error, foreseen)
    return Fault(str(error) if refused else f"{type(error).__name__}: {error}", refused, trace)
