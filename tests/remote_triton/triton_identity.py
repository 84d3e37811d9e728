"""Triton's side of a model that gives back what it gets."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Each output is the input of the same position."""

    def execute(self, requests):
        """A response for each request."""
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(t.name().replace("input", "output"), t.as_numpy()) for t in request.inputs()]
            )
            for request in requests
        ]
