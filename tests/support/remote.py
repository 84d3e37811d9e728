"""Models that other servers run."""

from __future__ import annotations

import threading
from types import TracebackType

import grpc
import numpy as np

from support.calls import eventually, infer
from support.concurrent import parameter
from support.server import Gateway


def remote(*addresses: str, **parameters: object) -> str:
    """The config.pbtxt of a model on these servers."""
    given = {"urls": ",".join(addresses), **parameters}
    return 'backend: "remote"\n' + "".join(parameter(key, value) for key, value in given.items())


class Load:
    """Callers in a loop while it is entered, each of whom checks its answers.

    Attributes:
        answered: how many calls were, and rightly.
        failures: what the others ended with.
    """

    def __init__(self, gateway: Gateway, model: str, callers: int = 8) -> None:
        self._gateway = gateway
        self._model = model
        self._stopped = False
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(callers)]
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(50)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()

    def more(self, calls: int) -> None:
        """Return when so many more calls have been answered, or one has failed."""
        enough = self.answered + calls
        eventually(lambda: self.failures or self.answered >= enough)

    def _call(self, number: int) -> None:
        x = np.full((1, 4), number, np.float32)
        while not self._stopped:
            try:
                answer = infer(self._gateway, self._model, x, "x")
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                return
            if not (answer == 2 * x).all():
                self.failures.append(f"got {answer} for {x}")
            self.answered += 1
