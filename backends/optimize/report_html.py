"""The report as one page that needs nothing else: no script, no network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from backends.optimize import report_cells, report_plot, report_words
from backends.optimize.report import Report
from backends.optimize.results import Row, State

_STYLE = """\
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1d232b; --soft: #5d6672; --rule: #d9dde2; --card: #f3f5f7;
  --best: #0b7a5e; --other: #7b8794; --original: #b35c00; --bad: #c2271d; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e4e8ec; --soft: #9aa5b1; --rule: #333b45;
  --card: #1d232a; --best: #3ecf9f; --other: #8894a1; --original: #f0a04b; --bad: #ff7468; } }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.5rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.verdict { background: var(--card); border-left: 4px solid var(--best); padding: .7rem 1rem; }
.none { border-color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, .l, th.l { text-align: left; } .w { white-space: normal; }
.name { position: sticky; left: 0; background: var(--ground); text-align: left; }
tr.winner td { background: var(--card); font-weight: 600; }
.bad { color: var(--bad); } td.bad { font-weight: 600; } .best { color: var(--best); } .soft { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--rule); } svg .front { fill: none; stroke: var(--best); stroke-dasharray: 5 4; }
svg circle { fill: var(--other); fill-opacity: .65; stroke: var(--ground); }
svg circle.best { fill: var(--best); } svg circle.original { fill: var(--original); }
svg .number { fill: var(--ink); font-weight: 600; text-anchor: middle; paint-order: stroke; stroke: var(--ground);
  stroke-width: 3px; }
"""

_WORDS = ("variant", "backend", "why")  # heads of columns that hold words and not figures

_KEY = (
    '<p class="soft">The size of a point is the size of its file; its number is the line of the table. '
    '<b style="color: var(--best)">Pareto front</b>: none is better in accuracy, latency and size together. '
    '<b style="color: var(--original)">The original</b>, in eager PyTorch.</p>'
)


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.run.recipe}: optimised")
    body = "\n".join(_parts(report))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{_STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n"
    )


def _parts(report: Report) -> Iterator[str]:
    words = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(" ".join(report_words.verdict(report))))
    yield f'<p class="verdict{"" if report.winner else " none"}">{words}</p>'
    if picture := report_plot.svg(report):
        yield f"<h2>Accuracy, latency, size</h2>\n{picture}\n{_KEY}"
    if report.original and report.winner and report.winner.steps:
        yield _section("Before and after", _changes(report.original, report.winner))
    yield _section("Variants", _variants(report))
    yield _list("What got worse", report_words.regressions(report), "bad")
    yield _list("How they came about", report_words.notes(report))
    if networks := report.of(State.NETWORK):
        lines = [_cells(report_words.network(row)) for row in networks]
        yield _section("Changed networks, before they become files", _table(("network", "accuracy", "drop"), lines))
    if left := report_words.left_out(report):
        lines = [
            [_cell(names, "l w"), _cell(state, "l bad" if state is State.FAILED else "l"), _cell(reason, "l w")]
            for names, state, reason in left
        ]
        yield _section("Failed and skipped", _table(("variant", "", "why"), lines))
    if report.profile:
        lines = [_cells(line) for line in report_words.operations(report.profile)]
        table = f"<p>{escape(report_words.profiled(report.profile))}</p>{_table(report_words.OPERATIONS, lines)}"
        yield _section("Where the original's time goes", table)
    yield _list("How it was measured", report_words.method(report))


def _changes(original: Row, winner: Row) -> str:
    lines = [
        [
            _cell(change.what, "l"),
            _cell(change.before),
            _cell(change.after),
            _cell(change.gain, "bad" if change.worse else ""),
        ]
        for change in report_cells.changes(original, winner)
    ]
    return _table(("", "original", winner.name, ""), lines)


def _variants(report: Report) -> str:
    original = report.original.measured if report.original else None
    front, winner = {row.name for row in report.front}, report.winner
    lines, marked = [], []
    for number, row in enumerate(report.of(State.MEASURED), 1):
        if row.measured:
            figures = report_cells.cells(row.measured, original)
            cells = [_cell(cell.text, "bad" if cell.worse else "") for cell in figures]
            lines.append([_cell(str(number)), _name(row, front), _cell(row.backend, "l"), *cells])
            marked.append(row is winner)
    if not lines:
        return "<p>None was measured.</p>"
    return _table(("", "variant", "backend", *(column.head for column in report_cells.COLUMNS)), lines, marked)


def _name(row: Row, front: set[str]) -> str:
    mark = ' <span class="best" title="on the Pareto front">&#9670;</span>' if row.name in front else ""
    return f'<td class="name">{escape(row.name)}{mark}</td>'


def _section(title: str, content: str) -> str:
    return f'<h2>{escape(title)}</h2>\n<div class="wide">{content}</div>'


def _list(title: str, sentences: Sequence[str], kind: str = "") -> str:
    if not sentences:
        return ""
    items = "\n".join(f"<li{f' class={kind}' if kind else ''}>{escape(sentence)}</li>" for sentence in sentences)
    return _section(title, f"<ul>\n{items}\n</ul>")


def _cell(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{escape(text)}</td>"


def _cells(texts: Sequence[str]) -> list[str]:
    """A line whose first cell is a name."""
    return [_cell(text, "" if number else "l") for number, text in enumerate(texts)]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    marks = marked or [False] * len(lines)
    head = "".join(f"<th{' class=l' if name in _WORDS else ''}>{escape(name)}</th>" for name in heads)
    rows = "\n".join(
        f"<tr{' class=winner' if mark else ''}>{''.join(line)}</tr>" for line, mark in zip(lines, marks, strict=True)
    )
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"
