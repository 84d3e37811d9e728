"""The contract between the gateway and a backend.

A backend of your own needs to import nothing from here, except `InvalidInput` if it wants to refuse an input: write
three classes of these shapes and publish the first under the entry point group `tensorgate.backends`. A plain tuple
`(name, dtype, shape)` does for a `TensorSpec`, and any object with the three attributes of `Signature` for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

_log = logging.getLogger(__name__)

Array = NDArray[Any]

UNBOUNDED = -1
"""`Signature.max_batch_size` of a model that takes batches and names no limit."""


class TensorSpec(NamedTuple):
    """One input or output of a model.

    Attributes:
        name: what clients call it.
        dtype: its numpy dtype, or anything `numpy.dtype` accepts; `object` for BYTES (elements are `bytes`).
        shape: all dimensions, the batch dimension included where the model batches; -1 where any size goes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: DTypeLike, shape: Iterable[int]) -> TensorSpec:
        """A specification from anything that spells one, as `("text", object, [-1, 1])`.

        Raises:
            TypeError, ValueError: numpy knows no such dtype, or a size is no whole number.
        """
        return cls(str(name), np.dtype(dtype), tuple(int(size) for size in shape))


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs, outputs: in the model's own order.
        max_batch_size: rows the first dimension of every tensor can hold together; `UNBOUNDED` without a limit,
            0 if the model does not batch.
        deterministic: whether equal inputs always give equal outputs, so that these may be cached. Optional.
        batch_sizes: the only numbers of rows that it executes, ascending, up to `max_batch_size`: batches are filled
            up to them; empty if any will do. Optional.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    deterministic: bool = True
    batch_sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
        """A signature that batches exactly when every tensor's first dimension is open."""
        batches = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs)) and bool(inputs)
        return cls(tuple(inputs), tuple(outputs), UNBOUNDED if batches else 0)

    def batched(self, sizes: Sequence[int]) -> Signature:
        """The same for batches of these numbers of rows, ascending, whatever the first dimension of each tensor is."""
        inputs, outputs = (
            tuple(spec._replace(shape=(-1, *spec.shape[1:])) for spec in specs) for specs in (self.inputs, self.outputs)
        )
        return replace(self, inputs=inputs, outputs=outputs, max_batch_size=sizes[-1], batch_sizes=tuple(sizes))


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a backend is given to load one version of a model.

    Attributes:
        name, version: of the model in the repository.
        directory: the version's folder.
        file: the model file inside it, or None if the backend works without one.
        parameters: the `parameters` of config.pbtxt.
        declared: the inputs and outputs that config.pbtxt declares; empty tuples where it declares none.
        device: where to load it: "cpu", "cuda:1", or "" for the backend's own choice.
        preferred_batch_sizes: rows that batches will mostly have, ascending; empty where config.pbtxt names none.
    """

    name: str
    version: int
    directory: Path
    file: Path | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    declared: Signature = Signature((), ())
    device: str = ""
    preferred_batch_sizes: tuple[int, ...] = ()


class Context(Protocol):
    """For whom a batch is executed: what an instance needs that has it done elsewhere. Of use on any thread."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs that anybody wants."""
        ...

    @property
    def deadline(self) -> float:
        """When the last of them stops waiting (`time.perf_counter`), infinite if one does not say.

        It can become later while the batch executes, as more come to wait for it.
        """
        ...

    @property
    def traceparent(self) -> str:
        """The span to put others below, as W3C Trace Context spells it; "" if nobody is traced."""
        ...

    def on_abandoned(self, tell: Callable[[], object]) -> None:
        """Call `tell` once nobody waits any more; at once if that is so already. Only the latest `tell` counts."""
        ...


class Instance(Protocol):
    """Executes batches, one at a time. Made, used and closed on one thread of its own."""

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """All outputs by name, for inputs by name (arrays that fit the signature, not to be written into).

        The outputs are the gateway's from then on: memory that the next execution writes into has to be copied. The
        inputs' memory is used again once no array over it is left.

        Raises:
            InvalidInput: the caller's data is at fault; the message goes to the caller.
            Exception: anything else is the model's fault; callers see a correlation id, the log the traceback.
        """
        ...

    def close(self) -> None:
        """Free what the instance holds; called once, never during `execute`."""
        ...


class Model(Protocol):
    """A loaded version, whose weights its instances share where the runtime allows.

    Four attributes may be left out. `memory` says how many bytes the weights take: a mapping by device, "CPU:0" or
    "GPU:1". `profiler` is a `Profiler`, or None where the runtime has none. `inline` is true if an instance may execute
    on other threads than its own, one at a time, and waits for nothing but the processor: executions that take less
    than handing them to a thread are then not handed over. `contextual` is true if `execute` of its instances takes a
    second argument by name, `context`: a `Context`, or nothing where it is executed for nobody in particular.
    """

    @property
    def signature(self) -> Signature:
        """What the model takes and gives, read from its file; the declared one where the format carries none."""
        ...

    def instance(self) -> Instance:
        """A new instance; called on the thread that will use it."""
        ...

    def close(self) -> None:
        """Free the weights; called once, after every instance is closed."""
        ...


class Operation(NamedTuple):
    """What an operator or a function took, all its calls in the recorded executions together.

    Attributes:
        name: as the runtime's users know it: "Conv", "aten::addmm".
        calls: how many.
        total_us, self_us: microseconds with, and without, the operations that it called in turn.
    """

    name: str
    calls: int
    total_us: float
    self_us: float


class ProfiledInstance(Instance, Protocol):
    """An instance under a profiler; all of it on one thread, as an `Instance`."""

    def start(self) -> None:
        """Record the executions from now on; those before only warmed it up. Called once."""
        ...

    def stop(self, trace: Path | None) -> Iterable[Operation]:
        """End the recording; what was recorded, in any order. Plain tuples do.

        Args:
            trace: a file to write the single calls to, in Chrome's trace event format; None unless the profiler
                `traces`.

        Raises:
            OSError: the file cannot be written.
        """
        ...


class Profiler(Protocol):
    """Tells where a model's time goes. Nothing that serves requests uses it."""

    @property
    def name(self) -> str:
        """What its documentation is found by, as "torch.profiler"."""
        ...

    @property
    def traces(self) -> bool:
        """Whether it knows when each call was, and not only how long all took."""
        ...

    def instance(self, *, by_node: bool) -> ProfiledInstance:
        """A new instance that does what the model's own do; called on the thread that will use it.

        That thread has another instance already, which is idle from then on: what a runtime keeps for each thread is
        the same for both.

        Args:
            by_node: name operations by their place in the model where the runtime knows it, and not by kind alone.
        """
        ...


class Backend(Protocol):
    """Loads models for one runtime.

    A backend that can use a GPU has one more method, `obstacle(source, kind)`: why it cannot load a source on a kind of
    device, "cuda" or "cpu", in words for the model's owner; "" if it can. Without it, a backend is asked for the CPU.
    A method `instances(source)` says how many instances a model has whose `instance_group` names no count; else 1.
    """

    def load(self, source: ModelSource) -> Model:
        """Load a version.

        Raises:
            LoadError: with what is wrong and how to mend it; any other exception is reported by its type and text.
        """
        ...


class BackendError(Exception):
    """Base of what backends raise on purpose."""


class LoadError(BackendError):
    """A model cannot be loaded; the message tells its owner why and what to do."""


class NotReachable(LoadError):
    """What a model needs lies elsewhere and does not answer now: the gateway tries again by itself."""


class InvalidInput(BackendError):
    """A request's data is at fault; the message goes to the caller."""


def require(inputs: Mapping[str, Array], names: Iterable[str]) -> None:
    """Refuse inputs that lack one: config.pbtxt may call an input optional that the model cannot do without.

    Raises:
        InvalidInput: naming what is missing.
    """
    missing = [f"'{name}'" for name in names if name not in inputs]
    if missing:
        raise InvalidInput(f"input {', '.join(missing)} cannot be left out: the model needs it")


def warn_of_unknown(source: ModelSource, known: Iterable[str], prefixes: tuple[str, ...] = ()) -> None:
    """Log the parameters that are neither known nor begin with a prefix, in one warning.

    They are no error: repositories written for Triton carry parameters of its own backends.
    """
    known = tuple(known)
    unknown = sorted(key for key in source.parameters if key not in known and not key.startswith(prefixes))
    if unknown:
        names = ", ".join(f"'{key}'" for key in unknown)
        expected = ", ".join((*known, *(f"{prefix}*" for prefix in prefixes)))
        _log.warning(
            "model %s/%d: unknown parameter %s is ignored; known: %s", source.name, source.version, names, expected
        )


def whole_number(source: ModelSource, key: str, default: int) -> int:
    """The parameter `key` as a number of at least 0.

    Raises:
        LoadError: it is something else.
    """
    text = source.parameters.get(key, str(default)).strip()
    if not text.isdecimal():
        raise LoadError(f"parameter '{key}': expected a whole number of at least 0, got '{text}'")
    return int(text)


def switch(source: ModelSource, key: str, *, default: bool) -> bool:
    """The parameter `key` as a yes or no: true/false, 1/0, on/off.

    Raises:
        LoadError: it is something else.
    """
    text = source.parameters.get(key, str(default)).strip().lower()
    if text not in SWITCH:
        raise LoadError(f"parameter '{key}': expected one of {', '.join(SWITCH)}, got '{text}'")
    return SWITCH[text]


SWITCH = {"true": True, "false": False, "1": True, "0": False, "on": True, "off": False}
