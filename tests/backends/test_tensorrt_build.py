"""Engines built from ONNX, which TensorRT-RTX does without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.engines import ABOUT, perceptron, save_efficientnet, source
from support.models import onnx_identity, onnx_model, save_onnx

from backends.base import LoadError
from gateway.demo import digits

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")

from backends import tensorrt_build
from backends.tensorrt_build import Recipe, build
from backends.tensorrt_profile import Sizes

value = helper.make_tensor_value_info


def built(file: Path, rows: int = 0, *, tf32: bool = True, graphs: bool = False, **more: Any) -> bytes:
    """The plan of an engine for a file."""
    return bytes(build(file, Recipe(Sizes.of(source(file, rows, **more)), tf32, graphs), ABOUT))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a model goes."""
    return tmp_path / "model.onnx"


def test_digits(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The CNN of the demo becomes an engine, and the log says how long that took."""
    caplog.set_level(logging.INFO)
    save_onnx(digits.Network().eval(), file, torch.zeros(2, 1, 8, 8), ("pixels", "logits"))
    plan = built(file, 64)
    weights = sum(parameter.numel() for parameter in digits.Network().parameters()) * 4
    assert len(plan) > weights
    assert any(message.startswith("model m/1: engine built in ") for message in caplog.messages)


def test_efficientnet(file: Path) -> None:
    """A real image classifier becomes an engine that holds its weights."""
    save_efficientnet(file)
    plan = built(file, 8, graphs=True, preferred_batch_sizes=(1, 8))
    assert len(plan) > 4_500_000 * 4


def test_progress(file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits for a large engine sees in the log how far it is."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tensorrt_build, "_TELL_EVERY_S", 0.0)
    file.write_bytes(perceptron())
    built(file)
    steps = [message for message in caplog.messages if message.startswith("model m/1: building, 0 s: ")]
    assert any(message.endswith(" 2 of 6") for message in steps)


def test_sizes_are_built_in(file: Path) -> None:
    """An engine for larger batches is another engine: the sizes do reach the builder."""
    file.write_bytes(perceptron())
    assert built(file, 4) != built(file, 8)
    assert built(file, 8) == built(file, 8)


def test_tf32(file: Path) -> None:
    """With tf32 off the engine is another one."""
    file.write_bytes(perceptron())
    assert built(file, 8) != built(file, 8, tf32=False)


def test_fixed_batch(file: Path) -> None:
    """A model for batches of one size needs no word about sizes."""
    file.write_bytes(perceptron(rows=8))
    assert built(file)


def test_precision_of_the_file(file: Path) -> None:
    """A model in half precision becomes an engine in half precision: its weights take half the memory."""
    file.write_bytes(perceptron(element=TensorProto.FLOAT16, hidden=20_000))
    half = len(built(file))
    file.write_bytes(perceptron(hidden=20_000))
    assert half < 0.6 * len(built(file))


def test_weights_in_a_file_beside(file: Path) -> None:
    """Weights that an export has put beside the model are found."""
    model = onnx.load_model_from_string(perceptron(hidden=20_000))
    onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=0)
    assert len(built(file)) > 20_000 * 20 * 4
    (file.parent / "weights").unlink()
    with pytest.raises(LoadError, match=r"^model\.onnx: tensorrt_rtx \S+ does not take it: .*weights"):
        built(file)


def _node(kind: str, element: int = TensorProto.FLOAT) -> bytes:
    return onnx_model([helper.make_node(kind, ["x"], ["y"])], [value("x", element, [4])], [value("y", element, [4])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(no model", "does not take it: .*Failed to parse the ONNX model"),
        (b"", "fails to build an engine: .*must have at least one output"),
        (perceptron()[:400], "does not take it: "),
        (_node("Bogus"), r"does not take it: node '.*' \(Bogus\): "),
        (onnx_identity("BYTES"), "does not take it: .*data type|does not take it: .*date type"),
    ],
    ids=["garbage", "empty", "truncated", "unknown operator", "strings"],
)
def test_files_that_make_no_engine(content: bytes, message: str, file: Path) -> None:
    """The owner of a file that TensorRT cannot use reads in a line which, why, and for which version."""
    file.write_bytes(content)
    with pytest.raises(LoadError, match=rf"^model\.onnx: tensorrt_rtx \S+ {message}") as caught:
        built(file)
    assert "\n" not in str(caught.value)


def test_sizes_that_depend_on_the_data(file: Path) -> None:
    """A model whose outputs are as large as the data make them is refused: TensorRT-RTX knows no such operators."""
    x, y = value("x", TensorProto.FLOAT, ["batch", 4]), value("y", TensorProto.INT64, [2, "found"])
    file.write_bytes(onnx_model([helper.make_node("NonZero", ["x"], ["y"])], [x], [y]))
    with pytest.raises(LoadError, match=r"^model\.onnx: tensorrt_rtx \S+ does not take it: node .*NonZero"):
        built(file)


def test_failures_print_nothing(
    file: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What the library says of a bad file stands in the model's error, and nowhere else."""
    file.write_bytes(_node("Bogus"))
    with pytest.raises(LoadError):
        built(file)
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
