"""int8 by AI Edge Quantizer: dynamic, and static with calibration. Inputs and outputs stay as they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from backends.base import Array
from backends.optimize.bare import arrays
from backends.optimize.export import artifact_of, converted
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant

_BITS = 8
_EVERYWHERE = ".*"  # a regular expression over the names of operations


@dataclass(frozen=True, slots=True)
class LitertInt8:
    """int8 weights, a scale for each output channel; products and convolutions quantise their inputs as they come.

    Attributes:
        static: activations are int8 in ranges that the recipe's calibration data shows. In a network of convolutions
            all operations are quantised so, and numbers stay int8 from one to the next; in others only products with
            weights are: a range that holds an attention mask's -1e38 has no place for more.
    """

    static: bool = False
    takes: ClassVar = ".tflite"

    @property
    def name(self) -> str:
        """By what is known beforehand."""
        return f"litert-int8{'-static' if self.static else ''}"

    def obstacle(self, recipe: Recipe) -> str:
        """A missing package, or no calibration data."""
        if self.static and not _calibration_rows(recipe):
            return "it needs calibration data: give the recipe some rows of `calibration`"
        return missing("ai_edge_quantizer")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Quantise the file.

        Raises:
            TechniqueFailed: what came out does not serve.
        """
        from ai_edge_quantizer.quantizer import Quantizer  # noqa: PLC0415  # heavy

        given = artifact_of(variant)
        content = given.file.read_bytes()
        file = folder / given.file.name
        with _quiet():
            quantizer = Quantizer(content)
            _configure(quantizer, convolutional=_is_convolutional(content), static=self.static)
            ranges = _ranges(content, quantizer, given.batch_sizes, recipe) if self.static else None
            result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        file.write_bytes(result.quantized_model)
        return converted(variant, self.name, Artifact(file, given.backend, given.batch_sizes), recipe)


def _configure(quantizer: Any, *, convolutional: bool, static: bool) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName  # noqa: PLC0415
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation  # noqa: PLC0415

    if static and convolutional:
        quantizer.add_static_config(_EVERYWHERE, Operation.ALL_SUPPORTED, _BITS, _BITS)
        for operation in (Operation.INPUT, Operation.OUTPUT):
            quantizer.update_quantization_recipe(_EVERYWHERE, operation, None, AlgorithmName.NO_QUANTIZE)
        return
    quantizer.add_dynamic_config(_EVERYWHERE, Operation.ALL_SUPPORTED, _BITS)
    if static:
        quantizer.add_static_config(_EVERYWHERE, Operation.FULLY_CONNECTED, _BITS, _BITS)  # later rules go before


def _is_convolutional(content: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415

    model, builtin = schema.Model.GetRootAs(content), schema.BuiltinOperator
    codes = {model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength())}
    return not codes.isdisjoint({builtin.CONV_2D, builtin.DEPTHWISE_CONV_2D})


def _ranges(content: bytes, quantizer: Any, sizes: tuple[int, ...], recipe: Recipe) -> Any:
    """The least and largest number of every tensor.

    All signatures see the same rows, a last batch filled up with the first ones: what they share (biases, in the scale
    of their inputs) would else be right for one of them alone.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator  # noqa: PLC0415
    from ai_edge_quantizer.recipe_manager import RecipeManager  # noqa: PLC0415
    from ai_edge_quantizer.utils.qsv_utils import min_max_update  # noqa: PLC0415

    settings = RecipeManager()
    settings.load_quantization_recipe(quantizer.get_quantization_recipe())
    calibrator = Calibrator(
        content, num_threads=1, mode=CalibrationMode.CALIBRATION_PROFILER_BASED, qsv_update_func=min_max_update
    )
    calibrator.calibrate({f"b{size}": list(_batches(recipe, size)) for size in sizes}, settings)
    return calibrator.get_model_qsvs()


def _batches(recipe: Recipe, size: int) -> Iterator[dict[str, Array]]:
    rows = _calibration_rows(recipe)
    for start in range(0, rows, size):
        index = torch.arange(start, start + size) % rows
        yield arrays({name: tensor[index] for name, tensor in recipe.calibration.items()})


def _calibration_rows(recipe: Recipe) -> int:
    return min((len(tensor) for tensor in recipe.calibration.values()), default=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, which are for those who set it up by hand."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
