"""What happens around a call: retries, encryption, tokens, trace context, closing."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import pickle
import socket
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from support.both_clients import Awaited
from support.calls import eventually
from support.fake_inference import FakeInference, serving_fake

from tensorgate_client import TLS, InferenceClient, InferenceError, aio

X = np.array([[1, 2]], np.float32)
BEARER = "abcd1234"


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.CANCELLED])
def test_a_server_away_for_a_moment_is_asked_again(connect, fake, address, code):
    """A call that finds the server unavailable, or leaving, is repeated until it is answered, five times at most."""
    client = connect(address)
    fake.failures = [code] * 4
    assert client.infer("double", {"x": X})["y"].tolist() == [[2, 4]]
    assert fake.asked.count("ModelInfer") == 5


def test_large_requests_are_asked_again_too(connect, fake, address):
    """A request of many megabytes is repeated like a small one."""
    client = connect(address)
    fake.failures = [StatusCode.UNAVAILABLE]
    large = np.ones((1_000_000, 2), np.float32)
    assert (client.infer("double", {"x": large})["y"] == 2).all()
    assert fake.asked.count("ModelInfer") == 2


@pytest.mark.parametrize(
    "code", [StatusCode.RESOURCE_EXHAUSTED, StatusCode.INTERNAL, StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE]
)
def test_what_is_not_asked_again(connect, fake, address, code):
    """An overloaded server gets no more requests than it was sent; neither does any, by a client that says so."""
    client = connect(address, retry=code is not StatusCode.UNAVAILABLE)
    fake.failures = [code]
    with pytest.raises(InferenceError, match="as told") as caught:
        client.infer("double", {"x": X})
    assert caught.value.code is code
    assert fake.asked.count("ModelInfer") == 1


def test_metadata_is_asked_for_once(connect, fake, address):
    """Calls after the first cost one RPC each."""
    client = connect(address)
    for _ in range(3):
        client.infer("double", {"x": X})
    assert fake.asked == ["ModelMetadata", "ModelInfer", "ModelInfer", "ModelInfer"]


def test_a_refusal_makes_the_client_look_again(connect, fake, address):
    """After the server refused a request as unfit, the client asks what the model takes now."""
    client = connect(address)
    client.infer("double", {"x": X})
    fake.failures = [StatusCode.INVALID_ARGUMENT]
    with pytest.raises(InferenceError, match="as told"):
        client.infer("double", {"x": X})
    client.infer("double", {"x": X})
    assert fake.asked[2:] == ["ModelInfer", "ModelMetadata", "ModelInfer"]


def test_a_server_that_tells_nothing_of_its_models(connect, fake, address):
    """Where a model's metadata has no tensors, as some runtimes answer, requests go out unchecked."""
    del fake.inputs[:]
    assert connect(address).infer("double", {"x": X.astype(np.float64)})["y"].tolist() == [[2, 4]]


def test_the_clients_own_patience(connect, fake, address):
    """When no answer comes in time the message says from where, and how long was waited."""
    client = connect(address)
    client.metadata("double")
    fake.held.clear()
    with pytest.raises(InferenceError) as caught:
        client.infer("double", {"x": X}, deadline_ms=200)
    assert caught.value.message == f"no answer from {address} within 200 ms"


@pytest.mark.parametrize("token", [BEARER, f"{BEARER}\n", lambda: BEARER], ids=["text", "from a file", "function"])
def test_the_token_reaches_the_server(connect, fake, address, token):
    """A token is sent with every call, over plaintext if the server is on this machine."""
    connect(address, token=token).infer("double", {"x": X})
    assert fake.metadata["authorization"] == f"Bearer {BEARER}"


def test_a_token_that_cannot_be_sent(connect, address):
    """A token with characters that no header carries is refused without being shown."""
    with pytest.raises(ValueError, match="the token has characters that a header cannot carry"):
        connect(address, token=f"{BEARER}\n{BEARER}").is_live()


@pytest.mark.parametrize(
    "address", ["localhost:1", "dns:///localhost:1", "127.0.0.2:1", "[::1]:1", "ipv4:127.0.0.1:1", "unix:/tmp/socket"]
)
def test_a_token_may_go_to_this_machine(address):
    """No encryption is asked for where nothing leaves the machine."""
    InferenceClient(address, token=BEARER).close()


@pytest.mark.parametrize(
    "address", ["gateway:8001", "10.0.0.1:8001", "dns:///gateway:8001", "[2001:db8::1]:1", "gateway"]
)
def test_a_token_is_not_sent_to_others_unencrypted(connect, address):
    """A token for another machine needs TLS, or the caller's word that the way there is safe."""
    with pytest.raises(ValueError, match=r"the token would go to .* unencrypted: give tls=TLS") as caught:
        connect(address, token=BEARER)
    assert BEARER not in str(caught.value)
    client = connect(address, token=BEARER, allow_plaintext_token=True)
    assert BEARER not in repr(client.client)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `key.pem` and its self-signed `cert.pem` for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return folder


def test_an_encrypted_connection(connect, fake, certificate):
    """With TLS the call and its token arrive, and both sides know each other by their certificates."""
    key, chain = ((certificate / name).read_bytes() for name in ("key.pem", "cert.pem"))
    credentials = grpc.ssl_server_credentials([(key, chain)], chain, require_client_auth=True)
    with serving_fake(fake, credentials) as address:
        trusting = TLS(certificate / "cert.pem", certificate / "cert.pem", str(certificate / "key.pem"))
        client = connect(address, tls=trusting, token=BEARER)
        assert client.infer("double", {"x": X})["y"].tolist() == [[2, 4]]
        assert fake.metadata["authorization"] == f"Bearer {BEARER}"
        assert not connect(address, tls=TLS()).is_live()
        assert not connect(address, tls=TLS(certificate / "cert.pem")).is_live()
        assert not connect(address).is_live()


def test_half_a_client_certificate(certificate):
    """A certificate without its key is refused with what to do."""
    with pytest.raises(ValueError, match="give both or neither"):
        TLS(certificate_chain=certificate / "cert.pem")


OPENTELEMETRY = importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.propagate")


@pytest.mark.skipif(not OPENTELEMETRY, reason="opentelemetry-api is not installed")
def test_the_trace_goes_on(fake, address):
    """A call made within a span carries that span's trace to the server."""
    from opentelemetry import trace  # noqa: PLC0415  # optional

    context = trace.SpanContext(0x1234 << 64, 0x5678, is_remote=False, trace_flags=trace.TraceFlags(1))
    expected = f"00-{0x1234 << 64:032x}-{0x5678:016x}-01"
    with InferenceClient(address) as client:
        client.infer("double", {"x": X})
        assert "traceparent" not in fake.metadata
        with trace.use_span(trace.NonRecordingSpan(context)):
            client.infer("double", {"x": X})
        assert fake.metadata["traceparent"] == expected

    async def call() -> None:
        async with aio.InferenceClient(address) as client:
            with trace.use_span(trace.NonRecordingSpan(context)):
                await client.infer("double", {"x": X})

    fake.metadata.clear()
    asyncio.run(call())
    assert fake.metadata["traceparent"] == expected


def test_parameters_reach_the_server(connect, address, fake):
    """Parameters of a request arrive as the protocol's four kinds."""
    client = connect(address)
    parameters = {"a": True, "b": 7, "c": 0.5, "d": "text"}
    (result,) = client.stream("double", [{"x": X}], parameters=parameters)
    assert result.error is None
    sent = fake.requests[0].parameters
    assert sent["a"].bool_param is True
    assert sent["b"].int64_param == 7
    assert sent["c"].double_param == 0.5
    assert sent["d"].string_param == "text"


def test_a_broken_answer(connect, address, monkeypatch):
    """A server whose answer contradicts itself gives an error, not a wrong array."""
    client = connect(address)
    monkeypatch.setattr("support.fake_inference.to_raw", lambda _: b"123")
    with pytest.raises(InferenceError, match=r"model 'double' answered with what is no tensor: FP32 .* takes 8 bytes"):
        client.infer("double", {"x": X})


def test_a_client_shows_what_it_is(connect, address):
    """In a debugger or log a client shows its address and how many models it knows."""
    client = connect(address)
    client.infer("double", {"x": X})
    assert repr(client.client) == f"<InferenceClient {address} plaintext models=1>"


def test_errors_travel_between_processes():
    """An error can be pickled and copied, as process pools do."""
    error = InferenceError(StatusCode.NOT_FOUND, "gone")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own
        assert (twin.code, twin.message, str(twin)) == (StatusCode.NOT_FOUND, "gone", "NOT_FOUND: gone")


def test_with_closes_the_client(address):
    """After its `with` block a client makes no more calls, and says why."""
    with InferenceClient(address) as client:
        client.infer("double", {"x": X})
    for late in (lambda: client.infer("double", {"x": X}), lambda: next(client.stream("double", [{"x": X}]))):
        with pytest.raises(InferenceError, match="CANCELLED: the client is closed"):
            late()


def test_closing_the_aio_client_fails_the_calls_under_way():
    """Whoever awaits an answer as the client is closed is told so, and is not taken for cancelled itself."""

    async def close_meanwhile(port: int) -> None:
        client = aio.InferenceClient(f"127.0.0.1:{port}")
        call = asyncio.create_task(client.metadata("double"))
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(InferenceError, match="CANCELLED: the client is closed"):
            await call

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(close_meanwhile(silent.getsockname()[1]))


def test_the_aio_client_needs_its_event_loop(address):
    """Made outside of an event loop it says so at once, instead of hanging in its first call."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.InferenceClient(address)


def test_cancelling_a_call_cancels_its_rpc(fake: FakeInference, address):
    """A task that gives up lets the server know."""
    client = Awaited(address)
    fake.held.clear()

    async def give_up() -> None:
        task = asyncio.create_task(client.client.infer("double", {"x": X}))
        await asyncio.to_thread(fake.begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    client.run(give_up())
    eventually(fake.ended.is_set)
    client.end()
