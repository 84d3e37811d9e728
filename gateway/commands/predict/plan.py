"""What a run is to do, all checked before it does anything."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gateway.commands.failure import CommandFailed
from gateway.commands.model import Model, Tensor, read_model
from gateway.commands.predict import output
from gateway.commands.predict.columns import Feed, described, feeds, plain
from gateway.commands.predict.partial import Manifest, Partial
from gateway.commands.predict.results import result_schema
from gateway.commands.predict.source import Schema, Source
from gateway.commands.predict.stream import MESSAGE_BYTES
from tensorgate_client import InferenceClient

_FORMAT = 2
_BLOCK_ROWS = 4096
_BLOCK_BYTES = 4 << 20
_GROUP_ROWS = 16384
_GROUP_BYTES = 8 << 20

_FREE = ("input", "block_rows", "group_rows")
"""What may differ in a run that goes on; a file that was moved is still the same."""

_WORDS = {
    "format": "the version of tensorgate",
    "model": "MODEL",
    "version": "--version",
    "served": "the model's configuration",
    "columns": "--map",
    "keep": "--keep",
    "results": "the columns of the output",
    "batch_size": "--batch-size",
}
"""A manifest's keys as its user knows them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        outputs: that are wanted of the model.
        schema: of the result file.
        batch_size: most rows of a request.
    """

    flags: Namespace
    model: Model
    source: Source
    feeds: Sequence[Feed]
    outputs: Sequence[Tensor]
    schema: Schema
    batch_size: int

    @property
    def columns(self) -> list[str]:
        """Of the file, that are read."""
        return list(dict.fromkeys([name for feed in self.feeds for name in feed.columns] + list(self.flags.keep)))

    def manifest(self) -> Manifest:
        """What has to be the same for a run to go on; and how it cuts its rows, which it then keeps to."""
        stat = self.flags.input.stat()
        return {
            "format": _FORMAT,
            "input": str(self.flags.input.resolve()),
            "input_bytes": stat.st_size,
            "input_changed_ns": stat.st_mtime_ns,
            "model": self.model.name,
            "version": self.model.version,
            "served": self.model.digest,
            "columns": described(self.feeds),
            "keep": list(self.flags.keep),
            "results": [f"{field.name}: {field.type}" for field in self.schema],
            "batch_size": self.batch_size,
            **self._cuts(),
        }

    def _cuts(self) -> Mapping[str, int]:
        """Rows that are read and converted at once, and rows that are written at once: so many that both stay small."""
        kept = self.source.row_bytes(self.flags.keep) if self.flags.keep else 0
        input_row = kept + _input_bytes(self.feeds, self.source)
        output_row = kept + _output_bytes(self.outputs, input_row)
        most = min(_GROUP_ROWS, _GROUP_BYTES // output_row)
        block = _multiple(self.batch_size, min(most, _BLOCK_ROWS, _BLOCK_BYTES // input_row))
        return {"block_rows": block, "group_rows": _multiple(block, most)}


def make_plan(client: InferenceClient, flags: Namespace, source: Source, former: Partial | None) -> Plan:
    """What the flags ask for, of this file and of the model as it is served; `former` is the run to go on with.

    Raises:
        CommandFailed: it cannot be done, or not after `former`.
        InferenceError: there is no such model, or no server.
    """
    model = read_model(client, flags.model, flags.version or (str(former.manifest["version"]) if former else ""))
    chosen = feeds(model, source, flags.map, flags.keep)
    outputs = model.select(flags.select)
    kept = pa.schema([(name, plain(source.schema.field(name).type)) for name in flags.keep])
    schema = result_schema(outputs, kept, binary=flags.binary)
    output.check(flags.output, outputs, schema)
    size = flags.batch_size or (int(former.manifest["batch_size"]) if former else _rows(model, chosen, outputs, source))
    if size > model.max_rows and model.max_rows > 1:
        raise CommandFailed(f"--batch-size: model '{model.name}' takes up to {model.max_rows} rows, got {size}")
    if size > 1 and not model.batches:
        raise CommandFailed(f"--batch-size: model '{model.name}' does not batch: it takes one row a request")
    plan = Plan(flags, model, source, chosen, outputs, schema, size)
    if former:
        _compare(former, plan.manifest())
    return plan


def _multiple(unit: int, most: int) -> int:
    return unit * max(most // unit, 1)


def _rows(model: Model, chosen: Sequence[Feed], outputs: Sequence[Tensor], source: Source) -> int:
    """The most rows a request may have, as far as messages stay well below what servers take."""
    row = _input_bytes(chosen, source)
    return max(min(model.max_rows, MESSAGE_BYTES // max(row, _output_bytes(outputs, row))), 1)


def _input_bytes(chosen: Sequence[Feed], source: Source) -> int:
    return max(sum(feed.row_bytes(source) for feed in chosen), 1)


def _output_bytes(outputs: Sequence[Tensor], input_row: int) -> int:
    """An output of any size may well be as large as the input."""
    return max(sum(t.row_bytes if t.width is not None else max(t.row_bytes, input_row) for t in outputs), 1)


def _compare(partial: Partial, wanted: Manifest) -> None:
    former = partial.manifest
    differing = [key for key in wanted if key not in _FREE and former.get(key) != wanted[key]]
    if not differing:
        return
    if {"input_bytes", "input_changed_ns"} & set(differing):
        same = former.get("input") == wanted["input"]
        what = f"{wanted['input']} has changed since" if same else f"--input was {former.get('input')}"
    elif differing[0] == "served":
        what = f"version {wanted['version']} of model '{wanted['model']}' is configured differently now"
    else:
        key = differing[0]
        what = f"{_WORDS.get(key, key)} was {_worded(former.get(key))}, is now {_worded(wanted[key])}"
    raise CommandFailed(f"--resume: this is not the run that left {partial.folder}: {what}; --restart begins anew")


def _worded(value: Any) -> str:
    match value:
        case Mapping():
            return " ".join(f"{name}={','.join(columns)}" for name, columns in value.items())
        case list():
            return ", ".join(value) or "nothing"
    return str(value)
