"""The report's figures in words, and which of them got worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from backends.optimize.results import Figures, Row, Served
from backends.optimize.scores import Agreement, Estimate
from backends.optimize.timing import Bare

NONE = "-"

_NOISE = 1.1  # times as much: less is none on a machine that others use too


class Column(NamedTuple):
    """A column of the big table.

    Attributes:
        meaning: what its figures are.
        text: of a row's cell.
        figure: what can be compared with the original's; None if nothing can.
        better, worse: what more, or less, of a gain is called.
        more: whether more of the figure is better.
    """

    head: str
    meaning: str
    text: Callable[[Figures], str]
    figure: Callable[[Figures], float] | None = None
    better: str = "faster"
    worse: str = "slower"
    more: bool = False

    def gain(self, before: Figures, after: Figures) -> float:
        """How many times as good a figure has become; 1 where there is none to compare."""
        if self.figure is None:
            return 1.0
        old, new = max(self.figure(before), 1e-9), max(self.figure(after), 1e-9)
        return new / old if self.more else old / new


class Cell(NamedTuple):
    """A figure in words, and whether it is worse than the original's by more than noise."""

    text: str
    worse: bool = False


class Change(NamedTuple):
    """A line of the table of before and after."""

    what: str
    before: str
    after: str
    gain: str
    worse: bool


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, power in (("GB", 3), ("MB", 2), ("KB", 1)):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.0f} B"


def in_short(figures: Figures) -> str:
    """The figures of a served variant that matter most."""
    latency = f"p50 {figures.of('p50'):,.2f} ms, p99 {figures.of('p99'):,.2f} ms"
    return f"{latency}, {figures.of('throughput'):,.0f} rows/s, {size(figures.size_bytes)}"


def estimate(value: Estimate, form: str = "{:.4f}") -> str:
    """A figure with its confidence interval."""
    if value.low is None or value.high is None:
        return form.format(value.value)
    return f"{form.format(value.value)} [{form.format(value.low)}, {form.format(value.high)}]"


def _agreeing(form: str, take: Callable[[Agreement], float | None]) -> Callable[[Figures], str]:
    def text(figures: Figures) -> str:
        found = [take(agreement) for agreement in (figures.agreement or {}).values()]
        return " / ".join(NONE if value is None else form.format(value) for value in found) or NONE

    return text


def _served(figures: Figures) -> Served:
    if figures.served is None:
        raise ValueError("it was not served")
    return figures.served


def _bare(figures: Figures) -> Bare:
    if figures.bare is None:
        raise ValueError("it was not timed")
    return figures.bare


def _batch(figures: Figures) -> str:
    return str(figures.batching.max_batch_size) if figures.batching else NONE


def _bytes(head: str, meaning: str, figure: Callable[[Figures], float]) -> Column:
    return Column(head, meaning, lambda figures: size(figure(figures)), figure, "smaller", "larger")


def _ms(head: str, meaning: str, figure: Callable[[Figures], float]) -> Column:
    return Column(head, meaning, lambda figures: f"{figure(figures):,.2f}", figure)


def _rate(head: str, meaning: str, figure: Callable[[Figures], float]) -> Column:
    return Column(head, meaning, lambda figures: f"{figure(figures):,.0f}", figure, more=True)


ACCURACY = Column(
    "accuracy",
    "the score that evaluate gives through the gateway, and its 95 % confidence interval",
    lambda figures: estimate(figures.accuracy),
)
DROP = Column(
    "drop",
    "below the original's score, and the 95 % interval over the same examples in pairs",
    lambda figures: estimate(figures.drop, "{:+.4f}"),
)
COLUMNS = (
    ACCURACY,
    DROP,
    Column(
        "same argmax",
        "share of the evaluated rows whose largest output is where the original's is",
        _agreeing("{:.2%}", lambda agreement: agreement.same_argmax),
    ),
    Column(
        "worst cosine",
        "the least cosine between an evaluated row's output and the original's",
        _agreeing("{:.4f}", lambda agreement: agreement.worst_cosine),
    ),
    Column(
        "max diff",
        "the largest difference of one output value from the original's",
        _agreeing("{:.2g}", lambda agreement: agreement.worst_difference),
    ),
    _bytes("size", "of the model files on disk", lambda figures: figures.size_bytes),
    _bytes(
        "memory",
        "the most that the server process held while it served this variant alone (VmHWM)",
        lambda figures: _served(figures).memory_bytes,
    ),
    _ms("p50 ms", "of requests of one row through the gateway, several callers at once", lambda f: f.of("p50")),
    _ms("p95 ms", "likewise", lambda f: f.of("p95")),
    _ms("p99 ms", "likewise", lambda f: f.of("p99")),
    _rate("rows/s", "of those callers together", lambda f: f.of("throughput")),
    _ms("alone p50 ms", "through the gateway, one caller", lambda f: _served(f).alone.p50_ms),
    _ms(
        "bare p50 ms",
        "the same backend called directly in a process without a gateway, the smallest batch that it takes",
        lambda f: _bare(f).latency.p50_ms,
    ),
    _rate("bare rows/s", "likewise, at its best size of batch", lambda f: _bare(f).rows_per_s),
    Column("batch", "max_batch_size, chosen from the bare latencies by rows", _batch),
)


def cells(figures: Figures, original: Figures | None) -> list[Cell]:
    """A measured row's figures, a cell for each column."""
    return [Cell(column.text(figures), _is_worse(column, figures, original)) for column in COLUMNS]


def _is_worse(column: Column, figures: Figures, original: Figures | None) -> bool:
    if column is DROP:
        return figures.less_accurate
    return original is not None and column.gain(original, figures) < 1 / _NOISE


def changes(original: Row, winner: Row) -> Iterator[Change]:
    """What the winner is beside the original."""
    before, after = original.measured, winner.measured
    if before is None or after is None:
        return
    yield Change(
        "accuracy",
        ACCURACY.text(before),
        ACCURACY.text(after),
        f"{0.0 - after.drop.value:+.4f}",
        _is_worse(DROP, after, before),
    )
    for column in COLUMNS:
        if column.figure:
            gain = column.gain(before, after)
            words = f"{gain:.2f}x {column.better}" if gain >= 1 else f"{1 / gain:.2f}x {column.worse}"
            yield Change(column.head, column.text(before), column.text(after), words, _is_worse(column, after, before))
