"""The lines of the log: for people and for machines, and whoever chose a name cannot forge one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from support.calls import ECHO, ONES, refusal
from support.logs import JSON, change_log, entries
from support.models import RepositoryBuilder
from support.server import TENSORGATE, Gateway, launch, serving
from support.streams import StreamCall

from tensorgate_client import encode_infer_request

FORGED = "\n2026-01-01 00:00:00,000 INFO    forged\r\x1b[2K\u2028{}"

TALKATIVE = """
import logging, time, warnings

class Unshown:
    def __str__(self):
        raise RuntimeError

class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        log, cycle = logging.getLogger("somelib"), []
        cycle.append(cycle)
        odd = {"thing": Unshown(), "number": float("nan"), "cycle": cycle, "huge": 10**5000}
        log.warning("odd %s", "one", extra=odd)
        log.warning("odd %d", Unshown())
        log.warning("plain", extra={"count": 3, "text": "a b", "level": "mine"})
        log.debug("somelib's own business")
        warnings.warn("odd input\\nof two lines")
        time.sleep(0.2)
        raise ValueError("FORGED")
""".replace("FORGED", FORGED.encode("unicode_escape").decode())


@pytest.fixture
def models(repository: RepositoryBuilder) -> RepositoryBuilder:
    """An echo, and a model that logs a lot and then fails."""
    repository.add("echo", config=ECHO)
    repository.add("talkative", {"model.py": TALKATIVE}, config="version_policy { all {} }", version=3)
    return repository


@pytest.fixture
def gateway(models: RepositoryBuilder) -> Iterator[Gateway]:
    """A server that writes JSON."""
    with serving(models.root, *JSON, "--log-level", "debug") as gateway:
        yield gateway


def fail(gateway: Gateway, request_id: str = "7") -> str:
    """Call the model that fails; the id it fails with."""
    message = encode_infer_request("talkative", {"x": ONES}, request_id=request_id)
    _, details = refusal(lambda: gateway.stub.ModelInfer(message, timeout=30))
    return re.search(r"id (\w{12});", details)[1]


def test_every_line_is_json(gateway):
    """A log collector parses every line, whoever logs it and whatever it is given, and finds the same keys in each."""
    fail(gateway)
    gateway.server.wait_for_log("it failed on this request")
    lines = entries(gateway.server)
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("DEBUG", "INFO", "WARNING", "ERROR")
        assert isinstance(line["message"], str)
    odd, misfit, plain = (line for line in lines if line["logger"] == "somelib")
    assert odd["message"] == "odd one"
    assert (odd["thing"], odd["number"], odd["huge"]) == ("<Unshown>", "nan", "<int>")
    assert misfit["message"].startswith("odd %d")
    assert (plain["count"], plain["text"], plain["level"]) == (3, "a b", "WARNING")
    assert [line["level"] for line in lines if "odd input\nof two lines" in line["message"]] == ["WARNING"]


def test_a_failure_is_one_line_with_all_about_it(gateway):
    """An operator finds a failed request by model, version, request id or the id in the client's error, in one line."""
    error_id = fail(gateway, "order 7")
    gateway.server.wait_for_log(error_id)
    failed = [line for line in entries(gateway.server) if line["level"] == "ERROR"]
    fields = ("rpc", "model", "version", "request_id", "error_id")
    assert [[line[field] for field in fields] for line in failed] == [
        ["ModelInfer", "talkative", "3", "order 7", error_id]
    ]
    assert failed[0]["exception"].startswith("Traceback (most recent call last):\n")
    assert failed[0]["exception"].endswith(f"ValueError: {FORGED}")


def test_a_streams_requests_are_told_apart(gateway):
    """A failed request of a stream has its own line, and so has a batch that several of them shared."""
    with StreamCall(gateway) as stream:
        for number in range(4):
            stream.send("talkative", *ONES, id=str(number))
        assert all(stream.next().error_message for _ in range(4))
    lines = entries(gateway.server)
    failed = [(line["rpc"], line["version"], line["request_id"]) for line in lines if line["level"] == "ERROR"]
    assert sorted(failed) == [("ModelStreamInfer", "3", str(number)) for number in range(4)]
    shared = [line for line in lines if "trying them apart" in line["message"]]
    assert shared
    assert {(line["model"], line["version"]) for line in shared} == {("talkative", "3")}


@pytest.mark.parametrize("log_format", ["human", "ISO8601", "json"])
def test_nobody_forges_a_line(models, log_format):
    """A newline or an escape in a request id, a model's name or an exception begins no line and steers no terminal."""
    start = "json" if log_format == "json" else "human"
    with serving(models.root, "--log-format", start, "--access-log", "--log-level", "debug") as gateway:
        change_log(gateway, log_format="default" if log_format == "human" else log_format)
        gateway.stub.ModelInfer(encode_infer_request("echo", {"INPUT0": ONES}, request_id=FORGED), timeout=30)
        message = encode_infer_request(FORGED, {"x": ONES})
        assert refusal(lambda: gateway.stub.ModelInfer(message, timeout=30))[1].startswith("Request for unknown model")
        gateway.server.wait_for_log(fail(gateway, FORGED))
        gateway.server.wait_for_log("code=INTERNAL|INTERNAL")
        log = gateway.server.log
    assert "forged" in log
    assert not re.search("^2026-01-01|^{}", log, re.M)
    assert not re.search("[\r\x1b\u2028]", log)


def test_fields_follow_the_message_for_people(models):
    """In the lines for people, what a line is about follows as key=value; what belongs to a line is indented."""
    with serving(models.root) as gateway:
        error_id = fail(gateway, "a b")
        gateway.server.wait_for_log(
            rf"\d ERROR   ModelInfer failed, id {error_id}: model 'talkative': it failed on this request "
            rf"model=talkative version=3 request_id='a b' rpc=ModelInfer error_id={error_id}\n  Traceback "
        )
        gateway.server.wait_for_log(r"\d WARNING plain count=3 text='a b' level=mine\n")


def test_a_library_keeps_its_details_to_itself(gateway):
    """`--log-level debug` is about requests; the debug lines of libraries, by the thousand, stay out."""
    fail(gateway)
    gateway.server.wait_for_log("it failed on this request")
    assert "own business" not in gateway.server.log


def test_without_a_terminal_it_is_json(models):
    """In a container or under a supervisor the log is JSON without being asked for, and for people on a terminal."""
    with launch("--model-repository", models.root, "--port", "0", environment={"TENSORGATE_LOG_FORMAT": ""}) as server:
        server.wait_until_ready()
        assert entries(server)
    outer, inner = pty.openpty()
    command = [TENSORGATE, "serve", "--model-repository", models.root, "--port", "0", "--metrics-port", "off"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=inner) as process, os.fdopen(outer) as terminal:
        os.close(inner)
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    listening on ", terminal.readline())
        process.kill()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"TENSORGATE_LOG_FORMAT": "xml"}, "TENSORGATE_LOG_FORMAT: expected 'auto', 'human' or 'json', got 'xml'"),
        ({"TENSORGATE_ACCESS_LOG": "loud"}, "TENSORGATE_ACCESS_LOG: expected a valid boolean, got 'loud'"),
    ],
)
def test_wrong_settings_are_named(models, given, message):
    """A setting of the log that does not exist ends the start with what was expected."""
    command = [TENSORGATE, "serve", "--model-repository", models.root]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | given, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (2, f"tensorgate: {message}\n")


def test_requests_leave_no_lines_by_default(models):
    """A server that answers well logs nothing about it: at thousands of requests a second nobody could read it."""
    with serving(models.root) as gateway:
        before = gateway.server.log
        gateway.stub.ModelInfer(encode_infer_request("echo", {"INPUT0": np.zeros((1, 4), np.float32)}), timeout=30)
        assert gateway.server.log == before
