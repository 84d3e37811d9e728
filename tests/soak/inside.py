"""What a server in this process holds at a moment."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_PENDING = re.compile(r"(waiting|running|retrying|in_flight|changing|retiring)=(\d+)")
_REQUESTS = {"Job", "Batch", "Inference", "UnaryCall", "Flight"}  # no InferenceRequest: known heads keep one each
_KINDS = {
    "gateway": {"ServedModel", "Batcher", "ModelCache", "Worker", *_REQUESTS},
    "_asyncio": {"Future"},
}


@dataclass(frozen=True)
class Held:
    """What is there to be counted.

    Attributes:
        objects: by the name of their class.
        tasks: of the event loop, by the coroutine's name.
        threads: by name, instances without their number.
        pending: what waits or runs somewhere, as the server and its models tell it themselves.
    """

    objects: Counter[str]
    tasks: Counter[str]
    threads: Counter[str]
    pending: Counter[str]

    @classmethod
    def now(cls, server: object) -> Held:
        """Count, after everything that is unreachable is gone."""
        gc.collect()
        found = [item for item in gc.get_objects() if type(item).__name__ in _KINDS.get(_top(item), ())]
        pending: Counter[str] = Counter()
        for text in map(repr, [server, *(item for item in found if type(item).__name__ == "ServedModel")]):
            for name, count in _PENDING.findall(text):
                pending[name] += int(count)
        tasks = (task.get_coro() for task in asyncio.all_tasks())
        return cls(
            Counter(type(item).__name__ for item in found),
            Counter(getattr(coroutine, "__qualname__", repr(coroutine)) for coroutine in tasks),
            Counter(re.sub(r"[\d#/_]+$", "", thread.name) for thread in threading.enumerate()),
            pending,
        )

    def beyond(self, before: Held) -> list[str]:
        """What there is more of than `before`, and all that is pending, one line each."""
        lines = [f"pending {name}: {count}" for name, count in self.pending.items() if count]
        for kind in ("objects", "tasks", "threads"):
            more: Counter[str] = getattr(self, kind) - getattr(before, kind)
            lines += [f"{kind} {name}: {count} more" for name, count in more.items() if not _spare(kind, name)]
        return lines


def _spare(kind: str, name: str) -> bool:
    """Threads of pools, which start as they are needed and then stay."""
    return kind == "threads" and name.startswith(("asyncio", "ThreadPoolExecutor"))


def _top(item: object) -> str:
    module = type(item).__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def resident_mb() -> float:
    """This process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
