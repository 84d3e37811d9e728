"""Backend `litert`: `model.tflite`, as LiteRT and TensorFlow Lite run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ai_edge_litert.interpreter import Interpreter

from backends.base import (
    Array,
    InvalidInput,
    LoadError,
    ModelSource,
    Signature,
    require,
    switch,
    warn_of_unknown,
    whole_number,
)
from backends.litert_signatures import Program, programs, together

_THREADS, _INLINE, _SIGNATURES = "intra_op_thread_count", "inline", "signatures"


class LitertBackend:
    """Loads LiteRT models.

    A file's signatures are one model for several sizes of batch: a batch is filled up to the next size that there is.
    A file whose batch is open takes any; one with a single fixed batch does not batch.

    Parameters (all optional):
        intra_op_thread_count: threads that an instance computes with; 0 (default) is the runtime's own choice, one.
        signatures: names of those to serve, separated by spaces; default: all.
        inline: true: short executions stay on the server's own thread; not for a model whose time depends on the
            values it gets, as with loops, since a caller could hold up everybody; default false.
    """

    def load(self, source: ModelSource) -> LitertModel:
        """Read the file into memory and execute every signature once.

        Raises:
            LoadError: the file is damaged, needs operations that the runtime lacks, or holds signatures that are not
                one model; a parameter is wrong, or the protocol cannot carry a tensor.
        """
        if source.file is None:
            raise LoadError("backend 'litert' needs a model.tflite in the version folder")
        warn_of_unknown(source, (_THREADS, _SIGNATURES, _INLINE))
        threads = whole_number(source, _THREADS, 0)
        chosen = source.parameters.get(_SIGNATURES, "").replace(",", " ").split()
        # Not mapped: whoever writes over the file would change, or end, a server that runs it.
        content = _Content(source.file.read_bytes(), threads, tuple(chosen))
        try:
            model = LitertModel(content)
        except LoadError as error:
            raise LoadError(f"{source.file.name}: {error}") from error
        model.inline = switch(source, _INLINE, default=False)
        return model


@dataclass(frozen=True, slots=True)
class _Content:
    """A file in memory, and how to run it."""

    file: bytes
    threads: int
    chosen: tuple[str, ...]

    def opened(self) -> list[Program]:
        """What it computes, in an interpreter of its own; raises LoadError."""
        if not self.file:
            raise LoadError("the file is empty, expected a LiteRT model")
        try:
            return programs(Interpreter(model_content=self.file, num_threads=self.threads or None), self.chosen)
        except (ValueError, RuntimeError) as error:  # what the runtime has for everything
            raise LoadError(" ".join(str(error).split())) from error


class LitertModel:
    """A file in memory, whose weights its instances share where their operations use them as they are."""

    inline = False

    def __init__(self, content: _Content) -> None:
        self.signature: Signature = together(content.opened())
        self.memory = {"CPU:0": len(content.file)}
        self._content = content

    def instance(self) -> LitertInstance:
        """An interpreter of its own, which has executed every signature once.

        Raises:
            LoadError: the memory does not suffice for it.
        """
        return LitertInstance(self._content, self.signature)

    def close(self) -> None:
        """The file's memory goes with the last instance."""


class LitertInstance:
    """An interpreter, which executes one batch at a time on whichever thread; it computes without the GIL."""

    def __init__(self, content: _Content, signature: Signature) -> None:
        self._content = content
        self._inputs = [spec.name for spec in signature.inputs]
        self._sizes = signature.batch_sizes
        self._programs = self._opened()

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Execute the signature for the inputs' number of rows.

        Raises:
            InvalidInput: an input is missing, there is no signature for so many rows, or the model does not go with
                sizes that it leaves open.
        """
        require(inputs, self._inputs)
        program = self._programs.get(len(inputs[self._inputs[0]])) if self._sizes else self._programs[0]
        if program is None:
            got = len(inputs[self._inputs[0]])
            raise InvalidInput(f"the model executes {', '.join(map(str, self._sizes))} rows at a time, got {got}")
        try:
            return program.call(**inputs)
        except RuntimeError as error:
            self._programs = self._opened()  # the old one is in no known state, and keeps the text of every failure
            if str(error).endswith("failed to prepare."):  # fixed sizes were prepared when the model was loaded
                shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in inputs.items())
                raise InvalidInput(f"the model cannot be computed for inputs of these sizes: {shapes}") from error
            raise

    def close(self) -> None:
        """Free the interpreter."""
        self._programs = {}

    def _opened(self) -> dict[int, Program]:
        """By their number of rows where there are several sizes; else the only one, by 0."""
        return {program.rows if self._sizes else 0: program for program in self._content.opened()}
