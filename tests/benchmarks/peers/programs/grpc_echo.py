"""A server of grpc.aio that gives back the bytes of each call: `python grpc_echo.py PORT`."""

import asyncio
import signal
import sys

import grpc
import uvloop

_SERVICE = "inference.GRPCInferenceService"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def _echo(message: bytes, _: grpc.aio.ServicerContext) -> bytes:
    return message


async def _main(port: int) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
