"""A process of many callers; `python -m soak.callers ADDRESS FOLDER SEED SECONDS [reload]` prints what they met."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import grpc
from grpc import StatusCode as Code
from support.models import RepositoryBuilder

from soak.models import KINDS, Factors
from soak.requests import Plan
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc

CALLERS = 24
_LOST_S = 60.0
_SHOWN = 20


class Callers:
    """Send random requests one after the other, each of them, and judge the answers.

    Args:
        address: of the server.
        folder: with the repository in `models` and the factors in `factors`.
        seed: of all that is random.
    """

    def __init__(self, address: str, folder: Path, seed: str) -> None:
        self._seed = seed
        self._repository = RepositoryBuilder(folder / "models")
        self._factors = Factors(folder / "factors")
        self._channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.outcomes: Counter[str] = Counter()
        self.complaints: list[str] = []

    async def run(self, seconds: float, *, reloads: bool) -> None:
        """Call until the time is up and the last call has ended."""
        until = time.monotonic() + seconds
        tasks = [self._call_on(f"{self._seed}.{number}", until) for number in range(CALLERS)]
        if reloads:
            tasks.append(self._reload_on(until))
        await asyncio.gather(*tasks)
        await self._channel.close()

    async def _call_on(self, name: str, until: float) -> None:
        random, number = Random(name), 0  # noqa: S311  # no secret
        while time.monotonic() < until:
            number += 1
            plan = Plan.draw(random)
            self.outcomes["sent"] += 1
            outcome, complaint = await self._call(plan, f"{name}.{number}")
            self.outcomes[outcome] += 1
            if complaint:
                self.complaints.append(f"{name}.{number} {plan}: {complaint}")

    async def _call(self, plan: Plan, request_id: str) -> tuple[str, str]:
        """How a request ended, and what is wrong with that."""
        lowest = self._factors.lowest(plan.model)
        call = self._stub.ModelInfer(plan.message(request_id), timeout=plan.deadline_s)
        if plan.cancel_after_s is not None:
            asyncio.get_running_loop().call_later(plan.cancel_after_s, call.cancel)
        done, _ = await asyncio.wait({asyncio.ensure_future(_ended(call))}, timeout=_LOST_S)
        if not done:
            call.cancel()
            return "lost", f"no answer within {_LOST_S} s"
        code, details, response = done.pop().result()
        if code is Code.OK:
            complaint = plan.wrong(response, request_id, lowest, self._factors)
            return ("wrong" if complaint else "answered"), complaint
        if code in plan.allowed:
            return code.name, ""
        return "wrong", f"{code.name}: {details}"

    async def _reload_on(self, until: float) -> None:
        random = Random(f"{self._seed} reload")  # noqa: S311  # no secret
        changing = [name for name, kind in KINDS.items() if kind.change]
        while time.monotonic() < until:
            name = random.choice(changing)
            if KINDS[name].change == "unload":
                await self._stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name), timeout=60)
            KINDS[name].write(self._repository, name, self._factors.begin(name))
            await self._stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=60)
            self._factors.complete(name)
            self.outcomes["reloads"] += 1
            await asyncio.sleep(random.random() * 0.2)


async def _ended(call: grpc.aio.UnaryUnaryCall) -> tuple[Code, str, pb.ModelInferResponse | None]:
    try:
        return Code.OK, "", await call
    except asyncio.CancelledError:
        return Code.CANCELLED, "by its caller", None
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or "", None


async def _main(address: str, folder: str, seed: str, seconds: str, *options: str) -> None:
    callers = Callers(address, Path(folder), seed)
    await callers.run(float(seconds), reloads="reload" in options)
    json.dump({"outcomes": callers.outcomes, "complaints": callers.complaints[:_SHOWN]}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
