"""What a client of the demo looks like: `python -m gateway.demo.classify [ADDRESS]`."""

from __future__ import annotations

import sys

import grpc
import numpy as np
from sklearn.datasets import load_digits

from tensorgate_client import decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2_grpc


def main(address: str) -> None:
    """Send twelve images in one request and print what the model sees in them."""
    images, labels = load_digits(return_X_y=True)
    pixels = images[:12].astype(np.float32).reshape(-1, 1, 8, 8)
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(encode_infer_request("digits_onnx", {"pixels": pixels}), timeout=5)
    logits = decode_infer_response(response)["logits"]
    print("drawn    ", *labels[:12])
    print("predicted", *logits.argmax(axis=1))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001")
