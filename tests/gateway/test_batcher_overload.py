"""More requests with deadlines than can be answered: who is refused, and that the others get all there is."""

from __future__ import annotations

import random

import pytest
from support.batching import Rig
from support.fake_clock import START, now, on_fake_clock, settled, until

from gateway.batch import Batch
from gateway.errors import DeadlineExceeded

_BATCHED = "max_batch_size: 32 dynamic_batching { }"


def _takes(batch: Batch) -> float:
    """Up to 1, 3, 7, 15 rows at a step, as finely as the batcher tells sizes apart: seven take half a second."""
    return float((1 << batch.rows.bit_length()) / 16)


async def _known(rig: Rig, rows: int = 12) -> None:
    """Let the batcher see each size of batch up to `rows`."""
    for size in range(1, rows + 1):
        rig.ask(0, rows=size)
        await until(now() + 2)


@on_fake_clock
async def test_nobody_is_let_in_who_makes_an_earlier_one_late():
    """Of a burst only as many are accepted as can be answered together in time; the others are told so at once."""
    rig = Rig(_BATCHED, _takes)
    await _known(rig)
    began = now()
    running = rig.ask_all([1] * 7, within=1)
    await settled()
    burst = rig.ask_all([2] * 20, within=1.125)
    await until(began + 0.25)
    later = rig.ask(3, within=1.375)
    await rig.finish()
    assert all(call.answered for call in running)
    assert [call.answered for call in burst] == [True] * 7 + [False] * 13  # in what those that run leave
    assert {(call.failed_with, call.ended) for call in burst[7:]} == {(DeadlineExceeded, began)}
    assert (later.failed_with, later.ended) == (DeadlineExceeded, began + 0.25)
    assert str(later.error) == "in the 1.38 s left it would make requests late that came before it"
    assert rig.runs[-2:] == [[1] * 7, [2] * 7]


@on_fake_clock
async def test_who_has_time_waits_for_those_in_a_hurry():
    """A request with a distant deadline is not refused for the sake of urgent ones: it runs after them."""
    rig = Rig(_BATCHED, _takes)
    await _known(rig)
    rig.ask_all([1] * 7, within=1)
    await settled()
    urgent = rig.ask_all([2] * 7, within=1.125)
    patient = rig.ask(3, within=10)
    await rig.finish()
    assert all(call.answered for call in urgent)
    assert patient.answered
    assert rig.runs[-3:] == [[1] * 7, [2] * 7, [3]]


@on_fake_clock
async def test_who_is_lost_already_keeps_nobody_out():
    """If a batch takes so long that a waiting request cannot be in time any more, others are accepted all the same."""
    hiccup = 0.0
    rig = Rig(_BATCHED, lambda batch: _takes(batch) + hiccup)
    await _known(rig)
    hiccup = 1.0
    began = now()
    rig.ask_all([1] * 7)
    await settled()
    lost = rig.ask(2, within=1)
    await until(began + 0.9375)
    hiccup = 0.0
    late_comer = rig.ask(3, within=1)
    await rig.finish()
    assert lost.failed_with is DeadlineExceeded
    assert late_comer.answered


@pytest.mark.parametrize("first", ["undated", "lost"])
@on_fake_clock
async def test_urgent_request_behind_others_gets_the_smaller_batch_too(first):
    """Whoever was accepted is answered in time also where one without a deadline, or one too late already, is first."""
    hiccup = 0.0
    rig = Rig("max_batch_size: 8", lambda batch: _takes(batch) + hiccup)
    for size in (1, 2, 4, 8):
        rig.ask(0, rows=size)
        await until(now() + 2)
    hiccup = 0.5 if first == "lost" else 0.0
    began = now()
    rig.ask(0, rows=8)
    await until(began + 0.125)
    rig.ask(1, **({"within": 1.425} if first == "lost" else {}))
    urgent = rig.ask(2, within=2.0 if first == "lost" else 1.5)
    patient = [rig.ask(3, within=20) for _ in range(6)]
    await until(began + 0.25)
    hiccup = 0.0
    await rig.finish()
    assert urgent.answered
    assert START + urgent.ended <= urgent.request.deadline
    assert all(call.answered for call in patient)


@pytest.mark.parametrize("times", [2, 8])
@on_fake_clock
async def test_batches_stay_large_however_many_ask(times):
    """Overloaded, a model does not end in batches of one: it goes on answering nearly as many as it ever could."""
    chance = random.Random(times)  # noqa: S311
    rig = Rig(_BATCHED, lambda batch: _takes(batch) * chance.lognormvariate(0, 0.1))
    await _known(rig)
    most = 7 / 0.5  # a second, if a request may wait for one batch and run in another of the same size
    taught, began, seconds = len(rig.calls), now(), 40
    while now() < began + seconds:
        await until(now() + chance.expovariate(times * most))
        rig.ask(1, within=1.125)
    calls = rig.calls[taught:]
    await rig.finish()
    in_time = [call for call in calls if call.answered and START + call.ended <= call.request.deadline]
    assert len(in_time) >= 0.93 * seconds * most
    assert {call.failed_with for call in calls} == {None, DeadlineExceeded}
