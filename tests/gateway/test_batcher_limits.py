"""How long requests wait, how many may, and which are not worth beginning."""

from __future__ import annotations

import pytest
from support.batching import LAYOUT, Rig
from support.fake_clock import on_fake_clock, settled, until

from gateway.errors import DeadlineExceeded, QueueFull

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
async def test_expiry_in_a_queue_of_several_shapes():
    """Expired requests of one shape leave those of another, and of their own, in place."""
    rig = Rig(takes=2, layout=LAYOUT)
    rig.ask(0)
    await settled()
    calls = [rig.ask(value, width=2 + value % 2, timeout=1 if value < 3 else 9) for value in range(1, 6)]
    await rig.finish()
    assert [call.failed_with for call in calls] == [DeadlineExceeded, DeadlineExceeded, None, None, None]
    assert rig.runs == [[0], [3, 5], [4]]
