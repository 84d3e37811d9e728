"""Ray Serve's side of `identity`, behind its gRPC proxy: `python ray_identity.py GRPC_PORT HTTP_PORT`."""

import signal
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from tensorgate_client.wire import inference_pb2 as pb

_SERVICE = "tensorgate_client.wire.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(max_ongoing_requests=1000, logging_config={"enable_access_log": False})
class Identity:
    """Gives back what it gets."""

    def __init__(self) -> None:
        self._answered = 0

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802  # the RPC's name
        """The answer to one request; nothing of the tensor is decoded."""
        answer = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=request.raw_input_contents)
        answer.outputs.add(name="y", datatype=request.inputs[0].datatype, shape=request.inputs[0].shape)
        self._answered += 1
        return answer

    async def ModelStatistics(self, _: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:  # noqa: N802
        """How many it has answered."""
        counts = pb.ModelStatisticsResponse()
        counts.model_stats.add().inference_stats.success.count = self._answered
        return counts


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    grpc_port, http_port = map(int, sys.argv[1:])
    serve.start(
        http_options=HTTPOptions(port=http_port),  # it cannot be told to do without
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[_SERVICE]),
        logging_config={"enable_access_log": False},
    )
    serve.run(Identity.bind())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()
