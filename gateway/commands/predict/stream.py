"""Blocks of rows through a model, over one stream; what fails is tried apart until the rows at fault are found."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.commands.model import Model, Tensor
from gateway.commands.predict.outgoing import Outgoing, Sent
from gateway.commands.predict.patience import Patience
from gateway.commands.predict.results import BlockResults
from gateway.commands.predict.rows import Block
from gateway.commands.predict.source import Schema
from tensorgate_client import InferenceClient, InferenceError, StreamResult

Rows = NDArray[np.int64]

MESSAGE_BYTES = 16 << 20
"""Most values of a request, well below what servers take; a single row may have more."""

_THE_ROWS = ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "OUT_OF_RANGE")
"""Codes of what another server or another hour would not mend."""

_PASSING = ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED")
"""Codes of what they may."""

_BROKEN = (*_PASSING, "INTERNAL", "UNKNOWN")
"""Codes that a stream ends with, not any of its requests, when its connection or server goes."""

_TOO_LARGE = "larger than max"  # in the words of gRPC and in ours


class Predictor:
    """Sends blocks to a version of a model.

    Args:
        client: of its server.
        model: which.
        outputs: that are wanted.
        schema: of the results.
        batch_size: rows of a request.
        window: requests on their way.
        patience: with a server that is away.
    """

    def __init__(  # noqa: PLR0913  # what a stream of rows is made of
        self,
        client: InferenceClient,
        model: Model,
        outputs: Sequence[Tensor],
        schema: Schema,
        *,
        batch_size: int,
        window: int,
        patience: Patience,
    ) -> None:
        self._client = client
        self._model = model
        self._outputs = outputs
        self._schema = schema
        self._batch_size = batch_size
        self._window = window
        self._patience = patience
        self._names = [output.name for output in outputs]
        self._current: BlockResults | None = None

    def __repr__(self) -> str:
        return f"<Predictor {self._model.name} version={self._model.version} current={self._current}>"

    def results(self, blocks: Iterable[Block]) -> Generator[BlockResults, None, None]:
        """The results of the block at hand, after each answer; of each block in the end, complete.

        Raises:
            InferenceError: the server is gone for good, or the model.
            CommandFailed: the file turns out to be broken.
        """
        outgoing = Outgoing(blocks, self._batch_size, MESSAGE_BYTES)
        while True:
            try:
                yield from self._streamed(outgoing)
            except InferenceError as error:
                if error.code.name not in _BROKEN:
                    raise
                if _TOO_LARGE not in error.message:
                    self._patience.after(error)
            # Calls find out which of the requests it was that broke the stream, if it was one of them.
            while sent := outgoing.strike():
                yield self._settled(sent, None)
            if outgoing.exhausted:
                return

    def _streamed(self, outgoing: Outgoing) -> Generator[BlockResults, None, None]:
        stream = self._client.stream(
            self._model.name,
            outgoing.requests(),
            window=self._window,
            version=self._model.version,
            outputs=self._names,
        )
        with closing(stream) as answers:
            try:
                for answer in answers:
                    while (sent := outgoing.strike()) and not sent.request:
                        yield self._settled(sent, None)
                    if sent:
                        yield self._settled(sent, answer)
            finally:
                outgoing.stop()

    def _settled(self, sent: Sent, answer: StreamResult | None) -> BlockResults:
        """The results of the block, this request's among them; without an answer it is asked for by a call."""
        results = self._current or BlockResults(sent.block, self._outputs, self._schema, batched=self._model.batches)
        rows = sent.request.rows if sent.request else None
        self._current = results if sent.request else None
        if rows is not None:
            if answer is None or answer.error:
                self._ask(results, sent.block, rows, answer.error if answer else None)
            else:
                results.add(rows, answer.outputs)
            self._patience.reward()
        results.settle(rows)
        return results

    def _ask(self, results: BlockResults, block: Block, rows: Rows, error: InferenceError | None = None) -> None:
        """By a call; in halves if it is for some of the rows that all have failed or would fail."""
        if error is None or len(rows) == 1 or not _of_the_rows(error):
            try:
                results.add(rows, self._patiently(block.inputs(rows)))
            except InferenceError as fault:
                if not _of_the_rows(fault):
                    raise
                error = fault
            else:
                return
        if len(rows) == 1:
            results.fail(rows, error.message)
            return
        for half in np.array_split(rows, 2):
            self._ask(results, block, half)

    def _patiently(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask, and ask again while the server is away or has too much to do."""
        while True:
            try:
                return self._client.infer(self._model.name, inputs, version=self._model.version, outputs=self._names)
            except InferenceError as error:
                if error.code.name not in _PASSING or _of_the_rows(error):
                    raise
                self._patience.after(error)


def _of_the_rows(error: InferenceError) -> bool:
    return error.code.name in _THE_ROWS or _TOO_LARGE in error.message
