"""What the search has done in other processes: functions of files, since nothing else outlives a crash."""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cloudpickle
import torch

from backends.base import Array, Operation
from backends.optimize import eager, techniques
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Variant
from backends.torch_profiler import TorchProfiler

_PROFILED_RUNS = 20
_PROFILED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Made:
    """A variant in files.

    Attributes:
        variant: without its module.
        file: where all of it is pickled.
        is_module: whether it has a module.
    """

    variant: Variant
    file: Path
    is_module: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the original's time goes: operators, of `runs` executions of `rows` rows, the most time first.

    Attributes:
        run_ms: median milliseconds of an execution without the profiler.
        parameters: how many numbers the network has learnt.
    """

    rows: int
    runs: int
    run_ms: float
    parameters: int
    operations: tuple[Operation, ...]


@functools.cache
def recipe_in(file: Path) -> Recipe:
    """The recipe that was pickled into a file."""
    recipe: Recipe = pickle.loads(file.read_bytes())  # noqa: S301  # written by ourselves
    return recipe


@functools.lru_cache(maxsize=2)
def _variant_in(file: Path) -> Variant:
    variant: Variant = pickle.loads(file.read_bytes())  # noqa: S301  # written by ourselves
    return variant


def original(recipe_file: Path, folder: Path) -> Made:
    """The recipe's model, as a module and as a file."""
    recipe = recipe_in(recipe_file)
    return _kept(Variant(module=recipe.model, artifact=eager.write(recipe, _new(folder))), folder)


def apply(recipe_file: Path, source: Path, technique: str, folder: Path) -> Made:
    """The variant pickled in a file, after one more technique.

    Raises:
        TechniqueFailed: with the reason.
    """
    recipe = recipe_in(recipe_file)
    variant = _variant_in(source)
    if variant.module is not None:
        variant = replace(variant, artifact=None)  # the original has both
    made = techniques.known(recipe)[technique].apply(variant, recipe, _new(folder))
    return _kept(made, folder)


def run(recipe_file: Path, source: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the variant's module gives."""
    module = _variant_in(source).module
    if module is None:
        raise TypeError(f"{source}: not a module")
    return recipe_in(recipe_file).run(module, {name: torch.from_numpy(array) for name, array in inputs.items()})


def profile(recipe_file: Path) -> Profile:
    """Run the original under torch.profiler."""
    recipe = recipe_in(recipe_file)
    rows = {name: tensor[:_PROFILED_ROWS].numpy() for name, tensor in recipe.sample.items()}
    watched = TorchProfiler(lambda: _Eager(recipe), torch.device("cpu")).instance(by_node=False)
    times = []
    for _ in range(_PROFILED_RUNS):
        began = time.perf_counter()
        watched.execute(rows)
        times.append(time.perf_counter() - began)
    watched.start()
    for _ in range(_PROFILED_RUNS):
        watched.execute(rows)
    operations = sorted(watched.stop(None), key=lambda operation: -operation.self_us)
    watched.close()
    return Profile(
        rows=len(next(iter(rows.values()))),
        runs=_PROFILED_RUNS,
        run_ms=sorted(times)[len(times) // 2] * 1000,
        parameters=sum(parameter.numel() for parameter in recipe.model.parameters()),
        operations=tuple(operations),
    )


class _Eager:
    """The recipe's model as a backend's instance."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        return self._recipe.run(self._recipe.model, {name: torch.from_numpy(array) for name, array in inputs.items()})

    def close(self) -> None:
        """Nothing to free."""


def _new(folder: Path) -> Path:
    """Where a variant's own files go."""
    files = folder / "files"
    files.mkdir(parents=True)
    return files


def _kept(variant: Variant, folder: Path) -> Made:
    file = folder / "variant.pkl"
    file.write_bytes(cloudpickle.dumps(variant))
    return Made(replace(variant, module=None), file, variant.module is not None)
