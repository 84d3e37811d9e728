"""The sentences of the report, the same in Markdown, HTML and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from backends.optimize import choice, report_cells
from backends.optimize.report import Report
from backends.optimize.results import Row, State
from backends.optimize.steps import Profile

_OPERATIONS = 10
_FEW = 500  # requests: below, a 99th percentile is the word of the slowest five

OPERATIONS = ("operator", "calls a run", "ms a run", "share")


def verdict(report: Report) -> Iterator[str]:
    """Who won, or why nobody did."""
    budget = ", ".join(condition.text for condition in report.run.budget)
    if report.run.unfinished:
        tried = f"{len(report.rows)} of {report.run.planned}"
        yield f"The search was {report.run.unfinished} after {tried} variants: this is what had been measured."
    if report.winner and not report.winner.steps:
        yield f"Nothing is better than the original under {budget}: **original**, {_in_short(report.winner)}."
    elif report.winner:
        yield f"The winner under {budget}: **{report.winner.name}**, {_in_short(report.winner)}."
    elif report.nearest:
        missed = ", ".join(choice.misses(report.nearest, report.run.budget))
        yield f"No variant keeps to {budget}."
        yield f"**{report.nearest.name}** comes nearest and misses {missed}: {_in_short(report.nearest)}."
    else:
        yield "No variant was measured."


def _in_short(row: Row) -> str:
    figures = row.measured
    if figures is None:
        return row.state
    return f"accuracy {figures.accuracy.value:.4f}, {report_cells.in_short(figures)}"


def regressions(report: Report) -> list[str]:
    """What got worse, by variant."""
    found = ((row.name, choice.remarks(row, report.rows)) for row in report.of(State.MEASURED))
    return [f"{name}: {'; '.join(remarks)}" for name, remarks in found if remarks]


def notes(report: Report) -> list[str]:
    """What is to be known of how variants came about; what a step has said is not said again of those after it."""
    by_steps = {row.steps: row for row in report.rows}
    found = []
    for row in report.of(State.MEASURED, State.NETWORK):
        before = by_steps.get(row.steps[:-1])
        if new := [note for note in row.notes if not (before and row.steps and note in before.notes)]:
            found.append(f"{row.name}: {' '.join(new)}")
    return found


def left_out(report: Report) -> list[tuple[str, State, str]]:
    """Names of variants, what became of them, and why; a line for each reason."""
    names: dict[tuple[State, str], list[str]] = {}
    for row in report.of(State.FAILED, State.SKIPPED):
        names.setdefault((row.state, row.reason), []).append(row.name)
    return [(", ".join(found), state, reason) for (state, reason), found in names.items()]


def network(row: Row) -> list[str]:
    """A changed network's line."""
    if row.figures is None:
        return [row.name, report_cells.NONE, report_cells.NONE]
    return [row.name, report_cells.ACCURACY.text(row.figures), report_cells.DROP.text(row.figures)]


def profiled(profile: Profile) -> str:
    """How the original was profiled."""
    return (
        f"torch.profiler over {profile.runs} runs of {profile.rows} rows, {profile.run_ms:,.3f} ms each without it; "
        f"the network has {profile.parameters:,} parameters."
    )


def operations(profile: Profile) -> list[list[str]]:
    """The operators that take most of the time, with their own time alone."""
    whole = sum(operation.self_us for operation in profile.operations)
    return [
        [
            operation.name,
            f"{operation.calls / profile.runs:g}",
            f"{operation.self_us / profile.runs / 1000:,.4f}",
            f"{operation.self_us / whole:.1%}",
        ]
        for operation in profile.operations[:_OPERATIONS]
    ]


def method(report: Report) -> list[str]:
    """What the figures are, and what they are not."""
    run, machine = report.run, report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    callers = f"{run.concurrency} caller{'s' * (run.concurrency != 1)}"
    return [
        f"{report.when}, {run.took_s:,.0f} s in all, on {machine.cores} cores of {machine.processor}, Python "
        f"{machine.python}, {packages}. The client that measures ran on the same machine.",
        f"Each variant was served by `tensorgate serve` in a process of its own. Latencies and rows/s are of {callers} "
        "at once, each sending a row when the last is answered; a budget's p50, p95, p99 and throughput are these.",
        *(f"{column.head}: {column.meaning}." for column in report_cells.COLUMNS if column.meaning != "likewise"),
        "The winner is, of the variants within the budget that come within 10 % of the most rows/s, the smallest.",
        *_doubts(report),
    ]


def _doubts(report: Report) -> Iterator[str]:
    """What the reader should not take for more than it is."""
    measured = [(row, row.measured) for row in report.rows if row.measured]
    if any(figures.drop.low is None for _, figures in measured):
        yield (
            "Scores have no confidence interval: let evaluate return an array with a score for each example, not their "
            "mean."
        )
    if any(figures.agreement is None for _, figures in measured):
        yield "Agreement could not be told where evaluate sent other samples than for the original: is it random?"
    few = [row.name for row, figures in measured if figures.served and figures.served.loaded.count < _FEW]
    if few:
        yield f"p99 is of fewer than {_FEW} requests, so of the slowest few, for {', '.join(few)}."
    if aside := [row.name for row in report.of(State.FAILED) if row.backend]:
        yield f"Files that did not serve here are in the folder .unserved of the repository: {', '.join(aside)}."
