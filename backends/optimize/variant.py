"""What a technique is, and what it takes and gives: the one interface of every technique in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from backends.optimize.recipe import Recipe


class TechniqueFailed(Exception):
    """A technique cannot do this variant; the message is its row's reason in the report, in words for the user."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file that a backend serves.

    Attributes:
        file: where it lies, under the name that its backend recognises: model.onnx, model.pt2, model.tflite, ...
        backend: the backend's name, as config.pbtxt spells it.
        batch_sizes: the only sizes of batch that the file can execute, ascending; empty where any goes.
        max_batch_size: rows that the file executes at most; 0 where any number goes.
        parameters: of config.pbtxt.
    """

    file: Path
    backend: str
    batch_sizes: tuple[int, ...] = ()
    max_batch_size: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """The recipe's model after some techniques.

    Attributes:
        steps: names of the techniques it went through, in order; empty for the original.
        module: the network, in evaluation mode, for techniques that work on modules; None once it is only a file.
        artifact: the file; None while it is only a module.
        notes: what a reader of the report should know of how it came about, a sentence each.
    """

    steps: tuple[str, ...] = ()
    module: nn.Module | None = None
    artifact: Artifact | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its steps joined, also the model's name in the repository: "prune-50_onnx_int8"; "original" without steps."""
        return "_".join(self.steps) or "original"


class Technique(Protocol):
    """One way to make a variant of a variant. Stateless: settings are attributes given when it is made."""

    @property
    def name(self) -> str:
        """As it stands in a variant's name; letters, digits and hyphens."""
        ...

    @property
    def takes(self) -> str:
        """What it works on: "module", or a file's suffix, as ".onnx"."""
        ...

    def obstacle(self, recipe: Recipe) -> str:
        """Why it cannot be used here at all: a package to install, training data to add; "" if it can."""
        ...

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """A new variant with this step added; files go into `folder`, which is empty and its own.

        The variant given, its module and its file included, stays as it was.

        Raises:
            TechniqueFailed: with the reason; any other exception is reported by its type and text.
        """
        ...
