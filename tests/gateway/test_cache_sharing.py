"""Who shares whose response, for how long, and who does not."""

from __future__ import annotations

import asyncio

import pytest
from support.batching import POISON
from support.caching import CachedRig
from support.fake_clock import fake_loop, on_fake_clock, settled, until

from gateway.cache import ResponseCache
from gateway.errors import DeadlineExceeded, ExecutionFailed, QueueFull

LEVELS = "max_batch_size: 1 dynamic_batching { priority_levels: 2 default_priority_level: 2 }"


@on_fake_clock
async def test_equal_requests_share_one_execution():
    """However many ask the same, before, while and after it is computed, the model computes it once."""
    rig = CachedRig()
    calls = rig.ask_all([1, 1, 1])
    await until(0.5)
    calls.append(rig.ask(1))
    await until(2)
    calls.append(rig.ask(1))
    await rig.finish()
    assert rig.runs == [[1]]
    assert [call.ended for call in calls] == [1, 1, 1, 1, 2]
    assert [call.hit for call in calls] == [False, True, True, True, True]


@pytest.mark.parametrize("executing", [False, True])
@on_fake_clock
async def test_leader_who_leaves_fails_nobody(executing):
    """When the first of several equal callers hangs up, the others still get the one answer."""
    rig = CachedRig()
    if not executing:
        rig.ask(0)
        await settled()
    leader, follower = rig.ask(1), rig.ask(1)
    await until(0.5)
    leader.task.cancel()
    await rig.finish()
    assert rig.runs == ([[1]] if executing else [[0], [1]])
    assert (leader.task.cancelled(), follower.answered) == (True, True)


@pytest.mark.parametrize("limit", [{"within": 0.5}, {"timeout": 0.5}])
@on_fake_clock
async def test_leader_who_expires_fails_nobody(limit):
    """When the first of several equal callers runs out of time, the others wait on."""
    rig = CachedRig()
    rig.ask(0)
    await settled()
    leader, follower = rig.ask(1, **limit), rig.ask(1)
    await rig.finish()
    assert (leader.failed_with, leader.ended) == (DeadlineExceeded, 0.5)
    assert (follower.answered, follower.ended) == (True, 2)


@pytest.mark.parametrize("limit", [{"within": 0.5}, {"timeout": 0.5}])
@on_fake_clock
async def test_followers_own_limits_hold(limit):
    """Whoever joins a computation with less time than the first hears in time that it is over."""
    rig = CachedRig()
    rig.ask(0)
    await settled()
    leader, follower = rig.ask(1, within=8), rig.ask(1, **limit)
    await rig.finish()
    assert (follower.failed_with, follower.ended) == (DeadlineExceeded, 0.5)
    assert (leader.answered, leader.ended) == (True, 2)


@pytest.mark.parametrize("leader", [{}, {"timeout": 0.25}])
@on_fake_clock
async def test_shared_requests_are_delayed_rather_than_refused_where_the_policy_says_so(leader):
    """timeout_action DELAY: nobody without a deadline is refused, also when several ask the same."""
    queue_policy = "default_queue_policy { default_timeout_microseconds: 500000 timeout_action: DELAY }"
    rig = CachedRig(f"max_batch_size: 1 dynamic_batching {{ {queue_policy} }}")
    rig.ask(0)
    await settled()
    calls = [rig.ask(1, **leader), rig.ask(1)]
    await rig.finish()
    assert [call.failed_with for call in calls] == [None, None]


@pytest.mark.parametrize("who", ["leader", "follower"])
@on_fake_clock
async def test_deadlines_hold_while_a_failed_batch_is_tried_apart(who):
    """Of those who share a computation that has to be tried again, each hears at its own deadline that it is late."""
    rig = CachedRig("max_batch_size: 4", takes=4)
    bad, other = rig.ask(POISON), rig.ask(2)
    leader = rig.ask(1, within=6 if who == "leader" else 40)
    await until(5)  # the half with the culprit runs until 8, the other one waits for it
    follower = rig.ask(1, within=1 if who == "follower" else 40)
    await rig.finish()
    assert (bad.failed_with, other.answered) == (ExecutionFailed, True)
    first, second = (leader, follower) if who == "leader" else (follower, leader)
    assert (first.failed_with, first.ended) == (DeadlineExceeded, 6)
    assert second.answered


@on_fake_clock
async def test_everyone_leaves():
    """When all who asked the same have left, nothing is computed, and the next one to ask gets an answer."""
    rig = CachedRig()
    rig.ask(0)
    await settled()
    gone = [rig.ask(1), rig.ask(1, timeout=0.25)]
    await until(0.5)
    gone[0].task.cancel()
    await settled()
    late = rig.ask(1)
    await until(0.75)
    late.task.cancel()
    await rig.finish()
    assert rig.runs == [[0]]
    fresh = CachedRig(store=rig.store)
    fresh.ask(1)
    await fresh.finish()
    assert fresh.calls[0].answered


@on_fake_clock
async def test_response_is_kept_though_nobody_waits_any_more():
    """What was computed for someone who hung up meanwhile answers the next one."""
    rig = CachedRig()
    rig.ask(1)
    await until(0.5)
    rig.calls[0].task.cancel()
    await until(2)
    assert rig.ask(1)
    await rig.finish()
    assert rig.runs == [[1]]
    assert rig.calls[1].hit


@pytest.mark.parametrize("limit", [{"within": 0.8125}, {"timeout": 0.8125}, {"priority": 1}])
@on_fake_clock
async def test_follower_in_no_hurry_does_not_slow_its_leader(limit):
    """An urgent request stays urgent when an equal one joins it that has no limits or a lower level."""
    rig = CachedRig(LEVELS, takes=0.5)
    rig.ask(0)
    await until(0.125)
    rig.ask(5)  # due, as all without limits, a second after it came
    await until(0.25)
    urgent = rig.ask(1, **limit)
    await settled()
    rig.ask(1)
    await rig.finish()
    assert rig.runs == [[0], [1], [5]]
    assert (urgent.answered, urgent.ended) == (True, 1)


@on_fake_clock
async def test_leader_in_no_hurry_does_not_slow_its_follower():
    """A request that joins a less urgent one makes it as urgent as itself."""
    rig = CachedRig(LEVELS)
    rig.ask(0)
    await settled()
    rig.ask(5)
    rig.ask(1)
    await until(0.5)
    urgent = rig.ask(1, priority=1)
    await rig.finish()
    assert rig.runs == [[0], [1], [5]]
    assert urgent.ended == 2


@on_fake_clock
async def test_follower_with_the_earlier_deadline_sets_the_order():
    """Someone with little time who joins someone with much is served as if nobody had been there."""
    rig = CachedRig(takes=0.25)
    rig.ask(0)
    await settled()
    rig.ask_all([5, 6, 1])
    await until(0.125)
    urgent = rig.ask(1, within=0.5)
    await rig.finish()
    assert (urgent.answered, urgent.ended) == (True, 0.5)


@on_fake_clock
async def test_queue_delay_does_not_cost_a_leader_its_deadline():
    """A request with little time is not held back for longer because an equal one has plenty."""
    rig = CachedRig("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 4000000 }", takes=0.25)
    hurried, calm = rig.ask(1, within=1), rig.ask(1)
    await rig.finish()
    assert hurried.answered
    assert calm.ended <= 1


@on_fake_clock
async def test_new_request_does_not_inherit_an_expiry():
    """Who asks the same at the very moment at which another's time runs out is not told that it is late."""
    rig = CachedRig()
    rig.ask(0)
    await settled()
    for order in range(4):
        fake_loop().call_at(fake_loop().time() + 0.5, rig.ask, 1)
        if order == 1:
            expired = rig.ask(1, timeout=0.5)
    await rig.finish()
    assert (expired.failed_with, expired.ended) == (DeadlineExceeded, 0.5)
    assert all(call.answered for call in rig.calls if call is not expired)
    assert len(rig.calls) == 6


@on_fake_clock
async def test_failures_are_not_kept():
    """A failed request is computed anew when it comes again; who waited for the failed one fails with it."""
    broken = True

    def fail(_: object) -> None:
        if broken:
            raise OSError("the worker is gone")

    rig = CachedRig(before=fail)
    calls = rig.ask_all([1, 1])
    await settled()
    assert [call.failed_with for call in calls] == [ExecutionFailed] * 2
    assert calls[0].error is not calls[1].error
    broken = False
    again = rig.ask(1)
    await rig.finish()
    assert again.answered


@on_fake_clock
async def test_poison_in_a_batch_of_flights():
    """With the cache, too, only those fail who asked what the model fails on."""
    rig = CachedRig("max_batch_size: 8")
    calls = rig.ask_all([1, POISON, 3, POISON, 1])
    await rig.finish()
    assert [call.failed_with for call in calls] == [None, ExecutionFailed, None, ExecutionFailed, None]
    assert sorted(rig.runs[0]) == [1, 3, POISON]


@on_fake_clock
async def test_responses_get_too_old():
    """response_cache_ttl_s: a response answers for that long and not a moment longer."""
    rig = CachedRig(ttl_s=4)
    for moment in (0, 4.75, 5):
        await until(moment)
        rig.ask(1)
    await rig.finish()
    assert [call.hit for call in rig.calls] == [False, True, False]


@on_fake_clock
async def test_reload_answers_anew():
    """What a load answered, or is still computing, never answers a request to the next load."""
    store = ResponseCache(1_000_000, fake_loop().time)
    old, new = CachedRig(store=store), CachedRig(store=store, execute=lambda inputs: {"y": 2 * inputs["x"] + 1})
    old.ask(1)
    await until(2)
    old.ask(2)
    await settled()
    new.ask_all([1, 2])
    await asyncio.gather(old.finish(), new.finish())
    assert [call.hit for call in new.calls] == [False, False]
    assert repr(store) == "<ResponseCache entries=0 bytes=0 of 1000000>"


@on_fake_clock
async def test_hurried_follower_ends_the_delay():
    """Who joins a request that is held back, and has less time than that, is not held back with it."""
    rig = CachedRig("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 4000000 }", takes=0.125)
    rig.ask(1)
    await until(0.25)
    hurried = rig.ask(1, within=0.5)
    await rig.finish()
    assert (hurried.answered, hurried.ended) == (True, 0.5)


@on_fake_clock
async def test_no_more_may_wait_for_one_answer_than_in_the_queue():
    """max_queue_size holds for equal requests as well: each keeps its message in memory while it waits."""
    rig = CachedRig("max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 4 } }")
    calls = [rig.ask(1) for _ in range(6)]
    await rig.finish()
    assert [call.failed_with for call in calls] == [None] * 4 + [QueueFull] * 2
