"""Which requests run together, where and in which order."""

from __future__ import annotations

import asyncio
import re

import pytest
from support.batching import Rig, policy
from support.fake_clock import fake_loop, now, on_fake_clock, settled, until

from backends.base import LoadError
from gateway.batching_policy import DEFAULT_QUEUE_SIZE

HELD = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 500000 %s }"


@on_fake_clock
async def test_idle_instance_takes_what_is_there():
    """A lone request runs at once, and what comes together while the model is idle runs together."""
    rig = Rig()
    lone = rig.ask(1)
    await until(2)
    assert lone.ended == 1
    calls = rig.ask_all([2, 3, 4])
    await rig.finish()
    assert rig.batches == [(0, [1]), (2, [2, 3, 4])]
    assert all(call.answered for call in calls)


@on_fake_clock
async def test_what_waits_runs_when_the_instance_is_free():
    """Requests that come while the model is busy share its next execution."""
    rig = Rig()
    rig.ask(1)
    for value in (2, 3, 4):
        await until(value / 8)
        rig.ask(value)
    await rig.finish()
    assert rig.batches == [(0, [1]), (1, [2, 3, 4])]


@on_fake_clock
async def test_requests_wait_for_whichever_instance_is_free_first():
    """One slow execution holds up nobody while another instance is free."""
    rig = Rig("max_batch_size: 1", lambda batch: 8.0 if batch.requests[0].inputs["x"][0, 0] == 1 else 1.0, instances=2)
    calls = rig.ask_all([1, 2, 3, 4])
    await rig.finish()
    assert [when for when, _ in rig.batches] == [0, 0, 1, 2]
    assert [call.ended for call in calls] == [8, 1, 2, 3]


@on_fake_clock
async def test_max_batch_size_counts_rows():
    """A batch never has more rows than the model takes, and requests keep their order and their own rows."""
    rig = Rig("max_batch_size: 8")
    calls = [rig.ask(value, rows) for value, rows in ((1, 3), (2, 5), (3, 1), (4, 8), (5, 7))]
    await rig.finish()
    assert rig.runs == [[1, 2], [3], [4], [5]]
    assert all(call.answered for call in calls)
    assert [batch.rows for batch in rig.executed] == [8, 1, 8, 7]


@on_fake_clock
async def test_model_without_batching_runs_one_request_at_a_time():
    """max_batch_size 0: every request is an execution of its own."""
    rig = Rig("max_batch_size: 0")
    calls = rig.ask_all([1, 2, 3])
    await rig.finish()
    assert rig.batches == [(0, [1]), (1, [2]), (2, [3])]
    assert all(call.answered for call in calls)


@on_fake_clock
async def test_preferred_sizes_without_delay():
    """preferred_batch_size alone: the largest preferred size that waits runs, and the rest is not held back."""
    rig = Rig("max_batch_size: 8 dynamic_batching { preferred_batch_size: [2, 4] }")
    rig.ask(0)
    await until(0.5)
    rig.ask_all(range(1, 8))
    await rig.finish()
    assert rig.batches == [(0, [0]), (1, [1, 2, 3, 4]), (2, [5, 6]), (3, [7])]


@on_fake_clock
async def test_preferred_sizes_with_delay():
    """With a delay, too, a preferred size runs the moment it is complete; what makes up none waits for the delay."""
    rig = Rig(HELD % "preferred_batch_size: [2, 4]", takes=0.125, instances=2)
    rig.ask(1)
    await until(0.25)
    rig.ask_all([2, 3, 4])
    await settled()
    assert rig.batches == [(0.25, [1, 2, 3, 4])]
    await until(1)
    rig.ask_all([5, 6, 7])
    await until(2)
    assert rig.batches[1:] == [(1, [5, 6]), (1.5, [7])]
    await rig.finish()


@on_fake_clock
async def test_preferred_size_is_made_of_rows():
    """A request of several rows counts as such towards a preferred size."""
    rig = Rig(HELD % "preferred_batch_size: 4", instances=2)
    rig.ask(1, rows=3)
    await until(0.125)
    rig.ask(2, rows=3)  # 6: not preferred
    await until(0.25)
    rig.ask(3, rows=1)
    await until(0.5)
    assert rig.batches == [(0.5, [1, 2, 3])]
    rig.ask(4, rows=1)
    rig.ask(5, rows=3)
    rig.ask(6, rows=2)
    await until(0.75)
    assert rig.batches[1:] == [(0.5, [4, 5])]
    await rig.finish()


@on_fake_clock
async def test_full_batch_is_not_held_back_though_its_size_is_not_preferred():
    """Once nothing more fits into a batch, waiting for a preferred size would only cost time."""
    rig = Rig(HELD % "preferred_batch_size: 4")
    for value in (1, 2, 3):
        rig.ask(value, rows=3)
    await settled()
    assert rig.batches == [(0, [1, 2])]
    await rig.finish()


@on_fake_clock
async def test_queue_delay_holds_back_a_batch_that_is_not_full():
    """max_queue_delay_microseconds: a request waits that long for others, never longer, and a full batch not at all."""
    rig = Rig(HELD % "", takes=0.125)
    rig.ask(1)
    await until(0.25)
    rig.ask(2)
    await until(1)
    assert rig.batches == [(0.5, [1, 2])]
    rig.ask_all(range(10, 18))
    await settled()
    assert rig.batches[1:] == [(1, list(range(10, 18)))]
    await rig.finish()


@on_fake_clock
async def test_queue_delay_runs_from_each_shapes_own_first_request():
    """Requests of a shape nobody else has wait no longer than the delay, whatever other shapes do."""
    rig = Rig(HELD % "", takes=0.125, instances=2)
    rig.ask(1, width=2)
    await until(0.25)
    rig.ask(2, width=3)
    await until(2)
    assert rig.batches == [(0.5, [1]), (0.75, [2])]
    await rig.finish()


@pytest.mark.parametrize(("within", "starts"), [(0.375, 0.125), (4.0, 0.5)])
@on_fake_clock
async def test_delay_costs_no_request_its_deadline(within, starts):
    """A request with less time than the delay is held back for half of its time at most, less what it takes to run."""
    rig = Rig(HELD % "", takes=0.0625)
    rig.ask(0)
    await until(2)
    call = rig.ask(1, within=within)
    await until(4)
    assert rig.batches[1:] == [(2 + starts, [1])]
    assert call.answered
    await rig.finish()


@on_fake_clock
async def test_delay_leaves_the_time_that_a_batch_is_known_to_take():
    """Where execution takes most of the time a request has, it is not held back at all."""
    rig = Rig(HELD % "", takes=0.5)
    rig.ask(0)
    await until(1)
    call = rig.ask(1, within=0.625)
    await until(2)
    assert rig.batches == [(0.5, [0]), (1, [1])]
    assert call.ended == 1.5
    await rig.finish()


@on_fake_clock
async def test_urgent_levels_run_first():
    """Priority 1 overtakes 2, no priority or an unknown one counts as the default level."""
    rig = Rig("max_batch_size: 1 dynamic_batching { priority_levels: 3 default_priority_level: 2 }")
    rig.ask(0)
    await until(0.5)
    for value, priority in ((13, 3), (12, 2), (20, 0), (29, 9), (11, 1)):
        rig.ask(value, priority=priority)
    await rig.finish()
    assert rig.runs == [[0], [11], [12], [20], [29], [13]]


@on_fake_clock
async def test_priority_means_nothing_where_no_levels_are_declared():
    """Without priority_levels, requests run in the order they came whatever priority they name."""
    rig = Rig("max_batch_size: 1")
    for value, priority in ((1, 3), (2, 2), (3, 1)):
        rig.ask(value, priority=priority)
    await rig.finish()
    assert rig.runs == [[1], [2], [3]]


@on_fake_clock
async def test_earliest_deadline_runs_first():
    """Of equal priority, what has to be answered first runs first; without a deadline, what came first."""
    rig = Rig("max_batch_size: 1", takes=0.0625)
    rig.ask(0)
    for value, within in ((1, 0.75), (2, 0.5), (3, 4.0), (4, 4.0), (5, 0.25)):
        rig.ask(value, within=within)
    await rig.finish()
    assert rig.runs == [[5], [2], [1], [0], [3], [4]]


@on_fake_clock
async def test_requests_without_deadline_do_not_starve():
    """A stream of urgent requests that never ends still lets one through that has no deadline."""
    rig = Rig("max_batch_size: 1", takes=0.25)
    rig.ask(1, within=0.5)
    patient = rig.ask(0)
    for step in range(1, 40):
        await until(step / 4 - 0.125)
        rig.ask(step + 1, within=0.75)
    await rig.finish()
    assert patient.ended <= 2


@on_fake_clock
async def test_only_equal_shapes_share_a_batch_and_interleaving_them_costs_nothing():
    """Requests of two shapes in turns still make full batches, each of one shape."""
    rig = Rig("max_batch_size: 4")
    calls = [rig.ask(value, width=2 + value % 2) for value in range(16)]
    await rig.finish()
    assert rig.runs == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert all(call.answered for call in calls)


@on_fake_clock
async def test_idle_batcher_does_nothing():
    """A model that nobody calls costs no CPU time: nothing is polled, not even after requests with limits."""
    rig = Rig()
    rig.ask(1, within=2, timeout=4)
    await until(8)
    before = fake_loop().rounds
    await asyncio.sleep(3600)
    assert fake_loop().rounds - before <= 2
    assert now() == 3608
    await rig.finish()


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("preferred_batch_size: [4, 9]", "preferred_batch_size 9: expected 1 to max_batch_size, 8"),
        ("preferred_batch_size: 0", "preferred_batch_size 0: expected 1 to max_batch_size, 8"),
        ("preferred_batch_size: -1", "preferred_batch_size -1: expected 1 to max_batch_size, 8"),
        ("priority_levels: 2", "default_priority_level is not set, expected 1 to 2"),
        ("priority_levels: 2 default_priority_level: 3", "default_priority_level is 3, expected 1 to 2"),
        ("default_priority_level: 1", "default_priority_level is 1, but priority_levels is not set"),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }",
            "priority_queue_policy for level 3, expected 1 to 2",
        ),
        (
            "priority_queue_policy { key: 1 value { } }",
            "priority_queue_policy for level 1, but priority_levels is not set",
        ),
    ],
)
def test_settings_that_do_not_hold_are_named(batching, message):
    """A mistake in dynamic_batching keeps the model from loading, and the reason names the setting and its range."""
    with pytest.raises(LoadError, match=f"^dynamic_batching: {re.escape(message)}$"):
        policy(f"max_batch_size: 8 dynamic_batching {{ {batching} }}")


def test_preferred_size_of_a_model_that_does_not_batch():
    """preferred_batch_size beside max_batch_size 0 is a contradiction that the owner is told of."""
    with pytest.raises(LoadError, match=r"preferred_batch_size 1: expected 1 to max_batch_size, 0$"):
        policy("dynamic_batching { preferred_batch_size: 1 }")


def test_defaults():
    """Without dynamic_batching, whatever waits runs together at once, and 1,024 requests may wait."""
    found = policy("max_batch_size: 8")
    assert (found.max_rows, found.preferred_rows, found.max_delay_s) == (8, frozenset(), 0)
    assert found.queue_at(found.level(7)).max_size == DEFAULT_QUEUE_SIZE == 1024
