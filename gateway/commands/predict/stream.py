"""Blocks of rows through a model, over one stream; what fails is tried apart until the rows at fault are found."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.commands.connection import ServerClient
from gateway.commands.model import Model, Tensor
from gateway.commands.predict.results import BlockResults
from gateway.commands.predict.rows import Block
from gateway.commands.predict.source import Schema
from tensorgate_client import InferenceError

Rows = NDArray[np.int64]

_THE_ROWS = ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "OUT_OF_RANGE")
"""Codes of what another server or another hour would not mend."""

_BUSY = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED")
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """Rows of a block that are on their way; none of them marks the block's end."""

    block: Block
    rows: Rows | None


class Predictor:
    """Sends blocks to a version of a model.

    Args:
        client: of its server.
        model: which.
        outputs: that are wanted.
        schema: of the results.
        batch_size: rows of a request.
        window: requests on their way.
    """

    def __init__(  # noqa: PLR0913  # what a stream of rows is made of
        self,
        client: ServerClient,
        model: Model,
        outputs: Sequence[Tensor],
        schema: Schema,
        *,
        batch_size: int,
        window: int,
    ) -> None:
        self._client = client
        self._model = model
        self._outputs = outputs
        self._schema = schema
        self._batch_size = batch_size
        self._window = window
        self._sent: deque[Sent] = deque()  # filled by the thread that takes batches, emptied by ours

    def __repr__(self) -> str:
        return f"<Predictor {self._model.name} version={self._model.version} sent={len(self._sent)}>"

    def results(self, blocks: Iterable[Block]) -> Generator[BlockResults, None, None]:
        """The results of each block in order.

        Raises:
            InferenceError: the server is gone, or the model.
            CommandFailed: the file turns out to be broken.
        """
        names = [output.name for output in self._outputs]
        current: BlockResults | None = None
        answers = self._client.stream(
            self._model.name,
            self._requests(blocks),
            window=self._window,
            version=self._model.version,
            outputs=names,
        )
        with closing(answers):
            for answer in answers:
                while (sent := self._sent.popleft()).rows is None:
                    yield current or self._begin(sent.block)
                    current = None
                current = current or self._begin(sent.block)
                if answer.error:
                    self._apart(current, sent.block, sent.rows, names)
                else:
                    current.add(sent.rows, answer.outputs)
        for sent in self._sent:
            yield current or self._begin(sent.block)
            current = None

    def _begin(self, block: Block) -> BlockResults:
        return BlockResults(block, self._outputs, self._schema, batched=self._model.batches)

    def _requests(self, blocks: Iterable[Block]) -> Iterator[Mapping[str, Any]]:
        for block in blocks:
            for rows in block.batches(self._batch_size):
                self._sent.append(Sent(block, rows))
                yield block.inputs(rows)
            self._sent.append(Sent(block, None))

    def _apart(self, results: BlockResults, block: Block, rows: Rows, names: Sequence[str]) -> None:
        """Ask again for rows whose request failed: a stream does not tell whose fault it was, a call does."""
        halves = [rows] if len(rows) == 1 else np.array_split(rows, 2)
        for half in halves:
            try:
                outputs = self._patiently(block.inputs(half), names)
            except InferenceError as error:
                if error.code.name not in _THE_ROWS:
                    raise
                if len(half) == 1:
                    results.fail(half, error.message)
                else:
                    self._apart(results, block, half, names)
            else:
                results.add(half, outputs)

    def _patiently(self, inputs: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
        """Ask, and ask again while the server has too much to do."""
        wait, until = 0.1, time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._client.infer(self._model.name, inputs, version=self._model.version, outputs=names)
            except InferenceError as error:
                if error.code.name not in _BUSY or time.monotonic() + wait > until:
                    raise
            time.sleep(wait)
            wait = min(wait * 2, 5.0)
