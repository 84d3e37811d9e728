"""Which backends there are, without importing a runtime that nobody uses."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from threading import Lock
from typing import cast

from backends.base import Backend, LoadError, ModelSource

GROUP = "tensorgate.backends"
"""Entry point group of backends that other distributions bring."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend, known by name and not imported yet.

    Attributes:
        name: as `backend:` in config.pbtxt spells it.
        target: "module:attribute" of its class.
        filenames: model files it recognises in a version folder; empty if it works without one.
        takes: further model files, which it loads where config.pbtxt names it.
        runtime: modules of which one must be importable; empty if it needs none.
        extra: extra of the distribution that installs the runtime.
        aliases: other spellings that Triton's repositories use.
        platform: Triton's name of the file format, which ModelMetadata reports.
    """

    name: str
    target: str
    filenames: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    extra: str = ""
    aliases: tuple[str, ...] = ()
    platform: str = ""

    @property
    def installed(self) -> bool:
        """Whether its runtime can be imported."""
        return not self.runtime or any(importlib.util.find_spec(module) for module in self.runtime)

    @property
    def install_hint(self) -> str:
        """The command that installs its runtime."""
        return f"pip install 'tensorgate[{self.extra}]'"

    def load(self) -> Backend:
        """Import the backend.

        Raises:
            LoadError: its runtime is not installed or fails to import.
        """
        if not self.installed:
            raise LoadError(f"backend '{self.name}' is not installed: {self.install_hint}")
        try:
            target = EntryPoint(self.name, self.target, GROUP).load()
            return cast("Backend", target())
        except Exception as error:  # a runtime's libraries may fail in any way, and a plug-in is anybody's code
            raise LoadError(f"backend '{self.name}' does not import: {type(error).__name__}: {error}") from error


_BUILTIN = (
    BackendInfo(
        "onnxruntime",
        "backends.onnxruntime:OnnxRuntimeBackend",
        filenames=("model.onnx",),
        runtime=("onnxruntime",),
        extra="onnx",
        platform="onnxruntime_onnx",
    ),
    BackendInfo(
        "torch",
        "backends.torch:TorchBackend",
        filenames=("model.pt2", "model.pt"),
        runtime=("torch",),
        extra="torch",
        aliases=("pytorch",),
        platform="pytorch_libtorch",
    ),
    BackendInfo(
        "tensorrt",
        "backends.tensorrt:TensorRtBackend",
        filenames=("model.plan",),
        takes=("model.onnx",),
        runtime=("tensorrt", "tensorrt_rtx"),
        extra="tensorrt",
        platform="tensorrt_plan",
    ),
    BackendInfo(
        "litert",
        "backends.litert:LitertBackend",
        filenames=("model.tflite",),
        runtime=("ai_edge_litert",),
        extra="litert",
        aliases=("tflite", "armnn_tflite"),
    ),
    BackendInfo("python", "backends.python:PythonBackend", filenames=("model.py",)),
    BackendInfo("echo", "backends.echo:EchoBackend", aliases=("identity",)),
    BackendInfo("remote", "gateway.remote.backend:RemoteBackend"),  # speaks gRPC, so it lives where that is known
)


class Registry:
    """The built-in backends and those of other distributions; each is imported and made once, at first use."""

    def __init__(self) -> None:
        infos = {info.name: info for info in _BUILTIN}
        for point in entry_points(group=GROUP):
            # A file named after the backend selects it without importing anything.
            infos.setdefault(point.name, BackendInfo(point.name, point.value, filenames=(f"model.{point.name}",)))
        self._infos = infos
        self._aliases = {alias: info for info in infos.values() for alias in (*info.aliases, info.platform) if alias}
        self._backends: dict[str, Backend] = {}
        # Models load in threads, and who waits for an import that then fails gets half a module.
        self._importing = {name: Lock() for name in infos}

    def __iter__(self) -> Iterator[BackendInfo]:
        return iter(self._infos.values())

    def info(self, name: str) -> BackendInfo:
        """The backend that `name`, one of its aliases or a Triton platform stands for.

        Raises:
            LoadError: there is none.
        """
        try:
            return self._infos.get(name) or self._aliases[name]
        except KeyError:
            known = ", ".join(self._infos)
            raise LoadError(f"unknown backend '{name}': expected one of {known}") from None

    def for_files(self, filenames: set[str]) -> BackendInfo:
        """The backend that recognises one of a version folder's files.

        Raises:
            LoadError: none does, or several do.
        """
        matches = [info for info in self if filenames.intersection(info.filenames)]
        if len(matches) == 1:
            return matches[0]
        found = ", ".join(sorted(filenames)) or "nothing"
        if matches:
            names = " or ".join(f"'{info.name}'" for info in matches)
            raise LoadError(f"files for several backends ({found}): say backend: {names} in config.pbtxt")
        expected = ", ".join(name for info in self for name in info.filenames)
        raise LoadError(f"no model file: expected one of {expected}; found {found}")

    def backend(self, info: BackendInfo) -> Backend:
        """The backend itself, imported at first use.

        Raises:
            LoadError: it is not installed.
        """
        with self._importing[info.name]:
            if info.name not in self._backends:
                self._backends[info.name] = info.load()
            return self._backends[info.name]

    def obstacle(self, info: BackendInfo, source: ModelSource, kind: str) -> str:
        """Why the backend cannot load a source on a kind of device, "cuda" or "cpu"; "" if it can.

        Raises:
            LoadError: it is not installed.
        """
        backend = self.backend(info)
        told = getattr(backend, "obstacle", None)  # optional in the contract
        if told is None:
            return "" if kind == "cpu" else f"backend '{info.name}' uses no GPU: say KIND_CPU"
        return str(told(source, kind))

    def instances(self, info: BackendInfo, source: ModelSource) -> int:
        """How many instances a model has whose `instance_group` names no count.

        Raises:
            LoadError: the backend is not installed, or the source's parameters do not hold.
        """
        told = getattr(self.backend(info), "instances", None)  # optional in the contract
        return 1 if told is None else int(told(source))
