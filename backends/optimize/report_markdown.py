"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.optimize import report_cells, report_words
from backends.optimize.report import Report
from backends.optimize.results import State
from backends.optimize.steps import Profile

_RED = "\N{LARGE RED CIRCLE}"


def text(report: Report) -> str:
    """All of it."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {report.run.recipe}: optimised"
    yield "\n".join(report_words.verdict(report))
    if report.original and report.winner and report.winner.steps:
        yield "## Before and after"
        yield _changes(report)
    yield "## Variants"
    yield _variants(report)
    yield _list(report_words.regressions(report), _RED)
    yield _list(report_words.notes(report))
    if networks := report.of(State.NETWORK):
        yield "## Changed networks, before they become files"
        yield _table(("network", "accuracy", "drop"), [report_words.network(row) for row in networks], left=(0,))
    if left := report_words.left_out(report):
        yield "## Failed and skipped"
        yield _table(("variant", "", "why"), left, left=(0, 1, 2))
    if report.profile:
        yield "## Where the original's time goes"
        yield report_words.profiled(report.profile)
        yield _profile(report.profile)
    yield "## How it was measured"
    yield _list(report_words.method(report))


def _changes(report: Report) -> str:
    if report.original is None or report.winner is None:
        return ""
    lines = [
        [change.what, change.before, change.after, f"{change.gain}{f' {_RED}' if change.worse else ''}"]
        for change in report_cells.changes(report.original, report.winner)
    ]
    return _table(["", "original", report.winner.name, ""], lines, left=(0,))


def _variants(report: Report) -> str:
    original = report.original.measured if report.original else None
    front = {row.name for row in report.front}
    lines = []
    for number, row in enumerate(report.of(State.MEASURED), 1):
        if row.measured is None:
            continue
        figures = [
            f"{cell.text}{f' {_RED}' if cell.worse else ''}" for cell in report_cells.cells(row.measured, original)
        ]
        mark = f"{'*' * (row.name in front)}"
        lines.append([str(number), f"{row.name}{mark}", row.backend, *figures])
    if not lines:
        return "None was measured."
    heads = ["", "variant", "backend", *(column.head for column in report_cells.COLUMNS)]
    return _table(heads, lines, left=(1, 2)) + f"\n\n\\* on the Pareto front; {_RED} worse than the original"


def _profile(profile: Profile) -> str:
    return _table(report_words.OPERATIONS, report_words.operations(profile), left=(0,))


def _list(sentences: Sequence[str], mark: str = "") -> str:
    return "\n".join(f"- {f'{mark} ' if mark else ''}{sentence}" for sentence in sentences)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    rule = [":--" if column in left else "--:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in (heads, rule, *lines))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
