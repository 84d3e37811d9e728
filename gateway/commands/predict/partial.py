"""What is done of a run, in a folder beside its output: OUTPUT.partial.

The results are kept in segments, one every few seconds or as soon as there is enough for one. Each is written to
another name first, so that a segment that is there is complete, however the run ended. With them lies the run's own
description, which `--resume` compares. Where segments end depends on the time; how the output is cut does not.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from gateway.commands.failure import CommandFailed
from gateway.commands.predict.source import Batch

_MANIFEST = "manifest.json"
_ASSEMBLED = "assembled"
_OURS = re.compile(rf"(\d{{6,}}\.arrow|{re.escape(_MANIFEST)}|{_ASSEMBLED}|errors\.csv)(\.writing)?")

_SECONDS = 3.0  # that a run loses at most
_BYTES = 8 << 20  # that are held in memory

Manifest = Mapping[str, Any]


class Partial:
    """The folder of a run.

    Attributes:
        manifest: what the run is, and how it cuts its rows.
        rows: that are done, those in memory among them.
        failed: how many of them failed.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows = 0
        self.failed = 0
        self._segments = 0
        self._held: list[Batch] = []
        self._held_failed = 0
        self._written = time.monotonic()

    def __repr__(self) -> str:
        return f"<Partial {self.folder} segments={self._segments} rows={self.rows} failed={self.failed}>"

    @classmethod
    def begin(cls, folder: Path, manifest: Manifest) -> Self:
        """A new run's folder."""
        clear(folder)
        _replace(folder / _MANIFEST, json.dumps(manifest, indent=2).encode())
        return cls(folder, manifest)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """What an interrupted run has left, if there is something; a segment that cannot be read ends it.

        Raises:
            CommandFailed: it cannot be read.
        """
        if not (folder / _MANIFEST).exists():
            return None
        try:
            found = cls(folder, json.loads((folder / _MANIFEST).read_bytes()))
            found._count()  # our own
        except (ValueError, KeyError, OSError) as error:
            raise CommandFailed(f"{folder}: {error}; --restart begins anew") from None
        return found

    def _count(self) -> None:
        while (segment := self._segment(self._segments)).exists():
            try:
                with pa.memory_map(str(segment)) as file, pa.ipc.open_file(file) as reader:
                    said = reader.schema.metadata
                    self.rows += int(said[b"rows"])
                    self.failed += int(said[b"failed"])
            except pa.ArrowException:  # a broken disk: its rows, and those behind them, are to be computed again
                for number in range(self._segments, self._segments + sum(1 for _ in self.folder.glob("*.arrow"))):
                    self._segment(number).unlink(missing_ok=True)
                return
            self._segments += 1

    @property
    def assembled(self) -> Path:
        """Where the output is put together."""
        return self.folder / _ASSEMBLED

    @property
    def overdue(self) -> bool:
        """Whether it is time to keep what is there, so that an interruption costs only seconds."""
        return time.monotonic() - self._written > _SECONDS

    def add(self, rows: Batch, failed: int) -> None:
        """Some rows more are done; they are kept together with others."""
        self._held.append(rows)
        self._held_failed += failed
        self.rows += rows.num_rows
        self.failed += failed
        enough = sum(batch.num_rows for batch in self._held) >= int(self.manifest["group_rows"])
        if enough or self.overdue or sum(batch.nbytes for batch in self._held) >= _BYTES:
            self.keep()

    def keep(self) -> None:
        """Write a segment of what is there."""
        if not self._held:
            return
        rows = sum(batch.num_rows for batch in self._held)
        schema = self._held[0].schema.with_metadata({"rows": str(rows), "failed": str(self._held_failed)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in self._held:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        _replace(self._segment(self._segments), sink.getvalue())
        self._segments += 1
        self._held, self._held_failed = [], 0
        self._written = time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """The results so far, a segment at a time."""
        for number in range(self._segments):
            with pa.OSFile(str(self._segment(number))) as file, pa.ipc.open_file(file) as reader:
                yield pa.concat_batches([reader.get_batch(index) for index in range(reader.num_record_batches)])

    def _segment(self, number: int) -> Path:
        return self.folder / f"{number:06}.arrow"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, there and ours alone; a killed run leaves no lock behind. If nothing is put there it goes again.

    Raises:
        CommandFailed: another run is at it.
    """
    handle = _lock(folder)
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
        os.close(handle)


def _lock(folder: Path) -> int:
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            raise CommandFailed(f"{folder}: another run is writing it") from None
        except FileNotFoundError:  # the run whose folder it was has ended meanwhile
            pass
        os.close(handle)


def clear(folder: Path) -> None:
    """Remove what runs have left, but not what others have put there."""
    (folder / _MANIFEST).unlink(missing_ok=True)  # the first: from now on there is nothing to go on with
    for file in list(folder.iterdir()):
        if _OURS.fullmatch(file.name):
            file.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is all of it or nothing, also after a power cut."""
    unfinished = path.with_name(f"{path.name}.writing")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
