"""Clients that spread their calls over all servers that an address names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.calls import eventually
from support.dns import resolving
from support.fake_inference import FakeInference, serving_fake

from tensorgate_client import InferenceClient

X = np.array([[1, 2]], np.float32)


@pytest.fixture
def fakes() -> list[FakeInference]:
    """Two servers' behaviour."""
    return [FakeInference(), FakeInference()]


@pytest.fixture
def port(fakes: list[FakeInference]) -> Iterator[str]:
    """On which they serve, each on an address of its own."""
    with serving_fake(fakes[0]) as first:
        _, port = first.split(":")
        with serving_fake(fakes[1], port=int(port), host="127.0.0.2"):
            yield port


def test_several_addresses(connect: Callable[..., Any], fakes: list[FakeInference], port: str) -> None:
    """Calls and streams go to all servers of a list; those that know no health checks count as healthy."""
    client = connect(f"ipv4:127.0.0.1:{port},127.0.0.2:{port}", balance=True)
    eventually(lambda: infer(client) and all("ModelInfer" in fake.asked for fake in fakes))
    # A stream asks for metadata first, so that they alone would always come to the same one of two.
    eventually(lambda: infer(client) and stream(client) and all("ModelStreamInfer" in fake.asked for fake in fakes))


def test_a_name_of_several_addresses(connect: Callable[..., Any], fakes: list[FakeInference], port: str) -> None:
    """Calls go to all servers that a name stands for."""
    with resolving(["127.0.0.1", "127.0.0.2"]) as resolver:
        client = connect(f"dns://{resolver}/gateways.example:{port}", balance=True)
        eventually(lambda: infer(client) and all("ModelInfer" in fake.asked for fake in fakes))


def test_one_of_several_unless_told(connect: Callable[..., Any], fakes: list[FakeInference], port: str) -> None:
    """By default the first server that answers gets all calls."""
    client = connect(f"ipv4:127.0.0.1:{port},127.0.0.2:{port}")
    for _ in range(10):
        infer(client)
    assert [len(fake.asked) for fake in fakes] == [11, 0]


def test_a_token_for_several_servers() -> None:
    """A token is sent unencrypted only if all servers of a list are on this machine."""
    with pytest.raises(ValueError, match="unencrypted"):
        InferenceClient("ipv4:127.0.0.1:1,10.0.0.1:1", token="abcd1234")  # noqa: S106  # nobody's


def infer(client: Any) -> bool:
    """Whether a call is answered well."""
    return bool(client.infer("double", {"x": X})["y"].tolist() == [[2, 4]])


def stream(client: Any) -> bool:
    """Whether a stream of one batch is."""
    return [result.outputs["y"].tolist() for result in client.stream("double", [{"x": X}])] == [[[2, 4]]]
