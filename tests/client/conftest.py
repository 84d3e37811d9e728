"""Clients of both kinds, and a server that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.both_clients import CLIENTS, Awaited, Blocking
from support.fake_inference import FakeInference, serving_fake


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Blocking | Awaited]]:
    """Makes clients of one kind, closed at the end."""
    with ExitStack() as stack:

        def make(address: str, **options: Any) -> Blocking | Awaited:
            client = CLIENTS[request.param](address, **options)
            stack.callback(client.end)
            return client

        yield make


@pytest.fixture
def fake() -> FakeInference:
    """A server's behaviour, still to be told."""
    return FakeInference()


@pytest.fixture
def address(fake: FakeInference) -> Iterator[str]:
    """Where it serves."""
    with serving_fake(fake) as address:
        yield address
