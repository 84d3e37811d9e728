"""Sessions of ONNX Runtime: their options, and the execution providers that compute in them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime as ort

from backends.base import LoadError, ModelSource, switch, whole_number

_log = logging.getLogger(__name__)

_ENTRIES = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
_PROVIDERS, INLINE = "execution_providers", "inline"
PARAMETERS = (
    _PROVIDERS,
    INLINE,
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "graph_optimization_level",
    "enable_mem_arena",
    "enable_mem_pattern",
)
_PREFIXES = ("session.", "ep.")
_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ON_GPU = ("cuda", "tensorrt", "nvtensorrtrtx")
_DEFAULTS = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}
"""The runtime's own, EXHAUSTIVE, tries every algorithm for every new shape: each size of batch would be one."""

_RESERVED = re.compile(rf"({'|'.join(_ON_GPU)})\.(device_id|.*user_compute_stream|.*cuda_graph.*)")
"""Options of providers that say what the instance group says, or expect the same memory in every call."""


@dataclass(frozen=True, slots=True)
class Providers:
    """The execution providers of a session, first choice first, in their short lower-case names.

    Attributes:
        names: "cuda", "cpu" and the like.
        device_id: number of the GPU.
        on_gpu: whether nothing less will do than that a GPU computes.
    """

    names: tuple[str, ...]
    device_id: int = 0
    on_gpu: bool = False

    @classmethod
    def of(cls, source: ModelSource) -> Providers:
        """Those that `execution_providers` and the device ask for.

        Raises:
            LoadError: this onnxruntime lacks one, none is left for the device, or an option is the gateway's own.
        """
        if taken := next(filter(_RESERVED.fullmatch, source.parameters), ""):
            why = "instance_group { gpus: [..] } says it" if taken.endswith("device_id") else "it would not be kept to"
            raise LoadError(f"parameter '{taken}': leave it out, {why}")
        kind, _, number = source.device.partition(":")
        listed = _listed(source)
        names = listed or (("cuda", "cpu") if kind == "cuda" else ("cpu",))
        if kind == "cpu":
            names = tuple(name for name in names if name not in _ON_GPU)
        if problem := _contradiction(names, kind, source) or _lacking(names, source):
            raise LoadError(problem)
        return cls(names, int(number or 0), on_gpu=kind == "cuda")

    def options(self, source: ModelSource, name: str) -> dict[str, str]:
        """What a provider is told: the parameters `cuda.*` and the like, and the GPU's number."""
        prefix = f"{name}."
        own = {key.removeprefix(prefix): text for key, text in source.parameters.items() if key.startswith(prefix)}
        default = _DEFAULTS.get(name, {})
        return {**default, **own, "device_id": str(self.device_id)} if name in _ON_GPU else own


def obstacle(source: ModelSource, kind: str) -> str:
    """Why this onnxruntime cannot load the source on a kind of device; "" if it can."""
    names = _listed(source) or (kind,)
    return _contradiction(names, kind, source) or (_lacking(names, source) if kind == "cuda" else "")


def opened(source: ModelSource, file: Path, profile: str = "") -> ort.InferenceSession:
    """A session over the file.

    Args:
        source: parameters and device.
        file: the model.
        profile: if given, the session writes what it does to a file of that prefix.

    Raises:
        LoadError: the file is not a model this runtime can execute, a parameter is wrong, or the GPU is not used.
    """
    providers = Providers.of(source)
    options = session_options(source)
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    available = _available()
    if any(name in _ON_GPU for name in providers.names):
        _find_cuda()
    chosen = [(available[name], providers.options(source, name)) for name in providers.names]
    try:
        # Without the fallback: it would go on, on the CPU, after a failure of the GPU.
        session = ort.InferenceSession(file, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # the runtime raises a class of its own per status, none of them exported
        raise LoadError(f"{file.name}: {' '.join(str(error).split())}") from error
    _check_used(session, providers, source)
    return session


def prefixes(source: ModelSource) -> tuple[str, ...]:
    """How parameters begin that are handed on: entries of a session's configuration, and options of its providers."""
    return (*_PREFIXES, *(f"{name}." for name in _listed(source) or ("cuda",) if name != "cpu"))


def session_options(source: ModelSource) -> ort.SessionOptions:
    """What the parameters say of a session, whatever computes in it.

    Raises:
        LoadError: a parameter is wrong.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: an error comes back as an exception and need not be printed as well
    options.intra_op_num_threads = whole_number(source, "intra_op_thread_count", 0)
    options.inter_op_num_threads = whole_number(source, "inter_op_thread_count", 0)
    options.enable_cpu_mem_arena = switch(source, "enable_mem_arena", default=True)
    options.enable_mem_pattern = switch(source, "enable_mem_pattern", default=True)
    if switch(source, "execution_mode", default=False):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    level = source.parameters.get("graph_optimization_level", "all").strip().lower()
    if level not in _LEVELS:
        raise LoadError(f"parameter 'graph_optimization_level': expected one of {', '.join(_LEVELS)}, got '{level}'")
    options.graph_optimization_level = _LEVELS[level]
    own = {key: value for key, value in source.parameters.items() if key.startswith(_PREFIXES)}
    for key, value in {**_ENTRIES, **own}.items():
        options.add_session_config_entry(key, value)
    return options


def _available() -> dict[str, str]:
    """The providers of this onnxruntime by their short names."""
    return {_short(name): name for name in ort.get_available_providers()}


def _short(name: str) -> str:
    return name.strip().removesuffix("ExecutionProvider").lower()


def _listed(source: ModelSource) -> tuple[str, ...]:
    """The providers that the parameter names; none without it."""
    text = source.parameters.get(_PROVIDERS)
    if text is None:
        return ()
    names = tuple(dict.fromkeys(_short(part) for part in text.split(",") if part.strip()))
    return names or (text,)


def _contradiction(names: Sequence[str], kind: str, source: ModelSource) -> str:
    """What is wrong if none of the providers computes on that kind of device."""
    on_gpu = [name in _ON_GPU for name in names]
    if (kind == "cuda" and not any(on_gpu)) or (kind == "cpu" and all(on_gpu)):
        of = "a GPU" if kind == "cuda" else "the CPU"
        return f"parameter '{_PROVIDERS}' is '{source.parameters.get(_PROVIDERS)}', which has none for {of}"
    return ""


def _lacking(names: Sequence[str], source: ModelSource) -> str:
    """What is wrong if this onnxruntime does not have all of the providers."""
    available = _available()
    missing = [name for name in names if name not in available]
    if not missing:
        return ""
    offered = ", ".join(name.removesuffix("ExecutionProvider") for name in available.values())
    text = source.parameters.get(_PROVIDERS)
    got = "none for a GPU" if text is None else f"got '{text}'"
    problem = f"parameter '{_PROVIDERS}': this onnxruntime offers {offered}; {got}"
    on_gpu = set(missing) & set(_ON_GPU)
    return f"{problem}: pip install onnxruntime-gpu in the place of onnxruntime" if on_gpu else problem


@cache
def _find_cuda() -> None:
    """Load CUDA's libraries from the packages that bring them: the linker would look in the system's folders alone."""
    ort.preload_dlls()


def _check_used(session: ort.InferenceSession, providers: Providers, source: ModelSource) -> None:
    """Refuse a session from which a GPU's provider is missing: it failed to start, which the runtime only logs."""
    used = {_short(name) for name in session.get_providers()}
    unused = [name for name in providers.names if name in _ON_GPU and name not in used]
    if not unused:
        return
    problem = (
        f"{', '.join(unused)} did not start on GPU {providers.device_id}, the log has the reason; it needs the "
        "versions of CUDA and cuDNN that onnxruntime-gpu was built for: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    if providers.on_gpu or "cpu" not in providers.names:
        raise LoadError(problem)
    _log.warning("model %s/%d: it runs on the CPU: %s", source.name, source.version, problem)
