"""A fingerprint of what a request asks, which nobody outside can foresee."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

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
_SHORT_BYTES = 4096  # which cost less to copy together than to be hashed one by one


class Question(NamedTuple):
    """What a message asks of a model.

    Attributes:
        spelled: everything but the fields that are about the request itself and the raw contents, and their lengths.
        raw: the raw contents.
    """

    spelled: bytes
    raw: Sequence[Raw]


def question(message: InferRequest) -> Question:
    """What a message asks, as its sender has spelled it."""
    content = pb.ModelInferRequest()
    content.CopyFrom(message.proto)
    for name in ("model_name", "model_version", "id", "parameters", "raw_input_contents"):
        content.ClearField(name)
    tensors = content.SerializeToString(deterministic=True)
    lengths = ",".join(str(len(contents)) for contents in (tensors, *message.raw))
    return Question(b"%b;%b" % (lengths.encode(), tensors), message.raw)


def digest(asked: Question) -> bytes:
    """128 bits, the same for messages that spell the same tensors, and the outputs they want, in the same way."""
    if sum(map(len, asked.raw)) <= _SHORT_BYTES:
        return _SHORT.encrypt(_NONCE, b"", b"".join((asked.spelled, *asked.raw)))
    authenticator = _LONG.encryptor()
    for part in (asked.spelled, *asked.raw):
        authenticator.authenticate_additional_data(part)
    authenticator.finalize()
    return authenticator.tag
