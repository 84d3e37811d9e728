"""Backend `python`: `model.py` with a class `Model`, for pre- and post-processing and anything else.

class Model:
    inputs = [("text", object, (-1, 1))]            # optional: name, numpy dtype, shape; -1 is any size
    outputs = [("length", "int32", (-1, 1))]        # without them, config.pbtxt declares the tensors
    deterministic = False                           # optional: responses are never cached
    inline = True                                   # optional: execute waits for nothing, and takes any thread
    def load(self, source): ...                     # optional: source.directory, source.parameters, ...
    def execute(self, inputs): return {"length": ...}  # the inputs are read-only
    def close(self): ...                            # optional
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Container, Mapping
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Array, Instance, LoadError, ModelSource, Signature, TensorSpec
from backends.python_profiler import PythonProfiler


class PythonBackend:
    """Loads `model.py` files."""

    def load(self, source: ModelSource) -> PythonModel:
        """Import the file under a name of its own; modules beside it are reached with `from . import helper`.

        Raises:
            LoadError: it does not import, has no class `Model`, or nothing declares its tensors.
        """
        module = _import(source)
        try:
            factory = _model_class(sys.modules[module])
            return PythonModel(module, factory, source, _signature(factory, source.declared))
        except BaseException:
            _forget(module)
            raise


class PythonModel:
    """An imported `model.py`; each instance is an object of its class `Model`."""

    def __init__(self, module: str, factory: type, source: ModelSource, signature: Signature) -> None:
        self.signature = signature
        self.inline = bool(getattr(factory, "inline", False))
        self._module = module
        self._factory = factory
        self._source = source

    def instance(self) -> Instance:
        """A new object of the class, loaded."""
        model = self._factory()
        if hasattr(model, "load"):
            model.load(self._source)
        return PythonInstance(model)

    @property
    def profiler(self) -> PythonProfiler:
        """One over objects of the class."""
        return PythonProfiler(self.instance)

    def close(self) -> None:
        """Forget the module and those beside it."""
        _forget(self._module)


class PythonInstance:
    """One object of the class `Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """What the class's own `execute` returns, copied: it may use its buffers again for the next batch.

        Inputs that it passes on are not its buffers, nor are views of them.

        Raises:
            TypeError: it returned something other than a mapping.
        """
        given = list(inputs.values())
        for array in given:
            array.flags.writeable = False  # as those of a request that runs alone are: what works once works always
        outputs = self._model.execute(inputs)
        if not isinstance(outputs, Mapping):
            raise TypeError(f"execute returns a dict of arrays by output name, got {type(outputs).__name__}")
        memory = {id(array) if array.base is None else id(array.base) for array in given}
        return {name: _kept(np.asarray(value), memory) for name, value in outputs.items()}

    def close(self) -> None:
        """Call the class's own `close` where it has one."""
        if hasattr(self._model, "close"):
            self._model.close()


def _kept(output: Array, memory: Container[int]) -> Array:
    """An output that nobody writes into any more: itself if it lies in one of these memories, by their ids."""
    return output if id(output if output.base is None else output.base) in memory else output.copy()


class _FreshLoader(SourceFileLoader):
    """Compiles the source every time: cached bytecode is told from an edit only by whole seconds and the size."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"no bytecode for {path}")


def _import(source: ModelSource) -> str:
    """Import the source's file; the name it then has in `sys.modules`."""
    if source.file is None:
        raise LoadError("backend 'python' needs a model.py in the version folder")
    folder, path = str(source.directory), str(source.file)
    # Two loads of one file may live side by side during a reload: each gets a module of its own.
    name = f"tensorgate_model_{source.name}_{source.version}_{id(source):x}".replace(".", "_")
    loaders = (_FreshLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)
    sys.path_importer_cache[folder] = FileFinder(folder, *loaders)  # for the modules beside it
    spec = importlib.util.spec_from_file_location(
        name, path, loader=_FreshLoader(name, path), submodule_search_locations=[folder]
    )
    assert spec is not None  # noqa: S101  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException as error:  # a model.py may even call sys.exit
        _forget(name)
        raise LoadError(f"{_place(error, source)} does not import: {_reason(error)}") from error
    return name


def _place(error: BaseException, source: ModelSource) -> str:
    """The last line in the version folder that had a part in the error; the file alone where no line had."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):  # happens to a file that is read, not in one that runs
        places.append((error.filename or "", error.lineno or 0))
    folder = source.directory.absolute()
    for filename, line in reversed(places):
        path = Path(filename).absolute()
        if line and path.is_relative_to(folder):
            return f"{path.relative_to(folder)} line {line}"
    return source.file.name if source.file else source.name


def _reason(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)  # as text, a SyntaxError repeats its place
    return " ".join(f"{type(error).__name__}: {text}".split())


def _forget(name: str) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


def _model_class(module: object) -> type:
    factory = getattr(module, "Model", None)
    if not isinstance(factory, type) or not callable(getattr(factory, "execute", None)):
        raise LoadError("model.py needs a class named Model with a method execute(self, inputs)")
    return factory


def _signature(factory: type, declared: Signature) -> Signature:
    try:
        inputs, outputs = _specs(factory, "inputs"), _specs(factory, "outputs")
    except (TypeError, ValueError) as error:
        raise LoadError(f"model.py: inputs and outputs are lists of (name, dtype, shape): {error}") from error
    if not (inputs or declared.inputs) or not (outputs or declared.outputs):
        raise LoadError(
            "nothing says what model.py takes and gives: add to the class\n"
            '    inputs = [("NAME", "float32", (-1, 4))]\n'
            '    outputs = [("NAME", "float32", (-1, 2))]\n'
            "or declare input and output in config.pbtxt"
        )
    signature = Signature.of(inputs or declared.inputs, outputs or declared.outputs) if inputs or outputs else declared
    return replace(signature, deterministic=getattr(factory, "deterministic", True))


def _specs(factory: type, attribute: str) -> list[TensorSpec]:
    return [TensorSpec.of(name, dtype, shape) for name, dtype, shape in getattr(factory, attribute, ())]
