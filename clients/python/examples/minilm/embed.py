"""Embed sentences through the gateway and compare them: `python embed.py ADDRESS SENTENCE SENTENCE ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensorgate_client import InferenceClient


def embed(client: InferenceClient, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings of length 1, FP32 [sentences, 384]: the tokenizer's outputs are the encoder's inputs."""
    tokens = client.infer("minilm_tokenizer", {"text": np.array(sentences).reshape(-1, 1)})
    return client.infer("minilm", tokens)["sentence_embedding"]


def main(address: str, sentences: Sequence[str]) -> None:
    """Print how near each sentence is to the first, 1 being the same meaning."""
    with InferenceClient(address, deadline_ms=30_000) as client:
        embeddings = embed(client, sentences)
    for sentence, nearness in zip(sentences, embeddings @ embeddings[0], strict=True):
        print(f"{nearness:6.3f}  {sentence}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: embed.py ADDRESS SENTENCE SENTENCE ...")
    main(sys.argv[1], sys.argv[2:])
