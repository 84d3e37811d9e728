"""One run of `tensorgate optimize`, from its flags to its report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backends.optimize import budget, recipe_file, report_html, report_markdown, steps, techniques
from backends.optimize.bare import declared
from backends.optimize.child import Child, StepFailed
from backends.optimize.recipe import Recipe
from backends.optimize.report import Machine, Report, Run, as_json
from backends.optimize.results import Row
from backends.optimize.scores import InvalidScore
from backends.optimize.search import Search, Work
from gateway.commands.ending import endings, how
from gateway.commands.failure import FAILED, CommandFailed
from gateway.commands.saying import say
from gateway.optimize import lines
from gateway.optimize.entry import ASIDE
from gateway.optimize.served import ServedEntries

_REPORT = "report.json"


class Job:
    """A run.

    Args:
        flags: of `arguments.add_optimize`.
        folder: for files on the way; empty.

    Raises:
        CommandFailed: the recipe, the budget, a technique's name or the folder to write does not hold.
    """

    def __init__(self, flags: Namespace, folder: Path) -> None:
        self._flags = flags
        self._began = time.time()
        try:
            self._budget = budget.parse(flags.budget)
        except budget.InvalidBudget as error:
            raise CommandFailed(f"--budget: {error}") from None
        _check_output(flags.output, force=flags.force)
        recipe = _read(flags.recipe, folder / "recipe.pkl")
        try:
            self._plan = techniques.plan(recipe, flags.only, flags.skip)
        except techniques.UnknownTechnique as error:
            raise CommandFailed(str(error)) from None
        self._work = Work(
            recipe,
            folder / "recipe.pkl",
            folder,
            ServedEntries(flags.output, declared(recipe), flags.concurrency, flags.seconds),
            partial(Child, (flags.recipe.resolve().parent,), flags.timeout_s),
            flags.seconds,
        )
        self._rows: list[Row] = []
        self._profile: steps.Profile | None = None

    def run(self) -> int:
        """Search, and write what came of it, be it all or what there was when it was interrupted; the exit code."""
        _clear(self._flags.output)
        unfinished, code = "", 0
        try:
            with endings():
                self._search()
        except KeyboardInterrupt as interrupt:
            unfinished, code = how(interrupt)
        except CommandFailed:  # nobody reads any more what is said
            _write(self._report("cut off"), self._flags.output)
            raise
        except (InvalidScore, StepFailed) as error:  # of the original
            raise CommandFailed(self._blamed(error)) from error
        report = self._report(unfinished)
        _write(report, self._flags.output)
        say("\n" + lines.summary(report, self._flags.output))
        return code or (0 if report.winner else FAILED)

    def _blamed(self, error: Exception) -> str:
        """What is wrong with the recipe's model or evaluate, and in which line if it is there."""
        path = self._flags.recipe.resolve()
        return recipe_file.location(error.__cause__, path) if error.__cause__ else f"{path}: {error}"

    def _search(self) -> None:
        with self._work.new_child() as child, _progress(len(self._plan) + 1) as bar:
            self._profile = child.call(steps.profile, self._work.recipe_file)
            with bar.external_write_mode(file=sys.stdout):
                say(lines.profile(self._profile))

            def begin(number: int, name: str) -> None:
                bar.update(number - bar.n)
                bar.set_description(name)

            for row in Search(self._work, self._budget).run(child, self._plan, begin):
                self._rows.append(row)
                with bar.external_write_mode(file=sys.stdout):
                    say(lines.row(row, self._rows))

    def _report(self, unfinished: str) -> Report:
        run = Run(
            recipe=self._work.recipe.name,
            began=self._began,
            took_s=time.time() - self._began,
            budget=self._budget,
            concurrency=self._flags.concurrency,
            unfinished=unfinished,
            planned=len(self._plan) + 1,
        )
        return Report(run, Machine.this(), self._profile, self._rows)


def _progress(total: int) -> Any:
    """A bar on stderr if that is a terminal: in a log, the lines of the variants tell as much."""
    size = shutil.get_terminal_size()  # tqdm draws nothing on one that does not tell
    shape = {"ncols": size.columns, "nrows": size.lines}
    return tqdm(total=total, file=sys.stderr, disable=None, unit="variant", leave=False, **shape)


def _read(path: Path, target: Path) -> Recipe:
    try:
        recipe = recipe_file.load(path)
        recipe_file.write(recipe, path, target)
    except recipe_file.InvalidRecipe as error:
        raise CommandFailed(str(error)) from error
    return recipe


def _check_output(output: Path, *, force: bool) -> None:
    """Whether the repository may be written: it is new, or the work of an earlier run that may go."""
    if output.exists() and not output.is_dir():
        raise CommandFailed(f"--output: not a folder: {output}")
    if not output.exists() or not any(output.iterdir()):
        return
    if _earlier(output) is None:
        raise CommandFailed(f"--output: {output} is not empty, and not the work of an earlier run: name a new folder")
    if not force:
        raise CommandFailed(f"--output: {output} holds an earlier run: --force replaces it")


def _earlier(output: Path) -> list[str] | None:
    """The models of an earlier run, by its report; None if there is none."""
    try:
        return [row["name"] for row in json.loads((output / _REPORT).read_text())["variants"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear(output: Path) -> None:
    """Make the folder, or take out of it what an earlier run has written; other models in it stay."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--output: {error.strerror}: {output}") from None
    for name in (*(_earlier(output) or ()), ASIDE):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / _REPORT).unlink(missing_ok=True)


def _write(report: Report, output: Path) -> None:
    (output / "report.md").write_text(report_markdown.text(report))
    (output / "report.html").write_text(report_html.page(report))
    (output / _REPORT).write_text(as_json(report))
