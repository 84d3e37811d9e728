"""Where a repository's models come from: a folder, or object storage by way of a mirror on this machine's disk."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from backends.base import LoadError
from gateway import layout
from gateway.layout import Fingerprint, ModelFolder
from gateway.settings import InvalidSettings, Settings, is_url


class StorageFailed(LoadError, OSError):
    """A storage does not give what was asked for; it may do so later."""


class Source(Protocol):
    """Gives models as folders below `root`. Nothing here blocks the event loop.

    Where the models' home cannot be looked through, methods raise OSError.
    """

    root: Path
    place: str
    """Where the models are, for people."""

    async def names(self) -> list[str]:
        """The models there are, sorted."""

    async def has(self, name: str) -> bool:
        """Whether there is a model of that name, as far as can be told."""

    async def fingerprint(self, name: str) -> Fingerprint:
        """A model's newest state."""

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """The newest state of every model, by name."""

    async def read(self, name: str, mark: Fingerprint, config_override: str = "") -> ModelFolder:
        """A model's folder in that state, with the files of every version that is to be served.

        Args:
            name: one of `names`.
            mark: its `fingerprint`.
            config_override: a configuration in JSON, used instead of config.pbtxt.

        Raises:
            LoadError: there is no such model to be served, or its files cannot be had.
        """

    async def hint(self) -> str:
        """A sentence for the user who seems to have pointed at something else than a repository, else ""."""


class Folder:
    """A repository in a folder; see `layout`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    async def names(self) -> list[str]:
        """See `Source`."""
        return await asyncio.to_thread(layout.model_names, self.root)

    async def has(self, name: str) -> bool:
        """See `Source`."""
        return layout.has(self.root, name)

    async def fingerprint(self, name: str) -> Fingerprint:
        """See `Source`."""
        return await asyncio.to_thread(layout.fingerprint, self.root, name)

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """See `Source`."""
        return await asyncio.to_thread(layout.fingerprints, self.root)

    async def read(self, name: str, mark: Fingerprint, config_override: str = "") -> ModelFolder:
        """See `Source`."""
        return await asyncio.to_thread(layout.read, self.root, name, mark, config_override)

    async def hint(self) -> str:
        """See `Source`."""
        return layout.hint_if_model(self.root)


def open_source(settings: Settings) -> Source:
    """Where the settings say that the models are.

    Raises:
        InvalidSettings: a package for such a URL is missing, or the mirror's folder cannot be written.
    """
    if not is_url(settings.model_repository):
        return Folder(Path(settings.model_repository))
    if find_spec("fsspec") is None:
        raise InvalidSettings(
            "--model-repository: object storage is not installed: pip install 'tensorgate[s3]', or [gs], [az], [http]"
        )
    from gateway.mirror import Mirror  # noqa: PLC0415  # an extra, which takes a second to import
    from gateway.storage import Storage  # noqa: PLC0415

    return Mirror(Storage(settings.model_repository), settings.model_cache)
