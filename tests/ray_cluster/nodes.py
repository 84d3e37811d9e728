"""A Ray cluster on this machine, run by the Python that has Ray: a command a line, an answer each as JSON.

add CPUS GPUS    start a node, the first one being the head: its id
kill ID          end a node's raylet by SIGKILL; what it ran goes with it
free             what is free in all: CPU, GPU
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

_NODE = {"object_store_memory": 200_000_000, "include_dashboard": False}


def main() -> None:
    """Obey until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # Ray has things to say, too
    cluster, nodes = Cluster(), {}
    try:
        for line in sys.stdin:
            command, *values = line.split()
            answer: Any = None
            if command == "add":
                cpus, gpus = map(int, values)
                node = cluster.add_node(num_cpus=cpus, num_gpus=gpus, **_NODE)
                answer = node.node_id, cluster.address
                nodes[node.node_id] = node
                if len(nodes) == 1:
                    ray.init(cluster.address, log_to_driver=False)
            elif command == "kill":
                cluster.remove_node(nodes.pop(values[0]), allow_graceful=False)
            elif command == "free":
                answer = ray.available_resources()
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
