"""Embed sentences through the gateway and compare them: `python embed.py ADDRESS SENTENCE SENTENCE ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub


def embed(stub: GRPCInferenceServiceStub, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings of length 1, FP32 [sentences, 384]: the tokenizer's outputs are the encoder's inputs."""
    text = np.array(sentences, np.object_).reshape(-1, 1)
    tokens = _infer(stub, "minilm_tokenizer", {"text": text})
    return _infer(stub, "minilm", tokens)["sentence_embedding"]


def _infer(stub: GRPCInferenceServiceStub, model: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return decode_infer_response(stub.ModelInfer(encode_infer_request(model, inputs), timeout=30))


def main(address: str, sentences: Sequence[str]) -> None:
    """Print how near each sentence is to the first, 1 being the same meaning."""
    with grpc.insecure_channel(address) as channel:
        embeddings = embed(GRPCInferenceServiceStub(channel), sentences)
    for sentence, nearness in zip(sentences, embeddings @ embeddings[0], strict=True):
        print(f"{nearness:6.3f}  {sentence}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: embed.py ADDRESS SENTENCE SENTENCE ...")
    main(sys.argv[1], sys.argv[2:])
