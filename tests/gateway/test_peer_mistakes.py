"""Mistakes of other servers that this one is not to repeat; each test is named after who made it."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import numpy as np
import pytest
from support.batching import POISON, Rig, request
from support.caching import CachedRig, key_of
from support.calls import Gate, eventually, infer, refusal
from support.calls import request as message
from support.fake_clock import fake_loop, now, on_fake_clock, settled, until
from support.faults import CONFIDENTIAL
from support.server import serving

from gateway.cache import ResponseCache
from gateway.errors import DeadlineExceeded
from tensorgate_client.wire import inference_pb2 as pb

LEAKY = f"""
class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        if (inputs["x"] == {POISON}).any():
            raise KeyError("{CONFIDENTIAL}")
        return {{"y": inputs["x"]}}
"""

QUEUE = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }"


@pytest.mark.parametrize("leaver", range(4))
@pytest.mark.parametrize("moment", [0.25, 1.5])
@on_fake_clock
async def test_mlserver_cancelling_one_of_a_batch_leaves_no_one_hanging(leaver, moment):
    """MLServer: whoever hung up left those behind in the batch without an answer. Queued or executing, nobody hangs."""
    rig = Rig()
    rig.ask(0)
    await settled()
    calls = rig.ask_all([1, 2, 3, 4])
    await until(moment)
    calls[leaver].task.cancel()
    await rig.finish()
    assert [call.ended for call in calls] == [moment if index == leaver else 2 for index in range(4)]


@on_fake_clock
async def test_mlserver_cache_is_lru_and_key_has_the_model():
    """MLServer: its cache forgets the oldest entry, however popular, and gives one model's answers for another's."""
    store = ResponseCache(1700, fake_loop().time)  # three responses
    rig = CachedRig(store=store)
    other = CachedRig(store=store, execute=lambda inputs: {"y": 2 * inputs["x"] + 1})
    for value in (1, 2, 3, 1, 4, 1, 2):  # 4 drives out 2, which nobody asked for again
        await rig.ask(value).task
    assert [call.hit for call in rig.calls] == [False, False, False, True, False, True, False]
    assert store.used_bytes <= 1700
    await other.ask(1).task
    assert not other.calls[0].hit
    await asyncio.gather(rig.finish(), other.finish())


@on_fake_clock
async def test_triton_cache_key_knows_shape_and_datatype():
    """Triton: equal bytes were equal requests, whatever their shape and datatype. Each gets the answer to its own."""
    rig = CachedRig("max_batch_size: 8")
    wide, tall, other = request(0, 2, 3), request(0, 3, 2), request(0, 2, 3)
    numbers = np.arange(6, dtype=np.float32)
    wide.inputs["x"], tall.inputs["x"] = numbers.reshape(2, 3), numbers.reshape(3, 2)
    other.inputs["x"] = numbers.view(np.int32).reshape(2, 3)
    await asyncio.gather(rig.send(wide).task, rig.send(tall).task)
    assert [call.hit for call in rig.calls] == [False, False]
    assert key_of(rig.cache, other) != key_of(rig.cache, wide)
    await rig.finish()


@on_fake_clock
async def test_triton_timeouts_fire_while_a_batch_runs():
    """Triton: a queued request's time-out fired only when the running batch was over. Here it fires when it is due."""
    rig = Rig(takes=60)
    rig.ask(0)
    await settled()
    calls = [rig.ask(1, timeout=0.5), rig.ask(2, within=0.75)]
    await until(1)
    assert [(call.failed_with, call.ended) for call in calls] == [(DeadlineExceeded, 0.5), (DeadlineExceeded, 0.75)]
    await rig.finish()


@on_fake_clock
async def test_triton_reload_serves_no_stale_entry():
    """Triton: after a reload, the old model's answers came from the cache. Here the new model is asked."""
    store = ResponseCache(100_000, fake_loop().time)
    old = CachedRig(store=store, execute=lambda inputs: {"y": inputs["x"] * 2 + 1})
    await old.ask(1).task
    running = old.ask(2)
    await settled()
    new = CachedRig(store=store, execute=lambda inputs: {"y": inputs["x"] * 2 + 1})
    calls = new.ask_all([1, 2])  # one is kept by the old load, the other being computed by it
    await asyncio.gather(old.finish(), new.finish())
    assert running.answered
    assert [call.hit for call in calls] == [False, False]
    assert new.runs == [[1], [2]]


@on_fake_clock
async def test_triton_interleaved_shapes_still_batch():
    """Triton: alternating shapes meant batches of one. Here each shape's requests run together."""
    rig = Rig("max_batch_size: 8")
    rig.ask(0, width=9)
    await settled()
    for value in range(16):
        rig.ask(value, width=1 + value % 2)
    await rig.finish()
    assert [len(batch) for batch in rig.runs] == [1, 8, 8]


@pytest.mark.parametrize("where", ["instance", "model", "result", "counters", "encoding"])
@on_fake_clock
async def test_infinity_an_exception_anywhere_kills_nothing(where, monkeypatch):
    """infinity: an exception outside the loop's `try` killed the engine, and every caller hung."""
    broken = True

    def fail(*_: object) -> None:
        if broken:
            raise LookupError(where)

    def before(_: object) -> list | None:
        if where == "instance":
            fail()
        return [] if where == "result" and broken else None

    def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if where == "model":
            fail()
        return {"y": 2 * inputs["x"] + 1}

    rig = CachedRig(
        "max_batch_size: 8", before=before, execute=execute, on_executed=lambda _: where == "counters" and fail()
    )
    if where == "encoding":
        encode = rig.cache._encode
        monkeypatch.setattr(rig.cache, "_encode", lambda *args: fail() or encode(*args))
    calls = rig.ask_all([1, 2, 3, 1])
    await until(30)
    assert all(call.task.done() for call in calls), "somebody hangs"
    broken = False
    after = rig.ask_all([4, 5, 1])
    await rig.finish()
    assert all(call.answered for call in after)
    fake_loop().errors.clear()  # asyncio may report what failed beside a request


@pytest.mark.parametrize("config", ["max_batch_size: 8", QUEUE])
@on_fake_clock
async def test_litserve_bentoml_nothing_polls(config):
    """LitServe, BentoML: idle queues are looked at every millisecond. Here an idle hour is one step of the loop."""
    rig = CachedRig(config, ttl_s=5)
    for value in (1, 2):
        rig.ask(value, within=4, timeout=3)
    await until(10)
    before = fake_loop().rounds
    await asyncio.sleep(3600)
    assert fake_loop().rounds - before <= 2
    busy = rig.ask(3)
    await settled()
    before, began = fake_loop().rounds, now()
    await busy.task
    assert fake_loop().rounds - before <= 10, f"waited from {began} to {now()} in small steps"
    await rig.finish()


def test_kserve_execute_never_blocks_the_event_loop(repository, tmp_path):
    """KServe: a model that computes holds up health checks. Here the server answers everything else meanwhile."""
    gate = Gate(tmp_path / "gate")
    repository.add("slow", gate.files, gate.config)
    repository.add("quick", config='backend: "echo"')
    with serving(repository.root) as gateway:
        calls = [gateway.stub.ModelInfer.future(message("slow", {"x": np.float32([n])}), timeout=60) for n in range(3)]
        eventually(gate.begun)
        assert gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live
        assert gateway.stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready
        assert infer(gateway, "quick").tolist() == [[1, 1, 1, 1]]
        assert not any(call.done() for call in calls)
        gate.open()
        assert all(call.result(60) for call in calls)


def test_mlserver_exception_text_does_not_reach_clients(repository):
    """MLServer: the text of any exception went to the client. Here it goes to the log, under an id the client gets."""
    repository.add(
        "leaky", {"model.py": LEAKY}, "max_batch_size: 8 response_cache { enable: true } dynamic_batching { }"
    )
    arrays = [np.full((1, 4), value, np.float32) for value in (1, POISON, 3, POISON)]
    with serving(repository.root) as gateway:
        calls = [gateway.stub.ModelInfer.future(message("leaky", {"x": array}), timeout=60) for array in arrays]
        refusals = [refusal(call.result) for call, array in zip(calls, arrays, strict=True) if POISON in array]
        assert all(call.result(60) for call in itertools.compress(calls, (POISON not in array for array in arrays)))
        for code, details in refusals:
            assert code is grpc.StatusCode.INTERNAL
            assert CONFIDENTIAL not in details
            assert "KeyError" not in details
            assert "model.py" not in details
            correlation = details.partition("id ")[2].partition(";")[0]
            assert gateway.server.wait_for_log(correlation)
        assert gateway.server.wait_for_log(CONFIDENTIAL)
