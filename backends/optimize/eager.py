"""The original as its users have it today: eager PyTorch behind a `model.py`, what the variants are compared with."""

from __future__ import annotations

import json
from pathlib import Path

import cloudpickle

from backends.base import TensorSpec
from backends.optimize.bare import declared
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact

_MODEL = '''\
"""The recipe's model as it was, in eager PyTorch: what the variants are compared with."""

import pickle
from pathlib import Path

import numpy as np
import torch


class Model:
    inputs = {inputs}
    outputs = {outputs}

    def load(self, source):
        self.module = pickle.loads(Path(source.directory, "module.pkl").read_bytes())

    def execute(self, inputs):
        with torch.inference_mode():
            result = self.module(*(torch.from_numpy(np.array(inputs[name])) for name, _, _ in self.inputs))
        values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
        return {{name: value.numpy() for (name, _, _), value in zip(self.outputs, values)}}
'''


def write(recipe: Recipe, folder: Path) -> Artifact:
    """The original's files in a folder; its `module.pkl` holds the classes of the recipe, too."""
    signature = declared(recipe)
    (folder / "module.pkl").write_bytes(cloudpickle.dumps(recipe.model))
    file = folder / "model.py"
    file.write_text(_MODEL.format(inputs=_written(signature.inputs), outputs=_written(signature.outputs)))
    return Artifact(file, "python")


def _written(specs: tuple[TensorSpec, ...]) -> str:
    """Tensors as a model.py declares them."""
    tensors = [f"({json.dumps(spec.name)}, {spec.dtype.name!r}, {spec.shape!r})" for spec in specs]
    return f"[{', '.join(tensors)}]"
