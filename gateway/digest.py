"""A fingerprint of what a request asks, which nobody outside can foresee."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tensorgate_client.framing import InferRequest
from tensorgate_client.tensors import Raw
from tensorgate_client.wire import inference_pb2 as pb

# GMAC (NIST SP 800-38D) as a keyed universal hash: two messages meet by chance with some 2**-100, and nobody can look
# for a pair that does, since neither the key nor any hash ever leaves the process. One nonce will do for that reason.
_KEY, _NONCE = os.urandom(16), bytes(12)
_SHORT = AESGCM(_KEY)
_LONG = Cipher(algorithms.AES(_KEY), modes.GCM(_NONCE))


def digest(message: InferRequest) -> bytes:
    """128 bits over everything in a message but the fields that are about the request itself.

    Two messages have the same digest if they spell the same tensors, and the outputs they want, in the same way.
    """
    content = pb.ModelInferRequest()
    content.CopyFrom(message.proto)
    content.ClearField("model_name")
    content.ClearField("model_version")
    content.ClearField("id")
    content.ClearField("parameters")
    spelled = content.SerializeToString(deterministic=True)
    if content.raw_input_contents or not message.raw:
        return _SHORT.encrypt(_NONCE, b"", spelled)
    return _of_parts(spelled, message.raw)


def _of_parts(spelled: bytes, raw: Sequence[Raw]) -> bytes:
    """The digest of large tensors, which are not copied together; their lengths say where each begins."""
    lengths = ",".join(str(len(contents)) for contents in (spelled, *raw))
    authenticator = _LONG.encryptor()
    for part in (b"\0" + lengths.encode(), spelled, *raw):  # no protobuf message begins with a zero
        authenticator.authenticate_additional_data(part)
    authenticator.finalize()
    return authenticator.tag
