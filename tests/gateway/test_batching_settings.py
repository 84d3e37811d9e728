"""What config.pbtxt says of batching, queueing and padding, and what requests say of it, as callers notice."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import ECHO, Gate, eventually, first_output, index, infer, refusal, request
from support.concurrent import arrived, batches, counts, in_turn, parameter, start, statistics, values
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, serving

Code = grpc.StatusCode
ONE = "max_batch_size: 1\n"
EIGHT = "max_batch_size: 8\n"


def dynamic(lines: str) -> str:
    """Settings of dynamic batching."""
    return f"dynamic_batching {{ {lines} }}\n"


WHEN_FULL = dynamic("max_queue_delay_microseconds: 50000000")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up models."""
    return Gate(tmp_path / "gate")


def busy(gateway: Gateway, gate: Gate, model: str = "gated", *rows: float) -> grpc.Future:
    """A request that keeps the model from executing others."""
    begun = len(gate.begun())
    call = start(gateway, model, *(rows or (0,)))
    eventually(lambda: len(gate.begun()) > begun)
    return call


def test_zero_never_batches(repository: RepositoryBuilder, gate: Gate) -> None:
    """With `max_batch_size: 0` every request is executed by itself, however many wait."""
    repository.add("gated", gate.files, "max_batch_size: 0\n" + gate.config)
    with serving(repository.root) as gateway:
        calls = [busy(gateway, gate), *(start(gateway, "gated", value, value) for value in range(1, 5))]
        arrived(gateway)
        gate.open()
        assert [values(call) for call in calls] == [[0], [1, 1], [2, 2], [3, 3], [4, 4]]
        assert sorted(gate.begun()) == ["0", "1 1", "2 2", "3 3", "4 4"]


def test_preferred_sizes_run_at_once(repository: RepositoryBuilder, gate: Gate) -> None:
    """Rows that make up a preferred size run at once, as many as do; others wait for company."""
    config = dynamic("preferred_batch_size: [2, 6] max_queue_delay_microseconds: 50000000")
    repository.add("gated", gate.files, EIGHT + config + gate.config)
    with serving(repository.root) as gateway:
        calls = [busy(gateway, gate, "gated", 0, 0), *in_turn(gateway, "gated", *([value] for value in range(1, 8)))]
        gate.open()
        assert [values(call) for call in calls[:-1]] == [[0, 0], *([value] for value in range(1, 7))]
        assert not calls[-1].done()
        calls.append(start(gateway, "gated", 8))
        assert [values(call) for call in calls[-2:]] == [[7], [8]]
        assert batches(gateway, "gated") == {2: 2, 6: 1}


def test_a_delay_lets_others_join(repository: RepositoryBuilder, gate: Gate) -> None:
    """With a queue delay a lone row waits that long, and runs with those that come meanwhile."""
    repository.add("gated", gate.files, EIGHT + dynamic("max_queue_delay_microseconds: 700000") + gate.config)
    gate.open()
    with serving(repository.root) as gateway:
        began = time.monotonic()
        calls = [start(gateway, "gated", value) for value in range(3)]
        assert [values(call) for call in calls] == [[0], [1], [2]]
        assert 0.7 <= time.monotonic() - began < 50
        assert batches(gateway, "gated") == {3: 1}


@pytest.mark.usefixtures("transport")
def test_a_delay_does_not_eat_a_deadline(repository: RepositoryBuilder, gate: Gate) -> None:
    """A caller with less time than the queue delay is not kept waiting until it is too late."""
    repository.add("gated", gate.files, EIGHT + WHEN_FULL + gate.config)
    gate.open()
    with serving(repository.root) as gateway:
        assert values(start(gateway, "gated", 1, timeout=4)) == [1]
        assert values(start(gateway, "gated", 1, timeout_us=2_000_000)) == [1]


def test_priorities_have_queues_of_their_own(repository: RepositoryBuilder, gate: Gate) -> None:
    """Urgent requests overtake others, and each level has its own limit, which says so when it is reached."""
    levels = "priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 3 } "
    config = dynamic(levels + "priority_queue_policy { key: 1 value { max_queue_size: 2 } }")
    repository.add("gated", gate.files, ONE + config + gate.config)
    with serving(repository.root) as gateway:
        calls = [busy(gateway, gate)]
        calls += [start(gateway, "gated", 20 + number, priority=priority) for number, priority in enumerate((0, 2, 7))]
        calls += [start(gateway, "gated", 10 + number, priority=1) for number in range(2)]
        arrived(gateway)
        for priority, limit in ((1, 2), (2, 3), (0, 3)):
            call = start(gateway, "gated", 9, priority=priority)
            assert call.code() is Code.RESOURCE_EXHAUSTED
            expected = f"model 'gated': {limit} requests wait already (max_queue_size): try again later or elsewhere"
            assert call.details() == expected
        gate.open()
        assert sorted(values(call)[0] for call in calls) == [0, 10, 11, 20, 21, 22]
        begun = gate.begun()
        assert (begun[0], sorted(begun[1:3]), sorted(begun[3:])) == ("0", ["10", "11"], ["20", "21", "22"])


def test_the_models_own_timeout_ends_the_wait(repository: RepositoryBuilder, gate: Gate) -> None:
    """With a default timeout a request is refused when it is over, also while a batch runs; an override may only be
    shorter, and only where it is allowed.
    """  # noqa: D205  # one sentence
    limited = "default_timeout_microseconds: 150000 "
    policies = {"fixed": limited, "open": limited + "allow_timeout_override: true "}
    for name, policy in policies.items():
        config = dynamic(f"default_queue_policy {{ {policy} }}")
        repository.add(name, gate.files, ONE + config + gate.config)
    with serving(repository.root) as gateway:
        calls = [busy(gateway, gate, name) for name in policies]
        short = {name: start(gateway, name, 1, timeout_us=1000) for name in policies}
        plain, longer = start(gateway, "open", 1), start(gateway, "open", 1, timeout_us=50_000_000)
        waited = {}
        for name, call in (*short.items(), ("plain", plain), ("longer", longer)):
            assert call.code() is Code.DEADLINE_EXCEEDED
            waited[name] = float(call.details().partition("within the ")[2].partition(" ms")[0])
        assert waited["open"] < 150 <= min(waited["fixed"], waited["plain"], waited["longer"])
        gate.open()
        assert [values(call) for call in calls] == [[0], [0]]
        assert sorted(gate.begun()) == ["0", "0"]


def test_delayed_requests_go_last(repository: RepositoryBuilder, gate: Gate) -> None:
    """With the action DELAY a request that waited too long is answered after the others instead of not at all."""
    policy = "default_timeout_microseconds: 50000000 allow_timeout_override: true timeout_action: DELAY"
    repository.add("gated", gate.files, ONE + dynamic(f"default_queue_policy {{ {policy} }}") + gate.config)
    repository.add("clock", gate.files, ONE + gate.config)
    with serving(repository.root) as gateway:
        calls = [busy(gateway, gate), busy(gateway, gate, "clock")]
        calls.append(start(gateway, "gated", 1, timeout_us=20_000))
        arrived(gateway)
        assert start(gateway, "clock", 5, timeout_us=100_000).code() is Code.DEADLINE_EXCEEDED
        calls.append(start(gateway, "gated", 2))
        arrived(gateway)
        gate.open()
        assert [values(call) for call in calls] == [[0], [0], [1], [2]]
        assert gate.begun() == ["0", "0", "2", "1"]


@pytest.mark.usefixtures("transport")
def test_a_deadline_ends_the_wait_during_a_long_batch(repository: RepositoryBuilder, gate: Gate) -> None:
    """A request whose caller's time is up is dropped at that moment, not after the batch before it, nor computed."""
    repository.add("gated", gate.files, EIGHT + gate.config)
    with serving(repository.root) as gateway:
        call = busy(gateway, gate)
        hurried, impatient = start(gateway, "gated", 1, timeout=0.5), start(gateway, "gated", 2, timeout_us=100_000)
        assert hurried.code() is impatient.code() is Code.DEADLINE_EXCEEDED
        assert impatient.details().startswith("model 'gated': not executed within the 1")
        eventually(lambda: statistics(gateway, "gated").inference_stats.fail.count == 2)
        gate.open()
        assert values(call) == [0]
        assert gate.begun() == ["0"]


@pytest.mark.usefixtures("transport")
def test_what_cannot_be_in_time_is_refused_at_once(repository: RepositoryBuilder) -> None:
    """A caller whose time is too short for a model, or for what it is busy with, is told so before anything is done."""
    repository.add("slow", config=ECHO + ONE + parameter("delay_ms", 3000))
    with serving(repository.root) as gateway:
        infer(gateway, "slow")
        began = time.monotonic()
        calls = [start(gateway, "slow", [1] * 4, name="INPUT0", timeout=2)]
        assert calls[0].code() is Code.DEADLINE_EXCEEDED
        long = start(gateway, "slow", [1] * 4, name="INPUT0")
        arrived(gateway)
        calls.append(start(gateway, "slow", [1] * 4, name="INPUT0", timeout=5))
        assert calls[1].code() is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 1.5
        assert not long.done()
        assert all(call.details().startswith("model 'slow': cannot be answered in the ") for call in calls)
        found = statistics(gateway, "slow")
        assert (found.execution_count, counts(found)["fail"]) == (1, 2)


SIZED = """
import time

class Model:
    inputs = [("x", "float32", (-1,))]
    outputs = [("y", "float32", (-1,))]

    def execute(self, inputs):
        time.sleep(len(inputs["x"]) / 1000)
        return {"y": inputs["x"]}
"""


def test_large_requests_do_not_make_small_ones_late(repository: RepositoryBuilder) -> None:
    """Where nothing batches, the time that a large request took is no reason to refuse a small one."""
    repository.add("sized", {"model.py": SIZED}, "max_batch_size: 0\n")
    with serving(repository.root) as gateway:
        infer(gateway, "sized", np.zeros(2500, np.float32), "x")
        assert values(start(gateway, "sized", 1, timeout=2)) == [1]


@pytest.mark.parametrize("key", ["timeout", "priority"])
def test_a_parameter_of_the_wrong_kind(repository: RepositoryBuilder, key: str) -> None:
    """A limit sent as text or below zero is refused with the model's name and what was expected."""
    repository.add("echo", config=ECHO)
    with serving(repository.root) as gateway:
        for field, value in (("string_param", "100"), ("int64_param", -5), ("bool_param", True)):
            message = request("echo", {"INPUT0": np.zeros((1, 1), np.float32)})
            setattr(message.parameters[key], field, value)
            code, text = refusal(lambda message=message: gateway.stub.ModelInfer(message, timeout=60))
            assert code is Code.INVALID_ARGUMENT
            expected = (
                f"model 'echo': parameter '{key}': expected int64_param or uint64_param, at least 0, got {field}: "
            )
            assert text.startswith(expected)


def test_a_fixed_batch_size_serves_single_rows(repository: RepositoryBuilder) -> None:
    """A model file that runs with four rows and no other number answers requests of one to four, each its own rows."""
    tensors = 'input { name: "x" data_type: TYPE_FP32 dims: 4 }\noutput { name: "y" data_type: TYPE_FP32 dims: 4 }\n'
    config = "max_batch_size: 4\n" + tensors + parameter("batch_sizes", "4")
    repository.add("fixed", {"model.onnx": onnx_identity("FP32", (4, 4))}, config)
    with serving(repository.root) as gateway:
        for rows in (1, 2, 3, 4):
            array = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
            assert infer(gateway, "fixed", array, "x").tobytes() == array.tobytes()
        assert batches(gateway, "fixed") == {1: 1, 2: 1, 3: 1, 4: 1}
        sent = [[[number, 2, 3, 4]] for number in range(30)]
        calls = [start(gateway, "fixed", *rows) for rows in sent]
        assert [values(call) for call in calls] == sent


def test_padding_brings_lengths_together(repository: RepositoryBuilder) -> None:
    """Sequences of different lengths share a batch by padding, and each answer has the caller's own length."""
    config = "max_batch_size: 3\n" + WHEN_FULL + parameter("pad", "x[1] y[1]: 4 8")
    repository.add("padded", {"model.onnx": onnx_identity("FP32", ("batch", "length"))}, config)
    with serving(repository.root) as gateway:
        for lengths in ((2, 4, 3), (5, 8, 6), (9, 9, 9)):
            sent = [[list(range(10 * length, 11 * length))] for length in lengths]
            calls = [start(gateway, "padded", *rows) for rows in sent]
            assert [first_output(call.result(60)).tolist() for call in calls] == sent
        assert batches(gateway, "padded") == {3: 3}
        calls = [start(gateway, "padded", [0] * length, timeout_us=1_000_000) for length in (4, 5, 4)]
        assert [len(values(call)[0]) for call in calls] == [4, 5, 4]
        assert batches(gateway, "padded") == {1: 1, 2: 1, 3: 3}  # shapes that padding keeps apart run apart


PREFERRED = "dynamic_batching: preferred_batch_size 9: expected 1 to max_batch_size, 8"
PAD = "parameter 'pad': "
BAD = {
    "preferred": (dynamic("preferred_batch_size: [4, 9]"), PREFERRED),
    "default_level": (
        dynamic("priority_levels: 2"),
        "dynamic_batching: default_priority_level is not set, expected 1 to 2",
    ),
    "level_over": (
        dynamic("priority_levels: 2 default_priority_level: 3"),
        "dynamic_batching: default_priority_level is 3, expected 1 to 2",
    ),
    "level_policy": (
        dynamic("priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} }"),
        "dynamic_batching: priority_queue_policy for level 3, expected 1 to 2",
    ),
    "pad_syntax": (
        parameter("pad", "INPUT0: 4"),
        PAD + "expected 'INPUT[DIM] ...: SIZE ...', as 'ids[1] mask[1]: 32 64', got 'INPUT0: 4'",
    ),
    "pad_unknown": (parameter("pad", "nobody[1]: 4"), PAD + "the model has no input or output 'nobody'"),
    "pad_batch": (parameter("pad", "INPUT0[0]: 4"), PAD + "INPUT0[0] is no open dimension of 'INPUT0'"),
    "pad_sizes": (parameter("pad", "INPUT0[1]: 0"), PAD + "expected sizes from 1 to 16777216, as '1 8 32', got '0'"),
    "sizes": (
        parameter("batch_sizes", "four"),
        "parameter 'batch_sizes': expected sizes from 1 to 16777216, as '1 8 32'",
    ),
    "sizes_low": (parameter("batch_sizes", "1 4"), "parameter 'batch_sizes': the largest is 4, below max_batch_size 8"),
    "ttl": (
        "response_cache { enable: true }\n" + parameter("response_cache_ttl_s", "soon"),
        "parameter 'response_cache_ttl_s': expected seconds above 0, as '60', got 'soon'",
    ),
    "deterministic": (
        "response_cache { enable: true }\n" + parameter("deterministic", "perhaps"),
        "parameter 'deterministic': expected one of true, false, 1, 0, on, off, got 'perhaps'",
    ),
}


def test_bad_settings_say_what_to_do(repository: RepositoryBuilder) -> None:
    """A setting that cannot hold keeps its model from loading, with the setting, its value and what would do."""
    for name, (config, _) in BAD.items():
        repository.add(name, config=ECHO + EIGHT + config)
    repository.add("good", config=ECHO + EIGHT)
    with serving(repository.root) as gateway:
        listed = index(gateway)
        assert infer(gateway, "good").tolist() == [[1, 1, 1, 1]]
    assert listed.pop("good/1") == ("READY", "")
    assert {name: state for name, (state, _) in listed.items()} == {f"{name}/1": "UNAVAILABLE" for name in BAD}
    for name, (_, expected) in BAD.items():
        assert expected in listed[f"{name}/1"][1]
