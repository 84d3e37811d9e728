"""What callers get wrong, and what they are told; both clients are held to all of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from grpc import StatusCode

from tensorgate_client import TLS, InferenceClient, InferenceError, aio

X = np.ones((1, 2), np.float32)


@pytest.fixture
def client(connect, address):
    """A client of the fake server."""
    return connect(address)


def told(call) -> tuple[str, str]:
    """The code and message of a call that fails."""
    with pytest.raises(InferenceError) as caught:
        call()
    return caught.value.code.name, caught.value.message


WRONG = {
    "array": (X, "inputs of model 'double': expected arrays by name, got ndarray"),
    "mask": ({"x": np.ma.masked_equal(X, 1)}, "input 'x' of model 'double': expected all of it, got a masked array"),
    "surrogate": ({"x": np.array(["\ud800"], object)}, "input 'x' of model 'double': BYTES elements travel as UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_inputs_that_are_none(client, case):
    """What is no set of inputs is refused in words, in a stream as that batch's error."""
    inputs, message = WRONG[case]
    code, said = told(lambda: client.infer("double", inputs))
    assert (code, said[: len(message)]) == ("INVALID_ARGUMENT", message)
    good, bad = client.stream("double", [{"x": X}, inputs])
    assert good.error is None
    assert (bad.error.code, bad.error.message) == (StatusCode.INVALID_ARGUMENT, said)


def test_an_array_with_nothing_masked(client):
    """A masked array of which nothing is masked is an array like any other."""
    assert client.infer("double", {"x": np.ma.masked_array(X, mask=False)})["y"].tolist() == [[2, 2]]


def test_a_version_may_be_a_number(client, fake):
    """Versions are numbers, so they may be given as such."""
    client.infer("double", {"x": X}, version=3)
    assert client.metadata("double", version=3).name == "double"
    list(client.stream("double", [{"x": X}], version=3))
    assert fake.requests[0].model_version == "3"


@pytest.mark.parametrize("ms", [0, -5.0])
def test_no_time_left(client, fake, ms):
    """A deadline that has passed already is answered without a call."""
    client.metadata("double")
    asked = list(fake.asked)
    code, message = told(lambda: client.infer("double", {"x": X}, deadline_ms=ms))
    assert (code, f"within {ms:g} ms" in message) == ("DEADLINE_EXCEEDED", True)
    assert told(lambda: next(client.stream("double", [{"x": X}], deadline_ms=ms)))[0] == "DEADLINE_EXCEEDED"
    assert fake.asked == asked


def test_deadlines_without_end(client):
    """A deadline beyond all counting is none, and one that is no number is refused."""
    for ms in (float("inf"), 1e30):
        assert client.infer("double", {"x": X}, deadline_ms=ms)["y"].tolist() == [[2, 2]]
    with pytest.raises(ValueError, match="deadline_ms is nan, expected milliseconds"):
        client.infer("double", {"x": X}, deadline_ms=float("nan"))


def test_an_aio_client_that_is_closed(address):
    """After its `async with` block a client says so whatever it is asked; the blocking one is tested elsewhere."""

    async def ask_late() -> None:
        async with aio.InferenceClient(address) as client:
            await client.infer("double", {"x": X})
        for late in (client.infer("double", {"x": X}), anext(client.stream("double", [{"x": X}]))):
            with pytest.raises(InferenceError, match="CANCELLED: the client is closed"):
                await late

    asyncio.run(ask_late())


def test_tokens_and_certificates(connect, address, tmp_path):
    """What cannot be sent or trusted is refused when the client is made."""
    for token in ("two\nlines", "geheimniß"):
        with pytest.raises(ValueError, match="the token has characters that a header cannot carry"):
            connect(address, token=token)
    junk = tmp_path / "ca.pem"
    junk.write_text("junk")
    with pytest.raises(ValueError, match=r"ca\.pem: expected PEM certificates"):
        connect(address, tls=TLS(junk))


def test_blocking_streams_take_no_async_batches(address):
    """The blocking client says where async iterables belong."""

    async def batches():
        yield {"x": X}

    with InferenceClient(address) as client, pytest.raises(TypeError, match=r"aio takes async ones"):
        client.stream("double", batches())


def test_help_shows_a_stream_once():
    """`help` shows one signature of `stream` in both clients, but for what it returns."""
    blocking, awaited = InferenceClient.stream, aio.InferenceClient.stream
    assert blocking.__doc__ == awaited.__doc__
    assert blocking.__signature__.parameters == awaited.__signature__.parameters
    assert "window: 'int' = 32" in str(blocking.__signature__)
