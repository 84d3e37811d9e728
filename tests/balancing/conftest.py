"""Two gateways behind each of what can stand in front of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.balancing import Balanced, Member, balanced, gateways
from support.calls import ECHO, Gate
from support.commands import MOODY
from support.concurrent import parameter
from support.models import RepositoryBuilder
from support.otlp import Collector, collecting


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """What holds up the model `slow` of all gateways."""
    gate = Gate(tmp_path_factory.mktemp("gates") / "gate")
    gate.open()
    return gate


@pytest.fixture
def gate(slow: Gate) -> Iterator[Gate]:
    """The same, shut until the test opens it."""
    slow.shut()
    yield slow
    slow.open()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where traces go."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory, slow: Gate, collector: Collector) -> Iterator[list[Member]]:
    """The gateways."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("fleet") / "models")
    repository.add("echo", config=ECHO + parameter("delay_ms", 20))  # so that most callers wait for an answer
    repository.add("late", config=ECHO + parameter("delay_ms", 300))
    repository.add("slow", slow.files, slow.config)
    repository.add("moody", {"model.py": MOODY}, "max_batch_size: 64\n" + parameter("gate", repository.root / "gate"))
    environment = {"TENSORGATE_TRACE_RATE": "0", "TENSORGATE_MAX_MESSAGE_MB": "16"}
    with gateways(repository.root, {**collector.environment(), **environment}) as members:
        yield members


@pytest.fixture(scope="module", params=["nginx", "envoy", "client"])
def fleet(
    request: pytest.FixtureRequest, members: list[Member], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balanced]:
    """Both gateways, behind one address."""
    with balanced(request.param, members, tmp_path_factory.mktemp(request.param)) as fleet:
        yield fleet


@pytest.fixture
def running(fleet: Balanced) -> Balanced:
    """The same, all of it running, whatever the test before has done."""
    fleet.mend()
    return fleet
