"""Requests that run together: put into one set of arrays, executed, taken apart again."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from backends.base import Array
from gateway.padding import Padding, stack
from gateway.request import InferenceRequest
from gateway.tensor_rules import TensorRule
from gateway.workspace import Workspace
from tensorgate_client.tensors import datatype_of, shown

if TYPE_CHECKING:
    from gateway.context import BatchContext

Outputs: TypeAlias = Mapping[str, Array]
Execute: TypeAlias = Callable[[dict[str, Array]], Outputs]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """What the batches of a model have in common.

    Attributes:
        inputs, outputs: the model's, by name.
        padding: what is filled up.
    """

    inputs: Mapping[str, TensorRule]
    outputs: Mapping[str, TensorRule]
    padding: Padding = field(default_factory=Padding)

    def shape_of(self, request: InferenceRequest) -> Hashable:
        """Equal for requests that may share a batch: their inputs' shapes, after padding, without their rows.

        Raises:
            InvalidInput: inputs differ in a size that padding takes for one.
        """
        inputs = request.inputs
        if self.padding.axes:
            return tuple((n, self.padding.shape_of(n, inputs[n], inputs)) for n in self.inputs if n in inputs)
        return tuple([(n, inputs[n].shape[rule.batches :]) for n, rule in self.inputs.items() if n in inputs])


@dataclass(slots=True)
class Execution:
    """How a batch was executed: what is known of it when its tensors are gone. Times are `time.perf_counter_ns`.

    Attributes:
        requests: how many there were.
        rows: of all requests together, without padding.
        padding: rows that were added to fill it up.
        started_ns, assembled_ns, executed_ns, finished_ns: when it began, had its inputs, had its outputs, and had
            given every request its own; 0 while it has not.
        processor_ns: what its thread computed from beginning to end.
        instance: the name of the one that ran it, once it does.
        span: ids of its trace and span, once it has one.
        spanned: whether that span is being made, or has been.
    """

    requests: int
    rows: int
    padding: int = 0
    started_ns: int = 0
    assembled_ns: int = 0
    executed_ns: int = 0
    finished_ns: int = 0
    processor_ns: int = 0
    instance: str = ""
    span: tuple[int, int] | None = None
    spanned: bool = False

    @property
    def busy_ns(self) -> int:
        """What it took of its thread: what it computed, or a tenth of all its time, if it was more than a wait."""
        return max(self.processor_ns, (self.finished_ns - self.started_ns) // 10)


@dataclass(slots=True)
class Batch:
    """Requests to be executed together. `run` belongs on the instance's thread.

    Attributes:
        requests: of one shape.
        layout: the model's.
        rows: of all requests together, without padding.
        padded_rows: with it.
        execution: how it goes.
        context: for whom, if its backend wants to know.
    """

    requests: Sequence[InferenceRequest]
    layout: BatchLayout
    rows: int = field(init=False)
    padded_rows: int = field(init=False)
    execution: Execution = field(init=False)
    context: BatchContext | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.rows = sum([request.rows for request in self.requests])
        self.padded_rows = self.layout.padding.rows(self.rows)
        self.execution = Execution(len(self.requests), self.rows, self.padded_rows - self.rows)

    def run(self, execute: Execute, workspace: Workspace, instance: str = "") -> list[Outputs]:
        """Execute; each request's own requested outputs, in the requests' order and as clients shape them.

        Args:
            execute: the backend's.
            workspace: the instance's.
            instance: whose it is, for traces.

        Raises:
            Exception: whatever `execute` raises, or ValueError if it does not keep its promises.
        """
        execution = self.execution
        computed_ns = time.thread_time_ns()
        execution.started_ns = time.perf_counter_ns()
        execution.instance = instance
        inputs = self._assembled(workspace)
        execution.assembled_ns = time.perf_counter_ns()
        outputs = execute(inputs)
        execution.executed_ns = time.perf_counter_ns()
        answers = self._apart(self._checked(outputs))
        execution.finished_ns = time.perf_counter_ns()
        execution.processor_ns = time.thread_time_ns() - computed_ns
        return answers

    def _assembled(self, workspace: Workspace) -> dict[str, Array]:
        padding, first = self.layout.padding, self.requests[0].inputs
        if len(self.requests) == 1 and not padding.axes and self.padded_rows == self.rows:
            return dict(first)  # a model may take out what it has used
        assembled = {}
        for name, array in first.items():
            shape = (self.padded_rows, *padding.shape_of(name, array, first))
            assembled[name] = workspace.array(name, shape, array.dtype)
            stack([request.inputs[name] for request in self.requests], assembled[name])
        return assembled

    def _checked(self, outputs: Outputs) -> dict[str, Array]:
        """The requested outputs, once the backend is known to have kept its own promises about them."""
        checked = {}
        wanted = {request.outputs: None for request in self.requests}  # mostly the same
        for name in dict.fromkeys(name for names in wanted for name in names):
            rule = self.layout.outputs[name]
            if name not in outputs:
                raise ValueError(f"the backend gave no output '{name}', only {', '.join(outputs) or 'none'}")
            array = rule.to_wire(outputs[name])
            datatype = datatype_of(array.dtype)
            if not rule.admits(datatype, array.shape):
                raise ValueError(f"output '{name}': expected {rule}, the backend gave {datatype} {shown(array.shape)}")
            if rule.batches and array.shape[0] != self.padded_rows:
                raise ValueError(f"output '{name}': expected {self.padded_rows} rows, the backend gave {len(array)}")
            checked[name] = array
        return checked

    def _apart(self, outputs: dict[str, Array]) -> list[Outputs]:
        padding = self.layout.padding
        if len(self.requests) == 1 and not padding.axes and not padding.batch_sizes:
            return [outputs]
        answers: list[Outputs] = []
        row = 0
        for request in self.requests:
            rows = slice(row, row := row + request.rows)
            own = {name: outputs[name][rows] for name in request.outputs}
            if padding.axes:
                own = {name: padding.cut(name, array, request.inputs) for name, array in own.items()}
            answers.append(own)
        return answers
