"""LiteRT models: signatures, sizes of batch, datatypes, and files that cannot be served."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.tflite import Code, Graph, Operator, Tensor, Type, doubled, schema, tflite_model

from backends.base import UNBOUNDED, InvalidInput, LoadError

ADD = schema.AddOptionsT()


def copied(kind: int, rows: int = -1, *, scale: float = 0) -> Graph:
    """A copy of x, of some datatype, by a reshape to the shape it has."""
    return Graph(
        [Tensor("x", (rows, 2), kind, scale=scale)],
        [Tensor("y", (rows, 2), kind, scale=scale)],
        [Operator(Code.RESHAPE, ["x", "shape"], ["y"])],
        [Tensor("shape", (2,), Type.INT32, np.array([rows, 2], np.int32))],
    )


def weighed(rows: int, width: int, signature: str = "") -> Graph:
    """A product with a matrix of 3 by 4: three numbers for each row of four."""
    weights = [
        Tensor("weights", (3, 4), values=np.arange(12, dtype=np.float32).reshape(3, 4)),
        Tensor("bias", (3,), values=np.zeros(3, np.float32)),
    ]
    product = Operator(
        Code.FULLY_CONNECTED, ["x", "weights", "bias"], ["y"], schema.FullyConnectedOptionsT(keepNumDims=True)
    )
    return Graph([Tensor("x", (rows, width))], [Tensor("y", (rows, 3))], [product], weights, signature)


def added(rows: int) -> Graph:
    """A sum of x and a constant of two rows, whatever it says of its batch."""
    constant = Tensor("ones", (2, 4), values=np.ones((2, 4), np.float32))
    return Graph(
        [Tensor("x", (rows, 4))], [Tensor("y", (rows, 4))], [Operator(Code.ADD, ["x", "ones"], ["y"], ADD)], [constant]
    )


def refusal(load: Any, *graphs: Graph, **parameters: str) -> str:
    """Why a file is not loaded; its first instance may be what finds out."""
    with pytest.raises(LoadError) as caught:
        load("model.tflite", tflite_model(*graphs), parameters).instance()
    return str(caught.value)


def test_signatures_are_the_sizes_of_its_batches(load: Any, execute: Any) -> None:
    """A file with a signature for each of three sizes is one model that takes batches of these sizes, and no others."""
    model = load("model.tflite", tflite_model(*(doubled(rows, f"b{rows}") for rows in (8, 1, 32))))
    assert (model.signature.max_batch_size, model.signature.batch_sizes) == (32, (1, 8, 32))
    for rows in (1, 8, 32):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(execute(model, x=x)["y"], x * 2, strict=True)
    with pytest.raises(InvalidInput, match=r"^the model executes 1, 8, 32 rows at a time, got 3$"):
        execute(model, x=np.ones((3, 4), np.float32))


def test_signatures_share_their_weights(load: Any, execute: Any) -> None:
    """Weights that three signatures use are in the file, and in the server's memory, once."""
    small, large = (tflite_model(*(weighed(rows, 4, f"b{rows}") for rows in sizes)) for sizes in ((1,), (1, 2, 3)))
    assert len(large) < len(small) * 3
    model = load("model.tflite", large)
    assert model.memory == {"CPU:0": len(large)}
    for rows in (1, 2, 3):
        assert execute(model, x=np.ones((rows, 4), np.float32))["y"].tolist() == [[6, 22, 38]] * rows


def test_one_fixed_size(load: Any, execute: Any) -> None:
    """A file for exactly three rows, with or without a signature, is a model of that shape, which does not batch."""
    for graph in (doubled(3), doubled(3, "serving_default")):
        model = load("model.tflite", tflite_model(graph))
        assert model.signature.inputs[0].shape == model.signature.outputs[0].shape == (3, 4)
        assert model.signature.max_batch_size == 0
        assert execute(model, x=np.ones((3, 4), np.float32))["y"].tolist() == [[2.0] * 4] * 3


@pytest.mark.parametrize("signature", ["", "serving_default"])
def test_open_batch(signature: str, load: Any, execute: Any) -> None:
    """A file that says its batch is open, and keeps to it, takes any number of rows."""
    model = load("model.tflite", tflite_model(doubled(-1, signature)))
    assert (model.signature.max_batch_size, model.signature.batch_sizes) == (UNBOUNDED, ())
    for rows in (5, 1, 7):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(execute(model, x=x)["y"], x * 2, strict=True)


def test_batch_that_is_not_open(load: Any) -> None:
    """A file that says its batch is open, and answers one row with two, is refused when it is loaded."""
    assert refusal(load, added(-1)) == (
        "model.tflite: output 'y' is stated as [-1, 4], but for a batch of 1 it is [2, 4]: convert the model with "
        "a signature for each size of batch"
    )


def test_shapes_that_the_file_does_not_state(load: Any, execute: Any) -> None:
    """An output whose shape the file leaves out is served with the shape that it has."""
    graph = Graph([Tensor("x", (2, 4))], [Tensor("y", ())], [Operator(Code.ADD, ["x", "x"], ["y"], ADD)])
    model = load("model.tflite", tflite_model(graph))
    assert model.signature.outputs[0].shape == (2, 4)
    assert execute(model, x=np.ones((2, 4), np.float32))["y"].shape == (2, 4)


def test_sizes_that_the_model_cannot_do(load: Any) -> None:
    """A caller whose size does not go with a model that leaves it open is told so; the next one is answered."""
    instance = load("model.tflite", tflite_model(weighed(-1, -1))).instance()
    for _ in range(3):
        with pytest.raises(InvalidInput, match=re.escape("inputs of these sizes: 'x' [2, 5]")) as caught:
            instance.execute({"x": np.ones((2, 5), np.float32)})
        assert "XNN" not in str(caught.value)
        assert instance.execute({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def test_signatures_that_are_not_one_model(load: Any, execute: Any) -> None:
    """Of a file with several functions the owner reads what they are, and serves the one that config.pbtxt names."""
    file = doubled(1, "encode"), weighed(1, 4, "decode"), weighed(8, 4, "decode8")
    assert refusal(load, *file) == (
        "model.tflite: the signatures are not one model for several sizes of batch: 'encode' x float32 [1, 4] -> y "
        "float32 [1, 4]; 'decode' x float32 [1, 4] -> y float32 [1, 3]; 'decode8' x float32 [8, 4] -> y float32 [8, "
        "3]; name the one to serve, or those that belong together, in the parameter 'signatures'"
    )
    assert refusal(load, doubled(1, "a"), doubled(1, "b")).startswith("model.tflite: the signatures are not one model")
    model = load("model.tflite", tflite_model(*file), {"signatures": "encode"})
    assert execute(model, x=np.ones((1, 4), np.float32))["y"].tolist() == [[2] * 4]
    model = load("model.tflite", tflite_model(*file), {"signatures": "decode, decode8"})
    assert model.signature.batch_sizes == (1, 8)
    assert refusal(load, *file, signatures="encode code") == (
        "model.tflite: parameter 'signatures': the file has encode, decode, decode8; got 'code'"
    )
    assert refusal(load, doubled(1), signatures="encode").endswith("the file has no signatures; got 'encode'")


DATATYPES = {
    Type.BOOL: np.bool_,
    Type.UINT8: np.uint8,
    Type.UINT16: np.uint16,
    Type.UINT32: np.uint32,
    Type.UINT64: np.uint64,
    Type.INT8: np.int8,
    Type.INT16: np.int16,
    Type.INT32: np.int32,
    Type.INT64: np.int64,
    Type.FLOAT16: np.float16,
    Type.FLOAT32: np.float32,
    Type.FLOAT64: np.float64,
    Type.BFLOAT16: ml_dtypes.bfloat16,
}


@pytest.mark.parametrize("kind", DATATYPES, ids=[np.dtype(dtype).name for dtype in DATATYPES.values()])
def test_datatypes(kind: int, load: Any, execute: Any) -> None:
    """Every datatype of the protocol that the format has goes in and out as it is."""
    model = load("model.tflite", tflite_model(copied(kind)))
    x = np.array([[0, 1], [2, 3], [5, 100]]).astype(DATATYPES[kind])
    np.testing.assert_array_equal(execute(model, x=x)["y"], x, strict=True)


def test_bytes(load: Any, execute: Any) -> None:
    """BYTES go in and out as they are, zeros and what is no UTF-8 included."""
    model = load("model.tflite", tflite_model(copied(Type.STRING)))
    x = np.array([[b"", b"a\0b\0"], ["größe".encode(), b"\xff"]], object)
    assert execute(model, x=x)["y"].tolist() == x.tolist()


def test_quantised_tensors(load: Any, execute: Any) -> None:
    """A quantised input or output is INT8 to the client, in the file's own scale: nothing is converted unasked."""
    model = load("model.tflite", tflite_model(copied(Type.INT8, 2, scale=0.5)))
    x = np.array([[-128, 127], [0, 1]], np.int8)
    np.testing.assert_array_equal(execute(model, x=x)["y"], x, strict=True)


def test_datatypes_that_the_protocol_lacks(load: Any) -> None:
    """A model of complex numbers is refused, naming the tensor."""
    assert refusal(load, copied(Type.COMPLEX64)) == (
        "model.tflite: tensor 'x' has type complex64, which the protocol cannot carry"
    )


@pytest.mark.parametrize(
    ("custom", "reason"),
    [("FlexErf", "Select TensorFlow op(s), included in the given model"), ("Mine", "unresolved custom op: Mine.")],
)
def test_operations_that_the_runtime_lacks(custom: str, reason: str, load: Any) -> None:
    """A model that needs TensorFlow's own operations, or somebody's own, is refused with the operation's name."""
    graph = Graph(
        [Tensor("x", (1, 4))], [Tensor("y", (1, 4))], [Operator(Code.CUSTOM, ["x"], ["y"], custom=custom)], (), "s"
    )
    text = refusal(load, graph)
    assert text.startswith("model.tflite: signature 's' does not execute: ")
    assert reason in text
    assert f"({custom})" in text


def test_parameters(load: Any) -> None:
    """The owner who writes a parameter wrong reads which one, and what is expected."""
    for parameters, reason in (
        ({"intra_op_thread_count": "two"}, "parameter 'intra_op_thread_count': expected a whole number of at least 0"),
        ({"inline": "perhaps"}, "parameter 'inline': expected one of true, false, 1, 0, on, off"),
    ):
        assert reason in refusal(load, doubled(1), **parameters)
    for threads in ("0", "2"):
        assert load(
            "model.tflite", tflite_model(doubled(1)), {"intra_op_thread_count": threads, "inline": "true"}
        ).inline


def test_file_that_is_written_over(load: Any) -> None:
    """A server that runs a file goes on with it, and makes further instances of it, when somebody writes over it."""
    file: Path = load.file("model.tflite", tflite_model(weighed(1, 4)))
    model = load.reload(file)
    first = model.instance()
    file.write_bytes(b"")
    for instance in (first, model.instance()):
        assert instance.execute({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[6, 22, 38]]
