"""Backend `python`: `model.py` with a class `Model`, for pre- and post-processing and anything else.

class Model:
    inputs = [("text", object, (-1, 1))]            # optional: name, numpy dtype, shape; -1 is any size
    outputs = [("length", "int32", (-1, 1))]        # without them, config.pbtxt declares the tensors
    def load(self, source): ...                     # optional: source.directory, source.parameters, ...
    def execute(self, inputs): return {"length": ...}
    def close(self): ...                            # optional
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from backends.base import Array, Instance, LoadError, ModelSource, Signature, TensorSpec


class PythonBackend:
    """Loads `model.py` files."""

    def load(self, source: ModelSource) -> PythonModel:
        """Import the file under a name of its own; modules beside it are reached with `from . import helper`.

        Raises:
            LoadError: it does not import, has no class `Model`, or nothing declares its tensors.
        """
        factory = _model_class(source)
        try:
            inputs, outputs = _specs(factory, "inputs"), _specs(factory, "outputs")
        except (TypeError, ValueError) as error:
            raise LoadError(f"model.py: inputs and outputs are lists of (name, dtype, shape): {error}") from error
        declared = source.declared
        if (inputs or declared.inputs) and (outputs or declared.outputs):
            signature = Signature.of(inputs, outputs) if inputs and outputs else declared
            return PythonModel(factory, source, signature)
        raise LoadError(
            "nothing says what model.py takes and gives: add to the class\n"
            '    inputs = [("NAME", "float32", (-1, 4))]\n'
            '    outputs = [("NAME", "float32", (-1, 2))]\n'
            "or declare input and output in config.pbtxt"
        )


class PythonModel:
    """An imported `model.py`; each instance is an object of its class `Model`."""

    def __init__(self, factory: type, source: ModelSource, signature: Signature) -> None:
        self.signature = signature
        self._factory = factory
        self._source = source

    def instance(self) -> Instance:
        """A new object of the class, loaded."""
        model = self._factory()
        if hasattr(model, "load"):
            model.load(self._source)
        return PythonInstance(model)

    def close(self) -> None:
        """Forget the module, so that the next load reads the file again."""
        _forget(self._factory.__module__)


class PythonInstance:
    """One object of the class `Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """What the class's own `execute` returns, as arrays.

        Raises:
            TypeError: it returned something other than a mapping.
        """
        outputs = self._model.execute(inputs)
        if not isinstance(outputs, Mapping):
            raise TypeError(f"execute returns a dict of arrays by output name, got {type(outputs).__name__}")
        return {name: np.asarray(value) for name, value in outputs.items()}

    def close(self) -> None:
        """Call the class's own `close` where it has one."""
        if hasattr(self._model, "close"):
            self._model.close()


def _model_class(source: ModelSource) -> type:
    if source.file is None:
        raise LoadError("backend 'python' needs a model.py in the version folder")
    # Two loads of one file may live side by side during a reload: each gets a module of its own.
    name = f"tensorgate_model_{source.name}_{source.version}_{id(source):x}"
    folder = str(source.directory)
    spec = importlib.util.spec_from_file_location(name, source.file, submodule_search_locations=[folder])
    if spec is None:
        raise LoadError(f"{source.file.name} is not a Python file")
    factory = getattr(_execute(spec), "Model", None)
    if not isinstance(factory, type) or not callable(getattr(factory, "execute", None)):
        raise LoadError("model.py needs a class named Model with a method execute(self, inputs)")
    return factory


def _execute(spec: ModuleSpec) -> object:
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException as error:
        _forget(spec.name)
        raise LoadError(f"model.py does not import: {type(error).__name__}: {error}") from error
    return module


def _forget(name: str) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


def _specs(factory: type, attribute: str) -> list[TensorSpec]:
    return [TensorSpec.of(name, dtype, shape) for name, dtype, shape in getattr(factory, attribute, ())]
