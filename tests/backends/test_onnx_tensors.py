"""ONNX models whose tensors the protocol lacks, and what their shapes promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.models import onnx_model

from backends.base import InvalidInput, LoadError

value = helper.make_tensor_value_info
ROW = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2])
CAST = helper.make_node("Cast", ["x"], ["odd"], to=TensorProto.FLOAT8E4M3FN)
ODD = {
    "tensor(float8e4m3fn)": (CAST, helper.make_tensor_type_proto(TensorProto.FLOAT8E4M3FN, ["n", 2])),
    "optional(tensor(float))": (helper.make_node("Optional", ["x"], ["odd"]), helper.make_optional_type_proto(ROW)),
    "seq(tensor(float))": (
        helper.make_node("SequenceConstruct", ["x"], ["odd"]),
        helper.make_sequence_type_proto(ROW),
    ),
}


def with_odd_output(kind: str, *others: str) -> bytes:
    """A model with an output `odd` that cannot be sent, beside copies of its input."""
    node, element = ODD[kind]
    nodes = [node, *(helper.make_node("Identity", ["x"], [name]) for name in others)]
    outputs = [helper.make_value_info("odd", element), *(value(name, TensorProto.FLOAT, ["n", 2]) for name in others)]
    return onnx_model(nodes, [value("x", TensorProto.FLOAT, ["n", 2])], outputs, opset=19)


@pytest.mark.parametrize("kind", ODD)
def test_outputs_that_the_protocol_lacks(kind: str, load: Any, declare: Any) -> None:
    """A model with no output that can be sent, or declared to send one that cannot, is refused, naming the output."""
    row = ("float32", (-1, 2))
    for file, declared in (
        (with_odd_output(kind), declare({}, {})),
        (with_odd_output(kind, "y"), declare({"x": row}, {"y": row, "odd": row})),
    ):
        with pytest.raises(LoadError) as caught:
            load("model.onnx", file, declared=declared)
        assert str(caught.value) == f"tensor 'odd' has type {kind}, which the protocol cannot carry"


@pytest.mark.parametrize("kind", ODD)
def test_outputs_beside_one_that_the_protocol_lacks(
    kind: str, load: Any, execute: Any, declare: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A classifier is served without the output that cannot be sent; a warning names it unless others are declared."""
    model = load("model.onnx", with_odd_output(kind, "y", "z"))
    assert list(execute(model, x=np.ones((1, 2), np.float32))) == ["y", "z"]
    (record,) = caplog.records
    assert record.getMessage() == f"model m/1: the protocol cannot carry output 'odd' ({kind}): left out"
    caplog.clear()
    row = ("float32", (-1, 2))
    load("model.onnx", with_odd_output(kind, "y"), declared=declare({"x": row}, {"y": row}))
    assert not caplog.records


@pytest.mark.parametrize(("names", "expected"), [(["z"], ["z"]), (["z", "y"], ["y", "z"]), (["no"], ["y", "z"])])
def test_declared_outputs(names: list[str], expected: list[str], load: Any, execute: Any, declare: Any) -> None:
    """Of a model with several outputs those are computed that are declared; a wrong name is left to the gateway."""
    row = ("float32", (-1, 2))
    declared = declare({"x": row}, dict.fromkeys(names, row))
    model = load("model.onnx", with_odd_output("seq(tensor(float))", "y", "z"), declared=declared)
    assert [spec.name for spec in model.signature.outputs] == expected
    assert list(execute(model, x=np.ones((1, 2), np.float32))) == expected


def test_inputs_that_the_protocol_lacks(load: Any) -> None:
    """A model with an input that nobody can send is refused when it is loaded, naming the input."""
    given = helper.make_value_info("odd", ODD["seq(tensor(float))"][1])
    node = helper.make_node("ConcatFromSequence", ["odd"], ["y"], axis=0)
    file = onnx_model([node], [given], [value("y", TensorProto.FLOAT, ["n", 2])])
    with pytest.raises(LoadError, match=r"^tensor 'odd' has type seq\(tensor\(float\)\), which the protocol cannot"):
        load("model.onnx", file)


def weighting(*shapes: list[str | int]) -> bytes:
    """A model that multiplies `ids` by `w`."""
    inputs = [value(name, TensorProto.FLOAT, shape) for name, shape in zip(("ids", "w"), shapes, strict=True)]
    node = helper.make_node("Mul", ["ids", "w"], ["y"])
    return onnx_model([node], inputs, [value("y", TensorProto.FLOAT, ["N", "A", "B"])])


def test_sizes_that_have_to_agree(load: Any, execute: Any) -> None:
    """A caller whose inputs differ in a size that the model calls by one name is told which and where."""
    model = load("model.onnx", weighting(["N", "S", 1], ["N", "S", "T"]))
    ids, w = np.ones((1, 2, 1), np.float32), np.ones((1, 3, 1), np.float32)
    assert execute(model, ids=ids, w=ids)["y"].shape == (1, 2, 1)
    with pytest.raises(InvalidInput) as caught:
        execute(model, ids=ids, w=w)
    assert str(caught.value) == (
        "input 'w': dimension 1 is 3, expected 2 as in dimension 1 of input 'ids' (both are 'S')"
    )
    with pytest.raises(InvalidInput, match=r"^input 'w' cannot be left out"):
        execute(model, ids=ids)
