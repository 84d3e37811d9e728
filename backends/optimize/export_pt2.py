"""`model.pt2`: a program of torch.export, which PyTorch runs operator by operator, or compiled by AOTInductor."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from backends.optimize.export import exported, module_of, program_of, quiet
from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant

_FOR_DEBUGGING = ("stack_trace", "from_node", "nn_module_stack")
"""What a program says of where its operators come from: paths of this machine, and most of a small file."""


@dataclass(frozen=True, slots=True)
class TorchExport:
    """A portable program; the file says all of its tensors."""

    name: ClassVar = "pt2"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002  # torch is there: the recipe is made with it
        """None."""
        return ""

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Export the module."""
        file = save_to(folder, program_of(module_of(variant), recipe))
        return exported(variant, self.name, Artifact(file, "torch"), recipe)


@dataclass(frozen=True, slots=True)
class AotInductor:
    """Native code for this kind of processor; config.pbtxt has to declare inputs and outputs, in the recipe's order."""

    name: ClassVar = "aotinductor"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:  # noqa: ARG002
        """A missing compiler."""
        return "" if any(map(shutil.which, ("g++", "clang++"))) else "it needs a C++ compiler: install g++"

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Export and compile the module."""
        file = compile_to(folder, program_of(module_of(variant), recipe))
        return exported(variant, self.name, Artifact(file, "torch"), recipe)


def save_to(folder: Path, program: torch.export.ExportedProgram) -> Path:
    """Write a program as `model.pt2`."""
    file = folder / "model.pt2"
    program.example_inputs = None  # they would go into the file, with all rows that share their memory
    for node in program.graph.nodes:
        for key in _FOR_DEBUGGING:
            node.meta.pop(key, None)
    torch.export.save(program, file)
    return file


def compile_to(folder: Path, program: torch.export.ExportedProgram) -> Path:
    """Compile a program into the package `model.pt2`."""
    file = folder / "model.pt2"
    with quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    return file
