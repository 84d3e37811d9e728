"""What a recipe may say, and what its owner reads if it does not hold."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from backends.optimize import recipe_file

GOOD = """
import torch
from torch import nn

model = nn.Linear(4, 3)
sample = torch.ones(1, 4)


def evaluate(predict):
    return 1.0
"""

TWO = """
import numpy as np
from torch import nn


class Both(nn.Module):
    def forward(self, left, right):
        return left.sum(1), {returned}


model = Both
sample = {{"right": np.ones((3, 2), np.float32), "left": np.ones((3, 4), np.float32)}}


def evaluate(predict):
    return [1, 0]
"""

BAD = {
    "nonsense(": ":1: SyntaxError: '(' was never closed",
    "import torch\n\n1 / 0": ":3: ZeroDivisionError: division by zero",
    "raise SystemExit('stop')": ":1: SystemExit: stop",
    "": "defines no 'model': expected an nn.Module, or a function that returns one",
    "model = 5": "'model' is int, expected an nn.Module, or a function that returns one",
    "model = lambda: 5": "'model' returns int, expected an nn.Module",
    "def model():\n    return open('/nowhere')": ":2: FileNotFoundError: [Errno 2] No such file or directory",
    f"{GOOD}\nmodel = model.half()": "'model' has torch.float16 in 'weight': expected a network in float32",
    f"{GOOD}\nsample = None": "defines no 'sample': expected an array for each input of the model, rows first",
    f"{GOOD}\nsample = 'text'": "'sample' has str, expected an array of numbers or a tensor",
    f"{GOOD}\nsample = 5.0": "'sample' has a single number, expected rows",
    f"{GOOD}\nsample = torch.ones(1, 5)": "mat1 and mat2 shapes cannot be multiplied",
    f"{GOOD}\nsample = (sample, sample)": "'sample' has 2 inputs, the model takes 1: input",
    f"{GOOD}\nsample = {{'x': sample}}": "'sample' has 'x', the model takes input",
    f"{GOOD}\nsample = torch.ones(0, 4)": "'sample' has input [0, 4]: expected equally many rows, one or more",
    f"{GOOD}\nmodel = nn.Sequential(model, nn.Flatten(0))": "'model' gives output [6] for 2 rows: its first dimension",
    f"{GOOD}\nclass Random(nn.Module):\n    def forward(self, x):\n        return torch.rand_like(x)\nmodel = Random": (
        "'model' gives another output each time for the same sample"
    ),
    f"{GOOD}\nclass Texts(nn.Module):\n    def forward(self, x):\n        return 'text'\nmodel = Texts": (
        "'model' gives str as output, expected tensors"
    ),
    f"{GOOD}\nevaluate = 0.5": "'evaluate' is float, expected a function, evaluate(predict)",
    f"{GOOD}\noutputs = ['a', 'b']": "'outputs' names 2, the model has 1",
    f"{GOOD}\noutputs = 'a'": "'outputs' is str, expected names",
    f"{GOOD}\ntraining = sample": "'training' is torch.Tensor, expected (inputs, labels)",
    f"{GOOD}\ntraining = (sample, torch.ones(2))": "'training' has 1 rows of inputs and 2 labels",
    f"{GOOD}\ntraining = (sample, torch.ones(1))\nloss = 5": "'loss' is int, expected a function",
    f"{GOOD}\ntraining = (sample, torch.ones(1))\nepochs = 0.5": "'epochs' is 0.5, expected a whole number above 0",
    f"{GOOD}\nstudent = nn.Linear(4, 2)": "'student' gives {'output': [2, 2]}, expected what the model gives",
    f"{GOOD}\ntechniques = [5]": "'techniques' has int without 'name', expected techniques",
    f"{GOOD}\nlock = __import__('threading').Lock()\ndef evaluate(predict):\n    return lock": (
        "it cannot be sent to another process: TypeError: cannot pickle '_thread.lock' object"
    ),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_mistakes(here, tmp_path, text):
    """A mistake is told in one line that names the file and, where there is one, the line in it; nothing is written."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    said = here("optimize", recipe, "--output", tmp_path / "models").refusal
    assert said.startswith(f"tensorgate: {recipe}")
    assert BAD[text] in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("missing.py",), "missing.py: no such file"),
        (("recipe.py", "--only", "onnx,onxx"), "unknown technique 'onxx': expected some of "),
        (
            ("recipe.py", "--budget", "speed>3"),
            "--budget: 'speed>3' is not understood; conditions are such as accuracy>=",
        ),
    ],
)
def test_wrong_flags(here, tmp_path, monkeypatch, flags, expected):
    """A missing recipe, a technique that is none and a budget that is none are refused before anything is done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(GOOD)
    assert expected in here("optimize", *flags, "--output", "models").refusal


def test_missing_packages(here, tmp_path, monkeypatch):
    """Without the packages that the search itself needs, the command says how to install them."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "tqdm") else find(name))
    said = here("optimize", tmp_path / "recipe.py", "--output", tmp_path / "models").refusal
    assert said == "tensorgate: optimize needs torch, tqdm: pip install 'tensorgate[optimize]'\n"


def test_two_techniques_of_one_name(here, tmp_path):
    """A recipe's own technique cannot hide one of ours, or another of its own."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"{GOOD}\nclass Own:\n    name, takes = 'onnx', 'module'\n    obstacle = apply = None\ntechniques = [Own()]"
    )
    said = here("optimize", recipe, "--output", tmp_path / "models").refusal
    assert "two techniques are called 'onnx'" in said


def test_what_is_left_out(tmp_path):
    """The least recipe is complete: rows are repeated, outputs get names, the sample calibrates, nothing trains."""
    (tmp_path / "least.py").write_text(GOOD)
    recipe = recipe_file.load(tmp_path / "least.py")
    assert (recipe.name, recipe.outputs, recipe.training, recipe.student) == ("least", ("output",), None, None)
    assert {name: tuple(rows.shape) for name, rows in recipe.sample.items()} == {"input": (2, 4)}
    assert recipe.calibration.keys() == recipe.sample.keys()


@pytest.mark.parametrize(("returned", "outputs"), [("right.sum(1)", ("output_0", "output_1"))])
def test_several_inputs_and_outputs(tmp_path, returned, outputs):
    """Inputs by name come in the model's order, whatever theirs in the recipe; outputs of a tuple are numbered."""
    (tmp_path / "two.py").write_text(TWO.format(returned=returned))
    recipe = recipe_file.load(tmp_path / "two.py")
    assert (list(recipe.sample), recipe.outputs) == (["left", "right"], outputs)
    found = recipe.run(recipe.model, recipe.sample)
    assert [found[name].tolist() for name in outputs] == [[4, 4, 4], [2, 2, 2]]


def test_training(tmp_path):
    """Training data calibrate, too; settings are the recipe's, the loss is cross-entropy unless it brings one."""
    more = "training = (torch.arange(800.0).reshape(200, 4), torch.arange(200) % 3)\nepochs = 7\nlearning_rate = 0.5"
    (tmp_path / "trained.py").write_text(f"{GOOD}\n{more}")
    recipe = recipe_file.load(tmp_path / "trained.py")
    training = recipe.training
    assert training is not None
    assert (training.epochs, training.batch_size, training.learning_rate) == (7, 64, 0.5)
    assert torch.equal(recipe.calibration["input"], training.inputs[0][:128])
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    expected = nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert torch.equal(training.loss({"logits": logits}, torch.tensor([1])), expected)
