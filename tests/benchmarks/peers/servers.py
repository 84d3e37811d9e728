"""How each server is started: the same models, at the settings at which it is fastest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from support.models import RepositoryBuilder
from support.server import TENSORGATE, ServerProcess, connected, free_port

from benchmarks.models import KEPT, minilm_file
from benchmarks.peers.turns import end
from benchmarks.report import BenchmarkError
from benchmarks.served import Target

IDENTITY, CACHED, MINILM, MINILM_QUEUE = "identity", "cached", "minilm", "minilm_queue"

_ROOT = Path(__file__).parent.parent.parent.parent
_PROGRAMS = Path(__file__).parent / "programs"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_CACHE_MB, _MESSAGE_MB = 256, 64

# One model in Python for Triton and the gateway: only the class in model.py is the other's.
_IDENTITY = """
backend: "python"
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
dynamic_batching { }
"""
_CACHE = "response_cache { enable: true }"
_MINILM = """
backend: "python"
max_batch_size: 32
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }
]
output { name: "sentence_embedding" data_type: TYPE_FP32 dims: [ 384 ] }
"""
_BATCHING = "dynamic_batching { }"
# Short batches and a short queue, so that what it accepts is answered within 100 ms.
_QUEUE = """
dynamic_batching {
  preferred_batch_size: 8
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 40000 }
}
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run, and what its log says once it serves."""

    command: Sequence[str | Path]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)


def _tensorgate(transport: str, folder: Path, port: int) -> Launch:
    repository = RepositoryBuilder(folder)
    for model, more in ((IDENTITY, ""), (CACHED, _CACHE)):
        repository.add(model, {"model.py": _PROGRAMS / "tensorgate_identity.py"}, _IDENTITY + more)
    repository.add(MINILM, {"model.onnx": minilm_file()}, "max_batch_size: 32\n" + _BATCHING)
    command = [TENSORGATE, "serve", "--model-repository", folder, "--port", str(port), "--transport", transport]
    return Launch([*command, "--metrics-port", "off", "--cache-size-mb", str(_CACHE_MB)], "ready: gRPC on")


def _triton(folder: Path, port: int) -> Launch:
    repository = RepositoryBuilder(folder)
    for model, more in ((IDENTITY, ""), (CACHED, _CACHE)):
        repository.add(model, {"model.py": _PROGRAMS / "triton_identity.py"}, _IDENTITY + more)
    for model, more in ((MINILM, _BATCHING), (MINILM_QUEUE, _QUEUE)):
        files = {"model.py": _PROGRAMS / "triton_minilm.py", "model.onnx": minilm_file()}
        repository.add(model, files, _MINILM + more)
    return triton(folder, port)


def triton(folder: Path, port: int) -> Launch:
    """Triton over a repository; its backends lie beside that from then on.

    Raises:
        BenchmarkError: it is not installed.
    """
    home = environment("triton")
    packages = home / "lib" / f"python{_PYTHON}" / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    stubs, backends = server / "python_backend_stubs" / _PYTHON, folder.parent / "backends"
    for part in (server / "backends" / "python", stubs):  # the backend wants the stub of its Python beside it
        shutil.copytree(part, backends / "python", dirs_exist_ok=True)
    command = [server / "bin" / "tritonserver", "--model-repository", folder, "--backend-directory", backends]
    command += ["--cache-directory", server / "caches", "--cache-config", f"local,size={_CACHE_MB << 20}"]
    command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(port)]
    command += ["--allow-http", "false", "--allow-metrics", "false"]
    variables = {
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",  # the stub takes its packages from the first python3 there
    }
    return Launch(command, "Started GRPCInferenceService", variables)


def _mlserver(folder: Path, port: int) -> Launch:
    folder.mkdir()
    settings = {"host": "127.0.0.1", "grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
    settings |= {"parallel_workers": 0, "grpc_max_message_length": _MESSAGE_MB << 20, "cache_enabled": True}
    settings |= {"cache_size": 100, "metrics_endpoint": None, "debug": False, "use_structured_logging": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    for model, cached in ((IDENTITY, False), (CACHED, True)):
        (folder / model).mkdir()
        described = {"name": model, "implementation": "mlserver_identity.Identity", "cache_enabled": cached}
        (folder / model / "model-settings.json").write_text(json.dumps(described))
    command = [environment("mlserver") / "bin" / "mlserver", "start", folder]
    return Launch(command, "gRPC server running", {"PYTHONPATH": str(_PROGRAMS)})


def _ray(folder: Path, port: int) -> Launch:
    python = environment("ray") / "bin" / "python"
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
    # Short ways inside: no thread hops in the proxy, gRPC from it to the model.
    variables |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", "PYTHONPATH": ""}
    return Launch([python, _PROGRAMS / "ray_identity.py", str(port), str(free_port())], "^ready", variables)


def _echo(_: Path, port: int) -> Launch:
    return Launch([sys.executable, _PROGRAMS / "grpc_echo.py", str(port)], "^ready")


LAUNCHES: Mapping[str, Callable[[Path, int], Launch]] = {
    "triton": _triton,
    "native": lambda folder, port: _tensorgate("native", folder, port),
    "grpcio": lambda folder, port: _tensorgate("grpcio", folder, port),
    "mlserver": _mlserver,
    "ray": _ray,
    "echo-grpcio": _echo,
}


def environment(name: str) -> Path:
    """The virtual environment of a peer, made the first time that somebody asks for it.

    Raises:
        BenchmarkError: it does not install.
    """
    folder = f".venv-peers-{name}"
    if subprocess.run(["make", "--silent", f"{folder}/.installed"], cwd=_ROOT, check=False).returncode:
        raise BenchmarkError(f"{name} does not install: see above")
    return _ROOT / folder


@contextmanager
def running(name: str) -> Iterator[Target]:
    """One of `LAUNCHES`, ready to be called.

    Raises:
        BenchmarkError: it does not start, or ends.
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        port = free_port()
        launch = LAUNCHES[name](Path(folder) / "models", port)
        server = ServerProcess(launch.command, launch.environment)
        try:
            server.wait_for_log(f"(?m){launch.ready}", timeout=180)
            with connected(server, f"127.0.0.1:{port}") as gateway:
                yield Target(gateway, Path(folder))
        except (AssertionError, BenchmarkError, grpc.RpcError) as error:
            if server.process.poll() is None and not isinstance(error, AssertionError):
                raise  # another's fault, or an answer that says enough
            (KEPT / f"{name}.log").write_text(server.log)
            code = server.process.poll()
            raise BenchmarkError(
                f"{name} does not start, or ended (exit code {code}): see .benchmarks/{name}.log"
            ) from error
        finally:
            end(server.process.pid)
            server.kill()
