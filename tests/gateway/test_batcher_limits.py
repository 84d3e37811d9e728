"""How long requests wait, how many may, and which are not worth beginning."""

from __future__ import annotations

import re

import pytest
from support.batching import LAYOUT, Rig
from support.fake_clock import on_fake_clock, settled, until

from gateway.batch import BatchLayout
from gateway.errors import DeadlineExceeded, QueueFull
from gateway.tensor_rules import TensorRule

ONE = "max_batch_size: 1 dynamic_batching { %s }"
LIMITED = ONE % "default_queue_policy { %s }"


@on_fake_clock
async def test_full_queue_answers_at_once():
    """Beyond max_queue_size a request is refused immediately, naming the setting, and nothing of it waits."""
    rig = Rig(LIMITED % "max_queue_size: 2")
    rig.ask(0)
    await until(0.25)
    waiting = rig.ask_all([1, 2])
    refused = rig.ask(3)
    await settled()
    assert (refused.failed_with, refused.ended) == (QueueFull, 0.25)
    assert str(refused.error) == "2 requests wait already (max_queue_size): try again later or elsewhere"
    await rig.finish()
    assert [call.ended for call in waiting] == [2, 3]


@pytest.mark.parametrize("leaves", ["cancelled", "expired", "executed"])
@on_fake_clock
async def test_room_in_the_queue_is_free_again(leaves):
    """Whoever leaves the queue makes room at that moment: by leaving, by running out of time or by being executed."""
    rig = Rig(LIMITED % "max_queue_size: 1")
    rig.ask(0)
    await until(0.25)
    first = rig.ask(1, timeout=0.5 if leaves == "expired" else 9)
    await settled()
    if leaves == "cancelled":
        first.task.cancel()
    await until({"cancelled": 0.25, "expired": 0.75, "executed": 1}[leaves])
    second, third = rig.ask_all([2, 3])
    await rig.finish()
    assert second.answered
    assert third.failed_with is QueueFull


@on_fake_clock
async def test_levels_have_queues_of_their_own():
    """A level with its own policy is full and times out by that, the others by the default policy."""
    own = "priority_queue_policy { key: 1 value { max_queue_size: 1 default_timeout_microseconds: 500000 } }"
    rig = Rig(
        ONE % f"priority_levels: 2 default_priority_level: 2 default_queue_policy {{ max_queue_size: 3 }} {own}", 4
    )
    rig.ask(0)
    await settled()
    urgent = [rig.ask(value, priority=1) for value in (1, 2)]
    others = rig.ask_all([3, 4, 5, 6])
    await rig.finish()
    assert [(call.failed_with, call.ended) for call in urgent] == [(DeadlineExceeded, 0.5), (QueueFull, 0)]
    assert [call.failed_with for call in others] == [None, None, None, QueueFull]


@pytest.mark.parametrize("limit", [{"within": 0.5}, {"timeout": 0.5}, {"within": 0.5, "timeout": 2}])
@on_fake_clock
async def test_expired_requests_are_answered_while_a_batch_runs(limit):
    """A request that runs out of time hears so at that moment, not when the long batch before it ends."""
    rig = Rig(takes=8)
    rig.ask(0)
    await until(0.25)
    call = rig.ask(1, **limit)
    await until(1)
    assert (call.failed_with, call.ended) == (DeadlineExceeded, 0.75)
    assert str(call.error) == "not executed within the 500 ms it could wait"
    await rig.finish()
    assert rig.runs == [[0]]


@on_fake_clock
async def test_each_request_expires_at_its_own_time():
    """Requests with different limits, added in any order, each expire at their own moment."""
    rig = Rig(takes=8)
    rig.ask(0)
    await settled()
    calls = [rig.ask(1, timeout=limit) for limit in (2, 0.5, 1, 0.25, 3)]
    await rig.finish()
    assert [call.ended for call in calls] == [2, 0.5, 1, 0.25, 3]


@on_fake_clock
async def test_limits_end_when_execution_begins():
    """`timeout` and the policy's timeout are about waiting: what executes is answered however long that takes."""
    rig = Rig(LIMITED % "default_timeout_microseconds: 500000", takes=4)
    call = rig.ask(1, timeout=0.25)
    await rig.finish()
    assert (call.answered, call.ended) == (True, 4)


@on_fake_clock
async def test_default_timeout_rejects():
    """default_timeout_microseconds: who waited that long is refused; timeout_action REJECT is the default."""
    rig = Rig(LIMITED % "default_timeout_microseconds: 1500000")
    calls = rig.ask_all([0, 1, 2])
    await rig.finish()
    assert [call.failed_with for call in calls] == [None, None, DeadlineExceeded]
    assert calls[2].ended == 1.5


@on_fake_clock
async def test_default_timeout_delays():
    """timeout_action DELAY: who waited too long goes behind those who did not, and still gets an answer."""
    rig = Rig(LIMITED % "default_timeout_microseconds: 1250000 timeout_action: DELAY")
    calls = rig.ask_all([0, 1, 2])
    await until(1.5)
    late = rig.ask(3)
    bound = rig.ask(4, within=4)
    await rig.finish()
    assert rig.batches == [(0, [0]), (1, [1]), (2, [3]), (3, [2]), (4, [4])]
    assert all(call.answered for call in [*calls, late, bound])


@on_fake_clock
async def test_delayed_request_keeps_its_deadline():
    """timeout_action DELAY lengthens no deadline: who cannot be answered by it any more is told so."""
    rig = Rig(LIMITED % "default_timeout_microseconds: 250000 timeout_action: DELAY", takes=4)
    rig.ask(0)
    await settled()
    call = rig.ask(1, within=2)
    await rig.finish()
    assert (call.failed_with, call.ended) == (DeadlineExceeded, 2)


@pytest.mark.parametrize(
    ("queue_policy", "wanted", "ended"),
    [
        ("default_timeout_microseconds: 1000000 allow_timeout_override: true", 0.5, 0.5),
        ("default_timeout_microseconds: 1000000 allow_timeout_override: true", 2, 1),
        ("default_timeout_microseconds: 1000000", 0.5, 1),
        ("", 0.5, 0.5),
    ],
)
@on_fake_clock
async def test_requests_own_timeout(queue_policy, wanted, ended):
    """A request's `timeout` shortens the policy's where allow_timeout_override says so, and never lengthens it."""
    rig = Rig(LIMITED % queue_policy, takes=8)
    rig.ask(0)
    await settled()
    call = rig.ask(1, timeout=wanted)
    await rig.finish()
    assert (call.failed_with, call.ended) == (DeadlineExceeded, ended)


@pytest.mark.parametrize(("wanted", "within", "ended"), [(0.5, 1, 0.5), (1, 0.5, 0.5)])
@on_fake_clock
async def test_earlier_of_timeout_and_deadline_counts(wanted, within, ended):
    """With both a `timeout` and a gRPC deadline, whichever comes first ends the wait."""
    rig = Rig(takes=8)
    rig.ask(0)
    await settled()
    call = rig.ask(1, timeout=wanted, within=within)
    await rig.finish()
    assert (call.failed_with, call.ended) == (DeadlineExceeded, ended)


@on_fake_clock
async def test_deadline_that_has_passed_is_refused():
    """A request that arrives too late is told so, and not queued."""
    rig = Rig()
    call = rig.ask(1, within=-0.5)
    await rig.finish()
    assert (call.failed_with, call.ended, rig.runs) == (DeadlineExceeded, 0, [])
    assert str(call.error) == "the deadline had passed before the request could be executed"


@on_fake_clock
async def test_what_cannot_be_finished_in_time_is_refused_on_arrival():
    """Once it is known that the model takes a second, half a second is refused at once, without any compute."""
    rig = Rig()
    rig.ask(0)
    await until(1)
    tight, ample = rig.ask(1, within=0.5), rig.ask(2, within=1.5)
    await rig.finish()
    assert (tight.failed_with, tight.ended) == (DeadlineExceeded, 1)
    assert re.fullmatch(r"cannot be answered in the 500 ms left: .*it takes about 1e\+03 ms", str(tight.error))
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
async def test_expiry_in_a_queue_of_several_shapes():
    """Expired requests of one shape leave those of another, and of their own, in place."""
    rig = Rig(takes=2, layout=LAYOUT)
    rig.ask(0)
    await settled()
    calls = [rig.ask(value, width=2 + value % 2, timeout=1 if value < 3 else 9) for value in range(1, 6)]
    await rig.finish()
    assert [call.failed_with for call in calls] == [DeadlineExceeded, DeadlineExceeded, None, None, None]
    assert rig.runs == [[0], [3, 5], [4]]
