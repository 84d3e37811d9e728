"""Random requests, and what may become of each."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from grpc import StatusCode as Code

from soak.models import KINDS, POISON, UNFIT, Factors
from tensorgate_client.wire import inference_pb2 as pb

_COMMON = 30
"""So many of a model's questions are asked over and over, by everybody."""


@dataclass(frozen=True)
class Plan:
    """A request and its circumstances.

    Attributes:
        rows: its input, whole numbers.
        misfit: whether its shape is one that no model takes.
        deadline_s: of the call, or None.
        timeout_us: parameter `timeout`, 0 for none.
        priority: parameter `priority`, 0 for none.
        cancel_after_s: when its caller loses interest, or None.
    """

    model: str
    rows: np.ndarray
    misfit: bool = False
    deadline_s: float | None = None
    timeout_us: int = 0
    priority: int = 0
    cancel_after_s: float | None = None

    @classmethod
    def draw(cls, random: Random) -> Plan:
        """A plan at random."""
        model = random.choice(list(KINDS))
        asked_often = Random(f"{model} {random.randrange(_COMMON)}")  # noqa: S311  # no secret
        rows = _rows(asked_often if random.random() < 0.4 else random)
        if random.random() < 0.03:
            rows[random.randrange(len(rows))] = random.choice([POISON, UNFIT])
        return cls(
            model,
            rows,
            misfit=random.random() < 0.01,
            deadline_s=random.choice([0.001, 0.01, 0.05, 2.0]) if random.random() < 0.15 else None,
            timeout_us=random.choice([1, 1000, 10_000, 2_000_000]) if random.random() < 0.15 else 0,
            priority=random.choice([0, 0, 1, 2, 3, 9]),
            cancel_after_s=random.choice([0, 0.001, 0.005, 0.03]) if random.random() < 0.1 else None,
        )

    def message(self, request_id: str) -> pb.ModelInferRequest:
        """The request on the wire."""
        shape = (*self.rows.shape, 1) if self.misfit else self.rows.shape
        message = pb.ModelInferRequest(model_name=self.model, id=request_id)
        message.inputs.add(name="x", datatype="FP32", shape=shape)
        message.raw_input_contents.append(self.rows.tobytes())
        for key, value in (("timeout", self.timeout_us), ("priority", self.priority)):
            if value:
                message.parameters[key].int64_param = value
        return message

    @property
    def allowed(self) -> set[Code]:
        """The statuses other than OK that its circumstances explain."""
        kind = KINDS[self.model]
        codes = set()
        if self.deadline_s is not None or self.timeout_us:
            codes.add(Code.DEADLINE_EXCEEDED)
        if self.cancel_after_s is not None:
            codes.add(Code.CANCELLED)
        if kind.crowded:
            codes.add(Code.RESOURCE_EXHAUSTED)
        if kind.change == "unload":
            codes |= {Code.NOT_FOUND, Code.UNAVAILABLE}
        if self.misfit or self._holds(UNFIT):
            codes.add(Code.INVALID_ARGUMENT)
        if self._holds(POISON):
            codes.add(Code.INTERNAL)
        return codes

    @property
    def answerable(self) -> bool:
        """Whether it may be answered well."""
        return not (self.misfit or self._holds(UNFIT) or self._holds(POISON))

    def _holds(self, value: int) -> bool:
        return KINDS[self.model].ms is not None and bool((self.rows == value).any())

    def wrong(self, response: pb.ModelInferResponse, request_id: str, lowest: int, factors: Factors) -> str:
        """What is wrong with an answer, or "". `lowest` is the lowest factor when it was sent."""
        if not self.answerable:
            return "an answer to what cannot be answered"
        if (response.id, response.model_name) != (request_id, self.model):
            return f"id or model of another: {response.id} {response.model_name}"
        output = response.outputs[0]
        if tuple(output.shape) != self.rows.shape:
            return f"shape {list(output.shape)}"
        answer = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(self.rows.shape)
        factor = round(float(answer[0, 0] / self.rows[0, 0]))
        if not (answer == self.rows * factor).all():
            return f"rows of another: {answer.tolist()}"
        highest = factors.highest(self.model)
        if not lowest <= factor <= highest:
            return f"of a load that is over: factor {factor}, expected {lowest} to {highest}"
        return ""


def _rows(random: Random) -> np.ndarray:
    shape = random.choice([1, 1, 1, 2, 3, 8]), random.choice([1, 3, 4, 5, 9])
    numbers = [number for number in (random.randrange(1, 4096) for _ in range(1000)) if number not in {POISON, UNFIT}]
    return np.float32(numbers[: shape[0] * shape[1]]).reshape(shape)
