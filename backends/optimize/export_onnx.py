"""`model.onnx`, with an open batch and the weights inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from backends.optimize.export import Named, exported, module_of, open_batch, quiet
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """For ONNX Runtime, and for what goes on from ONNX: its int8 and fp16, TensorRT."""

    name: ClassVar = "onnx"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing package."""
        return missing("onnx", "onnxscript", "onnxruntime")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Export the module."""
        file = folder / "model.onnx"
        with quiet():
            program = torch.onnx.export(
                Named(module_of(variant), recipe),
                tuple(recipe.sample.values()),
                dynamic_shapes=open_batch(recipe),
                dynamo=True,
                verbose=False,
            )
            if program is None:
                raise TypeError("torch.onnx gave no program")
            _rename(program.model.graph, recipe)
            program.save(file, external_data=False)
        return exported(variant, self.name, Artifact(file, "onnxruntime"), recipe)


def _rename(graph: Any, recipe: Recipe) -> None:
    """Give inputs and outputs the recipe's names.

    Not by the exporter: it does not see that a value inside, an operator's or a weight, has such a name already, and
    then writes a file that no runtime takes.
    """
    wanted = [*zip(recipe.sample, graph.inputs, strict=True), *zip(recipe.outputs, graph.outputs, strict=True)]
    names, renamed = {name for name, _ in wanted}, {id(value) for _, value in wanted}
    for value in [*(value for node in graph for value in node.outputs), *graph.initializers.values()]:
        if value.name in names and id(value) not in renamed:
            value.name = f"{value.name}__inside"
    for name, value in wanted:
        value.name = name
