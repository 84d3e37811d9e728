"""One run of `tensorgate predict`: from the flags to the file in its place."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gateway.commands.connection import ServerClient, connected, failed
from gateway.commands.failure import FAILED, UNFINISHED, CommandFailed
from gateway.commands.model import Model, Tensor, read_model
from gateway.commands.predict import output
from gateway.commands.predict.columns import Feed, described, feeds, plain, row_bytes
from gateway.commands.predict.partial import Manifest, Partial, clear, locked
from gateway.commands.predict.progress import Progress
from gateway.commands.predict.results import REASON, result_schema
from gateway.commands.predict.rows import Block, block
from gateway.commands.predict.source import Schema, Source, blocks, open_source
from gateway.commands.predict.stream import Predictor
from tensorgate_client import InferenceError

_BLOCK_ROWS = 4096
_BLOCK_BYTES = 4 << 20
_MESSAGE_BYTES = 16 << 20
_SEGMENT_ROWS = 16384
_SEGMENT_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, all checked."""

    flags: Namespace
    model: Model
    source: Source
    feeds: Sequence[Feed]
    outputs: Sequence[Tensor]
    schema: Schema
    batch_size: int

    def manifest(self) -> dict[str, Any]:
        """What has to be the same for a run to go on; and how it cuts its rows, which need not be."""
        kept_row = sum(row_bytes(self.source.schema.field(name).type) for name in self.flags.keep)
        input_row = kept_row + sum(feed.tensor.row_bytes for feed in self.feeds)
        output_row = kept_row + sum(tensor.row_bytes for tensor in self.outputs)
        most = min(_SEGMENT_ROWS, _SEGMENT_BYTES // output_row)
        block_rows = _multiple(self.batch_size, min(most, _BLOCK_ROWS, _BLOCK_BYTES // input_row))
        segment_rows = _multiple(block_rows, most)
        stat = self.flags.input.stat()
        return {
            "format": 1,
            "input": str(self.flags.input.resolve()),
            "input_bytes": stat.st_size,
            "input_changed_ns": stat.st_mtime_ns,
            "model": self.model.name,
            "version": self.model.version,
            "columns": described(self.feeds),
            "keep": list(self.flags.keep),
            "results": [f"{field.name}: {field.type}" for field in self.schema],
            "batch_size": self.batch_size,
            "block_rows": block_rows,
            "segment_rows": segment_rows,
        }


def _multiple(unit: int, most: int) -> int:
    return unit * max(most // unit, 1)


_FREE = ("input", "batch_size", "block_rows", "segment_rows")
"""What may differ in a run that goes on; a file that was moved is still the same."""


def run(flags: Namespace) -> int:
    """Predict all rows; the exit code.

    Raises:
        CommandFailed: it cannot be done, or not to the end.
    """
    source = open_source(flags.input)
    output.check_path(flags.output, flags.keep)
    if flags.output.exists() and not flags.force:
        raise CommandFailed(f"--output: {flags.output} exists; --force replaces it")
    try:
        return _run_locked(flags, source)
    except OSError as error:  # the folder may not be written
        raise _not_written(flags, error, "") from None


def _run_locked(flags: Namespace, source: Source) -> int:
    with locked(flags.output.with_name(f"{flags.output.name}.partial")) as folder:
        former = _former(flags, folder)
        with connected(flags) as client:
            plan = _plan(client, flags, source, former)
            try:
                return _run(client, plan, former or Partial.begin(folder, plan.manifest()))
            except CommandFailed as error:
                raise CommandFailed(f"{error}{_kept(folder)}", error.code) from None
            except OSError as error:  # a full disk
                raise _not_written(flags, error, _kept(folder)) from None
            except KeyboardInterrupt:
                raise CommandFailed(f"interrupted{_kept(folder)}", 130) from None


def _not_written(flags: Namespace, error: OSError, kept: str) -> CommandFailed:
    return CommandFailed(f"{error.filename or flags.output}: {error.strerror or error}{kept}", UNFINISHED)


def _former(flags: Namespace, folder: Path) -> Partial | None:
    """What an interrupted run has left, where the flags say to go on with it."""
    if flags.restart:
        clear(folder)
    former = Partial.find(folder)
    if former and not flags.resume:
        raise CommandFailed(
            f"an interrupted run has left {former.rows:,} rows in {folder}: --resume goes on, --restart begins anew"
        )
    return former


def _kept(folder: Path) -> str:
    """What a run that ends early says of its rows; without any it leaves nothing."""
    found = Partial.find(folder)
    if found is None or not found.rows:
        clear(folder)
        return ""
    return f"\n{found.rows:,} rows are kept in {folder}: the same command with --resume goes on from there"


def _plan(client: ServerClient, flags: Namespace, source: Source, former: Partial | None) -> Plan:
    version = flags.version or (str(former.manifest["version"]) if former else "")
    model = read_model(client, flags.model, version)
    chosen = feeds(model, source, flags.map, flags.keep)
    outputs = model.select(flags.select)
    output.check(flags.output, outputs)
    kept = pa.schema([(name, plain(source.schema.field(name).type)) for name in flags.keep])
    schema = result_schema(outputs, kept, binary=flags.binary)
    batch_size = flags.batch_size or (int(former.manifest["batch_size"]) if former else _rows(model, chosen, outputs))
    if batch_size > model.max_rows and model.max_rows > 1:
        raise CommandFailed(f"--batch-size: model '{model.name}' takes up to {model.max_rows} rows, got {batch_size}")
    if batch_size > 1 and not model.batches:
        raise CommandFailed(f"--batch-size: model '{model.name}' does not batch: it takes one row a request")
    plan = Plan(flags, model, source, chosen, outputs, schema, batch_size)
    if former:
        _compare(former, plan.manifest())
    return plan


def _rows(model: Model, chosen: Sequence[Feed], outputs: Sequence[Tensor]) -> int:
    """The most rows a request may have, as far as messages stay well below what servers take."""
    widest = max(sum(feed.tensor.row_bytes for feed in chosen), sum(tensor.row_bytes for tensor in outputs))
    return max(min(model.max_rows, _MESSAGE_BYTES // widest), 1)


def _compare(partial: Partial, wanted: Manifest) -> None:
    former = partial.manifest
    differing = [key for key in wanted if key not in _FREE and former.get(key) != wanted[key]]
    if not differing:
        return
    if {"input_bytes", "input_changed_ns"} & set(differing):
        same = former.get("input") == wanted["input"]
        what = f"{wanted['input']} has changed since" if same else f"--input was {former.get('input')}"
    else:
        what = f"{differing[0]} was {former.get(differing[0])}, is now {wanted[differing[0]]}"
    raise CommandFailed(f"--resume: this is not the run that left {partial.folder}: {what}; --restart begins anew")


def _run(client: ServerClient, plan: Plan, partial: Partial) -> int:
    flags = plan.flags
    total, estimated = plan.source.rows, plan.source.estimated
    with Progress(total, partial.rows, partial.failed, estimated=estimated, quiet=flags.quiet) as progress:
        try:
            if not partial.complete:
                _fill(client, plan, partial, progress)
        except InferenceError as error:
            why = failed(error, flags.address, live=client.is_live(deadline_ms=2000))
            raise CommandFailed(str(why), UNFINISHED) from None
    output.finish(flags.output, partial, plan.outputs, plan.schema)
    clear(partial.folder)
    if not flags.quiet:
        rate = f" ({progress.rate:,.0f} rows/s)" if progress.rate else ""
        print(f"wrote {partial.rows:,} rows to {flags.output}{rate}", file=sys.stderr)
    if not partial.failed:
        return 0
    listed = output.reasons_of(flags.output)
    print(f"tensorgate: {partial.failed:,} of {partial.rows:,} rows failed: {listed} says why", file=sys.stderr)
    return FAILED


def _fill(client: ServerClient, plan: Plan, partial: Partial, progress: Progress) -> None:
    predictor = Predictor(
        client, plan.model, plan.outputs, plan.schema, batch_size=plan.batch_size, window=plan.flags.window
    )
    segment: list[Any] = []
    failed = held = 0
    with closing(predictor.results(_blocks(plan, partial))) as results:
        for result in results:
            columns = result.columns()
            bad = columns.num_rows - columns.column(REASON).null_count
            progress.advance(columns.num_rows, bad)
            segment.append(columns)
            failed, held = failed + bad, held + columns.num_rows
            if held == partial.manifest["segment_rows"]:
                partial.add(segment, failed)
                segment, failed, held = [], 0, 0
    if segment:
        partial.add(segment, failed)


def _blocks(plan: Plan, partial: Partial) -> Iterator[Block]:
    names = dict.fromkeys([name for feed in plan.feeds for name in feed.columns] + list(plan.flags.keep))
    size = int(partial.manifest["block_rows"])
    for columns in blocks(plan.source, plan.flags.input, list(names), partial.rows, size):
        yield block(columns, plan.feeds, plan.flags.keep, batched=plan.model.batches)
