"""Where a request's time went."""

from __future__ import annotations

import numpy as np
from support.models import RepositoryBuilder
from support.server import serving

from tensorgate_client import encode_infer_request

_STAGES = (
    r"cache=(\d+)us decode=(\d+)us queue=(\d+)us execute=(\d+)us encode=(\d+)us "
    "model=echo version=1 request_id='slow one' rpc=ModelInfer"
)


def test_debug_logs_the_stages_of_each_request(repository: RepositoryBuilder) -> None:
    """A user who turns debug on reads off the log which stage of a request was slow."""
    repository.add("echo", config='backend: "echo"\nparameters { key: "delay_ms" value { string_value: "30" } }')
    with serving(repository.root, "--log-level", "debug") as gateway:
        inputs = {"INPUT0": np.zeros((1, 4), np.float32)}
        gateway.stub.ModelInfer(encode_infer_request("echo", inputs, request_id="slow one"), timeout=30)
        stages = [int(us) for us in gateway.server.wait_for_log(_STAGES).groups()]
    assert stages.index(max(stages)) == 3, "the delay is in `execute`"
    assert stages[3] >= 30_000
