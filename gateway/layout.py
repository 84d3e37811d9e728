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

Mark = tuple[str, int, int]
Fingerprint = tuple[Mark, ...]

_PROBLEM = -1
LONGEST_NAME = 255  # bytes; file systems take no more


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
            if version_number(top := mark[0].partition(os.sep)[0]) is None or top == str(version)
        )


def model_names(root: Path) -> list[str]:
    """The repository's model folders, sorted; hidden ones, and names that no request may carry, are not models.

    A link to nowhere counts: it was meant to be a model, and listing it says why it is none.
    """
    return sorted(entry.name for entry in os.scandir(root) if is_model_name(entry.name) and has(root, entry.name))


def has(root: Path, name: str) -> bool:
    """Whether the repository has a model folder of that name, or a link in its place that leads nowhere."""
    path = root / name
    return os.path.isdir(path) or (path.is_symlink() and not os.path.exists(path))  # noqa: PTH110, PTH112  # no raising


def hint_if_model(root: Path) -> str:
    """A sentence for the user who pointed at a model instead of at the folder around it, else ""."""
    with os.scandir(root) as entries:
        versions = [entry.name for entry in entries if version_number(entry.name) and _is_folder(entry)]
    if versions or (root / CONFIG).is_file():
        return f"{root} looks like one model; a repository is the folder around it: {root.parent}"
    return ""


def check_name(name: str) -> None:
    """Refuse a model name that could be anything but a folder of the repository.

    Raises:
        InvalidRequest: it has a path separator or control character, or is hidden, empty or longer than file names are.
    """
    if not is_model_name(name):
        raise InvalidRequest(f"model name {name[:100]!r}: expected the name of a folder in the model repository")


def is_model_name(name: str) -> bool:
    """Whether a model's folder may have that name."""
    plain = name.isprintable() and not name.startswith(".") and "/" not in name and "\\" not in name
    return plain and 0 < len(name.encode()) <= LONGEST_NAME


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
    refuse_problems(mark)
    path = root / name
    declared = declaration(name, path / CONFIG, config_override)
    available = sorted(filter(None, (version_number(entry.name) for entry in os.scandir(path) if _is_folder(entry))))
    if not available:
        raise LoadError(f"no version folder: expected a number with the model in it, as {name}/1/model.onnx")
    shared = (*mark, (f"override {config_override}", 0, 0)) if config_override else mark
    return ModelFolder(name, path, declared, tuple(choose(declared, available)), shared)


def declaration(name: str, config: Path, config_override: str = "") -> Declared:
    """What a model's config.pbtxt, which need not be there, says of it, or the configuration in JSON in its place.

    Raises:
        LoadError: it does not hold.
    """
    declared = parse_json(config_override) if config_override else _read_config(config)
    check(declared, name)
    return declared


def problem(text: str) -> Mark:
    """What stands in a fingerprint for something that cannot be served."""
    return (text, _PROBLEM, 0)


def refuse_problems(mark: Fingerprint) -> None:
    """Raise LoadError if something of the model cannot be served."""
    for text, changed, _ in mark:
        if changed == _PROBLEM:
            raise LoadError(text)


def fingerprints(root: Path) -> dict[str, Fingerprint]:
    """The fingerprint of every model folder, by name."""
    return {name: fingerprint(root, name) for name in model_names(root)}


def fingerprint(root: Path, name: str) -> Fingerprint:
    """Names, times of change (ns) and sizes (bytes) of all files of a model, links followed.

    What cannot be served, as a link leading out of the repository, stands in it as a sentence at the time `_PROBLEM`.
    """
    path = root / name
    real_root = root.resolve()
    marks: list[Mark] = []
    pending: list[tuple[Path, tuple[Path, ...]]] = [(path, ())]
    while pending:
        folder, around = pending.pop()
        if fault := _bad_link(folder, real_root):
            marks.append(problem(fault))
            continue
        real = folder.resolve()
        if real in around:  # a link to a folder that it lies in
            continue
        try:
            for entry in os.scandir(folder):
                if _is_folder(entry) and entry.name != "__pycache__":  # loading a model.py writes that: no change
                    pending.append((Path(entry.path), (*around, real)))
                    marks.append((os.path.relpath(entry.path, path), 0, 0))
                elif not _is_folder(entry):
                    marks += _file_marks(entry, path, real_root)
        except OSError as error:
            marks.append(problem(f"{os.path.relpath(folder, root)}: {error.strerror}"))
    return tuple(sorted(marks))


def _file_marks(entry: os.DirEntry[str], path: Path, real_root: Path) -> list[Mark]:
    fault = _bad_link(Path(entry.path), real_root) if entry.is_symlink() else ""
    if entry.name.startswith(".") and fault != _leads_out(entry.name):
        return []  # an editor's swap file, or its lock: a link that leads nowhere
    if fault:
        return [problem(fault)]
    try:
        stat = entry.stat()
    except FileNotFoundError:  # gone since: not a change worth a failure
        return []
    return [(os.path.relpath(entry.path, path), stat.st_mtime_ns, stat.st_size)]


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
    filename = config.default_model_filename
    if named := config.backend or config.platform:
        info = registry.info(named)
    else:  # a file of another name shows its backend by its suffix alone
        info = registry.for_files({f"model{Path(filename).suffix}"} if filename else filenames)
    expected = (filename,) if filename else (*info.filenames, *info.takes)
    file = next((name for name in expected if name in filenames), None)
    if expected and file is None:
        found = ", ".join(sorted(filenames)) or "an empty folder"
        raise LoadError(f"expected {' or '.join(expected)}, found {found}")
    declared = folder.declared
    return info, ModelSource(
        folder.name,
        version,
        directory,
        directory / file if file else None,
        declared.backend_parameters,
        declared.signature,
        preferred_batch_sizes=declared.preferred_batch_sizes,
    )


def _read_config(path: Path) -> Declared:
    try:
        return parse_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return parse_text("")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{CONFIG}: {error}") from error


def choose(declared: Declared, available: list[int]) -> Iterable[int]:
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


def version_number(name: str) -> int | None:
    """The version a folder name stands for: a positive number without leading zeros."""
    return int(name) if name.isdecimal() and name.isascii() and name[0] != "0" and len(name) < 19 else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _bad_link(path: Path, real_root: Path) -> str:
    """What is wrong with where a path really leads, or ""."""
    try:
        inside = path.resolve(strict=True).is_relative_to(real_root)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return f"{path.name}: the link leads nowhere"
    return "" if inside else _leads_out(path.name)


def _leads_out(name: str) -> str:
    return f"{name}: the link leads out of the model repository"
