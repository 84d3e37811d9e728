"""`model.plan`: an engine for NVIDIA GPUs, built of the ONNX file and in its precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from backends.base import LoadError, ModelSource
from backends.optimize.bare import arrays, declared, opened
from backends.optimize.check import checked
from backends.optimize.export import artifact_of, difference
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, TechniqueFailed, Variant

_ROWS = 32
"""Of the largest batch: an engine has to be built for one."""

_TOLERANCE = 1e-2
"""Of an engine against its ONNX file: TF32 has three decimal digits."""


@dataclass(frozen=True, slots=True)
class TensorRtEngine:
    """For batches of up to 32 rows. It is built without a GPU by TensorRT-RTX, and executed where there is one."""

    name: ClassVar = "tensorrt"
    takes: ClassVar = ".onnx"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing library."""
        neither = all(missing(module, extra="tensorrt") for module in ("tensorrt", "tensorrt_rtx"))
        return missing("tensorrt_rtx", extra="tensorrt") if neither else ""

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Build the engine.

        Raises:
            TechniqueFailed: the library does not take the file, or the engine gives something else on this GPU.
        """
        from backends.tensorrt import TensorRtBackend  # noqa: PLC0415  # needs the library
        from backends.tensorrt_build import Recipe as EngineRecipe  # noqa: PLC0415
        from backends.tensorrt_build import build  # noqa: PLC0415
        from backends.tensorrt_profile import Sizes  # noqa: PLC0415

        source, file = artifact_of(variant), folder / "model.plan"
        tensors = replace(declared(recipe), max_batch_size=_ROWS)
        model = ModelSource(recipe.name, 1, source.file.parent, source.file, declared=tensors)
        try:
            file.write_bytes(build(source.file, EngineRecipe(Sizes.of(model)), f"model {variant.name}"))
        except LoadError as error:
            raise TechniqueFailed(str(error)) from error
        artifact = Artifact(file, "tensorrt", max_batch_size=_ROWS)
        try:
            TensorRtBackend().load(replace(model, file=file)).close()
        except LoadError as error:  # for want of a GPU that the library supports: another machine may have one
            note = f"{self.name}: built, not executed: {error}."
        else:
            with opened(source, recipe) as original:
                worst = checked(artifact, lambda inputs: original(arrays(inputs)), recipe, _TOLERANCE)
            note = difference(self.name, worst)
        return replace(variant, steps=(*variant.steps, self.name), artifact=artifact, notes=(*variant.notes, note))
