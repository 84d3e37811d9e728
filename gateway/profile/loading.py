"""A model as the server would load it, and requests that fit it."""

from __future__ import annotations

from argparse import Namespace

from backends import base
from backends.base import LoadError
from backends.registry import Registry
from gateway import layout
from gateway.cache import ResponseCache
from gateway.commands.failure import CommandFailed
from gateway.commands.model import Model, Tensor
from gateway.commands.requests import Inputs, make_requests
from gateway.engine import Threads
from gateway.errors import InvalidRequest
from gateway.loader import Loader
from gateway.model import ServedModel
from gateway.request import InferenceRequest
from gateway.settings import InvalidSettings, Settings
from gateway.source import Source, open_source
from gateway.tensor_rules import TensorRule

_NAMED = 8  # models in a message
_DIFFERENT = 16  # requests: all of them are in memory at once


async def load(settings: Settings, name: str, version: str) -> ServedModel:
    """A version, ready to run: the one asked for, or else the latest that its version policy serves.

    Raises:
        CommandFailed: there is none, or it does not load.
    """
    try:
        folder = await _folder(open_source(settings), name)
    except InvalidSettings as error:
        raise CommandFailed(str(error)) from error
    number = _version(folder, version)
    loader = Loader(
        Threads(Registry()), settings.default_max_batch_size, ResponseCache(settings.cache_size_mb * 1024 * 1024)
    )
    try:
        return await loader.load(folder, number)
    except Exception as error:  # whatever a runtime or a `model.py` raises
        raise CommandFailed(f"model {name} version {number}: {_reason(error)}") from error


async def _folder(source: Source, name: str) -> layout.ModelFolder:
    try:
        layout.check_name(name)
        names = await source.names()
        if name not in names:
            raise CommandFailed(f"no model '{name}': {await source.hint() or _models(source, names)}")
        return await source.read(name, await source.fingerprint(name))
    except InvalidRequest as error:
        raise CommandFailed(str(error)) from error
    except (LoadError, OSError) as error:
        raise CommandFailed(f"model {name}: {error}") from error


def _models(source: Source, names: list[str]) -> str:
    rest = f", ... and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{source.place} has {', '.join(names[:_NAMED]) or 'none'}{rest}"


def _version(folder: layout.ModelFolder, version: str) -> int:
    """Any version that is there, also one that the policy does not serve: it may be the one to compare with."""
    if not version:
        return folder.versions[-1]
    there = sorted(int(path.name) for path in folder.path.iterdir() if path.is_dir() and path.name.isdecimal())
    if not version.isdecimal() or int(version) not in there:
        known = ", ".join(map(str, there))
        raise CommandFailed(f"model '{folder.name}' has no version '{version}': expected one of {known}")
    return int(version)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"


def profiler(served: ServedModel, flags: Namespace) -> base.Profiler:
    """The profiler that the model's backend offers.

    Raises:
        CommandFailed: there is none, or it has no trace to keep.
    """
    (model, *_) = served.runtime.models.values()
    found: base.Profiler | None = getattr(model, "profiler", None)  # optional in the contract
    if found is None:
        raise CommandFailed(
            f"model '{served.name}': backend '{served.config.backend}' has no profiler; "
            f"`tensorgate bench {served.name}` measures it from outside, on a server"
        )
    if flags.trace and not found.traces:
        raise CommandFailed(f"--trace: {found.name}, which profiles model '{served.name}', does not keep single calls")
    return found


def requests(served: ServedModel, flags: Namespace) -> list[InferenceRequest]:
    """Up to 16 requests that the model takes, to be executed in turn.

    Raises:
        CommandFailed: it takes none of so many rows, or the file does not fit.
    """
    batches = served.max_batch_size > 0
    if batches and flags.rows > served.max_batch_size:
        raise CommandFailed(
            f"--rows: model '{served.name}' takes up to {served.max_batch_size} rows (max_batch_size), got {flags.rows}"
        )
    inputs, outputs = (tuple(_tensor(rule) for rule in rules.values()) for rules in (served.inputs, served.outputs))
    model = Model(served.name, str(served.version), max(served.max_batch_size, 1), batches, inputs, outputs)
    return [_request(served, made, flags.rows) for made in make_requests(model, flags, min(_DIFFERENT, flags.runs))]


def _tensor(rule: TensorRule) -> Tensor:
    return Tensor(rule.name, rule.datatype, rule.shape, rule.shape[rule.batches :], rule.optional)


def _request(served: ServedModel, inputs: Inputs, rows: int) -> InferenceRequest:
    arrays = {name: served.inputs[name].to_runtime(array) for name, array in inputs.items()}
    for array in arrays.values():
        array.flags.writeable = False  # as what a message holds: a backend that needs to write copies it first
    return InferenceRequest("", arrays, rows, tuple(served.outputs))
