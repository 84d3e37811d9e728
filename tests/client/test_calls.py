"""What the client does against a real server; both clients are held to all of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from grpc import StatusCode
from support.calls import ECHO, Gate, eventually, refusal
from support.calls import request as wire_request
from support.concurrent import statistics
from support.models import RepositoryBuilder
from support.server import Gateway, free_port, launch, serving
from support.zoo import add_identities, sample

from tensorgate_client import InferenceClient, InferenceError
from tensorgate_client.tensors import DTYPES

DIGITS = """
import numpy as np

class Model:
    inputs = [("pixels", "float32", (-1, 1, 8, 8))]
    outputs = [("logits", "float32", (-1, 10)), ("class", "int64", (-1, 1))]

    def execute(self, inputs):
        logits = inputs["pixels"].reshape(-1, 64)[:, :10]
        return {"logits": logits, "class": logits.argmax(1, keepdims=True)}
"""

PAIR = """
class Model:
    inputs = [("a", "float32", (-1, 1)), ("b", "float32", (-1, 1))]
    outputs = [("y", "float32", (-1, 1))]

    def execute(self, inputs):
        return {"y": inputs["a"] + inputs["b"]}
"""

PIXELS = np.arange(128, dtype=np.float32).reshape(2, 1, 8, 8)
ONE = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves `digits`, `pair` and an identity for every datatype."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("calls") / "models")
    builder.add("digits", {"model.py": DIGITS})
    builder.add("pair", {"model.py": PAIR})
    add_identities(builder)
    with serving(builder.root) as running:
        yield running


@pytest.fixture
def client(connect, gateway):
    """A client of it."""
    return connect(gateway.address)


def fault(call: Callable[[], object]) -> InferenceError:
    """What `call` raises."""
    with pytest.raises(InferenceError) as caught:
        call()
    return caught.value


def test_outputs_come_by_name(client):
    """A model's outputs are arrays by name, all of them or those asked for."""
    outputs = client.infer("digits", {"pixels": PIXELS}, deadline_ms=60_000)
    assert outputs["logits"].tolist() == PIXELS.reshape(2, 64)[:, :10].tolist()
    assert outputs["class"].tolist() == [[9], [9]]
    assert list(client.infer("digits", {"pixels": PIXELS}, version="1", outputs=["class"])) == ["class"]


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_comes_back(client, datatype):
    """Arrays of each of the protocol's datatypes arrive and return to the bit."""
    sent = sample(datatype)
    received = client.infer(f"identity_{datatype}", {"x": sent})["y"]
    assert received.dtype == sent.dtype
    assert received.tolist() == sent.tolist() if datatype == "BYTES" else received.tobytes() == sent.tobytes()


def test_what_numpy_takes_for_an_array_is_one(client):
    """Nested lists need not be converted first."""
    assert client.infer("identity_BYTES", {"x": [["a", "b", "c", "é"]]})["y"].tolist() == [
        [b"a", b"b", b"c", b"\xc3\xa9"]
    ]


WRONG = {
    "datatype and shape": (
        {"pixels": np.zeros((4, 64))},
        {},
        "input 'pixels' of model 'digits': expected FP32 [-1,1,8,8], got FP64 [4,64]",
    ),
    "datatype": (
        {"pixels": PIXELS.astype(np.float16)},
        {},
        "input 'pixels' of model 'digits': expected FP32 [-1,1,8,8], got FP16 [2,1,8,8]",
    ),
    "size": (
        {"pixels": PIXELS[..., :7]},
        {},
        "input 'pixels' of model 'digits': expected FP32 [-1,1,8,8], got FP32 [2,1,8,7]",
    ),
    "name": ({"pixel": PIXELS}, {}, "unknown input 'pixel' of model 'digits': expected 'pixels'"),
    "output": (
        {"pixels": PIXELS},
        {"outputs": ["labels"]},
        "unknown output 'labels' of model 'digits': expected 'logits', 'class'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_here_in_the_servers_words(client, gateway, case):
    """A wrong name, datatype or shape is refused before anything is sent, with the message that the server has."""
    inputs, options, message = WRONG[case]
    sent = wire_request("digits", inputs)
    for name in options.get("outputs", ()):
        sent.outputs.add(name=name)
    assert refusal(lambda: gateway.stub.ModelInfer(sent)) == (StatusCode.INVALID_ARGUMENT, message)
    refusals = statistics(gateway, "digits").inference_stats.fail.count
    error = fault(lambda: client.infer("digits", inputs, **options))
    assert (error.code, error.message) == (StatusCode.INVALID_ARGUMENT, message)
    assert str(error) == f"INVALID_ARGUMENT: {message}"
    assert statistics(gateway, "digits").inference_stats.fail.count == refusals


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(1, "M8[s]"), "input 'pixels' of model 'digits': dtype datetime64[s] has no datatype in the protocol"),
        (np.array([1], object), "input 'pixels' of model 'digits': BYTES elements are bytes or str, got int"),
    ],
)
def test_what_is_no_tensor_is_refused(client, array, message):
    """An array that the protocol has no form for is refused with the input's name."""
    error = fault(lambda: client.infer("digits", {"pixels": array}))
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert error.message.startswith(message)


def test_an_input_left_out_is_told(client):
    """The message names the missing input and what it should be."""
    error = fault(lambda: client.infer("pair", {"a": ONE}))
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert error.message == "model 'pair' needs input 'b' (FP32 [-1,1]); got 'a'"


def test_a_model_that_is_not_there(client):
    """Calling a model that the server does not have says so, with the name."""
    error = fault(lambda: client.infer("digit", {"pixels": PIXELS}))
    assert error.code is StatusCode.NOT_FOUND
    assert error.message == "Request for unknown model: 'digit' is not found"


def test_a_model_is_described(client):
    """Metadata tells names, datatypes and shapes; the index tells what is served; statistics count."""
    described = client.metadata("digits")
    assert [(t.name, t.datatype, list(t.shape)) for t in described.inputs] == [("pixels", "FP32", [-1, 1, 8, 8])]
    assert [t.name for t in described.outputs] == ["logits", "class"]
    before = client.statistics("digits")[0].inference_count
    client.infer("digits", {"pixels": PIXELS})
    assert client.statistics("digits", version="1")[0].inference_count == before + 2
    assert {row.name for row in client.index()} == {row.name for row in client.statistics()}
    assert [(row.name, row.version, row.state) for row in client.index(ready=True) if row.name == "pair"] == [
        ("pair", "1", "READY")
    ]


def test_messages_may_be_large(client):
    """A request and its answer may be larger than the 4 MB at which gRPC stops by itself."""
    sent = np.random.default_rng(0).normal(size=(500_000, 4)).astype(np.float32)
    with pytest.raises(InferenceError, match="expected 1 to 32 rows"):
        client.infer("identity_FP32", {"x": sent})
    texts = np.full((1, 4), "x" * 2_000_000)
    assert client.infer("identity_BYTES", {"x": texts})["y"].tolist() == [[b"x" * 2_000_000] * 4]


def test_questions_about_readiness(client):
    """The server and its models say whether they are ready; an unknown model is not."""
    assert client.is_live()
    assert client.is_ready()
    assert client.model_ready("digits")
    assert not client.model_ready("digits", version="2")
    assert not client.model_ready("digit")


def test_a_server_that_is_not_there(connect):
    """Probes of a server that cannot be reached say no; a call says which address it tried."""
    client = connect("127.0.0.1:1")
    assert not client.is_live()
    assert not client.is_ready()
    assert not client.model_ready("digits")
    error = fault(lambda: client.infer("digits", {"pixels": PIXELS}))
    assert error.code is StatusCode.UNAVAILABLE
    assert error.message.startswith("127.0.0.1:1: ")


def test_a_killed_server_is_started_again(repository):
    """Who asks once in a while whether the server is ready is told within seconds that it is back."""
    where = ("--model-repository", repository.root, "--port", str(free_port()))
    with launch(*where) as server:
        client = InferenceClient(server.wait_until_ready())
        assert client.is_ready()
    with client:
        for _ in range(3):
            assert not client.is_ready()
            time.sleep(1)
        with launch(*where) as server:
            server.wait_until_ready()
            eventually(lambda: client.is_ready() or time.sleep(1), timeout=9)


def test_a_deadline_passes(connect, repository, tmp_path):
    """A caller who waits 300 ms for a model that is busy longer is told so, by the call's deadline or the client's."""
    gate = Gate(tmp_path / "gate")
    repository.add("held", gate.files, gate.config)
    with serving(repository.root) as gateway:
        patient, hasty = connect(gateway.address), connect(gateway.address, deadline_ms=300)
        x = np.ones(1, np.float32)
        for call in (lambda: patient.infer("held", {"x": x}, deadline_ms=300), lambda: hasty.infer("held", {"x": x})):
            assert fault(call).code is StatusCode.DEADLINE_EXCEEDED
        gate.open()
        assert hasty.infer("held", {"x": x}, deadline_ms=60_000)["y"].tolist() == [1]


def echo_of(datatype: str) -> dict[str, object]:
    """A configuration of an echo model of pairs."""
    return {
        "backend": "echo",
        "maxBatchSize": 8,
        "input": [{"name": "x", "dataType": f"TYPE_{datatype}", "dims": [2]}],
        "output": [{"name": "y", "dataType": f"TYPE_{datatype}", "dims": [2]}],
    }


def test_models_come_change_and_go(connect, repository):
    """A client loads, changes and unloads models, and goes by what they are now."""
    repository.add("m", config=ECHO)
    single, double = np.ones((1, 2), np.float32), np.ones((1, 2), np.float64)
    with serving(repository.root, "--model-control", "explicit") as gateway:
        client, other = connect(gateway.address), connect(gateway.address)
        assert not client.model_ready("m")
        client.load("m", echo_of("FP32"))
        for caller in (client, other):
            assert caller.infer("m", {"x": single})["y"].tolist() == [[1, 1]]
        client.load("m", echo_of("FP64"))
        for caller in (client, other):
            assert caller.infer("m", {"x": double})["y"].dtype == np.float64
            assert "expected FP64 [-1,2], got FP32 [1,2]" in fault(lambda c=caller: c.infer("m", {"x": single})).message
        client.load("m")
        client.unload("m")
        eventually(lambda: not client.model_ready("m"))
        assert fault(lambda: other.infer("m", {"x": double})).code is StatusCode.NOT_FOUND
        assert fault(lambda: client.load("n")).code is not StatusCode.OK


def test_loading_may_be_refused(client):
    """A server that does not let models be loaded by RPC says how to change that."""
    for call in (lambda: client.load("digits"), lambda: client.unload("digits")):
        error = fault(call)
        assert error.code is StatusCode.FAILED_PRECONDITION
        assert "--model-control explicit" in error.message


def test_a_traceback_is_short(client):
    """What is printed of an error is ours alone, without gRPC's account of the same status."""
    error = fault(lambda: client.infer("digit", {"pixels": PIXELS}))
    text = "".join(traceback.format_exception(error))
    assert "debug_error_string" not in text
    assert text.endswith("NOT_FOUND: Request for unknown model: 'digit' is not found\n")


def test_config(client):
    """A model's configuration is there, what the server has completed included."""
    config = client.config("digits", version=1)
    assert (config.backend, config.max_batch_size, config.input[0].name) == ("python", 32, "pixels")
    with pytest.raises(InferenceError, match="NOT_FOUND: Request for unknown model: 'nobody'"):
        client.config("nobody")
