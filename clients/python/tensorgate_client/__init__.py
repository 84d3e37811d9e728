"""What a Python program needs to speak the Open Inference Protocol v2: wire stubs and numpy tensors."""

from tensorgate_client.tensors import TensorError, decode_infer_response, encode_infer_request

__all__ = ["TensorError", "decode_infer_response", "encode_infer_request"]
