"""fp16 by ONNX Runtime's own conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from backends.optimize.export import artifact_of, converted
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant

_TOLERANCE = 0.05
"""Of the largest value. Rounding alone is below; what is not fits fp16 badly: weights above 65504 are cut off there."""


@dataclass(frozen=True, slots=True)
class Fp16:
    """Half the size; faster where the processor computes in fp16, as GPUs do. Inputs and outputs stay as they are."""

    name: ClassVar = "fp16"
    takes: ClassVar = ".onnx"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing package."""
        return missing("onnx", "onnxruntime")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Convert weights and operators.

        Raises:
            TechniqueFailed: what came out does not serve, or numbers became too large for fp16.
        """
        import onnx  # noqa: PLC0415  # heavy
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

        file = folder / "model.onnx"
        onnx.save(convert_float_to_float16(onnx.load(artifact_of(variant).file), keep_io_types=True), file)
        return converted(variant, self.name, Artifact(file, "onnxruntime"), recipe, _TOLERANCE)
