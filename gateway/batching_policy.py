"""What config.pbtxt says of batching and queueing (`dynamic_batching`), checked and with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from backends.base import LoadError
from tensorgate_client.wire import model_config_pb2 as pb

DEFAULT_QUEUE_SIZE = 1024
"""Requests that may wait where config.pbtxt sets no limit."""

_MOST_LEVELS = 100  # each has a queue of its own, so that their number bounds what may wait


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How requests of one priority level wait.

    Attributes:
        max_size: requests that may wait at once.
        timeout_s: longest wait; infinite without one.
        overridable: whether a request's own, shorter `timeout` counts.
        delays: whether a request that waited too long goes behind the others instead of failing.
    """

    max_size: int = DEFAULT_QUEUE_SIZE
    timeout_s: float = inf
    overridable: bool = True
    delays: bool = False

    def wait_s(self, wanted_s: float) -> float:
        """How long a request may wait that asks for `wanted_s` (infinite if it does not ask)."""
        return min(self.timeout_s, wanted_s) if self.overridable else self.timeout_s


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """How requests become batches.

    Attributes:
        max_rows: of a batch.
        preferred_rows: batch sizes that run at once; empty if any will do.
        max_delay_s: how long a request is held back for others to join it.
        levels: of priority, 1 being the most urgent; 0 turns priorities off.
        default_level: of requests that name none.
        queue: how requests wait.
        queue_of_level: for levels with rules of their own.
    """

    max_rows: int = 1
    preferred_rows: frozenset[int] = frozenset()
    max_delay_s: float = 0.0
    levels: int = 0
    default_level: int = 0
    queue: QueuePolicy = QueuePolicy()
    queue_of_level: Mapping[int, QueuePolicy] = field(default_factory=dict)

    @classmethod
    def of(cls, config: pb.ModelConfig) -> BatchingPolicy:
        """The policy of a completed configuration; without `dynamic_batching`, whatever waits runs together.

        Raises:
            LoadError: a value does not hold.
        """
        stated = config.dynamic_batching
        _check(stated, config.max_batch_size)
        return cls(
            max(config.max_batch_size, 1),
            frozenset(stated.preferred_batch_size),
            stated.max_queue_delay_microseconds / 1e6,
            stated.priority_levels,
            stated.default_priority_level,
            _queue_policy(stated.default_queue_policy),
            {level: _queue_policy(policy) for level, policy in stated.priority_queue_policy.items()},
        )

    def level(self, priority: int) -> int:
        """The level of a request's `priority`; 0 and levels that do not exist mean the default (Triton's rule)."""
        return priority if 1 <= priority <= self.levels else self.default_level

    def queue_at(self, level: int) -> QueuePolicy:
        """How requests of a level wait."""
        return self.queue_of_level.get(level, self.queue)


def _check(stated: pb.ModelDynamicBatching, max_batch_size: int) -> None:
    for rows in stated.preferred_batch_size:
        if not 1 <= rows <= max_batch_size:
            limit = f"max_batch_size, {max_batch_size}"
            raise LoadError(f"dynamic_batching: preferred_batch_size {rows}: expected 1 to {limit}")
    levels, default = stated.priority_levels, stated.default_priority_level
    if levels > _MOST_LEVELS:
        raise LoadError(f"dynamic_batching: priority_levels is {levels}, expected at most {_MOST_LEVELS}")
    if levels and not 1 <= default <= levels:
        is_now = f"is {default}" if default else "is not set"
        raise LoadError(f"dynamic_batching: default_priority_level {is_now}, expected 1 to {levels}")
    if default and not levels:
        raise LoadError(f"dynamic_batching: default_priority_level is {default}, but priority_levels is not set")
    for level in stated.priority_queue_policy:
        if not 1 <= level <= levels:
            expected = f"expected 1 to {levels}" if levels else "but priority_levels is not set"
            raise LoadError(f"dynamic_batching: priority_queue_policy for level {level}, {expected}")


def _queue_policy(stated: pb.ModelQueuePolicy) -> QueuePolicy:
    timeout = stated.default_timeout_microseconds
    return QueuePolicy(
        stated.max_queue_size or DEFAULT_QUEUE_SIZE,
        timeout / 1e6 if timeout else inf,
        # Without a limit of the model's own, nothing is overridden: the caller's wish is the only one.
        stated.allow_timeout_override or not timeout,
        stated.timeout_action == pb.ModelQueuePolicy.DELAY,
    )
