"""What `tensorgate optimize` says on the way and at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from backends.optimize import choice, report_cells, report_words
from backends.optimize.report import Report
from backends.optimize.results import Row
from backends.optimize.steps import Profile
from gateway.commands.table import table

_OPERATORS = 5
_NAME = 32  # characters, or more
_RED = "\033[31m{}\033[0m"


def profile(found: Profile) -> str:
    """Where the original's time goes."""
    operators = report_words.operations(found)[:_OPERATORS]
    return f"{report_words.profiled(found)}\n\n{table(report_words.OPERATIONS, operators, left=1)}\n"


def row(found: Row, rows: Sequence[Row]) -> str:
    """A variant as soon as it is there, and what got worse by it."""
    name = found.name.ljust(_NAME)
    if found.figures is None:
        return f"{name}  {found.state}: {found.reason}"
    score = f"accuracy {found.figures.accuracy.value:.4f}, drop {report_cells.DROP.text(found.figures)}"
    if found.measured is None:
        return f"{name}  {score}"
    words = report_cells.in_short(found.measured)
    return "\n".join([f"{name}  {score}, {words}", *(f"    {_red(remark)}" for remark in choice.remarks(found, rows))])


def summary(report: Report, output: Path) -> str:
    """The winner, how to serve it, and where to read more."""
    said = [sentence.replace("**", "") for sentence in report_words.verdict(report)]
    if report.winner:
        serve = f"tensorgate serve --model-repository {output}"
        said += [
            "",
            f"all variants    {serve}",
            f"the winner only {serve} --model-control explicit --load-model {report.winner.name}",
        ]
    return "\n".join([*said, "", f"report          {output / 'report.html'}, report.md, report.json"])


def _red(text: str) -> str:
    return _RED.format(text) if sys.stdout.isatty() else text
