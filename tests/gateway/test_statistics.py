"""ModelStatistics: what the server says of its work is what it did."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import ECHO, Gate, eventually, infer, load, refusal, request
from support.concurrent import (
    POISON,
    UNFIT,
    arrived,
    batches,
    counts,
    moody,
    parameter,
    start,
    statistics,
    values,
)
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client.wire import inference_pb2 as pb

Code = grpc.StatusCode
EIGHT = "max_batch_size: 8\n"
CACHED = EIGHT + "response_cache { enable: true }\n"
COMPUTE = ("compute_input", "compute_infer", "compute_output")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up models."""
    return Gate(tmp_path / "gate")


def held(gateway: Gateway, gate: Gate, model: str = "gated") -> grpc.Future:
    """A request that the model is held up with."""
    before = len(gate.begun())
    call = start(gateway, model, 0)
    eventually(lambda: len(gate.begun()) > before)
    return call


def misfit(gateway: Gateway, model: str = "gated") -> Code:
    """What a request of the wrong shape is refused with."""
    return refusal(lambda: infer(gateway, model, np.zeros((2, 2), np.float32), "x"))[0]


def test_every_request_is_counted_once(repository: RepositoryBuilder, gate: Gate) -> None:
    """Answered, invalid, failed, cancelled, expired and refused requests are each counted where they belong, once."""
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 8 } }\n"
    repository.add("gated", moody(gate), EIGHT + queue + gate.config)
    began = time.time_ns() // 1_000_000
    with serving(repository.root) as gateway:
        first = held(gateway, gate)
        good = [start(gateway, "gated", *range(1, rows + 1)) for rows in (1, 2, 1, 3)]
        gone = [start(gateway, "gated", 5) for _ in range(4)]
        arrived(gateway)
        assert start(gateway, "gated", 7).code() is Code.RESOURCE_EXHAUSTED
        for call in gone:
            call.cancel()
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count == 1 + 4)
        expired = [start(gateway, "gated", 6, timeout_us=20_000) for _ in range(2)]
        assert [call.code() for call in expired] == [Code.DEADLINE_EXCEEDED] * 2
        assert [misfit(gateway) for _ in range(3)] == [Code.INVALID_ARGUMENT] * 3
        gate.open()
        assert [values(call) for call in [first, *good]] == [[0], [2], [2, 4], [2], [2, 4, 6]]
        assert start(gateway, "gated", POISON).code() is Code.INTERNAL
        assert start(gateway, "gated", UNFIT).code() is Code.INVALID_ARGUMENT
        found = statistics(gateway, "gated")
        assert counts(found) == {"success": 5, "fail": 12, "queue": 5, **dict.fromkeys(COMPUTE, 5)}
        assert (found.inference_count, found.execution_count) == (8, 2)
        assert batches(gateway, "gated") == {1: 1, 7: 1}
        assert began <= found.last_inference <= time.time_ns() // 1_000_000


def test_a_request_beside_a_poisonous_one_counts_once(repository: RepositoryBuilder, gate: Gate) -> None:
    """A batch that is tried apart shows as the batches that gave answers, and each member as answered or failed."""
    repository.add("gated", moody(gate), EIGHT + gate.config)
    with serving(repository.root) as gateway:
        first = held(gateway, gate)
        calls = [start(gateway, "gated", value) for value in (1, 2, 3, POISON)]
        arrived(gateway)
        gate.open()
        assert [call.code() for call in [first, *calls]] == [Code.OK] * 4 + [Code.INTERNAL]
        expected = {"success": 4, "fail": 1, "queue": 4, **dict.fromkeys(COMPUTE, 4)}
        assert counts(statistics(gateway, "gated")) == expected
        assert batches(gateway, "gated") == {1: 2, 2: 1}


def test_one_who_leaves_while_executing_is_a_failure(repository: RepositoryBuilder, gate: Gate) -> None:
    """A caller who leaves after its execution began counts as failed, though its rows were computed."""
    repository.add("gated", moody(gate), EIGHT + gate.config)
    with serving(repository.root) as gateway:
        held(gateway, gate).cancel()
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count)
        gate.open()
        assert values(start(gateway, "gated", 1)) == [2]
        expected = {"success": 1, "fail": 1, "queue": 1, **dict.fromkeys(COMPUTE, 1)}
        assert counts(statistics(gateway, "gated")) == expected
        assert batches(gateway, "gated") == {1: 2}


def test_hits_misses_and_joined_requests(repository: RepositoryBuilder, gate: Gate) -> None:
    """Requests answered from the cache, or with the answer to an equal one, are hits, and cost no execution."""
    repository.add("cached", moody(gate), CACHED + gate.config)
    with serving(repository.root) as gateway:
        first = held(gateway, gate, "cached")
        joined = [start(gateway, "cached", 0) for _ in range(4)]
        arrived(gateway)
        gate.open()
        assert [values(call) for call in (first, *joined)] == [[0]] * 5
        assert [values(start(gateway, "cached", value)) for value in (0, 1, 0, 2, 0)] == [[0], [2], [0], [4], [0]]
        assert start(gateway, "cached", POISON).code() is Code.INTERNAL
        found = statistics(gateway, "cached")
        compute = dict.fromkeys(COMPUTE, 3)
        assert counts(found) == {"success": 10, "fail": 1, "queue": 10, **compute, "cache_hit": 7, "cache_miss": 3}
        assert batches(gateway, "cached") == {1: 3}


def test_durations_add_up(repository: RepositoryBuilder) -> None:
    """Times are in nanoseconds, cover what really passed, and the parts of a request are no longer than the whole."""
    repository.add("slow", config=ECHO + EIGHT + parameter("delay_ms", 30))
    with serving(repository.root) as gateway:
        began = time.perf_counter_ns()
        calls = [start(gateway, "slow", [row], name="INPUT0") for row in range(4)]
        assert [values(call) for call in calls] == [[[row]] for row in range(4)]
        passed = time.perf_counter_ns() - began
        found = statistics(gateway, "slow")
        times = {kind.name: entry.ns for kind, entry in found.inference_stats.ListFields()}
        assert 4 * 30e6 <= times["compute_infer"] < 4 * passed
        assert times["queue"] > 0
        assert times["queue"] + sum(times[name] for name in COMPUTE) <= times["success"] <= 4 * passed
        runs = sum(entry.compute_infer.count for entry in found.batch_stats)
        spent = sum(entry.compute_infer.ns for entry in found.batch_stats)
        assert runs * 30e6 <= spent <= passed  # a batch's own time counts once here, however many share it


def test_one_row_per_request_where_nothing_batches(repository: RepositoryBuilder) -> None:
    """A model that does not batch counts an inference and an execution of size 1 per request, whatever its shape."""
    tensors = ("input { name: 'x'", "output { name: 'y'")
    lines = (f"{tensor} data_type: TYPE_FP32 dims: [-1] }}\n" for tensor in tensors)
    repository.add("single", config=ECHO + "max_batch_size: 0\n" + "".join(lines))
    with serving(repository.root) as gateway:
        assert [values(start(gateway, "single", *range(rows))) for rows in (1, 5)] == [[0], [0, 1, 2, 3, 4]]
        assert batches(gateway, "single") == {1: 2}


def test_versions_are_counted_apart(repository: RepositoryBuilder, gate: Gate) -> None:
    """Each version has numbers of its own; a model's name shows all its versions, no name shows all models."""
    both = "version_policy { all {} }\n"
    for version in (1, 2):
        repository.add("gated", gate.files, both + gate.config, version)
    repository.add("other", config=ECHO)
    gate.open()
    with serving(repository.root) as gateway:
        for version in ("1", "2", "2", ""):
            assert values(start(gateway, "gated", 1, version=version)) == [1]
        assert listed(gateway) == {("gated", "1"): 1, ("gated", "2"): 3, ("other", "1"): 0}
        assert listed(gateway, name="gated") == {("gated", "1"): 1, ("gated", "2"): 3}
        assert listed(gateway, name="gated", version="1") == {("gated", "1"): 1}
        fresh = statistics(gateway, "other")
        assert (fresh.last_inference, fresh.execution_count, list(fresh.batch_stats)) == (0, 0, [])
        unknown = "Request for unknown model: "
        assert refusal(lambda: listed(gateway, name="nobody")) == (Code.NOT_FOUND, unknown + "'nobody' is not found")
        missing = refusal(lambda: listed(gateway, name="gated", version="3"))
        assert missing == (Code.NOT_FOUND, unknown + "'gated' version 3 is not found")


def listed(gateway: Gateway, **which: str) -> dict[tuple[str, str], int]:
    """How many requests were answered, by model and version."""
    response = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(**which), timeout=60)
    return {(found.name, found.version): found.inference_stats.success.count for found in response.model_stats}


def test_a_reload_starts_anew(repository: RepositoryBuilder, gate: Gate) -> None:
    """Numbers speak of the model as it is loaded now: a reload starts them at nothing."""
    repository.add("gated", moody(gate), CACHED + gate.config)
    gate.open()
    with serving(repository.root, "--model-control", "explicit", "--load-model", "*") as gateway:
        assert [values(start(gateway, "gated", 3)) for _ in range(2)] == [[6], [6]]
        assert counts(statistics(gateway, "gated"))["cache_hit"] == 1
        load(gateway, "gated")
        assert counts(statistics(gateway, "gated"))["success"] == 2  # nothing had changed, so nothing was loaded
        repository.add("gated", {"model.py": moody(gate)["model.py"].replace("* 2", "* 5")})
        load(gateway, "gated")
        found = statistics(gateway, "gated")
        assert (counts(found), found.inference_count, found.last_inference) == ({}, 0, 0)
        assert values(start(gateway, "gated", 3)) == [15]
        expected = {"success": 1, "queue": 1, "cache_miss": 1, **dict.fromkeys(COMPUTE, 1)}
        assert counts(statistics(gateway, "gated")) == expected


def test_requests_for_nobody_count_nowhere(repository: RepositoryBuilder) -> None:
    """A request for an unknown model changes no model's numbers, one with a bad tensor changes its model's own."""
    repository.add("known", config=ECHO)
    with serving(repository.root) as gateway:
        for model in ("nobody", "known"):
            bad = request(model, {"wrong": np.zeros((1, 1), np.float32)})
            assert refusal(lambda bad=bad: gateway.stub.ModelInfer(bad, timeout=60))
        assert counts(statistics(gateway, "known")) == {"fail": 1}
        assert statistics(gateway, "known").inference_stats.fail.ns > 0
