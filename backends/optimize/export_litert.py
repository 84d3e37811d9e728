"""`model.tflite`, with a signature for each size of batch; the weights are stored once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backends.optimize.export import Named, exported, module_of, quiet
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, TechniqueFailed, Variant

PYTHON = "TENSORGATE_LITERT_PYTHON"
"""Environment variable: the Python of an environment that holds litert-torch, where this one does not."""

_CONVERTER = Path(__file__).with_name("litert_converter.py")
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('litert_torch') is None)"


@dataclass(frozen=True, slots=True)
class LitertExport:
    """For LiteRT. The converter runs in a process of its own, since it holds packages back that others want newer.

    Attributes:
        sizes: of the batches that the file can execute, in rows, ascending. Batches between two are filled up. Each
            takes the converter some seconds; int8 files hold their scales once for each.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8)
    name: ClassVar = "litert"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing package, here or in the environment that `PYTHON` names."""
        if problem := missing("ai_edge_litert", extra="litert"):
            return problem
        python = os.environ.get(PYTHON, "")
        if not python and importlib.util.find_spec("litert_torch"):
            return ""
        if not python:
            return (
                "litert-torch is not installed: pip install 'tensorgate[litert-convert]', or, since it is large and "
                f"holds other packages back, install litert-torch in an environment of its own and set {PYTHON} to its "
                "Python"
            )
        try:
            found = subprocess.run([python, "-P", "-c", _FIND], capture_output=True, check=False).returncode == 0  # noqa: S603
        except OSError as error:
            return f"{PYTHON} is '{python}': {error.strerror}"
        return "" if found else f"{PYTHON} is '{python}', which has no litert-torch, or is no Python 3.11 or newer"

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Export the module for each size, and convert what came out.

        Raises:
            TechniqueFailed: the converter does not take the module, or what came out does not serve or differs.
        """
        file = folder / "model.tflite"
        module = _ByName(Named(module_of(variant), recipe))
        with TemporaryDirectory() as programs:
            for size in self.sizes:
                with quiet(), torch.no_grad():
                    program = torch.export.export(module, (), dict(_rows(recipe.sample, size)))
                torch.export.save(program, Path(programs) / f"b{size}.pt2")
            _convert(Path(programs), file)
        return exported(variant, self.name, Artifact(file, "litert", self.sizes), recipe)


class _ByName(nn.Module):
    """A module called by the names of its inputs, which become the signature's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, **inputs: Tensor) -> Any:
        return self.module(*inputs.values())


def _rows(tensors: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
    """The sample cut or repeated to a number of rows."""
    return {name: tensor[torch.arange(size) % len(tensor)] for name, tensor in tensors.items()}


def _convert(programs: Path, file: Path) -> None:
    # -P: what lies beside the converter must not get in the way of its packages.
    command = [os.environ.get(PYTHON) or sys.executable, "-P", str(_CONVERTER), str(programs), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode or not file.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise TechniqueFailed(f"litert-torch does not convert it: {lines[-1] if lines else f'code {done.returncode}'}")
