"""Which techniques there are, and which of their combinations are worth trying."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any, cast

from backends.optimize.recipe import Recipe
from backends.optimize.variant import Technique

Steps = tuple[str, ...]
"""Names of techniques, in the order of their use."""

_NETWORK = ""
"""Stands for a network that is still to become a file: the original, or what a change has made of it."""


class UnknownTechnique(Exception):
    """There is no technique of that name; the message lists those that there are."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """A technique and its place in the search.

    Attributes:
        target: "module:class" in this folder.
        follows: names of the techniques that it can follow; none for what changes the network, at the start.
        settings: what it is made with.
    """

    target: str
    follows: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> Technique:
        """The technique itself."""
        return cast("Technique", EntryPoint("", f"backends.optimize.{self.target}", "").load()(**self.settings))


_LISTED = (
    _Listed("export_pt2:TorchExport", (_NETWORK,)),
    _Listed("export_pt2:AotInductor", (_NETWORK,)),
    _Listed("export_torchscript:TorchScript", (_NETWORK,)),
    _Listed("torch_int8:TorchDynamicInt8", (_NETWORK,)),
    _Listed("torch_int8:TorchDynamicInt8", (_NETWORK,), {"compiled": True}),
    _Listed("torch_int8:TorchStaticInt8", (_NETWORK,)),
    _Listed("export_onnx:OnnxExport", (_NETWORK,)),
    _Listed("onnx_fp16:Fp16", ("onnx",)),
    _Listed("onnx_int8:DynamicInt8", ("onnx",), {"per_channel": False}),
    _Listed("onnx_int8:DynamicInt8", ("onnx",)),
    _Listed("onnx_int8:StaticInt8", ("onnx",)),
    _Listed("onnx_int8:StaticInt8", ("onnx",), {"symmetric": True}),
    _Listed("export_tensorrt:TensorRtEngine", ("onnx", "fp16", "int8-static-symmetric")),
    _Listed("export_litert:LitertExport", (_NETWORK,)),
    _Listed("litert_int8:LitertInt8", ("litert",)),
    _Listed("litert_int8:LitertInt8", ("litert",), {"static": True}),
    _Listed("prune:PruneWeights", settings={"sparsity": 0.5}),
    _Listed("prune:PruneWeights", settings={"sparsity": 0.8}),
    _Listed("prune_channels:PruneChannels", settings={"ratio": 0.3}),
    _Listed("prune_channels:PruneChannels", settings={"ratio": 0.5}),
    _Listed("distil:Distil"),
    _Listed("depthwise:Separate"),
)

_EXPORT_TO = {".pt2": "pt2", ".onnx": "onnx", ".tflite": "litert"}


def known(recipe: Recipe) -> dict[str, Technique]:
    """All techniques by name, the recipe's own included, in the order of the search."""
    return {technique.name: technique for technique, _ in _placed(recipe)}


def changes(recipe: Recipe) -> frozenset[str]:
    """Names of the techniques that change the network, each tried with every way to a file."""
    return frozenset(technique.name for technique, after in _placed(recipe) if not after)


def plan(recipe: Recipe, only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[Steps, ...]:
    """The combinations to try, each after what it begins with: no change or one, with every way to a file.

    Args:
        recipe: whose model it is.
        only: names of techniques; no others are used. All are if it is empty.
        skip: names of techniques that are not used.

    Raises:
        UnknownTechnique: a name is none.
    """
    placed = list(_placed(recipe))
    follows = {technique.name: after for technique, after in placed}
    names = [technique.name for technique, _ in placed]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UnknownTechnique(f"two techniques are called '{twice}'")
    for name in (*only, *skip):
        if name not in follows:
            raise UnknownTechnique(f"unknown technique '{name}': expected some of {', '.join(follows)}")
    used = {name: after for name, after in follows.items() if (not only or name in only) and name not in skip}
    changes: list[Steps] = [(), *((name,) for name, after in used.items() if not after)]
    tried = [*changes[1:], *((*change, *path) for change in changes for path in _paths(used, _NETWORK))]
    order = list(used)
    return tuple(sorted(tried, key=lambda steps: [order.index(step) for step in steps]))


def _placed(recipe: Recipe) -> Iterable[tuple[Technique, tuple[str, ...]]]:
    """Techniques with what they can follow: those to a file first, so that the original's files are tried first."""
    own = [(t, () if t.takes == "module" else (_EXPORT_TO.get(t.takes, t.takes),)) for t in recipe.techniques]
    placed = [*((listed.made(), listed.follows) for listed in _LISTED), *own]
    return sorted(placed, key=lambda pair: not pair[1])


def _paths(follows: Mapping[str, tuple[str, ...]], last: str) -> Iterable[Steps]:
    """All sequences of techniques after one."""
    for name, after in follows.items():
        if last in after:
            yield (name,)
            yield from ((name, *rest) for rest in _paths(follows, name))
