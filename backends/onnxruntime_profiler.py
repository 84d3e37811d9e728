"""ONNX Runtime's own profiling: how long each node of a graph took, read from the file that a session writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime as ort

from backends.base import Array, Instance, Operation

_log = logging.getLogger(__name__)

_RUN, _NODE = "model_run", "_kernel_time"

Event = Mapping[str, Any]
"""Of the file, in Chrome's trace event format: `name`, `ts` and `dur` in whole microseconds, `tid`, `args`."""


class OnnxRuntimeProfiler:
    """Profiles a model in sessions that are opened for it.

    Args:
        opened: a session over the model that writes its profile to a file of the given prefix.
        over: an instance that executes in a session.
    """

    name = "ONNX Runtime's profiler"
    traces = True

    def __init__(
        self, opened: Callable[[str], ort.InferenceSession], over: Callable[[ort.InferenceSession], Instance]
    ) -> None:
        self._opened = opened
        self._over = over

    def instance(self, *, by_node: bool) -> ProfiledSession:
        """An instance with a session of its own, which holds the weights once more."""
        folder = TemporaryDirectory(prefix="tensorgate-profile-")
        session = self._opened(f"{folder.name}/session")
        return ProfiledSession(session, self._over(session), folder, by_node=by_node)


class ProfiledSession:
    """A session that records all it does from its first day; only what follows `start` is told."""

    def __init__(
        self, session: ort.InferenceSession, instance: Instance, folder: TemporaryDirectory[str], *, by_node: bool
    ) -> None:
        self._session = session
        self._instance = instance
        self._folder = folder
        self._by_node = by_node
        self._runs = 0
        self._before = 0

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """As the model's own instances do."""
        self._runs += 1
        return self._instance.execute(inputs)

    def start(self) -> None:
        """Remember how many runs are not to be told of."""
        self._before = self._runs

    def stop(self, trace: Path | None) -> list[Operation]:
        """Operators by their type, or nodes by name and type; a node with a subgraph, as Loop, calls what is in it."""
        written = Path(self._session.end_profiling()).read_text(encoding="utf-8", errors="replace")
        events = _since(json.loads(written), self._before)
        recorded = sum(event["name"] == _RUN for event in events)
        if recorded < self._runs - self._before:
            # It keeps a million events, and says nothing of those it drops at our log level.
            _log.warning("ONNX Runtime recorded %d runs and then ran out of room: profile fewer", recorded)
        if trace:
            trace.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        return _operations([e for e in events if str(e["name"]).endswith(_NODE)], self._label)

    def _label(self, event: Event) -> str:
        kind = str(event["args"]["op_name"])
        return f"{event['name'].removesuffix(_NODE)} ({kind})" if self._by_node else kind

    def close(self) -> None:
        """Free the session, and the file it wrote."""
        self._instance.close()
        self._folder.cleanup()


def _since(events: Sequence[Event], runs: int) -> list[Event]:
    """The events after so many runs, by the time they began."""
    ordered = sorted(events, key=lambda event: (event["ts"], -event["dur"]))
    ends = [event["ts"] + event["dur"] for event in ordered if event["name"] == _RUN]
    since = ends[runs - 1] if runs else 0
    return [event for event in ordered if event["ts"] >= since]


def _operations(nodes: Iterable[Event], label: Callable[[Event], str]) -> list[Operation]:
    """Events in the order they began, summed by their labels."""
    found: dict[str, Operation] = {}
    open_nodes: dict[Any, list[Event]] = {}
    for event in nodes:
        around = open_nodes.setdefault(event["tid"], [])
        while around and event["ts"] >= around[-1]["ts"] + around[-1]["dur"]:
            around.pop()
        if around:  # a node's own time is without the nodes of its subgraph
            parent = label(around[-1])
            found[parent] = found[parent]._replace(self_us=found[parent].self_us - event["dur"])
        around.append(event)
        sums = found.get(name := label(event), Operation(name, 0, 0, 0))
        found[name] = Operation(name, sums.calls + 1, sums.total_us + event["dur"], sums.self_us + event["dur"])
    return list(found.values())
