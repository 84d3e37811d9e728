"""How long batches take, as the batcher learns it, and whom it refuses for that; on a fake clock."""

from __future__ import annotations

import re

import pytest
from support.batching import Rig
from support.fake_clock import now, on_fake_clock, settled, until

from gateway.batch import BatchLayout
from gateway.errors import DeadlineExceeded
from gateway.tensor_rules import TensorRule

ONE = "max_batch_size: 1 dynamic_batching { %s }"


@on_fake_clock
async def test_what_cannot_be_finished_in_time_is_refused_on_arrival():
    """Once it is known that the model takes a second, half a second is refused at once, without any compute."""
    rig = Rig()
    rig.ask(0)
    await until(1)
    tight, ample = rig.ask(1, within=0.5), rig.ask(2, within=1.5)
    await rig.finish()
    assert (tight.failed_with, tight.ended) == (DeadlineExceeded, 1)
    assert re.fullmatch(r"cannot be answered in the 500 ms left: .*it takes about 1 s", str(tight.error))
    assert ample.answered
    assert rig.runs == [[0], [2]]


@pytest.mark.parametrize("takes", [0.25, 4])
@on_fake_clock
async def test_what_waited_too_long_to_finish_is_not_begun(takes):
    """Who was overtaken and whose time no longer suffices is told so, and costs no compute; slow models included."""
    rig = Rig(ONE % "priority_levels: 2 default_priority_level: 2", takes)
    rig.ask(0)
    await until(takes)
    rig.ask(1)
    await settled()
    late = rig.ask(2, within=2.5 * takes)
    await until(1.5 * takes)
    rig.ask(3, priority=1)
    await until(2.5 * takes)
    ample = rig.ask(4)
    await rig.finish()
    assert (late.failed_with, late.ended) == (DeadlineExceeded, 3 * takes)
    assert ample.answered
    assert rig.runs == [[0], [1], [3], [4]]


@pytest.mark.parametrize("takes", [0.25, 4])
@on_fake_clock
async def test_what_waits_ahead_counts(takes):
    """A request that could be finished in time alone, but not behind those that wait already, is refused on arrival."""
    rig = Rig("max_batch_size: 1", takes)
    rig.ask(0)
    await until(takes)
    rig.ask_all([1, 2, 3], within=3.5 * takes)
    await until(1.5 * takes)
    tight, ample = rig.ask(4, within=3.25 * takes), rig.ask(5, within=6 * takes)
    await rig.finish()
    assert ample.answered
    assert [4] not in rig.runs
    assert tight.failed_with is DeadlineExceeded


@on_fake_clock
async def test_durations_are_those_of_the_shape():
    """That long texts take long does not turn short ones away."""
    rig = Rig(takes=lambda batch: 4.0 if batch.requests[0].inputs["x"].shape[1] == 9 else 0.25)
    rig.ask(0, width=9)
    await until(4)
    short, long = rig.ask(1, width=2, within=1), rig.ask(2, width=9, within=1)
    await rig.finish()
    assert short.answered
    assert long.failed_with is DeadlineExceeded


@on_fake_clock
async def test_durations_of_a_model_that_does_not_batch_are_those_of_the_whole_shape():
    """Where nothing is batched, the first dimension is a size like any other: long inputs say nothing of short ones."""
    rules = {"x": TensorRule("x", "FP32", (-1, -1))}, {"y": TensorRule("y", "FP32", (-1, -1))}
    rig = Rig("", lambda batch: float(len(batch.requests[0].inputs["x"])), layout=BatchLayout(*rules))
    big = rig.ask(0, rows=8)
    big.request.rows = 1  # as `decode` counts where nothing is batched
    await until(8)
    small = rig.ask(1, within=2)
    await rig.finish()
    assert small.answered


@on_fake_clock
async def test_small_batches_say_what_large_ones_take_at_least_but_not_the_other_way_round():
    """A measured batch of 8 turns no single row away, while a measured single row bounds a request of 8."""
    rig = Rig(takes=lambda batch: batch.rows / 4)
    rig.ask(0, rows=8)
    await until(2)
    single = rig.ask(1, within=0.5)
    await until(2.5)
    eight = rig.ask(2, rows=8, within=1)
    await rig.finish()
    assert single.answered
    assert eight.failed_with is DeadlineExceeded


@on_fake_clock
async def test_bad_measurement_does_not_hold_for_ever():
    """After one hiccup of ten seconds, requests with a deadline are let through again before long."""
    duration = 10.0
    rig = Rig(takes=lambda _: duration)
    rig.ask(0)
    await until(10)
    duration = 0.25
    refused = rig.ask(1, within=0.5)
    await until(60)
    call = rig.ask(2, within=0.5)
    await rig.finish()
    assert refused.failed_with is DeadlineExceeded
    assert (call.answered, call.ended) == (True, 60.25)


@on_fake_clock
async def test_one_slow_execution_among_quick_ones_turns_nobody_away():
    """The first execution is often slow: from the second on, it no longer counts."""
    duration = 10.0
    rig = Rig("max_batch_size: 1", takes=lambda _: duration)
    rig.ask_all([0, 1])
    await until(9)
    duration = 0.25
    await until(10.25)
    call = rig.ask(2, within=0.5)
    await rig.finish()
    assert (call.answered, call.ended) == (True, 10.5)


@on_fake_clock
async def test_bad_measurement_of_one_shape_ends_though_others_keep_the_model_busy():
    """A shape that was slow once is served again before long, also on a model that is never idle."""
    slow = 4.0
    rig = Rig("max_batch_size: 1", lambda batch: slow if batch.requests[0].inputs["x"].shape[1] == 9 else 0.25)
    rig.ask(0, width=9)
    await until(4)
    slow = 0.25
    wide = []
    for step in range(80):
        rig.ask_all([1, 1])
        wide.append(rig.ask(2, width=9, within=2))
        await until(4 + step + 1)
    await rig.finish()
    assert sum(call.answered for call in wide) >= 70


@pytest.mark.parametrize("hiccups", [1, 3, 20])
@on_fake_clock
async def test_hiccups_do_not_lock_out_an_idle_model(hiccups):
    """However many slow executions there were, an idle model that is quick again serves tight deadlines in a second."""
    duration = 0.5
    rig = Rig("max_batch_size: 1", takes=lambda _: duration)
    for _ in range(hiccups):
        rig.ask(0)
    await until(hiccups * 0.5 + 0.25)
    duration = 0.0625
    began, refused = now(), 0
    for step in range(40):
        call = rig.ask(1, within=0.25)
        await until(began + 0.125 * (step + 1))
        refused += not call.answered
    await rig.finish()
    assert refused <= 8


@on_fake_clock
async def test_slow_model_is_tried_ever_more_rarely_with_deadlines_it_cannot_meet():
    """A model that takes a second, asked for half-second answers all day, does not work for nothing all day."""
    rig = Rig("max_batch_size: 1")
    rig.ask(0)
    await until(1)
    for step in range(100):
        rig.ask(1, within=0.5)
        await until(2 + 1.125 * step)
    await rig.finish()
    assert 2 <= len(rig.runs) <= 10


@on_fake_clock
async def test_urgent_request_gets_a_smaller_batch_when_a_full_one_would_be_too_late():
    """Someone in a hurry is not given up because many others, who are not, would fill the batch."""
    levels = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
    rig = Rig(f"max_batch_size: 8 {levels}", takes=lambda batch: batch.rows / 8)
    rig.ask(0)
    await until(0.125)
    rig.ask_all([1] * 8)
    await until(1.125)
    rig.ask_all([2] * 8)
    await settled()
    rig.ask_all([3] * 8)
    await until(2)
    urgent = rig.ask(9, within=0.5, priority=1)
    await rig.finish()
    assert urgent.answered
