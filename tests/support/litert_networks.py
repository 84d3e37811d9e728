"""The same network twice: as a recipe of PyTorch, and as a .tflite file with signatures, with no converter between."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from backends.optimize.recipe import Recipe
from backends.optimize.variant import Artifact, Variant
from support.tflite import Code, Graph, Operator, schema, tflite_model
from support.tflite import Tensor as Spec


class Convolved(nn.Module):
    """Two convolutions and a linear layer: `pixels` [batch,8,8,4], channels last as for the runtime, to [batch,10]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32 * 64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.second(torch.relu(self.first(pixels.permute(0, 3, 1, 2)))))
        logits: Tensor = self.head(x.permute(0, 2, 3, 1).flatten(1))
        return logits

    def graph(self, rows: int) -> Graph:
        """The signature for so many rows."""
        relu = schema.ActivationFunctionType.RELU
        options = schema.Conv2DOptionsT(strideW=1, strideH=1, fusedActivationFunction=relu)
        return Graph(
            [Spec("pixels", (rows, 8, 8, 4))],
            [Spec("logits", (rows, 10))],
            [
                Operator(Code.CONV_2D, ["pixels", "first", "first_bias"], ["middle"], options),
                Operator(Code.CONV_2D, ["middle", "second", "second_bias"], ["flat"], options),
                Operator(
                    Code.FULLY_CONNECTED, ["flat", "head", "head_bias"], ["logits"], schema.FullyConnectedOptionsT()
                ),
            ],
            [
                Spec("middle", (rows, 8, 8, 32)),
                Spec("flat", (rows, 8, 8, 32)),
                *_constants("first", self.first),
                *_constants("second", self.second),
                *_constants("head", self.head),
            ],
            f"b{rows}",
        )


class Gated(nn.Module):
    """A large linear layer, what a mask leaves of it, and another: `x` [batch,64] to [batch,64]. No convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.mask = torch.where(torch.arange(256) % 4 == 0, -3e38, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The second layer, of the part of the first that is not masked."""
        y: Tensor = self.down(torch.relu(self.up(x) + self.mask))
        return y

    def graph(self, rows: int) -> Graph:
        """The signature for so many rows."""
        relu = schema.ActivationFunctionType.RELU
        linear = schema.FullyConnectedOptionsT()
        return Graph(
            [Spec("x", (rows, 64))],
            [Spec("y", (rows, 64))],
            [
                Operator(Code.FULLY_CONNECTED, ["x", "up", "up_bias"], ["wide"], linear),
                Operator(Code.ADD, ["wide", "mask"], ["kept"], schema.AddOptionsT(fusedActivationFunction=relu)),
                Operator(Code.FULLY_CONNECTED, ["kept", "down", "down_bias"], ["y"], linear),
            ],
            [
                Spec("wide", (rows, 256)),
                Spec("kept", (rows, 256)),
                Spec("mask", (256,), values=self.mask.numpy()),
                *_constants("up", self.up),
                *_constants("down", self.down),
            ],
            f"b{rows}",
        )


def recipe(module: nn.Module, *shape: int, name: str = "pixels", output: str = "logits", scale: float = 1) -> Recipe:
    """One for the module, with random rows; those for calibration may be of another scale."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, *shape, generator=generator)
    return Recipe("m", module.eval(), {name: rows[:6]}, (output,), lambda _: 1.0, {name: rows[6:] * scale})


def as_file(module: Convolved | Gated, folder: Path, sizes: tuple[int, ...] = (1, 4)) -> Variant:
    """The module's file in a new folder."""
    folder.mkdir()
    file = folder / "model.tflite"
    file.write_bytes(tflite_model(*(module.graph(rows) for rows in sizes)))
    return Variant(("litert",), artifact=Artifact(file, "litert", sizes))


def _constants(name: str, layer: nn.Conv2d | nn.Linear) -> list[Spec]:
    weight = layer.weight.detach()
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)  # the runtime's order
    bias = layer.bias.detach().numpy()
    return [
        Spec(name, tuple(weight.shape), values=weight.contiguous().numpy()),
        Spec(f"{name}_bias", bias.shape, values=bias),
    ]
