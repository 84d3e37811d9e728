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

from gateway.commands.connection import ServerClient, connected
from gateway.commands.failure import FAILED, UNFINISHED, CommandFailed
from gateway.commands.predict import output
from gateway.commands.predict.columns import Feed, described, feeds
from gateway.commands.model import Model, Tensor, read_model
from gateway.commands.predict.partial import Manifest, Partial
from gateway.commands.predict.progress import Progress
from gateway.commands.predict.results import REASON, result_schema
from gateway.commands.predict.rows import Block, block
from gateway.commands.predict.source import Schema, Source, blocks, open_source
from gateway.commands.predict.stream import Predictor

_BLOCK_ROWS = 4096
_BLOCK_BYTES = 4 << 20
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
        input_row = sum(feed.tensor.row_bytes for feed in self.feeds)
        block_rows = self.batch_size * max(min(_BLOCK_ROWS, _BLOCK_BYTES // input_row) // self.batch_size, 1)
        output_row = sum(tensor.row_bytes for tensor in self.outputs)
        segment_rows = block_rows * max(min(_SEGMENT_ROWS, _SEGMENT_BYTES // output_row) // block_rows, 1)
        stat = self.flags.input.stat()
        return {
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


_FREE = ("batch_size", "block_rows", "segment_rows")


def run(flags: Namespace) -> int:
    """Predict all rows; the exit code.

    Raises:
        CommandFailed: it cannot be done, or not to the end.
    """
    folder = flags.output.with_name(f"{flags.output.name}.partial")
    source = open_source(flags.input)
    former = _former(flags, folder)
    try:
        with connected(flags) as client:
            plan = _plan(client, flags, source, former)
            partial = _partial(plan, folder, former)
            with partial.locked():
                return _run(client, plan, partial)
    except (CommandFailed, KeyboardInterrupt) as error:
        done = Partial.find(folder)
        interrupted = isinstance(error, KeyboardInterrupt)
        if done is None or not (interrupted or (isinstance(error, CommandFailed) and error.code == UNFINISHED)):
            raise
        why = "interrupted" if interrupted else str(error)
        hint = f"{done.rows:,} rows are kept in {folder}; the same command with --resume goes on from there"
        raise CommandFailed(f"{why}\n{hint}", 130 if interrupted else UNFINISHED) from None


def _former(flags: Namespace, folder: Path) -> Partial | None:
    """What an interrupted run has left, where the flags say what to do with it."""
    former = Partial.find(folder) if not flags.restart else None
    if former and not flags.resume:
        raise CommandFailed(
            f"an interrupted run has left {former.rows:,} rows in {folder}: --resume goes on, --restart begins anew"
        )
    if flags.output.exists() and not flags.force:
        raise CommandFailed(f"--output: {flags.output} exists; --force replaces it")
    return former


def _plan(client: ServerClient, flags: Namespace, source: Source, former: Partial | None) -> Plan:
    version = flags.version or (str(former.manifest["version"]) if former else "")
    model = read_model(client, flags.model, version)
    chosen = feeds(model, source, flags.map, flags.keep)
    outputs = model.select(flags.select)
    output.check(flags.output, outputs, flags.keep)
    kept = pa.schema([source.schema.field(name) for name in flags.keep])
    schema = result_schema(outputs, kept, binary=flags.binary)
    batch_size = flags.batch_size or (int(former.manifest["batch_size"]) if former else model.max_rows)
    if batch_size > model.max_rows and model.max_rows > 1:
        raise CommandFailed(f"--batch-size: model '{model.name}' takes up to {model.max_rows} rows, got {batch_size}")
    if batch_size > 1 and not model.batches:
        raise CommandFailed(f"--batch-size: model '{model.name}' does not batch: it takes one row a request")
    return Plan(flags, model, source, chosen, outputs, schema, batch_size)


def _partial(plan: Plan, folder: Path, former: Partial | None) -> Partial:
    wanted = plan.manifest()
    if former:
        _compare(former.manifest, wanted, folder)
        return former
    if folder.exists():
        Partial(folder, {}).remove()
    return Partial.begin(folder, wanted)


def _compare(former: Manifest, wanted: Manifest, folder: Path) -> None:
    differing = [key for key in wanted if key not in _FREE and former.get(key) != wanted[key]]
    if not differing:
        return
    if {"input_bytes", "input_changed_ns"} & set(differing):
        what = f"{wanted['input']} has changed since"
    else:
        what = "; ".join(f"{key} was {former.get(key)}, is now {wanted[key]}" for key in differing)
    raise CommandFailed(f"--resume: this is not the run that left {folder}: {what}; --restart begins anew")


def _run(client: ServerClient, plan: Plan, partial: Partial) -> int:
    flags = plan.flags
    total, estimated = plan.source.rows, plan.source.estimated
    with Progress(total, partial.rows, partial.failed, estimated=estimated, quiet=flags.quiet) as progress:
        if not partial.complete:
            _fill(client, plan, partial, progress)
    output.finish(flags.output, partial, plan.outputs, plan.schema)
    partial.remove()
    if not flags.quiet:
        print(f"wrote {partial.rows:,} rows to {flags.output} ({progress.rate:,.0f} rows/s)", file=sys.stderr)
    if partial.failed:
        listed = output.reasons_of(flags.output)
        raise CommandFailed(f"{partial.failed:,} of {partial.rows:,} rows failed: {listed} says why", FAILED)
    return 0


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
