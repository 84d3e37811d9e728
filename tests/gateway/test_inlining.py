"""Executions that take less than handing them to a thread stay on the event loop; nobody ever waits for them there."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from support.batching import POISON, Rig
from support.calls import first_output, refusal, request
from support.fake_clock import fake_loop, on_fake_clock, settled
from support.models import RepositoryBuilder
from support.server import serving

from gateway.errors import ExecutionFailed


async def known(rig: Rig, count: int = 12) -> None:
    """Send requests one after the other until the batcher has seen enough of them."""
    for number in range(count):
        await rig.ask(float(number)).task


NAMED = """
import threading
import grpc
import numpy as np

class Model:
    inputs, outputs = [("x", "float32", (-1, 1))], [("thread", object, (-1, 1))]
    {line}
    def execute(self, inputs):
        return {{"thread": np.array([[threading.current_thread().name.encode()]], object)}}
"""
WHERE = request("named", {"x": np.zeros((1, 1), np.float32)})


def here(rig: Rig) -> list[bool]:
    """Whether each batch ran on the event loop."""
    return [run.here for run in rig.instances[0].runs]


@on_fake_clock
async def test_swift_model_is_executed_on_the_event_loop_once_it_is_known_to_be_swift():
    """A tiny model's caller does not pay for two threads handing its request to and fro."""
    rig = Rig(inline=True)
    await known(rig)
    assert here(rig)[:4] == [False] * 4
    assert here(rig)[-1]
    await rig.finish()


@on_fake_clock
async def test_other_sizes_are_judged_by_themselves():
    """One row may be swift and a thousand slow: each size has to show it."""
    rig = Rig(inline=True)
    await known(rig)
    await rig.ask(1.0, rows=8).task
    assert here(rig)[-1] is False
    await rig.finish()


@on_fake_clock
async def test_model_whose_backend_does_not_allow_it_keeps_to_its_thread():
    """Python code that may wait for anything never runs where everybody would wait with it."""
    rig = Rig()
    await known(rig)
    assert not any(here(rig))
    await rig.finish()


@on_fake_clock
async def test_slow_model_keeps_to_its_thread():
    """Who computes for milliseconds never holds up the others."""
    rig = Rig(inline=True, processor_us=lambda: 1000)
    await known(rig)
    assert not any(here(rig))
    await rig.finish()


@on_fake_clock
async def test_model_that_has_become_slow_goes_back_to_its_thread():
    """One slow execution on the event loop is followed by none, until it has been swift for long again."""
    takes = [10]
    rig = Rig(inline=True, processor_us=lambda: takes[0])
    await known(rig)
    takes[0] = 5000
    await known(rig, 3)
    takes[0] = 10
    await known(rig, 20)
    assert here(rig)[12:] == [True] + [False] * 22
    await rig.finish()


@on_fake_clock
async def test_noise_on_the_thread_does_not_hold_for_long():
    """Neither a first execution that takes long nor another hiccup keeps a swift model on its thread."""
    takes = iter([50_000, 10, 10, 2_000])
    rig = Rig(inline=True, processor_us=lambda: next(takes, 10))
    await known(rig, 4 + 4 + 1)
    assert here(rig) == [False] * 8 + [True]
    await rig.finish()


@on_fake_clock
async def test_first_callers_of_a_large_batch_are_answered_first():
    """Of many callers answered together the first ones can go on while the last ones' answers are being made."""
    rig = Rig("max_batch_size: 64", inline=True)
    for _ in range(8):
        await asyncio.gather(*(call.task for call in rig.ask_all([float(number) for number in range(64)])))
    assert here(rig)[-1]
    calls = rig.ask_all([float(number) for number in range(64)])
    done = [0]
    while done[-1] < 64:
        if 0 < done[-1] < 48:  # the next batch waits: it may be put together where these answers lie
            assert "running=1" in repr(rig.batcher)
        await asyncio.sleep(0)
        done.append(sum(call.task.done() for call in calls))
    assert sorted(set(done)) == [0, 16, 32, 48, 64]
    await rig.finish()


@on_fake_clock
async def test_closing_waits_for_all_answers_of_a_large_batch():
    """A model that is unloaded while it is answering many callers answers all of them."""
    rig = Rig("max_batch_size: 64", inline=True)
    for _ in range(8):
        await asyncio.gather(*(call.task for call in rig.ask_all([float(number) for number in range(64)])))
    calls = rig.ask_all([float(number) for number in range(64)])
    await calls[0].task
    assert not calls[-1].task.done()
    await rig.batcher.aclose()
    assert all(call.answered for call in calls)
    await rig.finish()


@on_fake_clock
async def test_request_that_fails_on_the_event_loop_fails_alone():
    """A poisonous request takes nobody with it, wherever it runs."""
    rig = Rig(inline=True)
    await known(rig)
    for _ in range(8):  # until batches of two are known, too
        await asyncio.gather(*(call.task for call in rig.ask_all([1.0, 2.0])))
    good, bad = rig.ask_all([3.0, POISON])
    await settled()
    assert here(rig)[-3:] == [True] * 3
    assert good.answered
    assert bad.failed_with is ExecutionFailed
    await rig.finish()


@on_fake_clock
async def test_others_have_their_turn_between_many_swift_batches():
    """However many requests a burst brings to a swift model, what else the server does goes on in between."""

    def block(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fake_loop().block(0.0001)
        return {"y": 2 * inputs["x"] + 1}

    rig = Rig("max_batch_size: 1", inline=True, execute=block)
    await known(rig)
    assert here(rig)[-1]
    calls = rig.ask_all([float(number) for number in range(200)])
    turns = 0
    while not calls[-1].task.done():
        await asyncio.sleep(0)
        turns += any(call.task.done() for call in calls) and not all(call.task.done() for call in calls)
    assert turns >= 3
    await rig.finish()


@pytest.mark.parametrize("rows", [1, 3])
@on_fake_clock
async def test_answers_are_the_same_on_the_event_loop(rows):
    """Where a batch runs is nothing that its callers can tell."""
    rig = Rig(inline=True)
    await known(rig)
    for number in range(8):
        call = rig.ask(float(number), rows=rows)
        assert await call.task == float(number)
        np.testing.assert_array_equal(call.request.inputs["x"], np.full((rows, 2), number, np.float32))
    await rig.finish()


@pytest.mark.parametrize(("line", "moves"), [("inline = True", True), ("", False)])
def test_model_py_says_that_it_only_computes(
    repository: RepositoryBuilder, transport: str, line: str, *, moves: bool
) -> None:
    """A model.py that says so answers from the server's own thread once it is known to be swift; no other does."""
    repository.add("named", {"model.py": NAMED.format(line=line)})
    with serving(repository.root, "--transport", transport) as gateway:
        threads = [first_output(gateway.stub.ModelInfer(WHERE)).item() for _ in range(100)]
        assert threads[0] == b"named/1#0"
        while moves and threads[-1] != b"MainThread":  # on a busy machine it takes a while to look swift
            threads.append(first_output(gateway.stub.ModelInfer(WHERE)).item())
        assert (b"MainThread" in threads) is moves


MOODY = """
import time
import threading
import numpy as np

class Model:
    inputs, outputs = [("x", "float32", (-1, 1))], [("threads", object, (-1, 2))]
    inline = True
    napped = b""
    def execute(self, inputs):
        mood, thread = inputs["x"][0, 0], threading.current_thread().name.encode()
        if mood:
            time.sleep(0.06)
            self.napped = thread
        if mood == 2: raise ValueError("tired")
        return {"threads": np.array([[thread, self.napped]], object)}
"""


@pytest.mark.parametrize("mood", [1, 2])
def test_model_that_takes_a_nap_goes_back_to_its_thread(repository: RepositoryBuilder, mood: int) -> None:
    """A model that waits after all, or is slow to fail, holds up everybody once, and from then on itself alone."""
    repository.add("named", {"model.py": MOODY})
    nap = request("named", {"x": np.full((1, 1), mood, np.float32)})
    with serving(repository.root) as gateway:

        def threads() -> list[bytes]:
            """The one of this call, and that of the latest nap."""
            return first_output(gateway.stub.ModelInfer(WHERE))[0].tolist()

        while threads()[1] != b"MainThread":  # on a busy machine a model may lose its place for other reasons
            while threads()[0] != b"MainThread":
                pass
            for _ in range(30):  # it is trusted well
                threads()
            gateway.stub.ModelInfer.future(nap).exception()
        assert [threads()[0] for _ in range(20)] == [b"named/1#0"] * 20


PANIC = """
class Panic(BaseException): pass

class Model:
    inputs, outputs = [("x", "float32", (-1, 1))], [("y", "float32", (-1, 1))]
    inline = True
    def execute(self, inputs):
        if inputs["x"][0, 0] == 1: raise SystemExit(3)
        if inputs["x"][0, 0] == 2: raise Panic("patient 4711")
        return {"y": inputs["x"]}
"""


def test_not_even_an_exit_on_the_event_loop_ends_the_server(repository: RepositoryBuilder, transport: str) -> None:
    """Whatever a model raises there, its caller is told so and the others are answered."""
    repository.add("named", {"model.py": PANIC})

    def ask(value: float) -> object:
        return first_output(gateway.stub.ModelInfer(request("named", {"x": np.full((1, 1), value, np.float32)}))).item()

    with serving(repository.root, "--transport", transport) as gateway:
        assert [ask(0) for _ in range(100)] == [0] * 100
        for value in (1, 2):
            code, told = refusal(lambda value=value: ask(value))
            assert code is grpc.StatusCode.INTERNAL
            assert "4711" not in told
            assert ask(0) == 0
        gateway.server.signal()
        assert gateway.server.wait() == 0
