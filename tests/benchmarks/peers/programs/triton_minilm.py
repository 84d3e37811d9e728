"""Triton's side of `minilm`: the package has no ONNX Runtime backend, so its Python backend calls the runtime."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

_INPUTS = ("input_ids", "attention_mask")
_OUTPUT = "sentence_embedding"


class TritonPythonModel:
    """One execution of the runtime for all the requests of a batch."""

    def initialize(self, args):
        """Load the model with the options that the gateway uses: threads wait instead of spinning."""
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """A response for each of the requests that Triton's dynamic batcher put together."""
        parts = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in _INPUTS
        ]
        feed = {name: np.concatenate(rows) for name, rows in zip(_INPUTS, parts, strict=True)}
        (embeddings,) = self._session.run([_OUTPUT], feed)
        ends = np.cumsum([len(rows) for rows in parts[0]])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(_OUTPUT, rows)]) for rows in np.split(embeddings, ends)]
