"""MLServer's side of `identity`: nothing of the tensor is decoded."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Identity(MLModel):
    """Gives back what it gets."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answer to one request."""
        (x,) = payload.inputs
        y = ResponseOutput(name="y", shape=x.shape, datatype=x.datatype, data=x.data)
        return InferenceResponse(model_name=self.name, outputs=[y])
