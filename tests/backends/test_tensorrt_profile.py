"""The sizes that an engine is built for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import LoadError, ModelSource, Signature, TensorSpec
from backends.tensorrt_profile import Sizes

PIXELS = TensorSpec.of("pixels", np.float32, (-1, 3, 8, 8))
IDS = TensorSpec.of("ids", np.int64, (-1, -1))


def profile(*inputs: TensorSpec, rows: int = 0, declared: tuple[TensorSpec, ...] = (), **more: Any) -> dict[str, Any]:
    """The profile of a model with these inputs, `max_batch_size: rows` and whatever else its config.pbtxt says."""
    folder = Path("m") / "1"
    source = ModelSource("m", 1, folder, folder / "model.onnx", declared=Signature(declared, (), rows), **more)
    return Sizes.of(source).profile(inputs)


def test_batches_up_to_the_limit() -> None:
    """An engine takes one row to max_batch_size rows, and is fastest with the largest preferred batch."""
    assert profile(PIXELS, rows=16) == {"pixels": ((1, 3, 8, 8), (16, 3, 8, 8), (16, 3, 8, 8))}
    assert profile(PIXELS, rows=16, preferred_batch_sizes=(4, 8)) == {
        "pixels": ((1, 3, 8, 8), (8, 3, 8, 8), (16, 3, 8, 8))
    }


def test_without_a_config() -> None:
    """A model without config.pbtxt is served in batches of up to 32 rows, as others are, or of those it prefers."""
    assert profile(PIXELS)["pixels"].high == (32, 3, 8, 8)
    assert profile(PIXELS, preferred_batch_sizes=(64,))["pixels"].high == (64, 3, 8, 8)


def test_padded_beyond_the_limit() -> None:
    """Batches of up to 20 rows that are filled up to 32 need an engine for 32."""
    assert profile(PIXELS, rows=20, preferred_batch_sizes=(1, 32))["pixels"].high == (32, 3, 8, 8)


def test_fixed_sizes_need_no_profile() -> None:
    """A model that leaves no size open has nothing to say about sizes."""
    assert profile(TensorSpec.of("x", np.float32, (8, 4)), rows=8) == {}
    assert profile(TensorSpec.of("x", np.float32, ())) == {}


def test_sizes_from_parameters() -> None:
    """The owner of a text model says how long sequences get, and which length matters most, as for trtexec."""
    mask = IDS._replace(name="mask")
    stated = {"max_shapes": "ids:32x128, mask:32x128", "opt_shapes": "ids:8x64"}
    assert profile(IDS, mask, parameters=stated) == {
        "ids": ((1, 1), (8, 64), (32, 128)),
        "mask": ((1, 1), (32, 128), (32, 128)),
    }
    low = profile(IDS, parameters={"max_shapes": "ids:32x128", "min_shapes": "ids:4x16"})["ids"].low
    assert low == (4, 16)


def test_names_with_colons() -> None:
    """An input may be called as TensorFlow calls its tensors."""
    spec = PIXELS._replace(name="serving/pixels:0")
    assert profile(spec, parameters={"max_shapes": "serving/pixels:0:8x3x8x8"})[spec.name].high == (8, 3, 8, 8)


def test_sizes_from_declared_inputs() -> None:
    """A length that config.pbtxt fixes is the only one the engine is built for."""
    declared = TensorSpec.of("ids", np.int64, (-1, 128))
    assert profile(IDS, rows=8, declared=(declared,)) == {"ids": ((1, 128), (8, 128), (8, 128))}


def test_an_open_size_that_nothing_limits() -> None:
    """Whoever leaves a length open reads which line to write; the batch dimension is none of these."""
    with pytest.raises(LoadError) as caught:
        profile(IDS, rows=16)
    assert str(caught.value).startswith("input 'ids' [-1,-1]: ")
    assert 'parameters { key: "max_shapes" value { string_value: "ids:16x128" } }' in str(caught.value)


def test_a_first_dimension_that_is_no_batch() -> None:
    """A first dimension that not all inputs have open counts as any other: max_batch_size says nothing of it."""
    fixed = TensorSpec.of("scale", np.float32, (1,))
    with pytest.raises(LoadError, match=r"of dimension 0: .*max_shapes"):
        profile(PIXELS, fixed, rows=16)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_shapes": "ids"}, r"'max_shapes': expected INPUT:SIZExSIZE,\.\.\., as .*, got 'ids'"),
        ({"max_shapes": "ids:8x0"}, r"'max_shapes': expected .*, got 'ids:8x0'"),
        ({"opt_shapes": "ids:8x?"}, r"'opt_shapes': expected .*, got 'ids:8x\?'"),
        ({"max_shapes": "words:8x8"}, "'max_shapes': the model has no input 'words', only 'ids'"),
        ({"min_shapes": "ids:8"}, r"'min_shapes': input 'ids' is \[-1,-1\] in the model, got \[8\]"),
    ],
)
def test_wrong_parameters(parameters: dict[str, str], message: str) -> None:
    """A shape that makes no sense is refused with what would."""
    with pytest.raises(LoadError, match=f"^parameter {message}"):
        profile(IDS, parameters=parameters)


def test_a_fixed_size_stated_otherwise() -> None:
    """A shape that contradicts the model file is refused."""
    with pytest.raises(LoadError, match=r"input 'pixels' is \[-1,3,8,8\] in the model, got \[8,4,8,8\]"):
        profile(PIXELS, parameters={"max_shapes": "pixels:8x4x8x8"})


def test_sizes_out_of_order() -> None:
    """Shapes whose smallest is above their largest are refused."""
    stated = {"min_shapes": "ids:16x8", "max_shapes": "ids:8x8"}
    with pytest.raises(
        LoadError, match=r"expected min_shapes <= opt_shapes <= max_shapes, got \[16,8\], \[8,8\], \[8,8\]"
    ):
        profile(IDS, parameters=stated)
