"""The metrics: that they are what happened, and what ModelStatistics says of it."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import ECHO, Gate, eventually, infer, load, refusal, unload
from support.concurrent import POISON, UNFIT, arrived, counts, moody, parameter, start, statistics, values
from support.metrics import histogram, of_model, scrape
from support.models import RepositoryBuilder
from support.server import Gateway, serving

Code = grpc.StatusCode
EIGHT = "max_batch_size: 8\n"
CACHED = EIGHT + "response_cache { enable: true }\n"
REQUESTS, STAGES, ROWS = (
    "tensorgate_request_duration_seconds",
    "tensorgate_stage_duration_seconds",
    "tensorgate_batch_rows",
)


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


def check_against_statistics(gateway: Gateway, model: str) -> None:
    """Every number that both the metrics and ModelStatistics have is the same."""
    told, scraped = statistics(gateway, model), scrape(gateway)
    totals = told.inference_stats
    compute = ("compute_input", "compute_infer", "compute_output")
    expected = {
        "nv_inference_request_success": totals.success.count,
        "nv_inference_count": told.inference_count,
        "nv_inference_exec_count": told.execution_count,
        "nv_inference_request_duration_us": totals.success.ns / 1000,
        "nv_inference_queue_duration_us": totals.queue.ns / 1000,
        **{f"nv_inference_{part}_duration_us": getattr(totals, part).ns / 1000 for part in compute},
        "nv_cache_num_hits_per_model": totals.cache_hit.count,
        "nv_cache_hit_duration_per_model": totals.cache_hit.ns / 1000,
        "nv_cache_num_misses_per_model": totals.cache_miss.count,
        "nv_cache_miss_duration_per_model": totals.cache_miss.ns / 1000,
    }
    assert {name: of_model(scraped, name, model) for name in expected} == {n: {"": v} for n, v in expected.items()}
    for name in ("nv_inference_request_failure", "tensorgate_request_failures_total"):
        assert sum(of_model(scraped, name, model).values()) == totals.fail.count
    _, answered, seconds = histogram(scraped, REQUESTS, model, "1")
    assert (answered, seconds) == (totals.success.count, totals.success.ns / 1e9)
    _, queued, seconds = histogram(scraped, STAGES, model, "queue", "1")
    assert (queued, seconds) == (totals.queue.count, totals.queue.ns / 1e9)
    _, executed, seconds = histogram(scraped, STAGES, model, "execute", "1")
    assert (executed, seconds) == (totals.compute_infer.count, sum(getattr(totals, part).ns for part in compute) / 1e9)
    buckets, batches, rows = histogram(scraped, ROWS, model, "1")
    sizes = {entry.batch_size: entry.compute_infer.count for entry in told.batch_stats}
    assert (batches, rows) == (told.execution_count, told.inference_count)
    assert buckets[:-1] == [(b, sum(n for size, n in sizes.items() if size <= b)) for b, _ in buckets[:-1]]


def test_failures_are_told_by_their_reasons(repository: RepositoryBuilder, gate: Gate) -> None:
    """Whoever is paged sees why requests fail: refused, expired, cancelled, the caller's fault or the model's."""
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 8 } }\n"
    repository.add("gated", moody(gate), EIGHT + queue + gate.config)
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
        for _ in range(3):
            misfit = refusal(lambda: infer(gateway, "gated", np.zeros((2, 2), np.float32), "x"))
            assert misfit[0] is Code.INVALID_ARGUMENT
        gate.open()
        assert [len(values(call)) for call in [first, *good]] == [1, 1, 2, 1, 3]
        assert start(gateway, "gated", POISON).code() is Code.INTERNAL
        assert start(gateway, "gated", UNFIT).code() is Code.INVALID_ARGUMENT
        check_against_statistics(gateway, "gated")
        scraped = scrape(gateway)
        theirs = of_model(scraped, "nv_inference_request_failure", "gated")
        assert theirs == {"REJECTED": 3, "CANCELED": 4, "BACKEND": 2, "OTHER": 3}
        assert of_model(scraped, "tensorgate_request_failures_total", "gated") == {
            "queue_full": 1,
            "expired": 2,
            "cancelled": 4,
            "invalid_request": 3,
            "invalid_input": 1,
            "unavailable": 0,
            "failed": 1,
        }


def test_stages_add_up_to_the_request(repository: RepositoryBuilder) -> None:
    """A dashboard that stacks the stages shows the whole request, and the slow stage is the slow one."""
    repository.add("slow", config=ECHO + EIGHT + parameter("delay_ms", 30))
    with serving(repository.root) as gateway:
        calls = [start(gateway, "slow", [row], name="INPUT0") for row in range(4)]
        assert [values(call) for call in calls] == [[[row]] for row in range(4)]
        check_against_statistics(gateway, "slow")
        scraped = scrape(gateway)
        buckets, count, seconds = histogram(scraped, REQUESTS, "slow", "1")
        assert (count, dict(buckets)[0.025]) == (4, 0)
        stages = {s: histogram(scraped, STAGES, "slow", s, "1") for s in ("decode", "queue", "execute", "encode")}
        assert [stage[1] for stage in stages.values()] == [4] * 4
        assert sum(stage[2] for stage in stages.values()) == pytest.approx(seconds)
        assert dict(stages["execute"][0])[0.025] == 0
        assert histogram(scraped, STAGES, "slow", "cache", "1")[1] == 0  # the model has none


def test_the_cache_shows_what_it_does(repository: RepositoryBuilder, gate: Gate) -> None:
    """Hits, misses and joined requests are counted, what the cache answers has no other stages, evictions show."""
    repository.add("cached", moody(gate), CACHED + gate.config)
    repository.add("large", config=ECHO + CACHED)
    with serving(repository.root, "--cache-size-mb", "1") as gateway:
        first = held(gateway, gate, "cached")
        joined = [start(gateway, "cached", 0) for _ in range(4)]
        arrived(gateway)
        gate.open()
        assert [values(call) for call in (first, *joined)] == [[0]] * 5
        assert [values(start(gateway, "cached", value)) for value in (0, 1, 0, 2, 0)] == [[0], [2], [0], [4], [0]]
        check_against_statistics(gateway, "cached")
        before = scrape(gateway)
        stages = {s: histogram(before, STAGES, "cached", s, "1")[1] for s in ("cache", "decode", "queue", "encode")}
        assert stages == {"cache": 10, "decode": 3, "queue": 10, "encode": 3}
        entries, used = before[("tensorgate_response_cache_entries",)], before[("tensorgate_response_cache_bytes",)]
        assert (entries, before[("tensorgate_response_cache_evictions_total",)]) == (3, 0)
        assert 0 < used < before[("tensorgate_response_cache_max_bytes",)] == 2**20
        for value in range(4):
            infer(gateway, "large", np.full((1, 100_000), value, np.float32))  # two fit
        after = scrape(gateway)
        evicted = after[("tensorgate_response_cache_evictions_total",)]
        assert after[("tensorgate_response_cache_entries",)] == entries + 4 - evicted
        assert evicted == after[("nv_cache_num_evictions",)] >= 2
        assert after[("nv_cache_util",)] == after[("tensorgate_response_cache_bytes",)] / 2**20


def test_a_model_that_hangs_shows_by_its_queue(repository: RepositoryBuilder, gate: Gate) -> None:
    """While a model hangs, its metrics are answered and say how many requests wait for it; so they do on SIGTERM."""
    repository.add("gated", gate.files, "max_batch_size: 1\n" + gate.config)
    with serving(repository.root) as gateway:
        calls = [held(gateway, gate), *(start(gateway, "gated", value) for value in (1, 2, 3))]
        arrived(gateway)
        scraped = scrape(gateway)
        waiting = ("nv_inference_pending_request_count", "tensorgate_queue_depth")
        assert [of_model(scraped, name, "gated") for name in waiting] == [{"": 3}] * 2
        assert scraped[("tensorgate_requests_in_flight",)] == 4
        gateway.server.signal()
        gateway.server.wait_for_log("letting requests in flight finish")
        assert scrape(gateway)[("tensorgate_requests_in_flight",)] == 4
        gate.open()
        assert [values(call) for call in calls] == [[0], [1], [2], [3]]
        assert gateway.server.wait() == 0


def test_open_streams_show(repository: RepositoryBuilder) -> None:
    """Streams count as long as they are open, whether or not something is under way on them."""
    repository.add("echo", config=ECHO)
    ended = threading.Event()

    def silent():
        ended.wait(60)
        yield from ()

    with serving(repository.root) as gateway:
        streams = [gateway.stub.ModelStreamInfer(silent()) for _ in range(2)]
        eventually(lambda: scrape(gateway)[("tensorgate_streams_open",)] == 2)
        streams[0].cancel()
        eventually(lambda: scrape(gateway)[("tensorgate_streams_open",)] == 1)
        ended.set()
        assert list(streams[1]) == []
        eventually(lambda: scrape(gateway)[("tensorgate_streams_open",)] == 0)


def test_a_reload_starts_anew_and_what_is_unloaded_goes(repository: RepositoryBuilder, gate: Gate) -> None:
    """Counters are of the model as it is loaded now, as ModelStatistics': a reload is a counter reset to Prometheus."""
    repository.add("gated", moody(gate), EIGHT + gate.config)
    gate.open()
    with serving(repository.root, "--model-control", "explicit", "--load-model", "*") as gateway:
        assert values(start(gateway, "gated", 3)) == [6]
        assert of_model(scrape(gateway), "nv_inference_request_success", "gated") == {"": 1}
        assert of_model(scrape(gateway), "nv_model_load_duration_secs", "gated")[""] > 0
        assert of_model(scrape(gateway), "tensorgate_instances_available", "gated") == {"": 1}
        repository.add("gated", {"model.py": moody(gate)["model.py"].replace("* 2", "* 5")})
        load(gateway, "gated")
        assert counts(statistics(gateway, "gated")) == {}
        check_against_statistics(gateway, "gated")
        unload(gateway, "gated")
        assert of_model(scrape(gateway), "nv_inference_request_success", "gated") == {}
