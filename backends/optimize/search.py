"""The search: makes the variants of a plan in turn, stops where nothing can come of it, measures the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from backends.base import Array, Signature
from backends.optimize import choice, scores, steps, timing
from backends.optimize.bare import arrays, declared
from backends.optimize.budget import Budget
from backends.optimize.child import Child, StepFailed, shortened
from backends.optimize.recipe import Recipe
from backends.optimize.results import Figures, Gateway, Row, State
from backends.optimize.scores import Estimate, Evaluation
from backends.optimize.steps import Made
from backends.optimize.techniques import Steps, changes, known
from backends.optimize.variant import Variant

_NETWORK_ROWS = 128  # of a batch that a network is evaluated with
_REQUEST_BYTES = 32 << 20  # of a request's inputs and outputs together; a server takes 64 MiB


@dataclass(frozen=True, slots=True)
class Work:
    """What a search works with.

    Attributes:
        recipe: whose model it is.
        recipe_file: where it is pickled, for other processes.
        folder: for files on the way.
        gateway: keeps and measures what comes of it.
        new_child: a process for bare calls.
        seconds: that each kind of latency is measured for.
    """

    recipe: Recipe
    recipe_file: Path
    folder: Path
    gateway: Gateway
    new_child: Callable[[], Child]
    seconds: float


class Search:
    """Makes and measures variants.

    Attributes:
        original: how the recipe's model does, called directly; all else is compared with that.
    """

    def __init__(self, work: Work, budget: Budget) -> None:
        self._work = work
        self._budget = budget
        self._techniques = known(work.recipe)
        self._changes = changes(work.recipe)
        self._tensors = declared(work.recipe)
        self._rows: dict[Steps, Row] = {}
        self._made: dict[Steps, Made] = {}
        self._networks: dict[Steps, Figures] = {}
        self._obstructed: set[str] = set()
        self.original = Evaluation()

    def __repr__(self) -> str:
        return f"<Search rows={len(self._rows)}>"

    def run(self, child: Child, plan: Sequence[Steps], begin: Callable[[int, str], None]) -> Iterator[Row]:
        """The rows, each as soon as it is there: the original's first.

        Args:
            child: applies the techniques, and runs networks.
            plan: what to try, each after what it begins with.
            begin: is told how many are done and the name of the next, before it is made.

        Raises:
            InvalidScore: the original cannot be evaluated.
            StepFailed: the original does not run.
        """
        for number, variant in enumerate(((), *plan)):
            begin(number, Variant(variant).name)
            began = time.monotonic()
            row = self._row(child, variant) if variant else self._first(child)
            if row:
                self._rows[variant] = replace(row, seconds=time.monotonic() - began)
                yield self._rows[variant]

    def _first(self, child: Child) -> Row:
        made = child.call(steps.original, self._work.recipe_file, self._work.folder / "original")
        self._made[()] = made
        self.original = self._evaluated(child, made)
        self._networks[()] = self._compared(self.original)
        return self._measured(made)

    def _row(self, child: Child, variant: Steps) -> Row | None:
        """A variant's row; None if there is nothing that its last step could work on, or that has been told already."""
        name, parent, technique = Variant(variant).name, variant[:-1], self._techniques[variant[-1]]
        if parent not in self._made or not _fits(technique.takes, self._made[parent]):
            return None
        if obstacle := technique.obstacle(self._work.recipe):
            told = technique.name in self._obstructed
            self._obstructed.add(technique.name)
            return None if told else Row(name, variant, State.SKIPPED, obstacle)
        if reason := self._reason_to_skip(variant):
            return Row(name, variant, State.SKIPPED, reason)
        source, folder = self._made[parent].file, self._work.folder / name
        try:
            made = child.call(steps.apply, self._work.recipe_file, source, technique.name, folder)
            row = self._network(child, made) if made.is_module else self._measured(made)
        except Exception as error:  # evaluate is anybody's code
            return Row(name, variant, State.FAILED, _said(error))
        self._made[variant] = made  # a file that failed to serve, too: another may still be made of it
        return row

    def _reason_to_skip(self, variant: Steps) -> str:
        """Why nothing can come of a variant, and of what begins with it; "" if something may."""
        network = None if variant[-1] in self._changes else self._networks.get(variant[:-1])
        if network and (missed := _hopeless(network, self._budget)):
            return f"{Variant(variant[:-1]).name} has {missed}"
        if len(variant) > 1 and variant[0] in self._changes:
            return self._beaten(variant[1:])
        return ""

    def _beaten(self, path: Steps) -> str:
        """Why a way to a file need not be tried with other networks: with the original, another one is far better."""
        rows = [row for row in self._rows.values() if row.measured and row.steps and row.steps[0] not in self._changes]
        same = [row for row in rows if row.steps[: len(path)] == path]
        better = [next((other.name for other in rows if choice.clearly_beats(other, row)), "") for row in same]
        if not better or "" in better:
            return ""
        return f"with the original, {better[0]} is as small, as accurate and much faster"

    def _network(self, child: Child, made: Made) -> Row:
        """What a changed network is good for, before it becomes a file."""
        figures = self._compared(self._evaluated(child, made))
        self._networks[made.variant.steps] = figures
        return _row_of(made, State.NETWORK, figures)

    def _evaluated(self, child: Child, made: Made) -> Evaluation:
        def call(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return child.call(steps.run, self._work.recipe_file, made.file, dict(inputs))

        return scores.evaluate(self._work.recipe, call, _NETWORK_ROWS)

    def _measured(self, made: Made) -> Row:
        """Time a file, put it into the repository with the batching that follows, and measure it there."""
        variant, work = made.variant, self._work
        if variant.artifact is None:
            raise StepFailed("it gave neither a module nor a file")
        try:
            # Before it is known to load: a file that does not is set aside, for a machine that can.
            work.gateway.add(variant.name, variant.artifact, timing.Batching(1, ()))
            rows = arrays(work.recipe.sample)
            with work.new_child() as alone:  # of its own, so that no other runtime's threads and memory disturb it
                bare = alone.call(timing.measure, variant.artifact, self._tensors, rows, work.seconds)
            batching = timing.tune(bare.curve, self._limit_ms())
            size = work.gateway.add(variant.name, variant.artifact, batching)
            most = min(batching.max_batch_size, max(_REQUEST_BYTES // _row_bytes(self._tensors), 1))
            evaluate = partial(scores.evaluate, work.recipe, max_rows=most)
            evaluation, served = work.gateway.measure(variant.name, rows, evaluate)
            figures = replace(self._compared(evaluation), size_bytes=size, served=served, bare=bare, batching=batching)
        except BaseException as error:  # the repository holds what has been measured, whatever ends this
            work.gateway.remove(variant.name)
            if isinstance(error, Exception):
                return _row_of(made, State.FAILED, reason=f"made, but not served: {_said(error)}")
            raise
        return _row_of(made, State.MEASURED, figures)

    def _compared(self, evaluation: Evaluation) -> Figures:
        return Figures(
            scores.accuracy(evaluation),
            scores.drop(evaluation, self.original),
            scores.agreement(evaluation, self.original),
        )

    def _limit_ms(self) -> float:
        return min((c.limit for c in self._budget if c.name in ("p50", "p95", "p99")), default=math.inf)


def _row_of(made: Made, state: State, figures: Figures | None = None, reason: str = "") -> Row:
    variant = made.variant
    backend = variant.artifact.backend if variant.artifact and state is not State.NETWORK else ""
    return Row(variant.name, variant.steps, state, reason, figures, variant.notes, backend=backend)


def _row_bytes(tensors: Signature) -> int:
    """What a row of all inputs and outputs takes."""
    return sum(math.prod(spec.shape[1:]) * spec.dtype.itemsize for spec in (*tensors.inputs, *tensors.outputs))


def _fits(takes: str, made: Made) -> bool:
    """Whether a technique can work on a variant."""
    if takes == "module":
        return made.is_module
    return made.variant.artifact is not None and made.variant.artifact.file.suffix == takes


def _hopeless(network: Figures, budget: Budget) -> str:
    """Which condition of the budget a network misses by more than chance; no file of it could keep to it."""
    for condition in budget:
        if condition.name in ("accuracy", "drop"):
            estimate: Estimate = getattr(network, condition.name)
            best = estimate.high if condition.name == "accuracy" else estimate.low
            if not condition.holds(estimate.value if best is None else best):
                return f"{condition.name} {estimate.value:.4g}, and the budget wants {condition.text}"
    return ""


def _said(error: Exception) -> str:
    return (
        shortened(str(error))
        if isinstance(error, (StepFailed, scores.InvalidScore))
        else shortened(f"{type(error).__name__}: {error}")
    )
