"""What a model's requests say before their raw contents: decoded and checked once, from then on recognised.

A client's requests mostly differ in their ids and their numbers alone. Whatever follows from the bytes in between
(names, datatypes, shapes, outputs, parameters) was found out when the first of them came.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gateway.digest import Question, question
from gateway.message import Message
from gateway.request import InferenceRequest, Stages
from tensorgate_client import framing
from tensorgate_client.wire import inference_pb2 as pb

_MOST_HEADS = 1024
_LONGEST_HEAD = 4096


@dataclass(frozen=True, slots=True)
class _Contents:
    """Where an input's raw contents are, counted from the head's beginning, and what they are to the runtime.

    Attributes:
        unaligned: bits of an address that are 0 where such values may lie. A message's own address has all of them 0.
    """

    name: str
    start: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    unaligned: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a message says between its id and its raw contents.

    Attributes:
        marks: bytes that have to stand in a message, and where they do counted from the head's beginning: all of it up
            to the first contents, then what announces each further one.
        length: of all of the message that follows its id.
        contents: of the inputs, in the order of the message.
        request: decoded from such a message, without what is its own.
        spelled: as `Question` has it.
    """

    marks: tuple[tuple[int, bytes], ...]
    length: int
    contents: tuple[_Contents, ...]
    request: InferenceRequest
    spelled: bytes

    def begins(self, message: Message) -> bool:
        """Whether it is this message's."""
        data, rest = message.data, message.rest
        for at, mark in self.marks:  # noqa: SIM110  # a generator would cost as much as all the rest
            if not data.startswith(mark, rest + at):
                return False
        return True

    def decode_head(self, message: Message, stages: Stages, deadline: float) -> InferenceRequest:
        """As `decode.decode_head`."""
        known = self.request
        return InferenceRequest(
            message.id,
            {},
            known.rows,
            known.outputs,
            stages,
            known.typed,
            deadline,
            known.timeout_s,
            known.priority,
            unordered=known.unordered,
            shape=known.shape,
        )

    def decode_tensors(self, message: Message, request: InferenceRequest) -> None:
        """As `decode.decode_tensors`, with nothing left to check."""
        data, rest = message.data, message.rest
        for own in self.contents:
            start = rest + own.start
            if start & own.unaligned:
                request.inputs[own.name] = np.ndarray(own.shape, own.dtype, data[start : rest + own.end])
            else:
                request.inputs[own.name] = np.ndarray(own.shape, own.dtype, data, start)
        request.stages.decode = time.perf_counter_ns()

    def question(self, message: Message) -> Question:
        """As `digest.question`."""
        view, rest = memoryview(message.data), message.rest
        return Question(self.spelled, [view[rest + own.start : rest + own.end] for own in self.contents])


@dataclass(slots=True)
class KnownHeads:
    """The heads of one load of a model, by the length of what they begin."""

    _by_length: dict[int, list[Head]] = field(default_factory=dict)
    _count: int = 0

    def __repr__(self) -> str:
        return f"<KnownHeads {self._count}>"

    def of(self, message: Message) -> Head | None:
        """The head of a message, if it is known."""
        if message.head is None:
            for head in self._by_length.get(len(message.data) - message.rest, ()):
                if head.begins(message):
                    message.head = head
                    break
        return message.head

    def learn(self, message: Message, request: InferenceRequest) -> None:
        """Remember the head of a message that has become `request`, if its like can be recognised."""
        head = _head(message, request)
        if head is None:
            return
        if self._count >= _MOST_HEADS:  # of endlessly many different ones, none is worth more than another
            self._by_length.clear()
            self._count = 0
        self._by_length.setdefault(head.length, []).append(head)
        self._count += 1


def _head(message: Message, request: InferenceRequest) -> Head | None:
    proto, raw = message.parsed
    if not message.rest or not raw or any(array.dtype.hasobject for array in request.inputs.values()):
        return None
    length = len(message.data) - message.rest
    lengths = [len(contents) for contents in raw]
    announced = [framing.raw_input_head(size) for size in lengths]
    first = length - sum(lengths) - sum(map(len, announced))
    if not 0 < first <= _LONGEST_HEAD:
        return None
    marks, contents = [], []
    at, mark = 0, message.data[message.rest : message.rest + first]
    if not _is_head(mark, proto):
        return None
    for tensor, size, announcement in zip(proto.inputs, lengths, announced, strict=True):
        mark += announcement
        marks.append((at, mark))
        start = at + len(mark)
        array = request.inputs[tensor.name]
        contents.append(
            _Contents(tensor.name, start, start + size, array.dtype, array.shape, array.dtype.alignment - 1)
        )
        at, mark = start + size, b""
    known = InferenceRequest(
        "",
        {},
        request.rows,
        request.outputs,
        typed=request.typed,
        timeout_s=request.timeout_s,
        priority=request.priority,
        unordered=request.unordered,
        shape=request.shape,
    )
    head = Head(tuple(marks), length, tuple(contents), known, question(message.parsed).spelled)
    return head if head.begins(message) else None


def _is_head(head: bytes, whole: pb.ModelInferRequest) -> bool:
    """Whether `head` says by itself all that the whole message does, but for name, version, id and raw contents."""
    try:
        alone = pb.ModelInferRequest.FromString(head)
    except DecodeError:
        return False
    rest = pb.ModelInferRequest()
    rest.CopyFrom(whole)
    rest.ClearField("model_name")
    rest.ClearField("model_version")
    rest.ClearField("id")
    rest.ClearField("raw_input_contents")
    return alone == rest
