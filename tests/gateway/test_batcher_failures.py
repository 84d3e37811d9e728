"""What becomes of a batch whose members fail, leave or outlive their model."""

from __future__ import annotations

import asyncio

import pytest
from support.batching import POISON, REFUSED, Rig
from support.fake_clock import fake_loop, on_fake_clock, settled, until

from backends.base import InvalidInput
from gateway.errors import DeadlineExceeded, ExecutionFailed, ModelNotReady


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@on_fake_clock
async def test_only_the_culprit_fails(size):
    """One request that the model fails on costs its batch-mates time, never their answers; wherever it stands."""
    for place in range(size):
        rig = Rig()
        calls = rig.ask_all([POISON if index == place else float(index) for index in range(size)])
        await rig.finish()
        kinds = [call.failed_with for call in calls]
        assert kinds == [ExecutionFailed if index == place else None for index in range(size)]
        assert str(calls[place].error) == "it failed on this request"
        assert str(calls[place].error.__cause__) == "patient 4711"


@on_fake_clock
async def test_failed_batch_is_tried_in_halves():
    """Finding the culprit among 8 takes few runs: what must hold it, since the other half did well, is split unseen."""
    rig = Rig()
    whole = [1, 2, POISON, 4, 5, 6, 7, 8]
    rig.ask_all(whole)
    await rig.finish()
    assert rig.runs == [whole, whole[:4], whole[4:], [1, 2], [POISON], [4]]
    rig = Rig()
    rig.ask_all([*whole[3:], 9, 10, POISON])
    await rig.finish()
    assert rig.runs[1:] == [[4, 5, 6, 7], [8, 9], [10], [POISON]]


@on_fake_clock
async def test_culprit_who_is_refused_hears_what_the_backend_says():
    """InvalidInput reaches the request that caused it with the backend's own words, and no other request."""
    rig = Rig()
    calls = rig.ask_all([1, REFUSED, 3])
    await rig.finish()
    assert [call.failed_with for call in calls] == [None, InvalidInput, None]
    assert str(calls[1].error) == "x: 667 is not allowed"


@pytest.mark.parametrize("places", [{0, 1}, {0, 7}, {3, 4}, {2, 5, 6}, set(range(8))], ids=str)
@on_fake_clock
async def test_several_culprits(places):
    """Any number of culprits fail, each with an error of its own; everyone else is answered."""
    rig = Rig(instances=2)
    calls = rig.ask_all([POISON if index in places else float(index) for index in range(8)])
    await rig.finish()
    assert {index for index, call in enumerate(calls) if call.failed_with is ExecutionFailed} == places
    assert all(calls[index].answered for index in set(range(8)) - places)
    assert len({id(calls[index].error) for index in places}) == len(places)


@on_fake_clock
async def test_what_nobody_is_there_for_is_not_tried_apart():
    """A batch whose instance is lost concerns all its members: each hears it, and none of them runs once more."""

    def lost(_: object) -> None:
        raise ModelNotReady("the process that executed the request ended")

    rig = Rig(execute=lost)
    calls = rig.ask_all([1, 2, 3, 4])
    await rig.finish()
    assert [call.failed_with for call in calls] == [ModelNotReady] * 4
    assert rig.runs == [[1, 2, 3, 4]]


@on_fake_clock
async def test_hiccup_of_the_backend_fails_nobody():
    """A batch that fails once and then runs is answered, since its requests are not at fault."""
    failures = iter([RuntimeError("out of memory")])

    def hiccup(_: object) -> None:
        if error := next(failures, None):
            raise error

    rig = Rig(before=hiccup)
    calls = rig.ask_all([1, 2, 3])
    await rig.finish()
    assert all(call.answered for call in calls)


@pytest.mark.parametrize("how", ["raises", "answers with an error", "answers for too few requests"])
@on_fake_clock
async def test_instance_that_misbehaves_fails_its_requests_and_the_next_ones_run(how):
    """However an instance breaks, whoever was in its batch hears so, and the instance gets the next batch."""
    broken = True

    def misbehave(_: object) -> list | Exception | None:
        if not broken:
            return None
        if how == "raises":
            raise OSError("the worker process is gone")
        return OSError("the worker process is gone") if how == "answers with an error" else []

    rig = Rig(before=misbehave)
    calls = rig.ask_all([1, 2, 3])
    await settled()
    assert [call.failed_with for call in calls] == [ExecutionFailed] * 3
    broken = False
    after = rig.ask(4)
    await rig.finish()
    assert after.answered


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: y[:-1], "expected 2 rows, the backend gave 1"),
        (lambda y: y[:, 0], r"expected FP32 \[-1,-1\], the backend gave FP32 \[2\]"),
        (lambda y: y.astype("float64"), r"expected FP32 \[-1,-1\], the backend gave FP64 \[2,2\]"),
    ],
)
@on_fake_clock
async def test_backend_that_breaks_its_promises_gives_nobody_a_wrong_answer(change, told):
    """Too few rows or another shape or datatype is an error of the model, never somebody else's rows."""
    rig = Rig(execute=lambda inputs: {"y": change(2 * inputs["x"] + 1)})
    call = rig.ask(1, rows=2)
    await rig.finish()
    assert call.failed_with is ExecutionFailed
    with pytest.raises(ValueError, match=f"output 'y': {told}"):
        raise call.error.__cause__


@on_fake_clock
async def test_output_that_does_not_come():
    """A model that leaves out an output it declares fails the request, and the log says which."""
    rig = Rig(execute=lambda inputs: {"z": inputs["x"]})
    call = rig.ask(1)
    await rig.finish()
    assert (call.failed_with, str(call.error.__cause__)) == (ExecutionFailed, "the backend gave no output 'y', only z")


@on_fake_clock
async def test_waiting_to_be_tried_again_ends_at_the_deadline():
    """While one half of a failed batch runs long, a request of the other half still hears in time that it is late."""
    rig = Rig(takes=4)
    calls = [rig.ask(1), rig.ask(POISON), rig.ask(3, within=6), rig.ask(4)]
    await rig.finish()
    assert (calls[2].failed_with, calls[2].ended) == (DeadlineExceeded, 6)
    assert rig.batches == [(0, [1, POISON, 3, 4]), (4, [1, POISON]), (8, [4]), (12, [1]), (16, [POISON])]


@on_fake_clock
async def test_cancelled_while_queued_is_never_executed():
    """A caller who hangs up while waiting costs no compute, and those around it are answered."""
    rig = Rig()
    rig.ask(0)
    await until(0.25)
    calls = rig.ask_all([1, 2, 3])
    await until(0.5)
    calls[1].task.cancel()
    await rig.finish()
    assert rig.runs == [[0], [1, 3]]
    assert calls[1].task.cancelled()
    assert calls[1].ended == 0.5


@on_fake_clock
async def test_cancelled_while_executing_disturbs_nobody():
    """A caller who hangs up while its batch runs takes nobody with it, and leaves no request hanging behind it."""
    rig = Rig()
    calls = rig.ask_all([1, 2, 3])
    await until(0.5)
    calls[0].task.cancel()
    await until(0.75)
    after = rig.ask(4)
    await rig.finish()
    assert [call.ended for call in calls] == [0.5, 1, 1]
    assert [call.answered for call in calls] == [False, True, True]
    assert after.ended == 2


@on_fake_clock
async def test_cancelled_caller_is_not_tried_again():
    """When a batch fails, whoever has left meanwhile is not part of what is tried apart."""
    rig = Rig()
    calls = rig.ask_all([1, POISON, 3])
    await until(0.5)
    calls[1].task.cancel()
    await until(1.5)
    calls[0].task.cancel()
    await rig.finish()
    assert rig.runs == [[1, POISON, 3], [1], [3]]
    assert calls[2].answered


@on_fake_clock
async def test_everyone_cancelled():
    """A batch that everyone has left ends without trouble, whether well or badly."""
    for value in (1, POISON):
        rig = Rig()
        calls = rig.ask_all([value, 2])
        await settled()
        for call in calls:
            call.task.cancel()
        await rig.finish()
        assert rig.runs == [[value, 2]]


@on_fake_clock
async def test_counters_are_told_of_successful_batches_only():
    """Statistics count what ran well, each batch once."""
    rig = Rig()
    rig.ask_all([1, POISON])
    await rig.finish()
    assert [[float(r.inputs["x"].flat[0]) for r in batch.requests] for batch in rig.executed] == [[1]]


@on_fake_clock
async def test_trouble_with_the_counters_leaves_nobody_hanging():
    """An error beside the execution itself neither keeps an answer from its caller nor the model from closing."""

    def fail(_: object) -> None:
        raise RuntimeError("counting failed")

    rig = Rig(on_executed=fail)
    calls = rig.ask_all([1, 2])
    await until(4)
    assert all(call.task.done() for call in calls)
    await rig.finish()
    fake_loop().errors.clear()  # asyncio may report it


@on_fake_clock
async def test_closing_waits_for_what_was_accepted():
    """Unloading a model drops no request: what runs and what waits is answered, what comes now is refused."""
    rig = Rig("max_batch_size: 1")
    calls = rig.ask_all([1, 2, 3])
    await until(0.5)
    closing = asyncio.create_task(rig.batcher.aclose())
    await settled()
    refused = rig.ask(4)
    await closing
    await settled()
    assert [call.ended for call in calls] == [1, 2, 3]
    assert (refused.failed_with, refused.ended) == (ModelNotReady, 0.5)
    assert repr(rig.batcher) == "<Batcher waiting=0 running=0 retrying=0>"


@on_fake_clock
async def test_closing_an_idle_model_takes_no_time():
    """A model with nothing to do closes at once, however often it is asked to."""
    rig = Rig()
    await asyncio.gather(rig.batcher.aclose(), rig.batcher.aclose())
    await rig.batcher.aclose()
    assert not rig.runs


@on_fake_clock
async def test_closing_does_not_wait_for_others_to_join():
    """max_queue_delay_microseconds does not hold up an unload, since nobody can come any more."""
    config = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 60000000 preferred_batch_size: 8 }"
    rig = Rig(config)
    call = rig.ask(1)
    await until(0.25)
    await rig.batcher.aclose()
    await settled()
    assert call.ended == 1.25


@on_fake_clock
async def test_closing_waits_for_what_is_tried_apart():
    """A failed batch is still tried apart while the model closes."""
    rig = Rig()
    calls = rig.ask_all([1, POISON])
    await settled()
    await rig.batcher.aclose()
    await settled()
    assert [call.failed_with for call in calls] == [None, ExecutionFailed]


@pytest.mark.parametrize("leaves", ["cancelled", "expired"])
@on_fake_clock
async def test_closing_ends_when_the_last_one_leaves(leaves):
    """Closing is over at once when the last waiting request expires or is cancelled, whatever it waited for."""
    rig = Rig("max_batch_size: 1")
    rig.ask(0)
    await settled()
    call = rig.ask(1, timeout=0.5 if leaves == "expired" else 9)
    await settled()
    closing = asyncio.create_task(rig.batcher.aclose())
    await until(0.5)
    call.task.cancel()
    await until(0.75)
    assert not closing.done()
    await until(1)
    assert closing.done()
    assert rig.runs == [[0]]


@on_fake_clock
async def test_closing_that_is_cut_short_answers_what_waits():
    """When the grace period is over, waiting requests are told to go elsewhere; what runs is still answered."""
    rig = Rig("max_batch_size: 2", takes=4)
    calls = rig.ask_all([1, POISON, 3, 4])
    await until(5)  # 1 and POISON are being tried apart
    closing = asyncio.create_task(rig.batcher.aclose())
    await until(6)
    closing.cancel()
    await until(30)
    assert closing.cancelled()
    running = [call for call in calls if call.answered]
    assert len(running) == 1
    told = [call for call in calls if call not in running]
    assert [(call.failed_with, call.ended) for call in told] == [(ModelNotReady, 6)] * 3
    assert repr(rig.batcher) == "<Batcher waiting=0 running=0 retrying=0>"
