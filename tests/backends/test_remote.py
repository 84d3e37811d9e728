"""Backend `remote`, as its model's owner sees it; what callers see is tested with servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.calls import eventually
from support.certificates import make_certificate
from support.contract import Case, Contract
from support.fake_inference import FakeInference, serving_fake
from support.models import RepositoryBuilder
from support.server import free_port, serving

from backends.base import LoadError, NotReachable
from tensorgate_client.wire import inference_pb2 as pb

DOUBLE = """
class Model:
    inputs, outputs = [("x", "float32", (-1, 4))], [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        return {"y": inputs["x"] * 2}
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway that has the contract's model."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("elsewhere"))
    repository.add("double", {"model.py": DOUBLE}, "max_batch_size: 16")
    with serving(repository.root) as gateway:
        yield gateway.address


@pytest.fixture
def case(elsewhere: str) -> Case:
    """The contract's model, which a second gateway runs."""
    return Case("remote", "", lambda _: None, 16, parameters={"urls": elsewhere, "model": "double"})


class TestContract(Contract):
    """It holds to what every backend does."""


@pytest.fixture
def fake() -> FakeInference:
    """A server that does as it is told."""
    return FakeInference()


def load_remote(load: Any, **parameters: str) -> Any:
    """A model of these parameters."""
    return load("nothing", "", parameters, backend="remote")


def test_a_server_without_the_extension_model_configuration(load: Any, execute: Any, fake: FakeInference) -> None:
    """A model of a server that knows only the protocol itself batches if all of its first dimensions are open."""
    with serving_fake(fake) as address:
        model = load_remote(load, urls=address)
        assert model.signature.max_batch_size == -1
        assert execute(model, x=np.ones((3, 2), np.float32))["y"].tolist() == [[2, 2]] * 3
        fake.outputs[0].shape[0] = 1
        assert load_remote(load, urls=address).signature.max_batch_size == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter 'urls': expected servers as 'host-a:8001, host-b:8001', got none"),
        ({"urls": "host-a:8001, http://b:8000"}, "got 'http://b:8000'"),
        ({"urls": "host-a"}, "got 'host-a'"),
        ({"urls": "a:70000"}, "got 'a:70000'"),
        ({"urls": "a:1", "timeout_s": "soon"}, "parameter 'timeout_s': expected seconds above 0, as '60', got 'soon'"),
        ({"urls": "a:1", "idempotent": "maybe"}, "parameter 'idempotent': expected one of true, .*, got 'maybe'"),
        ({"urls": "a:1", "tls_ca": "ca.pem"}, "parameter 'tls_ca' is for encrypted connections: add 'tls'"),
        ({"urls": "a:1", "token_file": "token"}, "parameter 'token_file' is for encrypted connections: add 'tls'"),
        ({"urls": "a:1", "tls": "true", "tls_ca": "no.pem"}, "parameter 'tls_ca': no.pem: No such file"),
        ({"urls": "a:1", "tls": "true", "tls_key": "1/nothing"}, "parameters of 'tls': .*belong together"),
        ({"urls": "a:1", "tls": "true", "tls_ca": "1/nothing"}, "parameters of 'tls': .*expected PEM"),
    ],
)
def test_mistaken_parameters(load: Any, parameters: dict[str, str], message: str) -> None:
    """Whoever misspells a parameter reads which one it is, what came and what was expected."""
    with pytest.raises(LoadError, match=message):
        load_remote(load, **parameters)


def test_a_misspelt_parameter(load: Any, fake: FakeInference, caplog: pytest.LogCaptureFixture) -> None:
    """The owner of a misspelt parameter finds it in the log, beside those there are; the model is served."""
    with serving_fake(fake) as address:
        load_remote(load, urls=address, timeout="5")
    assert "unknown parameter 'timeout' is ignored; known: urls, model, version, timeout_s, idempotent" in caplog.text


def test_servers_that_cannot_be_used(load: Any, fake: FakeInference) -> None:
    """If no server can be used, the model's owner reads of each which it was and why."""
    nobody = f"127.0.0.1:{free_port()}"
    fake.ready = False
    with serving_fake(fake) as address, pytest.raises(NotReachable) as caught:
        load_remote(load, urls=f"{nobody},{address}")
    text = str(caught.value)
    assert text.startswith(f"none of its servers can be used: {nobody}: UNAVAILABLE: ")
    assert "Connection refused" in text
    assert text.endswith(f"; {address}: the server is not ready")


@pytest.mark.parametrize("datatype", ["FP8", ""])
def test_a_datatype_that_nobody_knows(load: Any, fake: FakeInference, datatype: str) -> None:
    """A model with a tensor that the protocol cannot carry is refused, with the tensor's name."""
    fake.inputs = [pb.ModelMetadataResponse.TensorMetadata(name="x", datatype=datatype, shape=[-1, 2])]
    with serving_fake(fake) as address, pytest.raises(LoadError, match=f"'x' is {datatype}, which is no datatype"):
        load_remote(load, urls=address)


def test_a_server_whose_model_differs(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server that has another model under the name gets nothing to do, and the log says how it differs."""
    first, second = FakeInference(), FakeInference()
    second.outputs = [pb.ModelMetadataResponse.TensorMetadata(name="y", datatype="FP32", shape=[-1, 3])]
    with serving_fake(first) as one, serving_fake(second) as other:
        model = load_remote(load, urls=f"{one},{other}")
        instance = model.instance()
        for _ in range(4):
            instance.execute({"x": np.ones((1, 2), np.float32)})
        assert sorted(server.healthy for server in model.servers) == [False, True]
        assert sorted(server.calls for server in model.servers) == [0, 4]
        eventually(lambda: "is not used: its model differs from the others'" in caplog.text)


def test_a_large_batch_arrives_whole(load: Any, execute: Any, fake: FakeInference) -> None:
    """Tensors of some megabytes go there and back unharmed."""
    array = np.random.default_rng(0).normal(size=(1 << 19, 2)).astype(np.float32)
    with serving_fake(fake) as address:
        np.testing.assert_array_equal(execute(load_remote(load, urls=address), x=array)["y"], 2 * array)


def test_an_encrypted_connection_with_a_token(load: Any, execute: Any, fake: FakeInference, tmp_path: Path) -> None:
    """Where the owner says so, servers are asked over TLS, with the token that is in its file at that time."""
    chain = make_certificate(tmp_path, "server")
    key = chain.with_suffix(".key").read_bytes()
    token = tmp_path / "token"
    token.touch()
    with serving_fake(fake, grpc.ssl_server_credentials([(key, chain.read_bytes())])) as address:
        model = load_remote(load, urls=address, tls="true", tls_ca=str(chain), token_file=str(token))
        for text in ("first", "second"):
            token.write_text(f"{text}\n")
            execute(model, x=np.ones((1, 2), np.float32))
            assert fake.metadata["authorization"] == f"Bearer {text}"
