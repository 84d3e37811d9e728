"""Object storage that models lie in: what is there, and how a file is fetched. Through fsspec, whatever the URL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from gateway import layout
from gateway.layout import Fingerprint, Mark
from gateway.settings import InvalidSettings, redacted
from gateway.source import StorageFailed

_MOST_OBJECTS = 100_000
"""In a repository: whoever points at a whole data lake is told so before all of it has been listed."""

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "az"),
    **dict.fromkeys(("http", "https"), "http"),
}

# What tells one state of an object from another, the strongest first, as the file systems of fsspec spell it.
_IDENTITIES = ("md5Hash", "ETag", "etag", "blob_id", "CRC", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class Listing:
    """A model as the storage lists it.

    Attributes:
        fingerprint: a mark for each file: its path below the model's folder, a number for the state of its content, its
            size in bytes. Paths that end in "/" are of folders.
        md5: what the MD5 of a file is to be by what the storage says, in hexadecimal, by its path.
    """

    fingerprint: Fingerprint
    md5: Mapping[str, str] = field(default_factory=dict)


class Storage:
    """The objects below a URL. Used from several threads at once.

    Args:
        url: any that fsspec knows. By http and https, that of a zip archive of a repository: what web servers show of a
            folder is a page for people.

    Raises:
        InvalidSettings: a package is missing, or there is no such kind of URL.
    """

    def __init__(self, url: str) -> None:
        scheme = re.match(r"\w*", url).group()  # type: ignore[union-attr]  # it matches whatever comes
        self.name = redacted(url)
        self._url = f"zip::{url}" if scheme in ("http", "https") else url
        try:
            with _failures(self.name):
                self._files, self._top = self._open()
        except StorageFailed as error:
            hint = f": pip install 'tensorgate[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else ""
            if isinstance(error.__cause__, ImportError):
                raise InvalidSettings(f"--model-repository: a package for {scheme}:// is missing{hint}") from error
            if isinstance(error.__cause__, ValueError):
                hint = ": expected a .zip, on a server that answers range requests" if "::" in self._url else ""
                raise InvalidSettings(f"--model-repository: {error}{hint}") from error
            self._files = None  # an archive that cannot be reached now

    def __repr__(self) -> str:
        return f"<Storage {self.name}>"

    def _open(self) -> tuple[Any, str]:
        files, top = fsspec.core.url_to_fs(self._url, use_listings_cache=False, skip_instance_cache=True)
        return files, top.rstrip("/")

    def look(self, model: str = "") -> dict[str, Listing]:
        """Every model's files, by its name; with a name, only that one's.

        Raises:
            StorageFailed: the storage cannot be listed, or more lies there than models.
        """
        with _failures(self.name):
            if self._files is None or "::" in self._url:  # an archive's own table of contents is read when it is opened
                self._files, self._top = self._open()
            folder = f"{self._top}/{model}".strip("/") if model else self._top
            # s3fs alone can stop early; the others' listings are counted when they are there.
            limit = {"max_items": _MOST_OBJECTS + 1} if "s3" in self._files.protocol else {}
            found = self._files.find(folder, detail=True, **limit)
        if len(found) > _MOST_OBJECTS:
            raise StorageFailed(f"{self.name}: more than {_MOST_OBJECTS:,} objects: name the folder that models lie in")
        return _models((key.removeprefix(self._top).removeprefix("/"), info) for key, info in found.items())

    def download(self, path: str, target: Path, advanced: Callable[[int], None]) -> None:
        """Fetch a file.

        Args:
            path: below the URL.
            target: the file to write.
            advanced: told how many bytes are there, time and again.

        Raises:
            StorageFailed: it cannot be fetched.
        """
        progress = Callback(hooks={"": lambda _size, value, **_: advanced(value)})
        with _failures(f"{self.name}: {path}"):
            self._files.get_file(f"{self._top}/{path}".lstrip("/"), str(target), callback=progress)


@contextmanager
def _failures(subject: str) -> Iterator[None]:
    """Whatever a file system raises, as StorageFailed in a line."""
    try:
        yield
    except Exception as error:
        # fsspec calls all that fails by http a file that is not there, and says of it its URL alone.
        said: BaseException = error
        while isinstance(said, FileNotFoundError) and "://" in str(said) and said.__cause__:
            said = said.__cause__
        text = redacted(str(said).strip().partition("\n")[0]) or type(said).__name__
        hint = next((hint for kind, hint in _HINTS.items() if kind in type(error).__name__), "")
        raise StorageFailed(f"{subject}: {text[:300]}{hint}") from error


_HINTS = {
    "NoCredentials": ": set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "PermissionError": ": what is needed is the right to list the folder and to read what lies in it",
}


def _models(found: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Listing]:
    """The listing of each model, of all that lies in a repository: paths below it, and what is known of each object."""
    marks: dict[str, list[Mark]] = {}
    md5: dict[str, dict[str, str]] = {}
    for key, info in found:
        model, slash, path = key.partition("/")
        if not slash or not layout.is_model_name(model):
            continue
        known = marks.setdefault(model, [])
        if not path or any(part.startswith(".") and part not in (".", "..") for part in path.split("/")):
            continue  # a marker of the folder; hidden files
        if fault := _fault(path):
            known.append(layout.problem(f"{model}/{path[:200]!r}: {fault}"))
            continue
        known.append((path, _number(_identity(info)), 0 if path.endswith("/") else int(info.get("size") or 0)))
        if sum_ := _md5(info):
            md5.setdefault(model, {})[path] = sum_
    return {
        model: Listing(tuple(sorted((*listed, *_clashes(model, listed)))), md5.get(model, {}))
        for model, listed in marks.items()
    }


def _fault(path: str) -> str:
    """Why a key cannot be a file's path, or ""."""
    parts = path.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "a key with an empty part, '.' or '..' cannot be a file's path"
    if not path.isprintable() or "\\" in path:
        return "a key with a backslash or control character cannot be a file's path"
    if any(len(part.encode()) > layout.LONGEST_NAME for part in parts):
        return f"a part of the key is longer than {layout.LONGEST_NAME} bytes, which no file's name may be"
    return ""


def _clashes(model: str, marks: Iterable[Mark]) -> list[Mark]:
    """What is both a file and a folder with something in it: no disk has that."""
    paths = {path for path, _, _ in marks}
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    return [layout.problem(f"{model}/{path}: it is both a file and a folder") for path in sorted(paths & folders)]


def _identity(info: Mapping[str, Any]) -> str:
    return next((str(info[key]).strip('"') for key in _IDENTITIES if info.get(key)), "")


def _number(identity: str) -> int:
    """62 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 2


def _md5(info: Mapping[str, Any]) -> str:
    """The MD5 that the storage knows of an object, or "". An ETag of S3 is one as a rule: not where KMS encrypts."""
    settings = info.get("content_settings") or {}
    encoded = info.get("md5Hash") or settings.get("content_md5")
    try:
        if encoded:
            return bytes(encoded if isinstance(encoded, bytearray) else base64.b64decode(encoded)).hex()
    except (binascii.Error, TypeError):
        return ""
    tag = str(info.get("ETag") or "").strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else ""
