"""Real small networks with their recipes, and artifacts served by the backends that the gateway uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.optimize.bare import declared
from backends.optimize.recipe import Recipe, Training
from backends.optimize.training import fine_tune
from backends.optimize.variant import Artifact, Technique, Variant
from gateway.demo import digits
from support.loading import Loader, execute


class Network(nn.Module):
    """What image classifiers are made of: norms, a depthwise convolution, an addition, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16))
        self.reduce = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.hidden, self.head = nn.Linear(512, 64), nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images [n,1,8,8] to logits [n,10]."""
        x = self.stem(pixels / 16)
        x = x + self.project(self.depthwise(self.expand(x)))
        return {"logits": self.head(self.hidden(self.reduce(x).flatten(1)).relu())}


class Sentences(nn.Module):
    """Attention over embeddings: two inputs of whole numbers, two outputs; its layers have names that outputs have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(200, 32)
        self.queries, self.keys, self.values = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.grow, self.shrink = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask [n,t] to one vector for each row and one for each token."""
        x = self.embedding(tokens)
        q, k, v = (layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.queries, self.keys, self.values))
        hidden = (1 - mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + hidden, -1) @ v).transpose(1, 2).flatten(2)
        each = x + self.shrink(nn.functional.gelu(self.grow(x + mixed)))
        return each.mean(1), each


def digits_recipe() -> Recipe:
    """Handwritten digits: a trained network, accuracy about 0.97."""
    data = digits.load()
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    training = Training((images,), labels, _cross_entropy, epochs=2, batch_size=64, learning_rate=3e-3)
    torch.manual_seed(0)
    network = Network()
    fine_tune(network, training, rounds=3)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return Recipe(
        "digits",
        network,
        {"pixels": images[:4]},
        ("logits",),
        lambda predict: predict(data.images).argmax(1) == data.labels,
        {"pixels": images[:64]},
        training,
        student,
    )


def sentences_recipe() -> Recipe:
    """A network of random weights with inputs and outputs of other names than its arguments."""
    tokens = torch.randint(200, (20, 6), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "attention_mask": (tokens % 5 > 0).long()}
    sample = {name: tensor[:3] for name, tensor in inputs.items()}
    return Recipe("sentences", Sentences().eval(), sample, ("embedding", "linear"), lambda _: 1.0, inputs)


def apply(technique: Technique, recipe: Recipe, folder: Path, variant: Variant | None = None) -> Variant:
    """A technique's variant, of the recipe's model or of another variant, in a folder of its own."""
    own = folder / str(len(list(folder.iterdir())))
    own.mkdir()
    return technique.apply(variant or Variant(module=recipe.model), recipe, own)


def served(artifact: Artifact, recipe: Recipe, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What the artifact's backend gives, loaded with the recipe's tensors declared."""
    with ExitStack() as closing:
        loader = Loader(artifact.file.parent, closing)
        model = loader.reload(
            artifact.file, artifact.parameters, declared=declared(recipe), backend=artifact.backend, close=True
        )
        return execute(model, **{name: tensor.numpy() for name, tensor in inputs.items()})


def accuracy(recipe: Recipe, predict: Callable[[Tensor], Mapping[str, Any]]) -> float:
    """Share of the held-out digits that are right."""
    return float(np.mean(recipe.evaluate(lambda images: predict(torch.from_numpy(images))["logits"])))


def accuracy_of(recipe: Recipe, variant: Variant) -> float:
    """The accuracy of a variant, as a module or through its backend."""
    if variant.module is not None:
        module = variant.module
        return accuracy(recipe, lambda images: recipe.run(module, {"pixels": images}))
    artifact = variant.artifact
    assert artifact is not None
    return accuracy(recipe, lambda images: served(artifact, recipe, {"pixels": images}))


def _cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    return nn.functional.cross_entropy(logits, labels)
