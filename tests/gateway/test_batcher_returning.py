"""Callers in a loop, who send their next request as soon as they have been answered."""

from __future__ import annotations

import asyncio
from math import inf

import pytest
from support.batching import Call, Rig
from support.fake_clock import now, on_fake_clock, until

BACK_S, SLOWLY_BACK_S = 0.001, 0.008


async def loop(rig: Rig, requests: int, back_s: float = BACK_S) -> None:
    """A caller who waits for each answer before it asks again, a moment later."""
    for _ in range(requests):
        await rig.ask(1).task
        await asyncio.sleep(back_s)


async def split(rig: Rig, callers: int, requests: int, back_s: float = BACK_S) -> list[asyncio.Task[None]]:
    """Callers of whom the first begins a little before the others."""
    first = asyncio.create_task(loop(rig, requests, back_s))
    await asyncio.sleep(BACK_S)
    return [first, *(asyncio.create_task(loop(rig, requests, back_s)) for _ in range(callers - 1))]


async def beside_a_batch(rig: Rig, within: float = inf) -> tuple[Call, float]:
    """A request that comes while a batch of callers who are waited for runs, and when that batch ends."""
    await until(9.5)
    ends = rig.batches[-1][0] + 1
    return rig.ask(7, within=ends + within - now()), ends


def sizes(rig: Rig) -> list[int]:
    """How many requests each batch had."""
    return [len(batch) for batch in rig.runs]


@pytest.mark.parametrize("callers", [2, 5, 8])
@on_fake_clock
async def test_callers_in_a_loop_come_to_share_their_batches(callers):
    """Callers in a loop, however they began, soon run together instead of taking turns in batches of half the size."""
    rig = Rig("max_batch_size: 8")
    await asyncio.gather(*await split(rig, callers, 20))
    assert sizes(rig)[:2] == [1, callers - 1]
    assert sizes(rig)[6:18] == [callers] * 12
    await rig.finish()


@on_fake_clock
async def test_next_to_nothing_is_lost_where_nothing_is_saved():
    """A model that takes twice as long for twice the rows is hardly ever kept waiting."""
    rig = Rig("max_batch_size: 8", lambda batch: 1.0 * batch.rows)
    await asyncio.gather(*await split(rig, 4, 10))
    assert 40 <= now() < 40.1
    await rig.finish()


@on_fake_clock
async def test_those_who_come_by_chance_are_not_waited_for():
    """Requests that come at their own pace run as soon as the model is free."""
    rig = Rig("max_batch_size: 8")
    for number in range(30):
        await until(0.3 * number)
        rig.ask(number)
    await rig.finish()
    starts = [when for when, _ in rig.batches]
    assert starts == pytest.approx(list(range(len(starts))))


@on_fake_clock
async def test_those_who_leave_are_waited_for_once():
    """When callers in a loop stop, another's request is held up for some milliseconds once, and the next not at all."""
    rig = Rig("max_batch_size: 8")
    callers = await split(rig, 4, 9)
    await asyncio.gather(*callers[1:])
    began = now()
    other = rig.ask(7)
    await other.task
    assert other.ended <= began + 1 + 1 + 0.01
    await asyncio.gather(*callers)
    for _ in range(3):
        await asyncio.sleep(0.5)
        began = now()
        alone = rig.ask(1)
        await alone.task
        assert alone.ended == pytest.approx(began + 1)
    await rig.finish()


@on_fake_clock
async def test_a_deadline_is_not_waited_away():
    """A caller who can just be answered in time is not held up for the sake of others; one with more time is."""
    rig = Rig("max_batch_size: 8")
    callers = await split(rig, 4, 20, SLOWLY_BACK_S)
    urgent, ends = await beside_a_batch(rig, within=1.004)
    await urgent.task
    assert urgent.ended == pytest.approx(ends + 1)
    await until(ends + 6.5)
    patient = rig.ask(7, within=3)
    await patient.task
    assert [7.0, 1.0, 1.0, 1.0, 1.0] in rig.runs
    for caller in callers:
        caller.cancel()
    await rig.finish()


@on_fake_clock
async def test_no_instance_waits_beside_another():
    """With two instances each takes what is there as soon as it is free, so that both work."""
    rig = Rig("max_batch_size: 8", instances=2)
    callers = []
    for begins in (0, 0.3, 0.6):
        await until(begins)
        callers += [asyncio.create_task(loop(rig, 10, SLOWLY_BACK_S)) for _ in range(2)]
    await asyncio.gather(*callers)
    assert {round(when % 1, 6) for when, _ in rig.batches[:24]} == {0, 0.3}
    await rig.finish()


@on_fake_clock
async def test_draining_does_not_wait():
    """A server that is told to stop runs what waits at once."""
    rig = Rig("max_batch_size: 8")
    callers = await split(rig, 4, 20, SLOWLY_BACK_S)
    other, ends = await beside_a_batch(rig)
    await until(ends + 0.001)
    rig.batcher.flush()
    await other.task
    assert other.ended == pytest.approx(ends + 1.001)
    for caller in callers:
        caller.cancel()
    await rig.finish()


@on_fake_clock
async def test_an_urgent_request_waits_for_nobody():
    """Where requests have priorities, none is held up for callers who may be less urgent."""
    rig = Rig("max_batch_size: 8 dynamic_batching { priority_levels: 2 default_priority_level: 2 }")
    await asyncio.gather(*await split(rig, 4, 10))
    assert max(sizes(rig)) == 3
    await rig.finish()
