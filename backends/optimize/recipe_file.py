"""Reads a recipe: runs the Python file and checks what it defines."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from backends.optimize.recipe import Recipe, Training

MODULE = "tensorgate_recipe"
"""The name under which the file is imported: its own could be that of a package."""

_CALIBRATION_ROWS = 128
_RUN_ROWS = 2  # torch.export takes the size of a batch of one for a constant

Tensors = dict[str, Tensor]


class InvalidRecipe(Exception):
    """The recipe does not hold; the message is a line that says where and how to mend it."""


def load(path: Path) -> Recipe:
    """Run a recipe file and check all that it defines.

    Raises:
        InvalidRecipe: the file is missing or fails, a name is missing or of the wrong kind, or the model does not run
            on the sample.
    """
    module = _imported(path)
    with _blaming(path):
        return _Reader(path, module).recipe()


def write(recipe: Recipe, path: Path, target: Path) -> None:
    """Pickle a recipe for other processes, with the classes and functions of its file and of those beside it.

    Raises:
        InvalidRecipe: something in it cannot be pickled.
    """
    beside = path.resolve().parent
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).parent == beside and module.__name__ != "__main__":
            cloudpickle.register_pickle_by_value(module)
    try:
        target.write_bytes(cloudpickle.dumps(recipe))
    except Exception as error:
        words = " ".join(str(error).split())
        raise InvalidRecipe(f"{path}: it cannot be sent to another process: {type(error).__name__}: {words}") from error


def location(error: BaseException, path: Path) -> str:
    """Where in the file an exception came from, and what it says: "recipe.py:12: NameError: ..."."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    words = " ".join(said.split())
    return f"{path}{f':{line}' if line else ''}: {type(error).__name__}{f': {words}' if words else ''}"


def _imported(path: Path) -> ModuleType:
    """The file as a module; what lies beside it can be imported, after all that is installed."""
    path = path.resolve()
    if not path.is_file():
        raise InvalidRecipe(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise InvalidRecipe(f"{path}: expected a Python file, its name ending in .py")
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InvalidRecipe(location(error, path)) from error
    return module


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Say of which file a message is."""
    try:
        yield
    except _Wrong as error:
        raise InvalidRecipe(f"{path}: {error}") from error.__cause__


class _Wrong(Exception):
    """What a name of the recipe is and should be."""


class _Reader:
    """Takes the names of a recipe's module one by one."""

    def __init__(self, path: Path, module: ModuleType) -> None:
        self._path = path.resolve()
        self._module = module

    def recipe(self) -> Recipe:
        """All of it, checked."""
        model = self._network("model")
        sample = _at_least(_RUN_ROWS, self._inputs("sample", _parameters(model)))
        outputs = self._run(model, sample)
        training = self._training(tuple(sample))
        names = self._outputs(outputs)
        return Recipe(
            name=self._path.stem,
            model=model,
            sample=sample,
            outputs=names,
            evaluate=self._required("evaluate", callable, "a function, evaluate(predict)"),
            calibration=self._calibration(sample, training),
            training=training,
            student=self._student(sample, outputs),
            techniques=self._techniques(),
        )

    def _get(self, name: str) -> Any:
        return getattr(self._module, name, None)

    def _required(self, name: str, holds: Any, expected: str) -> Any:
        value = self._get(name)
        if value is None:
            raise _Wrong(f"defines no '{name}': expected {expected}")
        if not holds(value):
            raise _Wrong(f"'{name}' is {_kind(value)}, expected {expected}")
        return value

    def _network(self, name: str) -> nn.Module:
        expected = "an nn.Module, or a function that returns one"
        value = self._required(name, lambda value: isinstance(value, nn.Module) or callable(value), expected)
        if not isinstance(value, nn.Module):
            value = self._called(name, value)
        if not isinstance(value, nn.Module):
            raise _Wrong(f"'{name}' returns {_kind(value)}, expected an nn.Module")
        for weight, tensor in value.state_dict().items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise _Wrong(f"'{name}' has {tensor.dtype} in '{weight}': expected a network in float32 (.float())")
        return value.cpu().eval()

    def _called(self, name: str, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise InvalidRecipe(f"{location(error, self._path)} (from '{name}')") from error

    def _inputs(self, name: str, names: tuple[str, ...]) -> Tensors:
        """Inputs by the names that the model's forward has for them, or by those of a dict."""
        value = self._required(name, lambda _: True, "an array for each input of the model, rows first")
        return _named(name, value, names)

    def _run(self, model: nn.Module, sample: Tensors, name: str = "model") -> Tensors:
        """The outputs for the sample, a row for each of its rows and the same ones every time."""
        with torch.inference_mode():
            first, second = (self._called(name, model, *sample.values()) for _ in range(2))
        rows = len(next(iter(sample.values())))
        outputs = _tensors(name, first)
        for output, tensor in outputs.items():
            if tensor.ndim == 0 or len(tensor) != rows:
                shape = list(tensor.shape)
                raise _Wrong(f"'{name}' gives {output} {shape} for {rows} rows: its first dimension must be the batch")
        for output, again in _tensors(name, second).items():
            if not torch.equal(torch.nan_to_num(outputs[output]), torch.nan_to_num(again)):
                raise _Wrong(
                    f"'{name}' gives another {output} each time for the same sample: there is nothing to compare"
                )
        return outputs

    def _outputs(self, outputs: Tensors) -> tuple[str, ...]:
        names = self._get("outputs")
        if names is None:
            return tuple(outputs)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise _Wrong(f"'outputs' is {_kind(names)}, expected names, as [\"logits\"]")
        if len(set(names)) != len(outputs):
            raise _Wrong(f"'outputs' names {len(set(names))}, the model has {len(outputs)}")
        return tuple(names)

    def _training(self, names: tuple[str, ...]) -> Training | None:
        value = self._get("training")
        if value is None:
            return None
        if not isinstance(value, tuple) or len(value) != 2:
            raise _Wrong(f"'training' is {_kind(value)}, expected (inputs, labels)")
        inputs, labels = _named("training", value[0], names), _tensor("training", value[1])
        if len(labels) != len(next(iter(inputs.values()))):
            raise _Wrong(f"'training' has {len(next(iter(inputs.values())))} rows of inputs and {len(labels)} labels")
        loss = self._get("loss") or cross_entropy
        if not callable(loss):
            raise _Wrong(f"'loss' is {_kind(loss)}, expected a function of the outputs and the labels, or no such name")
        settings = {name: self._setting(name, kind) for name, kind in _SETTINGS.items()}
        given = {name: value for name, value in settings.items() if value is not None}
        return Training(tuple(inputs.values()), labels, loss, **given)

    def _setting(self, name: str, kind: type) -> Any:
        value = self._get(name)
        if value is None:
            return None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (kind is float and isinstance(value, float))) or not value > 0:
            raise _Wrong(f"'{name}' is {value!r}, expected a {'whole ' * (kind is int)}number above 0")
        return kind(value)

    def _calibration(self, sample: Tensors, training: Training | None) -> Tensors:
        if self._get("calibration") is not None:
            return _at_least(1, self._inputs("calibration", tuple(sample)))
        if training:
            return {name: rows[:_CALIBRATION_ROWS] for name, rows in zip(sample, training.inputs, strict=True)}
        return sample

    def _techniques(self) -> tuple[Any, ...]:
        found = tuple(self._get("techniques") or ())
        for technique in found:
            if lacking := [name for name in ("name", "takes", "obstacle", "apply") if not hasattr(technique, name)]:
                raise _Wrong(f"'techniques' has {_kind(technique)} without '{lacking[0]}', expected techniques")
        return found

    def _student(self, sample: Tensors, outputs: Tensors) -> nn.Module | None:
        if self._get("student") is None:
            return None
        student = self._network("student")
        shapes = {name: list(tensor.shape) for name, tensor in outputs.items()}
        found = {name: list(tensor.shape) for name, tensor in self._run(student, sample, "student").items()}
        if list(found.values()) != list(shapes.values()):
            raise _Wrong(f"'student' gives {found}, expected what the model gives: {shapes}")
        return student


_SETTINGS = {"epochs": int, "batch_size": int, "learning_rate": float}


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """The loss of a classifier, by its first output."""
    return nn.functional.cross_entropy(next(iter(_tensors("model", outputs).values())), labels)


def _parameters(model: nn.Module) -> tuple[str, ...]:
    """The names of forward's parameters that a call has to give, or could."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in signature(model.forward).parameters.values() if p.kind in positional)


def _named(name: str, value: Any, names: tuple[str, ...]) -> Tensors:
    """Tensors by the names of inputs, of equally many rows."""
    if isinstance(value, Mapping):
        arrays = dict(value)
    else:
        values = list(value) if isinstance(value, (tuple, list)) else [value]
        if len(values) > len(names):
            raise _Wrong(f"'{name}' has {len(values)} inputs, the model takes {len(names)}: {', '.join(names)}")
        arrays = dict(zip(names, values, strict=False))
    if not arrays or not set(arrays) <= set(names):
        raise _Wrong(f"'{name}' has {', '.join(map(repr, arrays)) or 'no input'}, the model takes {', '.join(names)}")
    arrays = {input_name: arrays[input_name] for input_name in names if input_name in arrays}  # in forward's order
    tensors = {input_name: _tensor(name, array) for input_name, array in arrays.items()}
    if len({len(tensor) for tensor in tensors.values()}) > 1 or not len(next(iter(tensors.values()))):
        shapes = ", ".join(f"{input_name} {list(tensor.shape)}" for input_name, tensor in tensors.items())
        raise _Wrong(f"'{name}' has {shapes}: expected equally many rows, one or more")
    return tensors


def _tensor(name: str, value: Any) -> Tensor:
    """Rows as a tensor that numpy can share; float64, which numpy has by default, as the networks' float32."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError):
        raise _Wrong(f"'{name}' has {_kind(value)}, expected an array of numbers or a tensor") from None
    if tensor.ndim == 0:
        raise _Wrong(f"'{name}' has a single number, expected rows")
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _tensors(name: str, outputs: Any) -> Tensors:
    """A module's outputs by name, in its order."""
    if isinstance(outputs, Mapping):
        named = dict(outputs)
    elif isinstance(outputs, (tuple, list)):
        named = {f"output_{number}": value for number, value in enumerate(outputs)}
    else:
        named = {"output": outputs}
    for output, value in named.items():
        if not isinstance(value, Tensor):
            raise _Wrong(f"'{name}' gives {_kind(value)} as {output}, expected tensors: one, a tuple or a dict of them")
    return named


def _at_least(rows: int, tensors: Tensors) -> Tensors:
    """The same rows, repeated if there are fewer."""
    there = len(next(iter(tensors.values())))
    times = -(-rows // there)
    return {name: torch.cat([tensor] * times) if times > 1 else tensor for name, tensor in tensors.items()}


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
