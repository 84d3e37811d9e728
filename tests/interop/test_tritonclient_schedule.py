"""tritonclient.grpc schedules requests by priority and timeout, and reads the statistics of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.calls import Gate
from support.models import RepositoryBuilder
from support.server import serving

ONE_BY_ONE = """
max_batch_size: 1
dynamic_batching { priority_levels: 3 default_priority_level: 3 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gate will be."""
    return tmp_path_factory.mktemp("gated") / "gate"


@pytest.fixture(scope="module")
def gate(folder: Path) -> Gate:
    """Holds the model up."""
    return Gate(folder)


@pytest.fixture(scope="module")
def outcome(gate: Gate, folder: Path, tmp_path_factory: pytest.TempPathFactory, tritonclient: Any) -> dict[str, Any]:
    """What `schedule.py` brought, from a model with three levels of priority that executes one row at a time."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("gated", gate.files, ONE_BY_ONE + gate.config)
    with serving(repository.root) as gateway:
        return tritonclient("schedule.py", gateway.address, "gated", folder)


def test_the_most_urgent_go_first(gate: Gate, outcome: dict[str, Any]) -> None:
    """When a model is busy, `priority` decides who is served first; an unknown level is the default."""
    assert outcome["answered"] == [0.0, 1.0, 2.0, 9.0]
    assert gate.begun() == ["0", "1", "2", "9"]


def test_a_timeout_ends_the_wait(outcome: dict[str, Any]) -> None:
    """The parameter `timeout` ends a wait for a busy model, and a senseless one is refused with what was expected."""
    status, message = outcome["too_short"]
    assert status == "StatusCode.DEADLINE_EXCEEDED"
    assert message.startswith("model 'gated': not executed within the ")
    status, message = outcome["bad"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert (
        message
        == "model 'gated': parameter 'timeout': expected int64_param or uint64_param, at least 0, got int64_param: -1"
    )


def test_statistics_are_told(outcome: dict[str, Any]) -> None:
    """Tools that read tritonclient's statistics, as JSON or as a message, find every count where Triton has it."""
    (statistics,) = outcome["json"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("gated", "1")
    assert (statistics["inference_count"], statistics["execution_count"]) == ("4", "4")
    assert int(statistics["last_inference"]) > 1_700_000_000_000
    totals = statistics["inference_stats"]
    assert {name: entry["count"] for name, entry in totals.items() if entry} == {
        **{"success": "4", "fail": "2", "queue": "4"},
        **{"compute_input": "4", "compute_infer": "4", "compute_output": "4"},
    }
    assert all(int(totals[name]["ns"]) > 0 for name in ("success", "fail", "queue", "compute_infer"))
    (batches,) = statistics["batch_stats"]
    assert (batches["batch_size"], batches["compute_infer"]["count"]) == ("1", "4")
    assert outcome["message"] == 4
