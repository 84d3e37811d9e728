"""The repository's folders: which models and versions there are, and that nothing leads out of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backends.base import LoadError, ModelSource
from backends.registry import BackendInfo, Registry
from gateway.errors import InvalidRequest
from gateway.model_config import Declared, check, parse_json, parse_text

CONFIG = "config.pbtxt"

Fingerprint = tuple[tuple[str, int, int], ...]

_BAD_LINK = -1


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model as it lies in the repository.

    Attributes:
        name, path: the folder.
        declared: its configuration; an empty one without a config.pbtxt.
        versions: the version folders that its version policy serves, ascending.
        fingerprint: changes whenever a file in the folder does.
    """

    name: str
    path: Path
    declared: Declared
    versions: tuple[int, ...]
    fingerprint: Fingerprint

    def version_fingerprint(self, version: int) -> Fingerprint:
        """The part of the fingerprint that concerns one version: its own files and those that all share."""
        return tuple(
            mark
            for mark in self.fingerprint
            if _version(top := mark[0].partition(os.sep)[0]) is None or top == str(version)
        )


def model_names(root: Path) -> list[str]:
    """The repository's model folders, sorted; hidden ones are not models."""
    return sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith(".") and entry.is_dir())


def hint_if_model(root: Path) -> str:
    """A sentence for the user who pointed at a model instead of at the folder around it, else ""."""
    if (root / CONFIG).is_file() or any(_version(entry.name) for entry in os.scandir(root) if entry.is_dir()):
        return f"{root} looks like one model; a repository is the folder around it: {root.parent}"
    return ""


def check_name(name: str) -> None:
    """Refuse a model name that could be anything but a folder of the repository.

    Raises:
        InvalidRequest: it has a path separator or control character, or is hidden or empty.
    """
    if not name or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise InvalidRequest(f"model name {name!r}: expected the name of a folder in the model repository")


def read(root: Path, name: str, mark: Fingerprint, config_override: str = "") -> ModelFolder:
    """A model's folder.

    Args:
        root: the repository.
        name: one of `model_names(root)`.
        mark: its fingerprint.
        config_override: a configuration in JSON, used instead of config.pbtxt.

    Raises:
        LoadError: the configuration does not hold, no version is there, or a link leads out of the repository.
    """
    for text, changed, _ in mark:
        if changed == _BAD_LINK:
            raise LoadError(text)
    path = root / name
    declared = parse_json(config_override) if config_override else _read_config(path / CONFIG)
    check(declared.proto, name)
    available = sorted(filter(None, (_version(entry.name) for entry in os.scandir(path) if entry.is_dir())))
    if not available:
        raise LoadError(f"no version folder: expected a number with the model in it, as {name}/1/model.onnx")
    return ModelFolder(
        name, path, declared, tuple(_choose(declared, available)), (*mark, (f"override {config_override}", 0, 0))
    )


def fingerprints(root: Path) -> dict[str, Fingerprint]:
    """The fingerprint of every model folder, by name."""
    return {name: fingerprint(root, name) for name in model_names(root)}


def fingerprint(root: Path, name: str) -> Fingerprint:
    """Names, times of change (ns) and sizes (bytes) of all files of a model, links followed.

    A link that leads out of the repository, or nowhere, stands in it as a sentence at the time `_BAD_LINK`.
    """
    path = root / name
    real_root = root.resolve()
    marks: list[tuple[str, int, int]] = []
    seen: set[Path] = set()
    pending = [path]
    while pending:
        folder = pending.pop()
        if (problem := _bad_link(folder, real_root)) or folder.resolve() in seen:
            marks += [(problem, _BAD_LINK, 0)] if problem else []
            continue
        seen.add(folder.resolve())
        for entry in os.scandir(folder):
            if entry.name == "__pycache__":  # written by loading a model.py, which must not look like a change
                continue
            if entry.is_symlink() and (problem := _bad_link(Path(entry.path), real_root)):
                marks.append((problem, _BAD_LINK, 0))
            elif entry.is_dir():
                pending.append(Path(entry.path))
            else:
                stat = entry.stat()
                marks.append((os.path.relpath(entry.path, path), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(marks))


def source(folder: ModelFolder, version: int, registry: Registry) -> tuple[BackendInfo, ModelSource]:
    """The backend that loads a version, and what it is given.

    Raises:
        LoadError: the version or its model file is missing, or no backend fits.
    """
    directory = folder.path / str(version)
    if not directory.is_dir():
        raise LoadError(f"version_policy asks for version {version}, but there is no folder {folder.name}/{version}")
    config = folder.declared.proto
    filenames = {entry.name for entry in os.scandir(directory) if not entry.name.startswith(".")}
    named = config.backend or config.platform
    info = registry.info(named) if named else registry.for_files(filenames)
    expected = (config.default_model_filename,) if config.default_model_filename else info.filenames
    file = next((name for name in expected if name in filenames), None)
    if expected and file is None:
        found = ", ".join(sorted(filenames)) or "an empty folder"
        raise LoadError(f"version {version}: expected {' or '.join(expected)}, found {found}")
    declared = folder.declared
    path = directory / file if file else None
    return info, ModelSource(folder.name, version, directory, path, declared.parameters, declared.signature)


def _read_config(path: Path) -> Declared:
    try:
        return parse_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return parse_text("")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{CONFIG}: {error}") from error


def _choose(declared: Declared, available: list[int]) -> Iterable[int]:
    """The versions that the version policy serves; the latest one by default."""
    policy = declared.proto.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return available
        case "specific":
            return sorted(set(policy.specific.versions))
        case "latest":
            return available[-max(policy.latest.num_versions, 1) :]
        case _:
            return available[-1:]


def _version(name: str) -> int | None:
    """The version a folder name stands for: a positive number without leading zeros."""
    return int(name) if name.isdecimal() and name.isascii() and name[0] != "0" and len(name) < 19 else None


def _bad_link(path: Path, real_root: Path) -> str:
    """What is wrong with where a path really leads, or ""."""
    try:
        inside = path.resolve(strict=True).is_relative_to(real_root)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return f"{path.name}: the link leads nowhere"
    return "" if inside else f"{path.name}: the link leads out of the model repository"
