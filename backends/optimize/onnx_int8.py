"""int8 by ONNX Runtime's own quantisation: dynamic, and static with calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from backends.base import Array
from backends.optimize.bare import arrays
from backends.optimize.calibration import calibration_batches, calibration_missing
from backends.optimize.export import artifact_of, converted
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, TechniqueFailed, Variant

_WEIGHTED = ("MatMul", "Gemm", "Gather")
"""Operators with weights of their own that gain on any network: products, and look-ups in an embedding."""


@dataclass(frozen=True, slots=True)
class DynamicInt8:
    """int8 weights; activations are quantised as they come. Convolutions stay fp32: as int8 they would be slower.

    Attributes:
        per_channel: a scale for each output channel of a weight, and not one for the whole.
    """

    per_channel: bool = True
    takes: ClassVar = ".onnx"

    @property
    def name(self) -> str:
        """By what has a scale."""
        return f"int8-per-{'channel' if self.per_channel else 'tensor'}"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing package."""
        return missing("onnx", "onnxruntime")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Quantise the weights.

        Raises:
            TechniqueFailed: the file holds no products of weights, or what came out does not serve.
        """
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415  # heavy

        file = folder / "model.onnx"
        with _prepared(artifact_of(variant).file) as (graph, operators):
            if not operators.intersection(_WEIGHTED):
                raise TechniqueFailed(f"the file holds none of the operators it quantises: {', '.join(_WEIGHTED)}")
            quantize_dynamic(
                graph,
                file,
                op_types_to_quantize=_WEIGHTED,
                per_channel=self.per_channel,
                weight_type=QuantType.QInt8,
            )
        return converted(variant, self.name, Artifact(file, "onnxruntime"), recipe)


@dataclass(frozen=True, slots=True)
class StaticInt8:
    """int8 weights, a scale for each channel, and int8 activations, whose ranges the recipe's calibration data shows.

    In a network of convolutions all operators are quantised, so that numbers stay int8 from one to the next. In others
    only products with weights and embeddings are: a range that holds an attention mask's -1e38 has no place for more.

    Attributes:
        symmetric: zero is at the middle of every range and biases stay fp32, which is what TensorRT takes. ONNX Runtime
            serves such a file too, slower than the other.
    """

    symmetric: bool = False
    takes: ClassVar = ".onnx"

    @property
    def name(self) -> str:
        """By the kind of its ranges."""
        return f"int8-static{'-symmetric' if self.symmetric else ''}"

    def obstacle(self, recipe: Recipe) -> str:
        """A missing package, or no calibration data."""
        return calibration_missing(recipe) or missing("onnx", "onnxruntime")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Calibrate and quantise.

        Raises:
            TechniqueFailed: what came out does not serve.
        """
        from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415  # heavy

        file = folder / "model.onnx"
        with _prepared(artifact_of(variant).file) as (graph, operators):
            convolutional = "Conv" in operators
            quantize_static(
                graph,
                file,
                _calibration(recipe),
                op_types_to_quantize=None if convolutional else _WEIGHTED,
                per_channel=True,
                activation_type=QuantType.QInt8 if self.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "MatMulConstBOnly": not convolutional,
                    "ActivationSymmetric": self.symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": not self.symmetric,
                },
            )
        return converted(variant, self.name, Artifact(file, "onnxruntime"), recipe)


@contextmanager
def _prepared(file: Path) -> Iterator[tuple[Path, set[str]]]:
    """A copy of the file with norms folded into convolutions and shapes inferred, and the operators in it."""
    import onnx  # noqa: PLC0415  # heavy
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "model.onnx"
        # Without the symbolic inference, which fails on some exports; the exporter has written the shapes anyway.
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared, load_external_data=False).graph
        yield prepared, {node.op_type for node in graph.node}


def _calibration(recipe: Recipe) -> Any:
    """The calibration data in batches, as ONNX Runtime asks for it."""
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415

    batches = map(arrays, calibration_batches(recipe))

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library carries no types
        def get_next(self) -> dict[str, Array] | None:
            return next(batches, None)

    return Reader()
