"""One run of `tensorgate predict`: from the flags to the file in its place."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from gateway.commands.connection import connected, failed
from gateway.commands.ending import endings, how
from gateway.commands.failure import FAILED, UNFINISHED, USAGE, CommandFailed
from gateway.commands.predict import output
from gateway.commands.predict.finished import is_finished
from gateway.commands.predict.partial import Partial, clear, locked
from gateway.commands.predict.patience import Patience
from gateway.commands.predict.plan import Plan, make_plan
from gateway.commands.predict.progress import Progress
from gateway.commands.predict.rows import Block, block
from gateway.commands.predict.source import Source, blocks, open_source
from gateway.commands.predict.stream import Predictor
from tensorgate_client import InferenceClient, InferenceError


def run(flags: Namespace) -> int:
    """Predict all rows; the exit code.

    Raises:
        CommandFailed: it cannot be done, or not to the end.
    """
    source = open_source(flags.input)
    output.check_path(flags.output, flags.input, flags.keep)
    folder = flags.output.with_name(f"{flags.output.name}.partial")
    if flags.output.exists() and not flags.force:
        if flags.resume and is_finished(flags):
            return _finished(flags, folder)
        raise CommandFailed(f"--output: {flags.output} exists; --force replaces it")
    try:
        with endings():
            return _run_locked(flags, source, folder)
    except OSError as error:  # the folder may not be written
        raise _not_written(flags, error, "") from None


def _finished(flags: Namespace, folder: Path) -> int:
    """The run that is to go on has ended, though it may not have come to tidying up."""
    if folder.exists():
        with locked(folder):
            clear(folder)
    failed = output.reasons_of(flags.output).exists()
    if not flags.quiet:
        some = f", but for the rows in {output.reasons_of(flags.output)}" if failed else ""
        print(f"{flags.output} is complete already{some}", file=sys.stderr)
    return FAILED if failed else 0


def _run_locked(flags: Namespace, source: Source, folder: Path) -> int:
    with locked(folder):
        former = _former(flags, folder)
        try:
            with connected(flags) as client:
                plan = _plan(client, flags, source, former)
                return _run(client, plan, former or Partial.begin(folder, plan.manifest()))
        except CommandFailed as error:
            raise CommandFailed(f"{error}{_kept(folder, error.code)}", error.code) from None
        except OSError as error:  # a full disk
            raise _not_written(flags, error, _kept(folder, UNFINISHED)) from None
        except KeyboardInterrupt as interrupt:
            what, code = how(interrupt)
            raise CommandFailed(f"{what}{_kept(folder, code)}", code) from None


def _not_written(flags: Namespace, error: OSError, kept: str) -> CommandFailed:
    return CommandFailed(f"{error.filename or flags.output}: {error.strerror or error}{kept}", UNFINISHED)


def _former(flags: Namespace, folder: Path) -> Partial | None:
    """What an interrupted run has left, where the flags say to go on with it."""
    if flags.restart:
        clear(folder)
    former = Partial.find(folder)
    if former is None or not former.rows:
        return None
    if not flags.resume:
        raise CommandFailed(
            f"an interrupted run has left {former.rows:,} rows in {folder}: --resume goes on, --restart begins anew"
        )
    return former


def _kept(folder: Path, code: int) -> str:
    """What a run that ends early says of its rows; without any it leaves nothing."""
    found = Partial.find(folder)
    if found is None or not found.rows:
        clear(folder)
        return ""
    kept = f"\n{found.rows:,} rows are kept in {folder}"
    return kept if code == USAGE else f"{kept}: the same command with --resume goes on from there"


def _run(client: InferenceClient, plan: Plan, partial: Partial) -> int:
    flags = plan.flags
    total, estimated = plan.source.rows, plan.source.estimated
    with Progress(total, partial.rows, partial.failed, estimated=estimated, quiet=flags.quiet) as progress:
        try:
            _fill(client, plan, partial, progress)
        except InferenceError as error:
            raise _ended(client, plan, error) from None
    output.finish(flags, partial, plan.outputs, plan.schema)
    clear(partial.folder)
    if not flags.quiet:
        rate = f" ({progress.rate:,.0f} rows/s)" if progress.rate else ""
        print(f"wrote {partial.rows:,} rows to {flags.output}{rate}", file=sys.stderr)
    if not partial.failed:
        return 0
    listed = output.reasons_of(flags.output)
    print(f"tensorgate: {partial.failed:,} of {partial.rows:,} rows failed: {listed} says why", file=sys.stderr)
    return FAILED


def _plan(client: InferenceClient, flags: Namespace, source: Source, former: Partial | None) -> Plan:
    try:
        return make_plan(client, flags, source, former)
    except InferenceError as error:
        if former and error.code.name == "NOT_FOUND":
            raise _gone(flags, str(former.manifest["version"]), error) from None
        raise


def _gone(flags: Namespace, version: str, error: InferenceError) -> CommandFailed:
    """Another version would be another model: half of the output from each is nobody's wish."""
    return CommandFailed(
        f"{error.message}: this run began with version {version} of model '{flags.model}': serve it again to go on, or "
        "begin anew with what is served now by --restart",
        UNFINISHED,
    )


def _ended(client: InferenceClient, plan: Plan, error: InferenceError) -> CommandFailed:
    if error.code.name == "NOT_FOUND":
        return _gone(plan.flags, plan.model.version, error)
    why = failed(error, plan.flags.address, live=client.is_live(deadline_ms=2000))
    return CommandFailed(str(why), UNFINISHED)


def _fill(client: InferenceClient, plan: Plan, partial: Partial, progress: Progress) -> None:
    predictor = Predictor(
        client,
        plan.model,
        plan.outputs,
        plan.schema,
        batch_size=plan.batch_size,
        window=plan.flags.window,
        patience=Patience(plan.flags.retry_for_s, progress.wait_for),
    )
    with closing(predictor.results(_blocks(plan, partial))) as results:
        for current in results:
            rows, bad = current.settled
            progress.reach(partial.rows + rows, partial.failed + bad)
            if rows and (current.complete or partial.overdue):
                partial.add(current.take(), bad)
    partial.keep()


def _blocks(plan: Plan, partial: Partial) -> Iterator[Block]:
    """From the block on in which the first row is that is not done: blocks are cut as in every run."""
    size = int(partial.manifest["block_rows"])
    done = partial.rows % size
    for columns in blocks(plan.source, plan.flags.input, plan.columns, partial.rows - done, size):
        yield block(columns, plan.feeds, plan.flags.keep, batched=plan.model.batches, first=done)
        done = 0
