"""Classify images over gRPC and measure how well and how fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc

_IN_FLIGHT = 8
_PASSES = 6  # over the held-out images, so that a 99th percentile has some twenty requests beyond it


@dataclass(frozen=True, slots=True)
class Row:
    """How a model did: accuracy 0 to 1, images per second, latencies in milliseconds."""

    model: str
    backend: str
    accuracy: float
    images_per_s: float
    p50_ms: float
    p99_ms: float


async def all_models(
    address: str, models: Iterable[str], images: NDArray[np.float32], labels: NDArray[np.int64]
) -> list[Row]:
    """Classify every image on every model, one image a request, eight requests in flight."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        return [await _one_model(stub, model, images, labels) for model in models]


async def _one_model(stub: Any, model: str, images: NDArray[np.float32], labels: NDArray[np.int64]) -> Row:
    config = await stub.ModelConfig(pb.ModelConfigRequest(name=model))
    await _classify(stub, model, images)  # the first pass warms the model up
    started = time.perf_counter()
    passes = [await _classify(stub, model, images) for _ in range(_PASSES)]
    seconds = time.perf_counter() - started
    answers = np.concatenate([digits for digits, _ in passes])
    latencies = np.concatenate([latency for _, latency in passes]) * 1000
    return Row(
        model,
        config.config.backend,
        float((answers == np.tile(labels, _PASSES)).mean()),
        len(answers) / seconds,
        float(np.percentile(latencies, 50)),
        float(np.percentile(latencies, 99)),
    )


async def _classify(
    stub: Any, model: str, images: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The digit the model sees in each image, and how long each request took, in seconds."""
    digits = np.empty(len(images), np.int64)
    latencies = np.empty(len(images))
    pending = iter(range(len(images)))

    async def worker() -> None:
        for index in pending:
            started = time.perf_counter()
            request = encode_infer_request(model, {"pixels": images[index : index + 1]})
            response = await stub.ModelInfer(request, timeout=30)
            digits[index] = decode_infer_response(response)["logits"].argmax()
            latencies[index] = time.perf_counter() - started

    await asyncio.gather(*(worker() for _ in range(_IN_FLIGHT)))
    return digits, latencies


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'model':20} {'backend':12} {'accuracy':>8} {'images/s':>9} {'p50 ms':>7} {'p99 ms':>7}"]
    lines += [
        f"{r.model:20} {r.backend:12} {r.accuracy:8.3f} {r.images_per_s:9,.0f} {r.p50_ms:7.2f} {r.p99_ms:7.2f}"
        for r in rows
    ]
    lines.append(f"(one image a request, {_IN_FLIGHT} requests in flight, client and server on this machine)")
    return "\n".join(lines)
