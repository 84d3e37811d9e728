"""int8 by torchao, served by the `torch` backend: dynamic, and static with calibration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import fx, nn

from backends.optimize.calibration import calibration_batches, calibration_missing
from backends.optimize.check import checked
from backends.optimize.export import difference, module_of, program_of, quiet
from backends.optimize.export_pt2 import AotInductor, compile_to, save_to
from backends.optimize.packages import missing
from backends.optimize.recipe import Recipe
from backends.optimize.training import copy_of
from backends.optimize.variant import Artifact, TechniqueFailed, Variant


@dataclass(frozen=True, slots=True)
class TorchDynamicInt8:
    """int8 weights of linear layers, a scale for each channel; activations are quantised as they come, row by row.

    Attributes:
        compiled: by AOTInductor, for which config.pbtxt has to declare inputs and outputs; else a program.
    """

    compiled: bool = False
    takes: ClassVar = "module"

    @property
    def name(self) -> str:
        """By the kind of file."""
        return f"torch-int8{'-aotinductor' if self.compiled else ''}"

    def obstacle(self, recipe: Recipe) -> str:
        """A missing package or compiler."""
        return missing("torchao") or (AotInductor().obstacle(recipe) if self.compiled else "")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Quantise a copy of the module and export it.

        Raises:
            TechniqueFailed: there are no linear layers, or what came out does not serve.
        """
        with quiet():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # noqa: PLC0415  # heavy
            from torchao.utils import unwrap_tensor_subclass  # noqa: PLC0415

        module = module_of(variant)
        if not any(isinstance(layer, nn.Linear) for layer in module.modules()):
            raise TechniqueFailed("the network has no linear layers, the only ones that torchao's dynamic int8 is for")
        quantised = copy_of(module).eval()
        quantize_(quantised, Int8DynamicActivationInt8WeightConfig())
        unwrap_tensor_subclass(quantised)
        # Into PyTorch's own operators: a server has no torchao to bring others.
        with quiet():
            program = program_of(quantised, recipe).run_decompositions()
        file = (compile_to if self.compiled else save_to)(folder, program)
        return _finished(variant, self.name, Artifact(file, "torch"), recipe)


@dataclass(frozen=True, slots=True)
class TorchStaticInt8:
    """int8 weights and activations of convolutions and linear layers, whose ranges the calibration data shows.

    The file has a quarter of the size. PyTorch executes it operator by operator, weights and activations turned back to
    fp32 for each, so it is slower than the original; compiled by AOTInductor it is no faster
    (https://github.com/pytorch/ao/issues/4566), which is why there is no such choice.
    """

    name: ClassVar = "torch-int8-static"
    takes: ClassVar = "module"

    def obstacle(self, recipe: Recipe) -> str:
        """A missing package, or no calibration data."""
        return calibration_missing(recipe) or missing("torchao")

    def apply(self, variant: Variant, recipe: Recipe, folder: Path) -> Variant:
        """Calibrate, quantise and export.

        Raises:
            TechniqueFailed: nothing was quantised, or what came out does not serve.
        """
        quantised = _calibrated(program_of(module_of(variant), recipe).module(), recipe)
        _drop_replaced_weights(quantised)
        share = _share_in_int8(quantised)
        if not share:
            raise TechniqueFailed(
                "torchao found nothing to quantise: it knows nn.Conv2d and nn.Linear, not classes made of them"
            )
        file = save_to(folder, program_of(quantised, recipe))
        made = _finished(variant, self.name, Artifact(file, "torch"), recipe)
        return replace(made, notes=(*made.notes, f"{self.name}: {share:.0%} of the weights are int8."))


def _calibrated(graph: nn.Module, recipe: Recipe) -> fx.GraphModule:
    """The network with its operators between int8 and back."""
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415  # heavy
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # noqa: PLC0415

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        try:
            prepared = prepare_pt2e(graph, quantizer)
        except (IndexError, ValueError) as error:  # as of some transformers
            raise TechniqueFailed(f"torchao's quantiser cannot place this network's operators: {error}") from error
        for batch in calibration_batches(recipe):
            prepared(*batch.values())
        quantised: fx.GraphModule = convert_pt2e(prepared)
    return quantised


def _finished(variant: Variant, step: str, artifact: Artifact, recipe: Recipe) -> Variant:
    """The variant as a file that serves, and how far that is from its module."""
    module = module_of(variant)
    note = difference(step, checked(artifact, lambda inputs: recipe.run(module, inputs), recipe))
    return replace(variant, steps=(*variant.steps, step), module=None, artifact=artifact, notes=(*variant.notes, note))


def _drop_replaced_weights(graph: fx.GraphModule) -> None:
    """Those that int8 ones stand for now: they would be exported as well."""
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in graph.named_parameters() if name not in used]:
        owner, _, last = name.rpartition(".")
        delattr(graph.get_submodule(owner), last)


def _share_in_int8(graph: fx.GraphModule) -> float:
    sizes = Counter({torch.int8: 0})
    for tensor in graph.state_dict().values():
        sizes[tensor.dtype] += tensor.numel()
    return sizes[torch.int8] / max(sizes.total(), 1)
