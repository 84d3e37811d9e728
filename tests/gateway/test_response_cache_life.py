"""Response cache over time: callers who leave or have little of it, reloads, and the limit of its memory."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import ECHO, Gate, eventually, infer, load, unload
from support.concurrent import arrived, counts, moody, parameter, start, statistics, values
from support.models import RepositoryBuilder
from support.server import Gateway, serving

Code = grpc.StatusCode
CACHED = "response_cache { enable: true }\n"
ONE = "max_batch_size: 1\n"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up models."""
    return Gate(tmp_path / "gate")


def busy(gateway: Gateway, gate: Gate) -> grpc.Future:
    """A request that keeps the model from executing others."""
    call = start(gateway, "cached", 99)
    eventually(gate.begun)
    return call


@pytest.mark.parametrize("queued", [False, True])
def test_the_first_caller_leaves(repository: RepositoryBuilder, gate: Gate, *, queued: bool) -> None:
    """Whoever asked first may leave, before or while the model computes: the others are answered, by one execution."""
    repository.add("cached", gate.files, CACHED + ONE + gate.config)
    with serving(repository.root) as gateway:
        first = [busy(gateway, gate)] if queued else []
        calls = [start(gateway, "cached", 1) for _ in range(4)]
        arrived(gateway)
        calls[0].cancel()
        calls[2].cancel()
        eventually(lambda: statistics(gateway, "cached").inference_stats.fail.count == 2)
        gate.open()
        assert [values(call) for call in (calls[1], calls[3], *first)] == [[1], [1], *[[99]] * queued]
        assert values(start(gateway, "cached", 1)) == [1]
        assert gate.begun() == ["99"] * queued + ["1"]


def test_everyone_leaves(repository: RepositoryBuilder, gate: Gate) -> None:
    """A question that nobody waits for any more is not computed, and is when it is asked again."""
    repository.add("cached", gate.files, CACHED + ONE + gate.config)
    with serving(repository.root) as gateway:
        first = busy(gateway, gate)
        for call in [start(gateway, "cached", 1) for _ in range(3)]:
            arrived(gateway)
            call.cancel()
        eventually(lambda: statistics(gateway, "cached").inference_stats.fail.count == 3)
        gate.open()
        assert values(first) == [99]
        assert gate.begun() == ["99"]
        assert values(start(gateway, "cached", 1)) == [1]
        assert gate.begun() == ["99", "1"]


@pytest.mark.parametrize("hurried", [0, 1])
@pytest.mark.parametrize("limit", [{"timeout_us": 50_000}, {"timeout": 1.0}], ids=["timeout", "deadline"])
def test_each_waits_as_long_as_it_wants(
    repository: RepositoryBuilder, gate: Gate, hurried: int, limit: dict[str, float]
) -> None:
    """Of two who ask the same, the one with little time is told on time, and the patient one gets the answer."""
    repository.add("cached", gate.files, CACHED + ONE + gate.config)
    with serving(repository.root) as gateway:
        first = busy(gateway, gate)
        calls = []
        for number in range(2):
            calls.append(start(gateway, "cached", 1, **(limit if number == hurried else {})))
            arrived(gateway)
        assert calls[hurried].code() is Code.DEADLINE_EXCEEDED
        assert not calls[1 - hurried].done()
        gate.open()
        assert [values(first), values(calls[1 - hurried])] == [[99], [1]]
        assert gate.begun() == ["99", "1"]


def test_a_reload_answers_anew(repository: RepositoryBuilder, gate: Gate) -> None:
    """From the moment a load returns, no answer comes from the model before it, be it kept or still being computed."""
    repository.add("cached", moody(gate), CACHED + gate.config)
    with serving(repository.root, "--model-control", "explicit", "--load-model", "*") as gateway:
        gate.open()
        assert [values(start(gateway, "cached", 1)) for _ in range(4)] == [[2]] * 4
        gate.shut()
        old = start(gateway, "cached", 3)
        eventually(lambda: len(gate.begun()) == 2)
        repository.add("cached", {"model.py": moody(gate)["model.py"].replace("* 2", "* 7")})
        load(gateway, "cached")
        new = [start(gateway, "cached", value) for value in (3, 1)]
        eventually(lambda: len(gate.begun()) == 3)
        gate.open()
        assert values(old) == [6]
        assert [values(call) for call in new] == [[21], [7]]
        assert [values(start(gateway, "cached", 1)) for _ in range(4)] == [[7]] * 4
        unload(gateway, "cached")
        assert start(gateway, "cached", 1).code() is Code.NOT_FOUND
        load(gateway, "cached")
        executed = len(gate.begun())
        assert values(start(gateway, "cached", 1)) == [7]
        assert len(gate.begun()) == executed + 1


def test_the_same_bytes_again(repository: RepositoryBuilder) -> None:
    """A caller who sends the very same message over and over gets the same answer, and every one of them is counted."""
    repository.add("cached", config=ECHO + CACHED)
    with serving(repository.root) as gateway:
        answers = [infer(gateway, "cached", np.full((1, 4), 5, np.float32)).tolist() for _ in range(10)]
        assert answers == [[[5.0] * 4]] * 10
        found = statistics(gateway, "cached")
        assert (found.execution_count, found.inference_stats.success.count) == (1, 10)
        assert (counts(found)["cache_hit"], counts(found)["cache_miss"], counts(found)["queue"]) == (9, 1, 10)


def test_the_least_recently_used_gives_way(repository: RepositoryBuilder, gate: Gate) -> None:
    """When the cache is full, what was asked for longest ago goes, and what is asked for often stays."""
    repository.add("cached", gate.files, CACHED + "max_batch_size: 100000\n" + gate.config)
    gate.open()
    with serving(repository.root, "--cache-size-mb", "1") as gateway:

        def ask(value: float, rows: int = 80_000) -> bool:
            """Whether the model had to compute it; 80,000 rows are 320 kB, so that three fit."""
            before = statistics(gateway, "cached").execution_count
            assert (infer(gateway, "cached", np.full(rows, value, np.float32), "x") == value).all()
            return statistics(gateway, "cached").execution_count > before

        assert [ask(1), ask(2), ask(3)] == [True] * 3
        assert [ask(1), ask(2), ask(3), ask(1)] == [False] * 4
        assert ask(4)
        assert [ask(1), ask(3), ask(4)] == [False] * 3
        assert ask(2)
        assert ask(5, 2)
        assert not ask(5, 2)


def test_memory_stays_below_the_limit(repository: RepositoryBuilder) -> None:
    """However many different questions come, the cache takes no more memory than it may."""
    repository.add("cached", config=ECHO + CACHED)
    with serving(repository.root, "--cache-size-mb", "8") as gateway:
        status = Path(f"/proc/{gateway.server.process.pid}/status")

        def resident_mb() -> float:
            return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024

        for _ in range(2):  # what the first large messages make the server's libraries hold is theirs
            infer(gateway, "cached", np.zeros((1, 250_000), np.float32))
        before = resident_mb()
        for number in range(400):
            infer(gateway, "cached", np.full((1, 250_000), number, np.float32))
        assert resident_mb() < before + 8 + 120  # of 400; the C library does not give back all that it has used


def test_small_answers_are_not_free(repository: RepositoryBuilder) -> None:
    """Millions of tiny answers cannot fill the memory either: what it takes to keep one counts, too."""
    repository.add("cached", config=ECHO + CACHED)
    with serving(repository.root, "--cache-size-mb", "1") as gateway:
        rounds = [[[base + number] for number in range(100)] for base in range(0, 4000, 100)]
        for rows in rounds:  # of some 100 bytes each, less than half a megabyte in all
            calls = [start(gateway, "cached", row, name="INPUT0") for row in rows]
            assert [values(call) for call in calls] == [[row] for row in rows]
        calls = [start(gateway, "cached", row, name="INPUT0") for row in rounds[0]]
        assert [values(call) for call in calls] == [[row] for row in rounds[0]]
        assert counts(statistics(gateway, "cached"))["cache_miss"] == 4100


def test_what_is_too_large_for_the_cache_is_computed(repository: RepositoryBuilder) -> None:
    """An answer larger than the whole cache is given every time, and drives nothing else out."""
    repository.add("cached", config=ECHO + CACHED)
    with serving(repository.root, "--cache-size-mb", "1") as gateway:
        small, large = np.ones((1, 4), np.float32), np.ones((1, 300_000), np.float32)
        for array in (small, large, large, small):
            assert infer(gateway, "cached", array).tobytes() == array.tobytes()
        found = statistics(gateway, "cached")
        assert (found.execution_count, counts(found)["cache_hit"]) == (3, 1)


def test_a_model_gone_leaves_its_room(repository: RepositoryBuilder) -> None:
    """Unloading a model frees what the cache kept for it."""
    repository.add("gone", config=ECHO + CACHED)
    repository.add("stays", config=ECHO + CACHED)
    with serving(
        repository.root, "--model-control", "explicit", "--load-model", "*", "--cache-size-mb", "2"
    ) as gateway:
        kept = np.ones((1, 200_000), np.float32)
        infer(gateway, "stays", kept)
        for number in range(3):
            infer(gateway, "gone", np.full((1, 100_000), number, np.float32))
            infer(gateway, "stays", kept)
        unload(gateway, "gone")
        infer(gateway, "stays", kept + 1)
        infer(gateway, "stays", kept)
        assert counts(statistics(gateway, "stays"))["cache_miss"] == 2


def test_ttl_is_per_model(repository: RepositoryBuilder, gate: Gate) -> None:
    """A limit on the age of one model's answers does not concern another's."""
    for name, lines in (("short", parameter("response_cache_ttl_s", 0.05)), ("cached", "")):
        repository.add(name, gate.files, CACHED + lines + gate.config)
    gate.open()
    with serving(repository.root) as gateway:
        began = time.monotonic()
        while statistics(gateway, "short").execution_count < 3:
            assert time.monotonic() < began + 60
            assert [values(start(gateway, name, 1)) for name in ("short", "cached")] == [[1], [1]]
        assert statistics(gateway, "cached").execution_count == 1
