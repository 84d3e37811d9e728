"""The LogSettings RPC: Triton's settings, read and changed while the server runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest
from support.calls import ECHO, ONES, infer, load, refusal, unload
from support.logs import change_log
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.streams import StreamCall

DEFAULTS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
NAMES = ", ".join(DEFAULTS)

FAILING = """
class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        raise ValueError
"""


@pytest.fixture
def gateway(repository: RepositoryBuilder) -> Iterator[Gateway]:
    """A server whose models are loaded by RPC."""
    repository.add("echo", config=ECHO)
    repository.add("failing", {"model.py": FAILING})
    with serving(repository.root, "--model-control", "explicit", "--load-model", "*") as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", DEFAULTS | {"log_verbose_level": 1}),
        ("info", DEFAULTS),
        ("warning", DEFAULTS | {"log_info": False}),
        ("error", DEFAULTS | {"log_info": False, "log_warning": False}),
    ],
)
def test_settings_begin_as_the_flags_say(repository, level, expected):
    """A client that only reads the settings gets all of Triton's, as --log-level set them, and changes nothing."""
    lines = {"TENSORGATE_LOG_LEVEL": level, "TENSORGATE_LOG_FORMAT": "json"}
    with serving(repository.root, environment=lines | {"TENSORGATE_LOG_LEVEL": "info"}) as gateway:
        assert change_log(gateway) == DEFAULTS | {"log_format": "json"}
        switches = {name: value for name, value in expected.items() if name != "log_file"}
        assert change_log(gateway, **switches) == expected


def test_stages_are_logged_from_now_on(gateway):
    """Verbose turned on shows the stages of each request, also on a stream that was open before; off, no more."""
    with StreamCall(gateway) as stream:
        stream.send("echo", *ONES, name="INPUT0", id="quiet")
        stream.next()
        assert change_log(gateway, log_verbose_level=2)["log_verbose_level"] == 2
        stream.send("echo", *ONES, name="INPUT0", id="streamed")
        stream.next()
        infer(gateway, "echo")
        assert change_log(gateway, log_verbose_level=0) == DEFAULTS
        stream.send("echo", *ONES, name="INPUT0", id="quiet")
        stream.next()
        unload(gateway, "echo")
    gateway.server.wait_for_log("model echo unloaded")
    stages = [line for line in gateway.server.log.splitlines() if "execute=" in line]
    assert len(stages) == 2
    assert "request_id=streamed rpc=ModelStreamInfer" in stages[0]
    assert "model=echo version=1 rpc=ModelInfer" in stages[1]


def test_each_level_has_a_switch(gateway):
    """Info, warnings and errors are turned off and on one by one, as in Triton, whatever the others are."""
    change_log(gateway, log_info=False)
    unload(gateway, "echo")
    change_log(gateway, log_error=False)
    refusal(lambda: infer(gateway, "failing", name="x"))
    change_log(gateway, log_info=True, log_warning=False)
    load(gateway, "echo")
    change_log(gateway, log_error=True)
    refusal(lambda: infer(gateway, "failing", name="x"))
    gateway.server.wait_for_log("ModelInfer failed")
    after = re.split(r"ready: gRPC .*\n", gateway.server.log)[1]
    assert [line.split()[2] for line in after.splitlines() if re.match(r"\d{4}-", line)] == [
        "WARNING",  # log_info goes off
        "WARNING",  # log_error goes off
        "WARNING",  # log_warning goes off
        "INFO",  # the model is loaded
        "ERROR",
    ]


def test_the_format_changes(gateway):
    """The next line has the format that was asked for: Triton's two by their names, and JSON."""
    for log_format, line in [
        ("json", r'^{"time": "[^"]*Z", "level": "INFO", "logger": "gateway.repository", "message": "model echo un'),
        ("ISO8601", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    model echo unloaded"),
        ("default", r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    model echo unloaded"),
    ]:
        assert change_log(gateway, log_format=log_format) == DEFAULTS | {"log_format": log_format}
        unload(gateway, "echo")
        gateway.server.wait_for_log(re.compile(line, re.M))
        load(gateway, "echo")


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ({"log_info": 1}, INVALID, "log setting log_info: expected bool_param, got uint32_param"),
        ({"log_info": None}, INVALID, "log setting log_info: expected bool_param, got no value"),
        ({"log_verbose_level": True}, INVALID, "log setting log_verbose_level: expected uint32_param, got bool_param"),
        ({"log_warnings": True}, INVALID, f"unknown log setting 'log_warnings': expected one of {NAMES}"),
        (
            {"log_format": "xml"},
            INVALID,
            "log setting log_format: expected one of default, ISO8601, json, got 'xml'",
        ),
        (
            {"log_file": "/tmp/log"},  # noqa: S108  # never written
            grpc.StatusCode.UNIMPLEMENTED,
            "log_file: this server writes no files that clients name; its log goes to stderr",
        ),
    ],
)
def test_a_wrong_setting_changes_nothing(gateway, setting, code, message):
    """A setting that cannot be had is refused with what was expected, and those sent with it stay as they were."""
    assert refusal(lambda: change_log(gateway, log_error=False, **setting)) == (code, message)
    assert change_log(gateway, log_file="") == DEFAULTS
