"""What one model version has done since it was loaded: the numbers behind ModelStatistics.

Fields and their meaning are Triton's (statistics extension). Whoever shares a batch counts its whole execution time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from gateway.batch import Batch
from gateway.request import Stages
from tensorgate_client.wire import inference_pb2 as pb


@dataclass(slots=True)
class Duration:
    """How often something happened and how long that took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Note that it happened."""
        self.count += 1
        self.ns += ns

    def to_proto(self) -> pb.StatisticDuration:
        """As the wire has it."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class Compute:
    """The three parts of an execution."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, batch: Batch) -> None:
        """Note an execution."""
        self.input.add(batch.assembled_ns - batch.started_ns)
        self.infer.add(batch.executed_ns - batch.assembled_ns)
        self.output.add(batch.finished_ns - batch.executed_ns)


@dataclass(slots=True)
class ModelStatistics:
    """Counters of one version. Touched by the event loop alone."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    by_rows: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))
    rows: int = 0
    executions: int = 0
    last_inference_ms: int = 0

    def executed(self, batch: Batch) -> None:
        """Note a batch that was executed well."""
        self.rows += batch.rows
        self.executions += 1
        self.by_rows[batch.rows].add(batch)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def computed(self, stages: Stages, batch: Batch) -> None:
        """Note a request that was answered by executing it."""
        self.queue.add(batch.started_ns - stages.decode)
        self.compute.add(batch)

    def hit(self, stages: Stages) -> None:
        """Note a request that was answered from the cache, or with the answer to an equal one."""
        self.cache_hit.add(stages.cache - stages.received)
        # As Triton counts, whatever was answered has been in the queue: for as long as it waited for its equal.
        self.queue.add(time.perf_counter_ns() - stages.cache)

    def succeeded(self, stages: Stages) -> None:
        """Note an answer."""
        self.success.add(time.perf_counter_ns() - stages.received)

    def failed(self, stages: Stages) -> None:
        """Note a request that got none: refused, failed, expired or cancelled."""
        self.fail.add(time.perf_counter_ns() - stages.received)

    def fill(self, proto: pb.ModelStatistics) -> None:
        """Write the counters into the wire's message."""
        proto.last_inference = self.last_inference_ms
        proto.inference_count = self.rows
        proto.execution_count = self.executions
        totals = proto.inference_stats
        totals.compute_input.CopyFrom(self.compute.input.to_proto())
        totals.compute_infer.CopyFrom(self.compute.infer.to_proto())
        totals.compute_output.CopyFrom(self.compute.output.to_proto())
        for name in ("success", "fail", "queue", "cache_hit", "cache_miss"):
            getattr(totals, name).CopyFrom(getattr(self, name).to_proto())
        for rows, compute in sorted(self.by_rows.items()):
            proto.batch_stats.add(
                batch_size=rows,
                compute_input=compute.input.to_proto(),
                compute_infer=compute.infer.to_proto(),
                compute_output=compute.output.to_proto(),
            )
