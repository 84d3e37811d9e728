"""A batcher over fake instances of y = 2x + 1, and requests that know their own answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from backends.base import InvalidInput
from gateway.batch import Batch, BatchLayout, Outputs
from gateway.batcher import Batcher
from gateway.batching_policy import BatchingPolicy
from gateway.model_config import parse_text
from gateway.padding import Padding
from gateway.request import InferenceRequest
from gateway.tensor_rules import TensorRule
from support.fake_clock import FakeInstance, fake_loop, now

POISON = 666.0
"""The model fails on any batch with such a value."""

REFUSED = 667.0
"""The model finds its caller at fault for such a value."""

LAYOUT = BatchLayout(
    {"x": TensorRule("x", "FP32", (-1, -1), batches=True)}, {"y": TensorRule("y", "FP32", (-1, -1), batches=True)}
)


def double(inputs: dict[str, Any]) -> Mapping[str, Any]:
    """The model."""
    x = inputs["x"]
    if (x == POISON).any():
        raise RuntimeError("patient 4711")
    if (x == REFUSED).any():
        raise InvalidInput("x: 667 is not allowed")
    return {"y": 2 * x + 1}


def policy(config: str) -> BatchingPolicy:
    """What a config.pbtxt says of batching."""
    return BatchingPolicy.of(parse_text(config).proto)


def request(
    value: float, rows: int = 1, width: int = 2, *, within: float = inf, priority: int = 0, timeout: float = inf
) -> InferenceRequest:
    """A request for `rows` times `width` of a value, whose caller waits for `within` virtual seconds."""
    x = np.full((rows, width), value, np.float32)
    deadline = fake_loop().time() + within
    return InferenceRequest("", {"x": x}, rows, ("y",), deadline=deadline, timeout_s=timeout, priority=priority)


def values(batch: Batch) -> list[float]:
    """What a batch is made of, a value for each request."""
    return [float(member.inputs["x"].flat[0]) for member in batch.requests]


async def infer(batcher: Batcher, request: InferenceRequest) -> tuple[Outputs, Batch]:
    """A request's outputs, and the batch it ran in."""
    future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
    job = batcher.submit(request, future)
    try:
        outputs = await future
    except asyncio.CancelledError:
        batcher.discard(job)
        raise
    assert job.batch is not None
    return outputs, job.batch


class Call:
    """A request under way; `ended` is when it got its answer."""

    def __init__(self, batcher: Batcher, request: InferenceRequest) -> None:
        self.request = request
        self.ended = inf
        self.task = asyncio.create_task(self._run(batcher))
        self.task.add_done_callback(self._note)

    async def _run(self, batcher: Batcher) -> float:
        outputs, batch = await infer(batcher, self.request)
        np.testing.assert_array_equal(outputs["y"], 2 * self.request.inputs["x"] + 1)
        assert any(member is self.request for member in batch.requests)
        return float(self.request.inputs["x"].flat[0])

    def _note(self, task: asyncio.Task[float]) -> None:
        self.ended = now()
        _ = task.cancelled() or task.exception()  # or it complains that nobody looked at it

    @property
    def error(self) -> BaseException | None:
        """What it failed with; None while it is under way or if it was answered well."""
        if not self.task.done():
            return None
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()

    @property
    def failed_with(self) -> type[BaseException] | None:
        """The kind of `error`."""
        return type(self.error) if self.error else None

    @property
    def answered(self) -> bool:
        """Whether the right answer came."""
        return self.task.done() and self.error is None


class Rig:
    """A batcher and what it did.

    Args:
        config: as in config.pbtxt.
        takes: virtual seconds of a batch.
        instances: how many.
        layout: of the batches.
        parts: `execute`, `before` and `on_executed` in the place of the usual ones.
    """

    def __init__(
        self,
        config: str = "max_batch_size: 8",
        takes: float | Callable[[Batch], float] = 1.0,
        instances: int = 1,
        layout: BatchLayout = LAYOUT,
        **parts: Any,
    ) -> None:
        self.executed: list[Batch] = []
        self.calls: list[Call] = []
        duration = takes if callable(takes) else lambda _: takes
        execute, on_executed = parts.pop("execute", double), parts.pop("on_executed", self.executed.append)
        self.instances = [FakeInstance(execute, duration, **parts) for _ in range(instances)]
        self.batcher = Batcher(self.instances, policy(config), layout, on_executed, fake_loop().time)
        fake_loop().watched.append(self.batcher)

    def ask(self, value: float, rows: int = 1, width: int = 2, **limits: Any) -> Call:
        """Send a request, as `request` makes it."""
        self.calls.append(Call(self.batcher, request(value, rows, width, **limits)))
        return self.calls[-1]

    def ask_all(self, wanted: Sequence[float], **limits: Any) -> list[Call]:
        """Send requests of one row at this moment."""
        return [self.ask(value, **limits) for value in wanted]

    @property
    def batches(self) -> list[tuple[float, list[float]]]:
        """When each batch started, and its requests' values."""
        return sorted((run.started, values(run.batch)) for instance in self.instances for run in instance.runs)

    @property
    def runs(self) -> list[list[float]]:
        """The batches' values alone."""
        return [batch for _, batch in self.batches]

    async def finish(self) -> None:
        """Close the batcher once all that was asked is answered; it must leave nothing in it."""
        await asyncio.wait([call.task for call in self.calls])
        await self.batcher.aclose()
        assert repr(self.batcher) == "<Batcher waiting=0 running=0 retrying=0>"


def padded(config: str) -> Padding:
    """What a config.pbtxt says of padding."""
    return Padding.of(parse_text(config).proto)
