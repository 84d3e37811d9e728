"""Recipes for `tensorgate optimize`, and what its reports say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIGITS = """
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, pixels):
        return self.layer(pixels)


def model():
    pixels, digits = np.column_stack([images[:1200], np.ones(1200)]), np.eye(10)[labels[:1200]]
    found = torch.from_numpy(np.linalg.lstsq(pixels, digits, rcond=None)[0].T).float()
    network = Network()
    network.load_state_dict({"layer.weight": found[:, :64], "layer.bias": found[:, 64]})
    return network


sample = images[0:1]
outputs = ["logits"]


def evaluate(predict):
    return predict(images[1200:]).argmax(1) == labels[1200:]
"""
"""A linear classifier of digits, made by least squares: nothing is trained, which would take the tests' time."""

OWN_TECHNIQUES = """
import copy
import os
from dataclasses import replace

from backends.optimize.variant import Artifact, Variant


class Own:
    takes = "module"

    def __init__(self, name):
        self.name = name

    def obstacle(self, recipe):
        return ""


class Disturbed(Own):
    def apply(self, variant, recipe, folder):
        module = copy.deepcopy(variant.module)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in module.parameters():
                weight += 0.004 * torch.randn_like(weight)
        return replace(variant, steps=(*variant.steps, self.name), module=module, notes=("Noise was added.",))


class Crashing(Own):
    def apply(self, variant, recipe, folder):
        os.abort()


class Unloadable(Own):
    def apply(self, variant, recipe, folder):
        file = folder / "model.onnx"
        file.write_bytes(b"no model")
        return Variant((*variant.steps, self.name), artifact=Artifact(file, "onnxruntime"))


class Impossible(Crashing):
    def obstacle(self, recipe):
        return "needs what nobody has"


class Treacherous(Own):
    def apply(self, variant, recipe, folder):
        file = folder / "model.py"
        file.write_text(
            "import os, sys\\n"
            "import numpy as np\\n"
            "class Model:\\n"
            "    inputs = [('pixels', 'float32', (-1, 64))]\\n"
            "    outputs = [('logits', 'float32', (-1, 10))]\\n"
            "    def execute(self, inputs):\\n"
            "        if 'gateway.server' in sys.modules:\\n"
            "            os.abort()\\n"
            "        return {'logits': np.zeros((len(inputs['pixels']), 10), np.float32)}\\n"
        )
        return Variant((*variant.steps, self.name), artifact=Artifact(file, "python"))


techniques = [
    Disturbed("disturbed"),
    Crashing("crashing"),
    Unloadable("unloadable"),
    Impossible("impossible"),
    Treacherous("treacherous"),
]
"""
"""Steps that go wrong, each in its own way; to be written after a recipe."""

STUCK = """
import time
from pathlib import Path


class Stuck:
    name, takes = "stuck", "module"

    def obstacle(self, recipe):
        return ""

    def apply(self, variant, recipe, folder):
        Path({marker!r}).touch()
        time.sleep(600)


techniques = [Stuck()]
"""


def report_of(output: Path) -> dict[str, Any]:
    """The JSON report of a run."""
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def variants(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The report's rows by name."""
    return {row["name"]: row for row in report["variants"]}
