"""Which models and versions there are at this moment, and which of them answers a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gateway.errors import InvalidRequest, ModelNotFound, ModelNotReady
from gateway.layout import Fingerprint
from gateway.model import ServedModel

UNLOADED = "unloaded"
"""The reason of a version that was taken out of service on purpose."""


class State(StrEnum):
    """What RepositoryIndex says of a version; Triton's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True)
class Version:
    """A version's state; `model` is what serves it, also while its successor loads or has failed to."""

    state: State = State.LOADING
    reason: str = ""
    model: ServedModel | None = None
    fingerprint: Fingerprint = ()

    def fail(self, reason: str) -> None:
        """Note why it did not load; what served before serves on."""
        self.state = State.READY if self.model else State.UNAVAILABLE
        self.reason = f"reload failed, the former one serves on: {reason}" if self.model else reason


@dataclass(slots=True)
class Entry:
    """A model's versions, the files they were last loaded from, and what is wrong with the model as a whole.

    Attributes:
        waits: whether that is something elsewhere which may mend itself.
    """

    versions: dict[int, Version] = field(default_factory=dict)
    fingerprint: Fingerprint = ()
    reason: str = ""
    waits: bool = False
    latest: ServedModel | None = None

    def replace(self, number: int, successor: Version | None) -> ServedModel | None:
        """Put `successor` in a version's place, or nothing; what served there before, to be closed."""
        former = self.versions.pop(number, Version())
        if successor is not None:
            self.versions[number] = successor
        ready = [number for number, version in self.versions.items() if version.model]
        self.latest = self.versions[max(ready)].model if ready else None
        return former.model


class IndexRow(NamedTuple):
    """A line of RepositoryIndex; only the name is set for a model that was never loaded."""

    name: str
    version: str
    state: str
    reason: str


class Catalogue:
    """The known models by name. Touched by the event loop alone, and never across an await."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __repr__(self) -> str:
        return f"<Catalogue models={len(self.entries)} ready={self._ready()}>"

    def _ready(self) -> int:
        return sum(entry.latest is not None for entry in self.entries.values())

    def summary(self) -> str:
        """How many models serve and which do not, in a line."""
        ready = self._ready()
        failed = [name for name, entry in sorted(self.entries.items()) if entry.reason]
        errors = f", {len(failed)} with errors: {', '.join(failed)}" if failed else ""
        return f"{ready} model{'s' * (ready != 1)} ready{errors}"

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model that answers for a name and version; the latest ready version if none is given.

        Raises:
            ModelNotFound: there is none, or it was unloaded.
            ModelNotReady: there is, but it is loading or failed to load.
            InvalidRequest: the name is empty or the version is no number.
        """
        entry = self.entries.get(name)
        if entry is None:
            if not name:
                raise InvalidRequest("model_name is empty: name the model to call")
            raise ModelNotFound(name, version)
        if not version:
            if entry.latest is None:
                raise _unavailable(name, "", entry, list(entry.versions.values()))
            return entry.latest
        if not (version.isdecimal() and version.isascii()):
            raise InvalidRequest(f"model '{name}': version '{version}' is not a number; leave it empty for the latest")
        known = entry.versions.get(int(version)) if len(version) < 19 else None
        if known is None:
            raise ModelNotFound(name, version)
        if known.model is None:
            raise _unavailable(name, version, entry, [known])
        return known.model

    def ready(self, name: str, version: str) -> list[ServedModel]:
        """The versions that answer requests: one, all of a model, or with an empty name all there are.

        Raises:
            GatewayError: as `find`.
        """
        if version or name:
            found = self.find(name, version)
            if version:
                return [found]
        names = [name] if name else sorted(self.entries)
        return [v.model for n in names for _, v in sorted(self.entries[n].versions.items()) if v.model]

    def ready_versions(self, name: str) -> list[str]:
        """The versions of a model that answer requests, ascending."""
        versions = self.entries[name].versions
        return [str(number) for number, version in sorted(versions.items()) if version.model]

    def index(self, folders: Iterable[str]) -> list[IndexRow]:
        """Every version of the known models, and of `folders` those that were never loaded, by name."""
        rows = []
        for name in sorted({*self.entries, *folders}):
            entry = self.entries.get(name)
            if entry is None:
                rows.append(IndexRow(name, "", "", ""))
            elif not entry.versions:
                rows.append(IndexRow(name, "", State.UNAVAILABLE if entry.reason else State.LOADING, entry.reason))
            else:
                versions = sorted(entry.versions.items())
                rows += [IndexRow(name, str(number), v.state, v.reason) for number, v in versions]
        return rows


def _unavailable(name: str, number: str, entry: Entry, versions: list[Version]) -> ModelNotFound | ModelNotReady:
    if versions and all(version.reason == UNLOADED for version in versions):
        return ModelNotFound(name, number)
    subject = f"model '{name}'" + (f" version {number}" if number else "")
    if any(version.state is State.LOADING for version in versions) or not (versions or entry.reason):
        return ModelNotReady(f"{subject} is loading: try again shortly")
    return ModelNotReady(f"{subject} failed to load: RepositoryIndex and the server's log have the reason")
