"""Triton's side of `identity`."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Gives back what it gets."""

    def execute(self, requests):
        """A response for each of the requests that Triton's dynamic batcher put together."""
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(request, "x").as_numpy())]
            )
            for request in requests
        ]
