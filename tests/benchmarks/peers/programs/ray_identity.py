"""Ray Serve's side of `identity`, behind its gRPC proxy: `python ray_identity.py PORT`."""

import signal
import sys

import ray
from ray import serve
from ray.serve.config import gRPCOptions

from tensorgate_client.wire import inference_pb2 as pb

_SERVICE = "tensorgate_client.wire.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(max_ongoing_requests=1000)
class Identity:
    """Gives back what it gets."""

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802  # the RPC's name
        """The answer to one request; nothing of the tensor is decoded."""
        answer = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=request.raw_input_contents)
        answer.outputs.add(name="y", datatype=request.inputs[0].datatype, shape=request.inputs[0].shape)
        return answer


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(grpc_options=gRPCOptions(port=int(sys.argv[1]), grpc_servicer_functions=[_SERVICE]))
    serve.run(Identity.bind())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()
