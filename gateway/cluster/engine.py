"""`--engine ray`: instances as actors on the nodes of a Ray cluster, which Ray places and starts again."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from backends import base
from backends.base import LoadError, ModelSource
from backends.registry import BackendInfo, Registry
from gateway import parameters
from gateway.cluster.actor import Actor, Task, resources
from gateway.cluster.files import packed
from gateway.cluster.pool import Pool, RayInstance
from gateway.cluster.process import Loaded, ModelActor
from gateway.engine import EngineUnavailable, Threads
from gateway.instances import ThreadInstance, Worker
from gateway.placement import BACKENDS_CHOICE, CPU, GPU
from tensorgate_client.tensors import shown
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)

_Group = pb.ModelInstanceGroup

_DEVICES = {_Group.KIND_CPU: CPU, _Group.KIND_GPU: f"{GPU}:0", _Group.KIND_MODEL: BACKENDS_CHOICE}
"""As an actor sees them: of GPUs, only those that Ray has given it."""

_REACH_S = 5.0

_ELSEWHERE = "remote"
"""The backend whose models lie on other servers."""


class RayEngine(Threads):
    """Models on the nodes of the cluster that this process is connected to, an actor for each instance.

    Those that lie on servers elsewhere have their threads here.
    """

    def settle(
        self, info: BackendInfo, source: ModelSource, declared: Sequence[_Group]
    ) -> tuple[list[_Group], list[str]]:
        """As `Engine.settle`. What backend and node have to say is seen where the actors are.

        A group of no kind is on the CPU: what a cluster has of GPUs is for those who ask for it.
        """
        if info.name == _ELSEWHERE:
            return super().settle(info, source, declared)
        groups, devices = [], []
        for index, written in enumerate(declared or [_Group()]):
            if written.gpus:
                raise LoadError(
                    f"instance_group gpus {shown(written.gpus)}: with --engine ray the cluster chooses GPUs: "
                    "say KIND_GPU and leave gpus out"
                )
            group = _Group()
            group.CopyFrom(written)
            group.name = group.name or f"{source.name}_{index}"
            group.count = group.count or 1
            if group.kind == _Group.KIND_AUTO:
                group.kind = _Group.KIND_CPU
            groups.append(group)
            devices += [_DEVICES[group.kind]] * group.count
        return groups, devices

    def backend(self, info: BackendInfo, config: pb.ModelConfig, devices: Sequence[str]) -> base.Backend:
        """One that has actors load the model, all for a device at the same time."""
        return (
            super().backend(info, config, devices)
            if info.name == _ELSEWHERE
            else RayBackend(info, config, Counter(devices))
        )

    async def start(self, worker: Worker, model: base.Model) -> ThreadInstance:
        """A place in the batcher for one of the model's actors."""
        if not isinstance(model, RayModel):
            return await super().start(worker, model)
        return RayInstance(worker, model.instance(), model.pool)

    def close(self) -> None:
        """Leave the cluster, which ends every actor that is left."""
        ray.shutdown()


class RayBackend:
    """Loads a model by actors.

    Args:
        info: the backend that they use.
        config: the model's, as its owner wrote it.
        counts: how many instances there are to be on each device.
    """

    def __init__(self, info: BackendInfo, config: pb.ModelConfig, counts: Counter[str]) -> None:
        self._info = info
        self._counts = counts
        self._deterministic = parameters.deterministic(config)
        self._cpus = parameters.amount(config, parameters.RAY_NUM_CPUS, 1)
        self._gpus = {
            device: parameters.amount(config, parameters.RAY_NUM_GPUS, float(device != "")) for device in counts
        }
        self._gpus[CPU] = 0

    def load(self, source: ModelSource) -> RayModel:
        """Have all actors of a device load it.

        Raises:
            LoadError: one of them does not, or there is no room in the cluster; none of them is left behind.
            OSError: the model's files cannot be read.
        """
        files = packed(source.directory)
        gpus = self._gpus[source.device]
        actor = ray.remote(
            num_cpus=self._cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,  # what is repeated is the pool's to decide
            scheduling_strategy="SPREAD",
            concurrency_groups={"watch": 1},  # all else is on one thread
            enable_task_events=False,  # a record of every batch would go to the head
        )(ModelActor)
        handles = [actor.remote() for _ in range(self._counts[source.device])]
        device = f" on {source.device}" if len(self._counts) > 1 else ""
        name = f"{source.name}/{source.version}{device}"
        needs = resources({"CPU": self._cpus, "GPU": gpus})
        pool = Pool(name, handles, Task(lambda handle: handle.load.remote(self._info, source, files), needs))
        try:
            model = RayModel(pool, [actor.loaded.result() for actor in pool.actors])
        except BaseException:
            pool.close()
            raise
        pool.repeatable = self._deterministic and model.signature.deterministic
        return model


class RayModel:
    """What the actors of one device have loaded."""

    def __init__(self, pool: Pool, loaded: Sequence[Loaded]) -> None:
        self.pool = pool
        self.signature = loaded[0].signature
        self.memory: Counter[str] = Counter()
        for actor, one in zip(pool.actors, loaded, strict=True):
            self.memory.update(one.memory)
            if one.signature != self.signature:
                first = f"{pool.actors[0].node}: {self.signature}"
                raise LoadError(
                    f"the nodes do not agree on the model's tensors: {actor.node}: {one.signature}, {first}"
                )
        self._unused: Iterator[Actor] = iter(pool.actors)

    def instance(self) -> Actor:
        """The next actor."""
        return next(self._unused)

    def close(self) -> None:
        """End the actors that were not closed as instances: what came after they had loaded may have gone wrong."""
        self.pool.close()


def connect(address: str) -> RayEngine:
    """Become part of a cluster.

    Args:
        address: "auto" for RAY_ADDRESS or the cluster that this machine is a node of, "local" for one that begins and
            ends with this process, or HOST:PORT of a head.

    Raises:
        EngineUnavailable: there is none, or it does not take this process.
    """
    logger = logging.getLogger("ray")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.ERROR)
    sys.stdout = _Notes()
    known = _known(address)
    if "://" in known:
        raise EngineUnavailable(f"--ray-address: {known}: expected HOST:PORT, Ray's client is not supported\n{_JOIN}")
    if problem := _unreachable(known):
        raise EngineUnavailable(f"no Ray cluster at {known}: {problem}\n{_START}")
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            namespace="tensorgate",
        )
    except Exception as error:  # of a dozen kinds
        raise EngineUnavailable(_reason(known, error)) from error
    logging.setLogRecordFactory(logging.LogRecord)  # Ray's own puts a field into every line
    nodes = sum(node["Alive"] for node in ray.nodes())
    told = f"{nodes} node{'s' * (nodes != 1)}, {resources(ray.cluster_resources())}"
    _log.info("engine ray: %s at %s", told, ray.get_runtime_context().gcs_address)
    return RayEngine(Registry())


_START = (
    "start one with `ray start --head`, on further machines `ray start --address HEAD:6379`; "
    "or try this machine alone: --ray-address local"
)
_JOIN = (
    "make this machine a node of the cluster: `ray start --address HEAD:6379 --num-cpus 0` if it is to compute nothing"
)
_IDENTIFY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the token that the cluster's head has"


def _known(address: str) -> str:
    """Where "auto" leads: Ray itself takes three minutes to give up on a cluster that is gone."""
    if address != "auto":
        return address
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108  # Ray's own
    try:
        return os.environ.get("RAY_ADDRESS") or noted.read_text().strip() or address
    except OSError:
        return address


def _unreachable(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon:  # "auto", "local"; what is neither Ray refuses
        return ""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_S):
            return ""
    except ValueError:
        return "expected HOST:PORT"
    except (OSError, OverflowError) as error:
        return str(error)


def _reason(address: str, error: Exception) -> str:
    text = f"{error}\n{error.__cause__ or ''}"
    if "Version mismatch" in text:
        told = [line.strip() for line in text.splitlines() if line.strip()]
        return " ".join(["the cluster runs other versions:", *told[1:]])
    if isinstance(error, ConnectionError) and "any running Ray" in text:
        return f"no Ray cluster on this machine\n{_START}"
    told = str(error.__cause__ or error).split("\n")
    last = next(
        line for line in reversed(told) if line.strip() or line is told[0]
    )  # what Python says after a traceback
    hint = _IDENTIFY if "authentication token" in last.lower() else _JOIN
    return f"cannot join the Ray cluster at {address}: {last}\n{hint}"


class _Notes(io.TextIOBase):
    """Takes the place of stdout, where Ray writes what it has to say of nodes and processes."""

    def write(self, text: str) -> int:
        """Log it, for those who look closely: what matters of it we say ourselves."""
        for line in filter(None, map(str.rstrip, text.splitlines())):
            _log.debug("%s", line)
        return len(text)
