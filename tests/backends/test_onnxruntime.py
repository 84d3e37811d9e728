"""ONNX models: what goes in, what comes out, and the parameters in between."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.models import onnx_identity, onnx_model

from backends.base import InvalidInput, LoadError, Model
from tensorgate_client.tensors import DTYPES

value = helper.make_tensor_value_info


def samples(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a datatype that a conversion on the way would change, read-only."""
    dtype = DTYPES[datatype]
    count = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = [b"", "Füße".encode(), b"a\0b", "日本".encode()][:count]
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.array([limits.min, limits.max, 1, 0][:count], dtype)
    else:
        array = np.array([0.0, 1.0, -0.1, 3e-5][:count]).astype(dtype)
    array = array.reshape(shape)
    array.setflags(write=False)
    return array


def bits(array: np.ndarray) -> Any:
    """What has to be the same to the last bit."""
    return array.tolist() if array.dtype.hasobject else array.tobytes()


def classifier() -> bytes:
    """Two inputs, two outputs: softmax(pixels @ w + bias), and the index of its greatest value."""
    weights = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["probabilities"]),
        helper.make_node("ArgMax", ["sum"], ["label"], axis=1),
    ]
    inputs = [value("pixels", TensorProto.FLOAT, ["n", 8]), value("bias", TensorProto.FLOAT, ["n", 5])]
    outputs = [value("probabilities", TensorProto.FLOAT, ["n", 5]), value("label", TensorProto.INT64, ["n", 1])]
    return onnx_model(nodes, inputs, outputs, [numpy_helper.from_array(weights, "w")])


@pytest.fixture
def session_options(load: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The options of the session that a model with the given parameters opens."""
    opened: list[ort.SessionOptions] = []

    class Session(ort.InferenceSession):
        def __init__(self, path: Path, options: ort.SessionOptions, **rest: Any) -> None:
            opened.append(options)
            super().__init__(path, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", Session)

    def options(parameters: dict[str, str]) -> ort.SessionOptions:
        load("model.onnx", onnx_identity(), parameters)
        return opened.pop()

    return options


@pytest.mark.parametrize("shape", [("batch", 2), (2, 2), (), (4,), ("a", "b")], ids=str)
@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype(datatype: str, shape: tuple[int | str, ...], load: Any, execute: Any) -> None:
    """Every datatype of the protocol passes through a model unchanged, in every kind of shape."""
    model = load("model.onnx", onnx_identity(datatype, shape))
    open_shape = tuple(-1 if isinstance(size, str) else size for size in shape)
    assert model.signature.inputs == (("x", DTYPES[datatype], open_shape),)
    assert model.signature.max_batch_size == (-1 if open_shape[:1] == (-1,) else 0)
    array = samples(datatype, tuple(2 if isinstance(size, str) else size for size in shape))
    result = execute(model, x=array)["y"]
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert bits(result) == bits(array)


@pytest.mark.parametrize("datatype", DTYPES)
def test_empty_tensors(datatype: str, load: Any, execute: Any) -> None:
    """A tensor without elements is a tensor like any other."""
    array = np.empty((3, 0), DTYPES[datatype])
    result = execute(load("model.onnx", onnx_identity(datatype, ("n", 0))), x=array)["y"]
    assert (result.dtype, result.shape) == (array.dtype, (3, 0))


def test_bytes_have_to_be_utf8(load: Any, execute: Any) -> None:
    """A caller whose BYTES are no UTF-8, which the runtime's strings are, is told which input it is."""
    model = load("model.onnx", onnx_identity("BYTES", ("n", 1)))
    with pytest.raises(InvalidInput, match=r"input 'x': expected BYTES elements in UTF-8: .*0xff"):
        execute(model, x=np.array([[b"\xff"]], object))


def test_equals_the_bare_runtime(load: Any, execute: Any) -> None:
    """Several inputs and outputs come back bit for bit as onnxruntime itself computes them, in the model's order."""
    model = load("model.onnx", classifier())
    random = np.random.default_rng(1)
    feed = {"pixels": random.normal(size=(7, 8)), "bias": random.normal(size=(7, 5))}
    feed = {name: array.astype(np.float32) for name, array in feed.items()}
    expected = ort.InferenceSession(classifier()).run(None, feed)
    outputs = execute(model, **dict(reversed(feed.items())))
    assert [spec.name for spec in model.signature.inputs] == ["pixels", "bias"]
    assert list(outputs) == ["probabilities", "label"]
    for name, array in zip(outputs, expected, strict=True):
        assert (outputs[name].dtype, bits(outputs[name])) == (array.dtype, bits(array))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"execution_providers": "CUDDA, CPU"},
            r"'execution_providers': this onnxruntime offers .*CPU; got 'CUDDA, CPU'$",
        ),
        ({"execution_providers": " "}, r"'execution_providers': this onnxruntime offers .*CPU; got ' '"),
        ({"intra_op_thread_count": "two"}, "'intra_op_thread_count': expected a whole number of at least 0, got 'two'"),
        ({"inter_op_thread_count": "-1"}, "'inter_op_thread_count': expected a whole number of at least 0, got '-1'"),
        ({"execution_mode": "2"}, "'execution_mode': expected one of true, false, 1, 0, on, off, got '2'"),
        ({"enable_mem_arena": "maybe"}, "'enable_mem_arena': expected one of true, false"),
        (
            {"graph_optimization_level": "99"},
            "'graph_optimization_level': expected one of disable, basic, extended, all, got '99'",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, str], message: str, load: Any) -> None:
    """A parameter that makes no sense is refused with what would make sense."""
    with pytest.raises(LoadError, match=f"^parameter {message}"):
        load("model.onnx", onnx_identity(), parameters)


def test_idle_models_leave_the_processor_alone(session_options: Any) -> None:
    """Models that wait for requests do not spin, unless their owner wants that."""
    options = session_options({})
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    options = session_options({"session.intra_op.allow_spinning": "1"})
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_overriding_a_default_is_no_news(load: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A session entry of the owner's writes nothing into the server's log."""
    load("model.onnx", onnx_identity(), {"session.intra_op.allow_spinning": "1"})
    assert capfd.readouterr() == ("", "")


def test_parameters_reach_the_session(session_options: Any) -> None:
    """What config.pbtxt says of threads, order, memory and optimisation is what the runtime does."""
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "graph_optimization_level": "basic",
        "enable_mem_arena": "false",
        "enable_mem_pattern": "0",
        "session.set_denormal_as_zero": "1",
    }
    options = session_options(parameters)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize("providers", ["CPU", "cpu", "CPUExecutionProvider", " CPU ,"])
def test_providers_are_named_freely(providers: str, load: Any, execute: Any) -> None:
    """Providers may be spelled as onnxruntime does or short, in any case."""
    model = load("model.onnx", onnx_identity(), {"execution_providers": providers})
    assert execute(model, x=np.ones((1, 4), np.float32))["y"].tolist() == [[1, 1, 1, 1]]


def heavy(load: Any) -> tuple[Model, np.ndarray]:
    """A model that computes for some tenths of a second on the calling thread."""
    nodes = [helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(12)]
    ends = value("x0", TensorProto.FLOAT, ["n", "n"]), value("x12", TensorProto.FLOAT, ["n", "n"])
    model = load("model.onnx", onnx_model(nodes, ends[:1], ends[1:]), {"intra_op_thread_count": "1"})
    return model, np.eye(1200, dtype=np.float32)


def test_other_threads_go_on_while_a_model_computes(load: Any) -> None:
    """The server answers health checks and other models while a long batch runs."""
    model, batch = heavy(load)
    finished, looked = threading.Event(), threading.Event()

    def work() -> None:
        model.instance().execute({"x0": batch})
        finished.set()
        looked.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    # Were the GIL held, this thread would see the other's processor time jump once, when all is over.
    last, steps = 0.0, 0
    while not finished.is_set():
        now = time.clock_gettime(clock)
        if now - last > 0.01:
            last, steps = now, steps + 1
    looked.set()
    thread.join()
    assert steps > 5


def test_failing_requests_print_nothing(load: Any, execute: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Requests that make a model fail do not fill the server's log with the runtime's own lines."""
    inputs = [value(name, TensorProto.FLOAT, ["n", name]) for name in ("ids", "w")]
    node = helper.make_node("Mul", ["ids", "w"], ["y"])
    model = load("model.onnx", onnx_model([node], inputs, [value("y", TensorProto.FLOAT, ["n", "size"])]))
    with pytest.raises(Exception, match="Attempting to broadcast"):
        execute(model, ids=np.ones((1, 2), np.float32), w=np.ones((1, 3), np.float32))
    assert capfd.readouterr() == ("", "")


def test_bf16_beside_strings(load: Any) -> None:
    """A model that the runtime could load but never run is refused when it is loaded."""
    tensors = [(value(f"{n}{i}", kind, ["n", 2])) for n in "xy" for i, kind in enumerate((TensorProto.BFLOAT16, 8))]
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(2)]
    with pytest.raises(LoadError, match="no BF16 and string tensors in one call"):
        load("model.onnx", onnx_model(nodes, tensors[:2], tensors[2:]))


def test_an_input_that_is_an_output_is_the_gateways_own(load: Any, execute: Any) -> None:
    """A graph that names one of its inputs as an output gives back a copy: the memory is the next caller's."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    tensors = [value(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    model = load("model.onnx", onnx_model(nodes, tensors[:1], tensors))
    x = np.full((2, 3), 7, np.float32)
    outputs = execute(model, x=x)
    x[:] = 0
    assert (outputs["x"] == 7).all()
    assert (outputs["y"] == 7).all()
