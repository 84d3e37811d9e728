"""Triton's side of the models: doubles its rows, refuses some, and waits where it is told to."""

from pathlib import Path
from time import sleep

import triton_python_backend_utils as pb_utils

POISON, UNFIT, ENDLESS = 666, 404, 1000


class TritonPythonModel:
    """Doubles `x`."""

    def initialize(self, args):
        """Remember where to note what was cancelled."""
        self.cancelled = Path(args["model_repository"]) / "cancelled"

    def execute(self, requests):
        """A response for each request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if (x == POISON).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("secret"))
        if (x == UNFIT).any():
            error = pb_utils.TritonError("x does not fit", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        while (x == ENDLESS).any():
            sleep(0.01)
            if request.is_cancelled():
                self.cancelled.touch()
                break
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)])
