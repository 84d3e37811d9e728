"""Networks converted by litert-torch itself, quantised and served: `make test` has scripts in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.calls import request
from support.models import RepositoryBuilder
from support.networks import Classifier
from support.networks import pixels as pictures
from support.server import serving
from torch import Tensor, nn

from backends.optimize.bare import opened
from backends.optimize.export_litert import LitertExport
from backends.optimize.litert_int8 import LitertInt8
from backends.optimize.recipe import Recipe
from backends.optimize.variant import TechniqueFailed, Variant
from tensorgate_client.tensors import from_raw

EXPORT = LitertExport(sizes=(1, 2, 8))


class Words(nn.Module):
    """A mean over words: `ids` and `mask`, INT64 [batch,6], to `mean` [batch,16] and `words`, INT64 [batch]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer = nn.Embedding(100, 32), nn.Linear(32, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, and how many words counted."""
        weights = mask[..., None].float()
        mean = (self.embedding(ids) * weights).sum(1) / weights.sum(1)
        return self.layer(mean), mask.sum(1)


class Sorted(nn.Module):
    """An eigenvalue of each matrix, which the converter has no operation for."""

    def forward(self, x: Tensor) -> Tensor:
        """The largest one."""
        return torch.linalg.eigvalsh(x)[:, -1]


def words() -> Recipe:
    """Of words, some of them masked."""
    ids = torch.randint(0, 100, (5, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([[6], [5], [4], [3], [1]])).long()
    sample = {"ids": ids, "mask": mask}
    return Recipe("words", Words().eval(), sample, ("mean", "words"), lambda _: 1.0, sample)


def pixels() -> Recipe:
    """Of pictures: convolutions, norms, softmax, products of activations."""
    network = Classifier().eval()
    return Recipe("pictures", network, {"pixels": pictures(6)}, ("logits",), lambda _: 1.0, {"pixels": pictures(24, 1)})


def size(variant: Variant) -> int:
    """Of its file, in bytes."""
    return variant.artifact.file.stat().st_size


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    """Both networks, converted."""
    return {
        of.name: EXPORT.apply(Variant(module=of.model), of, tmp_path_factory.mktemp(of.name))
        for of in (words(), pixels())
    }


def test_names_and_datatypes_are_the_networks_own(converted: dict[str, Variant]) -> None:
    """Clients of the original find its inputs and outputs under the same names, 64-bit ones included."""
    of = words()
    assert EXPORT.obstacle(of) == ""
    with opened(converted["words"].artifact, of) as call:
        for rows in EXPORT.sizes:
            inputs = {name: tensor[:1].expand(rows, -1) for name, tensor in of.sample.items()}
            right = of.run(of.model, inputs)
            got = call({name: tensor.numpy() for name, tensor in inputs.items()})
            assert sorted(got) == ["mean", "words"]
            np.testing.assert_allclose(got["mean"], right["mean"], atol=1e-5)
            np.testing.assert_array_equal(got["words"], right["words"], strict=True)


def test_weights_are_stored_once(converted: dict[str, Variant]) -> None:
    """A file with three sizes of batch is not much larger than the network."""
    weights = sum(parameter.numel() * 4 for parameter in words().model.parameters())
    assert weights < size(converted["words"]) < weights * 2


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_int8_of_converted_networks(static: bool, converted: dict[str, Variant], tmp_path: Path) -> None:  # noqa: FBT001
    """int8 of a converted network is smaller, agrees with it nearly, and gives every size of batch the same."""
    of = pixels()
    after = LitertInt8(static=static).apply(converted["pictures"], of, tmp_path)
    assert size(after) < size(converted["pictures"])
    rows = of.sample["pixels"][:2]
    with opened(after.artifact, of) as call:
        together = call({"pixels": rows.numpy()})["logits"]
        alone = np.concatenate([call({"pixels": row.numpy()})["logits"] for row in rows.split(1)])
    right = of.run(of.model, {"pixels": rows})["logits"]
    assert 0 < np.abs(together - right).max() < 0.1 * np.abs(right).max()
    np.testing.assert_allclose(together, alone, atol=0.01 * np.abs(right).max())


def test_converted_network_is_served(converted: dict[str, Variant], tmp_path: Path) -> None:
    """A converted file in a repository answers any number of rows as the network does; no config is needed."""
    repository, of = RepositoryBuilder(tmp_path / "models"), pixels()
    repository.add("pictures", {"model.tflite": converted["pictures"].artifact.file})
    with serving(repository.root) as gateway:
        for rows in (1, 3, 6):
            x = of.sample["pixels"][:rows]
            response = gateway.stub.ModelInfer(request("pictures", {"pixels": x.numpy()}))
            got = from_raw(response.raw_output_contents[0], "FP32", (rows, 10))
            np.testing.assert_allclose(got, of.run(of.model, {"pixels": x})["logits"], atol=1e-5)


def test_network_that_cannot_be_converted(tmp_path: Path) -> None:
    """A network with an operation that the converter lacks is a row with the converter's reason."""
    x = torch.eye(3).expand(4, 3, 3).contiguous()
    of = Recipe("sorted", Sorted().eval(), {"x": x}, ("largest",), lambda _: 1.0, {"x": x})
    with pytest.raises(TechniqueFailed, match=r"^litert-torch does not convert it: .*linalg"):
        EXPORT.apply(Variant(module=of.model), of, tmp_path)
